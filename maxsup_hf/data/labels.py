"""Turning class labels of any kind into indices and a list of class names."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List, Value
from transformers import PretrainedConfig

from maxsup_hf.data.arguments import DataArguments
from maxsup_hf.data.columns import (
    check_column,
    check_not_missing,
    check_some_labels,
    find_column,
    identifier_columns,
    is_class,
    is_integer,
    read_column,
)
from maxsup_hf.data.loading import Splits
from maxsup_hf.data.splits import hold_out_and_limit, limit_rows
from maxsup_hf.output.messages import listed

logger = logging.getLogger(__name__)

LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent")
FRACTIONAL = ("float", "double", "decimal")  # class indices may be stored so, as pandas does with a column that had gaps


def classification_splits(
    args: DataArguments, splits: Splits, inputs: Sequence[str], label_column: str, config: PretrainedConfig | None
) -> tuple[Splits, list[str]]:
    """Turn loaded data into the splits that a classifier is trained on.

    Args:
        inputs: the columns that the model's inputs are made of.
        config: of the model if it has one already. If it has the same classes, their order is kept.

    Returns:
        `train`, `validation` and `test`, those that are present, with the columns `inputs` and `labels`, limited in size;
        and the class names.

    Raises:
        TypeError, ValueError: see `encode_labels`.
    """
    splits = set_aside_unlabelled(splits, args, label_column, {name: name for name in inputs})
    splits, names = encode_labels(
        splits, label_column, inputs, pretrained_classes(config), hidden_test=args.dataset_name is not None,
        only_these=not args.needs_training_data,
    )  # fmt: skip
    return hold_out_and_limit(splits, args, "labels"), names


def find_label_column(dataset: Dataset, given: str | None, split: str = "train") -> str:
    """Find the column of class labels; see `find_column`."""
    return find_column(dataset, "label_column_name", given, fits=is_class, names=LABEL_NAMES, split=split)


def pretrained_classes(config: PretrainedConfig | None) -> list[str]:
    """Class names of a model, in the order of its outputs; empty without a config."""
    id2label = (config.id2label or {}) if config else {}
    return [str(name) for _, name in sorted(id2label.items())]


def encode_labels(
    splits: Splits,
    column: str,
    inputs: Sequence[str],
    order: Sequence[str] = (),
    hidden_test: bool = False,
    only_these: bool = False,
) -> tuple[Splits, list[str]]:
    """Replace the labels of all splits by indices into one list of class names.

    The classes are those of the training data: the names of a ClassLabel, or the sorted distinct values. Other splits are
    matched by name, so that a ClassLabel in another order, or numbers stored as strings, mean the same classes. If a trained
    model is evaluated, the classes are the model's, and integers that are not names of classes are their indices.

    Args:
        column: the labels: ClassLabel, integers, strings or booleans.
        inputs: the columns to keep beside them.
        order: class names in the order of a pretrained head, which is kept if the names are the same.
        hidden_test: drop a test split without labels (no column, or all null or -1): on the Hub they are often withheld.
        only_these: the classes are those of `order`, of a model that is evaluated. If they have no names (LABEL_0, …), they
            are those of the training data, or else the indices.

    Returns:
        Splits with the columns `inputs` and `labels` (N,) int64 in [0, K), and those by which rows of the test data are
        known; the K names, at least two.

    Raises:
        TypeError: labels are real numbers (regression) or lists (multi-label).
        ValueError: missing, negative or unseen labels, or a single class.
    """
    if hidden_test:
        splits = without_hidden_test(splits, column)
    found = {split: label_names(dataset, column, split) for split, dataset in splits.items()}
    if only_these and (_are_named(order) or "train" not in splits):
        names = _names_of_model(order, splits, column)
        known, source, hint = set(names), "model", f"its classes are {listed(names)}"
        for split, dataset in splits.items():
            if is_integer(dataset.features[column]):
                found[split] = [_name_of_integer(name, names) for name in found[split]]
    else:
        names = _names_of_training_data(splits["train"], column, found["train"], order)
        known, source, hint = set(found["train"]), "training data", "drop these rows or add training data of these classes"
    index = {name: i for i, name in enumerate(names)}
    encoded = {}
    for split, dataset in splits.items():
        unseen = sorted(set(found[split]) - known)
        if unseen:
            raise ValueError(
                f"label_column_name: column {column!r} of the {split} data has labels that the {source} lacks: "
                f"{listed([repr(name) for name in unseen])}; {hint}"
            )
        labels = np.array([index[name] for name in found[split]], dtype=np.int64)
        kept = [*inputs, *identifier_columns(dataset, [*inputs, column])] if split == "test" else list(inputs)
        encoded[split] = dataset.select_columns(kept).add_column("labels", labels)
    return encoded, names


def _names_of_training_data(train: Dataset, column: str, found: Sequence[str], order: Sequence[str]) -> list[str]:
    if len(set(found)) < 2:
        raise ValueError(
            f"label_column_name: column {column!r} of the training data has a single class, {found[0]!r}; training needs at "
            "least two"
        )
    names = class_names(train, column, found)
    if sorted(order) == sorted(names):
        names = list(order)
    _warn_of_lookalikes(names)
    return names


def _names_of_model(order: Sequence[str], splits: Splits, column: str) -> list[str]:
    """The class names of a model that is evaluated; if it has none, those of a ClassLabel or the indices.

    Raises:
        ValueError: it has none, and the labels are words.
    """
    if _are_named(order):
        return list(order)
    for dataset in splits.values():
        feature = dataset.features[column]
        if isinstance(feature, ClassLabel) and len(feature.names) == len(order):
            return list(feature.names)
        if not is_integer(feature):
            raise ValueError(
                f"label_column_name: the classes of the model have no names ({order[0]}, …), so the labels in column "
                f"{column!r} cannot be matched to them; give the training data too, or labels that are indices"
            )
    return [str(i) for i in range(len(order))]


def _are_named(order: Sequence[str]) -> bool:
    """Whether class names of a model are more than the default ones."""
    return any(name != f"LABEL_{i}" for i, name in enumerate(order))


def _name_of_integer(text: str, names: Sequence[str]) -> str:
    """The class that an integer means, by name or else by index; the integer itself if there is none."""
    return names[int(text)] if text not in names and int(text) < len(names) else text


def _warn_of_lookalikes(names: Sequence[str]) -> None:
    """Name the classes that differ only by case or spaces: most often they are one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            logger.warning(
                "classes that differ only by case or spaces: %s; if they are the same class, correct the labels",
                listed([repr(name) for name in group]),
            )


