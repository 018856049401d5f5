"""Predictions of the test data at the end of a run: `maxsup-hf train … --do_predict`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers.trainer_utils import unwrap_peft_model

from maxsup_hf.losses import IGNORE_INDEX
from maxsup_hf.output.messages import one_line
from maxsup_hf.prediction.cli import parser, write_predictions
from maxsup_hf.prediction.data import check_output, known_labels
from maxsup_hf.prediction.images import mask_folder
from maxsup_hf.prediction.model import Model
from maxsup_hf.prediction.tasks import find_task
from maxsup_hf.scripts.common.job import Job, PredictionError

NAMED = ("image-classification", "text-classification", "token-classification")  # whose labels are indices of class names


def prepare_predictions(job: Job) -> Callable[[], None]:
    """Check, before anything is trained, what the predictions need, and return what writes them after it.

    The rows are those that the run evaluates as test data, and the model is the one in memory.

    Raises:
        ValueError, OSError: the file has an unknown extension, its folder does not exist, or it exists.
    """
    args = _options(job)
    check_output(args.output_file, argument="predictions_file")
    resumes = job.trainer.args.resume_from_checkpoint is not None
    if job.predictions_file is not None and not resumes and Path(job.predictions_file).exists():
        raise FileExistsError(f"predictions_file: {job.predictions_file!r} exists; name another file")
    model_class = type(unwrap_peft_model(job.trainer.model))
    names = [model_class.__name__, getattr(model_class, "_auto_class", None)]
    task = find_task([name for name in names if name])
    if task == "semantic-segmentation":
        mask_folder(args)
    return partial(_predict, job, task, args)


def _options(job: Job) -> Namespace:
    """The command line of `maxsup-hf predict` that stands for this run."""
    assert job.to_predict is not None
    training = job.trainer.args
    args = parser().parse_args([str(training.output_dir)])
    args.output_file = job.predictions_file or str(Path(training.output_dir) / "predictions.csv")
    args.overwrite = job.predictions_file is None or training.resume_from_checkpoint is not None  # the masks of this run
    args.batch_size = training.per_device_eval_batch_size
    vars(args).update(job.to_predict.options)
    return args


def _predict(job: Job, task: str, args: Namespace) -> None:
    try:
        _write(job, task, args)
    except Exception as error:  # of any type, as in `maxsup-hf predict`
        raise PredictionError(f"do_predict: {one_line(error)}") from error


def _write(job: Job, task: str, args: Namespace) -> None:
    assert job.to_predict is not None
    rows, trained = job.to_predict.rows, job.trainer.model
    processor = job.trainer.processing_class
    model = Model(trained.eval().to(job.trainer.args.device), processor, args.max_seq_length or 0, args)
    labels = known_labels(rows, args.label_column_name)
    if labels is not None and task in NAMED:
        labels = [_named(label, model.names) for label in labels]
    write_predictions(model, task, rows, labels)


def _named(label: Any, names: list[str]) -> Any:
    """The class names that stand for indices, also in lists; an ignored one is an empty string."""
    if isinstance(label, list):
        return [_named(each, names) for each in label]
    return "" if label == IGNORE_INDEX else names[label]
