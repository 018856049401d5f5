"""The run of a training script: train, save and evaluate, with exit statuses and messages for the command line."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import PartialState
from transformers import EarlyStoppingCallback, EvalPrediction

from maxsup_hf.data.arguments import data_flags
from maxsup_hf.data.seeded_fetching import UnreadableRow
from maxsup_hf.hub.push import PushError
from maxsup_hf.metrics import CalibrationMetrics, ClassScores, LogitMetrics, balanced_accuracy, macro_f1, per_class
from maxsup_hf.output.files import plain, replacing
from maxsup_hf.output.guard import masked_output
from maxsup_hf.output.messages import one_line
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.console import print_lines
from maxsup_hf.scripts.common.evaluation import LastEvaluation, evaluate, report_classes, save_metrics
from maxsup_hf.scripts.common.export import ExportError, check_source, export
from maxsup_hf.scripts.common.job import Job, PredictionError, RowsToPredict
from maxsup_hf.scripts.common.rehearsal import rehearse
from maxsup_hf.scripts.common.resuming import disk_is_full, is_recorded
from maxsup_hf.scripts.common.summary import describe
from maxsup_hf.trainer.checkpointing import CheckpointError
from maxsup_hf.trainer.class_weights import weights_for_training
from maxsup_hf.trainer.complete import last_checkpoint, what_is_safe

logger = logging.getLogger(__name__)

GEOMETRY_HELP = (
    "Log feature_within and feature_r2 (within-class variation and separability of the features) at each evaluation; this "
    "takes another pass over the evaluation data."
)


def make_job(
    args: ScriptArguments,
    trainer: Any,
    splits: Mapping[str, Any],
    task: str,
    builtin: str,
    *,
    classifies_rows: bool = False,
    pixels: list[int] | None = None,
    rows: Mapping[str, Any] | None = None,
    **options: Any,
) -> Job:
    """The job of a script, once everything has been checked.

    Args:
        splits: `test` is evaluated at the end if it is there.
        task: as the Hub calls it, for the model card.
        builtin: name of the task's built-in data set, for the model card.
        classifies_rows, pixels: see `Job`.
        rows: the splits before their rows became inputs of the model, for `--do_predict`.
        **options: see `RowsToPredict`.
    """
    print_lines(trainer)
    if args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
    test_rows = (rows or {}).get("test") if args.unlabelled is None else args.unlabelled
    return Job(
        trainer,
        splits.get("test"),
        _card(args, task, builtin),
        dry=args.dry_run,
        pretrained=args.model_name_or_path is not None,
        settings=args.settings,
        classifies_rows=classifies_rows,
        pixels=pixels,
        to_predict=None if test_rows is None else RowsToPredict(test_rows, options),
        predictions_file=args.predictions_file,
        export=args.export,
    )


def _card(args: ScriptArguments, task: str, builtin: str) -> dict[str, Any]:
    """The task and the data, as keyword arguments of `Trainer.create_model_card`."""
    flags = data_flags(args)
    if not flags:
        return {"tasks": task, "dataset": builtin}
    if args.dataset_name is None or os.path.isdir(args.dataset_name):
        return {"tasks": task, "dataset": os.path.basename(getattr(args, flags[0]).rstrip("/"))}
    tags = {"dataset_tags": args.dataset_name, "dataset_args": args.dataset_config_name}
    return {"tasks": task, "dataset": args.dataset_name, **tags}


@masked_output()
def main(
    prepare: Callable[[Sequence[str] | None], Job],
    argv: Sequence[str] | None = None,
    act: Callable[[Job], None] | None = None,
    predict: Callable[[Job], Callable[[], None]] | None = None,
) -> None:
    """Run a script from the command line.

    Wrong input raises an error while the job is prepared: the message is printed as one line and the program ends with
    status 2 (`--log_level debug` shows the traceback). Later errors are not the user's and keep their traceback, except that
    failed predictions, a failed push or export, a checkpoint that cannot be written, or a row that cannot be read, is one
    line again, with status 1.

    With `--enable_jit_checkpoint`, SIGTERM ends training with a checkpoint and the program with status 143, as a shell
    reports that signal: a batch system that sees it restarts the run.

    Args:
        prepare: reads and checks the input; writes nothing until all of it is valid.
        argv: the command line without the program; `None` means `sys.argv[1:]`.
        act: called instead of `run`.
        predict: checks what `--do_predict` needs before anything is trained, and returns what writes the predictions. The
            command line passes it: predicting is in a layer above this one, because it uses the scripts' preprocessing.
    """
    job = _prepare(prepare, argv, predict)
    _act(job, dry_run if job.dry else act or run)
    preempted = job.trainer.preempted
    # DDP must be gone before its process group is destroyed. Otherwise gloo joins its thread while holding the interpreter's
    # lock, which that thread may need, and the rank never ends.
    PartialState().wait_for_everyone()
    del job
    gc.collect()
    PartialState().destroy_process_group()
    if preempted:
        raise SystemExit(128 + signal.SIGTERM)


def _prepare(
    prepare: Callable[[Sequence[str] | None], Job],
    argv: Sequence[str] | None,
    predict: Callable[[Job], Callable[[], None]] | None,
) -> Job:
    """Prepare and check a job; wrong input ends the program."""
    job = None
    try:
        job = prepare(argv)
        if job.export is not None:
            check_source(job)
        if job.trainer.args.do_predict:
            job.predict = _predictor(job, predict)
        if job.trainer.args.do_train:
            _resolve_class_weights(job.trainer)
            job.trainer.check()
            if job.trainer.args.resume_from_checkpoint:
                job.trainer.check_resumed(job.trainer.args.resume_from_checkpoint)
            job.trainer.needs_check = False  # nothing changes from here on
            rehearse(job.trainer)
    except Exception as error:  # of any type: libraries raise all kinds on unusual input
        if job is not None:
            _remove_empty(job.trainer.args.output_dir)
        if logger.isEnabledFor(logging.DEBUG):
            raise
        if os.environ.get("RANK", "0") == "0":  # the other ranks found the same
            print("error:", one_line(error), file=sys.stderr)
        raise SystemExit(2) from None
    return job


def _act(job: Job, act: Callable[[Job], None]) -> None:
    """Run a prepared job; an interruption, or a failure to save, push or export, ends the program with one line."""
    try:
        act(job)
    except KeyboardInterrupt:
        if job.trainer.is_world_process_zero():
            checkpoint = last_checkpoint(job.trainer.args.output_dir)
            hint = "there is no checkpoint yet"
            if checkpoint:
                hint = f"continue from {checkpoint} with --resume_from_checkpoint true"
            print(f"\ninterrupted: {hint}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (PushError, CheckpointError, ExportError, PredictionError, UnreadableRow) as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(1) from error
    except OSError as error:
        if not disk_is_full(error):
            raise
        print(f"error: {error}. {what_is_safe(job.trainer.args.output_dir)}", file=sys.stderr)
        raise SystemExit(1) from error


def _predictor(job: Job, predict: Callable[[Job], Callable[[], None]] | None) -> Callable[[], None]:
    """What writes the predictions of `--do_predict`.

    Raises:
        ValueError: it cannot be done.
    """
    if predict is None:
        raise ValueError("do_predict: start the run as `maxsup-hf train TASK` (or `-m maxsup_hf train TASK`)")
    if job.to_predict is None:
        raise ValueError("do_predict: there is no test data to predict; give --test_file, --test_dir or --dataset_name")
    if job.trainer.is_deepspeed_enabled or job.trainer.is_fsdp_enabled:
        raise ValueError("do_predict: the weights are sharded; run `maxsup-hf predict OUTPUT_DIR` after training")
    return predict(job)


def _resolve_class_weights(trainer: Any) -> None:
    """Replace `class_weights` of the arguments by the numbers for this model and its training data.

    Raises:
        ValueError, TypeError: they do not fit.
    """
    weights = weights_for_training(trainer.args.class_weights, trainer.model, trainer.train_dataset, trainer.label_names)
    if weights is not None:
        trainer.args.class_weights = weights.tolist()


def dry_run(job: Job) -> None:
    """Say what would be trained, and remove the empty output folder that the Trainer made."""
    _remove_empty(job.trainer.args.output_dir)
    describe(job, "dry run: ")


def _remove_empty(folder: str) -> None:
    with suppress(OSError):  # not empty: it holds a run to be resumed
        (os.rmdir if os.path.isabs(folder) else os.removedirs)(folder)


def run(job: Job) -> None:
    """Train and save (unless `do_train` is false), evaluate on the validation and the test data (unless `do_eval` is), and
    with `do_predict` write the predictions of the test data.

    The main process writes to the Trainer's `output_dir`: the model and its processing class, `trainer_state.json`,
    `train_results.json`, `eval_results.json`, `test_results.json`, `all_results.json` (all of them together), the scores of
    each class (`per_class.csv`) and the model card.
    """
    trainer = job.trainer
    trainer.pushes_after_training = False  # but after the evaluation, in one commit with the card
    describe(job)
    last = LastEvaluation(trainer)
    _write_settings(job)
    if trainer.args.do_train:
        trainer.add_callback(last)
        if not _train(trainer):
            return
    if trainer.args.do_eval:
        scores: dict[str, Sequence[ClassScores]] = {}
        if trainer.eval_dataset is not None:
            scores["validation"] = evaluate(trainer, "eval", trainer.eval_dataset, last.of_this_model())
            report_classes(trainer, "validation", scores)
        if job.test_dataset is not None:
            scores["test"] = evaluate(trainer, "test", job.test_dataset)
            report_classes(trainer, "test", scores)
    if job.predict is not None and trainer.is_world_process_zero():
        job.predict()
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**job.card)
    elif trainer.args.do_train and not is_recorded(trainer):
        trainer.create_model_card(**job.card)
    if job.export is not None and trainer.is_world_process_zero():
        export(job)
    if trainer.is_world_process_zero():
        print(f"saved to {trainer.args.output_dir}")


def _write_settings(job: Job) -> None:
    """Write `config.yaml`, with which `--config` repeats the run. An evaluation keeps the one of a training."""
    file = Path(job.trainer.args.output_dir) / "config.yaml"
    if job.trainer.is_world_process_zero() and (job.trainer.args.do_train or not file.exists()):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(yaml.safe_dump(plain(job.settings), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _train(trainer: Any) -> bool:
    """Train and save; `False` if SIGTERM ended the training."""
    checkpoint = trainer.args.resume_from_checkpoint
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    if trainer.preempted:
        if trainer.is_world_process_zero():
            step, last = trainer.state.global_step, trainer.state.max_steps
            print(f"ended by SIGTERM after step {step} of {last}, saved: continue with --resume_from_checkpoint true")
        return False
    if trainer.already_finished:
        if trainer.is_world_process_zero():
            print(f"finished before, at step {trainer.state.global_step} of {trainer.state.max_steps}: nothing was trained")
        if not is_recorded(trainer):  # interrupted between the last checkpoint and the end
            trainer.save_result()
        return True
    if trainer.is_world_process_zero():
        _say_what_is_kept(trainer.args, trainer.state)
    trainer.save_result()
    save_metrics(trainer, "train", metrics, trainer.train_dataset)
    return True


def _say_what_is_kept(args: Any, state: Any) -> None:
    if state.global_step < state.max_steps:
        print(f"ended early, at step {state.global_step} of {state.max_steps}")
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        print(
            f"the best model is kept, of step {state.best_global_step}: {args.metric_for_best_model} {state.best_metric:.4g}"
        )


class ClassificationMetrics:
    """`compute_metrics` of a classifier: the metrics of `classification_metrics`, macro-F1 and balanced accuracy.

    Args:
        names: of the classes.

    Attributes:
        scores: precision, recall, F1 and support of each class, of the last evaluation.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.scores: list[ClassScores] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        predicted = logits.argmax(-1)
        self.scores = per_class(labels, predicted, self.names)
        found = classification_metrics(prediction)
        return found | {"macro_f1": macro_f1(labels, predicted), "balanced_accuracy": balanced_accuracy(labels, predicted)}


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` of the classification tasks; the Trainer prefixes the names with `eval_` or `test_`."""
    return CalibrationMetrics()(prediction) | LogitMetrics()(prediction)


def only_logits(outputs: Any, labels: Any) -> Any:
    """`preprocess_logits_for_metrics`: drop the hidden states of encoder-decoders, which would fill the memory."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
