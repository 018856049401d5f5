"""The numbers of a row of logits, from which every loss is one short formula.

For a row `z` of K logits with target `t` (one-hot for a hard label) and `mass = Σ t_k` (1 for a hard label):

=================  =======================================  ===================================
name               value                                    gradient with respect to `z_k`
=================  =======================================  ===================================
`lse`              `log Σ exp z_k`                          `q_k = softmax(z)_k`
`top`              `max_k z_k`                              1 at the first maximum, else 0
`mean`             `(1/K) Σ z_k`                            `1/K`
`label`            `Σ t_k z_k`                              `t_k`
`cross_entropy`    `mass·lse − label = −Σ t_k log q_k`      `mass·q_k − t_k`
`square`           `Σ z_k²`                                 `2 z_k`
`expected`         `Σ q_k z_k`                              `q_k (1 + z_k − expected)`
`classes`          the number of classes that take part     0
=================  =======================================  ===================================

`cross_entropy` is a number of its own because the difference `lse − label` would lose its digits where both are large.

A class whose logit is −inf, or the smallest number of its dtype, is masked: it takes no part, neither in a sum nor in K.

Two implementations: `reference_logit_stats` spells the table out in ordinary differentiable operations; `logit_stats` is
one autograd node that keeps nothing of size N·K but the logits themselves, and writes the gradient in one go. Tests hold
the second to the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NUMBERS = ("cross_entropy", "lse", "top", "mean", "label", "square", "expected", "classes")


def logit_stats(logits: Tensor, target: Tensor, numbers: Sequence[str] = ("cross_entropy",)) -> dict[str, Tensor]:
    """Compute the named numbers of each row, differentiably.

    Args:
        logits: (N, K), any floating dtype. Arithmetic is float32, or float64 for float64 logits.
        target: (N,) integer class indices in [0, K), or (N, K) floating class probabilities. No gradient flows to it.
        numbers: which of `NUMBERS` to compute.

    Returns:
        name -> (N,) tensor, float32 (float64 for float64 logits). Gradients arrive in the dtype of `logits`,
        and can be differentiated again (slower: by the reference).
    """
    values = _RowNumbers.apply(logits, target, tuple(numbers))
    return dict(zip(numbers, values, strict=True))


def reference_logit_stats(logits: Tensor, target: Tensor, numbers: Sequence[str] = ("cross_entropy",)) -> dict[str, Tensor]:
    """The same as `logit_stats`, in plain differentiable operations: the twin that tests compare with."""
    z, masked = upcast(logits), masked_classes(logits)
    finite = z.masked_fill(masked, 0)
    classes = (~masked).sum(-1).to(z.dtype)
    top = z.gather(-1, z.argmax(-1, keepdim=True))  # argmax is the first maximum; `amax` would share its gradient
    shifted = z - top.detach()
    log_sum = shifted.exp().sum(-1).log()
    lse = log_sum + top.detach().squeeze(-1)
    if target.is_floating_point():
        t = target.to(z.dtype)
        label, shifted_label, mass = _dot(t, z), _dot(t, shifted), t.sum(-1)
    else:
        label, shifted_label = (x.gather(-1, target[:, None].long()).squeeze(-1) for x in (z, shifted))
        mass = torch.ones_like(label)
    values = {
        "cross_entropy": mass * log_sum - shifted_label,
        "lse": lse,
        "top": top.squeeze(-1),
        "mean": finite.sum(-1) / classes.clamp_min(1),
        "label": label,
        "square": finite.square().sum(-1),
        "expected": (torch.exp(shifted - log_sum[:, None]) * finite).sum(-1),
        "classes": classes,
    }
    return {name: values[name] for name in numbers}


class _RowNumbers(torch.autograd.Function):
    """`logit_stats` as one autograd node; the backward is the right column of the module's table."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, numbers: tuple[str, ...]) -> tuple[Tensor, ...]:
        z, masked = upcast(logits), masked_classes(logits)
        count = (~masked).sum(-1).clamp_min(1)
        index = z.argmax(-1)
        top = z.gather(-1, index[:, None])
        shifted = z - top
        log_sum = shifted.exp().sum(-1).log()
        top = top.squeeze(-1)
        lse = log_sum + top
        expected = torch.empty(0)
        values: dict[str, Tensor] = {"lse": lse, "top": top}
        if "cross_entropy" in numbers:
            if target.is_floating_point():
                t = target.to(z.dtype)
                values["cross_entropy"] = t.sum(-1) * log_sum - _dot(t, shifted)
            else:
                values["cross_entropy"] = log_sum - shifted.gather(-1, target[:, None].long()).squeeze(-1)
        if "label" in numbers:
            if target.is_floating_point():
                values["label"] = _dot(target.to(z.dtype), z)
            else:
                values["label"] = z.gather(-1, target[:, None].long()).squeeze(-1)
        if "mean" in numbers:
            values["mean"] = z.masked_fill(masked, 0).sum(-1) / count
        if "square" in numbers:
            values["square"] = z.masked_fill(masked, 0).square().sum(-1)
        if "classes" in numbers:
            values["classes"] = classes = (~masked).sum(-1).to(z.dtype)
            ctx.mark_non_differentiable(classes)
        if "expected" in numbers:
            values["expected"] = expected = (torch.exp(shifted - log_sum[:, None]) * z.masked_fill(masked, 0)).sum(-1)
        ctx.numbers = numbers
        ctx.save_for_backward(logits, target, top, log_sum, index, count, expected)
        return tuple(values[name] for name in numbers)

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, target, top, log_sum, index, count, expected = ctx.saved_tensors
        g = {name: grad for name, grad in zip(ctx.numbers, upstream, strict=True) if name != "classes"}
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True: the twin differentiates again
            values = reference_logit_stats(logits, target, ctx.numbers)
            (grad,) = torch.autograd.grad([values[name] for name in g], logits, list(g.values()), create_graph=True)
            return grad, None, None
        z, masked = upcast(logits), masked_classes(logits)
        soft = target.to(z.dtype) if target.is_floating_point() else None

        # Everything that multiplies softmax_k, then everything that falls on single classes.
        by_softmax = torch.zeros_like(top)
        by_target = torch.zeros_like(top)
        if "lse" in g:
            by_softmax = by_softmax + g["lse"]
        if "cross_entropy" in g:
            by_softmax = by_softmax + (g["cross_entropy"] * soft.sum(-1) if soft is not None else g["cross_entropy"])
            by_target = by_target - g["cross_entropy"]
        if "label" in g:
            by_target = by_target + g["label"]

        grad = (z - top[:, None]).sub_(log_sum[:, None]).exp_()  # z − lse would keep only the digits of large logits
        if "expected" in g:
            slope = 1 + z.masked_fill(masked, 0) - expected[:, None]
            grad = grad * (by_softmax[:, None] + g["expected"][:, None] * slope)
        else:
            grad = grad * by_softmax[:, None]
        if "mean" in g:
            grad = grad + (g["mean"] / count)[:, None]
        if "square" in g:
            grad = grad + 2 * g["square"][:, None] * z
        grad = grad.masked_fill(masked, 0)
        if soft is not None:
            grad = grad + by_target[:, None] * soft
        else:
            grad = grad.scatter_add(-1, target[:, None].long(), by_target[:, None])
        if "top" in g:
            grad = grad.scatter_add(-1, index[:, None], g["top"][:, None])

        # A row that nothing depends on (an ignored one) gives zeros even where its logits are NaN or infinite.
        unused = torch.stack([x == 0 for x in g.values()]).all(0)
        return grad.masked_fill(unused[:, None], 0).to(logits.dtype), None, None


def upcast(logits: Tensor) -> Tensor:
    """The logits in the precision of all arithmetic: float32, or float64 for float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def masked_classes(logits: Tensor) -> Tensor:
    """Which classes take no part."""
    return logits <= masked_below(logits.dtype)


def masked_below(dtype: torch.dtype) -> float:
    """The largest logit that masks its class. A bfloat16 minimum that a model has upcast to float32 counts too."""
    return torch.finfo(torch.bfloat16 if dtype == torch.float32 else dtype).min


def _dot(t: Tensor, z: Tensor) -> Tensor:
    """Σ t_k z_k, in which a class of probability 0 counts nothing even where its logit is −inf."""
    return torch.where(t == 0, 0, t * z).sum(-1)
