"""One training step: its labels are counted, its cross-entropies replaced, and its loss checked.

Nothing of the stock training loop is reimplemented. `get_batch_samples` and `training_step` are wrapped: the first counts
the labels of the accumulated batch, the second runs with every cross-entropy replaced (`cross_entropy_patch`) and checks
that the requested loss was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.training_args import OptimizerNames

from maxsup_hf.losses import Loss, create_loss
from maxsup_hf.trainer.cross_entropy_patch import CrossEntropyPatch
from maxsup_hf.trainer.diagnosis import overrides_compute_loss
from maxsup_hf.trainer.normalization import AccumulatedBatch, class_targets, num_items
from maxsup_hf.trainer.one_training import OneTraining
from maxsup_hf.trainer.sft import sft_loss_replaced
from maxsup_hf.trainer.validation import check_float_labels, head_problem, ignored_label, shifts_labels

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerBase
else:
    _TrainerBase = object  # a mixin, so that it comes before any Trainer class


class TrainingStepMixin(_TrainerBase):
    """The part of `MaxSupMixin` that deals with a single training step."""

    args: Any
    model: Any
    trained_loss: Loss | None
    trained_class_weights: Tensor | None
    _training: OneTraining | None

    def _begin_training(self) -> OneTraining:
        """Defined by `MaxSupMixin`. A step that is called outside of `train()` begins a training."""
        raise NotImplementedError

    # ---- the accumulated batch ----

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        if "get_batch_samples" in vars(self):  # in `train()` the method of the most derived class is wrapped instead
            return super().get_batch_samples(*args, **kwargs)
        return self._counted_samples(super().get_batch_samples, *args, **kwargs)

    def _counted_samples(self, get: Callable[..., tuple[list, Any]], *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The micro-batches of an optimizer step. Their labels are counted once, over all ranks."""
        samples, num_items = get(*args, **kwargs)
        training = self._training or self._begin_training()
        if training.samples is not samples or training.batch_is_done:
            training.begin_batch(samples, self._count_labels(training, samples))
        return samples, num_items

    def _count_labels(self, training: OneTraining, samples: list[dict[str, Any]]) -> AccumulatedBatch:
        across_ranks = self.args.average_tokens_across_devices and self.args.world_size > 1
        return AccumulatedBatch(
            [self._class_targets(sample) for sample in samples],
            class_weights=training.patch.class_weights,
            mean_over_ranks=partial(self.accelerator.reduce, reduction="mean") if across_ranks else None,
            replicas=max(1, self.args.n_gpu),
            device=self.args.device,
        )

    def _class_targets(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        num_labels = getattr(getattr(self.model, "config", None), "num_labels", None)
        return class_targets(inputs, ignored_label(self.model), self.label_names, num_labels)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Evaluation passes this to `compute_loss`, and a user's own `compute_loss` may divide by it."""
        if not overrides_compute_loss(self):
            return super()._get_num_items_in_batch(batch_samples, device)
        targets = filter(None, map(self._class_targets, batch_samples))
        return sum(num_items(each, shifts_labels(self.model)) for each in targets) or None

    # ---- the step ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._checked_step(super().training_step, *args, **kwargs)

    def _checked_step(
        self, step: Callable[..., Tensor], model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run the `training_step` of the most derived class with every cross-entropy replaced, and check its loss."""
        training = self._training or self._begin_training()
        if training.patch.is_open:  # an overridden training_step, already wrapped, calls the one that it overrides
            return step(model, inputs, num_items_in_batch)
        targets = self._require_class_targets(inputs)
        inputs, soft_labels = self._take_soft_labels(inputs)
        if self.args.fused_linear_loss and soft_labels is not None:
            raise ValueError(
                f"fused_linear_loss, asked for {type(self.model).__name__}, does not support soft labels, but the batch has "
                "some: leave out Mixup and other class probabilities, or leave fused_linear_loss out"
            )
        if overrides_compute_loss(self):
            # A sum divided by this must weigh as much as the mean that the patch computes.
            num_items_in_batch = num_items(targets, training.shifts, training.patch.batch)
        run, replicas = partial(step, model, inputs, num_items_in_batch), max(1, self.args.n_gpu)
        with self._checked_backward(training, replicas):
            loss = training.step(run, model, targets, soft_labels, self._progress(), replicas)
        self._check_finite(loss)
        self.trained_loss, self.trained_class_weights = training.loss, training.class_weights
        return loss

    def _require_class_targets(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        targets = self._class_targets(inputs)
        if not targets:  # a contrastive or detection loss may use cross-entropy for something other than classes
            names = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                f"the batch has no class labels (it has: {names}), which loss={self.args.loss!r} needs: "
                "labels must be integer tensors with 'label' in their name, or named start_positions and end_positions, or "
                "target_values, or listed in label_names. For contrastive, detection and self-supervised heads use the "
                "stock Trainer"
            )
        return targets

    def _take_soft_labels(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Separate soft labels from the inputs of the model, which get the most probable classes if they lack labels.

        Models take integer labels only: floating ones make them train binary cross-entropy.
        """
        if head_problem(self.model) is not None:
            return inputs, None
        soft_labels, labels = inputs.get("soft_labels"), inputs.get("labels")
        if isinstance(labels, Tensor) and labels.is_floating_point():
            check_float_labels(labels, self.model)
            soft_labels, labels = labels if soft_labels is None else soft_labels, None
        if soft_labels is None:
            return inputs, None
        inputs = {key: value for key, value in inputs.items() if key != "soft_labels"}
        inputs["labels"] = soft_labels.argmax(-1) if labels is None else labels
        return inputs, soft_labels

    def _progress(self) -> float:
        """The fraction of the training that is done."""
        return min(1.0, self.state.global_step / self.state.max_steps) if self.state.max_steps > 0 else 0.0

    @contextmanager
    def _checked_backward(self, training: OneTraining, replicas: int) -> Iterator[None]:
        """Check the step before its backward, where the backward itself updates the weights (DeepSpeed, LOMO)."""
        if not (self.is_deepspeed_enabled or self.args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)):
            yield
            return
        backward = self.accelerator.backward

        def checked(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            training.check_before_backward(loss, replicas)
            backward(loss, *args, **kwargs)

        self.accelerator.backward = checked  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.accelerator.backward

    def _check_finite(self, loss: Tensor) -> None:
        # The stock loop waits for this value right afterwards, to filter NaN from its logs: reading it here costs nothing.
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"the training loss is {loss.mean().item()} in step {self.state.global_step + 1}: the logits are NaN "
                f"or infinite, the class of a label is masked, or loss {self.args.loss!r} diverges on finite logits. The "
                "weights were not updated in this step, and earlier checkpoints are unchanged. Check the data of this step, "
                "or lower learning_rate"
            )

    # ---- the loss ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `transformers.Trainer`. An evaluation on class probabilities is plain cross-entropy against them."""
        if model.training:
            with sft_loss_replaced(type(self)):
                return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        try:
            inputs, soft_labels = self._take_soft_labels(inputs)
        except ValueError:  # floating labels that are not probabilities, for the model's own loss
            soft_labels = None
        if soft_labels is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        patch = CrossEntropyPatch(create_loss("cross_entropy"))
        patch.soft_labels = soft_labels
        with patch.opened(model, in_training=False):
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
