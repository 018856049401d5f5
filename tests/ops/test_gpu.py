"""The losses on an NVIDIA GPU, where the Triton kernel is compiled for it and not interpreted."""

from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from maxsup_hf import create_loss, fused_linear_loss
from maxsup_hf.losses import get_spec
from maxsup_hf.ops import backends
from tests.ops.cases import CASES, LOSSES, SUMS, is_supported, results

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None, reason="needs an NVIDIA GPU and the package triton"
)
GPU_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LONG = (37, 1000, 16384, 16385, 32000, 128256)  # the longest row that stays in registers, and one class more


def check_on_gpu(name, case, dtype, logits, labels, options):
    """Compare with the reference implementation in float64 on the CPU."""
    logits = logits.to(dtype)
    exact = results(name, logits.double(), labels, "plain", **options)
    moved = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    found = results(name, logits.cuda(), labels.cuda(), "auto", **moved)
    assert all(x.is_cuda for x in found)
    atol = 1e-5 * max(1.0, exact[0].abs().max().item() / 100) if exact[0].numel() else 1e-5
    for ours, right in zip(found[:2], exact[:2], strict=True):
        assert_close(ours.cpu().double(), right, rtol=2e-5, atol=atol, msg=lambda m: f"{case}: {m}")
    step = 2e-5 if dtype == torch.float32 else 1.5 * torch.finfo(dtype).eps
    assert_close(found[2].cpu().double(), exact[2], rtol=step, atol=max(atol, 1e-7), msg=lambda m: f"{case}, gradient: {m}")


def test_triton_passes_its_self_test_here():
    logits = torch.randn(2, 3, device="cuda")
    assert backends.choose("auto", logits) == "triton"
    assert backends.fastest(logits).__name__ == "maxsup_hf.ops.rows_triton"


@pytest.mark.parametrize("name", LOSSES + SUMS)
def test_every_case(name):
    for case, (logits, labels, options) in CASES.items():
        for dtype in GPU_DTYPES if is_supported(name, labels, **options) else ():
            if not (dtype == torch.float16 and case in ("masked by -1e30", "extreme")):  # not numbers of float16
                check_on_gpu(name, f"{case}, {dtype}", dtype, logits, labels, options)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", LONG)
def test_long_rows(name, classes):
    if get_spec(name).needs_logits and classes > 1000:
        return  # these losses never reach the kernel, and some keep a table of classes × classes
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(6, classes, generator=generator)
    labels = torch.randint(classes, (6,), generator=generator)
    labels[2] = -100
    for dtype in GPU_DTYPES:
        check_on_gpu(name, f"{classes} classes, {dtype}", dtype, logits, labels, {})


def test_a_cuda_graph_captures_forward_and_backward():
    logits = torch.randn(8, 300, device="cuda", requires_grad=True)
    labels = torch.randint(300, (8,), device="cuda")
    loss, values = create_loss("maxsup"), create_loss("maxsup").values(0.0)

    def step():
        logits.grad = None
        found = loss.compute(logits, labels, values).loss
        found.backward()
        return found

    right = step().detach().clone(), logits.grad.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    logits.grad = None
    with torch.cuda.graph(graph):
        found = loss.compute(logits, labels, values).loss
        found.backward()
    logits.grad.zero_()
    graph.replay()
    assert_close((found.detach(), logits.grad), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_linear_loss(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator).to(dtype)
    weight = torch.randn(5000, 16, generator=generator).to(dtype)
    labels = torch.randint(5000, (40,), generator=generator)
    found = []
    for device, by in (("cpu", torch.float64), ("cuda", dtype)):
        h, w = (x.to(device, by).requires_grad_() for x in (hidden, weight))
        loss = fused_linear_loss(h, w, labels.to(device))
        loss.backward()
        found.append([x.detach().cpu().double() for x in (loss, h.grad, w.grad)])
    for right, ours in zip(*found, strict=True):
        assert_close(ours, right, rtol=0, atol=float(right.abs().max()) * (1e-3 if dtype == torch.float32 else 2e-2))
