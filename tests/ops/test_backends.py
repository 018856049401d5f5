"""Every loss on every backend, against its reference implementations (tests/ops/cases.py)."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from maxsup_hf import create_loss
from maxsup_hf.losses import get_spec
from tests.ops.cases import (
    BACKENDS,
    CASES,
    FAST,
    LOSSES,
    SUMS,
    TRITON,
    K,
    batch,
    check,
    dtypes_of,
    ignored,
    is_supported,
    results,
    soft,
    use_backend,
)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES + SUMS)
def test_every_case(name, backend):
    with use_backend(backend) as kernel:
        if get_spec(name).needs_logits:
            kernel = "auto"
        for case, (logits, labels, options) in CASES.items():
            for dtype in dtypes_of(backend) if is_supported(name, labels, **options) else ():
                if dtype == torch.float16 and case in ("masked by -1e30", "extreme"):
                    continue  # float16 cannot represent these logits
                check(name, kernel, f"{case}, {dtype}", dtype, logits, labels, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES + SUMS)
def test_images_and_other_shapes(name, backend):
    """(N, K, H, W) and (..., K) give what the same rows in (N, K) give."""
    with use_backend(backend) as kernel:
        kernel = "auto" if get_spec(name).needs_logits else kernel
        rows, labels = ignored([1]) if TRITON else ignored([1, 7])
        if not TRITON:
            rows, labels = rows.repeat(5, 1), labels.repeat(5)
        dtype = dtypes_of(backend)[0]
        rows = rows.to(dtype)
        expected = results(name, rows, labels, "plain")
        shape = (1, 1, 5) if TRITON else (2, 5, 6)
        image = rows.view(*shape, K).movedim(-1, 1).contiguous().movedim(1, -1)  # the classes are not adjacent in memory
        gap = torch.nn.functional.pad(image.movedim(-1, 1), (1, 2)).movedim(1, -1)[:, :, 1:-2]
        for view in (rows.view(*shape, K), image, gap):
            found = results(name, view, labels.view(shape), kernel)
            assert_close(found[:2], expected[:2])
            assert_close(found[2].reshape(-1, K), expected[2])
        one = results(name, rows[0], labels[0], kernel)
        assert_close(one[0], results(name, rows[:1], labels[:1], "plain")[0])
        none = results(name, rows.view(*shape, K)[:, :0], labels.view(shape)[:, :0], kernel)
        assert none[0] == 0 and none[2].shape == (shape[0], 0, shape[2], K)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_nan_and_infinity_reach_loss_and_gradient(name, bad, backend):
    with use_backend(backend) as kernel:
        logits, labels = (x[:3] for x in batch())
        logits = logits.to(dtypes_of(backend)[0])
        logits[1, 2] = bad
        kernel = "auto" if get_spec(name).needs_logits else kernel
        loss, _, gradient = results(name, logits, labels, kernel)
        assert not loss.isfinite() and gradient[1].isnan().any(), "a gradient scaler would not notice it"
        clean = results(name, logits.nan_to_num(0, posinf=0), labels, "plain")[2]
        assert_close(gradient[::2], clean[::2])


@pytest.mark.parametrize("name", LOSSES + SUMS)
@pytest.mark.parametrize("soft_labels", [False, True])
def test_derivatives(name, soft_labels):
    logits, labels = batch()[0][:4], ignored([1])[1][:4]
    labels = soft(4) if soft_labels else labels
    if not is_supported(name, labels):
        return
    logits = logits.requires_grad_()
    for options in ({}, {"reduction": "none"}):
        assert gradcheck(lambda z: create_loss(name)(z, labels, **options), logits)  # noqa: B023
        assert gradgradcheck(lambda z: create_loss(name)(z, labels, **options), logits)  # noqa: B023


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["maxsup", "focal"])
def test_upstream_gradients(name, backend):
    """The upstream gradient scales ours, also in a second backward through one graph, which recomputes it."""
    with use_backend(backend) as kernel:
        for dtype in dtypes_of(backend)[:3]:
            logits, labels = batch(40, 1500) if dtype == torch.float32 and not TRITON else batch()
            fast = logits.to(dtype, copy=True).requires_grad_()
            exact = fast.detach().to(torch.float64, copy=True).requires_grad_()
            (create_loss(name)(exact, labels, kernel="plain") / 3).backward()
            loss = create_loss(name)(fast, labels, kernel=kernel) / 3
            loss.backward(retain_graph=True)
            first = fast.grad.clone()
            assert_close(first, exact.grad.to(dtype), rtol=max(1e-5, 2 * torch.finfo(dtype).eps), atol=1e-7)
            loss.backward()
            assert_close(fast.grad, 2 * first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_gradients_survive_a_gradient_scaler(backend):
    with use_backend(backend) as kernel:
        logits, labels = torch.randn(8, 5000).half(), torch.randint(5000, (8,))
        wide, narrow = (logits.to(t).requires_grad_() for t in (torch.float64, torch.float16))
        for z, by in ((wide, "plain"), (narrow, kernel)):
            (create_loss("maxsup")(z, labels, kernel=by) * 2.0**16).backward()
        assert (narrow.grad != 0).all()
        assert_close(narrow.grad.double(), wide.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["maxsup", "focal"])
def test_a_schedule_that_advances_before_the_backward(name, backend):
    with use_backend(backend) as kernel:
        logits, labels = batch()
        logits = logits.half()
        parameter = {"maxsup": "alpha", "focal": "gamma"}[name]
        value = torch.tensor(create_loss(name).values(0)[parameter])
        expected = results(name, logits, labels, kernel)[2]
        logits.requires_grad_()
        loss = create_loss(name).compute(logits, labels, {parameter: value}, kernel=kernel).loss
        value.fill_(7)
        loss.backward()
        assert_close(logits.grad, expected)


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_precision_far_from_zero(backend, offset):
    """The error is relative to the loss, not to logits that are thousands of times larger."""
    with use_backend(backend) as kernel:
        generator = torch.Generator().manual_seed(0)
        n = 16 if TRITON else 64
        logits, labels = torch.randn(n, 32, generator=generator) + offset, torch.arange(n) % 32
        for name in ("cross_entropy", "confidence_penalty", "maxsup", "label_smoothing"):
            for target in (labels, torch.rand(n, 32, generator=generator).softmax(1)):
                exact = results(name, logits.double(), target, "plain")
                found = results(name, logits, target, kernel)
                gradient = (found[2] - exact[2]).norm() / exact[2].norm()
                assert gradient <= 3e-7, (name, gradient)
                if name in ("cross_entropy", "confidence_penalty"):
                    assert_close(found[0].double(), exact[0], rtol=3e-7, atol=0)


# ---- which backend is used ----


def test_requested_kernels_that_cannot_compute_are_rejected():
    logits, labels = torch.randn(4, 5), torch.randint(5, (4,))
    with pytest.raises(ValueError, match="kernel must be one of 'auto', 'plain', 'cpu', 'triton', got 'gpu'"):
        create_loss("maxsup")(logits, labels, kernel="gpu")
    if not TRITON:
        with pytest.raises(ValueError, match="kernel='triton' cannot .* on an NVIDIA GPU, got cpu; use kernel='auto'"):
            create_loss("maxsup")(logits, labels, kernel="triton")
    with pytest.raises(ValueError, match="tensors on the CPU, got meta"):
        create_loss("maxsup")(logits.to("meta"), labels.to("meta"), kernel="cpu")
    for name in LOSSES:
        if get_spec(name).needs_logits:
            with pytest.raises(ValueError, match=f"kernel='cpu' cannot compute loss '{name}' here: .* needs the logits"):
                create_loss(name)(logits, labels, kernel="cpu")


def test_a_parameter_can_be_learned():
    logits, labels = batch()
    alpha = torch.tensor(0.1, requires_grad=True, dtype=torch.float64)
    output = create_loss("maxsup").compute(logits.requires_grad_(), labels, {"alpha": alpha})
    output.loss.backward()
    assert_close(alpha.grad, (logits.max(1).values - logits.mean(1)).mean().detach())


# ---- under torch.compile ----


@pytest.mark.skipif(TRITON, reason="needs a process without TRITON_INTERPRET")
@pytest.mark.parametrize(
    "cases", [("hard", "ignored", "masked", "ties"), ("soft", "zeros in the target")], ids=["hard", "soft"]
)
@pytest.mark.parametrize("name", LOSSES + SUMS)
def test_compiled(name, cases):
    torch._dynamo.reset()
    loss = create_loss(name)
    function = torch.compile(lambda z, t: loss.compute(z, t, loss.values(0)), fullgraph=True, backend="aot_eager")
    for case in cases:
        logits, labels, _ = CASES[case]
        if not is_supported(name, labels):
            return
        traced = logits.clone().requires_grad_()
        output = function(traced, labels)
        output.loss.backward()
        expected = results(name, logits, labels, "plain")
        for x, y in zip((output.loss, output.cross_entropy, traced.grad), expected, strict=True):
            assert_close(x.detach(), y, msg=lambda m: f"{case}: {m}")  # noqa: B023
    torch._dynamo.reset()


@pytest.mark.skipif(TRITON, reason="needs a process without TRITON_INTERPRET")
def test_one_compilation_is_enough_for_a_schedule_and_checks_labels():
    torch._dynamo.reset()
    logits, labels = torch.randn(8, 50, requires_grad=True), torch.randint(50, (8,))
    loss, alpha = create_loss("maxsup"), torch.zeros((), dtype=torch.float64)
    function = torch.compile(lambda z, y: loss.compute(z, y, {"alpha": alpha}).loss, fullgraph=True)
    for value in (0.0, 0.1, 0.15, 0.2):
        alpha.fill_(value)
        with torch._dynamo.config.patch(error_on_recompile=value > 0):
            function(logits, labels).backward()
        grad, logits.grad = logits.grad, None
        loss.compute(logits, labels, {"alpha": value}, kernel="plain").loss.backward()
        assert_close(grad, logits.grad, rtol=1e-4, atol=1e-7)
        logits.grad = None
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 50\)"):
        function(logits, labels + 45)
    torch._dynamo.reset()
