"""Soft labels of mixed examples (Mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

PAIRINGS = ("flip", "roll")


def mix_targets(labels: Tensor, num_classes: int, lam: float, *, pairing: str = "flip", smoothing: float = 0.0) -> Tensor:
    """Class probabilities of a batch in which every example is mixed with a partner: λ·target + (1 − λ)·partner's target.

    Args:
        labels: (N,) integer class indices in [0, num_classes).
        num_classes: K.
        lam: λ in [0, 1], the share of an example's own target.
        pairing: `"flip"` mixes example i with N−1−i (timm), `"roll"` with i−1 (torchvision's references).
        smoothing: label smoothing over all K classes, applied to the targets before mixing. Leave it at 0 when the loss
            regularises: both together are two regularisers.

    Returns:
        (N, num_classes) float32, rows summing to 1.

    Raises:
        ValueError: `lam` or `smoothing` outside [0, 1], or an unknown pairing.
    """
    for name, value in (("lam", lam), ("smoothing", smoothing)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(map(repr, PAIRINGS))}, got {pairing!r}")
    own = one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    partner = own.flip(0) if pairing == "flip" else own.roll(1, 0)
    return lam * own + (1 - lam) * partner
