"""The CPU backends, numba and torch, and losses under torch.compile, against the reference in float64.

With TRITON_INTERPRET=1 the kernel is Triton's, of which `interpreted_cuda.py` takes the tests that are not about a CPU.
"""

import math
import os

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from maxsup_hf import create_loss, list_losses
from maxsup_hf.losses import get_spec
from maxsup_hf.ops import autograd, rows_torch
from maxsup_hf.ops.formula import linear_coefficients
from maxsup_hf.ops.row_stats import masked_classes

SERVED = [name for name in list_losses() if not get_spec(name).needs_logits] + [
    "maxsup+z_loss",
    "label_smoothing+logit_penalty",
]
TRITON = os.environ.get("TRITON_INTERPRET") == "1"
KERNEL = "triton" if TRITON else "cpu"
DTYPE = torch.float32 if TRITON else torch.float64
N, K = (5, 7) if TRITON else (12, 7)


@pytest.fixture(params=["triton"] if TRITON else ["numba", "torch"], autouse=True)
def backend(request, monkeypatch):
    """On the CPU, with numba and without."""
    if not TRITON:
        monkeypatch.setattr(autograd, "_found", [request.param])
        monkeypatch.setattr(rows_torch, "BLOCK", 4 * K)  # small problems are cut like large ones
        torch._dynamo.reset()


def results(name, logits, labels, kernel, **options):
    """Loss, its cross-entropy and the gradient; for a loss of each row, that of a weighted sum."""
    loss = create_loss(name)
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = loss.compute(logits, labels, loss.values(0.3), kernel=kernel, **options)
    total = (output.loss * torch.arange(1.0, output.loss.numel() + 1).view_as(output.loss)).sum()
    total.backward()
    return output.loss.detach(), output.cross_entropy, logits.grad


def check(name, logits, labels, rtol=None, atol=None, **options):
    if rtol is None:
        rtol, atol = (1e-10, 1e-12) if logits.dtype == torch.float64 else (1e-5, 1e-6)
    exact = logits.double().masked_fill(masked_classes(logits), -math.inf)  # float64 has another lowest number
    expected = results(name, exact, labels, "plain", **options)
    found = results(name, logits, labels, KERNEL, **options)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert [x.dtype for x in found] == [wide, wide, logits.dtype]
    for x, y in zip(found[:2], expected[:2], strict=True):
        assert_close(
            x.double(), y, rtol=max(rtol, 1e-6) if wide == torch.float32 else rtol, atol=1e-6 if rtol > 1e-9 else atol
        )
    assert_close(found[2].double(), expected[2], rtol=rtol, atol=atol)
    return found


