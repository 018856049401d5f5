"""Which kernel computes a loss, and its question in the words of a kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from maxsup_hf import kernels
from maxsup_hf.kernels.gradient import Engine, loss_of_rows
from maxsup_hf.kernels.problem import ALL, Problem, Rows
from maxsup_hf.losses._spec import Formula, LossSpec
from maxsup_hf.ops.autograd import can_be_read, is_plain, linear_loss, statistics
from maxsup_hf.ops.formula import linear_coefficients
from maxsup_hf.ops.row_stats import STATISTICS
from maxsup_hf.reduction import reduce


def choose_engine(kernel: str, spec: LossSpec, logits: Tensor, values: Mapping[str, Any]) -> Engine | None:
    """The kernel on whole losses that serves, or `None` for row statistics (`evaluate`).

    Raises:
        ValueError: an unknown kernel, or one asked for by name that cannot serve.
    """
    if kernel not in kernels.KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, kernels.KERNELS))}, got {kernel!r}")
    wanted = kernels.DEFAULT if kernel == "auto" else kernel
    if wanted == "plain":
        return None
    if wanted == "auto":
        wanted = "cpu" if logits.device.type == "cpu" else "triton"
    obstacle = _obstacle(wanted, spec, logits, values)
    if obstacle and kernel == wanted:
        raise ValueError(f"kernel={kernel!r} cannot compute loss {spec.name!r} here: {obstacle}; use kernel='auto'")
    return None if obstacle or wanted == "cpu" else _triton()


def kernel_is_plain(kernel: str) -> bool:
    """Whether the reference implementation is asked for, by the argument or by the environment."""
    return kernel == "plain" or (kernel == "auto" and kernels.DEFAULT == "plain")


def _obstacle(kernel: str, spec: LossSpec, logits: Tensor, values: Mapping[str, Any]) -> str | None:
    if torch.compiler.is_compiling():
        return "it runs in eager mode, and torch.compile is tracing"
    if kernel == "triton":
        if obstacle := _no_triton(logits):
            return obstacle
    elif logits.device.type != "cpu" or type(logits) not in (Tensor, nn.Parameter):
        return f"it serves plain tensors on the CPU, got {type(logits).__name__} on {logits.device}"
    if spec.needs_logits:
        return "it serves losses on row numbers, and this one needs the logits themselves"
    if any(isinstance(value, Tensor) and value.requires_grad for value in values.values()):
        return "it has no gradient for the loss's parameters"
    return None


def _no_triton(logits: Tensor) -> str | None:
    if type(logits) not in (Tensor, nn.Parameter):
        return f"it serves plain tensors, got {type(logits).__name__}"
    if logits.device.type != "cuda" and not (logits.device.type == "cpu" and _interpreted()):
        return f"it serves tensors on an NVIDIA GPU, got {logits.device}"
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it serves float32, bfloat16 and float16, got {logits.dtype}"
    if torch.version.hip is not None:
        return "it was not tried on AMD's GPUs"
    if not _has_triton():
        return "it needs the package triton, which comes with torch for CUDA on Linux"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton() -> Engine:
    from maxsup_hf.kernels import cuda  # not everywhere is there a Triton

    return cuda.ENGINE


def as_rows(logits: Tensor) -> Tensor:
    """(..., K) as (N, K), or as (outer, K, inner) where memory holds the classes outside of something else, as in images
    (N, K, H, W); without a copy where the layout allows it."""
    if logits.ndim == 2:
        return logits
    if logits.ndim > 2 and logits.numel() and logits.stride(-1) > logits.stride(-2):
        return logits.movedim(-1, 1).flatten(2)
    return logits.reshape(-1, logits.shape[-1])


def evaluate(
    formula: Formula,
    arguments: tuple[str, ...],
    values: Mapping[str, Any],
    rows: Tensor,
    target: Tensor,
    valid: Tensor | None,
    row_weight: Tensor | None,
    *,
    inputs: Mapping[str, Any],
    summands: Mapping[str, Formula],
    reference: bool,
    ignore_index: int,
    reduction: str,
    num_items_in_batch: Tensor | float | None,
    weight_in_batch: Tensor | float | None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, cross-entropy and the penalties of `summands`, reduced as `maxsup_hf.reduction.reduce` does.

    Args:
        formula, arguments, values: what is computed of each row.
        rows: (N, K) or (outer, K, inner).
        target: (N,) class indices, or class probabilities of the shape of `rows`.
        valid: (N,) bool, `None` if it is known that no row is ignored.
        row_weight: (N,) factor of the target term, or `None`.
        inputs: what the formula may take beside row statistics.
        summands: name -> formula on `arguments` of the penalty: what class weights scale, and what they do not.
        reference: use the reference implementation of row statistics.
    """
    divisor = num_items_in_batch if weight_in_batch is None else weight_in_batch
    if not inputs:  # as numbers: a schedule may have filled its tensors anew when the backward comes
        values = {name: _as_number(value) for name, value in values.items()}
    if not (reference or inputs or summands or reduction == "none"):
        found = _at_once(
            formula, arguments, values, rows, target, valid, row_weight, ignore_index,
            reduction, num_items_in_batch, divisor,
        )  # fmt: skip
        if found is not None:
            return *found, {}
    names = tuple(dict.fromkeys(("cross_entropy", *(name for name in arguments if name in STATISTICS))))
    stats = statistics(rows, target, names, ignore_index=ignore_index, reference=reference)
    entropy = stats["cross_entropy"]
    if valid is None:
        valid = torch.ones_like(entropy, dtype=torch.bool)
    elif target.is_floating_point():  # the operation ignores rows by their class index only
        stats = {name: torch.where(valid, value, 0) for name, value in stats.items()}
        entropy = stats["cross_entropy"]
    have = {**inputs, **stats}
    given = [have[name] for name in arguments]
    target_term, penalty = formula(*given, **values)
    loss = reduce(target_term, valid, reduction, divisor, row_weight) + reduce(penalty, valid, reduction, num_items_in_batch)
    penalties = {}
    with torch.no_grad():
        for name, of_summand in summands.items():
            weighted, unweighted = of_summand(*given, **values)
            penalties[name] = reduce(weighted, valid, reduction, divisor, row_weight) + reduce(
                unweighted, valid, reduction, num_items_in_batch
            )
    return loss, reduce(entropy.detach(), valid, reduction, divisor, row_weight), penalties


