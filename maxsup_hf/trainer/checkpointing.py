"""Checkpoints: only complete ones are resumed, and a run that receives SIGTERM leaves one.

A checkpoint is complete when its `trainer_state.json` is, because the main process writes that file last, after every rank
has written its part and all of it is on the disk. Layout and names are those of transformers, which can resume these
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
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_jit_checkpoint import CheckpointManager, JITCheckpointCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maxsup_hf.data.seeded_fetching import RestoringCollator, SeededFetching

INCOMPLETE = "checkpoint-is-incomplete.txt"  # transformers' own marker, while it saves a checkpoint after SIGTERM

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerBase
else:
    _TrainerBase = object  # a mixin, so that it comes before any Trainer class


class CheckpointError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


def damage(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed: it, or a file in it, was not written to the end. `None` if it is complete."""
    folder = Path(checkpoint)
    if (folder / INCOMPLETE).exists():
        return f"it holds {INCOMPLETE}"
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except OSError:
        return f"it has no {TRAINER_STATE_NAME}, which is written last"
    except ValueError:
        return f"its {TRAINER_STATE_NAME}, which is written last, is truncated"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):  # compares the file's length with its header
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.name} is damaged ({error})"
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("pytorch_model*.bin")]):
        if not zipfile.is_zipfile(path):  # a zip archive, which torch.save writes, ends with its index
            return f"{path.name} is truncated"
    return None


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint in a folder, or `None`. Logs which ones were skipped, and why."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    folders = {path.name.removeprefix(prefix): path for path in Path(output_dir).glob(f"{prefix}*")}
    skipped: list[str] = []
    for step in sorted((step for step in folders if step.isdigit()), key=int, reverse=True):
        reason = damage(folders[step])
        if reason is None:
            if skipped:
                logger.warning("resuming %s, the newest complete checkpoint. Skipped: %s", folders[step], "; ".join(skipped))
            return str(folders[step])
        skipped.append(f"{folders[step].name} ({reason})")
    if skipped:
        logger.warning("%s has no complete checkpoint. Skipped: %s", output_dir, "; ".join(skipped))
    return None


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


class CheckpointMixin(_TrainerBase):
    """The part of `MaxSupMixin` that deals with checkpoints.

    `resume_from_checkpoint=True` takes the newest complete checkpoint, and logs which newer ones it skips. A checkpoint that
    is given by name must be complete. With `enable_jit_checkpoint` a run that receives SIGTERM finishes its current step,
    saves, and returns from `train()` with `preempted` set, on every rank after the same step.

    Attributes:
        preempted: whether the last `train()` ended early because of SIGTERM.

    Raises:
        CheckpointError: (from `train`) output_dir is not writable, or a checkpoint could not be written.
        ValueError: (from `train`) the checkpoint to resume is incomplete, or there is none.
    """

    preempted: bool = False
    _fetching: Any = None
    _sampler: Any = None
    _misses_weights: bool
    model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_SeedEpochs(self))
        stock: Any = self.pop_callback(JITCheckpointCallback)
        if stock is not None and stock.jit_manager is not None:
            self.add_callback(_StopAtSigterm(self, stock.jit_manager))

    def check_output(self) -> None:
        """Raise CheckpointError if this run will save checkpoints but output_dir is not writable."""
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
                    f"resume_from_checkpoint: {resume_from_checkpoint!r} is not a complete checkpoint: {reason}. Use "
                    "resume_from_checkpoint=True for the newest complete one in output_dir"
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_dataloader(
        self, dataset: Any, *args: Any, sampler_fn: Any = None, is_training: bool = False, **kwargs: Any
    ) -> Any:
        """As in `transformers.Trainer`. Seed and epoch alone determine order and augmentation of the training data, so that
        a resumed run continues exactly."""
        kwargs.update(sampler_fn=sampler_fn, is_training=is_training)
        is_map_style = isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)
        # Persistent workers keep their copy of the data set, in which a new epoch cannot be set.
        if not is_training or not is_map_style or self.args.dataloader_persistent_workers:
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
        """Set order and augmentation of the training data to those of this epoch."""
        if self._fetching is not None:
            self._fetching.epoch = epoch
        if isinstance(self._sampler, LengthGroupedSampler):  # otherwise draws from torch's global generator
            self._sampler.generator = torch.Generator().manual_seed(self._fetching.seed + epoch)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:
                # A trainer_state.json left by an earlier run would make this checkpoint look complete from the start.
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap an OSError in these
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {self.state.global_step} could not be written to {str(folder)!r}: "
                f"{' '.join(str(error).split())}. Earlier checkpoints are unchanged: free some space and continue with "
                "--resume_from_checkpoint true"
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        # The last file that every rank writes. Once all ranks are here, trainer_state.json may follow.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _flush(Path(output_dir))

    # Weights are saved under their names on the Hub, which differ from the module names for many models (ViT among them).
    # The stock Trainer reads them back without converting the names: it warns and continues with weights that were never
    # loaded (transformers issue 43701, open in 5.23). These methods detect that and load the weights with from_pretrained.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._misses_weights = False
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._misses_weights:
            self._load_converted_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
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


def _flush(folder: Path) -> None:
    """Wait until the files of a folder are on the disk, so that even a power cut leaves no state without weights."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _SeedEpochs(TrainerCallback):
    """Seeds order and augmentation of the training data at the beginning of each epoch."""

    def __init__(self, trainer: CheckpointMixin):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))


class _StopAtSigterm(JITCheckpointCallback):
    """Replaces the stock callback for SIGTERM, whose signal handler it keeps.

    The stock one saves wherever a rank happens to be, possibly between the backward and the optimizer's step, when the
    random number generators are already in the state of the next step. And ranks receive the signal one by one, so they
    save at different steps and wait for each other forever. Here all ranks agree at the end of a step, and the training loop
    saves as usual.
    """

    trainer: Any
    jit_manager: Any

    def __init__(self, trainer: CheckpointMixin, manager: CheckpointManager):
        self.trainer, self.jit_manager = trainer, manager
        # By default it delays saving, in case SIGKILL follows at once. An incomplete checkpoint does no harm here.
        manager.kill_wait = 0

    def _any_rank_is_signalled(self) -> bool:
        signalled = torch.tensor(float(self.jit_manager.is_checkpoint_requested), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(signalled, "sum"))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stock callback would save here."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stock callback would save here."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._any_rank_is_signalled() and state.global_step < state.max_steps:
            self.trainer.preempted = control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # SIGKILL may follow soon

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.preempted:  # the loop treats the early stop as the end of an epoch
            control.should_save = control.should_evaluate = False
