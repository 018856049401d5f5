"""The numbers of a row, and the gradients of formulas on them, computed faster than `maxsup_hf.ops.row_stats` spells out."""

import os

KERNELS = ("auto", "plain", "cpu", "triton")

# What `kernel="auto"` of a loss means: "auto" is the fastest that serves the device.
DEFAULT = os.environ.get("MAXSUP_HF_KERNEL", "auto")
if DEFAULT not in KERNELS:
    raise ValueError(f"MAXSUP_HF_KERNEL must be one of {', '.join(KERNELS)}, got {DEFAULT!r}")
