"""The self-test that Triton must pass on each GPU before it is used there: drivers, compilers and GPUs differ."""

from __future__ import annotations

import warnings

import torch

from maxsup_hf.ops import rows_torch
from maxsup_hf.ops.row_stats import SLOPES

TOLERANCE = 1e-4  # relative; float32 sums over a long row differ by less, a miscompiled kernel by far more


def agrees(device: torch.device) -> bool:
    """Whether Triton compiles for this device and agrees with torch operations. If not, a warning gives the reason."""
    try:
        difference = max(_difference(classes, soft, device) for classes in (37, 20_000) for soft in (False, True))
        reason = "" if difference < TOLERANCE else f"its results differ from torch's by {difference:.1e}"
    except Exception as error:  # compilers fail in many ways
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    if reason:
        warnings.warn(
            f"the Triton kernel is not used on {device}: {reason}. Losses are computed in torch operations instead, which "
            "is slower but equally correct. Set MAXSUP_HF_KERNEL=plain to silence this warning",
            stacklevel=2,
        )
    return not reason


def _difference(classes: int, soft: bool, device: torch.device) -> float:
    """The largest relative difference in statistics and gradients; NaN counts as an infinite difference."""
    from maxsup_hf.ops import rows_triton

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, classes, generator=generator)
    logits[:, 1] = -1e4  # masked
    target = logits.softmax(1) if soft else torch.tensor([2, 5, -100])
    slopes = torch.linspace(0.5, 1.5, len(SLOPES)).expand(3, -1)
    logits, target, slopes = logits.to(device), target.to(device), slopes.to(device)
    found = []
    for backend in (rows_triton, rows_torch):
        gradient, again = torch.empty_like(logits), torch.empty_like(logits)
        stats, index = backend.rows_and_grad(logits, target, slopes, gradient, ignore_index=-100, moments=True)
        backend.rows_grad(logits, target, stats, index, slopes, again, ignore_index=-100, moments=True)
        found.append((stats, index, gradient, again))
    differences = [(x - y).abs().max() / y.abs().max() for x, y in zip(*found, strict=True)]
    return float(torch.stack(differences).nan_to_num(torch.inf).max())
