"""The CPU backend of the row operation against a plain float64 oracle, and in forks, processes and threads."""

import math
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from maxsup_hf.ops import rows_numba
from tests import HANGS

pytestmark = pytest.mark.skipif(
    rows_numba.why_unavailable() is not None, reason=f"needs numba: {rows_numba.why_unavailable()}"
)

REPOSITORY = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
COLUMNS = ("cross_entropy", "lse", "top", "mean", "label", "square", "expected", "classes")
SLOPES = [0.7, -0.2, 0.3, -0.4, 0.15, 0.01, 0.25]
IGNORE = -100


def oracle_row(z, target, slopes, moments):
    """Statistics, index of the top and gradient of one row in float64; `target` is an index or a list of probabilities."""
    classes = len(z)
    if any(math.isnan(v) for v in z):
        index = next(k for k in range(classes) if math.isnan(z[k]))
        label = z[target] if isinstance(target, int) else math.nan
        stats = dict.fromkeys(COLUMNS, math.nan) | {"classes": classes, "label": label}
        if not moments:
            stats |= {"square": 0.0, "expected": 0.0}
        return stats, index, np.full(classes, math.nan)
    top = max(z)
    index = list(z).index(top)
    kept = np.array([top - v <= 4096 for v in z])
    x = np.array([v - top for v in z])
    q = np.where(kept, np.exp(x), 0)
    log_sum = math.log(q.sum())
    q = q / q.sum()
    t = np.eye(classes)[target] if isinstance(target, int) else np.array(target)
    used = t != 0
    mass, label, shifted = t.sum(), (t[used] * z[used]).sum(), (t[used] * x[used]).sum()
    safe, safe_x = np.where(kept, z, 0), np.where(kept, x, 0)
    shifted_expected = (q * safe_x).sum()
    stats = {
        "cross_entropy": mass * log_sum - shifted,
        "lse": log_sum + top,
        "top": top,
        "mean": top + safe_x.sum() / kept.sum(),
        "label": label,
        "square": (safe**2).sum() if moments else 0.0,
        "expected": top + shifted_expected if moments else 0.0,
        "classes": kept.sum(),
    }
    by = dict(zip(COLUMNS, slopes, strict=False))
    grad = q * (by["cross_entropy"] * mass + by["lse"]) + by["mean"] * kept / kept.sum()
    if moments:
        grad = grad + 2 * by["square"] * safe + by["expected"] * q * (1 + safe_x - shifted_expected)
    grad = grad + (by["label"] - by["cross_entropy"]) * t
    grad[index] += by["top"]
    return stats, index, grad


def rows_of(x):
    """(N, K) float64 from either layout, in the order of rows that the contract gives."""
    x = x.detach().double()
    return x.numpy() if x.dim() == 2 else x.transpose(1, 2).reshape(-1, x.shape[1]).numpy()


