"""Losses under tracing, torch.func transforms and torch.compile, and the penalties that they report."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from maxsup_hf import create_loss, maxsup_loss

LABELS = torch.tensor([0, 4, -100, 2])


def logits():
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def loss(z):
    return maxsup_loss(z, LABELS, alpha=0.1)


def reference(z):
    return create_loss("maxsup", alpha=0.1, alpha_end=None)(z, LABELS, kernel="plain")


def test_make_fx_and_export():
    class Head(torch.nn.Module):
        def forward(self, z):
            return loss(z)

    traced = make_fx(loss)(torch.zeros(4, 5))
    exported = torch.export.export(Head(), (torch.zeros(4, 5),)).module()
    for function in (traced, exported):
        torch.testing.assert_close(function(logits()), reference(logits()))


def test_fake_and_meta_tensors_have_the_shape_of_real_ones():
    with FakeTensorMode():
        z = torch.randn(4, 5, requires_grad=True)
        maxsup_loss(z, torch.zeros(4, dtype=torch.long), reduction="none").sum().backward()
        assert z.grad.shape == (4, 5)
    value = maxsup_loss(torch.randn(4, 5, device="meta"), LABELS.to("meta"), reduction="none")
    assert value.shape == (4,)


def test_forward_mode():
    z, tangent = logits(), torch.ones(4, 5).cumsum(1)
    value, slope = torch.func.jvp(loss, (z,), (tangent,))
    torch.testing.assert_close(value, reference(z))
    gradient = torch.func.grad(reference)(z)
    torch.testing.assert_close(slope, (gradient * tangent).sum())


@pytest.mark.parametrize("name", ["maxsup", "focal", "ls_error_amplification", "maxsup+z_loss"])
def test_transforms_of_torch_func(name):
    """`vmap`, `grad`, and one inside the other, which gives the gradient of each row."""
    made = create_loss(name)
    rows, labels = logits(), LABELS.clamp_min(0)
    leaf = rows.clone().requires_grad_()
    made(leaf, labels, reduction="sum", kernel="plain").backward()
    values = torch.func.vmap(made)(rows, labels)
    torch.testing.assert_close(values, made(rows, labels, reduction="none", kernel="plain"))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(made))(rows, labels), leaf.grad)
    torch.testing.assert_close(torch.func.grad(lambda z: made(z, labels, reduction="sum"))(rows), leaf.grad)
    jacobian = torch.func.jacrev(lambda z: made(z, labels, reduction="none"))(rows)
    torch.testing.assert_close(jacobian.sum(0), leaf.grad)


def test_dynamic_shapes_under_compile():
    compiled = torch.compile(lambda z, t: maxsup_loss(z, t), fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, classes in ((4, 5), (6, 7), (3, 9)):
        z, labels = torch.randn(rows, classes), torch.arange(rows)
        eager, traced = (z.clone().requires_grad_() for _ in range(2))
        maxsup_loss(eager, labels).backward()
        compiled(traced, labels).backward()
        torch.testing.assert_close(traced.grad, eager.grad)


@pytest.mark.parametrize("soft", [False, True])
def test_gradients_of_soft_targets_are_those_of_torch(soft):
    z = logits()
    target = torch.rand(4, 5).softmax(1)
    if not soft:  # one-hot, with zeros
        target = torch.nn.functional.one_hot(LABELS.clamp_min(0), 5).float()
    ours, theirs = (target.clone().requires_grad_() for _ in range(2))
    create_loss("cross_entropy")(z, ours).backward()
    torch.nn.functional.cross_entropy(z, theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("weight", [None, torch.arange(1.0, 6.0)])
@pytest.mark.parametrize("name", ["maxsup+z_loss", "focal+maxsup", "label_smoothing+logit_penalty"])
def test_penalties_of_a_sum(name, weight):
    made = create_loss(name)
    output = made.compute(logits(), LABELS, made.values(0), weight=weight)
    assert list(output.penalties) == name.split("+")
    torch.testing.assert_close(sum(output.penalties.values()), output.penalty)
    for part in ("maxsup", "z_loss", "logit_penalty"):
        if part in output.penalties:
            alone = create_loss(part)
            expected = alone.compute(logits(), LABELS, alone.values(0), weight=weight).penalties
            torch.testing.assert_close(output.penalties[part], expected[part])


@pytest.mark.parametrize("mask", [-torch.inf, -1e30, -65504.0, -1e4])
def test_masked_classes_do_not_change_the_loss(mask):
    z = torch.cat([logits(), torch.full((4, 2), mask)], 1)
    torch.testing.assert_close(maxsup_loss(z, LABELS), maxsup_loss(logits(), LABELS))
