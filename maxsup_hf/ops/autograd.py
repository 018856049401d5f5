"""Row statistics as a differentiable operation on any backend.

`statistics` works for every formula: its backward is a second pass over the logits. `linear_loss` is for formulas that are
linear in the statistics: their slopes are known in advance, so the forward computes the gradient in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from maxsup_hf.ops import backends
from maxsup_hf.ops.backends import resolve
from maxsup_hf.ops.formula import packed
from maxsup_hf.ops.inputs import check_range
from maxsup_hf.ops.row_stats import COLUMNS, MOMENTS, SLOPES, STATISTICS, as_rows, empty_stats, row_stats


def is_plain(logits: Tensor, target: Tensor) -> bool:
    """Whether these are ordinary tensors in eager mode, whose memory may be read: no subclass, transform or tracing."""
    return type(logits) in (Tensor, nn.Parameter) and type(target) is Tensor and can_be_read(target)


def can_be_read(x: Tensor) -> bool:
    """Whether the values of a tensor may be read: not during tracing, inside a transform, or for a fake tensor."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not _transformed()
        and not isinstance(x, FakeTensor)
    )


def _transformed() -> bool:
    """Whether we are inside a torch.func transform or forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def statistics(
    logits: Tensor,
    target: Tensor,
    names: Sequence[str] = STATISTICS,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
) -> dict[str, Tensor]:
    """Compute differentiable statistics of each row.

    Args:
        logits: (N, K) or (outer, K, inner), any floating dtype.
        target: (N,) int64 class indices, or class probabilities of the logits' shape.
        names: which of `STATISTICS` to compute.
        ignore_index: class index of ignored rows, whose statistics are 0.
        backend: as returned by `maxsup_hf.ops.backends.choose`. Default: the fastest for these logits.

    Returns:
        name -> (N,) float32 (float64 for float64 logits). Gradients have the logits' dtype. Second derivatives, gradients
        of soft targets and torch.func transforms use the reference implementation.
    """
    backend = backend or backends.choose("auto", logits)
    transformed = not torch.compiler.is_compiling() and _transformed()
    if backend == "reference" or target.requires_grad or transformed:
        rows = as_rows(target) if target.is_floating_point() else target
        return row_stats(as_rows(logits), rows, names, ignore_index=ignore_index)
    moments = not MOMENTS.isdisjoint(names)
    found = _RowStatistics.apply(logits, target, tuple(names), ignore_index, moments, backend, is_plain(logits, target))
    return dict(zip(names, found, strict=True))


_library = torch.library.Library("maxsup_hf", "FRAGMENT")
_library.define("rows(Tensor logits, Tensor target, int ignore_index, bool moments, str backend) -> (Tensor, Tensor)")
_library.define(
    "rows_grad(Tensor logits, Tensor target, Tensor stats, Tensor index, Tensor slopes, int ignore_index, bool moments, "
    "str backend) -> Tensor"
)


def _rows(logits: Tensor, target: Tensor, ignore_index: int, moments: bool, backend: str) -> tuple[Tensor, Tensor]:
    return resolve(backend, logits).rows(logits, target, ignore_index=ignore_index, moments=moments)


def _checked_rows(logits: Tensor, target: Tensor, ignore_index: int, moments: bool, backend: str) -> tuple[Tensor, Tensor]:
    """`_rows` for compiled graphs: labels cannot be read during tracing, so they are checked here, when the graph runs."""
    if not target.is_floating_point():
        check_range(target, logits.shape[1], ignore_index)
    return _rows(logits, target, ignore_index, moments, backend)


def _rows_grad(
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    index: Tensor,
    slopes: Tensor,
    ignore_index: int,
    moments: bool,
    backend: str,
) -> Tensor:
    out = torch.empty_like(logits)
    module = resolve(backend, logits)
    module.rows_grad(logits, target, stats, index, slopes, out, ignore_index=ignore_index, moments=moments)
    return out


# Not `torch.library.custom_op`: its wrappers take longer than a small batch.
_library.impl("rows", _checked_rows, "CompositeExplicitAutograd")
_library.impl("rows_grad", _rows_grad, "CompositeExplicitAutograd")


@torch.library.register_fake("maxsup_hf::rows", lib=_library)
def _(logits: Tensor, target: Tensor, ignore_index: int, moments: bool, backend: str) -> tuple[Tensor, Tensor]:
    return empty_stats(logits)


@torch.library.register_fake("maxsup_hf::rows_grad", lib=_library)
def _(logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits)


class _RowStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        names: tuple[str, ...],
        ignore_index: int,
        moments: bool,
        backend: str,
        direct: bool,
    ) -> tuple[Tensor, ...]:
        # Without tracing, call the Python function: going through the dispatcher takes longer than a small batch.
        operation = _rows if direct else torch.ops.maxsup_hf.rows
        stats, index = operation(logits, target, ignore_index, moments, backend)
        ctx.names, ctx.ignore_index, ctx.moments, ctx.backend, ctx.direct = names, ignore_index, moments, backend, direct
        ctx.set_materialize_grads(False)  # a statistic that the formula does not use has no upstream gradient
        ctx.save_for_backward(logits, target, stats, index)
        columns = dict(zip(COLUMNS, stats.unbind(1), strict=True))
        return tuple(columns[name] for name in names)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, target, stats, index = ctx.saved_tensors
        given = {name: slope for name, slope in zip(ctx.names, upstream, strict=True) if slope is not None}
        slopes = packed(given, stats[:, 0])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            grad = _reference_gradient(logits, target, slopes, ctx.ignore_index)
        else:
            operation = _rows_grad if ctx.direct else torch.ops.maxsup_hf.rows_grad
            grad = operation(logits, target, stats, index, slopes, ctx.ignore_index, ctx.moments, ctx.backend)
        return grad, None, None, None, None, None, None


def _reference_gradient(logits: Tensor, target: Tensor, slopes: Tensor, ignore_index: int) -> Tensor:
    """The gradient by the reference implementation, which can be differentiated again."""
    rows = as_rows(target) if target.is_floating_point() else target
    values = row_stats(as_rows(logits), rows, SLOPES, ignore_index=ignore_index)
    upstream = [slope.contiguous() for slope in slopes.expand(len(values["lse"]), len(SLOPES)).unbind(1)]
    return torch.autograd.grad(list(values.values()), logits, upstream, create_graph=True)[0]


def linear_loss(
    logits: Tensor,
    target: Tensor,
    slopes: Tensor,
    by_entropy: Tensor | float,
    *,
    ignore_index: int,
    moments: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Σ slope·statistic over all rows, with the gradient computed in the forward; for plain tensors (see `is_plain`).

    Args:
        slopes: (1, 8), shared by all rows, or (N, 8).
        by_entropy: factor of the cross-entropies before they are summed: a scalar, or (N,).
        moments: whether any statistic in `MOMENTS` may have a slope.

    Returns:
        The loss, and the cross-entropy in it without a gradient; both 0-dim.
    """
    gradient = torch.empty_like(logits)
    flags = {"ignore_index": ignore_index, "moments": moments}
    stats, _ = resolve(backend, logits).rows_and_grad(logits.detach(), target, slopes, gradient, **flags)
    # A statistic without a slope may be infinite, and 0 · ∞ is NaN.
    total = torch.where(slopes == 0, 0, slopes * stats[:, : len(SLOPES)]).sum()
    loss = _LossWithGradient.apply(logits, target, total, gradient, slopes, flags, backend)
    return loss, (stats[:, 0] * by_entropy).sum()


