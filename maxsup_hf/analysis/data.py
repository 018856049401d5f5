"""The rows that `maxsup-hf analyze` looks at: which data set, which split, which columns."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from maxsup_hf.data.arguments import DataArguments
from maxsup_hf.data.builtin import digits, names_in_languages
from maxsup_hf.data.columns import check_strings, find_column, read_column
from maxsup_hf.data.files import FORMATS, load_file
from maxsup_hf.data.images import as_images, check_images, holds_images
from maxsup_hf.data.labels import class_names, find_label_column, label_names, without_hidden_test
from maxsup_hf.data.loading import USUAL_NAMES, Splits, load_named
from maxsup_hf.data.splits import hold_out_validation, stratified_indices
from maxsup_hf.scripts.image_classification import IMAGE_NAMES
from maxsup_hf.scripts.text_classification import text_columns

IMAGE, TEXT = "image-classification", "text-classification"
BUILTIN = {IMAGE: digits, TEXT: names_in_languages}


@dataclass(frozen=True)
class Data:
    """The rows that models are analyzed on.

    Attributes:
        dataset: the columns `columns`, and `labels`: indices into `classes`.
        columns: input columns of the models.
        classes: names of the classes that have a row.
        declared: names of all classes that the data set declares, in its order.
        split: name of the split that the rows are of; `None` for a file, whose rows may be of any.
        held_out: whether the rows are a share of the training data, as there are no validation data.
        text: description for the report.
    """

    dataset: Dataset
    columns: list[str]
    classes: list[str]
    declared: list[str]
    split: str | None
    held_out: bool
    text: str


def load_data(task: str, args: argparse.Namespace) -> tuple[Data, list[str]]:
    """The rows that the flags name, and notes that a reader must not miss.

    Raises:
        ValueError, TypeError, OSError: they cannot be loaded, or have a single class.
    """
    splits, name = _load_splits(task, args)
    first = next(iter(splits.values()))
    label_column = find_label_column(first, args.label_column_name)
    split, dataset = _choose_split(without_hidden_test(splits, label_column), label_column, args)
    if not len(dataset):
        raise ValueError(f"the {split} data of {name} is empty; it must have at least one row")
    dataset, columns = _inputs(task, dataset, split, label_column, args)
    names = label_names(dataset, label_column, split)
    declared = class_names(dataset, label_column, names)
    present = set(names)
    classes = [each for each in declared if each in present]
    if len(classes) < 2:
        raise ValueError(
            f"all {len(names)} rows of the {split} data are of class {classes[0]!r}; an analysis compares classes, so give "
            "rows of at least two"
        )
    index = {each: i for i, each in enumerate(classes)}
    labels = np.array([index[each] for each in names], dtype=np.int64)
    dataset = dataset.select_columns(columns).add_column("labels", labels)
    rows = len(dataset)
    if args.max_samples is not None and args.max_samples < rows:
        dataset = dataset.select(stratified_indices(labels, args.max_samples))
        used = set(read_column(dataset, "labels").to_pylist())
        if len(used) < len(classes):
            raise ValueError(
                f"max_samples must leave a row of each of the {len(classes)} classes, got {args.max_samples}; raise it"
            )
    notes = []
    if split == "train" and args.dataset is not None:
        rows_of = "rows of one file" if _is_file(args.dataset) else "all rows of the split train"
        notes.append(
            f"These are {rows_of}. If the models were trained on them, all results here are on data that they have seen: "
            "--split validation selects the rows that maxsup-hf train holds out."
        )
    part = "" if len(dataset) == rows else f" of {rows:,}"
    known_split = None if _is_file(args.dataset) else split
    source = f"{name}, split {split}" if known_split or split == "validation" else name
    text = f"{source}: {len(dataset):,}{part} rows, {len(classes)} classes."
    return Data(dataset, columns, classes, declared, known_split, split not in splits, text), notes


def _inputs(
    task: str, dataset: Dataset, split: str, label_column: str, args: argparse.Namespace
) -> tuple[Dataset, list[str]]:
    """The data set with checked input columns, and their names."""
    if task == TEXT:
        columns = text_columns(dataset, args.text_column_name, label_column)
        for column in columns:
            check_strings(dataset, column, "text_column_name", split)
        return dataset, columns
    argument = "image_column_name"
    given, file = args.image_column_name, args.dataset if _is_file(args.dataset) else None
    column = find_column(dataset, argument, given, fits=holds_images, names=IMAGE_NAMES, taken=[label_column])
    dataset = as_images(dataset, column, argument, split, file)
    check_images(dataset, column, argument, split)
    return dataset, [column]


def _load_splits(task: str, args: argparse.Namespace) -> tuple[Splits, str]:
    """All splits of the data set, and its name."""
    if args.dataset is None:
        return {"train": BUILTIN[task]()}, f"The built-in data set of {task}"
    if _is_file(args.dataset):
        return {"train": load_file("dataset", args.dataset)}, args.dataset
    return dict(load_named("dataset", args.dataset, args.dataset_config_name)), args.dataset


def _is_file(dataset: str | None) -> bool:
    return dataset is not None and (Path(dataset).suffix.lower() in FORMATS or os.path.isfile(dataset))


def _choose_split(splits: Splits, label_column: str, args: argparse.Namespace) -> tuple[str, Dataset]:
    split = args.split or ("validation" if args.dataset is None else _default_split(splits))
    if split in splits:
        return split, splits[split]
    if split == "validation" and "train" in splits and not any(name in splits for name in USUAL_NAMES["validation"]):
        label_names(splits["train"], label_column, "train")  # reports bad labels, which could not be stratified
        share = args.train_val_split or DataArguments.train_val_split
        held_out = hold_out_validation({"train": splits["train"]}, share, label_column)
        return split, held_out["validation"]
    raise ValueError(f"split: {args.dataset!r} has no split {split!r}; name one of these: {', '.join(splits)}")


def _default_split(splits: Splits) -> str:
    usual = [name for split in ("test", "validation") for name in USUAL_NAMES[split] if name in splits]
    if usual:
        return usual[0]
    return next(iter(splits)) if len(splits) == 1 else "test"
