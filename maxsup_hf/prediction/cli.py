"""`maxsup-hf predict`: read rows, predict them with a trained model, and write a file."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from maxsup_hf.data.answers import is_squad
from maxsup_hf.data.arguments import check_not_blank, delimiter
from maxsup_hf.data.files import is_saved
from maxsup_hf.output.messages import listed, one_line
from maxsup_hf.output.parser import Parser
from maxsup_hf.prediction.data import check_output, identifiers, known_labels, load_rows, write_rows
from maxsup_hf.prediction.loading import load_model
from maxsup_hf.prediction.model import Model
from maxsup_hf.prediction.tasks import TASKS

USUAL_LABELS = ("label", "labels")
LEAST = {  # smallest values of the flags that are numbers
    "max_samples": 1,
    "batch_size": 1,
    "top_k": 1,
    "max_new_tokens": 1,
    "max_seq_length": 1,
    "dataloader_num_workers": 0,
}


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog="maxsup-hf predict",
        usage="%(prog)s MODEL [flags]",
        description="Write the predictions of a trained model for new rows, with or without labels.",
    )
    found.add_argument("model", metavar="MODEL", help="a Hub id, or the output_dir of a training run; or an adapter")
    found.add_argument("--base_model", help="base model of an adapter (default: the one that the adapter names)")
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
    output.add_argument(
        "--output_file", "--predictions_file", default="predictions.csv", help="csv, jsonl or parquet (predictions.csv)"
    )
    output.add_argument("--overwrite", action="store_true", help="write over an output file that exists")
    output.add_argument("--top_k", type=int, default=1, help="classes of each row that are written (1)")
    output.add_argument("--max_new_tokens", type=int, default=128, help="length of generated texts in tokens (128)")
    output.add_argument(
        "--skip_broken_images",
        action="store_true",
        help="predict nothing for images that cannot be read (default: an error)",
    )
    output.add_argument("--allow_no_answer", action="store_true", help="a question may have no answer (SQuAD 2)")
    run = found.add_argument_group("run")
    run.add_argument("--batch_size", type=int, default=32, help="rows that are predicted together (32)")
    run.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that prepare batches (0)")
    run.add_argument("--device", help="cpu, cuda, … (default: the accelerator if there is one)")
    run.add_argument("--dtype", default="auto", help="type of the weights, such as bfloat16 (default: as they are stored)")
    run.add_argument("--bf16", dest="dtype", action="store_const", const="bfloat16", help="the same as --dtype bfloat16")
    run.add_argument("--max_seq_length", type=int, help="maximum length of a text in tokens (default: what the model takes)")
    run.add_argument("--model_revision", default="main", help="branch, tag or commit of the model on the Hub")
    run.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with a model on the Hub")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Wrong input is one line, and status 2."""
    args = parser().parse_args(argv)
    try:
        _predict(args)
    except Exception as error:  # of any type: libraries raise all kinds on unusual input
        print("error:", one_line(error), file=sys.stderr)
        raise SystemExit(2) from None


def _predict(args: argparse.Namespace) -> None:
    check_not_blank(vars(args), allowed=("source_prefix",))
    if args.csv_delimiter is not None:
        args.csv_delimiter = delimiter(args.csv_delimiter)
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    check_output(args.output_file, args.overwrite)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("maxsup_hf").setLevel(logging.INFO)
    rows = load_rows(args)
    if args.label_column_name is None:
        args.label_column_name = _label_column(rows)
    elif args.label_column_name not in rows.column_names:
        raise ValueError(
            f"label_column_name: the rows have no column {args.label_column_name!r}, but {', '.join(rows.column_names)}"
        )
    model, task = load_model(args)
    if args.test_dir and not is_saved(args.test_dir) and not TASKS[task].reads_images:
        raise ValueError(f"test_dir holds images, and the model is for {task}; give its rows as --test_file")
    write_predictions(model, task, rows, known_labels(rows, args.label_column_name))


def _label_column(rows: Dataset) -> str | None:
    """The column that holds the labels by its name, or answers in the form of SQuAD."""
    answers = [name for name, feature in rows.features.items() if is_squad(feature)]
    return next((name for name in (*USUAL_LABELS, *answers) if name in rows.column_names), None)


def write_predictions(model: Model, task: str, rows: Dataset, labels: Sequence[Any] | None) -> None:
    """Predict rows, write them to the output file beside their labels, and print the accuracy of a classifier.

    Args:
        task: one of `TASKS`.
        labels: of the rows, names or indices of classes; `None` if they are not known.
    """
    args = model.args
    found = TASKS[task].predict(model, rows)
    found = [{**names, **row} for names, row in zip(identifiers(rows), found, strict=True)]
    if labels is not None:
        found = [{**row, "label": label} for row, label in zip(found, labels, strict=True)]
    write_rows(args.output_file, found)
    print(f"wrote {len(found):,} predictions to {args.output_file}")
    if task in ("image-classification", "text-classification"):
        _print_accuracy(found, model.names)


def _print_accuracy(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """How many predictions are right, of the rows whose label is a class of the model."""
    if "label" not in rows[0] or isinstance(rows[0]["label"], list):
        return
    without = sum(row["prediction"] is None for row in rows)
    if without:
        print(f"{without:,} rows have no prediction: their images cannot be read")
        rows = [row for row in rows if row["prediction"] is not None]
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
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if str(label) in names:
        return str(label)
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else None
