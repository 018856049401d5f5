"""The Triton kernel against the plain path in float64. Run by test_cuda.py in a process of its own: with
TRITON_INTERPRET=1, which Triton must see when it is first imported, the kernel runs on the CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxsup_hf import create_loss, list_losses
from maxsup_hf.kernels import cuda
from maxsup_hf.losses import get_spec

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NaN on purpose
SUMS = ["maxsup+logit_penalty", "focal+maxsup", "maxsup+z_loss"]
SERVED = [name for name in [*list_losses(), *SUMS] if not get_spec(name).needs_logits]
# one unit in the last place: the interpreter cuts digits off where a GPU rounds to bfloat16
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def both(name, logits, target, label_scale, penalty_scale, upstream=1.0):
    """Loss, cross-entropy and gradient by the kernel, and by plain operations in float64."""
    loss = create_loss(name)
    values = {**{k: torch.tensor(v, dtype=torch.float64) for k, v in loss.values(0.3).items()}, **loss.options}
    given = logits.clone().requires_grad_()
    found, cross_entropy = cuda.loss_of_rows(
        given, target, label_scale, penalty_scale, loss.spec.formula, loss.spec.arguments, values
    )
    (found * upstream).backward()
    exact = logits.double().masked_fill(logits <= torch.finfo(min_dtype(logits)).min, -torch.inf).requires_grad_()
    counted = label_scale != 0
    rows = torch.where(counted[:, None], exact, 0)
    t = target.double() if target.is_floating_point() else target
    each = loss.compute(rows, t, loss.values(0.3), reduction="none")
    plain = create_loss("cross_entropy")(rows, t, reduction="none")
    # the label term and the penalty have scales of their own: find the one by leaving the other out
    term = each.loss if loss.spec.replaces_target and name in ("focal", "poly") else plain
    expected = (term * label_scale.double()).sum() + ((each.loss - term) * penalty_scale.double()).sum()
    (expected * upstream).backward()
    return (found, cross_entropy, given.grad), (expected, (plain * label_scale.double()).sum(), exact.grad)


def min_dtype(logits):
    return torch.bfloat16 if logits.dtype == torch.float32 else logits.dtype


def check(name, logits, target, label_scale=None, penalty_scale=None, upstream=1.0):
    n = len(logits)
    label_scale = torch.full((n,), 1 / max(n, 1)) if label_scale is None else label_scale
    if "focal+" in name:
        penalty_scale = label_scale  # the twin tells the two terms apart only for losses alone
    penalty_scale = label_scale if penalty_scale is None else penalty_scale
    (found, ce, grad), (expected, exact_ce, exact) = both(name, logits, target, label_scale, penalty_scale, upstream)
    assert found.dtype == torch.float32 and grad.dtype == logits.dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ce.double(), exact_ce, rtol=1e-5, atol=1e-6)
    tolerance = DTYPES[logits.dtype]
    torch.testing.assert_close(grad.double(), exact, rtol=tolerance, atol=tolerance / 4 / max(n, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", SERVED)
def test_equals_the_plain_path(name, soft, dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 13)).to(dtype)
    target = torch.rand(5, 13).softmax(-1) if soft else torch.randint(13, (5,))
    label_scale = torch.tensor([0.2, 0.0, 0.7, 0.1, 0.3])
    check(name, logits, target, label_scale, torch.where(label_scale > 0, 0.25, 0.0), upstream=0.5)


@pytest.mark.parametrize("name", SERVED)
def test_rows_that_do_not_fit_into_registers(name, monkeypatch):
    monkeypatch.setattr(cuda, "IN_REGISTERS", 8)
    monkeypatch.setattr(cuda, "BLOCK", 16)
    torch.manual_seed(1)
    logits, labels = 3 * torch.randn(4, 53), torch.tensor([0, 17, 52, 31])
    logits[0, 5] = logits[0, 40] = 20.0  # a tie over two blocks
    logits[1, 16:32] = -torch.inf  # a block that takes no part, but for the label
    logits[1, 17] = 1.0
    check(name, logits, labels)
    check(name, logits.masked_fill(logits == -torch.inf, -3.0), torch.rand(4, 53).softmax(-1))


@pytest.mark.parametrize("name", SERVED)
@given(n=st.integers(0, 4), k=st.integers(2, 40), seed=st.integers(0, 2**31))
@settings(max_examples=8)
def test_any_shape_with_ties_and_masked_classes(name, n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(n, k, generator=generator)).round()
    labels = torch.randint(k, (n,), generator=generator)
    mask = torch.rand(n, k, generator=generator) < 0.2
    mask[torch.arange(n), labels] = False
    check(name, logits.masked_fill(mask, -torch.inf if seed % 2 else torch.finfo(torch.bfloat16).min), labels)


@pytest.mark.parametrize("name", SERVED)
def test_an_ignored_row_may_hold_anything(name):
    logits = torch.randn(3, 6)
    logits[1] = torch.nan
    check(name, logits, torch.tensor([1, 0, 4]), torch.tensor([0.5, 0.0, 0.5]))


def test_the_top_of_a_tie_is_the_first():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    check("maxsup", logits, torch.tensor([1]))  # label and top in one column
    check("maxsup", logits, torch.tensor([3]))
    check("maxsup", torch.zeros(2, 4), torch.tensor([0, 3]))


def test_strided_rows():
    logits = torch.randn(6, 20)
    for view in (logits[::2, :11], logits.T[:5, :6]):
        check("maxsup", view, torch.arange(len(view)))


def test_no_graph_is_no_gradient():
    loss = create_loss("maxsup")
    scale = torch.full((2,), 0.5)
    found, _ = cuda.loss_of_rows(
        torch.randn(2, 5), torch.tensor([0, 1]), scale, scale, loss.spec.formula, loss.spec.arguments, loss.values(0)
    )
    assert not found.requires_grad


def test_misuse():
    loss = create_loss("maxsup")
    scale = torch.full((2,), 0.5)

    def run(logits):
        return cuda.loss_of_rows(
            logits, torch.tensor([0, 1]), scale, scale, loss.spec.formula, loss.spec.arguments, loss.values(0)
        )[0]

    with pytest.raises(TypeError, match="logits must be float32, bfloat16 or float16, got torch.float64"):
        run(torch.randn(2, 5, dtype=torch.float64))
    value = run(torch.randn(2, 5, requires_grad=True))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice through one loss"):
        value.backward()
    logits = torch.randn(2, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(run(logits), logits, create_graph=True)


def test_the_same_bits_every_time():
    logits, labels = torch.randn(8, 300), torch.randint(300, (8,))
    loss, scale = create_loss("maxsup"), torch.full((8,), 1 / 8)
    results = []
    for _ in range(2):
        given = logits.clone().requires_grad_()
        value, _ = cuda.loss_of_rows(given, labels, scale, scale, loss.spec.formula, loss.spec.arguments, loss.values(0))
        value.backward()
        results.append((value, given.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
