"""The statistics of a row of logits, from which every loss is computed: the reference implementation in plain torch.

For a row `z` of K logits with target `t` (one-hot for a class index) and `mass = Σ t_k` (1 for a class index):

=================  =======================================  ===================================
statistic          value                                    gradient with respect to `z_k`
=================  =======================================  ===================================
`cross_entropy`    `mass·lse − label = −Σ t_k log q_k`      `mass·q_k − t_k`
`lse`              `log Σ exp z_k`                          `q_k = softmax(z)_k`
`top`              `max_k z_k`                              1 at the first maximum, else 0
`mean`             `(1/K) Σ z_k`                            `1/K`
`label`            `Σ t_k z_k`                              `t_k`
`square`           `Σ z_k²`                                 `2 z_k`
`expected`         `Σ q_k z_k`                              `q_k (1 + z_k − expected)`
`entropy`          `lse − expected = −Σ q_k log q_k`        `−q_k (z_k − expected)`
`classes`          K, the number of unmasked classes        0
=================  =======================================  ===================================

`cross_entropy` and `entropy` are statistics of their own because computing them as differences would lose precision where
the logits are large. For the same reason backends also return `exp_sum = Σ exp(z_k − top)`, from which `q` is computed, in a
last column.

A class is masked where its logit lies more than `MASK_DISTANCE` below the largest of its row: it is left out of every sum
and of K. This covers −inf, the minimum of every dtype before and after a cast, and the −1e4 to −1e30 that models mask with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SLOPES = ("cross_entropy", "lse", "top", "mean", "label", "square", "expected", "entropy")  # the ones with a gradient
MOMENTS = frozenset(SLOPES[5:])  # more expensive than the others, so computed only where needed
STATISTICS = (*SLOPES, "classes")
COLUMNS = (*STATISTICS, "exp_sum")  # of the table that a backend returns
MASK_DISTANCE = 4096.0


def row_stats(
    logits: Tensor, target: Tensor, names: Sequence[str] = STATISTICS, *, ignore_index: int | None = None
) -> dict[str, Tensor]:
    """Compute the statistics of each row in ordinary torch operations.

    They can be differentiated any number of times, also with respect to a soft target.

    Args:
        logits: (N, K), any floating dtype.
        target: (N,) int64 class indices, or (N, K) class probabilities.
        names: which of `COLUMNS` to return.
        ignore_index: class index of ignored rows, whose statistics and gradients are 0; `None` ignores no row.

    Returns:
        name -> (N,) float32, or float64 for float64 logits.
    """
    z, soft = upcast(logits), target.is_floating_point()
    valid = None
    if ignore_index is not None and not soft:
        valid = target != ignore_index
        z, target = torch.where(valid[:, None], z, 0), torch.where(valid, target, 0)
    masked = masked_classes(z)
    # A masked logit may be −inf, and 0 · −inf is NaN in values and gradients: replace it before any arithmetic.
    finite = torch.where(masked, 0, z)
    classes = (~masked).sum(-1).to(z.dtype)
    # argmax picks the first maximum; `amax` would split the gradient among ties.
    top = z.gather(-1, z.argmax(-1, keepdim=True))
    # The maximum cancels out of everything computed from `shifted`, so no gradient needs to pass through it.
    shifted = z - top.detach()
    exp_sum = torch.where(masked, 0, shifted.exp()).sum(-1)
    log_sum = exp_sum.log()
    if soft:
        t = target.to(z.dtype)
        absent = masked & (t == 0)  # 0 · −inf would be NaN
        label = (t * torch.where(absent, 0, z)).sum(-1)
        shifted_label = (t * torch.where(absent, 0, shifted)).sum(-1)
        mass = t.sum(-1)
    else:
        label = z.gather(-1, target[:, None]).squeeze(-1)
        shifted_label = shifted.gather(-1, target[:, None]).squeeze(-1)
        mass = torch.ones_like(label)
    q = torch.where(masked, 0, torch.exp(shifted - log_sum[:, None]))
    log_q = torch.where(masked, 0, shifted - log_sum[:, None])
    values = {
        "cross_entropy": mass * log_sum - shifted_label,
        "lse": log_sum + top.detach().squeeze(-1),
        "top": top.squeeze(-1),
        "mean": finite.sum(-1) / classes.clamp_min(1),
        "label": label,
        "square": finite.square().sum(-1),
        "expected": (q * finite).sum(-1),
        "entropy": -(q * log_q).sum(-1),
        "classes": classes,
        "exp_sum": exp_sum,
    }
    if valid is not None:
        values = {name: torch.where(valid, value, 0) for name, value in values.items()}
    return {name: values[name] for name in names}


def upcast(logits: Tensor) -> Tensor:
    """The logits in the precision of all arithmetic: float32, or float64 for float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def masked_classes(logits: Tensor) -> Tensor:
    """Which classes (in the last dimension) are masked, as a bool tensor of the shape of the logits."""
    z = upcast(logits)
    return z < z.amax(-1, keepdim=True) - MASK_DISTANCE


def empty_stats(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised memory for what a backend returns: the statistics (N, 10), and the index (N,) of the top."""
    rows, dtype = row_count(logits), torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((rows, len(COLUMNS)), dtype=dtype), logits.new_empty((rows,), dtype=torch.int64)


def row_count(x: Tensor) -> int:
    """The number of rows of logits (N, K) or (outer, K, inner)."""
    return x.shape[0] if x.ndim == 2 else x.shape[0] * x.shape[2]


def as_rows(x: Tensor) -> Tensor:
    """Logits or probabilities (N, K) or (outer, K, inner) as (N, K), with rows in outer-major order."""
    return x if x.ndim == 2 else x.movedim(1, -1).reshape(-1, x.shape[1])