def _as_number(value: Any) -> Any:
    readable = isinstance(value, Tensor) and value.device.type == "cpu" and not value.requires_grad and can_be_read(value)
    return value.item() if readable else value


def _at_once(
    formula: Formula,
    arguments: tuple[str, ...],
    values: Mapping[str, Any],
    rows: Tensor,
    target: Tensor,
    valid: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    items: Tensor | float | None,
    divisor: Tensor | float | None,
) -> tuple[Tensor, Tensor] | None:
    """Loss and cross-entropy with the gradient made in the same pass, for a formula that is linear in the statistics and
    plain tensors on a CPU; `None` for others. Not in float16, in which α/(K·N) is 0 before a
    gradient scaler has scaled it."""
    if not (rows.requires_grad and torch.is_grad_enabled() and rows.device.type == "cpu" and is_plain(rows, target)):
        return None
    if rows.dtype == torch.float16 or target.requires_grad or (target.is_floating_point() and valid is not None):
        return None
    if any(isinstance(value, Tensor) and value.requires_grad for value in (items, divisor, row_weight, *values.values())):
        return None
    terms = linear_coefficients(formula, arguments, values)
    if terms is None:
        return None
    of_term, of_penalty = 1.0, 1.0
    if reduction == "mean":
        if items is None:
            items = (target.shape[0] if rows.ndim == 2 else rows[:, 0].numel()) if valid is None else valid.sum()
        of_penalty = _one_over(float(items))
        of_term = of_penalty
        if divisor is not None:
            of_term = _one_over(float(divisor))
        elif row_weight is not None:
            of_term = _one_over(float((row_weight if valid is None else torch.where(valid, row_weight, 0)).sum()))
    term, penalty = ([found.get(name, 0.0) for name in STATISTICS[:7]] for found in terms)
    if row_weight is None:
        slopes = tuple(a * of_term + b * of_penalty for a, b in zip(term, penalty, strict=True))
        return linear_loss(rows, target, slopes, of_term, ignore_index=ignore_index)
    by_entropy = row_weight * of_term
    of_rows, of_all = (row_weight.new_tensor(found) for found in (term, penalty))
    return linear_loss(
        rows, target, by_entropy[:, None] * of_rows + of_all * of_penalty, by_entropy, ignore_index=ignore_index
    )


def by_engine(
    engine: Engine,
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
    weight_in_batch: Tensor | float | None,
) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy, reduced as `maxsup_hf.reduction.reduce` does.

    Args:
        engine: see `choose_engine`.
        formula, numbers, values: see `maxsup_hf.kernels.problem.Problem`.
        logits: (..., K).
        target: (...) class indices, any valid one in ignored rows, or (..., K) probabilities.
        valid: (...) bool, `None` if no row is ignored.
        row_weight: (...) factor of the target term, float32 or for float64 logits float64, or `None`.
        reduction, num_items_in_batch, weight_in_batch: see `maxsup_hf.losses.Loss.compute`.
    """
    rows = ALL
    count: Any = logits.shape[:-1].numel()
    if valid is not None:
        rows, count = Rows(valid), engine.factor(valid.sum())
    items = count
    if row_weight is not None:
        rows = rows._replace(label_weight=row_weight)
        if weight_in_batch is None and num_items_in_batch is None:
            items = engine.factor((row_weight if valid is None else torch.where(valid, row_weight, 0)).sum())
    if num_items_in_batch is not None:
        items = count = _number(engine, num_items_in_batch)
    if weight_in_batch is not None:
        items = _number(engine, weight_in_batch)
    of_label, of_penalty = (_one_over(items), _one_over(count)) if reduction == "mean" else (1.0, 1.0)
    problem = Problem(formula, numbers, values, of_label, of_penalty, reduction == "none")
    return loss_of_rows(engine, logits, target, problem, rows)


def _number(engine: Engine, given: Tensor | float) -> Any:
    return engine.factor(given) if isinstance(given, Tensor) else given


def _one_over(count: Any) -> Any:
    return 1 / (torch.where(count == 0, 1, count) if isinstance(count, Tensor) else count or 1)
