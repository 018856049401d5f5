"""The only place that sums: ignored rows, class weights, and the number of items that a loss is divided by."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label of ignored rows, in torch and transformers
REDUCTIONS = ("mean", "sum", "none")


def split_ignored(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Tell counted rows from ignored ones.

    Args:
        target: (N,) integer labels, or (N, K) class probabilities (of which no row is ignored, as in torch).
        ignore_index: the label of ignored rows.

    Returns:
        valid: (N,) bool, True for rows that count.
        target: the same target, with a harmless class index in ignored rows.
    """
    if target.is_floating_point():
        return torch.ones(target.shape[0], dtype=torch.bool, device=target.device), target
    valid = target != ignore_index
    return valid, torch.where(valid, target, 0)


def check_reduction(
    reduction: str, num_items_in_batch: Tensor | float | None, weight_in_batch: Tensor | float | None = None
) -> None:
    """Raise the errors of `reduce`; the arguments are named as in `maxsup_hf.losses.Loss.compute`."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    for name, value in (("num_items_in_batch", num_items_in_batch), ("weight_in_batch", weight_in_batch)):
        if value is not None and reduction != "mean":
            raise ValueError(f"{name} divides a sum, so it needs reduction='mean', got {reduction!r}; leave one of them out")


def reduce(
    rows: Tensor,
    valid: Tensor | None,
    reduction: str = "mean",
    num_items_in_batch: Tensor | float | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Reduce a value per row to the loss.

    Args:
        rows: (N,) values.
        valid: (N,) bool; other rows contribute exactly 0 and get a gradient of exactly 0. `None`: all are valid.
        reduction: `"mean"` divides by `num_items_in_batch` where given, else by the summed weight of the valid rows;
            `"sum"` adds; `"none"` returns (N,).
        num_items_in_batch: items in the whole accumulated, cross-device batch; only with `"mean"`.
        row_weight: (N,) factor of each row.

    Returns:
        A 0-dim tensor, or (N,) for `"none"`. With no valid row the mean is 0, not NaN.

    Raises:
        ValueError: unknown `reduction`, or `num_items_in_batch` with another reduction than `"mean"`.
    """
    check_reduction(reduction, num_items_in_batch)
    if valid is not None:
        rows = torch.where(valid, rows, 0)
    if row_weight is not None:
        rows = rows * row_weight
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum":
        return total
    divisor = num_items_in_batch
    if divisor is None and row_weight is not None:
        divisor = summed_weight(row_weight, valid)
    elif divisor is None:
        divisor = len(rows) if valid is None else valid.sum()
    return divided(total, divisor)


def summed_weight(row_weight: Tensor, valid: Tensor | None) -> Tensor:
    """Σ of the weights (N,) of the rows that are valid (N,); `None`: of all."""
    return (row_weight if valid is None else torch.where(valid, row_weight, 0)).sum()


def divided(total: Tensor, divisor: Tensor | float) -> Tensor:
    """total/divisor, or the total where there is nothing to divide by. On a GPU nobody waits for the divisor."""
    if not isinstance(divisor, Tensor):
        return total / (divisor or 1)
    divisor = divisor.to(total.device, total.dtype)
    return total / torch.where(divisor == 0, 1, divisor)
