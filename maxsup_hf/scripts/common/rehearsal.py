"""The check before training: one batch goes forward and backward, and what the arguments name is built.

Nothing of it is left: weights, buffers, random numbers and the Trainer are as before.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from maxsup_hf.data.seeded_fetching import NamedRows, UnreadableRow

LOGS = ("_metrics", "_total_train_tokens")  # where TRL's trainers gather what they log


def rehearse(trainer: Any) -> None:
    """Build optimizer and schedule, train one batch without updating weights, and look for the metric of the best model.

    Skipped under DeepSpeed and FSDP, whose models do not run unwrapped, for iterable data, which would lose a batch, and
    with `auto_find_batch_size`, which expects the first batch not to fit.

    Raises:
        ValueError: training would fail, with the reason in one line.
    """
    args = trainer.args
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if sharded or args.auto_find_batch_size or isinstance(trainer.train_dataset, IterableDataset):
        return
    with _unchanged(trainer):
        if args.dataloader_drop_last and len(trainer.train_dataset) < args.train_batch_size * args.world_size:
            raise ValueError(
                f"dataloader_drop_last leaves no batch: the training data has {len(trainer.train_dataset)} rows, fewer than "
                f"the {args.train_batch_size * args.world_size} of a batch; lower per_device_train_batch_size"
            )
        try:
            trainer.create_optimizer_and_scheduler(num_training_steps=max(1, args.max_steps))
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ValueError(f"the optimizer or the schedule cannot be built: {error}") from error
        batch = _first_batch(trainer)
        trainer.current_gradient_accumulation_steps = 1  # which train() sets otherwise
        try:
            trainer.training_step(trainer.model, batch)
        except Exception as error:
            raise ValueError(f"the first batch of the training data cannot be trained on: {_reason(error)}") from error
        if args.metric_for_best_model and trainer.eval_dataset is not None:
            _check_metric(trainer)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text if isinstance(error, (ValueError, FloatingPointError)) and text else f"{type(error).__name__}: {text}"


def _first_batch(trainer: Any) -> Any:
    dataset = trainer.train_dataset
    collate = trainer.data_collator
    if isinstance(dataset, Dataset):
        dataset = trainer._remove_unused_columns(dataset, description="training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="training")
    rows = []
    named = NamedRows(dataset, "training data")
    for index in range(min(len(dataset), trainer.args.per_device_train_batch_size)):
        try:
            rows += named.__getitems__([index])
        except UnreadableRow:
            raise
        except Exception as error:
            raise ValueError(f"row {index} of the training data cannot be read: {_reason(error)}") from error
    try:
        return collate(rows)
    except Exception as error:
        raise ValueError(f"the first rows of the training data do not fit into a batch: {_reason(error)}") from error


def _check_metric(trainer: Any) -> None:
    """Evaluate a few rows, without callbacks and logs, to learn the names of the metrics."""
    dataset = trainer.eval_dataset
    few = dataset.select(range(min(len(dataset), trainer.args.per_device_eval_batch_size)))
    handler, history = trainer.callback_handler, list(trainer.state.log_history)
    trainer.callback_handler = CallbackHandler([DefaultFlowCallback()], trainer.model, trainer.processing_class, None, None)
    try:
        clocks = ("runtime", "per_second", "_time", "num_tokens")
        known = [name for name in trainer.evaluate(few) if name.startswith("eval_") and not name.endswith(clocks)]
    finally:
        trainer.callback_handler, trainer.state.log_history = handler, history
    wanted = trainer.args.metric_for_best_model
    if wanted not in known and f"eval_{wanted}" not in known:
        raise ValueError(f"metric_for_best_model: there is no metric {wanted!r}; name one of {', '.join(sorted(known))}")


@contextmanager
def _unchanged(trainer: Any) -> Iterator[None]:
    """Put back all that a training step changes besides the weights, which it does not."""
    model = trainer.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training, had = model.training, (trainer.optimizer, trainer.lr_scheduler)
    logs = {name: copy.deepcopy(vars(trainer)[name]) for name in LOGS if name in vars(trainer)}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        model.train(was_training)
        trainer.optimizer, trainer.lr_scheduler = had
        vars(trainer).pop("current_gradient_accumulation_steps", None)
        vars(trainer).update(logs)
        trainer._end_training()
        trainer.trained_loss = trainer.trained_class_weights = None
