"""Row statistics as a differentiable operation, whatever computes them.

`statistics` serves every formula: its backward is one more pass over the logits. `linear_loss` is for formulas that are
linear in the statistics, whose slopes are known beforehand: its gradient is made in the forward, in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from maxsup_hf.ops import rows_numba, rows_torch
from maxsup_hf.ops.row_stats import STATISTICS, as_rows, row_stats

BACKENDS: dict[str, Any] = {"numba": rows_numba, "torch": rows_torch}  # "cpu" is the faster one that can be had


_found: list[str] = []


def cpu_backend() -> str:
    """numba where it can be imported. Asked once: a failing import is slow to fail again."""
    if not _found:
        _found.append("torch" if rows_numba.why_unavailable() else "numba")
    return _found[0]


def _backend(name: str) -> Any:
    return BACKENDS[cpu_backend() if name == "cpu" else name]


def is_plain(logits: Tensor, target: Tensor) -> bool:
    """Whether these are ordinary tensors in eager mode, of which memory may be read, with no transform or tracing."""
    return type(logits) in (Tensor, nn.Parameter) and type(target) is Tensor and can_be_read(target)


def can_be_read(x: Tensor) -> bool:
    """Whether values may be looked at: not while tracing, nor inside of a transform, nor of a fake tensor."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not _transformed()
        and not isinstance(x, FakeTensor)
    )


