"""The fused linear loss against the same loss on logits."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from maxsup_hf import create_loss, fused_linear_loss, list_losses
from maxsup_hf.losses import get_spec
from maxsup_hf.ops import linear

ON_STATISTICS = [name for name in [*list_losses(), "maxsup+z_loss"] if not get_spec(name).needs_logits]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(linear, "ROWS", 2)


def problem(n=7, d=4, v=11, seed=0, dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, b = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((n, d), (v, d), (v,)))
    labels = torch.randint(v, (n,), generator=generator)
    tensors = [hidden.to(dtype), weight.to(dtype), b.to(dtype) if bias else None]
    return [t if t is None else t.requires_grad_() for t in tensors], labels


def unfused(hidden, weight, bias, labels, name, scale=None, softcap=None, **kwargs):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits * (scale or 1.0)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return create_loss(name)(logits, labels, **kwargs)


def grads(value, tensors):
    tensors = [t for t in tensors if t is not None and t.requires_grad]
    return torch.autograd.grad(value, tensors)


@pytest.mark.parametrize("name", ON_STATISTICS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"bias": False},
        {"softcap": 1.5},
        {"scale": 0.3},
        {"scale": 2.0, "softcap": 3.0, "bias": False},
        {"num_items_in_batch": 20},
        {"reduction": "sum"},
        {"progress": 0.7},
    ],
    ids=str,
)
def test_equals_the_loss_on_logits(name, kwargs):
    kwargs = dict(kwargs)
    tensors, labels = problem(bias=kwargs.pop("bias", True))
    labels[2] = labels[5] = -100
    tensors[0].data[2] = torch.nan  # an ignored row may hold anything
    clean = [t if t is None else t.detach().nan_to_num().requires_grad_() for t in tensors]
    model = {"logit_scale": kwargs.pop("scale", None), "logit_softcap": kwargs.pop("softcap", None)}
    value = fused_linear_loss(*tensors[:2], labels, tensors[2], loss=name, **model, **kwargs)
    expected = unfused(*clean, labels, name, *model.values(), **kwargs)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)
    for found, reference in zip(grads(2 * value, tensors), grads(2 * expected, clean), strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ON_STATISTICS)
@given(n=st.integers(0, 9), d=st.integers(1, 5), v=st.integers(2, 90), seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_any_shape_with_ties(name, n, d, v, seed):
    tensors, labels = problem(n, d, v, seed)
    tensors = [t.detach().round().requires_grad_() for t in tensors]
    value, expected = fused_linear_loss(*tensors[:2], labels, tensors[2], loss=name), unfused(*tensors, labels, name)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    for found, reference in zip(grads(value, tensors), grads(expected, tensors), strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ON_STATISTICS)
def test_finite_differences(name):
    """Not by gradcheck, which calls backward many times on one graph: this loss does not support that."""
    tensors, labels = problem(n=3, d=3, v=5)

    def value():
        return fused_linear_loss(*tensors[:2], labels, tensors[2], loss=name, logit_softcap=4.0)

    for tensor, grad in zip(tensors, grads(value(), tensors), strict=True):
        flat = tensor.detach().view(-1)
        for i in range(len(flat)):
            around = []
            for step in (1e-6, -1e-6):
                flat[i] += step
                around.append(value().item())
                flat[i] -= step
            assert (around[0] - around[1]) / 2e-6 == pytest.approx(grad.view(-1)[i].item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ON_STATISTICS)
@pytest.mark.parametrize("mask", [-torch.inf, torch.finfo(torch.float32).min])
def test_classes_masked_by_the_bias(name, mask):
    tensors, labels = problem(dtype=torch.float32)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    for bias, value in ((tensors[2], mask), (exact[2], -torch.inf)):
        bias.data[[3, 8]] = value
    labels = labels.masked_fill((labels == 3) | (labels == 8), 0)
    value, expected = fused_linear_loss(*tensors[:2], labels, tensors[2], loss=name), unfused(*exact, labels, name)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for found, reference in zip(grads(value, tensors), grads(expected, exact), strict=True):
        torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=1e-5)


def test_autocast():
    """Products in bfloat16 as in a linear layer, and gradients in the precision of the parameters."""
    tensors, labels = problem(n=40, d=16, v=50, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = fused_linear_loss(*tensors[:2], labels, tensors[2])
        logits = torch.nn.functional.linear(*tensors)
    expected = create_loss("maxsup")(logits.float(), labels)
    assert logits.dtype == torch.bfloat16 and value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-2)
    for found, reference in zip(grads(value, tensors), grads(expected, tensors), strict=True):
        assert found.dtype == torch.float32
        assert (found - reference).norm() <= 0.02 * reference.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tensors, labels = problem(n=40, d=16, v=50, dtype=dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    value, expected = fused_linear_loss(*tensors[:2], labels, tensors[2]), unfused(*exact, labels, "maxsup")
    assert value.dtype == torch.float32
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(value.double(), expected, rtol=step, atol=step)
    for found, reference in zip(grads(value, tensors), grads(expected, exact), strict=True):
        assert found.dtype == dtype
        assert (found.double() - reference).norm() <= 2 * step * reference.norm()


def test_frozen_inputs_get_no_gradient():
    for frozen in (0, 1, 2):
        tensors, labels = problem()
        tensors[frozen].requires_grad_(False)
        value, expected = fused_linear_loss(*tensors[:2], labels, tensors[2]), unfused(*tensors, labels, "maxsup")
        value.backward()
        assert tensors[frozen].grad is None
        kept = [t for t in tensors if t.requires_grad]
        for tensor, reference in zip(kept, torch.autograd.grad(expected, kept), strict=True):
            torch.testing.assert_close(tensor.grad, reference)
    with torch.no_grad():
        assert fused_linear_loss(*tensors[:2], labels).requires_grad is False


def test_all_rows_ignored():
    tensors, labels = problem()
    value = fused_linear_loss(*tensors[:2], torch.full_like(labels, -100), tensors[2])
    value.backward()
    assert value == 0 and all((t.grad == 0).all() for t in tensors)


def test_leading_dimensions():
    tensors, labels = problem(n=6)
    value = fused_linear_loss(tensors[0].view(2, 3, 4), tensors[1], labels.view(2, 3))
    torch.testing.assert_close(value, fused_linear_loss(tensors[0], tensors[1], labels))


class Live(TorchDispatchMode):
    """Measures the peak of the bytes of all tensors created inside."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self.seen.setdefault(tensor.untyped_storage()._cdata, 0)  # created outside
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.seen:
                    self.seen[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, key)
        return result

    def gone(self, key):
        self.now -= self.seen.pop(key, 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_is_that_of_one_chunk(frozen, monkeypatch):
    n, d, v = 256, 8, 4000
    monkeypatch.setattr(linear, "ROWS", 16)
    tensors, labels = problem(n, d, v, dtype=torch.float32, bias=False)
    tensors[1].requires_grad_(not frozen)
    with Live() as live:
        fused_linear_loss(tensors[0], tensors[1], labels).backward()
    gradients = 4 * d * (n + (0 if frozen else v))
    chunk = 4 * v * 16
    assert chunk + gradients <= live.most <= 1.2 * chunk + gradients + 20_000


@pytest.mark.parametrize("name", ON_STATISTICS)
def test_ignored_rows_take_no_memory_and_no_operations(name, monkeypatch):
    n, d, v = 64, 8, 4000
    monkeypatch.setattr(linear, "ROWS", 8)
    most = []
    for ignored in (0, 60):
        tensors, labels = problem(n, d, v, dtype=torch.float32, bias=False)
        labels[:ignored] = -100
        with Live() as live, FlopCounterMode(display=False) as flops:
            fused_linear_loss(tensors[0], tensors[1], labels, loss=name).backward()
        most.append((live.most, flops.get_total_flops()))
    assert most[1][0] <= most[0][0]
    assert most[1][1] <= most[0][1] * 4 / 64


@pytest.mark.parametrize("name", [name for name in list_losses() if get_spec(name).needs_logits])
def test_losses_that_need_logits_are_rejected(name):
    tensors, labels = problem()
    with pytest.raises(
        ValueError, match=f"fused_linear_loss computes a loss from row statistics.*'{name}' needs the logits"
    ):
        fused_linear_loss(*tensors[:2], labels, loss=name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, w, y: (h[:, :3], w, y), ValueError, r"weight must be \(V, 3\) for hidden \(7, 3\), got \(11, 4\)"),
        (lambda h, w, y: (h, w, y[:3]), ValueError, r"labels must have shape \(7,\), one for each row of hidden"),
        (lambda h, w, y: (h, w, y + 11), ValueError, r"labels must lie in \[0, 11\)"),
        (lambda h, w, y: (h, w, y.double()), TypeError, "labels must be integer class indices, got torch.float64"),
        (lambda h, w, y: (h, w.float(), y), TypeError, "hidden and weight must have the same dtype"),
    ],
)
def test_misuse(change, error, message):
    tensors, labels = problem()
    with pytest.raises(error, match=message):
        fused_linear_loss(*change(*tensors[:2], labels))


