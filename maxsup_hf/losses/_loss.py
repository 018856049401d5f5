"""A registered formula with its parameters, as a module on logits and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maxsup_hf.logit_stats import logit_stats
from maxsup_hf.losses._registry import LossSpec, get_spec
from maxsup_hf.reduction import class_weighted, reduce, split_ignored
from maxsup_hf.schedules import SCHEDULES, interpolate


class LossOutput(NamedTuple):
    """A reduced loss and, detached, the plain cross-entropy in it; what is left is the penalty."""

    loss: Tensor
    cross_entropy: Tensor

    @property
    def penalty(self) -> Tensor:
        return self.loss.detach() - self.cross_entropy


class Loss(nn.Module):
    """A loss of the registry; made by `create_loss`. It has no parameters to learn and no buffers."""

    def __init__(self, spec: LossSpec, **kwargs: Any):
        super().__init__()
        self.spec = spec
        self.kwargs = spec.resolve(kwargs)
        self.values(0.0)  # a schedule that lacks what it needs says so here

    def extra_repr(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.kwargs.items() if v is not None)
        return ", ".join(filter(None, (repr(self.spec.name), given)))

    def values(self, progress: float) -> dict[str, float]:
        """The parameters at this point of training.

        Args:
            progress: share of training that is done, in [0, 1].

        Raises:
            ValueError: `progress` outside [0, 1], or an epoch-wise schedule without `epochs`.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], the share of training that is done, got {progress!r}")
        if not any(self.kwargs[f"{name}_end"] is not None for name in self.spec.parameters):
            return {name: self.kwargs[name] for name in self.spec.parameters}
        fraction = SCHEDULES[self.kwargs["schedule"]](progress, self.kwargs["epochs"])
        return {name: interpolate(self.kwargs[name], self.kwargs[f"{name}_end"], fraction) for name in self.spec.parameters}

    @property
    def is_scheduled(self) -> bool:
        """Whether any parameter changes over training."""
        return self.values(0.0) != self.values(1.0)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        progress: float = 0.0,
        num_items_in_batch: Tensor | float | None = None,
        reduction: str = "mean",
        *,
        ignore_index: int = -100,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (..., K), classes last as in transformers; floating. Arithmetic is float32 (float64 for float64).
            labels: (...) integer class indices, or (..., K) class probabilities.
            progress: share of training that is done, in [0, 1]; sets scheduled parameters.
            num_items_in_batch: what to divide the sum by, instead of the number of counted rows of this batch.
            reduction: `"mean"`, `"sum"`, or `"none"` for a tensor of the shape of one label per row.
            ignore_index: label of rows that take no part.
            weight: (K,) class weights; they scale the term on the label and its normalisation as in
                `torch.nn.functional.cross_entropy`, not the penalty.

        Returns:
            float32 (float64 for float64 logits); gradients to `logits` come in its dtype.

        Raises:
            TypeError, ValueError: shapes, dtypes or labels that do not fit; the message says what was expected.
        """
        return self.compute(
            logits,
            labels,
            self.values(progress),
            num_items_in_batch=num_items_in_batch,
            reduction=reduction,
            ignore_index=ignore_index,
            weight=weight,
        ).loss

    def compute(
        self,
        logits: Tensor,
        labels: Tensor,
        values: Mapping[str, Any],
        *,
        num_items_in_batch: Tensor | float | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Tensor | None = None,
    ) -> LossOutput:
        """As `forward`, with the parameters' values given (numbers, or 0-dim tensors so that a compiled graph serves a
        whole schedule), returning the cross-entropy beside the loss."""
        check_inputs(logits, labels, ignore_index, weight)
        num_classes = logits.shape[-1]
        soft = labels.is_floating_point()
        rows = logits.reshape(-1, num_classes)
        valid, target = split_ignored(labels.reshape(-1, num_classes) if soft else labels.reshape(-1), ignore_index)

        numbers = logit_stats(rows, target, tuple(dict.fromkeys(("cross_entropy", *self.spec.numbers))))
        row_weight = None
        if weight is not None:
            weighted = class_weighted(target, weight)
            if soft:  # every class of a row has its own weight, so the weighting is the target's; the penalty sees none
                numbers |= logit_stats(rows, weighted, ("cross_entropy",))
            else:
                row_weight = weighted
        label_term, penalty = self.spec.formula(*(numbers[name] for name in self.spec.numbers), **values)
        cross_entropy = numbers["cross_entropy"]

        def total(term: Tensor, row_weight: Tensor | None = None) -> Tensor:
            return reduce(term, valid, reduction, num_items_in_batch, row_weight)

        output = LossOutput(
            loss=total(label_term, row_weight) + total(penalty),
            cross_entropy=total(cross_entropy.detach(), row_weight),
        )
        if reduction == "none":
            return LossOutput(*(x.reshape(logits.shape[:-1]) for x in output))
        return output


def create_loss(name: str, **kwargs: Any) -> Loss:
    """Make a registered loss.

        loss = create_loss("maxsup", alpha=0.1, alpha_end=0.2)
        loss(logits, labels, progress=0.5).backward()

    Args:
        name: one of `list_losses()`.
        **kwargs: its parameters. Every numeric parameter `p` also has `p_end`, which it reaches at the end of training
            (`None` keeps it constant), by `schedule`: `"linear"`, or epoch-wise `"epoch/T"` (also `"epoch"`) and
            `"epoch/(T-1)"`, for which `epochs` is T.

    Raises:
        ValueError: unknown name (the message names the nearest), or a value that is NaN, infinite or out of bounds.
        TypeError: a parameter that the loss does not have, or a value of a wrong type.
    """
    return Loss(get_spec(name), **kwargs)


def check_inputs(logits: Tensor, labels: Tensor, ignore_index: int, weight: Tensor | None) -> None:
    """Refuse what would give a wrong loss or an obscure error. Values of labels are looked at on the CPU only: elsewhere
    that would make the host wait, and the device itself fails on an index out of range, as in torch."""
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim == 0:
        raise ValueError("logits must have a class dimension, got a 0-dim tensor")
    num_classes = logits.shape[-1]
    if num_classes < 2:
        raise ValueError(
            f"logits must have at least 2 classes, got shape {tuple(logits.shape)}: with one class the loss is 0 whatever "
            "the model does (for regression use a regression loss)"
        )
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise ValueError(
                f"floating labels are class probabilities and must have the logits' shape {tuple(logits.shape)}, got "
                f"{tuple(labels.shape)}; class indices must be integers"
            )
    elif labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(f"labels must be integer class indices or floating class probabilities, got {labels.dtype}")
    elif labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:-1])}, one class index for each row of logits "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    elif labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        counted = labels[labels != ignore_index]
        if counted.numel() and not (int(counted.min()) >= 0 and int(counted.max()) < num_classes):
            raise ValueError(
                f"labels must lie in [0, {num_classes}), or be ignore_index={ignore_index}, got values from "
                f"{int(counted.min())} to {int(counted.max())}"
            )
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(f"weight must have shape ({num_classes},), one for each class, got {tuple(weight.shape)}")
