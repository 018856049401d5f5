"""Every loss on every backend, against the plain Python of tests/plain.py and the gradient of the reference in float64."""

import contextlib
import math
import os

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from maxsup_hf import create_loss, list_losses
from maxsup_hf.losses import get_spec
from maxsup_hf.ops import backends, rows_torch
from tests import plain

TRITON = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if TRITON else ["reference", "numba", "torch"]
FAST = [name for name in BACKENDS if name != "reference"]
LOSSES = list_losses()
SUMS = ["maxsup+z_loss", "label_smoothing+logit_penalty"]
N, K = (5, 7) if TRITON else (12, 7)
IGNORED = -100


@contextlib.contextmanager
def served_by(name):
    """What `kernel` of a loss has to be, so that this backend serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_torch, "BLOCK", 4 * K)  # small problems are cut like large ones
        if name in ("numba", "torch"):
            patch.setattr(backends, "has_numba", lambda: name == "numba")
        yield {"reference": "plain", "triton": "triton"}.get(name, "auto")


def batch(n=N, k=K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=generator)


def soft(n=N, k=K, zeros=0.0):
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(n, k, generator=generator, dtype=torch.float64)
    target = torch.where(torch.rand(n, k, generator=generator) < zeros, 0, target)
    return target if zeros else target / target.sum(1, keepdim=True)


def masked(value):
    logits, labels = batch()
    logits[1::2, 2] = value
    logits[0] = value
    logits[0, 3] = 1.0  # one unmasked class
    return logits, labels.masked_fill(labels == 2, 3).index_fill(0, torch.tensor([0]), 3)


def changed(change, size=None):
    logits, labels = batch(*size) if size else batch()
    return change(logits), labels


def ignored(rows):
    logits, labels = batch()
    logits[rows] = math.nan
    labels[rows] = IGNORED
    return logits, labels


WEIGHT = torch.linspace(0.2, 2.0, K, dtype=torch.float64)

# name -> (logits, labels, options of the loss)
CASES = {
    "hard": (*batch(), {}),
    "soft": (batch()[0], soft(), {}),
    "zeros in the target": (batch()[0], soft(zeros=0.5), {}),
    "class weights": (*ignored([0]), {"weight": WEIGHT}),
    "class weights of soft labels": (batch()[0], soft(), {"weight": WEIGHT}),
    "class weights, summed": (*batch(), {"weight": WEIGHT, "reduction": "sum"}),
    "ignored": (*ignored([0, 3]), {}),
    "all ignored": (*ignored(slice(None)), {}),
    "a class is ignored": (*batch(), {"ignore_index": 2}),
    "sum": (*ignored([1]), {"reduction": "sum"}),
    "each row": (*ignored([1]), {"reduction": "none"}),
    "items": (*ignored([1]), {"num_items_in_batch": torch.tensor(31.0)}),
    "masked": (*masked(-math.inf), {}),
    "masked by -1e30": (*masked(-1e30), {}),
    "masked by -1e4": (*masked(-1e4), {}),
    "ties": (*changed(lambda z: z.round().clamp(-1, 1)), {}),
    "far": (*changed(lambda z: z + 1000), {}),
    "extreme": (*changed(lambda z: 100 * z), {}),
    "uint8 labels": (batch()[0], batch()[1].to(torch.uint8), {}),
    "int16 labels": (batch()[0], batch()[1].short(), {}),
    "columns": (*changed(lambda z: z.T.contiguous().T), {}),
    "every other": (*changed(lambda z: z[:, ::2], (N, 2 * K)), {}),
    "empty": (*batch(0), {}),
    "two classes": (*batch(N, 2), {}),
}
CASES["every other"] = (CASES["every other"][0], CASES["every other"][1] % K, {})
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def results(name, logits, labels, kernel, **options):
    """Loss, its cross-entropy and the gradient; for a loss of each row, that of a weighted sum."""
    loss = create_loss(name)
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = loss.compute(logits, labels, loss.values(0), kernel=kernel, **options)
    total = (output.loss * torch.arange(1.0, output.loss.numel() + 1).view_as(output.loss)).sum()
    total.backward()
    return output.loss.detach(), output.cross_entropy, logits.grad


def oracle(name, logits, labels, weight=None, num_items_in_batch=None, reduction="mean", ignore_index=IGNORED):
    """The loss in plain Python, of a single loss or a sum."""
    rows, targets = logits.double().tolist(), labels.tolist()
    weights = None if weight is None else weight.tolist()
    by = {"weight": weights, "ignore_index": ignore_index}

    def one(name, reduction):
        return plain.loss(name, rows, targets, create_loss(name).values(0), reduction=reduction, **by)

    def whole(reduction):
        parts = [one(part, reduction) for part in (*name.split("+"), *["cross_entropy"] * name.count("+"))]
        signs = [1] * (name.count("+") + 1) + [-1] * name.count("+")
        return sum(sign * torch.tensor(part, dtype=torch.float64) for sign, part in zip(signs, parts, strict=True))

    return whole("sum") / num_items_in_batch if num_items_in_batch is not None else whole(reduction)


def has_a_meaning(name, labels, weight=None, **_):
    """Whether the loss takes such labels and weights at all; that others are refused is tested with the losses."""
    spec = get_spec(name)
    if not labels.is_floating_point():
        return True
    return "labels" not in spec.arguments and (weight is None or spec.weighs_soft_labels)


def check(name, kernel, case, dtype, logits, labels, **options):
    logits = logits.to(dtype)
    narrow = dtype in (torch.bfloat16, torch.float16)
    exact = results(name, logits.double(), labels, "plain", **options)
    found = results(name, logits, labels, kernel, **options)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in found] == [wide, wide, dtype], case
    rtol, atol = (1e-10, 1e-11) if wide == torch.float64 else (2e-5, 1e-5 * max(1.0, exact[0].abs().max().item() / 100))
    assert_close(
        found[0].double(), oracle(name, logits, labels, **options), rtol=rtol, atol=atol, msg=lambda m: f"{case}: {m}"
    )
    assert_close(found[1].double(), exact[1], rtol=rtol, atol=atol, msg=lambda m: f"{case}: {m}")
    # Label smoothing with class weights rounds two gradients; Triton's interpreter truncates.
    step = (3 if kernel == "triton" else 1.5) * torch.finfo(dtype).eps if narrow else rtol
    assert_close(found[2].double(), exact[2], rtol=step, atol=max(atol, 1e-7), msg=lambda m: f"{case}, gradient: {m}")


def dtypes_of(backend):
    return [torch.float32, torch.float16] if backend == "triton" else DTYPES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES + SUMS)
def test_every_case(name, backend):
    with served_by(backend) as kernel:
        if get_spec(name).needs_logits:
            kernel = "auto"
        for case, (logits, labels, options) in CASES.items():
            for dtype in dtypes_of(backend) if has_a_meaning(name, labels, **options) else ():
                if dtype == torch.float16 and case in ("masked by -1e30", "extreme"):
                    continue  # these logits are not float16 numbers
                check(name, kernel, f"{case}, {dtype}", dtype, logits, labels, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES + SUMS)
def test_images_and_other_shapes(name, backend):
    """(N, K, H, W) and (..., K) against the same rows in (N, K)."""
    with served_by(backend) as kernel:
        kernel = "auto" if get_spec(name).needs_logits else kernel
        rows, labels = ignored([1]) if TRITON else ignored([1, 7])
        if not TRITON:
            rows, labels = rows.repeat(5, 1), labels.repeat(5)
        dtype = dtypes_of(backend)[0]
        rows = rows.to(dtype)
        expected = results(name, rows, labels, "plain")
        shape = (1, 1, 5) if TRITON else (2, 5, 6)
        image = rows.view(*shape, K).movedim(-1, 1).contiguous().movedim(1, -1)  # classes far apart
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
def test_logits_that_are_not_numbers_reach_loss_and_gradient(name, bad, backend):
    with served_by(backend) as kernel:
        logits, labels = (x[:3] for x in batch())
        logits = logits.to(dtypes_of(backend)[0])
        logits[1, 2] = bad
        kernel = "auto" if get_spec(name).needs_logits else kernel
        loss, _, gradient = results(name, logits, labels, kernel)
        assert not loss.isfinite() and gradient[1].isnan().any(), "a gradient scaler would not see it"
        clean = results(name, logits.nan_to_num(0, posinf=0), labels, "plain")[2]
        assert_close(gradient[::2], clean[::2])


@pytest.mark.parametrize("name", LOSSES + SUMS)
@pytest.mark.parametrize("soft_labels", [False, True])
def test_derivatives(name, soft_labels):
    logits, labels = batch()[0][:4], ignored([1])[1][:4]
    labels = soft(4) if soft_labels else labels
    if not has_a_meaning(name, labels):
        return
    logits = logits.requires_grad_()
    for options in ({}, {"reduction": "none"}):
        assert gradcheck(lambda z: create_loss(name)(z, labels, **options), logits)  # noqa: B023
        assert gradgradcheck(lambda z: create_loss(name)(z, labels, **options), logits)  # noqa: B023


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["maxsup", "focal"])
def test_what_comes_from_above(name, backend):
    """A factor, and a second backward through one graph, which makes the gradient again."""
    with served_by(backend) as kernel:
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
    with served_by(backend) as kernel:
        logits, labels = torch.randn(8, 5000).half(), torch.randint(5000, (8,))
        wide, narrow = (logits.to(t).requires_grad_() for t in (torch.float64, torch.float16))
        for z, by in ((wide, "plain"), (narrow, kernel)):
            (create_loss("maxsup")(z, labels, kernel=by) * 2.0**16).backward()
        assert (narrow.grad != 0).all()
        assert_close(narrow.grad.double(), wide.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["maxsup", "focal"])
def test_a_schedule_that_moves_on_before_the_backward(name, backend):
    with served_by(backend) as kernel:
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
def test_digits_far_from_zero(backend, offset):
    """Float32 ends in the seventh digit: of the loss, not of logits that are thousands of times larger."""
    with served_by(backend) as kernel:
        generator = torch.Generator().manual_seed(0)
        logits, labels = torch.randn(64, 32, generator=generator) + offset, torch.arange(64) % 32
        for name in ("cross_entropy", "confidence_penalty", "maxsup", "label_smoothing"):
            for target in (labels, torch.rand(64, 32, generator=generator).softmax(1)):
                exact = results(name, logits.double(), target, "plain")
                found = results(name, logits, target, kernel)
                gradient = (found[2] - exact[2]).norm() / exact[2].norm()
                assert gradient <= 3e-7, (name, gradient)
                if name in ("cross_entropy", "confidence_penalty"):
                    assert_close(found[0].double(), exact[0], rtol=3e-7, atol=0)


# ---- which one serves ----


def test_kernels_that_cannot_serve_are_refused_by_name():
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


def test_a_parameter_may_be_learned():
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
        if not has_a_meaning(name, labels):
            return
        traced = logits.clone().requires_grad_()
        output = function(traced, labels)
        output.loss.backward()
        expected = results(name, logits, labels, "plain")
        for x, y in zip((output.loss, output.cross_entropy, traced.grad), expected, strict=True):
            assert_close(x.detach(), y, msg=lambda m: f"{case}: {m}")  # noqa: B023
    torch._dynamo.reset()


@pytest.mark.skipif(TRITON, reason="needs a process without TRITON_INTERPRET")
def test_one_compilation_serves_a_schedule_and_sees_wrong_labels():
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
