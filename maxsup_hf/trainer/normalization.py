"""The divisor of each cross-entropy, chosen so that the gradient does not depend on how a batch is split.

A head averages its cross-entropy over the labels that count in one micro-batch: those that are not ignored, for a causal
language model all but the first of each sequence, or, with class weights, the sum of their weights. A mean of such means
depends on the split. The right divisor is the count N over all M micro-batches and R ranks of the accumulated batch. The
Trainer averages over micro-batches and DDP averages over ranks, so each sum is divided by N / (M·R).

N is computed from the labels of the accumulated batch, all of which are known before its first forward. Which labels a
cross-entropy counts is inferred from its target (`label_sources`). Each cross-entropy then reports what it really counted,
and `AccumulatedBatch.check_counts` compares the two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.losses import IGNORE_INDEX
from maxsup_hf.trainer.label_sources import LabelSource, without_first

POSITIONS = ("start_positions", "end_positions")
TARGETS = (*POSITIONS, "target_values")  # class labels whose name lacks "label"; the last is PatchTST's and PatchTSMixer's


def class_targets(
    inputs: Mapping[str, Any], ignore_index: int = IGNORE_INDEX, names: Sequence[str] = (), classes: int | None = None
) -> dict[str, Tensor]:
    """The class labels of a batch, one for each row of logits.

    Args:
        inputs: keyword arguments of a model's forward.
        ignore_index: label that the head ignores.
        names: further arguments that hold labels (`TrainingArguments.label_names`).
        classes: K of a classification head. Heads for audio frames take one-hot integer labels (B, T, K), which stand for
            class indices (B, T).

    Returns:
        Name -> integer labels, −100 where a label is ignored. Class probabilities (`soft_labels`, or floating `labels`)
        appear as `labels`, zeros of shape (...), because every one of their rows counts.
    """
    if not isinstance(inputs, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for name, labels in inputs.items():
        if not isinstance(labels, Tensor) or not ("label" in name or name in TARGETS or name in names):
            continue
        if name == "soft_labels" or (name == "labels" and labels.is_floating_point()):
            found["labels"] = torch.zeros(labels.shape[:-1], dtype=torch.long, device=labels.device)
        elif labels.is_floating_point() or "soft_labels" in inputs:
            continue
        elif name in POSITIONS:
            found[name] = _valid_positions(labels, inputs)
        else:
            found[name] = _as_class_indices(labels, ignore_index, classes)
    return found


def _as_class_indices(labels: Tensor, ignore_index: int, classes: int | None) -> Tensor:
    labels = labels.long()
    if labels.ndim == 3 and labels.shape[-1] == classes:
        is_one_hot = (labels >= 0).all(-1) & (labels.sum(-1) == 1)
        if bool(is_one_hot.all()):
            labels = labels.argmax(-1)
    return labels if ignore_index == IGNORE_INDEX else labels.masked_fill(labels == ignore_index, IGNORE_INDEX)


def _valid_positions(labels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Question answering heads ignore positions beyond the end of the sequence and clamp negative ones to 0."""
    labels = labels.long().clamp_min(0)
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return labels.masked_fill(labels >= sequence.shape[1], IGNORE_INDEX) if isinstance(sequence, Tensor) else labels


class Divisors(NamedTuple):
    """What one cross-entropy is divided by, and what it should count.

    Attributes:
        rows: divisor of its sum over rows.
        weights: divisor of its summed class weights, or `None` without class weights.
        expected: what this rank should count over the accumulated batch: rows, or summed class weights.
    """

    rows: Tensor
    weights: Tensor | None
    expected: Tensor


