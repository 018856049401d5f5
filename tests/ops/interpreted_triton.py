"""Tests of the Triton kernel in Triton's interpreter, on the CPU.

test_triton.py runs this file in a process of its own with TRITON_INTERPRET=1, which must be set before Triton is imported.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maxsup_hf import create_loss
from maxsup_hf.losses import get_spec
from maxsup_hf.losses._compute import _slopes
from maxsup_hf.ops import backends, rows_triton, self_test
from tests.ops.cases import LOSSES, TRITON, batch, check, ignored
from tests.ops.test_backends import (  # noqa: F401
    test_every_case,
    test_float16_gradients_survive_a_gradient_scaler,
    test_images_and_other_shapes,
    test_nan_and_infinity_reach_loss_and_gradient,
    test_precision_far_from_zero,
    test_upstream_gradients,
)
from tests.ops.test_rows import test_contract, test_shards  # noqa: F401

assert TRITON
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NaN is intended
ON_STATISTICS = [name for name in LOSSES if not get_spec(name).needs_logits]


@pytest.fixture
def two_passes(monkeypatch):
    """Makes every row too long for the registers."""
    monkeypatch.setattr(rows_triton, "IN_REGISTERS", 8)
    monkeypatch.setattr(rows_triton, "BLOCK", 16)


@pytest.mark.parametrize("name", ON_STATISTICS)
def test_rows_that_do_not_fit_in_registers(name, two_passes):
    logits, labels = 3 * torch.randn(4, 53), torch.tensor([0, 17, 52, 31])
    logits[0, 5] = logits[0, 40] = 20.0  # a tie across two blocks
    logits[1, 16:32] = -torch.inf  # all classes of a block are masked, except the label
    logits[1, 17] = 1.0
    check(name, "triton", "blocks", torch.float32, logits, labels)
    target = torch.rand(4, 53).softmax(-1)
    check(name, "triton", "soft", torch.float32, logits.masked_fill(logits == -torch.inf, -3.0), target)


def test_contract_in_two_passes(two_passes):
    test_contract("triton", "rows", False)
    test_contract("triton", "rows", True)


@pytest.mark.parametrize("divisor", [0.0, 3.0, torch.tensor(5)])
@pytest.mark.parametrize("name", ["maxsup", "label_smoothing", "confidence_penalty"])
def test_loss_and_gradient_in_one_call(name, divisor):
    """Gradient, loss and cross-entropy of slopes that all rows share, with a row that is ignored, against plain torch."""
    logits, labels = ignored([1])
    logits = logits.float().requires_grad_()
    loss = create_loss(name)
    items = {} if isinstance(divisor, float) and not divisor else {"num_items_in_batch": divisor}
    right = loss.compute(logits, labels, loss.values(0.0), kernel="plain", **items)
    right.loss.backward()
    parameters = tuple(loss.values(0.0).items())
    slopes = _slopes(loss.spec.formula, loss.spec.arguments, parameters)
    gradient = torch.empty_like(logits)
    found = rows_triton.loss_and_grad(logits.detach(), labels, slopes, gradient, ignore_index=-100, divisor=divisor)
    torch.testing.assert_close(found[0], right.loss.detach())
    torch.testing.assert_close(found[1], right.cross_entropy)
    torch.testing.assert_close(gradient, logits.grad)
    assert found[2] == pytest.approx(1 / (float(divisor) or len(labels) - 1))


def test_results_are_bitwise_reproducible():
    logits, labels = torch.randn(8, 300), torch.randint(300, (8,))
    found = []
    for _ in range(2):
        z = logits.clone().requires_grad_()
        loss = create_loss("maxsup")(z, labels, kernel="triton")
        loss.backward()
        found.append((loss.detach(), z.grad))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


class HostNeverWaits(TorchDispatchMode):
    """Fails if the host would have to wait for a GPU, because it reads values, or because a shape depends on them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not {"_local_scalar_dense", "nonzero", "masked_select", "unique"} & {function.name().split("::")[1]}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ON_STATISTICS)
def test_the_host_never_waits(name, dtype, monkeypatch):
    """On the CPU the code reads labels and factors, which it does not do for a GPU: that is patched out here."""
    monkeypatch.setattr("maxsup_hf.losses._loss.check_inputs", lambda *_: False)
    monkeypatch.setattr("maxsup_hf.losses._compute.is_plain", lambda *_: True)
    monkeypatch.setattr("maxsup_hf.losses._compute._one_over", lambda divisor, like: 1 / torch.as_tensor(divisor))
    monkeypatch.setattr("maxsup_hf.ops.autograd.is_plain", lambda *_: True)
    monkeypatch.setattr("maxsup_hf.ops.autograd.on_cpu", lambda _: False)
    launched = []
    # the kernel launch is replaced too, because the interpreter reads every value
    monkeypatch.setattr(rows_triton, "_row", {(i,): lambda *_, **__: launched.append("row") for i in range(9)})
    monkeypatch.setattr(rows_triton, "_times", {(i,): lambda *_, **__: launched.append("times") for i in range(9)})
    monkeypatch.setattr(backends, "_agreed", {torch.device("cpu"): True})
    logits, labels = ignored([1])
    leaf, loss = logits.to(dtype).requires_grad_(), create_loss(name)
    for options in ({}, {"num_items_in_batch": torch.tensor(7)}, {"weight": torch.rand(7)}):
        launched.clear()
        with HostNeverWaits():
            loss.compute(leaf * 1, labels, loss.values(0.5), kernel="triton", **options).loss.backward()
        assert launched


def test_a_kernel_that_disagrees_is_not_used(monkeypatch):
    device = torch.device("cpu")
    assert self_test.agrees(device)
    right = rows_triton.rows_grad
    monkeypatch.setattr(rows_triton, "rows_grad", lambda *args, **by: (right(*args, **by), args[5].mul_(1.01)))
    with pytest.warns(UserWarning, match="Triton kernel is not used on cpu: its results differ from torch's by 1.0e-02"):
        assert not self_test.agrees(device)

    def fails(*_, **__):
        raise RuntimeError("no such instruction\nof many lines")

    monkeypatch.setattr(rows_triton, "rows_and_grad", fails)
    monkeypatch.setattr(backends, "_agreed", {})
    logits, labels = batch()
    with pytest.warns(UserWarning, match="RuntimeError: no such instruction. Losses are computed in torch operations"):
        loss = create_loss("maxsup")(logits.float().requires_grad_(), labels, kernel="triton")
    loss.backward()
    torch.testing.assert_close(loss, create_loss("maxsup")(logits.float(), labels, kernel="plain"))
