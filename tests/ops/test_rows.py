"""The contract of every backend of the row operation, against plain Python."""

import math
import os
from functools import cache

import numpy as np
import pytest
import torch

from maxsup_hf.ops import backends
from maxsup_hf.ops.row_stats import COLUMNS, SLOPES
from tests import plain

TRITON = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if TRITON else ["cpu", "torch"]
IGNORE = -100
BY = dict(zip(SLOPES, [0.7, -0.2, 0.3, -0.4, 0.15, 0.01, 0.25, -0.3], strict=True))


@cache
def oracle(z, target, by):
    """Statistics, index of the top and gradient of one row; `target` is an index or a tuple of probabilities."""
    by = dict(zip(SLOPES, by, strict=True))
    of = plain.row_statistics(z, target)
    kept, top = plain.unmasked(z), max(z)
    t = [float(k == target) for k in range(len(z))] if isinstance(target, int) else target
    of["exp_sum"] = sum(math.exp(z[k] - top) for k in kept)
    gradient = [(by["label"] - by["cross_entropy"]) * t[k] for k in range(len(z))]
    for k in kept:
        q = math.exp(z[k] - top) / of["exp_sum"]
        gradient[k] += q * (by["cross_entropy"] * sum(t) + by["lse"]) + by["mean"] / len(kept) + 2 * by["square"] * z[k]
        gradient[k] += q * (by["expected"] + (by["expected"] - by["entropy"]) * (z[k] - of["expected"]))
    gradient[z.index(top)] += by["top"]
    return np.array([of[name] for name in COLUMNS]), z.index(top), np.array(gradient)


def rows_of(x):
    """Either layout as (N, K) float64, with rows in the order that the contract specifies."""
    x = x.detach().double()
    return x if x.dim() == 2 else x.transpose(1, 2).reshape(-1, x.shape[1])


