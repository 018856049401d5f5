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
from maxsup_hf.kernels import cpu
from maxsup_hf.kernels.formula import Formula
from maxsup_hf.kernels.gradient import Engine, loss_of_rows
from maxsup_hf.kernels.problem import ALL, Problem, Rows
from maxsup_hf.kernels.traced import traced_stats
from maxsup_hf.logit_stats import NUMBERS, logit_stats
from maxsup_hf.losses._spec import LossSpec
from maxsup_hf.reduction import reduce


def choose_engine(kernel: str, spec: LossSpec, logits: Tensor, values: Mapping[str, Any]) -> Engine | None:
    """The fast kernel that serves, or `None` for the plain path.

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
    return None if obstacle else cpu.ENGINE if wanted == "cpu" else _triton()


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


def plainly(
    formula: Formula,
    arguments: tuple[str, ...],
    values: Mapping[str, Any],
    rows: Tensor,
    target: Tensor,
    valid: Tensor,
    row_weight: Tensor | None,
    *,
    inputs: Mapping[str, Any],
    kernel: str,
    reduction: str,
    num_items_in_batch: Tensor | float | None,
    weight_in_batch: Tensor | float | None,
) -> tuple[Tensor, Tensor]:
    """As `by_engine`, by the reference implementation, for rows (N, K), target (N,) or (N, K), valid and row_weight (N,).

    Args:
        inputs: what the formula may take beside row statistics.
        kernel: as the user gave it.
    """
    stats = traced_stats if kernel != "plain" and torch.compiler.is_compiling() else logit_stats
    names = tuple(dict.fromkeys(("cross_entropy", *(name for name in arguments if name in NUMBERS))))
    # what an ignored row holds must not reach a formula: NaN times a gradient of 0 is NaN
    numbers = {name: torch.where(valid, x, 0) for name, x in stats(rows, target, names).items()}
    have = {**inputs, **numbers}
    target_term, penalty = formula(*(have[name] for name in arguments), **values)
    divisor = num_items_in_batch if weight_in_batch is None else weight_in_batch
    loss = reduce(target_term, valid, reduction, divisor, row_weight) + reduce(penalty, valid, reduction, num_items_in_batch)
    return loss, reduce(numbers["cross_entropy"].detach(), valid, reduction, divisor, row_weight)


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
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and cross-entropy, reduced as `maxsup_hf.reduction.reduce` does.

    Args:
        engine: see `choose_engine`.
        formula, numbers, values, inplace: see `maxsup_hf.kernels.problem.Problem`.
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
    problem = Problem(formula, numbers, values, of_label, of_penalty, reduction == "none", inplace)
    return loss_of_rows(engine, logits, target, problem, rows)


def _number(engine: Engine, given: Tensor | float) -> Any:
    return engine.factor(given) if isinstance(given, Tensor) else given


def _one_over(count: Any) -> Any:
    return 1 / (torch.where(count == 0, 1, count) if isinstance(count, Tensor) else count or 1)
