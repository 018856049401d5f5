"""Which kernel computes a loss, and its question in the words of a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maxsup_hf import kernels
from maxsup_hf.kernels.cpu import cpu_loss
from maxsup_hf.kernels.formula import Formula
from maxsup_hf.kernels.problem import ALL, Problem, Rows
from maxsup_hf.losses._registry import LossSpec
from maxsup_hf.reduction import check_reduction


def takes_cpu_kernel(
    kernel: str, spec: LossSpec, logits: Tensor, labels: Tensor, values: Mapping[str, Any], weight: Tensor | None
) -> bool:
    """Whether the CPU kernel serves.

    Raises:
        ValueError: an unknown kernel, or `kernel="cpu"` where it cannot serve.
    """
    if kernel not in kernels.KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, kernels.KERNELS))}, got {kernel!r}")
    if (kernels.DEFAULT if kernel == "auto" else kernel) == "plain":
        return False
    obstacle = _obstacle(spec, logits, labels, values, weight)
    if obstacle and kernel == "cpu":
        raise ValueError(f"kernel='cpu' cannot compute loss {spec.name!r} here: {obstacle}; use kernel='auto'")
    return not obstacle


def _obstacle(
    spec: LossSpec, logits: Tensor, labels: Tensor, values: Mapping[str, Any], weight: Tensor | None
) -> str | None:
    if torch.compiler.is_compiling():
        return "it runs in eager mode, and torch.compile is tracing"
    if logits.device.type != "cpu" or type(logits) not in (Tensor, nn.Parameter):
        return f"it serves plain tensors on the CPU, got {type(logits).__name__} on {logits.device}"
    if spec.needs_logits:
        return "it serves losses on row numbers, and this one needs the logits themselves"
    if weight is not None and labels.is_floating_point():
        return "it does not serve class weights under soft labels"
    if any(isinstance(value, Tensor) and value.requires_grad for value in values.values()):
        return "it has no gradient for the loss's parameters"
    return None


def by_cpu_kernel(
    formula: Formula,
    numbers: tuple[str, ...],
    values: Mapping[str, Any],
    logits: Tensor,
    target: Tensor,
    valid: Tensor | None,
    row_weight: Tensor | None,
    *,
    reduction: str,
    num_items_in_batch: Tensor | float | None,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy, reduced as `maxsup_hf.reduction.reduce` does.

    Args:
        formula, numbers, values, inplace: see `maxsup_hf.kernels.problem.Problem`.
        logits: (..., K).
        target: (...) class indices, any valid one in ignored rows, or (..., K) probabilities.
        valid: (...) bool, `None` if no row is ignored.
        row_weight: (...) factor of the term on the label, or `None`.
        reduction, num_items_in_batch: see there.
    """
    check_reduction(reduction, num_items_in_batch)
    rows, count = ALL, float(logits.shape[:-1].numel())
    if valid is not None:
        rows, count = Rows(valid), valid.sum().item()
    items = count
    if row_weight is not None:
        row_weight = row_weight.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        rows = rows._replace(label_weight=row_weight)
        items = (row_weight if valid is None else torch.where(valid, row_weight, 0)).sum().item()
    if num_items_in_batch is not None:
        items = count = float(num_items_in_batch)
    scales = (1 / (items or 1), 1 / (count or 1)) if reduction == "mean" else (1.0, 1.0)
    return cpu_loss(logits, target, Problem(formula, numbers, values, *scales, reduction == "none", inplace), rows)
