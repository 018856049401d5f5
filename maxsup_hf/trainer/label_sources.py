"""Which label tensor of a batch the target of a cross-entropy was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from maxsup_hf.losses import IGNORE_INDEX


class LabelSource(NamedTuple):
    """The labels that a cross-entropy counts.

    Attributes:
        name: argument of the model's forward that holds them.
        shifted: whether the first label of each sequence is left out, as in causal language modelling.
    """

    name: str
    shifted: bool


def without_first(labels: Tensor) -> Tensor:
    """The labels that remain after a causal shift: all but the first of each sequence."""
    return labels[..., 1:] if labels.ndim > 1 else labels


class LabelSourceFinder:
    """Finds the label source of each cross-entropy of a forward; one object serves one training.

    The source found for a cross-entropy is remembered under its index in the forward, so targets are compared only once.
    Values cannot be compared while torch.compile traces. There, and where a head computes its target in its own way, the
    number of rows decides.
    """

    def __init__(self, shifts: bool):
        """
        Args:
            shifts: whether the model's own loss function shifts labels by one.
        """
        self.shifts = shifts
        self._known: dict[int, LabelSource] = {}

    def find(
        self, index: int, micro_batch: Mapping[str, Tensor], target: Tensor, earlier: Sequence[LabelSource]
    ) -> LabelSource:
        """
        Args:
            index: of the cross-entropy in the forward.
            micro_batch: `class_targets` of this micro-batch, not empty.
            target: (...) integer labels passed to the cross-entropy, −100 where it ignores them; zeros for soft labels.
            earlier: sources of the preceding cross-entropies of this forward.
        """
        known = self._known.get(index)
        if known is not None and known.name in micro_batch:
            return known
        # The start and the end of an answer may be equal, so names without a cross-entropy so far come first.
        taken = {source.name for source in earlier}
        names = sorted(micro_batch, key=lambda name: name in taken)
        if not torch.compiler.is_compiling():
            for name in names:
                source = _match(name, micro_batch[name], target)
                if source is None:
                    continue
                if (target != IGNORE_INDEX).any():  # a target that is ignored entirely matches shifted and unshifted
                    self._known[index] = source
                return source
        return self._find_by_size(names, micro_batch, target.numel())

    def _find_by_size(self, names: Sequence[str], micro_batch: Mapping[str, Tensor], rows: int) -> LabelSource:
        for name in names:
            full, shifted = micro_batch[name].numel(), without_first(micro_batch[name]).numel()
            if rows in (full, shifted):
                return LabelSource(name, self.shifts or rows != full)
        return LabelSource(names[0], self.shifts)


def _match(name: str, labels: Tensor, target: Tensor) -> LabelSource | None:
    """The source if a target was made from this label tensor, else `None`."""
    labels, target = labels.to(target.device), target.reshape(-1)
    if torch.equal(target, labels.reshape(-1)):
        return LabelSource(name, False)
    if labels.ndim < 2:
        return None
    # Heads shift labels in two ways: cutting off the first of each sequence, or also padding the end with an ignored one.
    for shifted in (labels[..., 1:], pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]):
        if torch.equal(target, shifted.reshape(-1)):
            return LabelSource(name, True)
    if labels.ndim == 2 and _is_behind_virtual_tokens(labels, target):
        return LabelSource(name, False)
    return None


def _is_behind_virtual_tokens(labels: Tensor, target: Tensor) -> bool:
    """Whether a shifted target still holds every label, because prompt tuning prepends ignored ones to each sequence."""
    rows, length = labels.shape
    width, rest = divmod(target.numel(), max(1, rows))
    if rest or width < length or int((target != IGNORE_INDEX).sum()) != int((labels != IGNORE_INDEX).sum()):
        return False
    target = target.reshape(rows, width)
    # The labels end where the target ends, or one position earlier if the target is padded.
    offsets = range(width - length, max(-1, width - length - 2), -1)
    return any(torch.equal(target[:, offset : offset + length], labels) for offset in offsets)
