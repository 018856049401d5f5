"""The folder that a run writes to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from maxsup_hf.data.arguments import check_not_blank
from maxsup_hf.scripts.common.resuming import NEWEST, resumes


def choose_output_dir(given: str | None, resume: str | None, default: str) -> str:
    """The folder to write to. A run never writes into the folder of another one.

    Without `--output_dir`, the folder is the first free one. All ranks choose the same: constructing the training arguments
    waits for every rank, so that all have chosen before any of them writes.
    """
    if not resumes(resume):
        return _new_folder(given, default)
    if resume.lower() in NEWEST:
        return default if given is None else given
    if not os.path.isdir(resume):
        raise ValueError(
            f"resume_from_checkpoint: there is no folder {resume!r}; name a checkpoint, or give true for the newest "
            "complete one in output_dir, or auto, which begins if there is none"
        )
    parent = os.path.dirname(os.path.abspath(resume))
    if given is not None and os.path.abspath(given) != parent and in_use(given):
        raise FileExistsError(
            f"output_dir: {given!r} is not empty and not the folder of the checkpoint {resume!r}; name another folder"
        )
    return os.path.relpath(parent) if given is None else given


def _new_folder(given: str | None, default: str) -> str:
    if given is None:
        return first_free(default)
    check_not_blank({"output_dir": given})
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