def set_aside_unlabelled(splits: Splits, args: DataArguments, column: str, inputs: Mapping[str, str]) -> Splits:
    """With `--do_predict`, the test data needs no labels: it is kept in `args.unlabelled`, and not evaluated.

    Args:
        column: of the labels.
        inputs: the columns that the model's inputs are made of -> their names for the prediction.

    Raises:
        ValueError: it has not all of the inputs, or missing values.
    """
    if not args.predicts or "test" not in splits or not _labels_hidden(splits["test"], column):
        return splits
    test = splits["test"]
    for name in inputs:
        check_column(test, name, "test data without labels", "test")
        check_not_missing(test, name, "test")
    test = test.select_columns([*inputs, *identifier_columns(test, [*inputs, column])])
    test = test.rename_columns({name: new for name, new in inputs.items() if name != new})
    args.unlabelled = limit_rows({"test": test}, args)["test"]
    logger.warning("the test data has no labels: its predictions are written, and it is not evaluated")
    return {split: dataset for split, dataset in splits.items() if split != "test"}


def without_hidden_test(splits: Splits, column: str) -> Splits:
    """Drop a test split without labels (no column, or all null or -1), with a warning."""
    if "test" not in splits or not _labels_hidden(splits["test"], column):
        return splits
    logger.warning("the test data has no labels (they seem to be withheld): it will not be evaluated")
    return {split: dataset for split, dataset in splits.items() if split != "test"}


def _labels_hidden(dataset: Dataset, column: str) -> bool:
    if column not in dataset.column_names:
        return True
    values = read_column(dataset, column)
    return not pa.types.is_nested(values.type) and set(pc.unique(values).to_pylist()) <= {None, -1}


def class_names(dataset: Dataset, column: str, found: Sequence[str]) -> list[str]:
    """Names of all classes: those of a ClassLabel, else the distinct ones in `found`, sorted."""
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    is_number = is_integer(feature) or feature.dtype.startswith(FRACTIONAL)
    return sorted(set(found), key=int if is_number else None)


def label_names(dataset: Dataset, column: str, split: str) -> list[str]:
    """Check a column of labels, and return the class name of each row.

    Raises:
        TypeError, ValueError: see `encode_labels`.
    """
    check_column(dataset, column, "label_column_name", split)
    feature = dataset.features[column]
    where = f"label_column_name: column {column!r} of the {split} data"
    if isinstance(feature, (list, List)):
        raise TypeError(f"{where} holds lists, which is multi-label; this task needs one class a row")
    if not isinstance(feature, (ClassLabel, Value)):
        raise TypeError(f"{where} is {type(feature).__name__}; labels must be class names, integers or strings")
    check_not_missing(dataset, column, split)  # before the type: integers with gaps are read from a csv as floats
    values = read_column(dataset, column).to_pylist()
    if feature.dtype.startswith(FRACTIONAL):
        if not all(math.isfinite(value) and value == int(value) for value in values):
            raise TypeError(
                f"{where} is {feature.dtype}, which is a regression; this task needs classes. If the numbers are classes, "
                "store them as integers"
            )
        values = [int(value) for value in values]
    check_some_labels(values, column, split)
    if feature.dtype.startswith(("int", *FRACTIONAL)) and min(values) < 0:
        negative = sum(value < 0 for value in values)
        raise ValueError(
            f"{where} has {negative} negative labels (the smallest is {min(values)}); drop or correct these rows"
        )
    names = feature.int2str(values) if isinstance(feature, ClassLabel) else [str(value) for value in values]
    blank = sum(not name.strip() for name in names)
    if blank:
        raise ValueError(f"{where} has {blank} blank labels in {len(names)} rows; fill them in or drop these rows")
    return names
