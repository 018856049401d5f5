"""Reducing values of rows to a loss: ignored rows, class weights, and the divisor of the mean."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label of ignored rows, in torch and transformers
REDUCTIONS = ("mean", "sum", "none")


def split_ignored(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Separate valid rows from ignored ones.

    Args:
        target: (N,) integer labels, or (N, K) class probabilities, with which no row is ignored, as in torch.
        ignore_index: the label of ignored rows.

    Returns:
        valid: (N,) bool, False for ignored rows.
        target: the same target, with a valid class index in ignored rows.
    """
    if target.is_floating_point():
        return torch.ones(target.shape[0], dtype=torch.bool, device=target.device), target
    valid = target != ignore_index
    return valid, torch.where(valid, target, 0)


def check_reduction(
    reduction: str, num_items_in_batch: Tensor | float | None, weight_in_batch: Tensor | float | None = None
) -> None:
    """Check the arguments of `reduce`, under their names in `maxsup_hf.losses.Loss.compute`.

    Raises:
        ValueError: an unknown `reduction`, or a divisor with a reduction other than `"mean"`.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    for name, value in (("num_items_in_batch", num_items_in_batch), ("weight_in_batch", weight_in_batch)):
        if value is not None and reduction != "mean":
            raise ValueError(
                f"{name} is the divisor of a mean, so it needs reduction='mean', got {reduction!r}; leave one of them out"
            )


def reduce(
    rows: Tensor,
    valid: Tensor | None,
    reduction: str = "mean",
    num_items_in_batch: Tensor | float | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Reduce the values of rows to the loss.

    Args:
        rows: (N,) values.
        valid: (N,) bool; other rows contribute exactly 0 and get a gradient of exactly 0. `None`: all are valid.
        reduction: `"mean"` divides the sum by `num_items_in_batch` or, without it, by the summed weight of the valid rows;
            `"sum"`; or `"none"`, which returns (N,).
        num_items_in_batch: items in the complete batch over all micro-batches and ranks; only with `"mean"`.
        row_weight: (N,) factor of each row.

    Returns:
        A 0-dim tensor, or (N,) for `"none"`. With no valid row the mean is 0, not NaN.

    Raises:
        ValueError: as `check_reduction`.
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
    """The sum of the weights (N,) of valid rows; all rows if `valid` is `None`."""
    return (row_weight if valid is None else torch.where(valid, row_weight, 0)).sum()


def divided(total: Tensor, divisor: Tensor | float) -> Tensor:
    """total/divisor, or total if the divisor is 0. On a GPU the host does not wait for the value of the divisor."""
    if not isinstance(divisor, Tensor):
        return total / (divisor or 1)
    divisor = divisor.to(total.device, total.dtype)
    return total / torch.where(divisor == 0, 1, divisor)
