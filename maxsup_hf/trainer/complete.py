"""Which checkpoints are complete."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maxsup_hf.output.weights import LOSS_STATE_NAME, safetensors_error, weight_files
from maxsup_hf.trainer.loss_state import has_manifest
from maxsup_hf.trainer.manifest import MANIFEST, changed_files, read_manifest

STATES = {"optimizer": "optimizer", "schedule": "scheduler", "random state": "rng_state"}  # -> beginning of a file's name
INCOMPLETE = "checkpoint-is-incomplete.txt"  # transformers' own marker, while it saves a checkpoint after SIGTERM

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def damage(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed: a file is missing, or not what was written. `None` if it is complete.

    A checkpoint without a manifest, which others wrote, is complete if none of its files is missing or truncated.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "it is not a folder" if folder.exists() else "there is no such folder"
    if (folder / INCOMPLETE).exists():
        return f"it holds {INCOMPLETE}"
    try:
        manifest = read_manifest(folder)
        return _damage_without_manifest(folder) if manifest is None else _difference(folder, manifest)
    except OSError as error:  # another process deletes it, or writes it
        return f"it cannot be read ({error.strerror})"
    except ValueError as error:  # of the manifest
        return str(error)


def _difference(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    step = step_in_name(folder)
    if step is not None and manifest.get("step", step) != step:
        return f"it holds the checkpoint of step {manifest['step']}"
    return "; ".join(changed_files(folder, manifest)) or None


def step_in_name(folder: Path) -> int | None:
    """The step that the name of a folder says, `checkpoint-500`; `None` for any other name."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-([0-9]+)", folder.name)
    return int(match[1]) if match else None


def _damage_without_manifest(folder: Path) -> str | None:
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except OSError:
        return f"it has no {TRAINER_STATE_NAME}"
    except ValueError:
        return f"its {TRAINER_STATE_NAME} is truncated"
    if not isinstance(state, dict):
        return f"its {TRAINER_STATE_NAME} is damaged"
    missing = missing_states(folder)
    if 0 < len(missing) < len(STATES):  # --save_only_model leaves out all of them
        return f"it has no {', '.join(missing)}"
    for path in sorted(folder.glob("*.safetensors")):
        error = safetensors_error(path)
        if error is not None:
            return f"{path.name} is damaged ({error})"
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("pytorch_model*.bin")]):
        if not zipfile.is_zipfile(path):  # a zip archive, which torch.save writes, ends with its index
            return f"{path.name} is truncated"
    if (folder / LOSS_STATE_NAME).exists() and has_manifest(folder):
        return f"it has no {MANIFEST}, which is written last"
    for index in folder.glob("*.index.json"):
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is truncated"
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            return f"{', '.join(missing)} of {index.name} is missing"
    has_folders = any(path.is_dir() for path in folder.iterdir())  # of FSDP, DeepSpeed or adapters
    if not weight_files(folder) and not has_folders:
        return "it has no weights (model.safetensors)"
    return None


def missing_states(folder: Path) -> list[str]:
    """Which states, besides that of the model, a checkpoint without a manifest lacks. DeepSpeed keeps them in a folder."""
    if any(folder.glob("global_step*")):
        return []
    return [what for what, name in STATES.items() if not any(folder.glob(f"{name}*"))]


def cannot_be_verified(checkpoint: str | Path) -> str | None:
    """For a checkpoint without a manifest, what is unknown about it, in words for the log; otherwise `None`."""
    folder = Path(checkpoint)
    if (folder / MANIFEST).exists():
        return None
    missing = missing_states(folder)
    without = f" It has no {', '.join(missing)}." if missing else ""
    return (
        f"{checkpoint} has no {MANIFEST} (version 0.1 and stock Trainers write none), so it cannot be verified that its "
        f"files and the settings are those it was saved with.{without}"
    )


def find_checkpoint(resume: str | bool, output_dir: str | Path) -> str | None:
    """The checkpoint to resume: the folder that is named, or for `True` the newest complete one, `None` if there is none.

    Raises:
        ValueError: the folder that is named is not a complete checkpoint.
    """
    if resume is True:
        return last_checkpoint(output_dir)
    reason = damage(str(resume))
    if reason is None:
        return str(resume)
    inside = last_checkpoint(str(resume))
    if inside is not None:
        raise ValueError(f"resume_from_checkpoint: {resume!r} is not a checkpoint, but has some: name {inside!r}")
    raise ValueError(
        f"resume_from_checkpoint: {resume!r} is not a complete checkpoint: {reason}. True takes the newest complete one in "
        "output_dir"
    )


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint in a folder, or `None`. Logs which ones were skipped, and why."""
    skipped: list[str] = []
    for folder in checkpoints(output_dir).values():
        reason = damage(folder)
        if reason is None:
            if skipped:
                logger.warning("resuming %s, the newest complete checkpoint. Skipped: %s", folder, "; ".join(skipped))
            return str(folder)
        skipped.append(f"{folder.name} ({reason})")
    if skipped:
        logger.warning("%s has no complete checkpoint. Skipped: %s", output_dir, "; ".join(skipped))
    return None


def checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """Step -> what has the name of its checkpoint in a folder, the newest first."""
    found = {step_in_name(path): path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return {step: found[step] for step in sorted((step for step in found if step is not None), reverse=True)}


def remove_damaged(output_dir: str | Path, after: int) -> None:
    """Remove the damaged checkpoints of later steps, which the run skipped when it was resumed.

    On a file system without modification times, the stock Trainer keeps the checkpoint with the highest number, and deletes
    the one that was just written.
    """
    for step, folder in checkpoints(output_dir).items():
        if step > after and damage(folder) is not None:
            shutil.rmtree(folder, ignore_errors=True)


def what_is_safe(output_dir: str | Path) -> str:
    """After a file of a run could not be written: which checkpoint is complete, and how to continue."""
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        return "There is no complete checkpoint: free some space and begin again with --resume_from_checkpoint auto"
    return f"{checkpoint} is complete: free some space and repeat the command with --resume_from_checkpoint true"


def on_main_process(call: Callable[[], Result]) -> Result:
    """The result of a call that only the main process makes, on every process; what it raises is raised on every one."""
    results: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            results = [call()]
        except Exception as error:  # of any kind, or the other processes would wait for ever
            results = [error]
    (result,) = broadcast_object_list(results)
    if isinstance(result, Exception):
        raise result
    return result
