"""Which backend computes the row operation, and what a user may say about it.

Every backend has `rows`, `rows_grad` and `rows_and_grad`, as `maxsup_hf.ops.rows_numba` describes them.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.ops import rows_numba, rows_torch
from maxsup_hf.ops.self_test import agrees

KERNELS = ("auto", "plain", "cpu", "triton")

# What `kernel="auto"` of a loss means: "auto" is the fastest that serves the device.
DEFAULT = os.environ.get("MAXSUP_HF_KERNEL", "auto")
if DEFAULT not in KERNELS:
    raise ValueError(f"MAXSUP_HF_KERNEL must be one of {', '.join(KERNELS)}, got {DEFAULT!r}")


def choose(kernel: str, logits: Tensor) -> str:
    """`"reference"`, or the name of a backend as `resolve` takes it.

    Args:
        kernel: one of `KERNELS`.

    Raises:
        ValueError: an unknown kernel, or one asked for by name that cannot serve these logits.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, got {kernel!r}")
    wanted = DEFAULT if kernel == "auto" else kernel
    if wanted == "plain":
        return "reference"
    if wanted == "auto":
        wanted = {"cpu": "cpu", "cuda": "triton"}.get(logits.device.type, "torch")
    obstacle = {"cpu": _no_cpu, "triton": _no_triton}[wanted](logits) if wanted in KERNELS else None
    if obstacle and kernel == wanted:
        raise ValueError(f"kernel={kernel!r} cannot compute a loss here: {obstacle}; use kernel='auto'")
    return "torch" if obstacle else wanted


def _no_cpu(logits: Tensor) -> str | None:
    return None if logits.device.type == "cpu" else f"it serves tensors on the CPU, got {logits.device}"


def _no_triton(logits: Tensor) -> str | None:
    if logits.device.type != "cuda" and not (logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"it serves tensors on an NVIDIA GPU, got {logits.device}"
    if logits.dtype == torch.float64:
        return "it serves float32, bfloat16 and float16, got torch.float64"
    if torch.version.hip is not None:
        return "it was not tried on AMD's GPUs"
    return None if _has_triton() else "it needs the package triton, which comes with torch for CUDA on Linux"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def resolve(name: str, logits: Tensor) -> Any:
    """The module of a backend: numba where it can be imported, Triton where it passed its test, else torch operations."""
    if name == "cpu" and has_numba():
        return rows_numba
    if name == "triton" and _triton_agrees(logits.device):
        from maxsup_hf.ops import rows_triton  # not everywhere is there a Triton

        return rows_triton
    return rows_torch


def fastest(logits: Tensor) -> Any:
    """The module of the backend that serves these logits by default."""
    return resolve(choose("auto", logits), logits)


@cache
def has_numba() -> bool:
    """Asked once: a failing import is slow to fail again."""
    return rows_numba.why_unavailable() is None


_agreed: dict[torch.device, bool] = {}


def _triton_agrees(device: torch.device) -> bool:
    if device not in _agreed:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # a test would wait for the GPU, which a capture forbids
        _agreed[device] = agrees(device)
    return _agreed[device]
