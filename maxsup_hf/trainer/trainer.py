"""The thin Hugging Face shell: stock Trainers whose training loss is a registered one.

Nothing of the stock training loop is written again. While a training runs, `get_batch_samples` and `training_step` are
wrapped, whoever has overridden them: the first counts the labels of the accumulated batch, the second runs with every
cross-entropy replaced (`maxsup_hf.trainer.cross_entropy_patch`) and checks that the loss was trained. `log` adds the
parts of the loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from maxsup_hf.data.mixup import MixupCollator
from maxsup_hf.hub.mixin import HubMixin
from maxsup_hf.losses import IGNORE_INDEX, Loss, create_loss
from maxsup_hf.trainer.checkpointing import CheckpointMixin
from maxsup_hf.trainer.class_weights import weights_for_training
from maxsup_hf.trainer.cross_entropy_patch import CrossEntropyPatch
from maxsup_hf.trainer.lm_head_patch import output_embedding
from maxsup_hf.trainer.loss_state import load_loss, save_loss
from maxsup_hf.trainer.normalization import AccumulatedBatch, class_targets, num_items
from maxsup_hf.trainer.one_training import OneTraining, overrides_compute_loss
from maxsup_hf.trainer.sft import check_trl, check_trl_args, sft_loss_replaced
from maxsup_hf.trainer.training_args import (
    MaxSupArgumentsMixin,
    MaxSupSeq2SeqTrainingArguments,
    MaxSupTrainingArguments,
    check_epochs,
)
from maxsup_hf.trainer.validation import (
    check_float_labels,
    check_fused,
    check_head,
    check_liger,
    check_train_dataset,
    head_problem,
    shifts_labels,
)

logger = logging.getLogger(__name__)

# What is wrapped while a training runs, on the object itself: a method of a derived class cannot get past it.
GUARDED = ("get_batch_samples", "training_step")


class MaxSupMixin(HubMixin, CheckpointMixin):
    """Goes before any Trainer class, whatever its constructor takes: `class MyTrainer(MaxSupMixin, SomeTrainer): ...`

    The training loss is `args.loss` with `args.loss_kwargs`, in place of the cross-entropy that the model itself, or the
    `compute_loss` of a derived class, computes. A training step in which no cross-entropy is trained ends with an error.
    Gradients do not depend on how a batch is cut into micro-batches and ranks: every cross-entropy is a sum over the
    micro-batch, divided by what the whole accumulated batch counts (this rank's share of it, with
    `average_tokens_across_devices=False`); a count that does not come out ends training. Evaluation is the stock one:
    `eval_loss` is plain cross-entropy, against class probabilities where the labels are such.

    Labels are integers. Soft labels, of the shape of the logits, come beside them as `soft_labels`; floating `labels` of
    that shape whose rows sum to 1 are taken for soft labels too.

    Each log of the training loss also has its parts `train_cross_entropy` and `train_penalty` (averaged where a head has
    several cross-entropies; auxiliary losses are in neither), for a sum of losses `train_penalty_<name>` of each, and each
    parameter of the loss as `loss_<name>` (`loss_alpha`), as it was in the last step.

    Attributes:
        loss_function: the loss of this training, or of the last one.
        trained_loss: the loss that was trained, `None` before the first step.
        trained_class_weights: (K,) class weights that were used, also those of the user's own cross-entropy, or `None`.

    Raises:
        TypeError: `args` without the fields of `MaxSupArgumentsMixin`.
        ValueError: `compute_loss_func` is given too, or (from `train`) the head or the data do not fit such a loss, the loss
            is not trained, its gradient depends on the cut, or `args.fused_linear_loss` does not fit the model.
        CheckpointError: (from `train`) a checkpoint could not be written; see `maxsup_hf.trainer.checkpointing`.
        FloatingPointError: (from `train`) a loss is NaN or infinite; checkpoints written before stay as they are.
    """

    args: MaxSupTrainingArguments
    model: Any
    loss_function: Loss
    trained_loss: Loss | None = None
    trained_class_weights: Tensor | None = None
    _signature_columns: Any
    _training: OneTraining | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(MaxSupMixin)]
        late = next((base for base in before if issubclass(base, Trainer) and not issubclass(base, MaxSupMixin)), None)
        if late is not None:
            raise TypeError(
                f"MaxSupMixin must come before {late.__name__} among the bases of {cls.__name__}, or its loss is never "
                f"used: class {cls.__name__}(MaxSupMixin, {late.__name__})"
            )

    def __init__(self, *args: Any, **kwargs: Any):
        for value in (*args, *kwargs.values()):  # wherever this constructor takes them
            if isinstance(value, TrainingArguments):
                _check_arguments(type(self), value)
        super().__init__(*args, **kwargs)
        _check_arguments(type(self), self.args)
        if callable(self.compute_loss_func):  # GRPOTrainer keeps a string there, to switch scaling off
            raise ValueError(
                f"compute_loss_func and loss={self.args.loss!r} are two losses for one training: drop compute_loss_func, or "
                "pass it to a stock Trainer (maxsup_hf.compute_loss_func makes one of a registered loss)"
            )
        self._scale_losses_here()
        self.loss_function = self.args.make_loss()
        self.add_callback(_TellEpochs(self))

    def _scale_losses_here(self) -> None:
        """The stock Trainer would pass num_items_in_batch to any forward with **kwargs, and believe that it was used. Here
        every loss looks like the mean of its micro-batch, also that of a class which says otherwise."""
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False

    # ---- one training ----

    def check(self) -> None:
        """Look at the head, the data and the folder, as `train` does first.

        Raises:
            ValueError, OSError: there is something to correct.
        """
        self.check_output()
        check_trl(type(self), MaxSupMixin)
        check_trl_args(type(self), self.args)
        check_head(self.model, self.args.loss)
        check_train_dataset(self.train_dataset, self.model)
        if self.args.fused_linear_loss:
            output_embedding(self.model)
            check_fused(self, isinstance(self.data_collator, MixupCollator))
        if self.loss_function.state is not None and self.args.n_gpu > 1:
            raise ValueError(
                f"loss={self.args.loss!r} learns from batch to batch, which torch's DataParallel does in threads that do "
                "not see each other: start one process for each GPU with `accelerate launch` or torchrun"
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`, after `check`."""
        check_trl(type(self), MaxSupMixin)  # one of them has a `train` of its own
        output = super().train(*args, **kwargs)
        if not self.preempted:
            self._push_at_the_end()
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Not in `train`, which may come here several times (auto_find_batch_size), with another model than the one that it
        # found (model_init) and with other arguments (a hyperparameter search).
        self._begin_training()
        kept = {name: vars(self)[name] for name in GUARDED if name in vars(self)}
        self.get_batch_samples = partial(self._counted_samples, self.get_batch_samples)  # type: ignore[method-assign]
        self.training_step = partial(self._guarded_step, self.training_step)  # type: ignore[method-assign]
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            for name in GUARDED:
                vars(self).pop(name, None)
            vars(self).update(kept)
            self._end_training()

    def _begin_training(self) -> OneTraining:
        self._end_training()
        self.trained_loss = self.trained_class_weights = None
        self.loss_function = self.args.make_loss()
        self.check()
        self._scale_losses_here()
        weights = weights_for_training(self.args.class_weights, self.model, self.train_dataset, self.label_names)
        if weights is not None:
            logger.info("class_weights: %s", ", ".join(f"{weight:.4g}" for weight in weights.tolist()))
        self._training = OneTraining(
            self.model,
            self.loss_function,
            class_weights=weights,
            fused=self.args.fused_linear_loss,
            owner=type(self),
        )
        return self._training

    def _end_training(self) -> None:
        if self._training is not None:
            self._training.end()
            self._training = None

    # ---- one step ----

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        if "get_batch_samples" in vars(self):  # a training runs, and counts what the most derived class makes of it
            return super().get_batch_samples(*args, **kwargs)
        return self._counted_samples(super().get_batch_samples, *args, **kwargs)

    def _counted_samples(self, get: Callable[..., tuple[list, Any]], *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The micro-batches of an optimizer step; their labels are counted once, over all ranks."""
        samples, num_items = get(*args, **kwargs)
        training = self._training or self._begin_training()
        if training.samples is not samples or training.batch_is_done:
            training.begin_batch(samples, self._count(training, samples))
        return samples, num_items

    def _count(self, training: OneTraining, samples: list[dict[str, Any]]) -> AccumulatedBatch:
        across = self.args.average_tokens_across_devices and self.args.world_size > 1
        return AccumulatedBatch(
            [self._class_targets(sample) for sample in samples],
            class_weights=training.patch.class_weights,
            mean_over_ranks=partial(self.accelerator.reduce, reduction="mean") if across else None,
            replicas=max(1, self.args.n_gpu),
            device=self.args.device,
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._guarded_step(super().training_step, *args, **kwargs)

    def _guarded_step(
        self, step: Callable[..., Tensor], model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """A training step with every cross-entropy replaced, and checked; `step` is that of the most derived class."""
        training = self._training or self._begin_training()
        if training.patch.is_open:  # this step is inside one that was overridden
            return step(model, inputs, num_items_in_batch)
        targets = self._class_targets(inputs)
        if not targets:
            names = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
            # a contrastive or a detection loss may use cross-entropy for something else than classes
            raise ValueError(
                f"the batch has no class labels (it has: {names}), which loss={self.args.loss!r} needs: "
                "labels must be integer tensors under a name with 'label' in it, or start_positions and end_positions, or "
                "target_values, or a name in label_names. For contrastive, detection and self-supervised heads use the "
                "stock Trainer"
            )
        inputs, soft_labels = self._take_soft_labels(inputs)
        if self.args.fused_linear_loss and soft_labels is not None:
            raise ValueError(
                f"fused_linear_loss, asked for {type(self.model).__name__}, does not support soft labels, but the batch has "
                "some: leave out Mixup and other class probabilities, or leave fused_linear_loss out"
            )
        if overrides_compute_loss(self):  # a sum divided by this weighs as much as a mean of the patch
            num_items_in_batch = num_items(targets, training.shifts, training.patch.batch)
        progress = min(1.0, self.state.global_step / self.state.max_steps) if self.state.max_steps > 0 else 0.0
        run, replicas = partial(step, model, inputs, num_items_in_batch), max(1, self.args.n_gpu)
        with self._checked_backward(training, replicas):
            loss = training.step(run, model, targets, soft_labels, progress, replicas)
        # The stock loop waits for this value right after, to filter NaN from its logs: looking at it here is free.
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"the training loss is {loss.mean().item()} in step {self.state.global_step + 1}: the logits are NaN "
                f"or infinite, a label's class is masked, or loss {self.args.loss!r} makes that of finite logits. The "
                "weights were not updated in this step, and earlier checkpoints are as they were. Look at that step's data, "
                "or lower learning_rate"
            )
        self.trained_loss, self.trained_class_weights = training.loss, training.class_weights
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Evaluation passes this to `compute_loss`, and one of the user's own may divide by it."""
        if not overrides_compute_loss(self):
            return super()._get_num_items_in_batch(batch_samples, device)
        targets = filter(None, map(self._class_targets, batch_samples))
        return sum(num_items(each, shifts_labels(self.model)) for each in targets) or None

    @contextmanager
    def _checked_backward(self, training: OneTraining, replicas: int) -> Iterator[None]:
        """Let the checks of a step come before a backward that updates the weights itself."""
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

    def _class_targets(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        config = getattr(self.model, "config", None)
        ignored = getattr(config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", IGNORE_INDEX))
        return class_targets(inputs, ignored, self.label_names, getattr(config, "num_labels", None))

    def _take_soft_labels(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Models take integer labels alone (float ones make them train binary cross-entropy): soft labels are taken out,
        and the most probable class stands in where there are no integer ones."""
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

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `transformers.Trainer`; an evaluation on class probabilities is plain cross-entropy against them."""
        if model.training:
            with sft_loss_replaced(type(self)):
                return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        try:
            inputs, soft_labels = self._take_soft_labels(inputs)
        except ValueError:  # floating labels of another kind, which the model's own loss takes
            soft_labels = None
        if soft_labels is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        patch = CrossEntropyPatch(create_loss("cross_entropy"))
        patch.soft_labels = soft_labels
        with patch.opened(model, differentiated=False):
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        mixing = self.data_collator
        if kwargs.get("is_training") or not isinstance(mixing, MixupCollator):
            return super()._get_dataloader(*args, **kwargs)
        self.data_collator = mixing.collator  # evaluation sees whole images and hard labels
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = mixing

    # ---- logging ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._training is not None:
            logs |= self._training.take_parts(partial(self.accelerator.reduce, reduction="mean"))
        super().log(logs, *args, **kwargs)

    # ---- checkpoints ----

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, "sum")

    def end_epoch(self, epochs: int) -> None:
        """Tell the loss that so many epochs are done."""
        self.loss_function.end_epoch(epochs, self._sum_over_ranks if self.args.world_size > 1 else None)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.save_loss(output_dir)

    def save_loss(self, folder: str | None) -> None:
        """Write which loss it was, and what it remembers of all ranks, into a folder."""
        state = self.loss_function.state
        tensors = state.tensors(self._sum_over_ranks if self.args.world_size > 1 else None) if state is not None else {}
        if self.args.should_save:
            save_loss(str(folder), self.loss_function, tensors, self.trained_class_weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        main = self.args.process_index == 0
        weights = None if self._training is None else self._training.class_weights
        if load_loss(checkpoint, self.loss_function, self.args.resume_with_other_loss, main, weights):
            self.trained_loss = self.loss_function

    # ---- the rest of the shell ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "soft_labels" not in self._signature_columns:
            self._signature_columns.append("soft_labels")


def _check_arguments(trainer_class: type, args: TrainingArguments) -> None:
    if not isinstance(args, MaxSupArgumentsMixin):
        raise TypeError(
            f"args must have the fields loss and loss_kwargs, got {type(args).__name__}: use MaxSupTrainingArguments "
            f"or MaxSupSeq2SeqTrainingArguments, or derive a class from (MaxSupArgumentsMixin, {type(args).__name__})"
        )
    check_liger(args)
    check_trl_args(trainer_class, args)


class _TellEpochs(TrainerCallback):
    """Tells the loss how many epochs there are, and when they end. At the beginning of one too: a checkpoint of an epoch's
    last step was written before that end."""

    def __init__(self, trainer: MaxSupMixin):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps = 0
        if isinstance(self.trainer.train_dataset, Sized):  # else no number of epochs is known
            check_epochs(self.trainer.loss_function, state.num_train_epochs)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_epoch(int(state.epoch + 1e-6))

    on_epoch_end = on_epoch_begin

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last look before the weights change: somebody may have put another training_step in the place of ours."""
        training = self.trainer._training
        steps = 0 if training is None else training.steps
        if steps == self._steps:
            raise ValueError(
                f"loss={args.loss!r} was asked for, but the gradient of step {state.global_step + 1} was not computed by "
                "the Trainer's training_step, so nothing is known of its loss: do not replace training_step while a "
                "training runs"
            )
        self._steps = steps


class MaxSupTrainer(MaxSupMixin, Trainer):
    """`transformers.Trainer` with the loss of `MaxSupTrainingArguments`; see `MaxSupMixin`.

    trainer = MaxSupTrainer(model, MaxSupTrainingArguments("out", loss="maxsup"), train_dataset=dataset)
    trainer.train()

    Without `args` they are `MaxSupTrainingArguments("tmp_trainer")`.
    """

    def __init__(self, model: Any = None, args: Any = None, *positional: Any, **kwargs: Any):
        super().__init__(model, MaxSupTrainingArguments("tmp_trainer") if args is None else args, *positional, **kwargs)


class MaxSupSeq2SeqTrainer(MaxSupMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with the loss of `MaxSupSeq2SeqTrainingArguments`; see `MaxSupMixin`."""

    def __init__(self, model: Any = None, args: Any = None, *positional: Any, **kwargs: Any):
        args = MaxSupSeq2SeqTrainingArguments("tmp_trainer") if args is None else args
        super().__init__(model, args, *positional, **kwargs)
