"""The folder that a run writes to, and the checkpoint that it resumes from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from maxsup_hf.trainer.checkpointing import damage, last_checkpoint


def choose_output_dir(given: str | None, resume: str | None, default: str) -> tuple[str, str | None]:
    """The folder to write to, and the checkpoint to resume from. A run never writes into the folder of another one.

    With `auto`, a job that is restarted by the same command resumes from its last checkpoint, or starts if there is none.

    Without `--output_dir`, the folder is the first free one. All ranks choose the same: constructing the training arguments
    waits for every rank, so that all have chosen before any of them writes.
    """
    if resume is None or resume.lower() in ("", "false", "no", "none"):
        return _new_folder(given, default), None
    if resume.lower() in ("true", "yes", "last", "auto"):
        folder = default if given is None else given
        checkpoint = last_checkpoint(folder)
        if checkpoint is None and resume.lower() != "auto":
            raise FileNotFoundError(
                f"resume_from_checkpoint: there is no complete checkpoint in {folder!r}; set --output_dir to the folder of "
                "the run, or name a checkpoint"
            )
        return folder, checkpoint
    reason = damage(resume)
    if reason is not None:
        raise FileNotFoundError(
            "resume_from_checkpoint: expected the folder of a complete checkpoint, true, or auto (start if there is none), "
            f"got {resume!r}: {reason}"
        )
    parent = os.path.dirname(os.path.abspath(resume))
    if given is not None and os.path.abspath(given) != parent and in_use(given):
        raise FileExistsError(
            f"output_dir: {given!r} is not empty and not the folder of the checkpoint {resume!r}; name another folder"
        )
    return os.path.relpath(parent) if given is None else given, resume


def _new_folder(given: str | None, default: str) -> str:
    if given is None:
        return first_free(default)
    if not given.strip():
        raise ValueError("output_dir is empty; give it a value, or leave it out")
    above = next(folder for folder in Path(given).absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise NotADirectoryError(f"output_dir: {given!r} cannot be made in {str(above)!r}; name another folder")
    if in_use(given):
        raise FileExistsError(
            f"output_dir: {given!r} is not empty, and a new run would overwrite what was saved there; name another folder, "
            "or continue the run in it with --resume_from_checkpoint true"
        )
    return given


def first_free(default: str) -> str:
    """The first of `default`, `default-2`, `default-3`, … that is not in use."""
    folders = (default if i == 1 else f"{default}-{i}" for i in range(1, sys.maxsize))
    return next(folder for folder in folders if not in_use(folder))


def in_use(folder: str) -> bool:
    """Whether a path exists and is not an empty folder."""
    return os.path.exists(folder) and not (os.path.isdir(folder) and not os.listdir(folder))
