"""Batches so small that calling an operation costs more than its arithmetic: NumPy's calls cost a third of torch's.

For plain batches only: hard labels that all count alike, and no masked class. Others are left to the blocks of
`maxsup_hf.kernels.cpu`, which compute the same in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 8192  # logits; from there on torch's arithmetic is the faster by as much as its calls are slower

Numbers = dict[str, NDArray[Any]]


def serves(logits: Tensor, target: Tensor) -> bool:
    """Whether `walk` can compute it: few (N, K) logits in one piece, float32 or float64, and class indices."""
    return (
        0 < logits.numel() <= MOST
        and logits.ndim == 2
        and logits.dtype in (torch.float32, torch.float64)
        and logits.is_contiguous()
        and target.dtype == torch.int64
    )


@lru_cache(maxsize=64)
def _starts(rows: int, classes: int) -> NDArray[np.int64]:
    return np.arange(0, rows * classes, classes)


@np.errstate(all="ignore")
def walk(
    logits: Tensor,
    target: Tensor,
    names: Collection[str],
    factors: Callable[[Numbers], Mapping[str, Any]],
    grad: Tensor | None,
    limit: float,
) -> Numbers | None:
    """Row numbers, and a gradient made of them.

    Args:
        logits: (N, K).
        target: (N,) class indices in [0, K).
        names: numbers to compute.
        factors: numbers -> what the gradient of each is multiplied by, a float or (N,); with `"cross_entropy"`. Called once.
        grad: (N, K) for the gradient, may be the logits themselves, or `None`.
        limit: of the sum of top − mean, from which on a class may be masked, or a logit is not finite.

    Returns:
        Name -> (N,), those of `names` and others; `None`, and nothing is written, beyond the limit.
    """
    z = logits.detach().numpy()
    n, classes = z.shape
    flat, starts = z.reshape(-1), _starts(n, classes)
    best = z.argmax(1)
    best += starts
    top = flat[best]
    mean = np.add.reduce(z, 1)
    mean /= classes
    if not float(np.add.reduce(top - mean)) < limit:
        return None
    at = target.numpy() + starts
    label = flat[at]
    g = np.empty_like(z) if grad is None else grad.detach().numpy()
    keeps_z = "square" in names or "expected" in names
    if keeps_z and grad is logits:
        z = z.copy()
    np.subtract(z, top[:, None], out=g)
    np.exp(g, out=g)
    scale = np.add.reduce(g, 1)
    log_scale = np.log(scale)
    found = {"cross_entropy": log_scale - (label - top), "lse": log_scale + top, "top": top, "mean": mean, "label": label}
    if "square" in names:
        found["square"] = np.add.reduce(z * z, 1)
    if "expected" in names:
        found["expected"] = np.add.reduce(g * z, 1) / scale
    if "classes" in names:
        found["classes"] = np.full_like(top, classes)
    by = factors(found)
    if grad is None:
        return found
    of_label = by["cross_entropy"]
    by_softmax = of_label + by["lse"] if "lse" in by else of_label
    if "expected" in by:
        g *= _column(by_softmax) + _column(by["expected"]) * (1 + z - found["expected"][:, None])
        g /= scale[:, None]
    else:
        np.divide(by_softmax, scale, out=scale)
        g *= scale[:, None]
    if "mean" in by:
        g += _column(by["mean"] / classes)
    if "square" in by:
        g += _column(2 * by["square"]) * z
    out = g.reshape(-1)
    out[at] += by["label"] - of_label if "label" in by else -of_label
    if "top" in by:
        out[best] += by["top"]
    return found


def _column(factor: Any) -> Any:
    return factor[:, None] if isinstance(factor, np.ndarray) else factor
