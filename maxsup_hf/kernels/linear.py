"""A loss from hidden states and the weight of an output embedding: the logits never exist as a whole.

Rows go through the product in chunks. A chunk's logits become their own gradient in place, and at once the gradients of
hidden states, weight and bias, so that nothing of the size N·V is ever held; the backward only multiplies them by what comes
from above. Rows that take no part are left out before the product.

The mean of a row's logits is `hidden·mean(weight)`, so it and its gradient take no pass over logits: α(top − mean) adds
−α·mean(weight) to the gradient of each hidden state, and the same row −α/V·Σ hidden to that of every class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.kernels.rows import MASKABLE, combine, finish_gradient, row_sums, write_gradient
from maxsup_hf.ops.formula import differentiate
from maxsup_hf.ops.row_stats import MASK_DISTANCE

ROWS = 32  # at least so many go through the product at a time
ROWS_OF_WEIGHT = 8192  # that are cast at a time to take their mean


class Head(NamedTuple):
    """logits = softcap·tanh(scale·(hidden·weightᵀ + bias)/softcap), or without tanh where there is no softcap.

    Attributes:
        weight: (V, D).
        bias: (V,) or `None`; a class whose bias lies more than `MASK_DISTANCE` below the largest is masked.
        scale: Cohere's logit_scale, or 1/logits_scaling of Granite.
        softcap: Gemma's final_logit_softcapping, or `None`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


class Question(NamedTuple):
    """A loss on row numbers: `(numbers, **values) -> (term on the label, penalty)`, as in `maxsup_hf.losses`."""

    formula: Callable[..., tuple[Tensor, Tensor]]
    numbers: tuple[str, ...]
    values: Mapping[str, Any]


def linear_loss(
    hidden: Tensor, target: Tensor, rows: Tensor, head: Head, loss: Question, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of a loss over the rows that count.

    Args:
        hidden: (N, D).
        target: (N,) class indices.
        rows: (M,) indices of the rows that count.
        head: where logits come from.
        loss: what to sum.
        dtype: of the products; default that of `hidden`. All else is float32 (float64 for float64).

    Returns:
        The loss and the plain cross-entropy in it, which has no gradient, 0-dim, float32 (float64 for float64).

    Raises:
        RuntimeError: (from backward) a second derivative, or a second backward through the same loss.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # what is in which precision is said here
        return _Linear.apply(hidden, head.weight, head.bias, target, rows, head, loss, dtype or hidden.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor,
        head: Head, loss: Question, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wanted = ctx.needs_input_grad[:3]
        made = _Gradients(hidden, weight, bias, wanted, dtype)
        weight = weight.to(dtype)
        names = tuple(dict.fromkeys(("cross_entropy", *loss.numbers)))
        mean = None
        if head.softcap is None and {"mean", "classes"} & set(names):
            mean = _MeanLogit(weight, bias, head.scale, made.wide)
        of_logits = tuple(name for name in names if mean is None or name not in ("mean", "classes"))
        overwrite = head.softcap is None and not set(MASKABLE) & set(of_logits)
        sums = torch.zeros(2, dtype=made.wide, device=hidden.device)  # of the loss and of the cross-entropy
        memory = hidden.new_empty(0, dtype=made.wide)
        for chunk in rows.split(_chunk(len(rows), *hidden.shape)):
            h, t = hidden[chunk].to(dtype), target[chunk].long()
            if not memory.numel():  # the first chunk is the largest
                memory = torch.empty(len(h), len(weight), dtype=made.wide, device=h.device)
            z = memory[: len(h)]
            if made.wide == dtype:
                torch.mm(h, weight.T, out=z)
            else:
                z.copy_(h @ weight.T)
            if bias is not None:
                z += bias
            if head.scale != 1.0:
                z.mul_(head.scale)
            if head.softcap is not None:
                z.div_(head.softcap).tanh_().mul_(head.softcap)
            label = z.gather(1, t[:, None]).squeeze(1)
            of_rows = row_sums(z, of_logits, overwrite)
            numbers = combine(of_rows, label, of_logits)
            if mean is not None:
                numbers |= {name: value for name, value in mean.numbers(h).items() if name in names}
            label_term, penalty, slopes = differentiate(
                loss.formula, {name: numbers[name] for name in loss.numbers}, loss.values
            )
            sums += torch.stack([label_term.sum() + penalty.sum(), numbers["cross_entropy"].sum()])
            if not any(wanted):
                continue
            slopes = {name: slope * head.scale for name, slope in slopes.items() if name != "classes"}
            of_mean = slopes.pop("mean", None) if mean is not None else None
            if overwrite:
                finish_gradient(z, of_rows, slopes, t, of_rows["index"])
            else:
                expected, count = numbers.get("expected"), of_rows.get("count")
                write_gradient(
                    z, z, slopes, of_rows["top"], of_rows["exp"], t, of_rows["index"],
                    expected=expected, count=count, softcap=head.softcap,
                )  # fmt: skip
            made.add(chunk, h, weight, z.to(dtype))
            if of_mean is not None:
                assert mean is not None
                made.add_mean(chunk, h, mean, of_mean)
        if mean is not None:
            made.end(mean)
        # Not as saved tensors: the backward gives them away, and autograd takes what nobody else holds without a copy.
        ctx.gradients = [made.hidden, made.weight, made.bias]
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, head.weight, bias)]
        total, cross_entropy = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy)
        return total, cross_entropy

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