def _transformed() -> bool:
    """Inside of a transform of torch.func, or forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def statistics(
    logits: Tensor, target: Tensor, names: Sequence[str] = STATISTICS, *, ignore_index: int = -100, reference: bool = False
) -> dict[str, Tensor]:
    """Compute statistics of each row, differentiably.

    Args:
        logits: (N, K) or (outer, K, inner), any floating dtype.
        target: (N,) int64 class indices, or class probabilities of the logits' shape.
        names: which of `STATISTICS`.
        ignore_index: class index of ignored rows, which get 0.
        reference: use the reference implementation.

    Returns:
        name -> (N,) float32 (float64 for float64 logits). Gradients have the logits' dtype; second derivatives are the
        reference's. So are soft targets' gradients, transforms of torch.func, and tensor subclasses such as DTensor.
    """
    compiling = torch.compiler.is_compiling()
    subclass = hasattr(logits, "full_tensor")
    if reference or subclass or target.requires_grad or (not compiling and _transformed()):
        rows = as_rows(target) if target.is_floating_point() else target
        return row_stats(as_rows(logits), rows, names, ignore_index=ignore_index)
    backend = "cpu" if logits.device.type == "cpu" else "torch"
    direct = is_plain(logits, target)
    found, _ = _Statistics.apply(logits, target, ignore_index, "square" in names, "expected" in names, backend, direct)
    columns = dict(zip(STATISTICS, found.unbind(1), strict=True))
    return {name: columns[name] for name in names}


@torch.library.custom_op("maxsup_hf::rows", mutates_args=())
def _rows(
    logits: Tensor, target: Tensor, ignore_index: int, square: bool, expected: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return _backend(backend).rows(logits, target, ignore_index=ignore_index, square=square, expected=expected)


@_rows.register_fake
def _(
    logits: Tensor, target: Tensor, ignore_index: int, square: bool, expected: bool, backend: str
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0] if logits.ndim == 2 else logits.shape[0] * logits.shape[2]
    number = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty((rows, 8), dtype=number), logits.new_empty((rows,), dtype=torch.int64)


@torch.library.custom_op("maxsup_hf::rows_grad", mutates_args=())
def _rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, ignore_index: int, backend: str
) -> Tensor:
    out = torch.empty_like(logits)
    _backend(backend).rows_grad(logits, target, stats, index, slopes, out, ignore_index=ignore_index)
    return out


@_rows_grad.register_fake
def _(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, ignore_index: int, backend: str
) -> Tensor:
    return torch.empty_like(logits)


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, ignore_index: int, square: bool, expected: bool, backend: str, direct: bool
    ) -> tuple[Tensor, Tensor]:
        operation = _rows._init_fn if direct else _rows  # the dispatcher costs more than a small batch
        return operation(logits, target, ignore_index, square, expected, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, target, ctx.ignore_index, _, _, ctx.backend, ctx.direct = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, target, *output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        logits, target, stats, index = ctx.saved_tensors
        slopes = upstream[:, :7]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            grad = _reference_gradient(logits, target, slopes, ctx.ignore_index)
        else:
            operation = _rows_grad._init_fn if ctx.direct else _rows_grad
            grad = operation(logits, target, stats, index, slopes, ctx.ignore_index, ctx.backend)
        return grad, None, None, None, None, None, None


def _reference_gradient(logits: Tensor, target: Tensor, slopes: Tensor, ignore_index: int) -> Tensor:
    """The gradient as something that can be differentiated again."""
    rows = as_rows(target) if target.is_floating_point() else target
    values = row_stats(as_rows(logits), rows, STATISTICS[:7], ignore_index=ignore_index)
    upstream = [slope.contiguous() for slope in slopes.expand(len(values["lse"]), 7).unbind(1)]
    return torch.autograd.grad(list(values.values()), logits, upstream, create_graph=True)[0]


def linear_loss(
    logits: Tensor, target: Tensor, slopes: Tensor | tuple[float, ...], by_entropy: Tensor | float, *, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Σ slope·statistic over all rows, with the gradient made at once; plain tensors on the CPU (see `is_plain`).

    Args:
        slopes: seven numbers for all rows, or (N, 7).
        by_entropy: what the cross-entropies are multiplied by before they are summed: a number, or (N,).

    Returns:
        The loss, and without a gradient the cross-entropy in it; both 0-dim.
    """
    return _LinearLoss.apply(logits, target, slopes, by_entropy, ignore_index)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, slopes: Any, by_entropy: Any, ignore_index: int) -> Any:
        ctx.set_materialize_grads(False)
        ctx.slopes, ctx.ignore_index = slopes, ignore_index
        ctx.save_for_backward(logits, target)
        ctx.gradient = torch.empty_like(logits)  # the first backward gives it away, a second one makes it again
        if isinstance(slopes, tuple) and cpu_backend() == "numba" and rows_numba.serves_small(logits, target):
            sums = rows_numba.small_rows_and_grad(
                logits, target, slopes, ctx.gradient, ignore_index=ignore_index, mean=False
            )
            loss = torch.tensor(sum(a * b for a, b in zip(slopes, sums, strict=False) if a))
            entropy = torch.tensor(by_entropy * sums[0])
        else:
            stats = _with_gradient(logits, target, slopes, ctx.gradient, ignore_index)
            loss, entropy = _total(stats, slopes), (stats[:, 0] * by_entropy).sum()
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None, None
        logits, target = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            rows = torch.as_tensor(ctx.slopes, dtype=upstream.dtype).reshape(-1, 7) * upstream
            return _reference_gradient(logits, target, rows, ctx.ignore_index), None, None, None, None
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = torch.empty_like(logits)
            _with_gradient(logits, target, ctx.slopes, gradient, ctx.ignore_index)
        factor = upstream.item()
        return (gradient if factor == 1 else gradient.mul_(factor)), None, None, None, None


def _with_gradient(logits: Tensor, target: Tensor, slopes: Any, out: Tensor, ignore_index: int) -> Tensor:
    number = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = torch.as_tensor(slopes, dtype=number).reshape(-1, 7)
    used = [True] * 7 if isinstance(slopes, Tensor) else [slope != 0 for slope in slopes]
    stats, _ = _backend("cpu").rows_and_grad(
        logits, target, rows, out, ignore_index=ignore_index, square=used[5], expected=used[6]
    )
    return stats


def _total(stats: Tensor, slopes: Any) -> Tensor:
    """Statistics without a slope are left out: they may be infinite."""
    if isinstance(slopes, Tensor):
        return torch.where(slopes == 0, 0, slopes * stats[:, :7]).sum()
    sums = stats.sum(0)
    return sum((sums[k] * slope for k, slope in enumerate(slopes) if slope), sums.new_zeros(()))
