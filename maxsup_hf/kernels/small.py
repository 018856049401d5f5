"""Batches so small that calling an operation costs more than its arithmetic: NumPy's calls cost a third of torch's.

For plain batches only: hard labels that all count alike, no masked class, a formula linear in its row numbers. Others are
left to `maxsup_hf.kernels.cpu`, whose blocks compute the same in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 8192  # logits; from there on torch's arithmetic is the faster by as much as its calls are slower
NUMBERS = {"cross_entropy", "lse", "top", "mean", "label", "classes"}  # of which "classes" is K, and has no factor


def serves(logits: Tensor, target: Tensor, names: Iterable[str]) -> bool:
    """Whether `sums` can compute it: few (N, K) logits in one piece, float32 or float64, and class indices."""
    return (
        0 < logits.numel() <= MOST
        and logits.ndim == 2
        and logits.dtype in (torch.float32, torch.float64)
        and logits.is_contiguous()
        and target.dtype == torch.int64
        and NUMBERS.issuperset(names)
    )


@lru_cache(maxsize=64)
def _starts(rows: int, classes: int) -> NDArray[np.int64]:
    return np.arange(0, rows * classes, classes)


def sums(
    logits: Tensor, target: Tensor, by: Mapping[str, float], grad: Tensor | None, limit: float
) -> dict[str, float] | None:
    """Sums over the rows of the numbers in `by`, and the gradient of Σ by·number.

    Args:
        logits: (N, K).
        target: (N,) class indices in [0, K).
        by: number -> its factor; with `"cross_entropy"`.
        grad: (N, K) for the gradient, may be the logits themselves, or `None`.
        limit: of the sum of top − mean, from which on a class may be masked, or a logit is not finite.

    Returns:
        Number -> its sum; `None`, and nothing is written, beyond the limit.
    """
    z = logits.detach().numpy()
    n, classes = z.shape
    flat, starts = z.reshape(-1), _starts(n, classes)
    best = z.argmax(1)
    best += starts
    top = flat[best]
    with np.errstate(all="ignore"):
        mean = np.add.reduce(z, 1)
        mean /= classes
        if not float(np.add.reduce(top - mean)) < limit:
            return None
    at = target.numpy() + starts
    label = flat[at]
    g = np.empty_like(z) if grad is None else grad.detach().numpy()
    np.subtract(z, top[:, None], out=g)
    np.exp(g, out=g)
    scale = np.add.reduce(g, 1)
    log_scale = np.log(scale)
    found = {"cross_entropy": float(np.add.reduce(log_scale - (label - top)))}
    if grad is not None:
        np.divide(by["cross_entropy"] + by.get("lse", 0.0), scale, out=scale)
        g *= scale[:, None]
        if "mean" in by:
            g += by["mean"] / classes
        out = g.reshape(-1)
        out[at] += by.get("label", 0.0) - by["cross_entropy"]
        if "top" in by:
            out[best] += by["top"]
    for name, values in (("lse", log_scale + top), ("top", top), ("mean", mean), ("label", label)):
        if name in by:
            found[name] = float(np.add.reduce(values))
    return found
