"""Choosing the backend that computes the row operation.

Every backend is a module with the functions `rows`, `rows_grad` and `rows_and_grad`, documented in
`maxsup_hf.ops.rows_numba`.
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

# What `kernel="auto"` of a loss stands for; "auto" itself is the fastest backend for the device.
DEFAULT = os.environ.get("MAXSUP_HF_KERNEL", "auto")
if DEFAULT not in KERNELS:
    raise ValueError(f"MAXSUP_HF_KERNEL must be one of {', '.join(KERNELS)}, got {DEFAULT!r}")

# Found once, because torch.compile cannot trace the search.
HAS_TRITON = find_spec("triton") is not None


def choose(kernel: str, logits: Tensor) -> str:
    """Choose a backend for these logits.

    Args:
        kernel: one of `KERNELS`.

    Returns:
        `"reference"`, or the name of a backend for `resolve`.

    Raises:
        ValueError: an unknown kernel, or one requested by name that does not support these logits.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, got {kernel!r}")
    wanted = DEFAULT if kernel == "auto" else kernel
    if wanted == "plain":
        return "reference"
    if wanted == "auto":
        wanted = {"cpu": "cpu", "cuda": "triton"}.get(logits.device.type, "torch")
    obstacle = None
    if wanted == "cpu":
        obstacle = _why_not_cpu(logits)
    elif wanted == "triton":
        obstacle = _why_not_triton(logits)
    if obstacle is None:
        return wanted
    if kernel == wanted:  # requested for this call: do not silently compute it in another way
        raise ValueError(f"kernel={kernel!r} cannot compute a loss here: {obstacle}; use kernel='auto'")
    return "torch"


def _why_not_cpu(logits: Tensor) -> str | None:
    """Why the CPU backend does not support these logits, or `None` if it does."""
    return None if logits.device.type == "cpu" else f"it supports only tensors on the CPU, got {logits.device}"


def _why_not_triton(logits: Tensor) -> str | None:
    """Why the Triton backend does not support these logits, or `None` if it does."""
    interpreted = logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if logits.device.type != "cuda" and not interpreted:
        return f"it supports only tensors on an NVIDIA GPU, got {logits.device}"
    if logits.dtype == torch.float64:
        return "it supports float32, bfloat16 and float16, got torch.float64"
    if torch.version.hip is not None:
        return "it has not been tested on AMD GPUs"
    return None if HAS_TRITON else "it needs the package triton, which is installed with torch for CUDA on Linux"


def resolve(name: str, logits: Tensor) -> Any:
    """The module of a backend, or `rows_torch` if numba cannot be imported or Triton does not pass its self-test."""
    if name == "cpu" and logits.device.type == "cpu" and has_numba():
        return rows_numba
    if name == "triton" and _triton_agrees(logits.device):
        from maxsup_hf.ops import rows_triton  # imported late: Triton is not installed everywhere

        return rows_triton
    return rows_torch


def fastest(logits: Tensor) -> Any:
    """The module of the default backend for these logits."""
    return resolve(choose("auto", logits), logits)


@cache
def has_numba() -> bool:
    """Whether numba can be imported. Cached, because a failing import is as slow every time."""
    return rows_numba.why_unavailable() is None


_agreed: dict[torch.device, bool] = {}


def _triton_agrees(device: torch.device) -> bool:
    if device not in _agreed:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # the self-test synchronises with the GPU, which is not allowed during a capture
        _agreed[device] = agrees(device)
    return _agreed[device]