def run(backend, logits, target, slopes, out):
    """Results of all three functions, after checking that they agree and leave the logits unchanged."""
    module = backends.resolve(backend, logits)
    kept = logits.clone()
    moments = bool(slopes[:, 5:].any())
    stats, index = module.rows_and_grad(logits, target, slopes, out, ignore_index=IGNORE, moments=moments)
    alone, index_alone = module.rows(logits, target, ignore_index=IGNORE, moments=moments)
    again = torch.full_like(out, 7.0)
    module.rows_grad(logits, target, alone, index_alone, slopes, again, ignore_index=IGNORE, moments=moments)
    torch.testing.assert_close(logits, kept, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(alone, stats, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert torch.equal(index_alone, index)
    assert stats.dtype == torch.promote_types(logits.dtype, torch.float32) and index.dtype == torch.int64
    for gradient in (out, again):
        yield stats, index, gradient


def check(backend, logits, target, slopes=None, out=None):
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    slopes = torch.tensor([list(BY.values())] if slopes is None else slopes, dtype=wide)
    out = torch.full_like(logits, 7.0) if out is None else out
    z = list(map(tuple, rows_of(logits).tolist()))
    targets = list(map(tuple, rows_of(target).tolist())) if target.is_floating_point() else target.tolist()
    columns = [c for c, name in enumerate(COLUMNS) if slopes[:, 5:].any() or name not in SLOPES[5:]]
    digits = 1e-12 if wide == torch.float64 else 4e-6
    rounding = {torch.bfloat16: 2**-7 if TRITON else 2**-8, torch.float16: 2**-10}  # Triton's interpreter truncates
    step = rounding.get(logits.dtype, 10 * digits)
    for stats, index, gradient in run(backend, logits, target, slopes, out):
        gradient = rows_of(gradient).numpy()
        for r, row in enumerate(z):
            if targets[r] == IGNORE:
                assert not stats[r].any() and index[r] == 0 and not gradient[r].any()
                continue
            expected, top_index, right = oracle(row, targets[r], tuple(slopes[r if len(slopes) > 1 else 0].tolist()))
            assert index[r] == top_index
            size = max(1.0, max(abs(row[k]) for k in plain.unmasked(row)))  # the error of a sum is that of its largest term
            scale = np.maximum(np.abs(expected), size)
            np.testing.assert_array_less(
                np.abs(stats[r].double().numpy() - expected)[columns], (digits * scale + 1e-300)[columns]
            )
            np.testing.assert_allclose(gradient[r], right, rtol=step, atol=digits * size)


def problem(n, k, dtype=torch.float64, soft=False, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(n, k, generator=generator, dtype=torch.float64) * scale).to(dtype)
    if soft:
        target = torch.rand(n, k, generator=generator, dtype=torch.float64).softmax(1)
        return logits, target.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return logits, torch.randint(k, (n,), generator=generator)


def rows(backend, dtype, soft):
    # Triton has a program for each row, so that few rows of a length are enough
    few, many = [(2, 1), (3, 2), (3, 10), (3, 65)], [(5, 1), (7, 2), (9, 10), (6, 65), (3, 600), (1, 9000)]
    for n, k in few if TRITON else many:
        check(backend, *problem(n, k, dtype, soft))
        check(backend, *problem(n, k, dtype, soft), slopes=[[1.0, 0.5, 0.1, -0.1, 0.2, 0, 0, 0]])


def masks(backend, dtype, soft):
    for value in (-math.inf, -1e30, torch.finfo(dtype).min, -1e4):
        if math.isinf(torch.tensor(value, dtype=dtype).item()) and value > -math.inf:
            continue  # out of this dtype's range
        logits, target = problem(6, 40, dtype, soft)
        masked = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.4
        masked[:, 7] = False
        masked[5] = torch.arange(40) != 7  # one unmasked class
        logits[masked] = value
        target = target.masked_fill(masked, 0) if soft else torch.full((6,), 7)
        check(backend, logits, target)


def ties_and_extremes(backend, dtype, soft):
    logits, target = problem(7, 90, dtype, soft, scale=1.0)
    logits[0, [3, 89, 20]] = 6.0
    logits[1] = 0.0
    logits[2] += 500
    logits[3] -= 500
    logits[4, 8] = 60.0
    logits[5] = logits[5].abs().neg()
    logits[5, [30, 10]] = torch.tensor([-0.0, 0.0], dtype=dtype)
    if not soft:
        target[6] = IGNORE
        logits[6, 3] = math.nan
    check(backend, logits, target)


def slopes_of_each_row(backend, dtype, soft):
    logits, target = problem(5, 33, dtype, soft)
    slopes = np.random.default_rng(0).normal(size=(5, 8))
    slopes[3, 5:] = 0
    check(backend, logits, target, slopes.tolist())
    slopes[2] = 0
    logits[2, 4] = math.nan  # the loss does not depend on this row
    module, out = backends.resolve(backend, logits), torch.full_like(logits, 7.0)
    wide = torch.promote_types(dtype, torch.float32)
    module.rows_and_grad(logits, target, torch.tensor(slopes, dtype=wide), out, ignore_index=IGNORE, moments=True)
    assert not out[2].any() and out[[0, 1, 3, 4]].isfinite().all()


def layouts(backend, dtype, soft):
    n = 4 if TRITON else 8
    for k in (3,) if TRITON else (3, 70, 2100):
        logits, target = problem(n, k, dtype, soft)
        wide, columns = torch.zeros(n, k + 9, dtype=dtype), torch.zeros(n, 2 * k, dtype=dtype)
        wide[:, 4 : 4 + k], columns[:, ::2] = logits, logits
        for view in (wide[:, 4 : 4 + k], columns[:, ::2], logits.t().contiguous().t()):
            check(backend, view, target)
            check(backend, view, target, out=torch.empty(k, n, dtype=dtype).t())
        check(backend, logits, target, out=torch.empty(n, 3 * k, dtype=dtype)[:, ::3])
        stacked = logits.view(2, n // 2, k).transpose(1, 2)
        stacked_target = target.view(2, n // 2, k).transpose(1, 2) if soft else target
        check(backend, stacked.contiguous(), stacked_target)
        check(backend, stacked, stacked_target.contiguous())
    check(backend, *problem(0, 5, dtype, soft))


def many_rows_of_an_image(backend, dtype, soft):
    """More adjacent rows than the kernel processes at a time."""
    rows = 6 if TRITON else 150
    logits, target = problem(2 * rows, 5, dtype, soft)
    target = target.view(2, rows, 5).transpose(1, 2).contiguous() if soft else target
    check(backend, logits.view(2, rows, 5).transpose(1, 2).contiguous(), target)


CASES = [rows, masks, ties_and_extremes, slopes_of_each_row, layouts, many_rows_of_an_image]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_contract(backend, case, soft):
    dtypes = (torch.float32, torch.bfloat16) if TRITON else (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for dtype in dtypes:
        globals()[case](backend, dtype, soft)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shards(backend):
    """The gradient of each part of a row from the statistics of the complete row, in place."""
    logits, target = problem(9, 50, torch.float32)
    target[3] = IGNORE
    module, slopes = backends.resolve(backend, logits), torch.tensor([list(BY.values())])
    complete = torch.empty_like(logits)
    stats, index = module.rows_and_grad(logits, target, slopes, complete, ignore_index=IGNORE, moments=True)
    for first, last in [(0, 20), (20, 50)]:
        part = logits[:, first:last].clone()
        labels = torch.where(target == IGNORE, IGNORE, target - first + 1000 * (target < first))
        module.rows_grad(part, labels, stats, index - first, slopes, part, ignore_index=IGNORE, moments=True)
        torch.testing.assert_close(part, complete[:, first:last], rtol=1e-5, atol=1e-6)
    outside, _ = module.rows(torch.zeros(1, 4), torch.tensor([9]), ignore_index=IGNORE, moments=False)
    assert outside[0, 4] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_of_both_signs_tie(backend):
    logits = torch.full((2, 1200), -1.0)
    logits[0, [3, 700]], logits[1, [3, 700]] = torch.tensor([-0.0, 0.0]), torch.tensor([0.0, -0.0])
    module = backends.resolve(backend, logits)
    _, index = module.rows(logits, torch.zeros(2, dtype=torch.int64), ignore_index=IGNORE, moments=False)
    assert index.tolist() == [3, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_and_missing_logits(backend):
    for bad, top in ((math.nan, None), (math.inf, math.inf), (-math.inf, -math.inf)):
        logits, target = problem(2, 12, torch.float32)
        logits[0] = bad if bad == -math.inf else logits[0].index_fill(0, torch.tensor([3]), bad)
        out = torch.empty_like(logits)
        slopes = torch.tensor([[1.0, 0, 0.1, -0.1, 0, 0, 0, 0]])
        module = backends.resolve(backend, logits)
        stats, _ = module.rows_and_grad(logits, target, slopes, out, ignore_index=IGNORE, moments=False)
        assert stats[0, 0].isnan() and out[0].isnan().any() and stats[1].isfinite().all() and out[1].isfinite().all()
        assert top is None or stats[0, 2] == top
