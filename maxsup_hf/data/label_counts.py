"""Counting how often each class occurs in a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from maxsup_hf.data.columns import read_column
from maxsup_hf.losses import IGNORE_INDEX

LABEL_NAMES = ("labels", "label", "label_ids")  # those that transformers' collators read


def count_classes(
    dataset: Any, num_classes: int, ignore_index: int = IGNORE_INDEX, names: Sequence[str] = LABEL_NAMES
) -> Tensor:
    """Count the labels of a data set, one for each row, token or pixel.

    If a `datasets.Dataset` has a column of integers (or, without a transform, of lists of integers), only that column is
    read, without the transform. Any other data set is read through once, as in training.

    Args:
        dataset: of a known length, whose rows are mappings.
        num_classes: K.
        ignore_index: label that is not counted. Default −100.
        names: keys under which a row may hold its labels; the first that exists is used.

    Returns:
        (K,) int64.

    Raises:
        TypeError: the data set has no length, rows are not mappings, or labels are not integers.
        ValueError: rows have no labels, or labels outside [0, K).
    """
    if dataset is None:
        raise TypeError("labels are counted before training, but there is no training data; pass train_dataset")
    if not isinstance(dataset, Sized) or isinstance(dataset, torch.utils.data.IterableDataset):
        raise TypeError(
            f"labels are counted before training, but {type(dataset).__name__} has no length and may be read only once; use "
            "a data set of known length"
        )
    counts = torch.zeros(num_classes, dtype=torch.long)
    for labels in _stored_labels(dataset, names) or _row_labels(dataset, names):
        labels = labels[labels != ignore_index]
        if labels.numel() and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"labels must lie in [0, {num_classes}) or be {ignore_index}, which is ignored; the data set has labels "
                f"from {int(labels.min())} to {int(labels.max())}"
            )
        counts += torch.bincount(labels, minlength=num_classes)
    return counts


def _stored_labels(dataset: Any, names: Iterable[str]) -> list[Tensor] | None:
    """The stored labels of a `datasets.Dataset`, flattened; `None` if its rows have to be read."""
    if not isinstance(dataset, datasets.Dataset):
        return None
    name = next((name for name in names if name in dataset.features), None)
    if name is None:
        return None
    values = read_column(dataset, name).combine_chunks()
    if dataset.format["type"] == "custom" and not pa.types.is_integer(values.type):
        return None  # the transform makes the labels of tokens or pixels
    while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        values = values.flatten()
    if isinstance(values, pa.ExtensionArray) or not pa.types.is_integer(values.type):
        return None
    return [torch.from_numpy(pc.drop_null(values).to_numpy(zero_copy_only=False).astype("int64"))]


def _row_labels(dataset: Any, names: Sequence[str]) -> Iterator[Tensor]:
    """The labels of each row, flattened."""
    rows = (dataset[i] for i in range(len(dataset))) if hasattr(dataset, "__getitem__") else dataset
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"rows of the data set must be mappings with labels, got {type(row).__name__}")
        name = next((name for name in names if name in row), None)
        if name is None:
            raise ValueError(
                f"rows of the data set must have their labels under one of {', '.join(map(repr, names))}, got "
                f"{', '.join(map(repr, row)) or 'an empty row'}"
            )
        try:
            labels = torch.as_tensor(row[name])
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name!r} of the data set must hold integer labels to be counted, got {row[name]!r}") from error
        if labels.numel() and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
            raise TypeError(f"{name!r} of the data set must hold integer labels to be counted, got {labels.dtype}")
        yield labels.flatten().long().cpu()