def test_second_derivatives_and_second_backwards_are_rejected():
    tensors, labels = problem()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(fused_linear_loss(*tensors[:2], labels), tensors[0], create_graph=True)
    value = fused_linear_loss(*tensors[:2], labels)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        value.backward()
    with pytest.raises(ValueError, match="reduction must be 'mean'.*got 'none'"):
        fused_linear_loss(*tensors[:2], labels, reduction="none")


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothing", "maxsup"])
def test_gradients_at_large_logits_are_accurate(name):
    """As in tests/ops/test_row_stats.py; the products are exact in float32, and no logit is so low that it is masked."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-20, 20, (64, 8), generator=generator).float()
    weight = torch.randint(-20, 20, (50, 8), generator=generator).float()
    labels = torch.arange(64) % 50
    found = []
    for dtype in (torch.float32, torch.float64):
        x, w = (t.to(dtype, copy=True).requires_grad_() for t in (hidden, weight))
        if dtype == torch.float32:
            fused_linear_loss(x, w, labels, loss=name).backward()
        else:
            create_loss(name)(x @ w.t(), labels, kernel="plain").backward()
        found.append((x.grad.double(), w.grad.double()))
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() <= 5e-7 * exact.norm()


def test_a_learned_scale():
    tensors, labels = problem()
    found = []
    for fused in (True, False):
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        if fused:
            value = fused_linear_loss(*tensors[:2], labels, tensors[2], logit_scale=scale, logit_softcap=5.0)
        else:
            value = unfused(*tensors, labels, "maxsup", scale, 5.0)
        found.append(torch.autograd.grad(value, (scale, *tensors)))
    torch.testing.assert_close(*found)
