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

from maxsup_hf.ops import backends, rows_numba
from maxsup_hf.ops.backends import resolve
from maxsup_hf.ops.formula import packed
from maxsup_hf.ops.inputs import check_range
from maxsup_hf.ops.row_stats import COLUMNS, MOMENTS, SLOPES, STATISTICS, as_rows, empty_stats, row_stats


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
    logits: Tensor, target: Tensor, names: Sequence[str] = STATISTICS, *, ignore_index: int = -100, backend: str = "cpu"
) -> dict[str, Tensor]:
    """Compute statistics of each row, differentiably.

    Args:
        logits: (N, K) or (outer, K, inner), any floating dtype.
        target: (N,) int64 class indices, or class probabilities of the logits' shape.
        names: which of `STATISTICS`.
        ignore_index: class index of ignored rows, which get 0.
        backend: as `maxsup_hf.ops.backends.choose` returns it.

    Returns:
        name -> (N,) float32 (float64 for float64 logits). Gradients have the logits' dtype; second derivatives are the
        reference's. So are soft targets' gradients and transforms of torch.func.
    """
    transformed = not torch.compiler.is_compiling() and _transformed()
    if backend == "reference" or target.requires_grad or transformed:
        rows = as_rows(target) if target.is_floating_point() else target
        return row_stats(as_rows(logits), rows, names, ignore_index=ignore_index)
    moments = not MOMENTS.isdisjoint(names)
    found = _Statistics.apply(logits, target, tuple(names), ignore_index, moments, backend, is_plain(logits, target))
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
    """`_rows` in a graph, which was made without a look at any label."""
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


# Not `torch.library.custom_op`, whose wrappers cost more than a small batch.
_library.impl("rows", _checked_rows, "CompositeExplicitAutograd")
_library.impl("rows_grad", _rows_grad, "CompositeExplicitAutograd")


@torch.library.register_fake("maxsup_hf::rows", lib=_library)
def _(logits: Tensor, target: Tensor, ignore_index: int, moments: bool, backend: str) -> tuple[Tensor, Tensor]:
    return empty_stats(logits)


@torch.library.register_fake("maxsup_hf::rows_grad", lib=_library)
def _(logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits)


class _Statistics(torch.autograd.Function):
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
        # The dispatcher costs more than a small batch.
        operation = _rows if direct else torch.ops.maxsup_hf.rows
        stats, index = operation(logits, target, ignore_index, moments, backend)
        ctx.names, ctx.ignore_index, ctx.moments, ctx.backend, ctx.direct = names, ignore_index, moments, backend, direct
        ctx.set_materialize_grads(False)
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
    """The gradient as something that can be differentiated again."""
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
    """Σ slope·statistic over all rows, with the gradient made at once; for plain tensors (see `is_plain`).

    Args:
        slopes: (1, 8) for all rows, or (N, 8).
        by_entropy: what the cross-entropies are multiplied by before they are summed: a number, or (N,).
        moments: whether a statistic of `MOMENTS` may have a slope.

    Returns:
        The loss, and without a gradient the cross-entropy in it; both 0-dim.
    """
    gradient = torch.empty_like(logits)
    flags = {"ignore_index": ignore_index, "moments": moments}
    stats, _ = resolve(backend, logits).rows_and_grad(logits.detach(), target, slopes, gradient, **flags)
    # A statistic without a slope is left out: it may be infinite.
    total = torch.where(slopes == 0, 0, slopes * stats[:, : len(SLOPES)]).sum()
    loss = _Made.apply(logits, target, total, gradient, slopes, flags, backend)
    return loss, (stats[:, 0] * by_entropy).sum()


def serves_loss(logits: Tensor, target: Tensor) -> bool:
    """Whether `loss_in_one_call` takes these, if they are plain."""
    return rows_numba.serves_loss(logits, target) and backends.has_numba()


def on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def loss_in_one_call(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], divisor: float, *, ignore_index: int
) -> tuple[Tensor, Tensor] | None:
    """`linear_loss` on the CPU with little overhead, for slopes that all rows share.

    Args:
        slopes: eight numbers, for all rows.
        divisor: what the sums are divided by; 0 stands for the number of rows that are not ignored.

    Returns:
        As `linear_loss`, or `None` if a class index is out of range.
    """
    gradient = torch.empty_like(logits)
    loss, entropy, counted = rows_numba.loss_and_grad(
        logits, target, slopes, gradient, ignore_index=ignore_index, divisor=divisor
    )
    if counted < 0:
        return None
    scale = 1 / (divisor or counted or 1)
    flags = {"ignore_index": ignore_index, "moments": True}
    return _Made.apply(logits, target, loss, gradient, (slopes, scale), flags, "cpu"), torch.tensor(entropy)


class _Made(torch.autograd.Function):
    """A loss whose gradient is made already. The first backward gives it away, a second one makes it again."""

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
        none = (None,) * 6
        if upstream is None:
            return None, *none
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or torch.is_grad_enabled():  # a second backward, or create_graph=True
            logits, target = ctx.saved_tensors
            slopes = ctx.slopes
            if not isinstance(slopes, Tensor):
                slopes = upstream.new_tensor([slopes[0]]) * slopes[1]
            if torch.is_grad_enabled():
                ctx.gradient = gradient
                return _reference_gradient(logits, target, slopes * upstream, ctx.flags["ignore_index"]), *none
            gradient = torch.empty_like(logits)
            resolve(ctx.backend, logits).rows_and_grad(logits, target, slopes, gradient, **ctx.flags)
        if not on_cpu(gradient):
            return resolve(ctx.backend, gradient).multiply(gradient, upstream), *none
        factor = upstream.item()
        return gradient if factor == 1 else gradient.mul_(factor), *none
