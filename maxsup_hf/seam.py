"""Where the library meets a model: cross-entropy is swapped while a training forward runs.

Whatever way a head of transformers, or a model of the user's own, comes to its cross-entropy, it ends at
`torch.nn.functional.cross_entropy`; inside `Seam.swapped(model)` that name leads here. So a head keeps all that is its own
(the causal shift, upsampling, the start and end pair, a router's auxiliary loss, decoder inputs made from labels), and only
the cross-entropy is another.

torch.compile knows `CrossEntropyLoss()` made in a forward by its class and looks no further. So in the files that define
the model's classes that name leads here too, also as an attribute of their `nn`. (`torch.nn` itself stays as it is:
torch.compile would take what stands there for the class that it knows.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from maxsup_hf.counting import Shares
from maxsup_hf.fused_linear import fused_output
from maxsup_hf.lazy_logits import LazyLogits, NeedsLogitsError
from maxsup_hf.losses import Loss, LossOutput

_FUNCTION = nn.functional.cross_entropy
_NAMES = ("cross_entropy", "CrossEntropyLoss", "nn")


class Seam:
    """Holds a loss, and what one training forward needs of it.

    Attributes:
        values: parameter -> 0-dim float64 tensor, filled in place by `set_progress`: a compiled graph then serves a whole
            schedule.
        shares: of the micro-batch in the accumulated batch; `None`: each cross-entropy is the mean of its own items.
        soft_labels: (..., K) class probabilities that replace the integer labels of the next forward, or `None`.
        votes: (num_classes) -> (N, P) votes of the last feature map, for a loss that asks for them, or `None`.
        outputs: one `LossOutput`, detached, for each cross-entropy of the last forward.
        fused: how many of these were of logits that are not computed.
    """

    def __init__(self, loss: Loss):
        self.loss = loss
        self.values = {name: torch.tensor(value, dtype=torch.float64) for name, value in loss.values(0.0).items()}
        self.shares: Shares | None = None
        self.soft_labels: Tensor | None = None
        self.votes: Callable[[int], Tensor] | None = None
        self.outputs: list[LossOutput] = []
        self.fused = 0
        # Made once: a class or a closure that is new in every forward would make torch.compile trace again.
        criterion = type("CrossEntropyLoss", (_Criterion,), {"seam": self})
        namespace = ModuleType(nn.__name__)
        vars(namespace).update(vars(nn), CrossEntropyLoss=criterion)
        self._stand_ins: dict[Any, Any] = {_FUNCTION: self.cross_entropy, nn.CrossEntropyLoss: criterion, nn: namespace}
        self._swaps: tuple[int, list[tuple[Any, str, Any]]] | None = None

    def set_progress(self, progress: float) -> None:
        """Set scheduled parameters; `progress` in [0, 1]."""
        for name, value in self.loss.values(progress).items():
            self.values[name].fill_(value)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """While this is open, every cross-entropy that `model` computes is this loss. The names are put back whatever
        happens inside."""
        self.outputs.clear()
        self.fused = 0
        names = self._names(model)
        try:
            for file, name, original in names:
                setattr(file, name, self._stand_ins[original])
            yield
        finally:
            for file, name, original in names:
                setattr(file, name, original)

    def _names(self, model: nn.Module) -> list[tuple[Any, str, Any]]:
        """(file, name, what it holds) of all that is swapped: in `torch.nn.functional`, and in the files in which a class of
        the model, or a base of one, is written. Walking all submodules sees through PEFT, DDP, FSDP and encoder-decoders."""
        if self._swaps is None or self._swaps[0] != id(model):
            files = {base.__module__ for module in model.modules() for base in type(module).__mro__}
            modules = [sys.modules[file] for file in files if file.partition(".")[0] != "torch" and file in sys.modules]
            held = [(module, name, vars(module).get(name)) for module in modules for name in _NAMES]
            known = [entry for entry in held if any(entry[2] is original for original in self._stand_ins)]
            self._swaps = (id(model), [(nn.functional, "cross_entropy", _FUNCTION), *known])
        return self._swaps[1]

    def cross_entropy(
        self,
        input: Tensor | LazyLogits,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Stands in for `torch.nn.functional.cross_entropy`, with its arguments and layouts; also for logits that are not
        computed."""
        if label_smoothing:
            raise ValueError(
                f"the model smooths its own labels (label_smoothing={label_smoothing}), which loss "
                f"{self.loss.spec.name!r} would replace: set that to 0 in the model's config"
            )
        if isinstance(input, LazyLogits):
            output = self._of_lazy_logits(input, target, weight, ignore_index, reduction)
            self.fused += 1
        else:
            output = self._of_logits(input, target, weight, ignore_index, reduction)
        if self.shares is not None:
            share = self.shares.take(input.shape[:-1].numel())
            output = LossOutput(*(part * share for part in output))
        self.outputs.append(LossOutput(output.loss.detach(), output.cross_entropy))
        return output.loss

    def _of_logits(
        self, input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
    ) -> LossOutput:
        if input.ndim > 1:
            input = torch.movedim(input, 1, -1)
        if self.soft_labels is not None:
            target = self._soft_target(input)
        elif target.is_floating_point() and target.ndim > 1:
            target = torch.movedim(target, 1, -1)
        return self.loss.compute(
            input,
            target,
            self.values,  # 0-dim CPU tensors mix with any device
            reduction=reduction,
            ignore_index=ignore_index,
            weight=weight,
            votes=self.votes(input.shape[-1]) if self.votes else None,
        )

    def _of_lazy_logits(
        self, input: LazyLogits, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
    ) -> LossOutput:
        if weight is not None:
            raise NeedsLogitsError("weights its classes")
        if reduction == "none":
            raise NeedsLogitsError("asks for the loss of each row")
        if input.ndim > 2:
            raise NeedsLogitsError(f"has the classes of its logits {tuple(input.shape)} in dimension 1")
        if input.head.weight.untyped_storage().nbytes() == 0:  # gathered for the layer's forward alone: ZeRO-3, FSDP
            raise NeedsLogitsError("has an output embedding that is sharded again before the loss")
        return fused_output(
            self.loss, self.values, input.hidden, target, input.head, reduction=reduction, ignore_index=ignore_index
        )

    def _soft_target(self, logits: Tensor) -> Tensor:
        assert self.soft_labels is not None
        if self.soft_labels.shape != logits.shape:
            raise ValueError(
                f"soft_labels must have the shape of the logits, {tuple(logits.shape)}, got {tuple(self.soft_labels.shape)}"
            )
        return self.soft_labels.to(logits.device)


class _Criterion:
    """Stands in for `torch.nn.CrossEntropyLoss`. A plain class: made in a forward, an nn.Module breaks compiled graphs."""

    seam: Seam

    def __init__(self, *args: Any, **kwargs: Any):
        names = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        self.options = dict(zip(names, args, strict=False)) | kwargs

    def to(self, *args: Any, **kwargs: Any) -> _Criterion:
        return self

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        return self.seam.cross_entropy(input, target, **self.options)
