"""What only the numba backend has: its exp, small batches in one call, forks, processes, threads and the cache."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from maxsup_hf.ops import autograd, rows_numba
from tests import HANGS
from tests.ops.test_rows import BY, IGNORE, problem

pytestmark = pytest.mark.skipif(
    rows_numba.why_unavailable() is not None, reason=f"needs numba: {rows_numba.why_unavailable()}"
)

REPOSITORY = Path(__file__).parents[2]
SLOPES = list(BY.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp(dtype):
    """Computed as the softmax of rows of two classes, over all differences at which it is not subnormal."""
    lowest, bound = (-87.0, 4e-7) if dtype == torch.float32 else (-708.0, 2e-15)
    x = torch.linspace(lowest, 0, 200_001, dtype=dtype)
    logits, out = torch.stack([torch.zeros_like(x), x], 1), torch.empty(len(x), 2, dtype=dtype)
    slopes = torch.tensor([[0.0, 1.0, 0, 0, 0, 0, 0, 0]])
    rows_numba.rows_and_grad(logits, torch.zeros(len(x), dtype=torch.int64), slopes, out, ignore_index=-1, moments=False)
    exact = np.exp(x.numpy().astype(np.longdouble))
    exact = exact / (1 + exact)
    assert np.abs(out[:, 1].numpy() / exact - 1).max() < bound


@pytest.mark.parametrize("divisor", [0.0, 7.0])
def test_loss_in_one_call(divisor):
    logits, target = problem(64, 10, torch.float32)
    target[[0, 9]] = IGNORE
    logits[0, 0], logits[5, 3] = torch.nan, -torch.inf
    target[5] = 4
    slopes = torch.tensor([SLOPES]) / (divisor or 62)
    expected, out = torch.empty_like(logits), torch.empty_like(logits)
    stats, _ = rows_numba.rows_and_grad(logits, target, slopes, expected, ignore_index=IGNORE, moments=True)
    by = {"ignore_index": IGNORE, "divisor": divisor}
    loss, entropy, scale = rows_numba.loss_and_grad(logits, target, tuple(SLOPES), out, **by)
    assert scale == 1 / (divisor or 62)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.tensor(loss), (slopes * stats[:, :8]).sum())
    torch.testing.assert_close(torch.tensor(entropy), stats[:, 0].sum() / (divisor or 62))
    target[3] = 10
    assert rows_numba.loss_and_grad(logits, target, tuple(SLOPES), out, **by) is None
    assert autograd.supports_loss(logits, target)
    assert not autograd.supports_loss(logits.t(), target) and not autograd.supports_loss(logits.double(), target)


def test_loss_of_several_threads(two_threads):
    logits, target = big()
    out, expected = torch.empty_like(logits), torch.empty_like(logits)
    by = {"ignore_index": IGNORE, "divisor": 0.0}
    found = {rows_numba.loss_and_grad(logits, target, tuple(SLOPES), out, **by) for _ in range(5)}
    assert len(found) == 1, "results must be bitwise reproducible"
    loss, entropy, scale = found.pop()
    slopes = torch.tensor([SLOPES]) / len(target)
    stats, _ = rows_numba.rows_and_grad(logits, target, slopes, expected, ignore_index=IGNORE, moments=True)
    torch.testing.assert_close(out, expected)
    assert (loss, entropy) == pytest.approx(((slopes * stats[:, :8]).sum().item(), stats[:, 0].mean().item()), rel=1e-5)
    assert scale == 1 / len(target)
    target[-1] = 1000
    assert rows_numba.loss_and_grad(logits, target, tuple(SLOPES), out, **by) is None


def big():
    return problem(900, 1000, torch.float32)


def digest(logits, target):
    """Sums of all results, by numpy because torch's threads do not survive a fork."""
    out = torch.empty_like(logits)
    slopes = torch.tensor([[*SLOPES[:5], 0.0, 0.0, 0.0]])
    stats, index = rows_numba.rows_and_grad(logits, target, slopes, out, ignore_index=IGNORE, moments=False)
    return stats.numpy().sum(), np.abs(out.numpy()).sum(), index.numpy().sum()


def in_child(logits, target, expected, connection):
    connection.send(digest(logits, target) == expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_after_a_fork(two_threads):
    logits, target = big()
    expected = digest(logits, target)
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        mine, theirs = context.Pipe()
        child = context.Process(target=in_child, args=(logits, target, expected, theirs))
        child.start()
        answered = mine.poll(HANGS)  # without an answer the child hangs
        if not answered:
            child.kill()
        child.join()
        assert answered and mine.recv()
    assert digest(logits, target) == expected


def test_concurrent_threads(two_threads):
    expected, found = digest(*big()), []
    threads = [threading.Thread(target=lambda: found.extend(digest(*big()) for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert found == [expected] * 20


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SCRIPT = """
import sys, torch
import maxsup_hf.ops.rows_numba as rows_numba
assert "numba" not in sys.modules
z, y = torch.randn(4, 5), torch.arange(4)
stats, index = rows_numba.rows(z, y, ignore_index=-1, moments=False)
torch.testing.assert_close(stats[:, 0], torch.nn.functional.cross_entropy(z, y, reduction="none"))
"""


def run(environment):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stderr=subprocess.PIPE, text=True)


def test_processes_that_fill_the_cache_concurrently(tmp_path):
    for process in [run({"NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(4)]:
        assert process.wait(HANGS) == 0, process.stderr.read()
    assert len(list(tmp_path.rglob("*.nbi"))) == 1
    assert run({"NUMBA_CACHE_DIR": str(tmp_path)}).wait(HANGS) == 0


def test_without_a_writable_cache_folder(tmp_path):
    """If numba can write to none of its folders, a temporary folder is used, or else no cache."""
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    blocked = {"NUMBA_CACHE_DIR": str(nowhere / "cache"), "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    for place in (temporary, nowhere):
        process = run({**blocked, "TMPDIR": str(place)})
        assert process.wait(HANGS) == 0, process.stderr.read()
        assert len(list(temporary.rglob("*.nbi"))) == 1


def test_why_unavailable(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "numba cannot be imported" in rows_numba.why_unavailable()
