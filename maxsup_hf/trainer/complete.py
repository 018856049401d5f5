"""Which checkpoints are complete."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maxsup_hf.hub.staging import LOSS_STATE_NAME
from maxsup_hf.trainer.loss_state import has_manifest
from maxsup_hf.trainer.manifest import MANIFEST, changed_files, read_manifest

INCOMPLETE = "checkpoint-is-incomplete.txt"  # transformers' own marker, while it saves a checkpoint after SIGTERM
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def damage(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed: a file is missing, or not what was written. `None` if it is complete.

    A checkpoint without a manifest, which others wrote, is complete if none of its files is missing or truncated.
    """
    folder = Path(checkpoint)
    if (folder / INCOMPLETE).exists():
        return f"it holds {INCOMPLETE}"
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return str(error)
    if manifest is None:
        return _damage_without_manifest(folder)
    return "; ".join(changed_files(folder, manifest)) or None


def _damage_without_manifest(folder: Path) -> str | None:
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except OSError:
        return f"it has no {TRAINER_STATE_NAME}"
    except ValueError:
        return f"its {TRAINER_STATE_NAME} is truncated"
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
        except ValueError:
            return f"{index.name} is truncated"
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            return f"{', '.join(missing)} of {index.name} is missing"
    weights = [path for pattern in WEIGHTS for path in folder.glob(pattern) if path.name != LOSS_STATE_NAME]
    if not weights and not any(path.is_dir() for path in folder.iterdir()):  # FSDP, DeepSpeed and adapters have folders
        return "it has no weights (model.safetensors)"
    return None


def safetensors_error(path: Path) -> Exception | None:
    """What is wrong with the length or the header of a safetensors file."""
    try:
        with safe_open(path, "pt"):  # compares the file's length with its header
            return None
    except (SafetensorError, OSError) as error:
        return error


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


def what_is_safe(output_dir: str | Path) -> str:
    """After a file of a run could not be written: which checkpoint is complete, and how to continue."""
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        return "There is no complete checkpoint: free some space and train again, with --save_strategy steps"
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
