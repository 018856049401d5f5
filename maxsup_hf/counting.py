"""How many items each cross-entropy of a forward counts, and what share of the whole accumulated batch they are.

A head divides a cross-entropy by the labels that it counts in its own micro-batch. For gradients that do not depend on how
a batch is cut, the divisor must be the count over all micro-batches and ranks, N. So each cross-entropy, a mean over its
own n items, is multiplied by its share n·M·R/N: averaged over M micro-batches (by the Trainer) and R ranks (by DDP), that
is the sum over all items divided by N.

A head may hold several cross-entropies on several labels (start and end of an answer, tokens and the next sentence), so
shares are kept by label tensor and looked up by the number of labels that arrive. A head that counts by a rule unknown here
still gets the mean over micro-batches weighted by their labels; its scale cannot be off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100
POSITIONS = ("start_positions", "end_positions")
TARGETS = (*POSITIONS, "target_values")  # names of class labels without "label"; the last is PatchTST's and PatchTSMixer's


class LabelCount(NamedTuple):
    """What one label tensor holds.

    Attributes:
        rows: its number of labels.
        shifted_rows: the same without the first label of each sequence, which a causal head never predicts.
        counted: (2,) float32, how many of either are not ignored.
    """

    rows: int
    shifted_rows: int
    counted: Tensor


def count_labels(inputs: Mapping[str, Any], ignore_index: int = IGNORE_INDEX) -> dict[str, LabelCount]:
    """Count every tensor of class labels in a batch.

    Args:
        inputs: keyword arguments of a model's forward; `soft_labels` (..., K) count as `labels`, one for each row.
        ignore_index: the label that the head ignores.

    Returns:
        Name of the argument -> its count, in the order of `inputs`.
    """
    counts = {}
    for name, labels in inputs.items():
        if not isinstance(labels, Tensor) or not ("label" in name or name in TARGETS):
            continue
        if name == "soft_labels" or (name == "labels" and labels.is_floating_point()):
            rows = labels.shape[:-1].numel()
            counts["labels"] = LabelCount(rows, rows, torch.full((2,), float(rows), device=labels.device))
        elif not labels.is_floating_point() and "soft_labels" not in inputs:
            valid = _inside(labels, inputs) if name in POSITIONS else labels != ignore_index
            shifted = valid[..., 1:] if labels.ndim > 1 else valid
            counts[name] = LabelCount(labels.numel(), shifted.numel(), torch.stack([valid.sum(), shifted.sum()]).float())
    return counts


def _inside(positions: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Question answering ignores answers behind the end of the sequence (and takes those before it for position 0)."""
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return positions < sequence.shape[1] if isinstance(sequence, Tensor) else torch.ones_like(positions, dtype=torch.bool)


class Shares:
    """The shares of one micro-batch, looked up by the cross-entropies of its forward, in their order."""

    def __init__(self, counts: Mapping[str, LabelCount], totals: Mapping[str, Tensor], shifts: bool):
        """
        Args:
            counts: of this micro-batch.
            totals: name -> (2,) counts of the accumulated batch, divided by micro-batches and ranks.
            shifts: whether the head predicts the next label, so that the first of each sequence does not count.
        """
        self.entries = [
            (count.rows, count.shifted_rows, torch.where(totals[name] > 0, count.counted / totals[name], 0))
            for name, count in counts.items()
            if name in totals
        ]
        self.shifts = shifts
        self.seen: list[int] = []

    def take(self, rows: int) -> Tensor | float:
        """The share of a cross-entropy over so many labels: of the first label tensor of that size that was not taken yet,
        else of the first one; 1, its own mean, where there are no labels to go by."""
        if not self.entries:
            return 1.0
        fitting = [entry for entry in self.entries if rows in (entry[0], entry[1])] or self.entries[:1]
        _, shifted_rows, share = fitting[min(self.seen.count(rows), len(fitting) - 1)]
        self.seen.append(rows)
        return share[1] if self.shifts or rows == shifted_rows else share[0]
