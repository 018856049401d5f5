"""What a cross-entropy is divided by, so that the gradient does not depend on how a batch is cut.

A head averages its cross-entropy over what it counts in one micro-batch: labels that are not ignored, those behind the first
of each sequence for a causal language model, or, with class weights, the sum of their weights. A mean of such means depends
on the cut. The right divisor is the count N over all M micro-batches and R ranks of the accumulated batch. The Trainer
averages over micro-batches and DDP over ranks, so each sum is divided by N / (M·R).

N is predicted from the labels of the accumulated batch, which are all at hand before its first forward. Which labels a
cross-entropy counts is read off the target that it is given: the label tensor itself, or that tensor shifted by one. Each
cross-entropy then reports what it really counted, and `AccumulatedBatch.check` compares.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from maxsup_hf.losses import IGNORE_INDEX

POSITIONS = ("start_positions", "end_positions")
TARGETS = (*POSITIONS, "target_values")  # class labels whose name lacks "label"; the last is PatchTST's and PatchTSMixer's


class Counting(NamedTuple):
    """Which labels a cross-entropy counts.

    Attributes:
        name: the argument of the model's forward that holds them.
        shifted: whether the first label of each sequence is left out, as in causal language modelling.
    """

    name: str
    shifted: bool


def class_targets(
    inputs: Mapping[str, Any], ignore_index: int = IGNORE_INDEX, names: Sequence[str] = (), classes: int | None = None
) -> dict[str, Tensor]:
    """The class labels in a batch, one for each row of logits.

    Args:
        inputs: keyword arguments of a model's forward.
        ignore_index: label that the head ignores.
        names: further arguments that hold labels (`TrainingArguments.label_names`).
        classes: K of a classification head: integer labels (B, T, K) that are one-hot are class indices (B, T) to it, as in
            heads for audio frames.

    Returns:
        Name -> integer labels in which −100 stands for every label that is not counted. Class probabilities
        (`soft_labels`, or floating `labels`) appear as `labels`, zeros of shape (...), since each of their rows is counted.
    """
    found: dict[str, Tensor] = {}
    for name, labels in inputs.items() if isinstance(inputs, Mapping) else ():
        if not isinstance(labels, Tensor) or not ("label" in name or name in TARGETS or name in names):
            continue
        if name == "soft_labels" or (name == "labels" and labels.is_floating_point()):
            found["labels"] = torch.zeros(labels.shape[:-1], dtype=torch.long, device=labels.device)
        elif not labels.is_floating_point() and "soft_labels" not in inputs:
            found[name] = _positions(labels, inputs) if name in POSITIONS else _unify(labels, ignore_index, classes)
    return found


def _unify(labels: Tensor, ignore_index: int, classes: int | None) -> Tensor:
    labels = labels.long()
    if labels.ndim == 3 and labels.shape[-1] == classes and bool(((labels >= 0).all(-1) & (labels.sum(-1) == 1)).all()):
        labels = labels.argmax(-1)
    return labels if ignore_index == IGNORE_INDEX else labels.masked_fill(labels == ignore_index, IGNORE_INDEX)


def _positions(labels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Question answering ignores answers beyond the end of the sequence, and moves those before its start to position 0."""
    labels = labels.long().clamp_min(0)
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return labels.masked_fill(labels >= sequence.shape[1], IGNORE_INDEX) if isinstance(sequence, Tensor) else labels


def _shifted(labels: Tensor) -> Tensor:
    return labels[..., 1:] if labels.ndim > 1 else labels


