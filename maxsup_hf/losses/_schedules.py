"""Schedules of loss parameters: pure functions of the progress of training in [0, 1], without counters.

A schedule maps progress to the fraction of the way from a parameter's start to its end. The paper's schedule is `linear`
(α_t = 0.1 + 0.1·t/T, arXiv 2502.15798 Sec. 4). The authors' scripts change α once per epoch, in two ways: `epoch/T`
(ImageNet) never reaches the end, `epoch/(T-1)` (CIFAR, long-tailed) reaches it in the last epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float, int | None, float | None], float]  # (progress, epochs, warmup_ratio) -> fraction


def constant(progress: float, epochs: int | None = None, warmup_ratio: float | None = None) -> float:
    """Always the start."""
    return 0.0


def linear(progress: float, epochs: int | None = None, warmup_ratio: float | None = None) -> float:
    """The fraction is the progress itself."""
    return progress


def cosine(progress: float, epochs: int | None = None, warmup_ratio: float | None = None) -> float:
    """Half a cosine: slow at both ends, (1 − cos π·progress) / 2."""
    return (1 - math.cos(math.pi * progress)) / 2


def warmup(progress: float, epochs: int | None = None, warmup_ratio: float | None = None) -> float:
    """Linear until `warmup_ratio` of training is done, then constant at the end value.

    Raises:
        ValueError: `warmup_ratio` is not in (0, 1].
    """
    if warmup_ratio is None or not 0 < warmup_ratio <= 1:
        raise ValueError(f"warmup_ratio must be in (0, 1] for schedule='warmup', got {warmup_ratio!r}")
    return 1.0 if progress >= warmup_ratio else progress / warmup_ratio


def staircase(progress: float, epochs: int | None, denominator: int) -> float:
    """Constant within an epoch: the epoch's index, counted from 0, over `denominator`, at most 1.

    Raises:
        ValueError: `epochs` is missing: without it, progress does not determine the epoch.
    """
    if epochs is None or epochs < 1:
        raise ValueError(f"epochs must be a whole number of at least 1 for an epoch-wise schedule, got {epochs!r}")
    # progress is a quotient of step counts, so progress·epochs can be a rounding error below an integer
    epoch = int(progress * epochs + 1e-9 * epochs)
    return min(1.0, epoch / denominator)


def epoch_over_total(progress: float, epochs: int | None, warmup_ratio: float | None = None) -> float:
    """e/T for T epochs."""
    return staircase(progress, epochs, epochs or 0)


def epoch_over_last(progress: float, epochs: int | None, warmup_ratio: float | None = None) -> float:
    """e/max(1, T−1) for T epochs: the start throughout when there is one epoch."""
    return staircase(progress, epochs, max(1, (epochs or 0) - 1))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "warmup": warmup,
    "epoch": epoch_over_total,
    "epoch/T": epoch_over_total,
    "epoch/(T-1)": epoch_over_last,
}


def interpolate(start: float, end: float | None, fraction: float) -> float:
    """The value that lies a fraction of the way from `start` to `end`; `end=None` means constant."""
    return start if end is None else start + (end - start) * fraction
