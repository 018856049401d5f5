"""Replacement of the cross-entropy that a training step computes by the requested loss.

However a head of transformers, a user's own model or a Trainer's `compute_loss` computes its cross-entropy, the call ends at
`torch.nn.functional.cross_entropy`. While `CrossEntropyPatch.opened(...)` is open, that name leads here. The model keeps
everything else that it does: the causal shift, upsampling, the start and end pair, a router's auxiliary loss, decoder inputs
made from labels.

The patch records what happened: which cross-entropies were computed, what each counted, and, through a hook on the result,
whether the gradient of the training loss reached it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import _reduction

from maxsup_hf.losses import IGNORE_INDEX, Loss, LossOutput
from maxsup_hf.losses._fused_linear import fused_output
from maxsup_hf.trainer.autograd_graph import nodes_behind
from maxsup_hf.trainer.label_sources import LabelSource, LabelSourceFinder
from maxsup_hf.trainer.lm_head_patch import LazyLogits, NeedsLogitsError
from maxsup_hf.trainer.normalization import AccumulatedBatch, count_labels
from maxsup_hf.trainer.patched_names import CROSS_ENTROPY, BoundName, find_names, make_replacements
from maxsup_hf.trainer.wrong_rows import count_wrong


class LabelCount(NamedTuple):
    """What a cross-entropy counts in its micro-batch. All `None` and empty where it is the mean of its own rows.

    Attributes:
        source: the labels that it counts.
        counted: 0-dim, how many (or their summed weight) it counted.
        expected: 0-dim, what this rank should count over the accumulated batch.
        divisors: keyword arguments of `Loss.compute`: what the sums are divided by.
    """

    source: LabelSource | None
    counted: Tensor | None
    expected: Tensor | None
    divisors: dict[str, Any]


class CrossEntropyCall(NamedTuple):
    """One cross-entropy of a training step.

    Attributes:
        output: its values, detached, as the mean that the Trainer averages over micro-batches.
        label_count: what it counted.
        fused: whether its logits were never computed.
        reduction: as the caller requested it.
        wrong: (2,) `count_wrong` of its rows, or `None` if that was not asked for.
        node: the autograd node of its result, with a hook that fills `CrossEntropyPatch.upstream`. `None` in a compiled
            graph, where such nodes do not exist.
    """

    output: LossOutput
    label_count: LabelCount
    fused: bool
    reduction: str
    wrong: Tensor | None
    node: Any


class CrossEntropyPatch:
    """Holds the loss of one training, and the state of its current step.

    Attributes:
        values: parameter -> 0-dim float64 tensor. `set_progress` fills them in place, so that one compiled graph serves a
            whole schedule.
        class_weights: (K,) weights for cross-entropies that have none of their own, or `None`.
        weight_used: (K,) class weights of the last cross-entropy that had any, or `None`.
        batch: the accumulated batch. `None`: each cross-entropy is the mean of its own rows.
        micro_batch: `class_targets` of the micro-batch of this step.
        soft_labels: (..., K) class probabilities that replace the integer labels of this step, or `None`.
        votes: (num_classes) -> (N, P) votes of the last feature map, for a loss that needs them, or `None`.
        counts_wrong: whether each cross-entropy counts the rows that are predicted wrong.
        calls: the cross-entropies of the last step, in the order of the forward.
        upstream: index of a call -> the gradient that reached its result.
    """

    def __init__(self, loss: Loss, class_weights: Tensor | None = None, shifts: bool = False):
        self.loss = loss
        self.values = {name: torch.tensor(value, dtype=torch.float64) for name, value in loss.values(0.0).items()}
        self.class_weights = class_weights
        self.weight_used = class_weights
        self.batch: AccumulatedBatch | None = None
        self.micro_batch: dict[str, Tensor] = {}
        self.soft_labels: Tensor | None = None
        self.votes: Callable[[int], Tensor] | None = None
        self.counts_wrong = False
        self.calls: list[CrossEntropyCall] = []
        self.upstream: dict[int, Tensor] = {}
        self.is_open = False
        self._in_training = True
        self._sources = LabelSourceFinder(shifts)
        self._replacements = make_replacements(self)
        self._names: tuple[int, list[BoundName]] | None = None  # found for the model of this id

    def set_progress(self, progress: float) -> None:
        """Set scheduled parameters; `progress` in [0, 1]."""
        for name, value in self.loss.values(progress).items():
            self.values[name].fill_(value)

    @contextmanager
    def opened(self, model: nn.Module, *owners: type, in_training: bool = True) -> Iterator[None]:
        """While this is open, the loss replaces every cross-entropy. The names are restored even after an exception.

        Args:
            model: the model as it is called.
            *owners: further classes (the Trainer's) whose files may have imported the function by name.
            in_training: replace only cross-entropies that require a gradient. False, for an evaluation, replaces all.
        """
        self.calls.clear()
        self.upstream.clear()
        self._in_training = in_training
        if self._names is None or self._names[0] != id(model):
            self._names = id(model), find_names(model, owners)
        names = self._names[1]
        before = nn.functional.cross_entropy  # may be another library's wrapper, which is then restored
        try:
            nn.functional.cross_entropy = self._replacements[CROSS_ENTROPY]
            for bound in names:
                setattr(bound.file, bound.name, self._replacements[bound.original])
            self.is_open = True
            yield
        finally:
            self.is_open = False
            nn.functional.cross_entropy = before
            for bound in names:
                setattr(bound.file, bound.name, bound.original)

    def trained_calls(self, loss: Tensor | None = None) -> list[tuple[int, CrossEntropyCall]]:
        """(index, call) of the cross-entropies of the last step that the gradient of the training loss passes through.

        A call in a compiled graph has no node to look at, and is always listed.

        Args:
            loss: to decide before the backward of this loss, by the graph behind it. Default: after the backward, by the
                gradients that arrived.
        """
        nodes: set[Any] = set()
        if loss is not None:
            nodes = nodes_behind(loss, [call.node for call in self.calls if call.node is not None])
        trained = []
        for index, call in enumerate(self.calls):
            if loss is None:
                is_trained = index in self.upstream and bool(self.upstream[index].any())
            else:
                is_trained = call.node in nodes
            if is_trained or call.node is None:
                trained.append((index, call))
        return trained

    # ---- the replacement ----

    def cross_entropy(
        self,
        input: Tensor | LazyLogits,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Replaces `torch.nn.functional.cross_entropy`, with its arguments and layouts, and accepts `LazyLogits`.

        A cross-entropy that requires no gradient (one that is only logged), or that was kept and is called after the step,
        is computed by the original.
        """
        if not self.is_open or (self._in_training and not _requires_grad(input)):
            return CROSS_ENTROPY(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        if label_smoothing:
            raise ValueError(
                f"a cross-entropy of the training step has label_smoothing={label_smoothing}, which loss "
                f"{self.loss.spec.name!r} would replace: set it to 0 (in the model's config, or in compute_loss)"
            )
        if size_average is not None or reduce is not None:
            reduction = _reduction.legacy_get_string(size_average, reduce)
        logits = input
        if isinstance(input, Tensor) and input.ndim > 1:
            logits = torch.movedim(input, 1, -1)  # torch has the classes in dimension 1, the losses have them last
        if self.soft_labels is not None:
            target = self._soft_target(logits)
        elif target.is_floating_point() and target.ndim > 1:
            target = torch.movedim(target, 1, -1)
        weight = self._class_weight(weight, logits)
        count = self._count(logits, target, weight, ignore_index)
        compute = self._of_lazy_logits if isinstance(input, LazyLogits) else self._of_logits
        if reduction == "mean":
            output = mean = compute(logits, target, weight, ignore_index, reduction, count.divisors)
        else:
            # The caller divides the result: by num_items_in_batch, or by something that must be equal in all micro-batches,
            # which `AccumulatedBatch.check_upstream` verifies.
            output = compute(logits, target, weight, ignore_index, reduction, {})
            items = count.divisors.get("num_items_in_batch")
            if items is None:
                items = _num_rows(logits, target, ignore_index)
            mean = output.map(lambda part: part.detach().sum() / items)
        # Activation checkpointing calls this again inside the backward, which must not be recorded.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            wrong = count_wrong(logits, target, ignore_index) if self.counts_wrong else None
            self._record(output.loss, mean, count, isinstance(input, LazyLogits), reduction, wrong)
        return output.loss

    def _soft_target(self, logits: Tensor | LazyLogits) -> Tensor:
        assert self.soft_labels is not None
        soft = self.soft_labels
        if soft.shape[-1:].numel() == logits.shape[-1] and soft.numel() == logits.shape.numel():
            soft = soft.reshape(logits.shape)  # heads flatten tokens
        if soft.shape != logits.shape:
            raise ValueError(
                f"soft_labels must have the shape of the logits, {tuple(logits.shape)}, got {tuple(soft.shape)}"
            )
        return soft.to(logits.device)

    def _class_weight(self, weight: Tensor | None, logits: Tensor | LazyLogits) -> Tensor | None:
        classes = logits.shape[-1]
        if self.class_weights is not None:
            if weight is not None:
                raise ValueError(
                    "class_weights are given, but a cross-entropy of the training step has weights of its own: remove either"
                )
            if len(self.class_weights) != classes:
                raise ValueError(
                    f"class_weights are for {len(self.class_weights)} classes, but a cross-entropy of the training step has "
                    f"logits with {classes}: leave class_weights out for this head"
                )
            if self.class_weights.device != logits.device:
                self.class_weights = self.class_weights.to(logits.device)
                if self.batch is not None:  # which recognizes these weights by their identity
                    self.batch.class_weights = self.class_weights
            weight = self.class_weights
        elif weight is not None:
            weight = weight.to(logits.device)
        if weight is not None:
            self.weight_used = weight
        return weight

    def _count(self, logits: Tensor | LazyLogits, target: Tensor, weight: Tensor | None, ignore_index: int) -> LabelCount:
        batch = self.batch
        if batch is None or batch.is_undivided or not self.micro_batch:
            return LabelCount(None, None, None, {})
        if target.is_floating_point():
            # Every row of class probabilities counts, and class weights do not change the divisor.
            labels, weight = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device), None
        else:
            labels = target if ignore_index == IGNORE_INDEX else torch.where(target == ignore_index, IGNORE_INDEX, target)
            labels = labels.long()
        if weight is not None and torch.compiler.is_compiling() and weight is not self.class_weights:
            raise ValueError(
                "a compiled model applies class weights of its own, which cannot be summed over the whole accumulated batch "
                "inside its graph: pass them as class_weights in the training arguments, or leave torch_compile out"
            )
        earlier = [call.label_count.source for call in self.calls if call.label_count.source is not None]
        source = self._sources.find(len(self.calls), self.micro_batch, labels, earlier)
        rows, weights, expected = batch.divisors_of(source, weight)
        divisors = {"num_items_in_batch": rows}
        if weights is not None:
            divisors["weight_in_batch"] = weights
        return LabelCount(source, count_labels(labels, weight), expected, divisors)

    def _of_logits(
        self, logits: Any, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, divisors: dict[str, Any]
    ) -> LossOutput:
        return self.loss.compute(
            logits,
            target,
            self.values,  # 0-dim CPU tensors mix with any device
            reduction=reduction,
            ignore_index=ignore_index,
            weight=weight,
            votes=self.votes(logits.shape[-1]) if self.votes else None,
            **divisors,
        )

    def _of_lazy_logits(
        self, logits: Any, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, divisors: dict[str, Any]
    ) -> LossOutput:
        if weight is not None:
            raise NeedsLogitsError("applies class weights")
        if reduction == "none":
            raise NeedsLogitsError("needs the loss of each row")
        if logits.ndim > 2:
            raise NeedsLogitsError(f"has the classes of its logits {tuple(logits.shape)} in dimension 1")
        if logits.head.weight.untyped_storage().nbytes() == 0:  # gathered for the layer's forward alone: ZeRO-3, FSDP
            raise NeedsLogitsError("has an output embedding that is sharded again before the loss")
        return fused_output(
            self.loss, self.values, logits.hidden, target, logits.head,
            reduction=reduction, ignore_index=ignore_index, **divisors,
        )  # fmt: skip

    def _record(
        self, result: Tensor, mean: LossOutput, count: LabelCount, fused: bool, reduction: str, wrong: Tensor | None
    ) -> None:
        node = None if torch.compiler.is_compiling() else result.grad_fn
        if node is not None:
            result.register_hook(partial(self.upstream.__setitem__, len(self.calls)))
        self.calls.append(CrossEntropyCall(mean.map(Tensor.detach), count, fused, reduction, wrong, node))


def _requires_grad(input: Tensor | LazyLogits) -> bool:
    """Whether a gradient can flow back through a cross-entropy of these logits."""
    if not torch.is_grad_enabled():
        return False
    return isinstance(input, LazyLogits) or torch.compiler.is_compiling() or input.requires_grad


def _num_rows(logits: Tensor | LazyLogits, target: Tensor, ignore_index: int) -> Tensor | int:
    return logits.shape[:-1].numel() if target.is_floating_point() else count_labels(target, None, ignore_index)