class AccumulatedBatch:
    """The labels of one optimizer step on this rank, and what all ranks together count.

    Attributes:
        is_whole: one micro-batch on one rank: every cross-entropy is the mean of what it counts itself.
        divisors: counting -> 0-dim float tensor, N / (M·R).
    """

    def __init__(
        self,
        micro_batches: Sequence[Mapping[str, Tensor]],
        *,
        class_weights: Tensor | None = None,
        mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
        replicas: int = 1,
        device: torch.device | None = None,
    ):
        """
        Args:
            micro_batches: `class_targets` of each micro-batch.
            class_weights: (K,) weights of every cross-entropy that has none of its own, or `None`.
            mean_over_ranks: averages a tensor over ranks, where the batch is divided among several.
            replicas: on how many devices of this process torch's DataParallel divides a micro-batch.
            device: where the counts are wanted.
        """
        self.micro_batches = micro_batches
        self.class_weights = class_weights
        self.mean_over_ranks = mean_over_ranks
        self.parts = len(micro_batches) * replicas
        self.device = device
        self.is_whole = self.parts <= 1 and mean_over_ranks is None
        self._reported: dict[tuple[int, Counting], tuple[Tensor, Tensor]] = {}
        self._slopes: dict[int, Tensor] = {}
        self._of_rank: dict[Counting, Tensor] = {}
        self._weights_of_rank: dict[Counting, Tensor] = {}
        self.divisors: dict[Counting, Tensor] = {}
        self._weight_divisors: dict[Counting, Tensor] = {}
        if not self.is_whole:
            names = dict.fromkeys(name for micro_batch in micro_batches for name in micro_batch)
            countings = [Counting(name, shifted) for name in names for shifted in (False, True)]
            self._of_rank, self.divisors = self._count(countings)
            if class_weights is not None:
                self._weights_of_rank, self._weight_divisors = self._count(countings, class_weights)

    def _count(
        self, countings: Sequence[Counting], weight: Tensor | None = None
    ) -> tuple[dict[Counting, Tensor], dict[Counting, Tensor]]:
        """Number of counted labels, or their summed weight: on this rank, and over all ranks divided by M·R."""
        if not countings:
            return {}, {}
        own = torch.stack([self._sum(counting, weight) for counting in countings])
        divisors = own / self.parts
        if self.mean_over_ranks is not None:
            divisors = self.mean_over_ranks(divisors)
        return dict(zip(countings, own, strict=True)), dict(zip(countings, divisors, strict=True))

    def _sum(self, counting: Counting, weight: Tensor | None) -> Tensor:
        total = torch.zeros((), device=self.device)
        for micro_batch in self.micro_batches:
            if counting.name in micro_batch:
                labels = micro_batch[counting.name]
                total += counted(_shifted(labels) if counting.shifted else labels, weight).to(total.device)
        return total

    def divisor(self, counting: Counting, weight: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """What one cross-entropy is divided by.

        Args:
            counting: which labels it counts.
            weight: (K,) class weights that it applies to integer labels, or `None`.

        Returns:
            Divisor of its rows, divisor of its summed weights (`None` without weights), and what this rank should count.
        """
        if weight is None:
            return self.divisors[counting], None, self._of_rank[counting]
        if weight is self.class_weights:
            of_rank, divisors = self._weights_of_rank, self._weight_divisors
        else:  # weights in the user's own code are known only now
            of_rank, divisors = self._count([counting], weight)
        return self.divisors[counting], divisors[counting], of_rank[counting]

    def report(self, place: int, counting: Counting, found: Tensor, expected: Tensor) -> None:
        """Add what the cross-entropy at a place of the forward counted in one micro-batch."""
        before = self._reported.get((place, counting), (0, expected))[0]
        self._reported[place, counting] = (before + found.to(expected.device), expected)

    def check_slope(self, place: int, upstream: Tensor, reduction: str, is_last: bool) -> None:
        """Look at what a cross-entropy was multiplied by: it should be the same in all micro-batches and ranks.

        A mean may be weighted on purpose, so there it is a warning. Of a sum, or of the loss of each row, it is what the
        caller divided by, and an error.

        Args:
            place: of the cross-entropy in the forward.
            upstream: the gradient that reached its result.
            reduction: of the cross-entropy.
            is_last: whether the micro-batch is the last; then ranks are compared too.

        Raises:
            ValueError: it differs.
        """
        low, high = upstream[upstream != 0].aminmax()
        if not torch.isclose(low, high, rtol=1e-4):
            warnings.warn(
                "compute_loss weights the rows of its cross-entropy itself (reduction='none'): whether its gradient depends "
                "on how the batch is cut is not checked. That of class_weights in the training arguments is.",
                stacklevel=2,
            )
            return
        first = self._slopes.setdefault(place, high)
        same = [first.to(high.device)]
        if is_last and self.mean_over_ranks is not None and reduction != "mean":
            same.append(self.mean_over_ranks(high.detach().clone()))
        for other in same:
            if torch.isclose(high.double(), other.double(), rtol=1e-4):
                continue
            if reduction == "mean":
                warnings.warn(
                    f"compute_loss multiplies the mean of its cross-entropy by {high.item():g} in one micro-batch and by "
                    f"{other.item():g} in others: the gradient depends on how the batch is cut",
                    stacklevel=2,
                )
            else:
                raise ValueError(
                    f"a cross-entropy with reduction='sum' or 'none' is multiplied by {high.item():g} in one micro-batch "
                    f"and by {other.item():g} in others, so that the gradient depends on how the batch is cut: in "
                    "compute_loss divide by num_items_in_batch, or use reduction='mean'"
                )

    def check(self) -> None:
        """Compare what was counted with what it was divided by, when all micro-batches are done.

        Raises:
            ValueError: they differ, so that the gradient would depend on how the batch is cut.
        """
        for (_, counting), (found, expected) in self._reported.items():
            if not torch.isclose(found.double(), expected.double(), rtol=1e-5):
                raise ValueError(
                    f"a cross-entropy counted {found.item():g} over the {len(self.micro_batches)} micro-batches of this "
                    f"rank, but was divided by {expected.item():g}, which the labels in {counting.name!r} add up to: the "
                    "gradient would depend on how the batch is cut. The model, or compute_loss, leaves labels out, adds "
                    "some, or changes its class weights between micro-batches. Mark ignored labels with -100 in the data, "
                    "name label columns in label_names, give class weights as class_weights, or train with "
                    "gradient_accumulation_steps=1 on one device"
                )


def counted(labels: Tensor, weight: Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """How many integer labels are not ignored, or their summed class weight: 0-dim float32."""
    valid = labels != ignore_index
    if weight is None:
        return valid.sum().float()
    # Labels beyond the weights are of another column, or refused by the loss itself.
    index = torch.where(valid, labels, 0).long().clamp(0, len(weight) - 1)
    return torch.where(valid, weight.to(labels.device)[index], 0).float().sum()


def num_items(targets: Mapping[str, Tensor], shifts: bool, batch: AccumulatedBatch | None = None) -> Tensor:
    """What the sum of a micro-batch's losses is to be divided by: `num_items_in_batch` of a user's own `compute_loss`.

    Args:
        targets: `class_targets` of the micro-batch, not empty.
        shifts: whether the model's own loss function shifts labels by one.
        batch: that the micro-batch belongs to; `None`: it stands alone.
    """
    name = "labels" if "labels" in targets else next(iter(targets))
    if batch is not None and Counting(name, shifts) in batch.divisors:
        return batch.divisors[Counting(name, shifts)]
    return counted(_shifted(targets[name]) if shifts else targets[name]).clamp_min(1)


class Countings:
    """Finds out which labels each cross-entropy of a forward counts; one object for one training.

    What is found for a place in the forward is remembered, so that targets are compared once. A traced forward
    (torch.compile) cannot compare; there, and where a head computes its target in a way of its own, the sizes decide.
    """

    def __init__(self, shifts: bool):
        """
        Args:
            shifts: whether the model's own loss function shifts labels by one.
        """
        self.shifts = shifts
        self._known: dict[int, Counting] = {}

    def of(self, place: int, micro_batch: Mapping[str, Tensor], target: Tensor, seen: Sequence[Counting]) -> Counting:
        """
        Args:
            place: which cross-entropy of the forward it is.
            micro_batch: `class_targets` of this micro-batch, not empty.
            target: (...) integer labels that the cross-entropy is given, −100 where it ignores them; with soft labels zeros.
            seen: countings of the cross-entropies before it in this forward.
        """
        if place in self._known and self._known[place].name in micro_batch:
            return self._known[place]
        taken = {counting.name for counting in seen}
        names = sorted(micro_batch, key=lambda name: name in taken)  # start and end of an answer may be equal
        if not torch.compiler.is_compiling():
            found = next(filter(None, (_match(name, micro_batch[name], target) for name in names)), None)
            if found is not None:
                if (target != IGNORE_INDEX).any():  # where all is ignored, every counting fits
                    self._known[place] = found
                return found
        return self._by_size(names, micro_batch, target.numel())

    def _by_size(self, names: Sequence[str], micro_batch: Mapping[str, Tensor], rows: int) -> Counting:
        sizes = {name: (micro_batch[name].numel(), _shifted(micro_batch[name]).numel()) for name in names}
        name = next((name for name in names if rows in sizes[name]), names[0])
        whole, shifted = sizes[name]
        return Counting(name, self.shifts or (rows == shifted and rows != whole))


def _match(name: str, labels: Tensor, target: Tensor) -> Counting | None:
    """How a target was made of a label tensor, if it was."""
    labels, target = labels.to(target.device), target.reshape(-1)
    if torch.equal(target, labels.reshape(-1)):
        return Counting(name, False)
    if labels.ndim < 2:
        return None
    # A head either cuts the first label of each sequence off, or pads it with an ignored one at the end.
    ways = (labels[..., 1:], pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:])
    if any(torch.equal(target, way.reshape(-1)) for way in ways):
        return Counting(name, True)
    return Counting(name, False) if labels.ndim == 2 and _is_behind_virtual_tokens(labels, target) else None


def _is_behind_virtual_tokens(labels: Tensor, target: Tensor) -> bool:
    """Whether a shifted target holds all labels, because prompt tuning has put ignored ones in front of each sequence."""
    rows, length = labels.shape
    width, rest = divmod(target.numel(), max(1, rows))
    if rest or width < length or int((target != IGNORE_INDEX).sum()) != int((labels != IGNORE_INDEX).sum()):
        return False
    target = target.reshape(rows, width)
    places = range(width - length, max(-1, width - length - 2), -1)
    return any(torch.equal(target[:, at : at + length], labels) for at in places)
