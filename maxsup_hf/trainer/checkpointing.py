"""Checkpoints: only complete ones are resumed, and a run that receives SIGTERM leaves one.

A checkpoint is complete when all of its files are what its manifest says. The main process writes the manifest last, after
every rank has written its part and all of it is on the disk. Layout and names are those of transformers, which can resume
these checkpoints too, and theirs can be resumed here.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maxsup_hf.hub.push import PushError
from maxsup_hf.output.weights import safetensors_error
from maxsup_hf.trainer.complete import (
    cannot_be_verified,
    damage,
    find_checkpoint,
    last_checkpoint,
    on_main_process,
    remove_damaged,
    what_is_safe,
)
from maxsup_hf.trainer.continuation import changes_on_resume, settings_given_here, settings_of, what_holds
from maxsup_hf.trainer.data_loaders import DataLoaderMixin
from maxsup_hf.trainer.manifest import renew_manifest, write_manifest
from maxsup_hf.trainer.preemption import StopAtSigterm

__all__ = ["CheckpointError", "CheckpointMixin", "check_writable", "last_checkpoint"]

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors wrap an OSError in the other two

logger = logging.getLogger(__name__)


class CheckpointError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


def check_writable(folder: str | Path) -> None:
    """Check before hours of training that checkpoints can be saved. Creates the folder.

    Raises:
        CheckpointError: no file can be written into the folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise CheckpointError(
            f"output_dir: {str(folder)!r} cannot be written to ({error}): choose another --output_dir, or free some space"
        ) from error


