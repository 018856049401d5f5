"""Class weights in every registered loss: as in torch where torch has the loss, bounded below, the same in every kernel."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from maxsup_hf import create_loss, list_losses, register_loss
from maxsup_hf.losses import _registry, get_spec


@pytest.fixture
def registry(monkeypatch):
    """Registrations of a test are undone after it."""
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))


KERNELS = ("plain", "cpu", "auto")
SMOOTHED = {"K": 0.1, "K-1": 0.1 * 6 / 5}  # the alpha of torch that is equivalent with 6 classes


def problem(soft, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(12, 6, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    weight = torch.rand(6, generator=generator) + 0.1
    if soft:
        return logits, torch.rand(12, 6, generator=generator, dtype=torch.float64).softmax(1), weight
    labels = torch.randint(6, (12,), generator=generator)
    labels[3] = -100
    return logits, labels, weight


def agree(value, expected, logits, rtol=1e-10):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol)
    upstream = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    grad, wanted = (torch.autograd.grad(x, logits, upstream, retain_graph=True)[0] for x in (value, expected))
    torch.testing.assert_close(grad, wanted, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("over", SMOOTHED)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_label_smoothing_equals_torch(soft, over, reduction, kernel):
    logits, labels, weight = problem(soft)
    expected = cross_entropy(logits, labels, weight.double(), reduction=reduction, label_smoothing=SMOOTHED[over])
    loss = create_loss("label_smoothing", over=over)
    agree(loss(logits, labels, weight=weight, reduction=reduction, kernel=kernel), expected, logits)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_label_smoothing_in_a_sum(soft, kernel):
    logits, labels, weight = problem(soft)
    counted = torch.ones(12, dtype=torch.bool) if soft else labels >= 0
    z = logits[counted]
    expected = cross_entropy(logits, labels, weight.double(), label_smoothing=0.1)
    expected = expected + 0.3 * (z.amax(1) - z.mean(1)).mean() + 1e-4 * z.logsumexp(1).square().mean()
    loss = create_loss("maxsup+label_smoothing+z_loss", maxsup={"alpha": 0.3, "alpha_end": None})
    agree(loss(logits, labels, weight=weight, kernel=kernel), expected, logits)


@pytest.mark.parametrize("name", ["label_smoothing", "maxsup", "maxsup+label_smoothing"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_under_compile(name, soft):
    logits, labels, weight = problem(soft, torch.float32)
    loss = create_loss(name)
    compiled = torch.compile(lambda z: loss(z, labels, weight=weight), backend="aot_eager", fullgraph=True)
    agree(compiled(logits), loss(logits, labels, weight=weight, kernel="plain"), logits, rtol=1e-5)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_masked_classes_equal_removed_ones(soft):
    logits, labels, weight = problem(soft)
    kept = [0, 2, 3, 5]
    logits, labels = logits.detach(), labels if soft else torch.tensor([0, 2, 3, 5] * 3)
    logits[:, [1, 4]] = -torch.inf
    if soft:
        labels[:, [1, 4]] = 0
    removed = logits[:, kept].clone().requires_grad_()
    logits.requires_grad_()
    fewer = labels[:, kept] if soft else torch.tensor([0, 1, 2, 3] * 3)
    expected = cross_entropy(removed, fewer, weight[kept].double(), label_smoothing=0.1)
    for kernel in KERNELS:
        value = create_loss("label_smoothing")(logits, labels, weight=weight, kernel=kernel)
        torch.testing.assert_close(value, expected)
        (grad,), (wanted,) = torch.autograd.grad(value, logits), torch.autograd.grad(expected, removed, retain_graph=True)
        torch.testing.assert_close(grad[:, kept], wanted)
        assert (grad[:, [1, 4]] == 0).all()


def test_an_ignored_row_may_hold_nan():
    logits, labels, weight = problem(False)
    with torch.no_grad():
        logits[3] = torch.nan
    for kernel in KERNELS:
        value = create_loss("label_smoothing")(logits, labels, weight=weight, kernel=kernel)
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and grad.isfinite().all() and (grad[3] == 0).all()


def test_the_gradient_of_alpha():
    logits, labels, weight = problem(False)
    alpha = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    value = create_loss("label_smoothing").compute(logits, labels, {"alpha": alpha}, weight=weight).loss
    (slope,) = torch.autograd.grad(value, alpha)
    ends = [cross_entropy(logits, labels, weight.double(), label_smoothing=alpha) for alpha in (0.0, 1.0)]
    torch.testing.assert_close(slope, ends[1] - ends[0])  # the loss is linear in alpha


# ---- bounded below ----


def bound(name, weight):
    """A lower bound of a weighted loss with its default parameters: the confidence penalty is −β·entropy, the others are
    sums of non-negative terms."""
    return -0.1 * torch.tensor(float(len(weight))).log().item() if name == "confidence_penalty" else 0.0


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_is_bounded_below(name):
    """Minimises the loss over the logits themselves, starting with wrong rows, where one class weighs 100 times the other:
    an unbounded loss would keep falling."""
    labels, weight = torch.tensor([0, 1] * 8), torch.tensor([1.0, 100.0])
    loss = create_loss(name)
    z = torch.randn(16, 2, requires_grad=True)
    optimizer = torch.optim.SGD([z], lr=10.0)
    lowest = torch.inf
    for _ in range(500):
        optimizer.zero_grad()
        value = loss(z, labels, weight=weight)
        value.backward()
        optimizer.step()
        lowest = min(lowest, value.item())
    assert lowest >= bound(name, weight) - 1e-6


@pytest.mark.parametrize("name", [*list_losses(), "label_smoothing+ls_error_amplification", "maxsup+ls_error_amplification"])
def test_every_loss_is_bounded_far_out(name):
    """Far from the origin an unbounded loss is very negative: one row takes every direction of a grid, the others are
    predicted correctly."""
    labels, weight = torch.arange(3), torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    steps = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for direction in torch.cartesian_prod(steps, steps, steps):
        for row in range(3):
            rows = torch.eye(3, dtype=torch.float64).index_fill(0, torch.tensor(row), 0)
            rows[row] = direction
            for length in (1.0, 1e2, 1e4):
                assert create_loss(name)(length * rows, labels, weight=weight).item() >= bound(name, weight) - 1e-6


def test_a_negative_penalty_on_the_label_is_weighted():
    logits, labels, weight = problem(False)
    loss = create_loss("ls_error_amplification", of="top")
    z, y = logits[labels >= 0], labels[labels >= 0]
    rows = cross_entropy(z, y, reduction="none") + 0.1 * (z.gather(1, y[:, None]).squeeze(1) - z.amax(1))
    agree(loss(logits, labels, weight=weight), (weight[y] * rows).sum() / weight[y].sum(), logits, rtol=1e-6)


def test_a_users_penalty_on_the_label_is_weighted(registry):
    @register_loss("towards_the_label")
    def towards_the_label(cross_entropy, label, mean, *, alpha=0.5):
        return cross_entropy, alpha * (label - mean)

    logits, labels, weight = problem(False)
    z, y = logits[labels >= 0], labels[labels >= 0]
    rows = cross_entropy(z, y, reduction="none") + 0.5 * (z.gather(1, y[:, None]).squeeze(1) - z.mean(1))
    for kernel in KERNELS:
        value = create_loss("towards_the_label")(logits, labels, weight=weight, kernel=kernel)
        agree(value, (weight[y] * rows).sum() / weight[y].sum(), logits, rtol=1e-6)
    with pytest.raises(ValueError, match="weight cannot be combined with soft labels in loss 'towards_the_label'"):
        create_loss("towards_the_label")(*problem(True)[:2], weight=weight)


# ---- the divisor ----


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["cross_entropy", "maxsup", "label_smoothing", "maxsup+label_smoothing"])
def test_weight_in_batch_divides_the_weighted_sum(name, kernel):
    """Two micro-batches, both divided by the weight and the rows of the complete batch, add up to it."""
    logits, labels, weight = problem(False)
    loss = create_loss(name)
    weights, rows = weight[labels[labels >= 0]].sum(), (labels >= 0).sum()
    complete = loss.compute(logits, labels, loss.values(0.5), weight=weight, kernel="plain")
    divisors = {"weight_in_batch": weights, "num_items_in_batch": rows}
    parts = [
        loss.compute(logits[part], labels[part], loss.values(0.5), weight=weight, kernel=kernel, **divisors)
        for part in (slice(0, 2), slice(2, 12))
    ]
    agree(parts[0].loss + parts[1].loss, complete.loss, logits, rtol=1e-6)
    torch.testing.assert_close(sum(part.cross_entropy for part in parts), complete.cross_entropy, rtol=1e-6, atol=1e-6)


def test_weight_in_batch_without_a_weighted_sum_is_rejected():
    logits, labels, weight = problem(False)
    loss = create_loss("maxsup")
    with pytest.raises(ValueError, match="weight_in_batch divides the class-weighted sum.*got no weight"):
        loss.compute(logits, labels, loss.values(0), weight_in_batch=3.0)
    with pytest.raises(ValueError, match="weight_in_batch divides.*labels of torch.float64; leave it out"):
        loss.compute(logits, problem(True)[1], loss.values(0), weight=weight, weight_in_batch=3.0)
    with pytest.raises(ValueError, match="weight_in_batch is the divisor of a mean, .* reduction='mean', got 'sum'"):
        loss.compute(logits, labels, loss.values(0), weight=weight, weight_in_batch=3.0, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.float64])
def test_weights_of_any_dtype(dtype):
    logits, labels, _ = problem(False, torch.float32)
    weight = torch.tensor([1, 2, 3, 1, 2, 5]).to(dtype)
    for kernel in KERNELS:
        value = create_loss("label_smoothing")(logits, labels, weight=weight, kernel=kernel)
        agree(value, cross_entropy(logits, labels, weight.float(), label_smoothing=0.1), logits, rtol=1e-5)


# ---- what a formula takes and returns ----


def test_votes_are_always_needed_unless_an_option_decides(registry):
    @register_loss("by_votes")
    def by_votes(cross_entropy, votes, *, lam=1.0):
        return cross_entropy, lam * (0 * cross_entropy if votes is None else votes.to(cross_entropy.dtype).mean(-1))

    assert create_loss("by_votes").needs_votes and create_loss("maxsup+by_votes").needs_votes
    assert not create_loss("maxsup+zipf_label_smoothing").needs_votes
    assert create_loss("maxsup+zipf_label_smoothing", zipf_label_smoothing={"dense": True}).needs_votes
    with pytest.raises(TypeError, match="needs of loss 'by_other' must map 'votes'"):
        register_loss("by_other", needs={"votes": "dense"})(by_votes)


def test_a_replaced_target_term_is_detected(registry):
    @register_loss("squared")
    def squared(cross_entropy):
        return cross_entropy**2, cross_entropy.new_zeros(())

    assert get_spec("squared").replaces_target and not get_spec("maxsup").replaces_target
    logits, labels, weight = problem(False)
    penalty = create_loss("maxsup")(logits, labels) - create_loss("cross_entropy")(logits, labels)
    torch.testing.assert_close(
        create_loss("maxsup+squared")(logits, labels), create_loss("squared")(logits, labels) + penalty
    )
    with pytest.raises(ValueError, match="weight cannot be combined with soft labels in loss 'squared'"):
        create_loss("squared")(*problem(True)[:2], weight=weight)
