"""How often each class occurs in the labels of a data set."""

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

LABEL_NAMES = ("labels", "label", "label_ids")  # what transformers' collators take for the labels


def count_classes(
    dataset: Any, num_classes: int, ignore_index: int = IGNORE_INDEX, names: Sequence[str] = LABEL_NAMES
) -> Tensor:
    """Count the labels of a data set, one for each row, token or pixel.

    Of a `datasets.Dataset` with a column of integers only this column is read, and not through the data set's transform; of
    lists of integers too, where it has none. Any other data set is read through once, as it is trained on.

    Args:
        dataset: of a known length, whose rows are mappings.
        num_classes: K.
        ignore_index: label that is not counted. Default −100.
        names: where a row may have its labels; the first that is there counts.

    Returns:
        (K,) int64.

    Raises:
        TypeError: no length, rows that are not mappings, or labels that are not integers.
        ValueError: rows without labels, or labels outside of [0, K).
    """
    if dataset is None:
        raise TypeError("labels are counted before training, but there is no training data")
    if not isinstance(dataset, Sized) or isinstance(dataset, torch.utils.data.IterableDataset):
        raise TypeError(
            f"labels are counted before training, but {type(dataset).__name__} has no length and may be read only once: use "
            "a data set of a known length"
        )
    counts = torch.zeros(num_classes, dtype=torch.long)
    for labels in _stored(dataset, names) or _of_rows(dataset, names):
        labels = labels[labels != ignore_index]
        if labels.numel() and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"labels must lie in [0, {num_classes}) or be {ignore_index}, which is ignored; the data set has labels "
                f"from {int(labels.min())} to {int(labels.max())}"
            )
        counts += torch.bincount(labels, minlength=num_classes)
    return counts


def _stored(dataset: Any, names: Iterable[str]) -> list[Tensor] | None:
    """The stored labels of a `datasets.Dataset`, flat; `None` where its rows must be looked at."""
    if not isinstance(dataset, datasets.Dataset):
        return None
    name = next((name for name in names if name in dataset.features), None)
    if name is None:
        return None
    values = read_column(dataset, name).combine_chunks()
    if dataset.format["type"] == "custom" and not pa.types.is_integer(values.type):
        return None  # a transform makes labels of tokens or pixels
    while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        values = values.flatten()
    if isinstance(values, pa.ExtensionArray) or not pa.types.is_integer(values.type):
        return None
    return [torch.from_numpy(pc.drop_null(values).to_numpy(zero_copy_only=False).astype("int64"))]


def _of_rows(dataset: Any, names: Sequence[str]) -> Iterator[Tensor]:
    """The labels of each row, flat."""
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