class AccumulatedBatch:
    """The labels of one optimizer step on this rank, and their count over all ranks.

    Attributes:
        is_undivided: one micro-batch on one rank, so that every cross-entropy is the mean over its own rows.
        divisors: label source -> 0-dim float tensor, N / (M·R).
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
            replicas: number of devices of this process among which torch's DataParallel divides a micro-batch.
            device: device of the counts.
        """
        self.micro_batches = micro_batches
        self.class_weights = class_weights
        self.mean_over_ranks = mean_over_ranks
        self.parts = len(micro_batches) * replicas
        self.device = device
        self.is_undivided = self.parts <= 1 and mean_over_ranks is None
        self.divisors: dict[LabelSource, Tensor] = {}
        self._expected: dict[LabelSource, Tensor] = {}
        self._weight_divisors: dict[LabelSource, Tensor] = {}
        self._expected_weights: dict[LabelSource, Tensor] = {}
        self._reported: dict[tuple[int, LabelSource], tuple[Tensor, Tensor]] = {}
        self._upstream: dict[int, Tensor] = {}
        if not self.is_undivided:
            names = dict.fromkeys(name for micro_batch in micro_batches for name in micro_batch)
            sources = [LabelSource(name, shifted) for name in names for shifted in (False, True)]
            self._expected, self.divisors = self._count(sources)
            if class_weights is not None:
                self._expected_weights, self._weight_divisors = self._count(sources, class_weights)

    def _count(
        self, sources: Sequence[LabelSource], weight: Tensor | None = None
    ) -> tuple[dict[LabelSource, Tensor], dict[LabelSource, Tensor]]:
        """Number of counted labels, or their summed weight: on this rank, and over all ranks divided by M·R."""
        if not sources:
            return {}, {}
        # One tensor for all sources, so that ranks communicate once.
        expected = torch.stack([self._sum(source, weight) for source in sources])
        divisors = expected / self.parts
        if self.mean_over_ranks is not None:
            divisors = self.mean_over_ranks(divisors)
        return dict(zip(sources, expected, strict=True)), dict(zip(sources, divisors, strict=True))

    def _sum(self, source: LabelSource, weight: Tensor | None) -> Tensor:
        total = torch.zeros((), device=self.device)
        for micro_batch in self.micro_batches:
            if source.name in micro_batch:
                labels = micro_batch[source.name]
                labels = without_first(labels) if source.shifted else labels
                total += count_labels(labels, weight).to(total.device)
        return total

    def divisors_of(self, source: LabelSource, weight: Tensor | None) -> Divisors:
        """The divisors of one cross-entropy.

        Args:
            source: the labels that it counts.
            weight: (K,) class weights that it applies to integer labels, or `None`.
        """
        if weight is None:
            return Divisors(self.divisors[source], None, self._expected[source])
        if weight is self.class_weights:
            expected, divisors = self._expected_weights, self._weight_divisors
        else:  # weights in the user's own code are not known before the cross-entropy is called
            expected, divisors = self._count([source], weight)
        return Divisors(self.divisors[source], divisors[source], expected[source])

    def report(self, index: int, source: LabelSource, counted: Tensor, expected: Tensor) -> None:
        """Record what the cross-entropy at an index of the forward counted in one micro-batch."""
        before = self._reported.get((index, source), (0, expected))[0]
        self._reported[index, source] = (before + counted.to(expected.device), expected)

    def check_upstream(self, index: int, upstream: Tensor, reduction: str, is_last: bool) -> None:
        """Check the factor that the result of a cross-entropy was multiplied by, as its gradient shows.

        It should be the same in all micro-batches and on all ranks. A mean may be weighted on purpose, so a difference is a
        warning. The factor of a sum, or of row losses, is what the caller divided by, so there a difference is an error.

        Args:
            index: of the cross-entropy in the forward.
            upstream: the gradient that reached its result.
            reduction: of the cross-entropy.
            is_last: whether this is the last micro-batch, after which ranks are compared too.

        Raises:
            ValueError: the factors of a sum or of row losses differ.
        """
        low, high = upstream[upstream != 0].aminmax()
        if not torch.isclose(low, high, rtol=1e-4):
            warnings.warn(
                "compute_loss weights the rows of its cross-entropy itself (reduction='none'): whether its gradient depends "
                "on how the batch is split is not checked. To have it checked, use class_weights of the training arguments",
                stacklevel=2,
            )
            return
        others = [self._upstream.setdefault(index, high).to(high.device)]
        if is_last and self.mean_over_ranks is not None and reduction != "mean":
            others.append(self.mean_over_ranks(high.detach().clone()))
        for other in others:
            if torch.isclose(high.double(), other.double(), rtol=1e-4):
                continue
            if reduction != "mean":
                raise ValueError(
                    f"a cross-entropy with reduction='sum' or 'none' is multiplied by {high.item():g} in one micro-batch "
                    f"and by {other.item():g} in others, so the gradient depends on how the batch is split: in "
                    "compute_loss divide by num_items_in_batch, or use reduction='mean'"
                )
            warnings.warn(
                f"compute_loss multiplies the mean of its cross-entropy by {high.item():g} in one micro-batch and by "
                f"{other.item():g} in others: the gradient depends on how the batch is split",
                stacklevel=2,
            )

    def check_counts(self) -> None:
        """Compare what was counted with what it was divided by, after the last micro-batch.

        Raises:
            ValueError: they differ, so the gradient would depend on how the batch is split.
        """
        for (_, source), (counted, expected) in self._reported.items():
            if not torch.isclose(counted.double(), expected.double(), rtol=1e-5):
                raise ValueError(
                    f"a cross-entropy counted {counted.item():g} over the {len(self.micro_batches)} micro-batches of this "
                    f"rank, but was divided by {expected.item():g}, the total of the labels in {source.name!r}: the "
                    "gradient would depend on how the batch is split. The model or compute_loss leaves out labels, adds "
                    "some, or changes its class weights between micro-batches. Mark ignored labels with -100 in the data, "
                    "name label columns in label_names, pass class weights as class_weights, or train with "
                    "gradient_accumulation_steps=1 on one device"
                )


def count_labels(labels: Tensor, weight: Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Number of integer labels that are not ignored, or their summed class weight: 0-dim float32."""
    valid = labels != ignore_index
    if weight is None:
        return valid.sum().float()
    # Labels outside the weights belong to another column, or the loss itself rejects them: clamping avoids an index error.
    index = torch.where(valid, labels, 0).long().clamp(0, len(weight) - 1)
    return torch.where(valid, weight.to(labels.device)[index], 0).float().sum()


def num_items(targets: Mapping[str, Tensor], shifts: bool, batch: AccumulatedBatch | None = None) -> Tensor:
    """The divisor of a sum of losses over a micro-batch: `num_items_in_batch` of a user's own `compute_loss`.

    Args:
        targets: `class_targets` of the micro-batch, not empty.
        shifts: whether the model's own loss function shifts labels by one.
        batch: the accumulated batch of the micro-batch, or `None` for a single micro-batch.
    """
    name = "labels" if "labels" in targets else next(iter(targets))
    source = LabelSource(name, shifts)
    if batch is not None and source in batch.divisors:
        return batch.divisors[source]
    return count_labels(without_first(targets[name]) if shifts else targets[name]).clamp_min(1)