def problem(case="hard", n=N, k=K, dtype=DTYPE):
    """Logits and labels of a kind."""
    logits = (3 * torch.randn(n, k, dtype=torch.float64)).to(dtype)
    labels = torch.randint(k, (n,))
    if case == "soft":
        labels = torch.rand(n, k, dtype=torch.float64).softmax(-1)
    elif case == "mixup":  # many zeros, and rows that do not sum to 1
        labels = torch.where(torch.rand(n, k) < 0.5, 0, torch.rand(n, k)).double()
    elif case == "ignored":
        labels[::3] = -100
        logits[0] = math.nan
        logits[3, 1] = math.inf
    elif case == "ignored block":
        labels[: 2 * n // 3] = -100
    elif case == "all ignored":
        labels[:] = -100
    elif case == "ignored class":
        pass
    elif case in ("masked", "masked soft", "lowest"):
        logits[1::2, 2] = torch.finfo(dtype).min if case == "lowest" else -math.inf
        labels[labels == 2] = 0
        if case == "masked soft":
            labels = torch.rand(n, k, dtype=torch.float64) * (logits > -math.inf)
    elif case == "ties":
        logits = logits.round().clamp(-1, 1)
    elif case == "int32":
        labels = labels.int()
    elif case == "column":
        logits = torch.cat([logits, logits], 1)[:, ::2].t().contiguous().t()
    elif case == "slice":
        logits = torch.randn(n, 3, k + 2, dtype=torch.float64).to(dtype)[:, 1, 1:-1]
    return logits, labels


CASES = [
    "hard", "soft", "mixup", "ignored", "ignored block", "all ignored", "masked", "masked soft", "lowest", "ties", "int32",
    "column", "slice",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SERVED)
def test_every_case(name, case):
    check(name, *problem(case))


@pytest.mark.parametrize("case", ["hard", "soft", "ignored", "masked", "lowest", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SERVED)
def test_other_dtypes(name, dtype, case):
    step = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    check(name, *problem(case, dtype=dtype), rtol=step, atol=1e-6)


@pytest.mark.parametrize("case", ["hard", "soft", "ignored", "masked"])
@pytest.mark.parametrize(
    "options", [dict(reduction="sum"), dict(reduction="none"), dict(num_items_in_batch=torch.tensor(31.0))]
)
@pytest.mark.parametrize("name", SERVED)
def test_reductions(name, case, options):
    check(name, *problem(case), **options)


@pytest.mark.parametrize("case", ["hard", "ignored", "masked", "all ignored"])
@pytest.mark.parametrize("options", [{}, dict(reduction="sum"), dict(reduction="none"), dict(num_items_in_batch=31)])
@pytest.mark.parametrize("name", SERVED)
def test_class_weights(name, case, options):
    check(name, *problem(case), weight=torch.rand(K, dtype=torch.float64), **options)


def test_a_label_that_is_ignored_may_be_a_class():
    check("maxsup", *problem(), ignore_index=2)


@pytest.mark.parametrize("shape", [(K,), (0, K), (2, 3, K), (2, 0, K), (1, 1, 2)])
@pytest.mark.parametrize("name", SERVED)
def test_shapes(name, shape):
    check(name, torch.randn(shape, dtype=DTYPE), torch.randint(shape[-1], shape[:-1]))


@pytest.mark.parametrize("case", ["hard", "soft", "ignored", "masked", "sliced"])
@pytest.mark.parametrize("size", [(2, 3, 2), (3, 1, 2)] if TRITON else [(2, 5, 4), (3, 1, 2), (2, 300, 1)])
@pytest.mark.parametrize("name", SERVED)
def test_images(name, size, case):
    batch, height, width = size
    logits = torch.randn(batch, K, height + 1, width, dtype=DTYPE)
    logits = (logits[:, :, 1:] if case == "sliced" else logits[:, :, 1:].contiguous()).movedim(1, -1)
    labels = torch.randint(K, size)
    if case == "soft":
        labels = torch.rand(*size, K, dtype=torch.float64)
    elif case == "ignored":
        labels[:, ::2] = -100
    elif case == "masked":
        logits[..., 3] = -math.inf
        labels[labels == 3] = 0
    *_, grad = check(name, logits, labels)
    assert grad.stride() == logits.stride() or case == "sliced"


def test_a_schedule_that_moves_on_before_the_backward():
    logits, labels = problem(dtype=torch.float16)
    expected = results("maxsup", logits, labels, KERNEL)[2]
    alpha = torch.tensor(create_loss("maxsup").values(0.3)["alpha"])
    logits.requires_grad_()
    loss = create_loss("maxsup").compute(logits, labels, {"alpha": alpha}, kernel=KERNEL).loss
    alpha.fill_(7)
    loss.backward()
    assert_close(logits.grad, expected)


@pytest.mark.parametrize("classes", [2047, 2048, 2049, 4096, 5000])
def test_the_first_of_many_maxima(classes):
    logits = torch.randint(4, (6, classes)).double()
    logits[0], logits[1, -1], logits[2, :-1] = 0, 9, -1
    check("maxsup", logits, torch.randint(classes, (6,)))


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(name, soft):
    logits, labels = problem("soft" if soft else "ignored", 4, 5)
    logits = logits.nan_to_num(0, posinf=1).requires_grad_()
    for options in ({}, dict(reduction="none")):
        assert gradcheck(lambda z: create_loss(name)(z, labels, kernel="cpu", **options), logits)  # noqa: B023
        assert gradgradcheck(lambda z: create_loss(name)(z, labels, kernel="cpu", **options), logits)  # noqa: B023


@pytest.mark.parametrize("dtype", [DTYPE, torch.bfloat16, torch.float16])
def test_what_comes_from_above(dtype):
    logits, labels = problem(dtype=dtype)
    plain, fast = (logits.clone().requires_grad_() for _ in range(2))
    (create_loss("maxsup")(plain.double(), labels, kernel="plain") / 3).backward()
    loss = create_loss("maxsup")(fast, labels, kernel=KERNEL) / 3
    loss.backward(retain_graph=True)
    first = fast.grad.clone()
    assert_close(first, plain.grad.to(dtype))
    loss.backward()
    assert_close(fast.grad, 2 * first)


def test_float16_gradients_survive_a_gradient_scaler():
    logits, labels = torch.randn(8, 5000).half(), torch.randint(5000, (8,))
    wide, narrow = (logits.to(t).requires_grad_() for t in (torch.float64, torch.float16))
    for z, kernel in ((wide, "plain"), (narrow, KERNEL)):
        (create_loss("maxsup")(z, labels, kernel=kernel) * 2.0**16).backward()
    assert (narrow.grad != 0).all()
    assert_close(narrow.grad.double(), wide.grad, rtol=1e-3, atol=1e-6)


# ---- which path is taken ----


def test_losses_on_logits_take_the_plain_path():
    others = sorted(set(list_losses()) - set(SERVED))
    assert others, "some losses need the logits"
    for name in others:
        logits, labels = torch.randn(4, 5), torch.randint(5, (4,))
        assert torch.equal(create_loss(name)(logits, labels), create_loss(name)(logits, labels, kernel="plain"))
        with pytest.raises(
            ValueError, match=f"kernel='cpu' cannot compute loss '{name}' here: .* needs the logits themselves"
        ):
            create_loss(name)(logits, labels, kernel="cpu")


def test_what_the_kernel_cannot_serve_is_refused_by_name():
    logits, labels = torch.randn(4, 5), torch.randint(5, (4,))
    with pytest.raises(ValueError, match="kernel must be one of 'auto', 'plain', 'cpu', 'triton', got 'gpu'"):
        create_loss("maxsup")(logits, labels, kernel="gpu")
    with pytest.raises(ValueError, match="kernel='triton' cannot .* tensors on an NVIDIA GPU, got cpu; use kernel='auto'"):
        create_loss("maxsup")(logits, labels, kernel="triton")
    with pytest.raises(ValueError, match="plain tensors on the CPU, got Tensor on meta"):
        create_loss("maxsup")(logits.to("meta"), labels.to("meta"), kernel="cpu")
    with pytest.raises(ValueError, match="no gradient for the loss's parameters"):
        create_loss("maxsup").compute(logits, labels, {"alpha": torch.tensor(0.1, requires_grad=True)}, kernel="cpu")


def test_auto_is_the_kernel_on_the_cpu():
    logits, labels = torch.randn(4, 5, requires_grad=True), torch.randint(5, (4,))
    names = {k: type(create_loss("maxsup")(logits, labels, kernel=k).grad_fn).__name__ for k in ("auto", "cpu", "plain")}
    assert names["auto"] == names["cpu"] == "_LinearLossBackward" != names["plain"]


def test_linear_formulas_are_not_differentiated():
    linear = {
        n
        for n in SERVED
        if linear_coefficients(
            get_spec(n).formula, get_spec(n).numbers, dict.fromkeys(get_spec(n).parameters, 0.5) | create_loss(n).options
        )
    }
    assert {"cross_entropy", "label_smoothing", "maxsup", "logit_penalty", "confidence_penalty"} <= linear
    assert not {"focal", "poly", "z_loss"} & linear


# ---- under torch.compile ----


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("cases", [("hard", "ignored", "masked", "ties"), ("soft", "masked soft")])
@pytest.mark.parametrize("name", SERVED)
def test_traced(name, cases, fresh_compiler):
    loss = create_loss(name)
    function = torch.compile(lambda z, t: loss.compute(z, t, loss.values(0.3)), fullgraph=True, backend="aot_eager")
    for case in cases:
        logits, labels = problem(case)
        traced = logits.clone().requires_grad_()
        output = function(traced, labels)
        output.loss.backward()
        expected = results(name, logits, labels, "plain")
        for x, y in zip((output.loss, output.cross_entropy, traced.grad), expected, strict=True):
            assert_close(x.detach(), y)


def test_one_compilation_serves_a_schedule(fresh_compiler):
    logits, labels = torch.randn(8, 50, requires_grad=True), torch.randint(50, (8,))
    loss, alpha = create_loss("maxsup"), torch.zeros((), dtype=torch.float64)
    function = torch.compile(lambda z: loss.compute(z, labels, {"alpha": alpha}).loss, fullgraph=True)
    for value in (0.0, 0.1, 0.15, 0.2):
        alpha.fill_(value)
        with torch._dynamo.config.patch(error_on_recompile=value > 0):
            function(logits).backward()
        grad, logits.grad = logits.grad, None
        loss.compute(logits, labels, {"alpha": value}, kernel="plain").loss.backward()
        assert_close(grad, logits.grad, rtol=1e-4, atol=1e-7)
        logits.grad = None
