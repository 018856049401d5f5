"""The run of a training script: train, save and evaluate, with exit statuses and messages for the command line."""

from __future__ import annotations

import csv
import gc
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer

from maxsup_hf.data.arguments import data_flags
from maxsup_hf.data.columns import read_column
from maxsup_hf.data.messages import listed
from maxsup_hf.hub.push import PushError
from maxsup_hf.metrics import CalibrationMetrics, ClassScores, LogitMetrics, balanced_accuracy, macro_f1, per_class
from maxsup_hf.output.files import plain, replacing
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.rehearsal import rehearse
from maxsup_hf.trainer.checkpointing import CheckpointError, last_checkpoint
from maxsup_hf.trainer.class_weights import weights_for_training

logger = logging.getLogger(__name__)

SHOWN_CLASSES = 5
GEOMETRY_HELP = (
    "Log feature_within and feature_r2 (within-class variation and separability of the features) at each evaluation; this "
    "takes another pass over the evaluation data."
)


@dataclass
class Job:
    """A run that is ready to start: everything has been read and checked.

    Attributes:
        trainer: with its model, data and `processing_class`.
        test_dataset: evaluated once, at the end.
        card: keyword arguments of `Trainer.create_model_card`.
        dry: print what would be trained instead of training.
        pretrained: whether the weights are those of a trained model.
        settings: what the user set, flag -> value.
        classifies_rows: whether each row has one class, so that rows and features of the classes are reported.
    """

    trainer: Any
    test_dataset: Dataset | None
    card: dict[str, Any]
    dry: bool = False
    pretrained: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    classifies_rows: bool = False


def make_job(
    args: ScriptArguments, trainer: Any, splits: Mapping[str, Any], task: str, builtin: str, *, classifies_rows: bool = False
) -> Job:
    """The job of a script, once everything has been checked.

    Args:
        splits: `test` is evaluated at the end if it is there.
        task: as the Hub calls it, for the model card.
        builtin: name of the task's built-in data set, for the model card.
        classifies_rows: see `Job`.
    """
    if args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
    return Job(
        trainer,
        splits.get("test"),
        _card(args, task, builtin),
        dry=args.dry_run,
        pretrained=args.model_name_or_path is not None,
        settings=args.settings,
        classifies_rows=classifies_rows,
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


def main(
    prepare: Callable[[Sequence[str] | None], Job],
    argv: Sequence[str] | None = None,
    act: Callable[[Job], None] | None = None,
) -> None:
    """Run a script from the command line.

    Wrong input raises ValueError, TypeError, OSError, ImportError or RuntimeError while the job is prepared: the message is
    printed as one line and the program ends with status 2 (`--log_level debug` shows the traceback). Later errors are not
    the user's and keep their traceback, except that a failed push or a checkpoint that cannot be written is one line again,
    with status 1.

    With `--enable_jit_checkpoint`, SIGTERM ends training with a checkpoint and the program with status 143, as a shell
    reports that signal: a batch system that sees it restarts the run.

    Args:
        prepare: reads and checks the input; writes nothing until all of it is valid.
        argv: the command line without the program; `None` means `sys.argv[1:]`.
        act: called instead of `run`.
    """
    job = _prepare(prepare, argv)
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


def _prepare(prepare: Callable[[Sequence[str] | None], Job], argv: Sequence[str] | None) -> Job:
    """Prepare and check a job; wrong input ends the program."""
    try:
        job = prepare(argv)
        if job.trainer.args.do_train:
            _resolve_class_weights(job.trainer)
            job.trainer.check()
            rehearse(job.trainer)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if logger.isEnabledFor(logging.DEBUG):
            raise
        if os.environ.get("RANK", "0") == "0":  # the other ranks found the same
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    return job


def _act(job: Job, act: Callable[[Job], None]) -> None:
    """Run a prepared job; an interruption, or a failure to save or push, ends the program."""
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
    except (PushError, CheckpointError) as error:  # saved but not pushed, or a checkpoint not written
        print("error:", error, file=sys.stderr)
        raise SystemExit(1) from error


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
    folder = job.trainer.args.output_dir
    with suppress(OSError):  # not empty: it holds a run to be resumed
        (os.rmdir if os.path.isabs(folder) else os.removedirs)(folder)
    describe(job, "dry run: ")


def describe(job: Job, before: str = "") -> None:
    """Print what is trained on which data, in a few lines."""
    trainer = job.trainer
    if not trainer.is_world_process_zero():
        return
    args, model = trainer.args, trainer.model
    weights = f"weights of {model.name_or_path}" if job.pretrained else "random weights (--model_name_or_path fine-tunes)"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = "" if trained == model.num_parameters() else f", {trained:,} of them trained"
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    duration = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    others = {"validation": trainer.eval_dataset, "test": job.test_dataset}
    rows = "".join(f", {len(dataset):,} {split}" for split, dataset in others.items() if dataset is not None)
    print(
        f"{before}{type(model).__name__} ({model.num_parameters():,} parameters{frozen}; {weights}) on "
        f"{len(trainer.train_dataset):,} rows{rows}, loss {trainer.loss_function}\n"
        f"{trainer.accelerator.distributed_type.value}, {args.world_size} process(es) on {args.device.type} x batch "
        f"{args.per_device_train_batch_size} x accumulation {args.gradient_accumulation_steps} = {batch} rows a step, "
        f"mixed precision {trainer.accelerator.mixed_precision}, to {args.output_dir}\n"
        f"learning rate {args.learning_rate:g}, {duration}"
    )
    if job.classifies_rows:
        _describe_classes(model.config.id2label, read_column(trainer.train_dataset, "labels").to_pylist())


def _describe_classes(names: Mapping[int, str], labels: Sequence[int]) -> None:
    counts = Counter(labels)
    rarest = min(names, key=lambda k: counts[k])
    print(
        f"{len(names)} classes: {listed([f'{name} ({counts[k]:,})' for k, name in names.items()], 20)}\n"
        f"rarest class: {names[rarest]} ({counts[rarest]:,})"
    )


def run(job: Job) -> None:
    """Train and save (unless `do_train` is false), then evaluate on the validation and the test data (unless `do_eval` is).

    The main process writes to the Trainer's `output_dir`: the model and its processing class, `trainer_state.json`,
    `train_results.json`, `eval_results.json`, `test_results.json`, `all_results.json` (all of them together) and the model
    card.
    """
    trainer = job.trainer
    if trainer.args.do_train:
        describe(job)
        _write_settings(job)
        if not _train(trainer):
            return
    evaluated = [("eval", trainer.eval_dataset), ("test", job.test_dataset)] if trainer.args.do_eval else []
    for prefix, dataset in evaluated:
        if dataset is not None:
            _report(trainer, prefix, trainer.evaluate(dataset, metric_key_prefix=prefix), dataset)
            _report_classes(trainer, prefix)
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**job.card)
    elif trainer.args.do_train:
        trainer.create_model_card(**job.card)
    if trainer.is_world_process_zero():
        print(f"saved to {trainer.args.output_dir}")