def supports_loss(logits: Tensor, target: Tensor) -> bool:
    """Whether `loss_in_one_call` supports these tensors, given that they are plain (see `is_plain`).

    Contiguous logits (N, K) and int64 class indices. Not float16, in which α/(K·N) underflows to 0 before a gradient scaler
    can scale it.
    """
    return (
        logits.dim() == 2
        and logits.shape[0] > 0
        and logits.shape[1] > 1
        and (logits.dtype is torch.float32 or logits.dtype is torch.bfloat16)
        and target.dtype is torch.int64
        and target.shape == logits.shape[:1]
        and logits.is_contiguous()
        and target.is_contiguous()
        and logits.device == target.device
    )


def on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def loss_in_one_call(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], divisor: float | Tensor, *, ignore_index: int
) -> tuple[Tensor, Tensor] | None:
    """`linear_loss` with little overhead, for slopes that all rows share.

    Args:
        slopes: eight floats, one for each of `SLOPES`.
        divisor: divides the sums; 0 means the number of rows that are not ignored. A 0-dim tensor only on a GPU.

    Returns:
        As for `linear_loss`, or `None` if the backend has no such operation, or does not support these after all: for the
        CPU, too many rows, or a class index that is out of range.
    """
    backend = backends.choose("auto", logits)
    operation = getattr(resolve(backend, logits), "loss_and_grad", None)
    if operation is None:
        return None
    gradient = torch.empty_like(logits)
    found = operation(logits, target, slopes, gradient, ignore_index=ignore_index, divisor=divisor)
    if found is None:
        return None
    loss, entropy, scale = found
    flags = {"ignore_index": ignore_index, "moments": True}
    made = _LossWithGradient.apply(logits, target, loss, gradient, (slopes, scale), flags, backend)
    return made, entropy if isinstance(entropy, Tensor) else torch.tensor(entropy)


class _LossWithGradient(torch.autograd.Function):
    """A loss whose gradient was computed in the forward.

    The first backward scales that gradient in place and returns it without a copy; a second backward recomputes it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, loss: Any, gradient: Tensor, slopes: Any, flags: Any, backend: str
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target)
        ctx.gradient, ctx.slopes, ctx.flags, ctx.backend = gradient, slopes, flags, backend
        return loss.clone() if isinstance(loss, Tensor) else torch.tensor(loss)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        no_gradients = (None,) * 6  # for the arguments after the logits
        if upstream is None:
            return None, *no_gradients
        if torch.is_grad_enabled():  # create_graph=True; the gradient is kept for a backward without it
            logits, target = ctx.saved_tensors
            slopes = _slopes_tensor(ctx.slopes, upstream) * upstream
            return _reference_gradient(logits, target, slopes, ctx.flags["ignore_index"]), *no_gradients
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward
            logits, target = ctx.saved_tensors
            gradient = torch.empty_like(logits)
            slopes = _slopes_tensor(ctx.slopes, upstream)
            resolve(ctx.backend, logits).rows_and_grad(logits, target, slopes, gradient, **ctx.flags)
        if not on_cpu(gradient):  # reading the factor would wait for the device
            return resolve(ctx.backend, gradient).multiply(gradient, upstream), *no_gradients
        factor = upstream.item()
        if factor != 1:
            gradient.mul_(factor)
        return gradient, *no_gradients


def _slopes_tensor(slopes: Any, like: Tensor) -> Tensor:
    """Slopes as the row operation expects them; `loss_in_one_call` keeps them as (floats, factor), which is cheaper."""
    if isinstance(slopes, Tensor):
        return slopes
    values, factor = slopes
    return like.new_tensor([values]) * factor
