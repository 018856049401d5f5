"""Cuts a batch of logits into blocks that fit in the cache, without copying anything."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from maxsup_hf.kernels.problem import ALL, Rows

BLOCK = 2**18  # numbers in a block for each thread: 1 MiB of float32, so that logits and gradient stay in a level-2 cache

Block = tuple[Tensor, Tensor, Rows, Tensor | None]


def cut(logits: Tensor, target: Tensor, rows: Rows, grad: Tensor | None) -> Iterator[Block]:
    """Blocks in the order of rows.

    Args:
        logits: (..., K), in any layout.
        target: (...) class indices or (..., K) probabilities.
        rows: of the shape (...).
        grad: (..., K) to be written to, or `None`.

    Yields:
        Views of logits, target, rows and grad, with the classes in dimension 1: (n, K), or (outer, K, inner) where memory
        holds the classes outside of something else, as in images (N, K, H, W). With one number a row there is 1 for K.
    """
    outside = logits.ndim > 1 and logits.stride(-1) > logits.stride(-2)
    z, out = _classes_second(logits, outside), None if grad is None else _classes_second(grad, outside)
    if target.is_floating_point():
        t = _classes_second(target, outside)
    else:
        t = target.reshape(len(z), 1, -1) if outside and z is not None else target.reshape(-1, 1)
    if z is None or t is None or (out is None and grad is not None):  # a slice of something larger
        for k in range(len(logits)):
            part = Rows(*(None if x is None else x[k] for x in rows))
            yield from cut(logits[k], target[k], part, None if grad is None else grad[k])
        return
    if rows is not ALL:
        one = (z.shape[0], 1, *z.shape[2:])
        rows = Rows(*(None if x is None else x.reshape(one) for x in rows))
    if z.numel() <= BLOCK:
        yield z, t, rows, out
        return

    threads = torch.get_num_threads()
    outer, classes = z.shape[:2]
    inner = z.shape[2] if outside else 1
    high, wide = max(1, BLOCK // (classes * inner)) * threads, inner
    if classes * inner > BLOCK * threads and outside:
        high, wide = 1, max(64, BLOCK * threads // classes)
    for o in range(0, outer, high):
        for i in range(0, inner, wide):
            at = (slice(o, o + high), slice(None), slice(i, i + wide))[: z.ndim]
            part = rows if rows is ALL else Rows(*(None if x is None else x[at] for x in rows))
            yield z[at], t[at], part, None if out is None else out[at]


def _classes_second(x: Tensor, outside: bool) -> Tensor | None:
    """(..., K) as (n, K) or, if classes lie outside, as (outer, K, inner); `None` where that would be a copy."""
    if x.ndim == 2:
        return x.t()[None] if outside else x
    try:
        if not outside:
            return x.view(x.shape[:-1].numel(), x.shape[-1])
        return x.movedim(-1, 1).view(x.shape[0], x.shape[-1], x.shape[1:-1].numel())
    except RuntimeError:
        return None
