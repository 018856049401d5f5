"""A loss from hidden states and the weight of an output embedding: the logits never exist as a whole.

Rows go through the product in chunks. A chunk's logits become their own gradient in place, and at once the gradients of
hidden states, weight and bias, so that nothing of the size N·V is ever held; the backward only multiplies them by what comes
from above. Ignored rows are left out before the product.
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

ROWS = 32  # at least so many go through the product at a time


class Head(NamedTuple):
    """logits = softcap·tanh(scale·(hidden·weightᵀ + bias)/softcap), or without tanh where there is no softcap.

    Attributes:
        weight: (V, D).
        bias: (V,) or `None`.
        scale: Cohere's logit_scale, or 1/logits_scaling of Granite.
        softcap: Gemma's final_logit_softcapping, or `None`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def write(self, hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
        """The logits of some rows, into memory; `weight` in the dtype of the product."""
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
    """The sum of a loss over the rows that count.

    Args:
        hidden: (N, D).
        target: (N,) int64 class indices.
        rows: (M,) indices of the rows that count.
        head: where logits come from.
        loss: what to sum.
        dtype: of the products; default that of `hidden`. All else is float32 (float64 for float64).

    Returns:
        The loss, 0-dim, and without a gradient (1 + summands,) the cross-entropy in it and the penalty of each summand;
        float32 (float64 for float64).

    Raises:
        RuntimeError: (from backward) a second derivative, or a second backward through the same loss.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # what is in which precision is said here
        return _Linear.apply(hidden, head.weight, head.bias, target, rows, head, loss, dtype or hidden.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor,
        head: Head, loss: RowLoss, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(dtype, torch.float32)
        given, wanted = (hidden, weight, bias), ctx.needs_input_grad[:3]
        made = [
            None if x is None or not needed else torch.zeros(x.shape, dtype=wide, device=x.device)
            for x, needed in zip(given, wanted, strict=True)
        ]
        weight = weight.to(dtype)
        sums = torch.zeros(2 + len(loss.summands), dtype=wide, device=hidden.device)
        # The first chunk is the largest. The derivative of a softcap needs the logits beside their gradient.
        size = _chunk(len(rows), *hidden.shape)
        memory = hidden.new_empty((1 if head.softcap is None else 2, min(size, len(rows)), len(weight)), dtype=wide)
        for chunk in rows.split(size):
            h, z, g = hidden[chunk].to(dtype), memory[0, : len(chunk)], memory[-1, : len(chunk)]
            head.write(h, weight, z)
            sums += _write_gradient(z, target[chunk], g if any(wanted) else None, head.scale, loss)
            if head.softcap is not None and any(wanted):
                g.mul_(1 - z.div_(head.softcap).square_())
            _add(made, chunk, h, weight, g.to(dtype))
        # Not as saved tensors: the backward gives them away, and autograd takes what nobody else holds without a copy.
        ctx.gradients = made
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
                "backward ran twice through one fused linear loss, whose gradients are used up: compute the loss again"
            )
        if upstream.device.type != "cpu" or upstream.item() != 1:
            torch._foreach_mul_([g for g in gradients if g is not None], upstream)
        gradients = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *gradients, None, None, None, None, None


def _write_gradient(z: Tensor, target: Tensor, out: Tensor | None, scale: float, loss: RowLoss) -> Tensor:
    """(2 + summands,) loss, cross-entropy and penalties of some rows, summed. The gradient, times `scale`, goes into `out`,
    which may be `z`."""
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


def _add(made: Sequence[Tensor | None], rows: Tensor, h: Tensor, weight: Tensor, g: Tensor) -> None:
    """Add what a chunk whose logits have the gradient `g` adds to the gradients of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = made
    if of_hidden is not None:
        of_hidden[rows] = (g @ weight).to(of_hidden.dtype)
    if of_weight is not None and g.dtype == of_weight.dtype:
        of_weight.addmm_(g.T, h)
    elif of_weight is not None:
        of_weight += g.T @ h
    if of_bias is not None:
        of_bias += g.sum(0, dtype=of_bias.dtype)


def _chunk(counted: int, rows: int, width: int) -> int:
    """How many rows go through the product at a time: a quarter as many as hidden states are wide, so that a chunk's logits
    take a quarter of what the gradient of the weight takes, and a sixteenth of all rows; but not so few that products get
    slow, and the same number in each chunk."""
    most = max(ROWS, min(width // 4, -(-rows // 16)))
    return max(1, -(-counted // max(1, -(-counted // most))))
