"""Resuming a run from the command line: when it helps, from which checkpoint, and whether anything is left to do."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from maxsup_hf.hub.record import read_record
from maxsup_hf.output.weights import safetensors_error, weight_files
from maxsup_hf.trainer.complete import find_checkpoint, on_main_process
from maxsup_hf.trainer.continuation import changes_on_resume
from maxsup_hf.trainer.loss_state import loss_changes

NEWEST = ("true", "yes", "last", "auto")  # values of --resume_from_checkpoint for the newest complete checkpoint


def resumes(resume: str | None) -> TypeGuard[str]:
    """Whether a value of `--resume_from_checkpoint` asks for a checkpoint."""
    return resume is not None and resume.lower() not in ("", "false", "no", "none")


def checkpoint_to_resume(resume: str | None, args: Any) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` asks for, checked as far as it can be before the data are read.

    With `auto`, a job that is restarted by the same command resumes from its last checkpoint, or starts if there is none.

    Args:
        resume: the value of the flag.
        args: the training arguments.

    Raises:
        ValueError: there is no complete checkpoint, or the settings or the loss of this run are not those of the run that
            wrote it.
    """
    return on_main_process(partial(_checkpoint, resume, args)) if resumes(resume) else None


def _checkpoint(resume: str, args: Any) -> str | None:
    checkpoint = find_checkpoint(resume.lower() in NEWEST or resume, args.output_dir)
    if checkpoint is None and resume.lower() != "auto":
        raise ValueError(
            f"resume_from_checkpoint: there is no complete checkpoint in {args.output_dir!r}; set --output_dir to the "
            "folder of the run, or start it with auto"
        )
    if checkpoint is not None:
        changes_on_resume(checkpoint, args)
        loss_changes(checkpoint, args.make_loss(), args.resume_with_other_loss)
    return checkpoint


def is_recorded(trainer: Any) -> bool:
    """Whether a finished run that was resumed had been saved to the end: its `run.json` and its card are written last. It
    had not if they or the weights are missing, or cannot be read."""
    folder = Path(trainer.args.output_dir)
    weights = weight_files(folder)
    if not (trainer.already_finished and weights and (folder / "README.md").is_file()):
        return False
    if any(safetensors_error(path) for path in weights if path.suffix == ".safetensors"):
        return False
    try:
        return read_record(folder).get("steps") == trainer.state.global_step
    except ValueError:
        return False


def disk_is_full(error: OSError) -> bool:
    """Whether a file could not be written because the disk is full, so that the run can be resumed once there is space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