def _write_settings(job: Job) -> None:
    """Write `config.yaml`, with which `--config` repeats the run."""
    if job.trainer.is_world_process_zero():
        folder = Path(job.trainer.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.yaml") as unfinished:
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
    if trainer.state.global_step < trainer.state.max_steps and trainer.is_world_process_zero():
        print(
            f"ended early, at step {trainer.state.global_step} of {trainer.state.max_steps}: the best model, with "
            f"{trainer.args.metric_for_best_model} {trainer.state.best_metric}, is kept"
        )
    trainer.save_model()
    trainer.save_state()
    _report(trainer, "train", metrics, trainer.train_dataset)
    return True


def _report(trainer: Trainer, prefix: str, metrics: dict[str, float], dataset: Any) -> None:
    metrics = {**metrics, f"{prefix}_samples": len(dataset)}
    trainer.log_metrics(prefix, metrics)
    trainer.save_metrics(prefix, metrics)


def _report_classes(trainer: Any, prefix: str) -> None:
    """Write `PREFIX_per_class.csv`, and print the classes that are predicted worst."""
    scores = getattr(trainer.compute_metrics, "scores", None)
    if not scores or not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / f"{prefix}_per_class.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(scores[0]._fields)
        writer.writerows(scores)
    worst = sorted(scores, key=lambda each: each.f1)[:SHOWN_CLASSES]
    width = max(len(each.name) for each in worst)
    print(f"lowest F1 of {len(scores)} classes ({path}):")
    for each in worst:
        print(
            f"  {each.name:{width}}  F1 {each.f1:.3f}  precision {each.precision:.3f}  recall {each.recall:.3f}  "
            f"support {each.support:,}"
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