def check(logits, target, slopes=None, moments=True, out=None):
    """Hold all three functions to the oracle on these logits."""
    number = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z = rows_of(logits)
    soft = target.is_floating_point()
    targets = rows_of(target) if soft else target.tolist()
    slopes = torch.tensor([SLOPES if moments else [*SLOPES[:5], 0.0, 0.0]] if slopes is None else slopes, dtype=number)
    out = torch.full_like(logits, 7.0) if out is None else out
    kept = logits.clone()
    flags = {"ignore_index": IGNORE, "square": moments, "expected": moments}
    stats, index = rows_numba.rows_and_grad(logits, target, slopes, out, **flags)
    assert stats.dtype == number and stats.shape == (len(z), 8) and index.dtype == torch.int64 and index.shape == (len(z),)
    alone, index_alone = rows_numba.rows(logits, target, **flags)
    again = torch.full_like(out, 7.0)
    rows_numba.rows_grad(logits, target, alone, index_alone, slopes, again, ignore_index=IGNORE)
    assert torch.equal(logits.nan_to_num(9.0), kept.nan_to_num(9.0))
    torch.testing.assert_close(alone, stats, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(index_alone, index)
    grads, grads_again = rows_of(out), rows_of(again)
    for r, row in enumerate(z):
        if not soft and targets[r] == IGNORE:
            assert not stats[r].any() and index[r] == 0 and not grads[r].any() and not grads_again[r].any()
            continue
        by = slopes[r if len(slopes) > 1 else 0].double().numpy()
        expected, top_index, grad = oracle_row(row, targets[r], by, moments)
        assert index[r] == top_index
        digits = (1e-13 if number == torch.float64 else 2e-6) * max(1.0, math.sqrt(len(row)) / 10)
        for column, name in enumerate(COLUMNS):
            scale = max(1.0, abs(expected[name])) if math.isfinite(expected[name]) else 1.0
            if name == "mean" or (name == "label" and soft):  # sums of as many digits as their largest summand has
                scale = max(scale, abs(expected["top"]), abs(expected["top"] - expected["mean"]))
            np.testing.assert_allclose(stats[r, column].item(), expected[name], rtol=0, atol=digits * scale, err_msg=name)
        size = np.abs(by).sum() * (1 + (np.abs(np.where(np.isfinite(row), row, 0)).max() if moments else 0))
        if not by.any():
            assert not grads[r].any() and not grads_again[r].any()
            continue
        tolerance = {
            torch.float64: (1e-12, 1e-13 * size),
            torch.float32: (1e-5, 1e-6 * size),
            torch.bfloat16: (2**-8, 1e-6 * size),
            torch.float16: (2**-10, 1e-6 * size),
        }[logits.dtype]
        for found in (grads, grads_again):
            np.testing.assert_allclose(found[r], grad, rtol=tolerance[0], atol=tolerance[1])


def problem(n, k, dtype, soft, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, k, generator=generator, dtype=torch.float64) * scale).to(dtype)
    if soft:
        target = torch.rand(n, k, generator=generator, dtype=torch.float64).softmax(1)
        return logits, target.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return logits, torch.randint(k, (n,), generator=generator)


