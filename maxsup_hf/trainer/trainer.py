"""`transformers.Trainer` and `Seq2SeqTrainer` with a registered loss as the training loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sized
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainingArguments

from maxsup_hf.data.mixup import MixupCollator
from maxsup_hf.hub.mixin import HubMixin
from maxsup_hf.losses import Loss
from maxsup_hf.metrics._accumulator import Accumulator
from maxsup_hf.trainer.checkpointing import CheckpointMixin
from maxsup_hf.trainer.class_weights import weights_for_training
from maxsup_hf.trainer.continuation import changes_on_resume
from maxsup_hf.trainer.learning_rate import StepScheduleMixin
from maxsup_hf.trainer.lm_head_patch import output_embedding
from maxsup_hf.trainer.loss_state import load_loss, loss_changes, save_loss
from maxsup_hf.trainer.one_training import OneTraining
from maxsup_hf.trainer.sft import check_trl, check_trl_args
from maxsup_hf.trainer.training_args import (
    MaxSupArgumentsMixin,
    MaxSupSeq2SeqTrainingArguments,
    MaxSupTrainingArguments,
    check_epochs,
)
from maxsup_hf.trainer.training_step import TrainingStepMixin
from maxsup_hf.trainer.validation import check_fused, check_head, check_liger, check_train_dataset, predicts_next_token

logger = logging.getLogger(__name__)

# Wrapped during a training on the object itself, so that methods of derived classes are wrapped too.
WRAPPED_METHODS = ("get_batch_samples", "training_step")


class MaxSupMixin(TrainingStepMixin, StepScheduleMixin, HubMixin, CheckpointMixin):
    """Adds the loss to any Trainer class, whatever its constructor takes; put it first.

    The training loss is `args.loss` with `args.loss_kwargs`. It replaces the cross-entropy that the model, or the
    `compute_loss` of a derived class, computes. A training step that trains no cross-entropy raises an error.
    Gradients do not depend on how a batch is split into micro-batches and ranks: every cross-entropy is a sum over the
    micro-batch, divided by the label count of the whole accumulated batch (of this rank's share, with
    `average_tokens_across_devices=False`). If the labels counted in the steps do not add up to that count, training stops.
    Evaluation is unchanged: `eval_loss` is plain cross-entropy, against class probabilities where the labels are soft.

    Labels are integers. Soft labels, of the shape of the logits, are passed beside them as `soft_labels`. Floating `labels`
    of that shape whose rows sum to 1 are soft labels too.

    Each log of the training loss also holds its parts `train_cross_entropy` and `train_penalty` (averaged if a head has
    several cross-entropies; auxiliary losses are in neither), `train_penalty_<name>` for each summand of a sum of losses,
    and each parameter of the loss as `loss_<name>` (`loss_alpha`), with its value in the last step.

    Attributes:
        loss_function: the loss of the current training, or of the last one.
        trained_loss: the loss that was trained, `None` before the first step.
        trained_class_weights: (K,) class weights that were used, including those of the user's own cross-entropy, or `None`.

    Raises:
        TypeError: `args` lack the fields of `MaxSupArgumentsMixin`.
        ValueError: `compute_loss_func` is passed as well; or, from `train`, the head or the data do not fit the loss, the
            loss is not trained, its gradient depends on the split, or the model does not support `args.fused_linear_loss`.
        CheckpointError: (from `train`) a checkpoint could not be written; see `maxsup_hf.trainer.checkpointing`.
        FloatingPointError: (from `train`) the loss is NaN or infinite. Earlier checkpoints are kept.

    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer
        >>> from maxsup_hf import MaxSupMixin, MaxSupTrainingArguments
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        >>> class MyTrainer(MaxSupMixin, Trainer):
        ...     pass
        >>> MyTrainer(model, MaxSupTrainingArguments(mkdtemp(), loss="label_smoothing")).loss_function.values(0.0)
        {'alpha': 0.1}
    """

    args: MaxSupTrainingArguments
    model: Any
    loss_function: Loss
    trained_loss: Loss | None = None
    trained_class_weights: Tensor | None = None
    _signature_columns: Any
    _training: OneTraining | None = None
    needs_check: bool = True  # set to False once `check` has passed and nothing changes before the training

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
        for value in (*args, *kwargs.values()):  # the position of the training arguments is up to the Trainer's class
            if isinstance(value, TrainingArguments):
                _check_arguments(type(self), value)
        super().__init__(*args, **kwargs)
        _check_arguments(type(self), self.args)
        if callable(self.compute_loss_func):  # GRPOTrainer stores a string here, which switches scaling off
            raise ValueError(
                f"compute_loss_func and loss={self.args.loss!r} are two losses for one training: leave compute_loss_func "
                "out, or pass it to a stock Trainer (maxsup_hf.compute_loss_func makes one of a registered loss)"
            )
        self._disable_stock_scaling()
        if isinstance(self.compute_metrics, Accumulator) and self.compute_metrics.next_token is None:
            self.compute_metrics.next_token = predicts_next_token(self.model)
        self.loss_function = self.args.make_loss()
        self.add_callback(_EndLossEpochs(self))
        self.add_callback(_CheckStepRan(self))

    def _disable_stock_scaling(self) -> None:
        """Make the stock Trainer treat every loss as the mean of its micro-batch, even if a class declares otherwise.

        Otherwise it passes num_items_in_batch to any forward with **kwargs, and assumes that the forward divided by it.
        """
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False

    # ---- one training ----

    def check(self) -> None:
        """Check the head, the data and the output folder, as `train` does first.

        Raises:
            ValueError, OSError: names what to correct.
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
                f"loss={self.args.loss!r} learns from batch to batch, which torch's DataParallel does not support because "
                "its threads do not share that state: start one process for each GPU with `accelerate launch` or torchrun"
            )

    def check_resumed(self, checkpoint: str) -> None:
        """Check that a complete checkpoint can be continued with the loss, the data and the settings of this training.

        Raises:
            ValueError: names what differs.
        """
        changes_on_resume(checkpoint, self.args, *self._data_and_model())
        weights = weights_for_training(self.args.class_weights, self.model, self.train_dataset, self.label_names)
        loss_changes(checkpoint, self.args.make_loss(), self.args.resume_with_other_loss, class_weights=weights)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`, after `check`."""
        check_trl(type(self), MaxSupMixin)  # before `train` of a TRL trainer that overrides it
        output = super().train(*args, **kwargs)
        if not self.preempted:
            self._push_at_the_end()
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # A training begins here and not in `train`, which may call this several times (auto_find_batch_size), with a model
        # that it creates itself (model_init) and with changed arguments (a hyperparameter search).
        self._begin_training()
        kept = {name: vars(self)[name] for name in WRAPPED_METHODS if name in vars(self)}
        self.get_batch_samples = partial(self._counted_samples, self.get_batch_samples)  # type: ignore[method-assign]
        self.training_step = partial(self._checked_step, self.training_step)  # type: ignore[method-assign]
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            for name in WRAPPED_METHODS:
                vars(self).pop(name, None)
            vars(self).update(kept)
            self._end_training()

    def _begin_training(self) -> OneTraining:
        self._end_training()
        self.trained_loss = self.trained_class_weights = None
        self.loss_function = self.args.make_loss()
        if self.needs_check:
            self.check()
        self._disable_stock_scaling()
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

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._training is not None:
            logs |= self._training.take_parts(partial(self.accelerator.reduce, reduction="mean"))
        super().log(logs, *args, **kwargs)

    # ---- data ----

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        mixing = self.data_collator
        if kwargs.get("is_training") or not isinstance(mixing, MixupCollator):
            return super()._get_dataloader(*args, **kwargs)
        self.data_collator = mixing.collator  # evaluation uses whole images and hard labels
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = mixing

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "soft_labels" not in self._signature_columns:
            self._signature_columns.append("soft_labels")

    # ---- the state of the loss ----

    @property
    def _all_reduce(self) -> Callable[[Tensor], Tensor] | None:
        """Sums a tensor over ranks. `None` for a single process."""
        return partial(self.accelerator.reduce, reduction="sum") if self.args.world_size > 1 else None

    def end_epoch(self, epochs: int) -> None:
        """Tell the loss that this many epochs are complete."""
        self.loss_function.end_epoch(epochs, self._all_reduce)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.save_loss(output_dir)

    def save_loss(self, folder: str | None) -> None:
        """Write the name, arguments and state (summed over ranks) of the loss into a folder."""
        state = self.loss_function.state
        tensors = {} if state is None else state.tensors(self._all_reduce)
        if self.args.should_save:
            save_loss(str(folder), self.loss_function, tensors, self.trained_class_weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        main = self.args.process_index == 0
        weights = None if self._training is None else self._training.class_weights
        if load_loss(checkpoint, self.loss_function, self.args.resume_with_other_loss, main, weights):
            self.trained_loss, self.trained_class_weights = self.loss_function, weights


def _check_arguments(trainer_class: type, args: TrainingArguments) -> None:
    if not isinstance(args, MaxSupArgumentsMixin):
        raise TypeError(
            f"args must have the fields loss and loss_kwargs, got {type(args).__name__}: use MaxSupTrainingArguments "
            f"or MaxSupSeq2SeqTrainingArguments, or derive a class from (MaxSupArgumentsMixin, {type(args).__name__})"
        )
    check_liger(args)
    check_trl_args(trainer_class, args)


class _EndLossEpochs(TrainerCallback):
    """Tells the loss when epochs end, and checks that its schedule has as many epochs as the training."""

    def __init__(self, trainer: MaxSupMixin):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer.train_dataset, Sized):  # the number of epochs is unknown otherwise
            check_epochs(self.trainer.loss_function, state.num_train_epochs)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_epoch(int(state.epoch + 1e-6))

    # The checkpoint of an epoch's last step is written before the epoch ends. A training that resumes it catches up on that
    # at the beginning of the next epoch.
    on_epoch_end = on_epoch_begin


class _CheckStepRan(TrainerCallback):
    """Checks right before the weights change that the Trainer's own `training_step` ran, which someone may have replaced."""

    def __init__(self, trainer: MaxSupMixin):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        training = self.trainer._training
        steps = 0 if training is None else training.steps
        if steps == self._steps:
            raise ValueError(
                f"loss={args.loss!r} was asked for, but the gradient of step {state.global_step + 1} was not computed by "
                "the Trainer's training_step, so it is unknown which loss was trained: do not replace training_step during "
                "a training"
            )
        self._steps = steps


class MaxSupTrainer(MaxSupMixin, Trainer):
    """`transformers.Trainer` with the loss of `MaxSupTrainingArguments`; see `MaxSupMixin`.

    `args` default to `MaxSupTrainingArguments("tmp_trainer")`.

    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        >>> trainer = MaxSupTrainer(model, MaxSupTrainingArguments(mkdtemp(), loss="maxsup"))  # then trainer.train()
        >>> trainer.loss_function.values(0.0), trainer.loss_function.values(1.0)
        ({'alpha': 0.1}, {'alpha': 0.2})
    """

    def __init__(self, model: Any = None, args: Any = None, *positional: Any, **kwargs: Any):
        super().__init__(model, MaxSupTrainingArguments("tmp_trainer") if args is None else args, *positional, **kwargs)


class MaxSupSeq2SeqTrainer(MaxSupMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with the loss of `MaxSupSeq2SeqTrainingArguments`; see `MaxSupMixin`.

    `args` default to `MaxSupSeq2SeqTrainingArguments("tmp_trainer")`.

    Example:
        >>> import tempfile
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> from maxsup_hf import MaxSupSeq2SeqTrainer, MaxSupSeq2SeqTrainingArguments
        >>> args = MaxSupSeq2SeqTrainingArguments(tempfile.mkdtemp(), loss="label_smoothing", predict_with_generate=True)
        >>> model = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1))
        >>> MaxSupSeq2SeqTrainer(model, args).loss_function.values(0.0)
        {'alpha': 0.1}
    """

    def __init__(self, model: Any = None, args: Any = None, *positional: Any, **kwargs: Any):
        args = MaxSupSeq2SeqTrainingArguments("tmp_trainer") if args is None else args
        super().__init__(model, args, *positional, **kwargs)