class CheckpointMixin(DataLoaderMixin):
    """The part of `MaxSupMixin` that deals with checkpoints.

    `resume_from_checkpoint=True` takes the newest complete checkpoint, and logs which newer ones it skips. A checkpoint that
    is given by name must be complete. A finished run that is resumed trains no further. With `enable_jit_checkpoint` a run
    that receives SIGTERM finishes its current step, saves, and returns from `train()` with `preempted` set, on every rank
    after the same step.

    Attributes:
        preempted: whether the last `train()` ended early because of SIGTERM.
        already_finished: whether the last `train()` resumed a finished run, and so trained nothing.

    Raises:
        CheckpointError: (from `train`) output_dir is not writable, or a checkpoint could not be written.
        ValueError: (from `train`) the checkpoint to resume is incomplete, or there is none, or a setting that decides the
            continuation differs (`args.resume_anyway` allows that).
    """

    preempted: bool = False
    already_finished: bool = False
    _changes_on_resume: Mapping[str, str] = {}
    _saved: Path | None = None
    _misses_weights: bool
    model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_FollowTraining(self))
        stock: Any = self.pop_callback(JITCheckpointCallback)
        if stock is not None and stock.jit_manager is not None:
            self.add_callback(StopAtSigterm(self, stock.jit_manager))

    def check_output(self) -> None:
        """Raise CheckpointError if this run will save checkpoints but output_dir is not writable."""
        if self.args.should_save and self.args.save_strategy != "no":
            check_writable(str(self.args.output_dir))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.preempted = self.already_finished = False
        self._changes_on_resume = {}
        if resume_from_checkpoint:
            found = on_main_process(partial(self._resumed, resume_from_checkpoint))
            resume_from_checkpoint, self._changes_on_resume = found
        # After the callbacks that may change a checkpoint.
        self.add_callback(self.pop_callback(_FollowTraining))  # type: ignore[arg-type]
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        # What the stock Trainer measured was the end of a training without steps.
        return output._replace(training_loss=math.nan, metrics={}) if self.already_finished else output

    def _resumed(self, resume_from_checkpoint: str | bool) -> tuple[str, dict[str, str]]:
        """The checkpoint to resume, and what differs from the run that wrote it."""
        checkpoint = find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
        if checkpoint is None:
            raise ValueError(f"resume_from_checkpoint: there is no complete checkpoint in {str(self.args.output_dir)!r}")
        unknown = cannot_be_verified(checkpoint)
        if unknown is not None:
            logger.warning(unknown)
        changes = changes_on_resume(checkpoint, self.args, *self._data_and_model())
        if changes:
            held = what_holds(changes, self.is_deepspeed_enabled)
            logger.warning("resuming %s with other settings (%s): %s", checkpoint, "; ".join(changes.values()), held)
        return checkpoint, changes

    def _data_and_model(self) -> tuple[int | None, torch.dtype | None]:
        """The number of rows and the type of the weights, as far as they are known."""
        rows = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
        return rows, getattr(self.model, "dtype", None)

    # ---- a finished run ----

    def begin_training(self) -> None:
        """Find out whether the run that is resumed was finished: it has all of its steps, or was stopped early."""
        best = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_model_checkpoint is None and best.is_dir():  # its path is that of before the run was moved
            self.state.best_model_checkpoint = str(best)
        stopping = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        states: Any = self.state.stateful_callbacks
        for callback in stopping:
            saved = states.get(type(callback).__name__)
            if isinstance(saved, dict):
                callback.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        self.already_finished = self.state.global_step > 0 and (
            self.state.global_step >= self.state.max_steps
            or any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in stopping)
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The stock Trainer looks at the number of steps after a step, and so adds one to a finished run.
        if self.already_finished:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if not (self.already_finished and "train_runtime" in logs):
            super().log(logs, *args, **kwargs)

    # ---- saving ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # The stock Trainer deletes old checkpoints right after it saved the state. Before that, this one must be complete.
        state = self.state
        state.save_to_json = partial(self._complete, folder, state.save_to_json)  # type: ignore[method-assign]
        try:
            if self.args.should_save:
                # A manifest left by an earlier run would describe files that are overwritten now.
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        except WRITE_ERRORS as error:
            if self.args.should_save and self._saved != folder:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {self.state.global_step} could not be written to {str(folder)!r}: "
                f"{' '.join(str(error).split())}. Earlier checkpoints are unchanged. {what_is_safe(folder.parent)}"
            ) from error
        finally:
            del vars(state)["save_to_json"]

    def _complete(self, folder: Path, save_state: Callable[[str], None], path: str) -> None:
        save_state(path)
        write_manifest(
            folder,
            {
                "step": self.state.global_step,
                "finished": self.state.global_step >= self.state.max_steps,
                "save_only_model": self.args.save_only_model,
                "settings": settings_of(self.args, *self._data_and_model()),
            },
        )
        self._saved = folder
        if self.args.save_total_limit:
            remove_damaged(folder.parent, after=self.state.global_step)

    def after_saving(self) -> None:
        """Accept what callbacks did to the last checkpoint when they were told of it, such as deleting weights."""
        if self._saved is not None and self._saved.is_dir():
            renew_manifest(self._saved)

    # The last files that every rank writes into a checkpoint, with and without save_only_model. Once all ranks are here, the
    # main process may complete it.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None:
            self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def save_result(self) -> None:
        """Save the model and `trainer_state.json` to output_dir, at the end of a training.

        Raises:
            CheckpointError: names the checkpoint that is complete.
        """
        folder = str(self.args.output_dir)
        try:
            self.save_model()
            self.save_state()
        except PushError:
            raise
        except WRITE_ERRORS as error:
            if self.args.should_save:
                for path in Path(folder).glob("*.safetensors"):
                    if safetensors_error(path) is not None:
                        path.unlink()
            raise CheckpointError(
                f"the trained model could not be written to {folder!r}: {' '.join(str(error).split())}. "
                f"{what_is_safe(folder)}"
            ) from error

    # ---- loading ----

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._changes_on_resume or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with settings_given_here(self.optimizer, self.lr_scheduler):
            if "optim" in self._changes_on_resume:  # the state is that of another optimizer
                state = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
                self.lr_scheduler.load_state_dict(state)  # type: ignore[union-attr]
            else:
                super()._load_optimizer_and_scheduler(checkpoint)

    # Weights are saved under their names on the Hub, which differ from the module names for many models (ViT among them).
    # The stock Trainer reads them back without converting the names: it warns and continues with weights that were never
    # loaded (transformers issue 43701, open in 5.23). These methods detect that and load the weights with from_pretrained.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._misses_weights = False
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._misses_weights:
            self._load_converted_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        reason = on_main_process(partial(damage, best))
        if reason is not None:
            raise CheckpointError(
                f"load_best_model_at_end: the best checkpoint {best!r} is damaged: {reason}. To keep the weights of the "
                "last step, resume with --resume_from_checkpoint true --load_best_model_at_end false"
            )
        self._misses_weights = False
        super()._load_best_model()
        if self._misses_weights:
            self._load_converted_weights(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys and load_result.unexpected_keys and isinstance(self.model, PreTrainedModel):
            self._misses_weights = True
        else:
            super()._issue_warnings_after_load(load_result)

    def _load_converted_weights(self, checkpoint: str | None) -> None:
        saved = type(self.model).from_pretrained(str(checkpoint), config=self.model.config, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())


class _FollowTraining(TrainerCallback):
    """Tells the trainer when a training begins, when its epochs do, and when a checkpoint has been saved."""

    def __init__(self, trainer: CheckpointMixin):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_saving()
