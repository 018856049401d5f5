"""Look at trained classifiers: features, logits and calibration, in figures and one report.

Several models stand side by side. Without --dataset: on the validation rows of the embedded data set of their task.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import constants, hf_hub_download
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    default_data_collator,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from maxsup_hf.analysis.classes import match_classes
from maxsup_hf.analysis.store import data_fingerprint
from maxsup_hf.data.builtin import digits, names_in_languages
from maxsup_hf.data.columns import check_strings, find_column, is_image, read_column
from maxsup_hf.data.images import as_images, check_images
from maxsup_hf.data.labels import class_names, find_label_column, label_names, without_hidden_test
from maxsup_hf.data.loading import FORMATS, USUAL_NAMES, Splits, load_file, load_named, loading
from maxsup_hf.data.splits import hold_out_validation, stratified_indices
from maxsup_hf.hub.record import RECORD
from maxsup_hf.scripts.common.arguments import first_free, in_use
from maxsup_hf.scripts.common.models import hub_options, load_config
from maxsup_hf.scripts.common.tokenizers import build_tokenizer, max_length
from maxsup_hf.scripts.image_classification import IMAGE_NAMES, to_pixels
from maxsup_hf.scripts.text_classification import TextClassificationArguments, text_columns, tokenize

IMAGE, TEXT = "image-classification", "text-classification"
HEADS: dict[str, tuple[Any, Any, str]] = {
    IMAGE: (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "ForImageClassification"),
    TEXT: (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "ForSequenceClassification"),
}
EMBEDDED = {IMAGE: digits, TEXT: names_in_languages}


@dataclass(frozen=True)
class Data:
    """The rows to look at.

    Attributes:
        dataset: the columns `columns`, and `labels`: indices into `classes`.
        columns: that models are fed from.
        classes: names of the classes that have a row.
        declared: names of all classes that the data set declares, in its order.
        text: what it is, for the report.
    """

    dataset: Dataset
    columns: list[str]
    classes: list[str]
    declared: list[str]
    text: str


def parser() -> argparse.ArgumentParser:
    """The flags of `maxsup-hf analyze`."""
    flags = argparse.ArgumentParser(prog="maxsup-hf analyze", description=__doc__, allow_abbrev=False)
    add = flags.add_argument
    add("models", nargs="+", metavar="MODEL", help="image or text classifiers: folders or Hub ids")
    add("--dataset", help="a Hub id, a folder (of class folders, or as a data set on the Hub) or a file (csv, tsv, json, "
                          "jsonl, parquet)")  # fmt: skip
    add("--dataset_config_name", help="configuration (subset) of the data set")
    add("--split", help="rows to look at (default: test, else validation, else the only split). validation, where there is "
                        "none: the rows that `maxsup-hf train` holds out of train")  # fmt: skip
    add("--train_val_split", type=float, default=0.15, help="share that it holds out (default: 0.15)")
    add("--max_samples", type=int, help="look at so many rows at most, in proportion from every class")
    add("--image_column_name", help="column of the images, or of paths to them (default: found by type or name)")
    add("--text_column_name", help="column of the texts; two with a comma between them for pairs")
    add("--label_column_name", help="column of the labels (default: found by type or name)")
    add("--labels_by_position", action="store_true",
        help="class i of the data is output i of every model, whatever its name (default: matched by name)")  # fmt: skip
    add("--names", help="what to call the models, with commas between (default: their folders)")
    add("--triple", nargs=3, action="append", metavar="CLASS",
        help="three classes to project the features of; may be repeated (default: those most confused)")  # fmt: skip
    add("--images", type=int, default=4, help="images to draw attribution maps of; 0 for none (default: 4)")
    add("--image_processor_name", help="image processor of all models (default: each model's own)")
    add("--tokenizer_name", help="tokenizer of all models (default: each model's own)")
    add("--max_seq_length", type=int, help="longest text in tokens (default: what the model takes)")
    add("--model_revision", default="main", help="branch, tag or commit of the models on the Hub")
    add("--trust_remote_code", action="store_true", help="run model code that comes with a model on the Hub")
    add("--batch_size", type=int, default=64, help="rows in a forward pass (default: 64)")
    add("--device", help="cpu, cuda, … (default: an accelerator where there is one)")
    add("--cache_dir", help="where features and logits are kept (default: maxsup_hf/features in the Hugging Face cache)")
    add("--no_cache", action="store_true", help="keep no features and logits")
    add("--output_dir", help="new folder for the report (default: outputs/analysis, or the first of -2, -3, … that is free)")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf analyze`. Bad input is one line on stderr and status 2; nothing is written before all is measured."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("maxsup_hf").setLevel(logging.INFO)
    try:
        folder = run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from error
    print(f"report: {folder / 'report.html'}")


def run(args: argparse.Namespace) -> Path:
    """Load, measure and write.

    Returns:
        The folder.

    Raises:
        ValueError, TypeError, OSError, ImportError: bad input, in one line; nothing was written.
    """
    from maxsup_hf.analysis.pipeline import analyze  # which needs matplotlib
    from maxsup_hf.analysis.seen import Subject

    _check(args)
    names = _names(args)
    loaded = [_load_model(source, args) for source in args.models]
    tasks = {task for _, task in loaded}
    if len(tasks) > 1:
        raise ValueError(f"MODEL: models side by side must serve one task, got {' and '.join(sorted(tasks))}")
    task = tasks.pop()
    data, notes = load_data(task, args)
    classes = data.classes
    if args.dataset is None and not args.labels_by_position:
        for (model, _), source in zip(loaded, args.models, strict=True):
            _check_embedded(classes, list(model.config.id2label.values()), source)
    outputs = None
    if args.labels_by_position:
        outputs = data.declared
        listed = "; ".join(f"{i}: {name}" for i, name in enumerate(outputs[:10])) + ("; …" if len(outputs) > 10 else "")
        notes.append(f"Classes are matched by position, as asked for (--labels_by_position), not by name: {listed}.")
    subjects = []
    for (model, _), source, name in zip(loaded, args.models, names, strict=True):
        record = _record(source, args)
        inputs = _inputs(task, model, source, data, args)
        loss = record.get("loss", {})
        about = {"from": source, "architecture": type(model).__name__, "parameters": f"{model.num_parameters():,}"}
        if loss.get("kwargs"):
            about["parameters of the loss"] = ", ".join(f"{key}={value}" for key, value in loss["kwargs"].items())
        subjects.append(Subject(name, model, classes=outputs, loss=loss.get("name"), about=about, **inputs))
    cache = args.cache_dir or os.path.join(constants.HF_HOME, "maxsup_hf", "features")
    analysis = analyze(
        subjects,
        classes,
        args.output_dir,
        triples=args.triple,
        images=args.images,
        batch_size=args.batch_size,
        cache_dir=None if args.no_cache else cache,
        title=f"{', '.join(subject.name for subject in subjects)} on {args.dataset or 'the embedded data set'}",
        data=[data.text],
        notes=notes,
    )
    return analysis.folder


def _check_embedded(classes: Sequence[str], known: Sequence[str], source: str) -> None:
    """Raises:
    ValueError: a model that was not trained on the embedded data set, and no other is named.
    """
    try:
        match_classes(classes, known, "the embedded data set, which is taken without --dataset", f"model {source!r}")
    except ValueError as error:
        raise ValueError(f"dataset: {str(error).rpartition('. Rename')[0]}. Name the model's data with --dataset") from error


def _check(args: argparse.Namespace) -> None:
    for name, least in (("max_samples", 2), ("batch_size", 1), ("images", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < args.train_val_split < 1:
        raise ValueError(f"train_val_split must lie between 0 and 1 (both excluded), got {args.train_val_split}")
    if args.output_dir is None:
        args.output_dir = first_free("outputs/analysis")
    elif in_use(args.output_dir):
        raise FileExistsError(f"output_dir: {args.output_dir!r} is not empty; name another folder")


# ---- data ----


def load_data(task: str, args: argparse.Namespace) -> tuple[Data, list[str]]:
    """The rows that the flags name, and what a reader must know of them.

    Raises:
        ValueError, TypeError, OSError: they cannot be loaded, or are of a single class.
    """
    splits, name = _splits(task, args)
    some = next(iter(splits.values()))
    label_column = find_label_column(some, args.label_column_name)
    split, dataset = _choose(without_hidden_test(splits, label_column), label_column, args)
    if not len(dataset):
        raise ValueError(f"the {split} data of {name} is empty; it must have at least one row")
    if task == IMAGE:
        columns = [
            find_column(
                dataset, "image_column_name", args.image_column_name, fits=is_image, names=IMAGE_NAMES, taken=[label_column]
            )
        ]
        dataset = as_images(dataset, columns[0], "image_column_name", split)
        check_images(dataset, columns[0], "image_column_name", split)
    else:
        columns = text_columns(dataset, args.text_column_name, label_column)
        for column in columns:
            check_strings(dataset, column, "text_column_name", split)
    found = label_names(dataset, label_column, split)
    declared = class_names(dataset, label_column, found)
    classes = [each for each in declared if each in set(found)]
    if len(classes) < 2:
        raise ValueError(
            f"all {len(found)} rows of the {split} data are of class {classes[0]!r}; what is measured compares classes"
        )
    index = {each: i for i, each in enumerate(classes)}
    labels = np.array([index[each] for each in found], dtype=np.int64)
    dataset = dataset.select_columns(columns).add_column("labels", labels)
    rows = len(dataset)
    if args.max_samples is not None and args.max_samples < rows:
        dataset = dataset.select(stratified_indices(labels, args.max_samples))
        used = set(read_column(dataset, "labels").to_pylist())
        if len(used) < len(classes):
            raise ValueError(f"max_samples: {args.max_samples} rows leave some of the {len(classes)} classes without a row")
    notes = []
    if split == "train" and args.dataset is not None:
        notes.append(
            "These are all rows of the split train. If the models were trained on them, everything here is of what they "
            "have seen: --split validation takes the rows that `maxsup-hf train` holds out."
        )
    part = "" if len(dataset) == rows else f" of {rows:,}"
    text = f"{name}, split {split}: {len(dataset):,}{part} rows, {len(classes)} classes."
    return Data(dataset, columns, classes, declared, text), notes


def _splits(task: str, args: argparse.Namespace) -> tuple[Splits, str]:
    """All that there is, and its name."""
    if args.dataset is None:
        return {"train": EMBEDDED[task]()}, f"The embedded data set of {task}"
    extension = Path(args.dataset).suffix.lower()
    if extension in FORMATS or os.path.isfile(args.dataset):
        return {"train": load_file("dataset", args.dataset)}, args.dataset
    return dict(load_named("dataset", args.dataset, args.dataset_config_name)), args.dataset


def _choose(splits: Splits, label_column: str, args: argparse.Namespace) -> tuple[str, Dataset]:
    usual = [name for split in ("test", "validation") for name in USUAL_NAMES[split] if name in splits]
    given = args.split or ("validation" if args.dataset is None else None)
    if given is None:
        given = next(iter(usual or splits)) if usual or len(splits) == 1 else None
    if given in splits:
        return str(given), splits[str(given)]
    if given == "validation" and "train" in splits and not any(name in splits for name in USUAL_NAMES["validation"]):
        label_names(splits["train"], label_column, "train")  # what is wrong with them, before they are counted
        held_out = hold_out_validation({"train": splits["train"]}, args.train_val_split, label_column)
        return given, held_out["validation"]
    raise ValueError(f"split: {args.dataset!r} has no split {given or 'test'!r}; name one of these: {', '.join(splits)}")


# ---- models ----


def _script_arguments(source: str, args: argparse.Namespace) -> TextClassificationArguments:
    return TextClassificationArguments(
        model_name_or_path=source,
        model_revision=args.model_revision,
        trust_remote_code=args.trust_remote_code,
        tokenizer_name=args.tokenizer_name,
        max_seq_length=args.max_seq_length,
    )


def _load_model(source: str, args: argparse.Namespace) -> tuple[Any, str]:
    """A model with all its weights, and its task."""
    if os.path.isfile(os.path.join(source, "adapter_config.json")):
        raise ValueError(f"MODEL: {source!r} holds an adapter; merge it into its model (merge_and_unload) and save that")
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise ValueError(
            f"MODEL: {source!r} holds no model (no config.json); expected the output_dir of a training, or a name on the Hub"
        )
    options = _script_arguments(source, args)
    try:
        config = load_config(options)
    except ValueError as error:
        no_folder = "" if os.path.exists(source) else "; nor is there a folder of this name"
        raise ValueError(f"MODEL: {str(error).removeprefix('model_name_or_path: ')}{no_folder}") from error
    assert config is not None
    architectures = config.architectures or []
    task = next((task for task in HEADS for name in architectures if _serves(name, task)), None)
    if task is None:
        raise ValueError(
            f"MODEL: {source!r} has no classifier layer: it was saved as {', '.join(architectures) or 'no architecture'}; "
            "only classifiers of images (…ForImageClassification) and of texts (…ForSequenceClassification) can be looked at"
        )
    with loading("MODEL", source):
        model, info = HEADS[task][0].from_pretrained(
            source, dtype="float32", output_loading_info=True, **hub_options(options)
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"MODEL: {source!r} lacks weights, which would be random: {', '.join(missing[:5])}; train it first")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(args.device or accelerator or "cpu").eval(), task


def _serves(architecture: str, task: str) -> bool:
    _, mapping, suffix = HEADS[task]
    known = {name for names in mapping.values() for name in ([names] if isinstance(names, str) else names)}
    return architecture in known or architecture.endswith(suffix)


def _record(source: str, args: argparse.Namespace) -> dict[str, Any]:
    """What was recorded of the training; empty where nothing was."""
    path = Path(source) / RECORD
    if not os.path.isdir(source):
        try:
            path = Path(hf_hub_download(source, RECORD, revision=args.model_revision))
        except (OSError, ValueError):  # most models on the Hub have none
            return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _names(args: argparse.Namespace) -> list[str]:
    if args.names:
        names = [name.strip() for name in args.names.split(",")]
        if len(names) != len(args.models):
            raise ValueError(f"names: expected {len(args.models)} names, one for each model, got {len(names)}")
        return names
    short = [Path(os.path.abspath(source)).name if os.path.isdir(source) else source for source in args.models]
    return short if len(set(short)) == len(short) else list(args.models)


def _inputs(task: str, model: Any, source: str, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """What a `Subject` needs to be fed."""
    options = _script_arguments(source, args)
    if task == TEXT:
        tokenizer = build_tokenizer(options, model.config, ())
        length = max_length(options, model.config, tokenizer)
        dataset = tokenize(data.dataset, data.columns, tokenizer, length)
        key = data_fingerprint((name, read_column(dataset, name)) for name in dataset.column_names)
        return {"dataset": dataset, "collate": DataCollatorWithPadding(tokenizer), "data_key": key}
    argument = "image_processor_name" if args.image_processor_name else "MODEL"
    with loading(argument, args.image_processor_name or source):
        processor = AutoImageProcessor.from_pretrained(args.image_processor_name or source, **hub_options(options))
    columns = ((name, read_column(data.dataset, name)) for name in data.dataset.column_names)
    key = data_fingerprint(columns, type(processor).__name__, processor.to_json_string())
    scale = (processor.image_mean, processor.image_std) if getattr(processor, "do_normalize", False) else None
    dataset = data.dataset.with_transform(partial(to_pixels, column=data.columns[0], processor=processor))
    return {"dataset": dataset, "collate": default_data_collator, "data_key": key, "pixel_scale": scale}
