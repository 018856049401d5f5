"""Class labels: from whatever a data set holds to indices and names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List, Value
from transformers import PretrainedConfig

from maxsup_hf.data.arguments import DataArguments
from maxsup_hf.data.columns import check_column, check_not_missing, find_column, read_column
from maxsup_hf.data.loading import Splits
from maxsup_hf.data.splits import hold_out_validation, limit_rows

logger = logging.getLogger(__name__)

LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent")


def classification_splits(
    args: DataArguments, splits: Splits, inputs: Sequence[str], label_column: str, config: PretrainedConfig | None
) -> tuple[Splits, list[str]]:
    """From the data as loaded to splits that a classifier trains on.

    Args:
        inputs: the columns that the model will be fed from.
        config: of the model where it has one, whose order of the same classes is kept.

    Returns:
        `train`, `validation` and where there is one `test`, with the columns `inputs` and `labels`, cut to size; and the
        class names.

    Raises:
        TypeError, ValueError: see `encode_labels`.
    """
    order = [str(name) for _, name in sorted((config.id2label or {}).items())] if config else []
    splits, names = encode_labels(splits, label_column, inputs, order, hidden_test=args.dataset_name is not None)
    splits = hold_out_validation(splits, args.train_val_split, "labels")
    return limit_rows(splits, args, "labels"), names


def find_label_column(dataset: Dataset, given: str | None) -> str:
    """The column of class labels, as `find_column` does."""
    return find_column(
        dataset, "label_column_name", given, fits=lambda feature: isinstance(feature, ClassLabel), names=LABEL_NAMES
    )


def encode_labels(
    splits: Splits, column: str, inputs: Sequence[str], order: Sequence[str] = (), hidden_test: bool = False
) -> tuple[Splits, list[str]]:
    """Replace the labels of all splits by indices into one list of class names.

    Classes are those of the training data: the names of a ClassLabel, or the sorted distinct values. Other splits are
    matched by name, so a ClassLabel in another order, or numbers as strings, mean the same classes.

    Args:
        column: the labels: ClassLabel, integers, strings or booleans.
        inputs: the columns to keep beside them.
        order: class names in the order of a pretrained head; used where they are the same names.
        hidden_test: leave out a test split without labels (none, or all -1), as on the Hub where they are withheld.

    Returns:
        Splits with the columns `inputs` and `labels` (N,) int64 in [0, K); the K names, at least two.

    Raises:
        TypeError: labels are real numbers (a regression) or lists (multi-label).
        ValueError: missing, negative or unseen labels, or a single class.
    """
    if hidden_test:
        splits = without_hidden_test(splits, column)
    found = {split: label_names(dataset, column, split) for split, dataset in splits.items()}
    if len(set(found["train"])) < 2:
        raise ValueError(
            f"column {column!r} of the training data has a single class, {found['train'][0]!r}; training needs at least two"
        )
    names = class_names(splits["train"], column, found["train"])
    if sorted(order) == sorted(names):
        names = list(order)
    index = {name: i for i, name in enumerate(names)}
    encoded = {}
    for split, dataset in splits.items():
        unseen = sorted(set(found[split]) - index.keys())
        if unseen:
            listed = ", ".join(map(repr, unseen[:5])) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
            raise ValueError(
                f"column {column!r} of the {split} data has labels that the training data lacks: {listed}; "
                "drop these rows or add training data of these classes"
            )
        labels = np.array([index[name] for name in found[split]], dtype=np.int64)
        encoded[split] = dataset.select_columns(list(inputs)).add_column("labels", labels)
    return encoded, names


def without_hidden_test(splits: Splits, column: str) -> Splits:
    """Leave out a test split without labels (none, or all -1), with a warning."""
    if "test" not in splits or not _labels_hidden(splits["test"], column):
        return splits
    logger.warning("the test data has no labels (withheld, it seems): it will not be evaluated")
    return {split: dataset for split, dataset in splits.items() if split != "test"}


def _labels_hidden(dataset: Dataset, column: str) -> bool:
    return column not in dataset.column_names or set(pc.unique(read_column(dataset, column)).to_pylist()) <= {None, -1}


def class_names(dataset: Dataset, column: str, found: Sequence[str]) -> list[str]:
    """Names of all classes: those of a ClassLabel, or the sorted distinct ones that were found."""
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return sorted(set(found), key=int if feature.dtype.startswith(("int", "uint")) else None)


def label_names(dataset: Dataset, column: str, split: str) -> list[str]:
    """The name of each row's class, after a look at the column's type and values; errors as in `encode_labels`."""
    check_column(dataset, column, "label_column_name", split)
    feature = dataset.features[column]
    where = f"column {column!r} of the {split} data"
    if isinstance(feature, (list, List)):
        raise TypeError(f"{where} holds lists, which is multi-label; this task needs one class a row")
    if not isinstance(feature, (ClassLabel, Value)):
        raise TypeError(f"{where} is {type(feature).__name__}; labels must be class names, integers or strings")
    check_not_missing(dataset, column, split)  # before the type: integers with gaps in them come out of a csv as floats
    if feature.dtype.startswith(("float", "double", "decimal")):
        raise TypeError(
            f"{where} is {feature.dtype}, which is a regression; this task needs classes. If the numbers are classes, "
            "store them as integers"
        )
    values = read_column(dataset, column).to_pylist()
    if feature.dtype.startswith("int") and min(values) < 0:
        negative = sum(value < 0 for value in values)
        raise ValueError(f"{where} has {negative} negative labels (the least is {min(values)}); drop or correct these rows")
    return feature.int2str(values) if isinstance(feature, ClassLabel) else [str(value) for value in values]
