"""A loss computed from hidden states and the output embedding's weight, without ever holding all logits.

Rows go through the product in chunks. The gradient of a chunk overwrites its logits and is added at once to the gradients
of hidden states, weight and bias, so nothing of size N·V is ever allocated; the backward only scales them by the upstream
gradient. Ignored rows are dropped before the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.ops import backends
from maxsup_hf.ops.formula import RowLoss, differentiate, packed
from maxsup_hf.ops.inputs import NONE_IGNORED
from maxsup_hf.ops.row_stats import COLUMNS

ROWS = 32  # the least number of rows in a chunk: smaller products are slow


class Head(NamedTuple):
    """The output layer: logits = softcap·tanh(scale·(hidden·weightᵀ + bias)/softcap), without the tanh if softcap is `None`.

    Attributes:
        weight: (V, D).
        bias: (V,) or `None`.
        scale: factor of the logits: Cohere's logit_scale, or 1/logits_scaling of Granite.
        softcap: Gemma's final_logit_softcapping, or `None`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def write(self, hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
        """Write the logits of some rows to `logits`; `weight` is the layer's weight in the dtype of the product."""
        if logits.dtype == weight.dtype:
            torch.mm(hidden, weight.T, out=logits)
        else:
            logits.copy_(hidden @ weight.T)
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)


def summed_loss(
    hidden: Tensor, target: Tensor, rows: Tensor, head: Head, loss: RowLoss, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of a loss over the rows that are not ignored.

    Args:
        hidden: (N, D).
        target: (N,) int64 class indices.
        rows: (M,) indices of the rows that are not ignored.
        head: the output layer.
        loss: the loss to sum.
        dtype: of the products; default: that of `hidden`. All other arithmetic is float32 (float64 for float64).

    Returns:
        The loss, 0-dim, and without a gradient (1 + summands,) the cross-entropy in it and the penalty of each summand;
        float32 (float64 for float64).

    Raises:
        RuntimeError: (from backward) a second derivative, or a second backward through the same loss.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # precision is chosen explicitly below
        return _FusedLinearLoss.apply(hidden, head.weight, head.bias, target, rows, head, loss, dtype or hidden.dtype)


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor,
        head: Head, loss: RowLoss, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(dtype, torch.float32)
        given, wanted = (hidden, weight, bias), ctx.needs_input_grad[:3]
        gradients = [_zeros(x, wide) if needed else None for x, needed in zip(given, wanted, strict=True)]
        weight = weight.to(dtype)
        sums = torch.zeros(2 + len(loss.summands), dtype=wide, device=hidden.device)
        # One buffer serves all chunks, of which the first is the largest. The gradient overwrites the logits, except that
        # the derivative of a softcap needs both.
        size = _chunk_size(len(rows), *hidden.shape)
        memory = hidden.new_empty((1 if head.softcap is None else 2, min(size, len(rows)), len(weight)), dtype=wide)
        for chunk in rows.split(size):
            h, z, g = hidden[chunk].to(dtype), memory[0, : len(chunk)], memory[-1, : len(chunk)]
            head.write(h, weight, z)
            sums += _write_gradient(z, target[chunk], g if any(wanted) else None, head.scale, loss)
            if head.softcap is not None and any(wanted):
                g.mul_(1 - z.div_(head.softcap).square_())  # d/dx c·tanh(x/c) = 1 − tanh²(x/c)
            _accumulate(gradients, chunk, h, weight, g.to(dtype))
        # Not as saved tensors: without another reference to them, autograd takes over what the backward returns, uncopied.
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in given]
        total, others = sums[0].clone(), sums[1:].clone()
        ctx.mark_non_differentiable(others)
        return total, others

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the gradient of a fused linear loss cannot be differentiated again (create_graph=True)")
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "backward ran twice through one fused linear loss, whose gradients are freed by the first backward: compute "
                "the loss again"
            )
        if upstream.device.type != "cpu" or upstream.item() != 1:
            torch._foreach_mul_([g for g in gradients if g is not None], upstream)
        gradients = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *gradients, None, None, None, None, None


def _zeros(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else torch.zeros(x.shape, dtype=dtype, device=x.device)


def _write_gradient(z: Tensor, target: Tensor, out: Tensor | None, scale: float, loss: RowLoss) -> Tensor:
    """Write the gradient with respect to logits `z`, times `scale`, to `out`, which may be `z` or `None`.

    Returns:
        (2 + summands,) the loss, the cross-entropy and the penalties, summed over the rows.
    """
    backend = backends.fastest(z)
    flags: Any = {"ignore_index": NONE_IGNORED, "moments": loss.needs_moments}
    stats, index = backend.rows(z, target, **flags)
    columns = dict(zip(COLUMNS, stats.unbind(1), strict=True))
    given = {name: columns[name] for name in loss.names}
    of_rows, slopes = differentiate(loss.formula, given, loss.values)
    if out is not None:
        by_stats = packed(slopes, of_rows) * scale
        backend.rows_grad(z, target, stats, index, by_stats, out, **flags)
    terms = (formula(*given.values(), **loss.values) for formula in loss.summands.values())
    penalties = [(weighted + unweighted).sum() for weighted, unweighted in terms]
    return torch.stack([of_rows.sum(), columns["cross_entropy"].sum(), *penalties])


def _accumulate(gradients: Sequence[Tensor | None], rows: Tensor, h: Tensor, weight: Tensor, g: Tensor) -> None:
    """Add the share of a chunk, whose logits have the gradient `g`, to the gradients of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[rows] = (g @ weight).to(of_hidden.dtype)
    if of_weight is not None and g.dtype == of_weight.dtype:
        of_weight.addmm_(g.T, h)
    elif of_weight is not None:
        of_weight += g.T @ h
    if of_bias is not None:
        of_bias += g.sum(0, dtype=of_bias.dtype)


def _chunk_size(counted: int, rows: int, width: int) -> int:
    """How many rows go through the product at a time.

    At most width/4, so that a chunk's logits take a quarter of the memory of the weight's gradient, and at most a sixteenth
    of all rows; but at least `ROWS`. Rows are then spread evenly over the chunks.
    """
    most = max(ROWS, min(width // 4, -(-rows // 16)))  # −(−a // b) rounds a/b up
    chunks = max(1, -(-counted // most))
    return max(1, -(-counted // chunks))
