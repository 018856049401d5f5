"""Row statistics: the reference implementation and the operation with a backend, against plain Python."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from maxsup_hf.ops.autograd import statistics
from maxsup_hf.ops.row_stats import STATISTICS, row_stats
from tests import plain


@st.composite
def batches(draw, masks=True):
    """Logits, and hard or soft targets that avoid masked classes."""
    n, k = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = draw(st.sampled_from([0.01, 1.0, 30.0])) * torch.randn(n, k, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # ties
        logits = logits.round()
    if masks and k > 2 and draw(st.booleans()):
        logits[torch.arange(n), torch.randint(k, (n,), generator=generator)] = -math.inf
    allowed = (logits > -math.inf).double()
    if draw(st.booleans()):
        return logits, torch.multinomial(allowed, 1, generator=generator).squeeze(1)
    soft = allowed * torch.rand(n, k, generator=generator, dtype=torch.float64)
    return logits, soft / soft.sum(-1, keepdim=True) * draw(st.sampled_from([1.0, 0.7]))


@given(batches())
def test_both_match_plain_python(batch):
    logits, target = batch
    expected = [plain.row_statistics(z, t) for z, t in zip(logits.tolist(), target.tolist(), strict=True)]
    for stats in (statistics, row_stats):
        values = stats(logits, target, STATISTICS)
        for name in STATISTICS:
            assert values[name].tolist() == pytest.approx([row[name] for row in expected], rel=1e-12, abs=1e-12)


@given(batches(), st.lists(st.sampled_from(STATISTICS), min_size=1, unique=True))
def test_gradients_match_the_reference(batch, names):
    assume(names != ["classes"])  # the number of classes has no derivative
    logits, target = batch
    upstream = {name: torch.randn(len(logits), dtype=torch.float64) for name in names}
    gradients = []
    for stats in (statistics, row_stats):
        z = logits.clone().requires_grad_()
        values = stats(z, target, names)
        sum((values[name] * upstream[name]).sum() for name in names).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(name, soft):
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 6, dtype=torch.float64) if soft else torch.randint(6, (4,))
    assert gradcheck(lambda z: statistics(z, target, (name,))[name], logits)


def test_top_of_a_tie_is_the_first_index():
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0]], requires_grad=True)
    statistics(logits, torch.tensor([0]), ("top",))["top"].sum().backward()
    assert logits.grad.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_masked_class_equals_a_removed_one(dtype):
    kept = torch.randn(3, 5).to(dtype)
    target = torch.randint(5, (3,))
    for fill in (-math.inf, torch.finfo(dtype).min):
        masked = torch.cat([kept, torch.full((3, 2), fill, dtype=dtype)], dim=1).requires_grad_()
        values, expected = statistics(masked, target, STATISTICS), statistics(kept, target, STATISTICS)
        for name in STATISTICS:
            torch.testing.assert_close(values[name], expected[name])
        sum(value.sum() for value in values.values()).backward()
        assert (masked.grad[:, 5:] == 0).all() and masked.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.randn(8, 100).to(dtype).requires_grad_()
    target = torch.randint(100, (8,))
    values, exact = statistics(logits, target, STATISTICS), statistics(logits.double(), target, STATISTICS)
    for name in STATISTICS:
        assert values[name].dtype == torch.float32
        torch.testing.assert_close(values[name].double(), exact[name], rtol=1e-5, atol=1e-5)
    values["cross_entropy"].sum().backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("soft", [False, True])
def test_second_derivatives(soft):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 4, dtype=torch.float64) if soft else torch.randint(4, (3,))
    assert gradgradcheck(lambda z: tuple(statistics(z, target, STATISTICS).values()), logits)
    gradients = []
    for stats in (statistics, row_stats):
        (gradient,) = torch.autograd.grad(stats(logits, target)["cross_entropy"].sum(), logits, create_graph=True)
        gradients.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
    torch.testing.assert_close(*gradients)


def test_large_logits_are_accurate():
    logits = torch.tensor([[1e4, 1e4 - 3, -1e4]], dtype=torch.float32)
    exact = math.log(1 + math.exp(-3))
    assert statistics(logits, torch.tensor([0]))["cross_entropy"].item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("stats", [statistics, row_stats])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (100, 0), (1000, 0), (1, 1000)])
def test_gradients_at_large_logits_are_accurate(scale, offset, stats):
    """The error is relative to the softmax, not to logits that are a thousand times larger."""
    logits = scale * torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) + offset
    target = torch.arange(64) % 32
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    stats(single, target)["cross_entropy"].sum().backward()
    torch.nn.functional.cross_entropy(double, target, reduction="sum").backward()
    assert (single.grad - double.grad).norm() <= 2e-7 * double.grad.norm()


def test_one_graph_under_compile():
    def loss(logits, target):
        values = statistics(logits, target, ("cross_entropy", "top", "mean"))
        return (values["cross_entropy"] + 0.1 * (values["top"] - values["mean"])).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    target = torch.randint(7, (4,))
    eager, traced = (torch.arange(28.0).sin().reshape(4, 7).requires_grad_() for _ in range(2))
    loss(eager, target).backward()
    compiled(traced, target).backward()
    torch.testing.assert_close(traced.grad, eager.grad)
