"""The time of a loss on other dtypes and layouts, and of losses that are not linear in the row statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.bench.logits import Candidate, Case
from maxsup_hf.bench.timing import interleaved, ratio
from maxsup_hf.losses import Loss, create_loss
from maxsup_hf.output.tables import Table, markdown

NONLINEAR = ("focal", "z_loss", "poly")
IMAGES = 8  # (8, K, N/8) holds the rows of (N, K)


class Images(Case):
    """The rows of a case as logits of images, whose classes are not adjacent in memory."""

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, device: torch.device):
        super().__init__(rows // IMAGES * IMAGES, classes, dtype, device)
        source = self.source.view(IMAGES, -1, classes).movedim(2, 1).contiguous().movedim(1, 2)
        self.logits, self.labels = source.requires_grad_(), self.labels.view(IMAGES, -1)


def measure(loss: Loss, shape: tuple[int, int], device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure one row of the table.

    Args:
        loss: the loss to measure, with its parameters as at the start of training.
        shape: (N, K).
        rounds: how often each candidate is timed.
    """
    plain = Case(*shape, torch.float32, device)
    runs = {"rows": (loss, plain), "bfloat16": (loss, Case(*shape, torch.bfloat16, device))}
    runs |= {"(N, K, …)": (loss, Images(*shape, torch.float32, device))}
    runs |= {name: (create_loss(name), plain) for name in NONLINEAR if name != loss.spec.name}
    seconds = interleaved({name: partial(case.run, _candidate(of, case)) for name, (of, case) in runs.items()}, rounds)
    return {
        "shape": list(shape),
        "milliseconds": {name: 1e3 * median(times) for name, times in seconds.items()},
        "ratios": {name: ratio(times, seconds["rows"]) for name, times in seconds.items() if name != "rows"},
    }


def _candidate(loss: Loss, case: Case) -> Candidate:
    """The loss as a candidate, after checking its value with the reference implementation."""
    values = loss.values(0.0)

    def run(logits: Tensor, labels: Tensor, kernel: str = "auto") -> Tensor:
        return loss.compute(logits, labels, values, kernel=kernel).loss

    found, right = (float(run(case.logits, case.labels, kernel).detach()) for kernel in ("auto", "plain"))
    if not abs(found - right) < 1e-5 * abs(right):
        raise ArithmeticError(f"{loss.spec.name} is wrong: {found:.9g} where {right:.9g} is right")
    return Candidate(run, ours=True)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table of ratios to the loss on float32 rows."""
    columns = list(results[0]["ratios"])
    lines = [["N×K", "ms", *(f"{column} /" for column in columns)]]
    for row in results:
        ratios = [f"{row['ratios'][column]:.2f}" for column in columns]
        lines.append(["×".join(map(str, row["shape"])), f"{row['milliseconds']['rows']:.4g}", *ratios])
    return markdown(Table(lines[0], lines[1:]))
