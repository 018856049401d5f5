"""Exporting the trained model to another format, by Hugging Face's optimum."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from transformers.utils.versions import require_version

from maxsup_hf.scripts.common.job import Job

FORMATS = ("onnx",)
PACKAGE = "optimum-onnx"
# The Hub's name of a task -> optimum's, where they differ.
TASKS = {"image-segmentation": "semantic-segmentation"}


class ExportError(RuntimeError):
    """The trained model could not be exported; it is saved."""


def check_export(name: str | None) -> None:
    """Check before training that a model can be exported at its end.

    Raises:
        ValueError: the format is unknown, or optimum is not installed or does not support the installed transformers.
    """
    if name is None:
        return
    if name not in FORMATS:
        raise ValueError(f"export must be {' or '.join(FORMATS)}, got {name!r}")
    try:
        requirements = requires(PACKAGE) or []
    except PackageNotFoundError:
        raise ValueError(f"export: {name} needs {PACKAGE}, which is not installed: pip install {PACKAGE}") from None
    wanted = [line for line in requirements if re.match(r"transformers\b(?!.*;)", line)]  # without those of extras
    try:
        for requirement in wanted:
            require_version(requirement)
    except ImportError:
        raise ValueError(
            f"export: {PACKAGE} {version(PACKAGE)} needs {requirement}, and {version('transformers')} is installed; leave "
            "--export out, and export the saved model in an environment of its own"
        ) from None
    try:
        import_module("optimum.exporters.onnx")
    except Exception as error:  # of any kind, from the many libraries that it imports
        raise ValueError(f"export: optimum.exporters.onnx cannot be imported: {error}") from error


def check_source(job: Job) -> None:
    """Raise ValueError if a run will not have a complete saved model to export."""
    if hasattr(job.trainer.model, "peft_config"):
        raise ValueError("export: an adapter is saved without its base model; leave --export out, and merge the two first")
    if not (job.trainer.args.do_train or job.pretrained):
        raise ValueError("export: nothing is trained (do_train is false); name a trained model with --model_name_or_path")


def export(job: Job) -> None:
    """Write the saved model to the subfolder `onnx` of the output folder.

    Raises:
        ExportError: optimum does not support the model, or fails.
    """
    args = job.trainer.args
    source = args.output_dir if args.do_train else job.trainer.model.name_or_path
    folder = Path(args.output_dir) / str(job.export)
    task = job.card["tasks"]
    try:
        import_module("optimum.exporters.onnx").main_export(str(source), str(folder), task=TASKS.get(task, task))
    except Exception as error:  # of any kind, from the many libraries that it calls
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(f"export: {source} is saved, but could not be exported to {job.export}: {reason}") from error
    print(f"exported to {folder}")