@pytest.mark.parametrize("moments", [False, True], ids=["plain", "moments"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOracle:
    @pytest.mark.parametrize("n, k", [(5, 1), (7, 2), (9, 10), (6, 65), (3, 600), (2, 40_000)])
    def test_sizes(self, n, k, dtype, soft, moments):
        check(*problem(n, k, dtype, soft), moments=moments)

    @pytest.mark.parametrize("mask", [-math.inf, -1e30, -65504.0, -1e4])
    def test_masked(self, mask, dtype, soft, moments):
        logits, target = problem(6, 40, dtype, soft)
        masked = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.4
        masked[:, 7] = False
        masked[5] = torch.arange(40) != 7  # one unmasked class
        logits[masked] = mask
        if soft:
            target = target.masked_fill(masked, 0)
        else:
            target = torch.full((6,), 7)
        check(logits, target, moments=moments)

    def test_ties_nan_and_extremes(self, dtype, soft, moments):
        logits, target = problem(8, 600, dtype, soft, scale=1.0)
        logits[0, [3, 599, 200]] = 6.0
        logits[1] = 0.0
        logits[2, 550] = math.nan
        logits[3, 5] = -math.nan
        logits[4] += 1e4
        logits[5] -= 1e4
        logits[6, 8] = 60.0
        logits[7] = logits[7].abs().neg()
        logits[7, [100, 300]] = torch.tensor([-0.0, 0.0], dtype=dtype)
        if dtype in (torch.bfloat16, torch.float16):  # their squares' sum is exact to fewer digits than the tolerance
            logits[4:6] = logits[4:6] / 64
        check(logits, target, moments=moments)

    def test_slopes_of_each_row(self, dtype, soft, moments):
        logits, target = problem(5, 33, dtype, soft)
        slopes = np.random.default_rng(0).normal(size=(5, 7))
        slopes[2] = 0
        slopes[3, 5:] = 0
        logits[2, 4] = math.nan  # nothing depends on this row
        check(logits, target, (slopes * ([1] * 5 + [moments] * 2)).tolist(), moments)

    def test_layouts(self, dtype, soft, moments):
        for k in (3, 70, 1025):
            logits, target = problem(40, k, dtype, soft)
            wide, columns = torch.zeros(40, k + 9, dtype=dtype), torch.zeros(40, 2 * k, dtype=dtype)
            wide[:, 4 : 4 + k], columns[:, ::2] = logits, logits
            layouts = [wide[:, 4 : 4 + k], columns[:, ::2], logits.t().contiguous().t()]
            for view in layouts:
                check(view, target, moments=moments)
                check(view, target, moments=moments, out=torch.empty(k, 40, dtype=dtype).t())
            check(logits, target, moments=moments, out=torch.empty(40, 3 * k, dtype=dtype)[:, ::3])
            stacked = logits.view(4, 10, k).transpose(1, 2)
            stacked_target = target.view(4, 10, k).transpose(1, 2) if soft else target
            check(stacked.contiguous(), stacked_target, moments=moments)
            check(stacked, stacked_target.contiguous(), moments=moments)

    def test_many_rows_of_an_image(self, dtype, soft, moments):
        """More rows side by side than go through the buffer at once, in pieces for several threads."""
        logits, target = problem(2 * 300, 21, dtype, soft)
        target = target.view(2, 300, 21).transpose(1, 2).contiguous() if soft else target
        check(logits.view(2, 300, 21).transpose(1, 2).contiguous(), target, moments=moments)

    def test_empty(self, dtype, soft, moments):
        check(*problem(0, 5, dtype, soft), moments=moments)
        empty = torch.empty(0, 5, 4, dtype=dtype)
        check(empty, torch.empty(0, 5, 4) if soft else torch.empty(0, dtype=torch.int64), moments=moments)
        with pytest.raises(ValueError, match="at least one class"):
            check(torch.empty(3, 0, dtype=dtype), torch.empty(3, 0) if soft else torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ignored_rows(dtype):
    logits, target = problem(6, 12, dtype, False)
    target[[1, 4]] = IGNORE
    logits[1, 3], logits[4] = math.nan, math.inf
    check(logits, target)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_top(dtype):
    logits, target = problem(2, 12, dtype, False)
    logits[0, 3], logits[1] = math.inf, -math.inf
    slopes, out = torch.tensor([SLOPES]), torch.empty_like(logits)
    stats, index = rows_numba.rows_and_grad(logits, target, slopes, out, ignore_index=IGNORE, square=False, expected=False)
    assert stats[:, 0].isnan().all() and stats[:, 2].tolist() == [math.inf, -math.inf] and index.tolist() == [3, 0]
    assert out[0, 3].isnan() and out[1].isnan().all()


@pytest.mark.parametrize("soft_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_probabilities(dtype, soft_dtype):
    logits, target = problem(4, 20, dtype, True)
    check(logits, target.to(soft_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp(dtype):
    """Read off as softmax in a row of two classes, over all differences at which it is a normal number."""
    lowest, bound = (-87.0, 4e-7) if dtype == torch.float32 else (-708.0, 2e-15)
    x = torch.linspace(lowest, 0, 200_001, dtype=dtype)
    logits, out = torch.stack([torch.zeros_like(x), x], 1), torch.empty(len(x), 2, dtype=dtype)
    slopes = torch.tensor([[0.0, 1.0, 0, 0, 0, 0, 0]])
    rows_numba.rows_and_grad(
        logits, torch.zeros(len(x), dtype=torch.int64), slopes, out, ignore_index=-1, square=False, expected=False
    )
    exact = np.exp(x.numpy().astype(np.longdouble))
    exact = exact / (1 + exact)
    assert np.abs(out[:, 1].numpy() / exact - 1).max() < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_as_torch_does(dtype):
    """The gradient of `label` is the probability itself, so any number can be sent through writing and reading."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=generator, dtype=torch.int32).view(torch.float32)
    near = torch.randn(1000, 16, generator=generator) * 10.0 ** torch.arange(-10, 6)
    ties = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    ties = (ties + ties.roll(1)) / 2
    numbers = torch.cat([bits, near.flatten(), ties])
    numbers = numbers[numbers.isfinite()][:, None]
    slopes = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0]])
    flags = {"ignore_index": IGNORE, "square": False, "expected": False}
    out = torch.empty(numbers.shape, dtype=dtype)
    rows_numba.rows_and_grad(torch.zeros(numbers.shape, dtype=dtype), numbers, slopes, out, **flags)
    assert torch.equal(out, numbers.to(dtype))
    back = torch.empty(numbers.shape)
    finite = out.nan_to_num(0, 0, 0)
    rows_numba.rows_and_grad(torch.zeros(numbers.shape), finite, slopes, back, **flags)
    assert torch.equal(back, finite.float())


def test_shard_of_a_row():
    """Each half's gradient from the whole row's statistics."""
    for dtype, soft in [(torch.float32, False), (torch.float64, False), (torch.float64, True)]:
        logits, target = problem(9, 50, dtype, soft)
        slopes = torch.tensor([SLOPES], dtype=dtype)
        whole = torch.empty_like(logits)
        flags = {"ignore_index": IGNORE, "square": True, "expected": True}
        if soft:  # the mass of a row is that of the shard that it is asked about
            target[:, 20:] = 0
        stats, index = rows_numba.rows_and_grad(logits, target, slopes, whole, **flags)
        for first, last in [(0, 20)] if soft else [(0, 20), (20, 50)]:
            out = torch.empty(9, last - first, dtype=dtype)
            labels = (
                target[:, first:last]
                if soft
                else torch.where(target == IGNORE, IGNORE, target - first + 1000 * (target < first))
            )
            rows_numba.rows_grad(logits[:, first:last], labels, stats, index - first, slopes, out, ignore_index=IGNORE)
            torch.testing.assert_close(out, whole[:, first:last], rtol=1e-5, atol=1e-6)
    outside, _ = rows_numba.rows(torch.zeros(1, 4), torch.tensor([9]), ignore_index=IGNORE, square=False, expected=False)
    assert outside[0, 4] == 0


@pytest.mark.parametrize("mean", [False, True])
def test_small(mean):
    logits, target = problem(64, 10, torch.float32, False)
    target[[0, 9]] = IGNORE
    logits[0, 0], logits[5, 3] = math.nan, -math.inf
    target[5] = 4
    slopes = torch.tensor([SLOPES]) / (62 if mean else 1)
    whole, out = torch.empty_like(logits), torch.empty_like(logits)
    stats, _ = rows_numba.rows_and_grad(logits, target, slopes, whole, ignore_index=IGNORE, square=True, expected=True)
    assert rows_numba.serves_small(logits, target)
    *sums, counted = rows_numba.small_rows_and_grad(logits, target, tuple(SLOPES), out, ignore_index=IGNORE, mean=mean)
    assert counted == 62
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(torch.tensor(sums), stats.sum(0))
    assert not rows_numba.serves_small(logits.t(), target) and not rows_numba.serves_small(logits.double(), target)


def big():
    return problem(900, 1000, torch.float32, False)


def digest(logits, target):
    """Sums of all results; by numpy, because torch's own threads do not survive a fork."""
    out = torch.empty_like(logits)
    flags = {"ignore_index": IGNORE, "square": False, "expected": False}
    stats, index = rows_numba.rows_and_grad(logits, target, torch.tensor([[*SLOPES[:5], 0.0, 0.0]]), out, **flags)
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
        answered = mine.poll(HANGS)
        if not answered:
            child.kill()
        child.join()
        assert answered and mine.recv()
    assert digest(logits, target) == expected


def test_threads_at_once(two_threads):
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
stats, index = rows_numba.rows(z, y, ignore_index=-1, square=False, expected=False)
torch.testing.assert_close(stats[:, 0], torch.nn.functional.cross_entropy(z, y, reduction="none"))
"""


def run(environment):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stderr=subprocess.PIPE, text=True)


def test_processes_that_fill_the_cache_at_once(tmp_path):
    for process in [run({"NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(4)]:
        assert process.wait(HANGS) == 0, process.stderr.read()
    assert len(list(tmp_path.rglob("*.nbi"))) == 1
    assert run({"NUMBA_CACHE_DIR": str(tmp_path)}).wait(HANGS) == 0


def test_no_folder_for_the_cache(tmp_path):
    """Nothing that numba itself would write to can be written: a temporary folder serves, or no cache at all."""
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
