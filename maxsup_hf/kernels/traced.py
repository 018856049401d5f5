"""`maxsup_hf.logit_stats.logit_stats` inside the user's `torch.compile`, in the operations that fuse best.

Inductor makes one loop over a row of each layer of reductions, and one of the backward if that is pointwise. So here the
maximum and the sums that do not need it are one layer, what needs the maximum is the second, and single columns are picked
by comparing with the number of the class, not by argmax and scatter, which would each be loops of their own and copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maxsup_hf.logit_stats import masked_below, masked_classes, upcast


def traced_stats(logits: Tensor, target: Tensor, numbers: Sequence[str] = ("cross_entropy",)) -> dict[str, Tensor]:
    """As `maxsup_hf.logit_stats.logit_stats`, with the same arguments and results; second derivatives are refused by
    `torch.compile` itself."""
    return dict(zip(numbers, _Traced.apply(logits, target, tuple(numbers)), strict=True))


class _Traced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, numbers: tuple[str, ...]) -> tuple[Tensor, ...]:
        z, masked = upcast(logits), masked_classes(logits)
        # The classes' numbers from 1 up, exact below 2²⁴. A sum is written to memory, an arange would be made in each loop.
        place = z.new_ones(z.shape[-1], dtype=torch.float32).cumsum(0)
        top = z.amax(-1, keepdim=True)
        kept = torch.where(masked, 0, z)
        values = {"mean": kept.sum(-1), "square": kept.square().sum(-1), "classes": (~masked).sum(-1, dtype=z.dtype)}
        count = values["classes"].clamp_min(1)
        values["mean"] = values["mean"] / count
        index = torch.where(z == top, place, math.inf).amin(-1)
        shifted = z - top
        e = shifted.exp()
        exp_sum = e.sum(-1)
        log_sum = exp_sum.log()
        values["top"] = top.squeeze(-1)
        values["lse"] = log_sum + values["top"]
        values["expected"] = expected = (e * kept).sum(-1) / exp_sum
        if target.is_floating_point():
            t = target.to(z.dtype)
            values["label"] = torch.where(t == 0, 0, t * z).sum(-1)
            values["cross_entropy"] = t.sum(-1) * log_sum - torch.where(t == 0, 0, t * shifted).sum(-1)
        else:
            values["label"] = z.gather(-1, target[:, None].long()).squeeze(-1)
            values["cross_entropy"] = log_sum - (values["label"] - values["top"])
        if "classes" in numbers:
            ctx.mark_non_differentiable(values["classes"])
        ctx.numbers = numbers
        ctx.save_for_backward(logits, target, place, values["top"], exp_sum, index, count, expected)
        return tuple(values[name] for name in numbers)

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, target, place, top, exp_sum, index, count, expected = ctx.saved_tensors
        g = {name: grad for name, grad in zip(ctx.numbers, upstream, strict=True) if name != "classes"}
        z = upcast(logits)
        soft = target.to(z.dtype) if target.is_floating_point() else None
        nothing = torch.zeros_like(top)
        ce = g.get("cross_entropy", nothing)
        share = 1 / exp_sum
        by_softmax = _stored(share * (g.get("lse", nothing) + (ce if soft is None else ce * soft.sum(-1))))
        by_target = _stored(g.get("label", nothing) - ce)
        # A row that nothing depends on (an ignored one) gives zeros even where its logits are NaN or infinite.
        used = torch.stack([x != 0 for x in g.values()]).any(0)
        least = _stored(torch.where(used, torch.full_like(top, masked_below(logits.dtype)), math.inf))

        # not exp(z − lse): of large logits the difference has lost the digits that the softmax is made of
        grad = torch.exp(z - top[:, None])
        if "expected" in g:
            by_expected = _stored(share * g["expected"])
            grad = grad * (by_softmax + by_expected * (1 + z.clamp_min(masked_below(logits.dtype)) - expected[:, None]))
        else:
            grad = grad * by_softmax
        if "mean" in g:
            grad = grad + _stored(g["mean"] / count)
        if "square" in g:
            grad = grad + _stored(2 * g["square"]) * z
        if soft is not None:
            grad = grad + by_target * soft
        else:
            grad = grad + torch.where(place == _stored(target.to(place.dtype) + 1), by_target, 0)
        if "top" in g:
            grad = grad + torch.where(place == index[:, None], _stored(g["top"]), 0)
        return torch.where(z > least, grad, 0).to(logits.dtype), None, None


def _stored(x: Tensor) -> Tensor:
    """(N,) as (N, 1), by a sum too long to be unrolled. So it is written to memory: else it would be computed again, with
    its divisions, for every number of its row."""
    first = torch.arange(9, device=x.device) == 0
    return torch.where(first, x[:, None], 0).sum(-1, keepdim=True)
