"""Checkpoints of which nothing is lost: only whole ones are resumed, and a run that is told to end leaves one.

A checkpoint is whole when its `trainer_state.json` is. That is so because the main process writes this file last: every rank
has written its part before, and it is on the disk. Layout and names are those of transformers, which resumes such
checkpoints too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_jit_checkpoint import CheckpointManager, JITCheckpointCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maxsup_hf.data.seeded_fetching import RestoringCollator, SeededFetching

INCOMPLETE = "checkpoint-is-incomplete.txt"  # transformers marks so a checkpoint that it saves at SIGTERM

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class CheckpointError(OSError):
    """A checkpoint could not be written. Earlier ones are as they were."""


def damage(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed, or `None`: its writing was cut off, or a file in it was."""
    folder = Path(checkpoint)
    if (folder / INCOMPLETE).exists():
        return f"it holds {INCOMPLETE}"
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except OSError:
        return f"it has no {TRAINER_STATE_NAME}, which is written last"
    except ValueError:
        return f"its {TRAINER_STATE_NAME}, which is written last, is cut off"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):  # compares the length of the file with that in its header
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.name} is damaged ({error})"
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("pytorch_model*.bin")]):
        if not zipfile.is_zipfile(path):  # torch.save's format ends with the index that is looked for here
            return f"{path.name} is cut off"
    return None


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint in a folder, or `None`. Says which ones were passed over, and why."""
    folders = {path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path for path in Path(output_dir).glob("checkpoint-*")}
    passed: list[str] = []
    for step in sorted((step for step in folders if step.isdigit()), key=int, reverse=True):
        reason = damage(folders[step])
        if reason is None:
            if passed:
                skipped = "; ".join(passed)
                logger.warning("resuming %s, the newest complete checkpoint. Passed over: %s", folders[step], skipped)
            return str(folders[step])
        passed.append(f"{folders[step].name} ({reason})")
    if passed:
        logger.warning("%s has no complete checkpoint. Passed over: %s", output_dir, "; ".join(passed))
    return None


def check_writable(folder: str | Path) -> None:
    """Find out before hours of training that nothing can be saved.

    Raises:
        CheckpointError: a file cannot be written into the folder (which is made).
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise CheckpointError(
            f"output_dir: {str(folder)!r} cannot be written to ({error}): give another with --output_dir, or make room"
        ) from error


class CheckpointMixin(_Base):
    """What `MaxSupMixin` does with checkpoints.

    `resume_from_checkpoint=True` takes the newest complete one, and says so where that is not the newest of all; one that is
    given by name must be complete. With `enable_jit_checkpoint` a run that gets SIGTERM finishes the step that it is in,
    saves, and returns from `train()` with `preempted` set, on every rank after the same step.

    Attributes:
        preempted: whether the last `train()` ended early because of SIGTERM.

    Raises:
        CheckpointError: (from `train`) output_dir is not writable, or a checkpoint could not be written.
        ValueError: (from `train`) the checkpoint to resume is not whole, or there is none.
    """

    preempted: bool = False
    _fetching: Any = None
    _sampler: Any = None
    _unread: bool
    model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_TellEpochs(self))
        stock: Any = self.pop_callback(JITCheckpointCallback)
        if stock is not None and stock.jit_manager is not None:
            self.add_callback(_StopAtSigterm(self, stock.jit_manager))

    def check_output(self) -> None:
        """Raise CheckpointError if checkpoints will be written to a folder that cannot be written to."""
        if self.args.should_save and self.args.save_strategy != "no":
            check_writable(str(self.args.output_dir))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.preempted = False
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"resume_from_checkpoint: there is no complete checkpoint in {str(self.args.output_dir)!r}")
        elif resume_from_checkpoint:
            reason = damage(resume_from_checkpoint)
            if reason is not None:
                raise ValueError(
                    f"resume_from_checkpoint: {resume_from_checkpoint!r} is not a complete checkpoint: {reason}. "
                    "resume_from_checkpoint=True takes the newest complete one of output_dir"
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_dataloader(
        self, dataset: Any, *args: Any, sampler_fn: Any = None, is_training: bool = False, **kwargs: Any
    ) -> Any:
        """As in `transformers.Trainer`; order and augmentation of the training data follow from the seed and the epoch."""
        kwargs.update(sampler_fn=sampler_fn, is_training=is_training)
        fixed = self.args.dataloader_persistent_workers  # workers that outlive an epoch are not told of the next
        if not is_training or fixed or not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
            return super()._get_dataloader(dataset, *args, **kwargs)
        original, collator = dataset, self.data_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="Training")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._fetching = fetching = SeededFetching(dataset, seed)

        def sampler(_: Any) -> Any:
            self._sampler = sampler_fn(original) if sampler_fn is not None else None
            return self._sampler

        self.data_collator = RestoringCollator(collator, fetching)
        try:
            return super()._get_dataloader(fetching, *args, **{**kwargs, "sampler_fn": sampler})
        finally:
            self.data_collator = collator

    def begin_epoch(self, epoch: int) -> None:
        """Let order and augmentation of the training data be those of this epoch."""
        if self._fetching is not None:
            self._fetching.epoch = epoch
        if isinstance(self._sampler, LengthGroupedSampler):  # draws from the model's generator unless it has its own
            self._sampler.generator = torch.Generator().manual_seed(self._fetching.seed + epoch)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:  # half-written, or another run's: this one must not look whole before it is
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own words for it
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {self.state.global_step} could not be written to {str(folder)!r}: "
                f"{' '.join(str(error).split())}. Earlier checkpoints are as they were: when there is space, go on with "
                "--resume_from_checkpoint true"
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        """The last that every rank writes: from here on all have, and trainer_state.json may follow."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _flush(Path(output_dir))

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


def _flush(folder: Path) -> None:
    """Wait until what is in a folder is on the disk, so that not even a power cut leaves a state without weights."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _TellEpochs(TrainerCallback):
    def __init__(self, trainer: CheckpointMixin):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))


class _StopAtSigterm(JITCheckpointCallback):
    """In the place of the stock callback, whose signal handler it keeps.

    The stock one saves where a rank happens to be, also between backward and the optimizer's step, when the random number
    generators are already the next step's; and ranks, which are signalled one by one, save at different steps and wait for
    each other for ever. Here they agree at the end of a step, and the loop saves as it always does.
    """

    trainer: Any
    jit_manager: Any

    def __init__(self, trainer: CheckpointMixin, manager: CheckpointManager):
        self.trainer, self.jit_manager = trainer, manager
        manager.kill_wait = 0  # it waits lest SIGKILL comes while it saves; here a half-written checkpoint does no harm

    def _is_asked(self) -> bool:
        asked = torch.tensor(float(self.jit_manager.is_checkpoint_requested), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(asked, "sum"))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_asked() and state.global_step < state.max_steps:
            self.trainer.preempted = control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there is no time for it

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.preempted:  # the loop takes the break for the end of an epoch
            control.should_save = control.should_evaluate = False
