"""Look at trained classifiers: features, logits and calibration, in figures and one report.

Several models are compared side by side. Without --dataset they are analyzed on the validation rows of their task's built-in
data set.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from maxsup_hf.analysis.classes import match_classes
from maxsup_hf.analysis.data import load_data
from maxsup_hf.analysis.models import held_out_share, load_model, model_inputs, training_record
from maxsup_hf.data.arguments import DataArguments
from maxsup_hf.output.messages import one_line
from maxsup_hf.output.parser import Parser
from maxsup_hf.scripts.common.output_dir import first_free, in_use


def parser() -> Parser:
    """The flags of `maxsup-hf analyze`."""
    flags = Parser(prog="maxsup-hf analyze", usage="%(prog)s MODEL [MODEL …] [flags]", description=__doc__)
    add = flags.add_argument
    add("models", nargs="+", metavar="MODEL", help="image or text classifiers: folders or Hub ids")
    add("--dataset", help="a Hub id, a folder (of class folders, or as a data set on the Hub) or a file (csv, tsv, json, "
                          "jsonl, parquet)")  # fmt: skip
    add("--dataset_config_name", help="configuration (subset) of the data set")
    add("--split", help="rows to look at (default: test, else validation, else the only split). validation of a data set "
                        "without one: the rows that `maxsup-hf train` holds out of train")  # fmt: skip
    add("--train_val_split", type=float, help="share of train that is held out (default: that of the models' own training, "
                                              "else 0.15)")  # fmt: skip
    add("--max_samples", type=int, help="greatest number of rows, in proportion from every class")
    add("--image_column_name", help="column of the images, or of paths to them (default: found by type or name)")
    add("--text_column_name", help="column of the texts; two, comma-separated, for pairs")
    add("--label_column_name", help="column of the labels (default: found by type or name)")
    add("--labels_by_position", action="store_true",
        help="class i of the data is output i of every model, whatever its name (default: matched by name)")  # fmt: skip
    add("--names", help="comma-separated names of the models in the report (default: their folders)")
    add("--triple", nargs=3, action="append", metavar="CLASS",
        help="three classes whose features are projected; may be repeated (default: the most confused)")  # fmt: skip
    add("--images", type=int, default=4, help="number of images with attribution maps, 0 for none (default: 4)")
    add("--image_processor_name", help="image processor of all models (default: each model's own)")
    add("--tokenizer_name", help="tokenizer of all models (default: each model's own)")
    add("--max_seq_length", type=int, help="longest text in tokens (default: the model's limit)")
    add("--model_revision", default="main", help="branch, tag or commit of the models on the Hub")
    add("--trust_remote_code", action="store_true", help="run code that a model on the Hub comes with")
    add("--batch_size", type=int, default=64, help="rows in a forward pass (default: 64)")
    add("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    add("--cache_dir", help="folder of cached features and logits (default: maxsup_hf/features in the Hugging Face cache)")
    add("--no_cache", action="store_true", help="do not cache features and logits")
    add("--output_dir", help="new folder for the report (default: outputs/analysis, else outputs/analysis-2, …)")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Bad input is one line on stderr and exit status 2; nothing is written before all models are measured."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("maxsup_hf").setLevel(logging.INFO)
    try:
        folder = run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print("error:", one_line(error), file=sys.stderr)
        raise SystemExit(2) from error
    print(f"report: {folder / 'report.html'}")


def run(args: argparse.Namespace) -> Path:
    """Load models and data, measure, and write the report.

    Returns:
        The folder.

    Raises:
        ValueError, TypeError, OSError, ImportError: bad input; nothing was written.
    """
    from maxsup_hf.analysis.pipeline import analyze  # which needs matplotlib
    from maxsup_hf.analysis.seen import Subject

    _check(args)
    names = _names(args)
    loaded = [load_model(source, args) for source in args.models]
    tasks = {task for _, task in loaded}
    if len(tasks) > 1:
        raise ValueError(f"MODEL: the models must have the same task, got {' and '.join(sorted(tasks))}")
    task = tasks.pop()
    shares = {name: held_out_share(source, args) for name, source in zip(names, args.models, strict=True)}
    if args.train_val_split is None:
        known = {share for share in shares.values() if share is not None}
        args.train_val_split = known.pop() if len(known) == 1 else DataArguments.train_val_split
    data, notes = load_data(task, args)
    if data.held_out:
        notes += _other_shares(shares, args.train_val_split)
    outputs = None
    if args.labels_by_position:
        outputs = data.declared
        listed = "; ".join(f"{i}: {name}" for i, name in enumerate(outputs[:10])) + ("; …" if len(outputs) > 10 else "")
        notes.append(f"Classes are matched by position (--labels_by_position), not by name: {listed}.")
    elif args.dataset is None:
        for (model, _), source in zip(loaded, args.models, strict=True):
            _check_trained_on_builtin(data.classes, list(model.config.id2label.values()), source)
    subjects = []
    for (model, _), source, name in zip(loaded, args.models, names, strict=True):
        loss = training_record(source, args).get("loss", {})
        inputs = model_inputs(task, model, source, data, args)
        about = _about(model, source, loss.get("kwargs", {}))
        subjects.append(Subject(name, model, classes=outputs, loss=loss.get("name"), about=about, **inputs))
    cache = args.cache_dir or os.path.join(constants.HF_HOME, "maxsup_hf", "features")
    analysis = analyze(
        subjects,
        data.classes,
        args.output_dir,
        triples=args.triple,
        images=args.images,
        batch_size=args.batch_size,
        cache_dir=None if args.no_cache else cache,
        title=f"{', '.join(subject.name for subject in subjects)} on {_data_name(args.dataset)}",
        data=[data.text],
        notes=notes,
        split=data.split,
    )
    return analysis.folder


def _other_shares(shares: Mapping[str, float | None], share: float) -> list[str]:
    """A note on each model whose training held out a different share of the data."""
    return [
        f"These rows are the {share:g} of the training data that --train_val_split holds out. {name} was trained with "
        f"--train_val_split {of_model:g}, so it may have seen some of them."
        for name, of_model in shares.items()
        if of_model not in (None, share)
    ]


def _data_name(dataset: str | None) -> str:
    """The data set in the title: of a file or folder its name, without the path."""
    if dataset is None:
        return "the built-in data set"
    return Path(os.path.abspath(dataset)).name if os.path.exists(dataset) else dataset


def _about(model: Any, source: str, loss_kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value, of what the report says about a model."""
    about = {"from": source, "architecture": type(model).__name__, "parameters": f"{model.num_parameters():,}"}
    if loss_kwargs:
        about["parameters of the loss"] = ", ".join(f"{key}={value}" for key, value in loss_kwargs.items())
    return about


