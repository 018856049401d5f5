"""Properties of every registered loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from maxsup_hf import create_loss, list_losses, ls_decomposition
from maxsup_hf.losses import get_spec
from tests import plain

LOSSES = list_losses()


def takes_soft_labels(name):
    return "labels" not in get_spec(name).arguments


def weighs_classes_of_soft_labels(name):
    """Whether the target term is cross-entropy, so that class weights are defined for soft labels."""
    row = [0.3, -1.0, 2.0]
    return plain.REFERENCE[name](row, 1, create_loss(name).values(0))[0] == plain.row_statistics(row, 1)["cross_entropy"]


def test_every_loss_has_a_reference_implementation_and_golden_values():
    from tests.losses.test_golden import GOLDEN

    assert not set(LOSSES) ^ set(plain.REFERENCE), "each loss needs one in tests/plain.py (docs/extend/loss.md)"
    sequences = {"online_label_smoothing"} if GOLDEN["online_label_smoothing"] else set()
    golden = {case["loss"] for case in GOLDEN["losses"]} | sequences
    assert not set(LOSSES) ^ golden, "each loss needs a case in tests/golden.json (docs/extend/loss.md)"


@st.composite
def problems(draw):
    n, k = draw(st.integers(0, 6)), draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = 5 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # ties
        logits = logits.round()
    soft = draw(st.booleans())
    if soft:
        labels = torch.rand(n, k, generator=generator, dtype=torch.float64).softmax(-1)
    else:
        labels = torch.randint(k, (n,), generator=generator)
    if k > 3 and draw(st.booleans()):  # a masked class, which is no row's label
        logits[:, 1] = -torch.inf
        if soft:
            labels[:, 1] = 0
        else:
            labels[labels == 1] = 0
    if not soft:
        labels[torch.rand(n, generator=generator) < 0.3] = -100
    weight = torch.rand(k, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None
    return logits, labels, weight, draw(st.sampled_from(["mean", "sum", "none"]))


@pytest.mark.parametrize("name", LOSSES)
@given(problem=problems())
def test_matches_plain_python(name, problem):
    logits, labels, weight, reduction = problem
    loss = create_loss(name)
    if labels.is_floating_point() and not takes_soft_labels(name):
        with pytest.raises(ValueError, match="needs integer labels, got soft ones"):
            loss(logits, labels, weight=weight, reduction=reduction)
        return
    if labels.is_floating_point() and weight is not None and not weighs_classes_of_soft_labels(name):
        with pytest.raises(ValueError, match="weight cannot be combined with soft labels"):
            loss(logits, labels, weight=weight, reduction=reduction)
        return
    value = loss(logits, labels, weight=weight, reduction=reduction)
    weights = weight.tolist() if weight is not None else None
    expected = plain.loss(name, logits.tolist(), labels.tolist(), loss.values(0), weight=weights, reduction=reduction)
    assert value.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(name, soft):
    loss = create_loss(name)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    if soft and takes_soft_labels(name):
        labels = torch.rand(5, 4, dtype=torch.float64).softmax(-1)
    else:
        labels = torch.tensor([0, 3, -100, 2, 2])
    assert gradcheck(lambda z: loss(z, labels, progress=0.3), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_classes_equal_removed_ones(name):
    kept, labels = [0, 2, 3, 5], torch.tensor([0, 3, -100, 2, 5])
    logits = torch.randn(5, 6, dtype=torch.float64)
    removed = logits[:, kept].clone().requires_grad_()
    logits[:, [1, 4]] = -torch.inf
    logits.requires_grad_()
    position = torch.tensor([0, -1, 1, 2, -1, 3])
    value = create_loss(name)(logits, labels)
    expected = create_loss(name)(removed, torch.where(labels < 0, labels, position[labels.clamp_min(0)]))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    value.backward(), expected.backward()
    torch.testing.assert_close(logits.grad[:, kept], removed.grad, rtol=1e-12, atol=1e-12)
    assert (logits.grad[:, [1, 4]] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_shift_invariance_is_as_declared(name):
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,))
    results = []
    for shift in (0.0, 3.0):
        shifted = (logits + shift).requires_grad_()
        value = create_loss(name)(shifted, labels)
        value.backward()
        results.append((value, shifted.grad))
    (value, grad), (moved, moved_grad) = results
    same = torch.allclose(value, moved, rtol=1e-10) and torch.allclose(grad, moved_grad, rtol=1e-9, atol=1e-12)
    assert same == get_spec(name).shift_invariant


@pytest.mark.parametrize("name", LOSSES)
def test_ignoring_a_row_equals_removing_it(name):
    loss, logits = create_loss(name), torch.randn(6, 5, dtype=torch.float64)
    labels = torch.tensor([1, 255, 4, 255, 0, 2])
    kept = labels != 255
    logits[1] = torch.nan  # an ignored row may hold anything
    complete, sliced = logits.clone().requires_grad_(), logits[kept].clone().requires_grad_()
    value, expected = loss(complete, labels, ignore_index=255), loss(sliced, labels[kept])
    torch.testing.assert_close(value, expected)
    value.backward(), expected.backward()
    torch.testing.assert_close(complete.grad[kept], sliced.grad)
    assert (complete.grad[~kept] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(name, reduction):
    logits = torch.randn(3, 4, requires_grad=True)
    value = create_loss(name)(logits, torch.full((3,), -100), reduction=reduction)
    value.sum().backward()
    assert (value == 0).all() and (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_rows(name):
    assert create_loss(name)(torch.randn(0, 4), torch.zeros(0, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_leading_dimensions_are_rows(name):
    loss, logits, labels = create_loss(name), torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    torch.testing.assert_close(loss(logits, labels), loss(logits.flatten(0, 1), labels.flatten()))
    assert loss(logits, labels, reduction="none").shape == (2, 3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("items", [8, 8.0, torch.tensor(8)])
def test_num_items_in_batch_divides_the_sum(name, items):
    loss, logits, labels = create_loss(name), torch.randn(4, 5), torch.tensor([0, -100, 1, 2])
    expected = loss(logits, labels, reduction="sum") / 8
    torch.testing.assert_close(loss(logits, labels, num_items_in_batch=items), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    logits = (3 * torch.randn(16, 50)).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    labels = torch.randint(50, (16,))
    value, expected = create_loss(name)(logits, labels), create_loss(name)(exact, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    value.backward(), expected.backward()
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=step, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite(name):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    value = create_loss(name)(logits, torch.tensor([1, 0]))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_permuting_classes_permutes_the_gradient(name):
    logits, labels, order = torch.randn(4, 6, dtype=torch.float64), torch.randint(6, (4,)), torch.randperm(6)
    first, second = logits.clone().requires_grad_(), logits[:, order].clone().requires_grad_()
    create_loss(name)(first, labels).backward()
    create_loss(name)(second, order.argsort()[labels]).backward()
    torch.testing.assert_close(first.grad[:, order], second.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_without_strength_it_is_cross_entropy(name):
    spec = get_spec(name)
    nothing = dict.fromkeys(spec.parameters, 0)
    if any(spec.bounds.get(parameter, (0, 1))[0] > 0 for parameter in spec.parameters):
        with pytest.raises(ValueError, match="must be finite and at least"):
            create_loss(name, **nothing)
        return  # no value of its parameters makes it cross-entropy
    for kernel in ("plain",) if spec.needs_logits else ("plain", "auto"):
        results = []
        for function in (create_loss(name, **nothing), create_loss("cross_entropy")):
            logits = torch.linspace(-3, 5, 40).reshape(8, 5).requires_grad_()
            value = function(logits, torch.arange(8) % 5, kernel=kernel)
            value.backward()
            results.append((value, logits.grad))
        # The reference adds exact zeros; compiled kernels of two losses are two programs, which may round differently.
        rtol, atol = (0.0, 0.0) if kernel == "plain" else (1e-6, 1e-7)
        torch.testing.assert_close(results[0], results[1], rtol=rtol, atol=atol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_and_label_smoothing_equal_torch(reduction):
    logits, labels = torch.randn(9, 7, dtype=torch.float64), torch.randint(7, (9,))
    labels[3] = -100
    soft = torch.rand(9, 7, dtype=torch.float64).softmax(-1)
    weight = torch.rand(7, dtype=torch.float64)
    for target in (labels, soft):
        for name, smoothing in (("cross_entropy", 0.0), ("label_smoothing", 0.1)):
            expected = cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
            torch.testing.assert_close(create_loss(name)(logits, target, reduction=reduction), expected)
        expected = cross_entropy(logits, target, weight, reduction=reduction)
        torch.testing.assert_close(
            create_loss("cross_entropy")(logits, target, weight=weight, reduction=reduction), expected
        )


def test_label_smoothing_over_the_other_classes():
    logits, labels = torch.randn(9, 7, dtype=torch.float64), torch.randint(7, (9,))
    target = torch.full_like(logits, 0.1 / 6).scatter(1, labels[:, None], 0.9)
    torch.testing.assert_close(create_loss("label_smoothing", over="K-1")(logits, labels), cross_entropy(logits, target))


@given(problem=problems())
def test_decomposition_sums_to_what_label_smoothing_adds(problem):
    logits, labels, _, reduction = problem
    if labels.is_floating_point():
        with pytest.raises(ValueError, match="labels must be integer class indices"):
            ls_decomposition(logits, labels)
        return
    terms = ls_decomposition(logits, labels, 0.3, reduction=reduction)
    smoothed = create_loss("label_smoothing", alpha=0.3)(logits, labels, reduction=reduction)
    added = smoothed - create_loss("cross_entropy")(logits, labels, reduction=reduction)
    torch.testing.assert_close(sum(terms), added, rtol=1e-12, atol=1e-12)
    assert (terms.regularization >= 0).all() and (terms.error_amplification <= 0).all()
