"""The cross-entropy that a training step computes becomes the loss that was asked for.

Whatever way a head of transformers, a model of the user's own, or a Trainer's `compute_loss` comes to its cross-entropy, it
ends at `torch.nn.functional.cross_entropy`. While `CrossEntropyPatch.opened(...)` is open that name leads here. So a head
keeps all that is its own (the causal shift, upsampling, the start and end pair, a router's auxiliary loss, decoder inputs
made from labels), and only the cross-entropy is another.

torch.compile knows `CrossEntropyLoss()` made in a forward by its class and looks no further. So in the files that define the
model's classes that name leads here too, also as an attribute of their `nn`. (`torch.nn` itself stays as it
is: torch.compile would take what stands there for the class that it knows.)

The patch records what happened: which cross-entropies were computed, what each counted, and, by a hook on its result,
whether the gradient of the training loss went through it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import _reduction

from maxsup_hf.losses import IGNORE_INDEX, Loss, LossOutput
from maxsup_hf.losses._fused_linear import fused_output
from maxsup_hf.trainer.lm_head_patch import LazyLogits, NeedsLogitsError
from maxsup_hf.trainer.normalization import AccumulatedBatch, Counting, Countings, counted

_FUNCTION = nn.functional.cross_entropy


class Call(NamedTuple):
    """One cross-entropy of a training step.

    Attributes:
        output: its values, detached, as the mean that the Trainer averages over micro-batches.
        counting, found, expected: which labels it counts, how many it did (or their weight), and how many this rank has in
            the accumulated batch; `None` where it is the mean of its own rows.
        fused: whether its logits were never computed.
        reduction: as it was asked for.
        node: of its result in the autograd graph, with a hook that fills `CrossEntropyPatch.upstream`; `None` in a compiled
            graph, which has no such nodes.
    """

    output: LossOutput
    counting: Counting | None
    found: Tensor | None
    expected: Tensor | None
    fused: bool
    reduction: str
    node: Any


class CrossEntropyPatch:
    """Holds the loss of one training, and what one training step needs of it.

    Attributes:
        values: parameter -> 0-dim float64 tensor, filled in place by `set_progress`: a compiled graph then serves a whole
            schedule.
        class_weights: (K,) weights for cross-entropies that have none of their own, or `None`.
        weight_used: (K,) class weights of the last cross-entropy that had any, or `None`.
        batch: the accumulated batch, or `None`: each cross-entropy is the mean of its own rows.
        micro_batch: `class_targets` of the micro-batch of this step.
        soft_labels: (..., K) class probabilities that replace the integer labels of this step, or `None`.
        votes: (num_classes) -> (N, P) votes of the last feature map, for a loss that asks for them, or `None`.
        calls: one for each cross-entropy of the last step.
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
        self.calls: list[Call] = []
        self.upstream: dict[int, Tensor] = {}
        self.is_open = False
        self._differentiated = True
        self._countings = Countings(shifts)
        # Made once: a class or a closure that is new in every forward would make torch.compile trace again.
        criterion = type("CrossEntropyLoss", (_Criterion,), {"patch": self})
        namespace = ModuleType(nn.__name__)
        vars(namespace).update(vars(nn), CrossEntropyLoss=criterion)
        self._stand_ins: dict[Any, Any] = {_FUNCTION: self.cross_entropy, nn.CrossEntropyLoss: criterion, nn: namespace}
        self._places: tuple[int, list[tuple[Any, str, Any]]] | None = None

    def set_progress(self, progress: float) -> None:
        """Set scheduled parameters; `progress` in [0, 1]."""
        for name, value in self.loss.values(progress).items():
            self.values[name].fill_(value)

    # ---- opening ----

    @contextmanager
    def opened(self, model: nn.Module, *owners: type, differentiated: bool = True) -> Iterator[None]:
        """While this is open, every cross-entropy that requires a gradient is this loss. The names are put back whatever
        happens inside.

        Args:
            model: the model as it is called; walking its submodules sees through PEFT, DDP, FSDP and encoder-decoders.
            *owners: further classes, of the Trainer, in whose files the function may have been imported by name.
            differentiated: False replaces also those that do not require a gradient, for an evaluation.
        """
        self.calls.clear()
        self.upstream.clear()
        self._differentiated = differentiated
        places, before = self._find_places(model, owners), nn.functional.cross_entropy
        try:
            nn.functional.cross_entropy = self.cross_entropy  # type: ignore[assignment]
            for file, name, original in places:
                setattr(file, name, self._stand_ins[original])
            self.is_open = True
            yield
        finally:
            self.is_open = False
            nn.functional.cross_entropy = before  # a wrapper of somebody else's stays
            for file, name, original in places:
                setattr(file, name, original)

    def _find_places(self, model: nn.Module, owners: Iterable[type]) -> list[tuple[Any, str, Any]]:
        """(file, name, what it holds) of all that is replaced beside the function itself."""
        if self._places is None or self._places[0] != id(model):
            of_model = _files(type(module) for module in model.modules())
            files = of_model | _files(owners)
            found = [(file, name, value) for file in files for name, value in vars(file).items() if value is _FUNCTION]
            held = [(file, name, vars(file).get(name)) for file in of_model for name in ("CrossEntropyLoss", "nn")]
            found += [entry for entry in held if entry[2] is nn or entry[2] is nn.CrossEntropyLoss]
            self._places = (id(model), found)
        return self._places[1]

    # ---- what happened ----

    def reached(self, loss: Tensor | None = None) -> list[tuple[int, Call]]:
        """(place, call) of the cross-entropies of the last step through which the gradient of the training loss went.

        Args:
            loss: ask before its backward, by the graph behind it.
        """
        if loss is not None:
            nodes = _first_of(loss, [call.node for call in self.calls if call.node is not None])
            return [(place, call) for place, call in enumerate(self.calls) if call.node is None or call.node in nodes]
        return [
            (place, call)
            for place, call in enumerate(self.calls)
            if call.node is None or (place in self.upstream and bool(self.upstream[place].any()))
        ]

    # ---- the stand-in ----

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
        """Stands in for `torch.nn.functional.cross_entropy`, with its arguments and layouts; also for logits that are not
        computed. A cross-entropy that is not differentiated, or that is kept and called later, is the original."""
        if not self.is_open or (self._differentiated and not _is_differentiated(input)):
            original: Any = _FUNCTION
            return original(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        if label_smoothing:
            raise ValueError(
                f"a cross-entropy of the training step has label_smoothing={label_smoothing}, which loss "
                f"{self.loss.spec.name!r} would replace: set it to 0 (in the model's config, or in compute_loss)"
            )
        if size_average is not None or reduce is not None:
            reduction = _reduction.legacy_get_string(size_average, reduce)
        fused = isinstance(input, LazyLogits)
        logits = torch.movedim(input, 1, -1) if isinstance(input, Tensor) and input.ndim > 1 else input
        if self.soft_labels is not None:
            target = self._soft_target(logits)
        elif target.is_floating_point() and target.ndim > 1:
            target = torch.movedim(target, 1, -1)
        weight = self._weight(weight, logits)
        counting, found, expected, divisors = self._count(logits, target, weight, ignore_index)
        compute = self._of_lazy_logits if fused else self._of_logits
        if reduction == "mean":
            output = mean = compute(logits, target, weight, ignore_index, reduction, divisors)
        else:
            # The caller divides it himself, by num_items_in_batch or by something that does not depend on the cut, which
            # `AccumulatedBatch.check_slope` looks at.
            output = compute(logits, target, weight, ignore_index, reduction, {})
            items = divisors.get("num_items_in_batch", _rows(logits, target, ignore_index))
            mean = output.map(lambda part: part.detach().sum() / items)
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:  # else a recomputation in the backward
            self._record(output.loss, mean, counting, found, expected, fused, reduction)
        return output.loss

    def _weight(self, weight: Tensor | None, logits: Tensor | LazyLogits) -> Tensor | None:
        classes = logits.shape[-1]
        if self.class_weights is not None:
            if weight is not None:
                raise ValueError(
                    "class_weights are given, but a cross-entropy of the training step has weights of its own: leave one of "
                    "them out"
                )
            if len(self.class_weights) != classes:
                raise ValueError(
                    f"class_weights are for {len(self.class_weights)} classes, but a cross-entropy of the training step has "
                    f"logits with {classes}: leave class_weights out for this head"
                )
            if self.class_weights.device != logits.device:
                self.class_weights = self.class_weights.to(logits.device)
                if self.batch is not None:
                    self.batch.class_weights = self.class_weights
            weight = self.class_weights
        elif weight is not None:
            weight = weight.to(logits.device)
        if weight is not None:
            self.weight_used = weight
        return weight

    def _count(
        self, logits: Tensor | LazyLogits, target: Tensor, weight: Tensor | None, ignore_index: int
    ) -> tuple[Counting | None, Tensor | None, Tensor | None, dict[str, Tensor]]:
        """Which labels are counted, how many are, how many are expected of this rank, and what the sums are divided by."""
        batch = self.batch
        if batch is None or batch.is_whole or not self.micro_batch:
            return None, None, None, {}
        soft = target.is_floating_point()
        if soft:
            labels = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
        else:
            labels = target if ignore_index == IGNORE_INDEX else torch.where(target == ignore_index, IGNORE_INDEX, target)
            labels = labels.long()
        row_weight = None if soft else weight
        if row_weight is not None and torch.compiler.is_compiling() and row_weight is not self.class_weights:
            raise ValueError(
                "a compiled model weights its classes itself, and the weights of the whole accumulated batch cannot be "
                "gathered inside its graph: give them as class_weights in the training arguments, or leave torch_compile out"
            )
        seen = [call.counting for call in self.calls if call.counting is not None]
        counting = self._countings.of(len(self.calls), self.micro_batch, labels, seen)
        of_rows, of_weights, expected = batch.divisor(counting, row_weight)
        divisors = {"num_items_in_batch": of_rows}
        if of_weights is not None:
            divisors["weight_in_batch"] = of_weights
        return counting, counted(labels, row_weight), expected, divisors

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
            raise NeedsLogitsError("weights its classes")
        if reduction == "none":
            raise NeedsLogitsError("asks for the loss of each row")
        if logits.ndim > 2:
            raise NeedsLogitsError(f"has the classes of its logits {tuple(logits.shape)} in dimension 1")
        if logits.head.weight.untyped_storage().nbytes() == 0:  # gathered for the layer's forward alone: ZeRO-3, FSDP
            raise NeedsLogitsError("has an output embedding that is sharded again before the loss")
        return fused_output(
            self.loss, self.values, logits.hidden, target, logits.head,
            reduction=reduction, ignore_index=ignore_index, **divisors,
        )  # fmt: skip

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

    def _record(
        self,
        result: Tensor,
        mean: LossOutput,
        counting: Counting | None,
        found: Tensor | None,
        expected: Tensor | None,
        fused: bool,
        reduction: str,
    ) -> None:
        node = None if torch.compiler.is_compiling() else result.grad_fn
        if node is not None:
            result.register_hook(partial(self.upstream.__setitem__, len(self.calls)))
        self.calls.append(Call(mean.map(Tensor.detach), counting, found, expected, fused, reduction, node))


class _IsCriterion(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, nn.CrossEntropyLoss) or type.__instancecheck__(cls, instance)


class _Criterion(metaclass=_IsCriterion):
    """Stands in for `torch.nn.CrossEntropyLoss`. A plain class: made in a forward, an nn.Module breaks compiled graphs.
    In eager mode it makes the module itself, which comes to the patch by the function that it calls."""

    patch: CrossEntropyPatch

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls) if torch.compiler.is_compiling() else nn.CrossEntropyLoss(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any):
        names = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        self.options = dict(zip(names, args, strict=False)) | kwargs

    def to(self, *args: Any, **kwargs: Any) -> _Criterion:
        return self

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        return self.patch.cross_entropy(input, target, **self.options)


