"""A registered loss computed from hidden states and the output embedding's weight, without materialising the logits."""

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
    """The loss on logits = hidden·weightᵀ + bias, computed for a chunk of rows at a time without holding all logits.

    Memory besides the gradients is that of a chunk, at most a sixteenth of the logits. The gradients of hidden states,
    weight and bias are computed in the forward, each only if it is required. Ignored rows are dropped before the product.

    Args:
        hidden: (..., D), floating; the hidden state at each position predicts the label at that position, so shift them for
            a causal model: `fused_linear_loss(hidden[:, :-1], model.lm_head.weight, labels[:, 1:])`.
        weight: (V, D), of the same dtype: a language model's `lm_head.weight`. A DTensor is gathered.
        labels: (...) integer class indices.
        bias: (V,) or `None`; a class whose bias is −inf is masked.
        loss: name of a registered loss on row statistics, or a sum of names.
        progress: fraction of training that is done, in [0, 1]; sets scheduled parameters.
        num_items_in_batch: divides the sum, instead of the number of rows that are not ignored.
        reduction: `"mean"` or `"sum"`.
        ignore_index: label of ignored rows. Default −100.
        logit_softcap: c of c·tanh(logits/c) (`final_logit_softcapping` of Gemma), or `None`.
        logit_scale: factor of the logits before the softcap (`logit_scale` of Cohere, 1/`logits_scaling` of Granite); a
            0-dim tensor may require a gradient.
        **loss_kwargs: parameters of the loss, as for `create_loss`.

    Returns:
        0-dim loss, float32 (float64 for float64 hidden states), which can be differentiated once. If all rows are ignored
        it is 0, and so are the gradients. Under autocast the products use its dtype, as those of a linear layer; all other
        arithmetic is float32.

    Raises:
        ValueError: an unknown loss, or one that needs the logits; invalid shapes or labels; another reduction; a
            `logit_softcap` that is not positive.
        TypeError: invalid dtypes.
        RuntimeError: (from backward) a second derivative, or a second backward.

    Example:
        >>> import torch
        >>> from maxsup_hf import fused_linear_loss
        >>> hidden, weight = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.eye(2)
        >>> print(f"{fused_linear_loss(hidden, weight, torch.tensor([0, 1]), loss='maxsup'):.3f}")
        0.281
    """
    made = create_loss(loss, **loss_kwargs)
    if isinstance(logit_scale, Tensor) and logit_scale.requires_grad:
        # scale·(hidden·weightᵀ + bias): applied to hidden and bias, autograd differentiates it.
        hidden = hidden * logit_scale
        bias = None if bias is None else bias * logit_scale
        logit_scale = None
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
    """As `fused_linear_loss`, for a `Loss` and values of its parameters; also returns the cross-entropy, and the penalty of
    each loss of a sum."""
    loss.require_row_statistics("fused_linear_loss")
    head = head._replace(weight=gathered(head.weight), bias=gathered(head.bias))
    if reduction not in ("mean", "sum") or (num_items_in_batch is not None and reduction == "sum"):
        given = "" if num_items_in_batch is None else " with num_items_in_batch"
        raise ValueError(
            "reduction must be 'mean' (with or without num_items_in_batch) or 'sum', because a fused loss is summed over "
            f"chunks, got {reduction!r}{given}"
        )
    _check(hidden, head, labels)
    labels = widened(labels)
    rows, target = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    check_range(target, len(head.weight), ignore_index)
    counted = (target != ignore_index).nonzero().squeeze(1)
    spec = loss.spec
    on_rows = RowLoss(spec.formula, spec.statistics, {**values, **loss.options}, spec.summands(weighted=False))
    total, others = summed_loss(rows, target, counted, head, on_rows, _product_dtype(hidden))
    divisor: Any = 1
    if reduction == "mean":
        divisor = len(counted) if num_items_in_batch is None else num_items_in_batch
    cross_entropy, *penalties = divided(others, divisor).unbind()
    named = dict(zip(on_rows.summands, penalties, strict=True)) if len(spec.parts) > 1 else None
    return LossOutput(divided(total, divisor), cross_entropy, spec.name, named)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that a linear layer would use here."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _check(hidden: Tensor, head: Head, labels: Tensor) -> None:
    weight = head.weight
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating point, got {hidden.dtype}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels must be integer class indices, got {labels.dtype}: a fused loss does not support soft labels"
        )
    if weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight must be (V, {hidden.shape[-1]}) for hidden {tuple(hidden.shape)}, got {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise TypeError(
            f"hidden and weight must have the same dtype, got {hidden.dtype} and {weight.dtype}: cast one of them"
        )
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels must have shape {tuple(hidden.shape[:-1])}, one for each row of hidden, got {tuple(labels.shape)}"
        )
    if head.bias is not None and head.bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(head.bias.shape)}")
