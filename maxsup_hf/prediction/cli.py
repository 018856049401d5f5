"""`maxsup-hf predict`: read rows, predict them with a trained model, and write a file."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils.generic import is_timm_local_checkpoint

from maxsup_hf.data.files import loading
from maxsup_hf.data.messages import listed
from maxsup_hf.hub.record import why_no_weights
from maxsup_hf.prediction.data import check_output, known_labels, load_rows, write_rows
from maxsup_hf.prediction.model import Model
from maxsup_hf.prediction.tasks import TASKS, find_task
from maxsup_hf.scripts.common.models import hub_options
from maxsup_hf.scripts.common.tokenizers import max_length

USUAL_LABELS = ("label", "labels")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="maxsup-hf predict",
        description="Write the predictions of a trained model for new rows, with or without labels.",
        allow_abbrev=False,
    )
    found.add_argument("model", metavar="MODEL", help="a Hub id, or the output_dir of a training run")
    found.add_argument("--task", choices=list(TASKS), help="(default: by the class of the model)")
    data = found.add_argument_group("data")
    data.add_argument("--test_file", help="a csv, tsv, json, jsonl, parquet or txt file")
    data.add_argument("--test_dir", help="a folder of images, in subfolders or not")
    data.add_argument("--dataset_name", help="a data set: a Hub id or a local folder")
    data.add_argument("--dataset_config_name", help="its configuration (subset)")
    data.add_argument("--split", help="its split (default: test, or the first)")
    data.add_argument("--max_samples", type=int, help="predict at most this many rows, from the first on")
    for name in ("text", "image", "tokens", "question", "context", "choices", "source", "label"):
        data.add_argument(f"--{name}_column_name", help="column (default: found by its type or name)")
    data.add_argument("--csv_delimiter", help="what separates the columns of csv files (default: a comma)")
    data.add_argument("--source_prefix", default="", help="text to put before every source")
    output = found.add_argument_group("output")
    output.add_argument("--output_file", default="predictions.csv", help="csv, jsonl or parquet (predictions.csv)")
    output.add_argument("--overwrite", action="store_true", help="write over an output file that exists")
    output.add_argument("--top_k", type=int, default=1, help="classes of each row that are written (1)")
    output.add_argument("--max_new_tokens", type=int, default=128, help="length of generated texts in tokens (128)")
    output.add_argument("--allow_no_answer", action="store_true", help="a question may have no answer (SQuAD 2)")
    run = found.add_argument_group("run")
    run.add_argument("--batch_size", type=int, default=32, help="rows that are predicted together (32)")
    run.add_argument("--device", help="cpu, cuda, … (default: the accelerator if there is one)")
    run.add_argument("--max_seq_length", type=int, help="maximum length of a text in tokens (default: what the model takes)")
    run.add_argument("--model_revision", default="main", help="branch, tag or commit of the model on the Hub")
    run.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with a model on the Hub")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Wrong input is one line, and status 2."""
    args = parser().parse_args(argv)
    try:
        _predict(args)
    except (ValueError, TypeError, OSError, RuntimeError, AssertionError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None


def _predict(args: argparse.Namespace) -> None:
    for name in ("batch_size", "top_k", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    check_output(args.output_file, args.overwrite)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("maxsup_hf").setLevel(logging.INFO)
    rows = load_rows(args)
    if args.label_column_name is None:
        args.label_column_name = next((name for name in USUAL_LABELS if name in rows.column_names), None)
    elif args.label_column_name not in rows.column_names:
        raise ValueError(
            f"label_column_name: the rows have no column {args.label_column_name!r}, but {', '.join(rows.column_names)}"
        )
    model, task = _load(args)
    if args.test_dir and not TASKS[task].reads_images:
        raise ValueError(f"test_dir holds images, and the model is for {task}; give its rows as --test_file")
    write_predictions(model, task, rows, known_labels(rows, args.label_column_name))


def write_predictions(model: Model, task: str, rows: Dataset, labels: Sequence[Any] | None) -> None:
    """Predict rows, write them to the output file beside their labels, and print the accuracy of a classifier.

    Args:
        task: one of `TASKS`.
        labels: of the rows, names or indices of classes; `None` if they are not known.
    """
    args = model.args
    found = TASKS[task].predict(model, rows)
    if "id" in rows.column_names:  # what rows are known by
        found = [{"id": name, **row} for name, row in zip(rows["id"], found, strict=True)]
    if labels is not None:
        found = [{**row, "label": label} for row, label in zip(found, labels, strict=True)]
    write_rows(args.output_file, found)
    print(f"wrote {len(found):,} predictions to {args.output_file}")
    _print_accuracy(found, model.names if task.endswith("classification") else [])


def _load(args: argparse.Namespace) -> tuple[Model, str]:
    if args.model.startswith((".", "/", "~")) and not os.path.isdir(args.model):
        raise ValueError(f"model: there is no folder {args.model!r}")
    hub = hub_options(args)
    with loading("model", args.model):
        config = AutoConfig.from_pretrained(args.model, **hub)
        task = args.task or find_task(config.architectures or [])
        if type(config) not in TASKS[task].auto_class._model_mapping:
            raise ValueError(f"{config.model_type} models are not served by {task}; name another task with --task")
        if getattr(config, "problem_type", None) == "multi_label_classification":
            raise ValueError("the model is multi-label, and each row would get a single class")
        _check_files(args.model, TASKS[task].reads_images)
        auto: Any = AutoImageProcessor if TASKS[task].reads_images else AutoTokenizer
        processor = auto.from_pretrained(args.model, **hub)
        model = TASKS[task].auto_class.from_pretrained(args.model, **hub)
    length = 0
    if not TASKS[task].reads_images:
        processor.pad_token = processor.pad_token or processor.eos_token
        length = max_length(args, config, processor)
    device = args.device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    return Model(model.eval().to(device), processor, length, args), task


def _check_files(model: str, reads_images: bool) -> None:
    """Raise ValueError if a local model has no weights, or no tokenizer or processor: transformers may make an empty one."""
    if not os.path.isdir(model):
        return
    reason = why_no_weights(model)
    if reason:
        raise ValueError(reason)
    files = os.listdir(model)
    if "adapter_config.json" in files and "config.json" not in files:
        raise ValueError("it is an adapter: merge it into its base model (peft's merge_and_unload), and predict with that")
    beginnings = ("preprocessor", "processor") if reads_images else ("tokenizer", "vocab", "spiece", "sentencepiece")
    if not any(file.startswith(beginnings) for file in files) and not is_timm_local_checkpoint(model):
        raise ValueError(f"there is no {'image processor' if reads_images else 'tokenizer'} beside it")


def _print_accuracy(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """How many predictions are right, of the rows whose label is a class of the model."""
    if not names or "label" not in rows[0] or isinstance(rows[0]["label"], list):
        return
    pairs = [(row["prediction"], _class_name(row["label"], names)) for row in rows]
    known = [(predicted, label) for predicted, label in pairs if label is not None]
    unknown = sorted({str(row["label"]) for row, (_, label) in zip(rows, pairs, strict=True) if label is None})
    if unknown:
        print(f"{len(rows) - len(known):,} rows have no class of the model as their label: {listed(unknown)}")
    if known:
        right = sum(predicted == label for predicted, label in known)
        print(f"accuracy: {right / len(known):.4f} ({right:,} of {len(known):,})")


def _class_name(label: Any, names: Sequence[str]) -> str | None:
    """The class that a label means, by name or else by index; `None` if there is none."""
    if isinstance(label, float) and label == int(label):
        label = int(label)
    if str(label) in names:
        return str(label)
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else None