def _check_trained_on_builtin(classes: Sequence[str], known: Sequence[str], source: str) -> None:
    """Raises:
    ValueError: a model has other classes than the built-in data set, which is used without --dataset.
    """
    try:
        match_classes(classes, known, "the built-in data set, which is used without --dataset", f"model {source!r}")
    except ValueError as error:
        raise ValueError(f"dataset: {str(error).rpartition('. Rename')[0]}. Name the model's data with --dataset") from error


def _check(args: argparse.Namespace) -> None:
    for name, least in (("max_samples", 2), ("batch_size", 1), ("images", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if args.train_val_split is not None and not 0 < args.train_val_split < 1:
        raise ValueError(f"train_val_split must lie between 0 and 1 (both excluded), got {args.train_val_split}")
    if args.output_dir is None:
        args.output_dir = first_free("outputs/analysis")
    elif in_use(args.output_dir):
        raise FileExistsError(f"output_dir: {args.output_dir!r} is not empty; name another folder")


def _names(args: argparse.Namespace) -> list[str]:
    if args.names:
        names = [name.strip() for name in args.names.split(",")]
        if len(names) != len(args.models):
            raise ValueError(f"names: expected {len(args.models)} names, one for each model, got {len(names)}")
        return names
    short_names = [Path(os.path.abspath(source)).name if os.path.isdir(source) else source for source in args.models]
    return short_names if len(set(short_names)) == len(short_names) else list(args.models)