class _Gradients:
    """What is added up over the chunks, in full precision whatever the precision of the products."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool], dtype: torch.dtype):
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        made = (
            torch.zeros(x.shape, dtype=self.wide, device=x.device) if x is not None and needed else None
            for x, needed in zip((hidden, weight, bias), wanted, strict=True)
        )
        self.hidden, self.weight, self.bias = made
        self.pull = torch.zeros(weight.shape[1], dtype=self.wide, device=weight.device)  # Σ slope of the mean · hidden
        self.slope = torch.zeros((), dtype=self.wide, device=weight.device)

    def add(self, rows: Tensor, h: Tensor, weight: Tensor, g: Tensor) -> None:
        """A chunk whose logits have the gradient `g`."""
        if self.hidden is not None:
            self.hidden[rows] = (g @ weight).to(self.wide)
        if self.weight is not None and g.dtype == self.wide:
            self.weight.addmm_(g.T, h)
        elif self.weight is not None:
            self.weight += g.T @ h
        if self.bias is not None:
            self.bias += g.sum(0, dtype=self.wide)

    def add_mean(self, rows: Tensor, h: Tensor, mean: _MeanLogit, slope: Tensor) -> None:
        """The part of the gradient that comes through the mean of a chunk's logits."""
        if self.hidden is not None:
            self.hidden.index_add_(0, rows, torch.outer(slope, mean.weight))
        self.pull += slope @ h.to(self.wide)
        self.slope += slope.sum()

    def end(self, mean: _MeanLogit) -> None:
        """What every class gets of the means of all rows."""
        if self.weight is not None:
            self.weight.addr_(mean.share, self.pull)
        if self.bias is not None:
            self.bias += mean.share * self.slope


class _MeanLogit:
    """The mean over classes of scale·(hidden·weightᵀ + bias).

    Attributes:
        share: (V,) 1/K for each of the K classes that are not masked, else 0.
        weight: (D,) mean of the rows of the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float, wide: torch.dtype):
        self.scale = scale
        taken = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        if bias is not None:
            taken = bias.to(wide) >= bias.to(wide).max() - MASK_DISTANCE
        self.classes = taken.sum().to(wide)
        self.share = taken / self.classes.clamp_min(1)
        pieces = zip(self.share.split(ROWS_OF_WEIGHT), weight.split(ROWS_OF_WEIGHT), strict=True)
        self.weight = torch.stack([share @ w.to(wide) for share, w in pieces]).sum(0)
        self.bias = 0.0 if bias is None else torch.where(taken, bias.to(wide), 0) @ self.share

    def numbers(self, h: Tensor) -> dict[str, Tensor]:
        """The numbers that need no pass over the logits of these rows."""
        mean = self.scale * (h.to(self.weight.dtype) @ self.weight + self.bias)
        return {"mean": mean, "classes": self.classes.expand_as(mean)}


def _chunk(counted: int, rows: int, width: int) -> int:
    """How many rows go through the product at a time: a quarter as many as hidden states are wide, so that a chunk's logits
    take a quarter of what the gradient of the weight takes, and a sixteenth of all rows; but not so few that products get
    slow, and the same number in each chunk."""
    most = max(ROWS, min(width // 4, -(-rows // 16)))
    return max(1, -(-counted // max(1, -(-counted // most))))