def _first_of(loss: Tensor, wanted: list[Any]) -> set[Any]:
    """Those of the wanted nodes of the autograd graph that the loss depends on. They lie close to it: the search, breadth
    first, ends when all are found, and goes through the whole model only if one is not."""
    found: set[Any] = set()
    seen: set[Any] = set()
    level: list[Any] = [loss.grad_fn]
    while level and len(found) < len(set(wanted)):
        level = [node for node in level if node is not None and node not in seen]
        seen.update(level)
        found.update(node for node in level if node in wanted)
        level = [child for node in level for child, _ in node.next_functions]
    return found


def _is_differentiated(input: Tensor | LazyLogits) -> bool:
    """Whether a gradient can come back through a cross-entropy on these logits; one that is only logged stays plain."""
    if not torch.is_grad_enabled():
        return False
    return isinstance(input, LazyLogits) or torch.compiler.is_compiling() or input.requires_grad


def _files(classes: Iterable[type]) -> set[Any]:
    """The modules in which classes, or bases of theirs, are written; without torch's own."""
    names = {base.__module__ for each in classes for base in each.__mro__}
    return {sys.modules[name] for name in names if name.partition(".")[0] != "torch" and name in sys.modules}


def _rows(logits: Tensor | LazyLogits, target: Tensor, ignore_index: int) -> Tensor | int:
    return logits.shape[:-1].numel() if target.is_floating_point() else counted(target, None, ignore_index)
