"""The Triton kernel, run on the CPU by Triton's interpreter. test_cuda.py runs this in a process of its own with
TRITON_INTERPRET=1, which Triton must see when it is first imported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from maxsup_hf import create_loss
from maxsup_hf.kernels import cuda
from tests.kernels.test_cpu import (  # noqa: F401
    SERVED,
    TRITON,
    backend,
    check,
    problem,
    results,
    test_a_label_that_is_ignored_may_be_a_class,
    test_a_schedule_that_moves_on_before_the_backward,
    test_class_weights,
    test_every_case,
    test_float16_gradients_survive_a_gradient_scaler,
    test_images,
    test_other_dtypes,
    test_reductions,
    test_shapes,
    test_what_comes_from_above,
)

assert TRITON
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NaN on purpose


@pytest.mark.parametrize("name", SERVED)
def test_rows_that_do_not_fit_into_registers(name, monkeypatch):
    monkeypatch.setattr(cuda, "IN_REGISTERS", 8)
    monkeypatch.setattr(cuda, "BLOCK", 16)
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


def test_the_top_of_a_tie_is_the_first():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    check("maxsup", logits, torch.tensor([1]))  # label and top in one column
    check("maxsup", logits, torch.tensor([3]))
    check("maxsup", torch.zeros(2, 4), torch.tensor([0, 3]))


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", SERVED)
def test_logits_that_are_not_numbers_reach_loss_and_gradient(name, bad, in_registers, monkeypatch):
    if not in_registers:
        monkeypatch.setattr(cuda, "IN_REGISTERS", 2)
        monkeypatch.setattr(cuda, "BLOCK", 4)
    logits, labels = torch.randn(3, 7), torch.tensor([1, 0, 6])
    logits[1, 2] = bad
    found, expected = (results(name, logits, labels, kernel) for kernel in ("triton", "plain"))
    assert found[0].isnan() and expected[0].isnan()
    assert found[2][1].isnan().any(), "a gradient scaler would not see it"
    torch.testing.assert_close(found[2][::2], expected[2][::2])


@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize("away", [1e4, -1e4])
def test_soft_labels_keep_their_digits_where_logits_are_large(away, block, monkeypatch):
    monkeypatch.setattr(cuda, "IN_REGISTERS", block)
    monkeypatch.setattr(cuda, "BLOCK", block)
    logits, labels = torch.randn(4, 13) + away, torch.rand(4, 13).softmax(-1)
    check("cross_entropy", logits, labels)


@pytest.mark.parametrize("name", ["maxsup", "focal"])
def test_second_derivatives_are_those_of_the_plain_path(name):
    logits, labels = problem("ties")
    found = []
    for kernel in ("triton", "plain"):
        z = logits.clone().requires_grad_()
        (first,) = torch.autograd.grad(create_loss(name)(z, labels, kernel=kernel), z, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), z)))
    torch.testing.assert_close(*found)


def test_the_same_bits_every_time():
    logits, labels = torch.randn(8, 300), torch.randint(300, (8,))
    first, second = (results("maxsup", logits, labels, "triton") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


class NobodyWaits(TorchDispatchMode):
    """Fails where the host would have to wait for a GPU: values read, or shapes that depend on them. Labels on the CPU are
    looked at before the kernel is chosen, as on a GPU they are not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not {"_local_scalar_dense", "nonzero", "masked_select", "unique"} & {function.name().split("::")[1]}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": torch.tensor(7)}, {"weight": torch.rand(7)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", SERVED)
def test_nobody_waits(name, dtype, options, monkeypatch):
    monkeypatch.setattr("maxsup_hf.losses._loss.check_inputs", lambda *_: False)
    logits, labels = problem("masked", dtype=dtype)
    leaf, loss = logits.requires_grad_(), create_loss(name)
    values = loss.values(0.5)
    launched = []
    # the launch itself is the interpreter's, which reads every number
    monkeypatch.setattr(cuda, "rows_of", lambda z, t, slopes, grad: launched.append(grad) or z.new_ones(len(z), 8).float())
    monkeypatch.setattr(cuda, "_times", {(i,): lambda *_, **__: launched.append("times") for i in range(9)})
    with NobodyWaits():
        loss.compute(leaf * 1, labels, values, kernel="triton", **options).loss.backward()
    # Label smoothing with class weights is two cross-entropies, which torch operations compute.
    assert bool(launched) == ("weight" not in options or loss.spec.spread is None)


def test_many_rows_are_scaled_by_a_loss_scale_on_the_device():
    logits, labels = torch.randn(3, 5000), torch.randint(5000, (3,))
    leaf = logits.clone().requires_grad_()
    (create_loss("maxsup")(leaf, labels, progress=0.3, kernel="triton") * torch.tensor(3.0)).backward()
    torch.testing.assert_close(leaf.grad, 3 * results("maxsup", logits, labels, "plain")[2])
