"""The thin Hugging Face shell: stock Trainers whose training loss is a registered one.

Nothing of the stock training loop is written again. `compute_loss` runs the stock one while the model's cross-entropy is
swapped (`maxsup_hf.seam`), `get_batch_samples` counts the items that the accumulated, cross-device batch holds, and `log`
adds the parts of the loss.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer, TrainerCallback

from maxsup_hf.arguments import MaxSupArgumentsMixin, MaxSupTrainingArguments, parse_loss_kwargs
from maxsup_hf.checkpoints import CheckpointMixin
from maxsup_hf.checks import check_float_labels, check_fused, check_head, check_liger, check_train_dataset, head_problem
from maxsup_hf.counting import IGNORE_INDEX, LabelCount, Shares, count_labels
from maxsup_hf.hub.mixin import HubMixin
from maxsup_hf.lazy_logits import NeedsLogitsError, lazy, output_embedding
from maxsup_hf.loss_state import load_loss, save_loss
from maxsup_hf.losses import create_loss
from maxsup_hf.mixup import MixupCollator
from maxsup_hf.seam import Seam
from maxsup_hf.votes import Votes

# How heads of transformers, and its Trainer, say that they are not to be trained.
UNTRAINABLE = ("not trainable", "support training", "did not return a loss", "ForCausalLMLoss() missing")


class MaxSupMixin(HubMixin, CheckpointMixin):
    """Goes before any Trainer class: `class MyTrainer(MaxSupMixin, SomeTrainer): ...`

    The training loss is `args.loss` with `args.loss_kwargs`, in place of the cross-entropy that the model itself computes.
    Gradients do not depend on how a batch is cut into micro-batches and ranks: every cross-entropy is a sum over the
    micro-batch, divided by the number of items of the whole accumulated batch (of this rank's share, with
    `average_tokens_across_devices=False`). Evaluation is the stock one: `eval_loss` is plain cross-entropy.

    Labels are integers. Soft labels, of the shape of the logits, come beside them as `soft_labels`; floating `labels` of
    that shape whose rows sum to 1 are taken for soft labels too.

    Each log of the training loss also has its parts `train_cross_entropy` and `train_penalty` (averaged where a head has
    several cross-entropies; auxiliary losses are in neither), and each parameter of the loss as `loss_<name>`
    (`loss_alpha`), as it was in the last step.

    Raises:
        TypeError: `args` without the fields of `MaxSupArgumentsMixin`.
        ValueError: `compute_loss_func` is given too, or (from `train`) the head or the data do not fit such a loss, or
            `args.fused_linear_loss` does not fit the model.
        CheckpointError: (from `train`) a checkpoint could not be written; see `maxsup_hf.checkpoints`.
        FloatingPointError: (from `train`) a loss is NaN or infinite; checkpoints written before stay as they are.
    """

    args: MaxSupTrainingArguments
    model: Any
    _signature_columns: Any
    _unread: bool
    loss_is_scaled_for_ga: bool | None = False  # what compute_loss returns looks like the mean of its micro-batch

    def __init__(self, model: Any = None, args: Any = None, *positional: Any, **kwargs: Any):
        args = MaxSupTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, MaxSupArgumentsMixin):
            raise TypeError(
                f"args must have the fields loss and loss_kwargs, got {type(args).__name__}: use MaxSupTrainingArguments "
                f"or MaxSupSeq2SeqTrainingArguments, or derive a class from (MaxSupArgumentsMixin, {type(args).__name__})"
            )
        check_liger(args)
        super().__init__(model, args, *positional, **kwargs)  # type: ignore[arg-type]
        if self.compute_loss_func is not None:
            raise ValueError(
                f"compute_loss_func and loss={args.loss!r} are two losses for one training: drop compute_loss_func, or "
                "pass it to a stock Trainer (maxsup_hf.compute_loss_func makes one of a registered loss)"
            )
        # The stock Trainer would pass num_items_in_batch to any forward with **kwargs, and believe that it was used.
        self.model_accepts_loss_kwargs = False
        self.loss_function = create_loss(args.loss, **parse_loss_kwargs(args.loss_kwargs))
        self._seam = Seam(self.loss_function)
        self._totals: dict[str, Tensor] = {}  # of the accumulated batch
        self._parts = torch.zeros(3)  # cross-entropy, penalty and number of steps since the last log
        if self.loss_function.state is not None:
            self.add_callback(_TellEpochs(self))

    # ---- training ----

    def check(self) -> None:
        """Look at the head, the data and the folder, as `train` does first.

        Raises:
            ValueError, OSError: there is something to correct.
        """
        self.check_output()
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
        self.check()
        if self.loss_function.needs_votes and self._seam.votes is None:
            self._seam.votes = Votes(self.model)
        self._parts = torch.zeros(3)
        try:
            output = super().train(*args, **kwargs)
        finally:
            self._totals = {}
        if not self.preempted:
            self._push_at_the_end()
        return output

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._totals = self._count_batch(samples, device)
        return samples, num_items

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        # The stock loop waits for this value right after, to filter NaN from its logs: looking at it here is free.
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"the training loss is {loss.mean().item()} in step {self.state.global_step + 1}: the logits are NaN "
                f"or infinite, a label's class is masked, or loss {self.args.loss!r} makes that of finite logits. The "
                "weights were not updated in this step, and earlier checkpoints are as they were. Look at that step's data, "
                "or lower learning_rate"
            )
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        counts = self._count(inputs) if model.training else {}
        soft_labels = None
        if head_problem(self.model) is None:
            inputs, soft_labels = self._take_soft_labels(inputs)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        if not counts:  # a contrastive or a detection loss may use cross-entropy for something else than classes
            raise ValueError(
                f"the batch has no class labels (it has: {', '.join(inputs)}), which loss={self.args.loss!r} needs: "
                "labels must be integer tensors under a name with 'label' in it, or start_positions and end_positions, or "
                "target_values. For contrastive, detection and self-supervised heads use the stock Trainer"
            )
        fused: Any = nullcontext()
        if self.args.fused_linear_loss:
            if soft_labels is not None:
                raise ValueError(
                    f"fused_linear_loss, asked for {type(self.model).__name__}, knows no soft labels, but the batch has "
                    "some: leave out Mixup and other class probabilities, or leave fused_linear_loss out"
                )
            fused = lazy(output_embedding(self.model))
        seam = self._seam
        seam.set_progress(min(1.0, self.state.global_step / self.state.max_steps) if self.state.max_steps > 0 else 0.0)
        seam.soft_labels = soft_labels
        seam.shares = Shares(counts, self._totals, self._loss_shifts_labels)
        try:
            with seam.swapped(model), fused:
                loss, outputs = super().compute_loss(model, inputs, True, *args, **kwargs)
        except NeedsLogitsError as error:
            raise ValueError(
                f"fused_linear_loss cannot serve {type(self.model).__name__}, which {error}: leave fused_linear_loss out"
            ) from error
        except Exception as error:
            if seam.outputs or should_reduce_batch_size(error):
                raise
            if isinstance(error, NotImplementedError) or any(words in str(error) for words in UNTRAINABLE):
                raise ValueError(
                    f"loss={self.args.loss!r} was asked for, but {type(self.model).__name__} is a head that transformers "
                    f"gives no loss for these labels ({type(error).__name__}: {error}). Use a head whose loss is a "
                    "cross-entropy over classes"
                ) from error
            if soft_labels is None:
                raise
            raise ValueError(
                f"loss={self.args.loss!r} was asked for with soft labels, but {type(self.model).__name__} failed on the "
                "integer labels that stand in for them, before any cross-entropy "
                f"({type(error).__name__}: {error}). If its own loss takes floating labels (multi-label, KL divergence), "
                "use the stock Trainer for this head"
            ) from error
        finally:
            seam.soft_labels = seam.shares = None
        if not seam.outputs:
            raise ValueError(
                f"loss={self.args.loss!r} was asked for, but {type(self.model).__name__} trained on a loss without a "
                "cross-entropy that can be replaced (regression, multi-label, detection, contrastive, a loss function of "
                "its own or a fused kernel). Use a head whose loss is a cross-entropy over classes, or the stock Trainer"
            )
        if self.args.fused_linear_loss and not seam.fused:
            raise ValueError(
                f"fused_linear_loss cannot serve {type(self.model).__name__}, whose loss does not come from what its output "
                "embedding returns: leave fused_linear_loss out"
            )
        self._add_parts()
        return (loss, outputs) if return_outputs else loss

    def _take_soft_labels(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Models know integer labels alone (float ones make them train binary cross-entropy): soft labels are taken out,
        and the most probable class stands in where there are no integer ones."""
        soft_labels, labels = inputs.get("soft_labels"), inputs.get("labels")
        if isinstance(labels, Tensor) and labels.is_floating_point():
            check_float_labels(labels, self.model)
            soft_labels, labels = labels if soft_labels is None else soft_labels, None
        if soft_labels is None:
            return inputs, None
        inputs = {key: value for key, value in inputs.items() if key != "soft_labels"}
        inputs["labels"] = soft_labels.argmax(-1) if labels is None else labels
        return inputs, soft_labels

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        mixing = self.data_collator
        if kwargs.get("is_training") or not isinstance(mixing, MixupCollator):
            return super()._get_dataloader(*args, **kwargs)
        self.data_collator = mixing.collator  # evaluation sees whole images and hard labels
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = mixing

    # ---- counting ----

    def _count_batch(self, samples: list[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
        """Labels of the accumulated batch of all ranks, divided by its micro-batches and ranks; see `maxsup_hf.counting`."""
        totals: dict[str, Tensor] = {}
        for sample in samples:
            for name, count in self._count(sample).items():
                totals[name] = totals.get(name, 0) + count.counted.to(device) / len(samples)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            return {name: self.accelerator.reduce(total, "mean") for name, total in totals.items()}
        return totals

    def _count(self, inputs: dict[str, Any]) -> dict[str, LabelCount]:
        config = getattr(self.model, "config", None)
        of_segmentation = getattr(config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", IGNORE_INDEX))
        return count_labels(inputs, of_segmentation)

    # ---- logging ----

    def _add_parts(self) -> None:
        """Add this micro-batch's parts to those of the next log, weighted as the Trainer weights its loss."""
        outputs = self._seam.outputs
        cross_entropy = torch.stack([output.cross_entropy.mean() for output in outputs]).mean()
        penalty = torch.stack([output.penalty.mean() for output in outputs]).mean()
        parts = torch.stack([cross_entropy, penalty, torch.ones_like(penalty)]).float()
        self._parts = self._parts.to(parts.device) + parts / getattr(self, "current_gradient_accumulation_steps", 1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.is_in_train:
            logs |= self._take_parts()
        super().log(logs, *args, **kwargs)

    def _take_parts(self) -> dict[str, float]:
        """The parts of the loss since the last log, averaged over steps and ranks; starts the next ones."""
        cross_entropy, penalty, steps = self.accelerator.reduce(self._parts, "mean").tolist()
        self._parts = torch.zeros(3)
        if steps == 0:  # somebody else's log of a loss
            return {}
        values = {f"loss_{name}": value.item() for name, value in self._seam.values.items()}
        return {"train_cross_entropy": cross_entropy / steps, "train_penalty": penalty / steps, **values}

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
            save_loss(str(folder), self.loss_function, tensors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_loss(checkpoint, self.loss_function, self.args.resume_with_other_loss, self.args.process_index == 0)

    # Checkpoints are written under the names that the Hub knows, which for many models (ViT among them) are not those of
    # the modules. The stock Trainer reads them back without converting the names, warns, and goes on with weights that
    # were never loaded (transformers issue 43701, open in 5.23).

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._unread = False
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._unread:
            self._read_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._unread = False
        super()._load_best_model()
        if self._unread:
            self._read_weights(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys and load_result.unexpected_keys and isinstance(self.model, PreTrainedModel):
            self._unread = True
        else:
            super()._issue_warnings_after_load(load_result)

    def _read_weights(self, checkpoint: str | None) -> None:
        saved = type(self.model).from_pretrained(str(checkpoint), config=self.model.config, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())

    # ---- the rest of the shell ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "soft_labels" not in self._signature_columns:
            self._signature_columns.append("soft_labels")


class _TellEpochs(TrainerCallback):
    """Tells a loss with a state when epochs end. At the beginning of one too: a checkpoint of an epoch's last step was
    written before that end."""

    def __init__(self, trainer: MaxSupMixin):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_epoch(int(state.epoch + 1e-6))

    on_epoch_end = on_epoch_begin


class MaxSupTrainer(MaxSupMixin, Trainer):
    """`transformers.Trainer` with the loss of `MaxSupTrainingArguments`; see `MaxSupMixin`.

    trainer = MaxSupTrainer(model, MaxSupTrainingArguments("out", loss="maxsup"), train_dataset=dataset)
    trainer.train()
    """


class MaxSupSeq2SeqTrainer(MaxSupMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with the loss of `MaxSupSeq2SeqTrainingArguments`; see `MaxSupMixin`."""
