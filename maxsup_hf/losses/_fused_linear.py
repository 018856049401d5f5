"""A registered loss from hidden states and the weight of an output embedding, without ever making the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.losses import Loss, LossOutput, create_loss
from maxsup_hf.losses._reduction import divided
from maxsup_hf.ops.formula import RowLoss
from maxsup_hf.ops.inputs import check_range, gathered, widened
from maxsup_hf.ops.linear import Head, summed_loss


def fused_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    loss: str = "maxsup",
    *,
    progress: float = 0.0,
    num_items_in_batch: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    logit_softcap: float | None = None,
    logit_scale: Tensor | float | None = None,
    **loss_kwargs: Any,
) -> Tensor:
    """The loss on logits = hidden·weightᵀ + bias, a chunk of rows at a time: the logits never exist as a whole.

        loss = fused_linear_loss(hidden[:, :-1], model.lm_head.weight, labels[:, 1:], loss="maxsup")

    Memory beside the gradients is that of a chunk, a sixteenth of the logits or less. Gradients of hidden states, weight and
    bias are made in the forward, each only if it is required. Ignored rows are left out before the product.

    Args:
        hidden: (..., D), floating; what predicts a label stands at the label's place (shift them for a causal model).
        weight: (V, D), of the same dtype: a language model's `lm_head.weight`. A DTensor is gathered.
        labels: (...) integer class indices.
        bias: (V,) or `None`; a class whose bias is −inf is masked.
        loss: registered name, or a sum of names, of a loss on row statistics.
        progress: share of training that is done, in [0, 1]; sets scheduled parameters.
        num_items_in_batch: what to divide the sum by, instead of the number of counted rows.
        reduction: `"mean"` or `"sum"`.
        ignore_index: label of ignored rows. Default −100.
        logit_softcap: c of c·tanh(logits/c) (`final_logit_softcapping` of Gemma), or `None`.
        logit_scale: what logits are multiplied by before that (`logit_scale` of Cohere, 1/`logits_scaling` of Granite); a
            0-dim tensor may require a gradient.
        **loss_kwargs: parameters of the loss, as for `create_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 hidden states), differentiable once. All rows ignored: 0, with gradients of
        zeros. Under autocast products are in its dtype, as those of a linear layer; all else is float32.

    Raises:
        ValueError: an unknown loss, or one that needs the logits; shapes or labels that do not fit; another
            reduction; a `logit_softcap` that is not positive.
        TypeError: dtypes that do not fit.
        RuntimeError: (from backward) a second derivative, or a second backward.
    """
    made = create_loss(loss, **loss_kwargs)
    if isinstance(logit_scale, Tensor) and logit_scale.requires_grad:  # a gradient finds its way through hidden and bias
        hidden, bias, logit_scale = hidden * logit_scale, None if bias is None else bias * logit_scale, None
    if logit_softcap is not None and not logit_softcap > 0:
        raise ValueError(f"logit_softcap must be greater than 0, or None for no cap, got {logit_softcap!r}")
    head = Head(weight, bias, 1.0 if logit_scale is None else float(logit_scale), logit_softcap)
    return fused_output(
        made, made.values(progress), hidden, labels, head,
        num_items_in_batch=num_items_in_batch, reduction=reduction, ignore_index=ignore_index,
    ).loss  # fmt: skip


def fused_output(
    loss: Loss,
    values: Mapping[str, Any],
    hidden: Tensor,
    labels: Tensor,
    head: Head,
    *,
    num_items_in_batch: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> LossOutput:
    """As `fused_linear_loss`, for a loss that is made, with its parameters' values; also the cross-entropy, and the penalty
    of each loss of a sum."""
    check_serves(loss)
    head = head._replace(weight=gathered(head.weight), bias=gathered(head.bias))
    if reduction not in ("mean", "sum") or (num_items_in_batch is not None and reduction == "sum"):
        raise ValueError(
            "reduction must be 'mean' (which num_items_in_batch may divide) or 'sum': a fused loss is summed while it is "
            f"made. Got {reduction!r}" + ("" if num_items_in_batch is None else " with num_items_in_batch")
        )
    _check(hidden, head, labels)
    labels = widened(labels)
    rows, target = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    check_range(target, len(head.weight), ignore_index)
    counted = (target != ignore_index).nonzero().squeeze(1)
    spec = loss.spec
    on_rows = RowLoss(spec.formula, spec.numbers, {**values, **loss.options}, spec.summands(weighted=False))
    total, others = summed_loss(rows, target, counted, head, on_rows, _product_dtype(hidden))
    divisor: Any = 1
    if reduction == "mean":
        divisor = len(counted) if num_items_in_batch is None else num_items_in_batch
    cross_entropy, *penalties = divided(others, divisor).unbind()
    named = dict(zip(on_rows.summands, penalties, strict=True)) if len(spec.parts) > 1 else None
    return LossOutput(divided(total, divisor), cross_entropy, spec.name, named)


def check_serves(loss: Loss) -> None:
    """Refuse a loss that row statistics are not enough for.

    Raises:
        ValueError: names the loss.
    """
    loss.check_row_numbers("fused_linear_loss")


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _check(hidden: Tensor, head: Head, labels: Tensor) -> None:
    weight = head.weight
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating point, got {hidden.dtype}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integer class indices, got {labels.dtype}: a fused loss knows no soft labels")
    if weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight must be (V, {hidden.shape[-1]}) for hidden {tuple(hidden.shape)}, got {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise TypeError(f"hidden and weight must have one dtype, got {hidden.dtype} and {weight.dtype}: cast one of them")
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels must have shape {tuple(hidden.shape[:-1])}, one for each row of hidden, got {tuple(labels.shape)}"
        )
    if head.bias is not None and head.bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(head.bias.shape)}")
