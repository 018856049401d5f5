"""Where the library meets a model: the model's own cross-entropy is swapped while a training forward runs.

transformers' heads reach cross-entropy by one of two names: `transformers.loss.loss_utils.fixed_cross_entropy`, or
`CrossEntropyLoss` imported into the file that defines the model. Inside `Seam.swapped(model)` both lead to one function
here. So a head keeps all that is its own (the causal shift, upsampling, the start and end pair, a router's auxiliary
loss, decoder inputs made from labels), and only the cross-entropy is another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss import loss_utils

from maxsup_hf.losses import Loss, LossOutput


class Seam:
    """Holds a loss, and what one training forward needs of it.

    Attributes:
        values: parameter -> 0-dim float64 tensor, filled in place by `set_progress`: a compiled graph then serves a whole
            schedule.
        items: what a mean is divided by, instead of the counted rows of its own call; a number, or a 0-dim tensor;
            `None` for the call's own count.
        soft_labels: (..., K) class probabilities that replace the integer labels of the next forward, or `None`.
        outputs: one `LossOutput`, detached, for each cross-entropy of the last forward.
    """

    def __init__(self, loss: Loss):
        self.loss = loss
        self.values = {name: torch.tensor(value, dtype=torch.float64) for name, value in loss.values(0.0).items()}
        self.items: Tensor | float | None = None
        self.soft_labels: Tensor | None = None
        self.outputs: list[LossOutput] = []
        # Made once: a class or a closure that is new in every forward would make torch.compile trace again.
        self._criterion = type("CrossEntropyLoss", (_Criterion,), {"seam": self})
        self._function = self._fixed_cross_entropy
        self._files: tuple[int, list[Any]] | None = None

    def set_progress(self, progress: float) -> None:
        """Set scheduled parameters; `progress` in [0, 1]."""
        for name, value in self.loss.values(progress).items():
            self.values[name].fill_(value)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """While this is open, every cross-entropy that `model` computes is this loss. The names are put back whatever
        happens inside."""
        self.outputs.clear()
        originals: list[tuple[Any, str, Any]] = [(loss_utils, "fixed_cross_entropy", loss_utils.fixed_cross_entropy)]
        originals += [(file, "CrossEntropyLoss", nn.CrossEntropyLoss) for file in self._model_files(model)]
        try:
            for file, name, _ in originals:
                setattr(file, name, self._function if name == "fixed_cross_entropy" else self._criterion)
            yield
        finally:
            for file, name, original in originals:
                setattr(file, name, original)

    def _model_files(self, model: nn.Module) -> list[Any]:
        """Modules in which a class of the model, or a base of one, is written and which name torch's CrossEntropyLoss.
        Walking all submodules sees through PEFT, DDP, FSDP and encoder-decoders."""
        if self._files is None or self._files[0] != id(model):
            names = {base.__module__ for module in model.modules() for base in type(module).__mro__}
            files = [sys.modules[name] for name in names if not name.startswith("torch.") and name in sys.modules]
            self._files = (id(model), [f for f in files if vars(f).get("CrossEntropyLoss") is nn.CrossEntropyLoss])
        return self._files[1]

    def _fixed_cross_entropy(
        self,
        source: Tensor,
        target: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> Tensor:
        # A num_items_in_batch from a caller other than our Trainer counts as in transformers.
        return self.cross_entropy(source, target, ignore_index=ignore_index, num_items_in_batch=num_items_in_batch)

    def cross_entropy(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        num_items_in_batch: Tensor | float | None = None,
    ) -> Tensor:
        """The one function that both names lead to; layouts as in `torch.nn.functional.cross_entropy`."""
        if input.ndim > 1:
            input = torch.movedim(input, 1, -1)
        if self.soft_labels is not None:
            target = self._soft_target(input)
        elif target.is_floating_point() and target.ndim > 1:
            target = torch.movedim(target, 1, -1)
        items = num_items_in_batch
        # A weighted mean has its own denominator, the weights of its labels.
        if items is None and reduction == "mean" and weight is None:
            items = self.items
        output = self.loss.compute(
            input,
            target,
            self.values,  # 0-dim CPU tensors mix with any device
            num_items_in_batch=items,
            reduction=reduction,
            ignore_index=ignore_index,
            weight=weight,
        )
        self.outputs.append(LossOutput(output.loss.detach(), output.cross_entropy))
        return output.loss

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

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        if label_smoothing:
            raise ValueError(
                f"the model smooths its own labels (CrossEntropyLoss(label_smoothing={label_smoothing})), which loss "
                f"{self.seam.loss.spec.name!r} would replace: set that to 0 in the model's config"
            )
        self.weight, self.ignore_index, self.reduction = weight, ignore_index, reduction

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        return self.seam.cross_entropy(input, target, self.weight, self.ignore_index, self.reduction)
