"""Everything that belongs to one training: made when it starts, ended with it.

A Trainer may train several times (a second `train()`, `model_init`, `hyperparameter_search`, `auto_find_batch_size`), each
time with another model, loss or batch size. Nothing of the one before may be left in the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from maxsup_hf.losses import Loss
from maxsup_hf.trainer.cross_entropy_patch import Call, CrossEntropyPatch
from maxsup_hf.trainer.lm_head_patch import NeedsLogitsError, lazy, output_embedding
from maxsup_hf.trainer.normalization import AccumulatedBatch
from maxsup_hf.trainer.validation import shifts_labels
from maxsup_hf.trainer.votes import Votes

# How heads of transformers, and its Trainer, say that they are not to be trained.
UNTRAINABLE = ("not trainable", "support training", "did not return a loss", "ForCausalLMLoss() missing")


class OneTraining:
    """The loss of one training, its patch, its hooks, and what was logged last.

    Attributes:
        loss: what is trained.
        patch: through which it reaches the training step.
        samples: the micro-batches that were counted last.
        steps: how many training steps were run with this loss.
        class_weights: (K,) that were used, those of a cross-entropy in the user's own code too, or `None`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        class_weights: Tensor | None = None,
        fused: bool = False,
        owner: type = object,
    ):
        """
        Args:
            model: the model, not wrapped.
            loss: made for this training.
            class_weights: (K,) of the training arguments, or `None`.
            fused: whether the logits of a language model are left to the loss.
            owner: the Trainer's class; its files may have imported the cross-entropy by name.
        """
        self.model, self.loss, self.fused, self.owner = model, loss, fused, owner
        self.shifts = shifts_labels(model)
        self.patch = CrossEntropyPatch(loss, class_weights, self.shifts)
        self.votes = Votes(model) if loss.needs_votes else None
        self.patch.votes = self.votes
        self.steps = 0  # that were checked
        self.samples: Sequence[Any] | None = None
        self._checked = False  # this step, before its backward
        self._done = 0  # micro-batches of the accumulated batch
        self._parts: dict[str, Tensor] = {}  # summed over steps since the last log
        self._steps = 0.0

    @property
    def class_weights(self) -> Tensor | None:
        return self.patch.weight_used

    def end(self) -> None:
        """Remove what was attached to the model."""
        if self.votes is not None:
            self.votes.remove()

    # ---- a step ----

    @property
    def batch_is_done(self) -> bool:
        """Whether all micro-batches that were counted last were trained."""
        return self.samples is None or self._done >= len(self.samples)

    def begin_batch(self, samples: Sequence[Any], batch: AccumulatedBatch) -> None:
        """Go on to the next accumulated batch."""
        self.samples, self.patch.batch, self._done = samples, batch, 0

    def step(
        self,
        run: Callable[[], Tensor],
        model: nn.Module,
        targets: dict[str, Tensor],
        soft_labels: Tensor | None,
        progress: float,
        replicas: int = 1,
    ) -> Tensor:
        """Run one training step, forward and backward, with this loss, and check that it was trained.

        Args:
            run: the step; returns its loss.
            model: as it is called in the step.
            targets: `class_targets` of its micro-batch.
            soft_labels: (..., K) class probabilities, or `None`.
            progress: share of training that is done.
            replicas: of the model, in which torch's DataParallel computes it.

        Raises:
            ValueError: the loss was not trained, or its gradient depends on how the batch is cut.
        """
        patch = self.patch
        patch.set_progress(progress)
        patch.micro_batch, patch.soft_labels = targets, soft_labels
        self._checked = False
        fused = lazy(output_embedding(self.model)) if self.fused else nullcontext()
        try:
            with patch.opened(model, self.owner), fused:
                loss = run()
        except NeedsLogitsError as error:
            raise ValueError(
                f"fused_linear_loss cannot serve {type(self.model).__name__}, which {error}: leave fused_linear_loss out"
            ) from error
        except Exception as error:
            reason = (
                None if patch.calls or should_reduce_batch_size(error) else self._explain(error, soft_labels is not None)
            )
            if reason is None:
                raise
            raise ValueError(reason) from error
        finally:
            patch.soft_labels = None
        self.steps += 1
        reached = patch.reached()
        if not self._checked:
            self._check(reached, replicas)
        self._add_parts([call for _, call in reached])
        return loss

    def check_before_backward(self, loss: Tensor, replicas: int = 1) -> None:
        """The checks of `step`, for a backward that updates the weights itself (DeepSpeed, LOMO)."""
        self._check(self.patch.reached(loss), replicas)
        self._checked = True

    def _check(self, reached: list[tuple[int, Call]], replicas: int) -> None:
        try:
            self._check_reached(reached)
            self._check_counts(reached, replicas)
        except ValueError:
            self.model.zero_grad()
            raise

    def _check_reached(self, reached: Sequence[tuple[int, Call]]) -> None:
        own = compute_loss_class(self.owner).__module__.partition(".")[0] not in ("maxsup_hf", "transformers")
        if own and any(call.node is None for _, call in reached):
            warnings.warn(
                f"{self.owner.__name__}.compute_loss computes its own loss of a compiled model: whether it depends on the "
                f"cross-entropy inside of the model's graph, which is loss={self.loss.spec.name!r}, cannot be checked",
                stacklevel=2,
            )
        if reached:
            if self.fused and not any(call.fused for _, call in reached):
                raise ValueError(
                    f"fused_linear_loss cannot serve {type(self.model).__name__}, whose loss does not come from what its "
                    "output embedding returns: leave fused_linear_loss out"
                )
            return
        what = f"{self.owner.__name__}.compute_loss" if own else type(self.model).__name__
        if self.patch.calls:
            found = f"the loss that {what} trains on does not depend on the cross-entropy that was computed in the step"
        else:
            found = (
                f"{what} trained on a loss without a cross-entropy that can be replaced (regression, multi-label, "
                "detection, contrastive, a formula of its own or a fused kernel)"
            )
        raise ValueError(
            f"loss={self.loss.spec.name!r} was asked for, but {found}. The weights were not updated in this step. Let the "
            "loss come from torch.nn.functional.cross_entropy or torch.nn.CrossEntropyLoss, called by that name and not by "
            "a reference that was kept before training; use a head whose loss is a cross-entropy over classes, or the "
            "stock Trainer"
        )

    def _check_counts(self, reached: Sequence[tuple[int, Call]], replicas: int) -> None:
        batch = self.patch.batch
        if batch is None or batch.is_whole:
            return
        self._done += 1
        for place, call in reached:
            if place in self.patch.upstream:
                is_last = self._done == len(batch.micro_batches)
                batch.check_slope(place // replicas, self.patch.upstream[place], call.reduction, is_last)
            if call.counting is not None and call.found is not None and call.expected is not None:
                batch.report(place // replicas, call.counting, call.found, call.expected)
        if self._done == len(batch.micro_batches):
            batch.check()

    def _explain(self, error: Exception, soft: bool) -> str | None:
        """What an exception before any cross-entropy means, where that is known."""
        name = type(self.model).__name__
        if isinstance(error, NotImplementedError) or any(words in str(error) for words in UNTRAINABLE):
            return (
                f"loss={self.loss.spec.name!r} was asked for, but {name} is a head that transformers gives no loss for "
                f"these labels ({type(error).__name__}: {error}). Use a head whose loss is a cross-entropy over classes"
            )
        if not soft:
            return None
        return (
            f"loss={self.loss.spec.name!r} was asked for with soft labels, but {name} failed on the integer labels that "
            f"stand in for them, before any cross-entropy ({type(error).__name__}: {error}). If its own loss takes floating "
            "labels (multi-label, KL divergence), use the stock Trainer for this head"
        )

    # ---- logging ----

    def _add_parts(self, calls: Sequence[Call]) -> None:
        """Add this micro-batch's parts to those of the next log, weighted as the Trainer weights its loss."""
        share = 1 / (len(self.samples) if self.samples else 1)
        parts = {"train_cross_entropy": [call.output.cross_entropy for call in calls]}
        parts["train_penalty"] = [call.output.penalty for call in calls]
        if "+" in self.loss.spec.name:
            for name in self.loss.spec.name.split("+"):
                parts[f"train_penalty_{name}"] = [call.output.penalties[name] for call in calls]
        for name, values in parts.items():
            mean = torch.stack([value.mean() for value in values]).mean().float()
            self._parts[name] = self._parts.get(name, 0) + share * mean
        self._steps += share

    def take_parts(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> Mapping[str, float]:
        """The parts of the loss since the last log, averaged over steps and ranks; starts the next ones."""
        if not self._steps:  # somebody else's log of a loss
            return {}
        names = list(self._parts)
        values = mean_over_ranks(torch.stack([self._parts[name] for name in names]) / self._steps).tolist()
        self._parts, self._steps = {}, 0.0
        parameters = {f"loss_{name}": value.item() for name, value in self.patch.values.items()}
        return dict(zip(names, values, strict=True)) | parameters


def overrides_compute_loss(trainer: Any) -> bool:
    """Whether a `compute_loss` of the user's, outside of this package and transformers, computes the loss."""
    homes = [base.__module__.partition(".")[0] for base in type(trainer).__mro__ if "compute_loss" in vars(base)]
    return "compute_loss" in vars(trainer) or next(home for home in homes if home != "maxsup_hf") != "transformers"


def compute_loss_class(owner: type) -> type:
    """The class whose `compute_loss` a Trainer's class uses."""
    return next((base for base in owner.__mro__ if "compute_loss" in vars(base)), owner)
