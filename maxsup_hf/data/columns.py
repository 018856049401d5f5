"""Which column holds what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, List, Value

logger = logging.getLogger(__name__)


def read_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column's stored values, without running transforms or decoding images."""
    return dataset.select_columns(name).with_format("arrow")[:].column(name)


def find_column(
    dataset: Dataset,
    argument: str,
    given: str | None,
    *,
    fits: Callable[[Any], bool],
    names: Sequence[str],
    taken: Collection[str] = (),
) -> str:
    """The column that the user names, or the one that it must be.

    Args:
        argument: the flag that names it, for messages.
        given: its value.
        fits: whether a feature has the right type.
        names: usual names. The first one is taken wherever it is; of the others only one may be there.
        taken: columns that are something else already.

    Raises:
        ValueError: no such column, or none or several that it could be; the message lists all columns.
    """
    if given is not None:
        check_column(dataset, given, argument)
        if given in taken:
            raise ValueError(f"{argument}: column {given!r} is something else already, as the labels. {_columns(dataset)}")
        return given
    free = [name for name in dataset.column_names if name not in taken]
    typed = [name for name in free if fits(dataset.features[name])]
    pool = typed or free  # of another type: its own check says what is wrong with it
    usual = [column for name in names for column in pool if column.lower() == name]
    if usual and (len(usual) == 1 or usual[0].lower() == names[0]):
        found = usual[0]
    elif len(typed) == 1 and not usual:
        found = typed[0]
    else:
        candidates = usual or typed
        problem = f"could be any of {', '.join(candidates)}" if candidates else "could not be found by type or name"
        raise ValueError(f"{argument}: the column {problem}; name it with --{argument}. {_columns(dataset)}")
    logger.info("%s: %s (found in the data)", argument, found)
    return found


def check_column(dataset: Dataset, name: str, argument: str, split: str = "train") -> None:
    """Raises ValueError where a split lacks a column; the message lists those that it has."""
    if name not in dataset.column_names:
        raise ValueError(f"{argument}: the {split} data has no column {name!r}. {_columns(dataset)}")


def _columns(dataset: Dataset) -> str:
    kinds = {name: getattr(feature, "dtype", type(feature).__name__) for name, feature in dataset.features.items()}
    kinds |= {name: type(feature).__name__ for name, feature in dataset.features.items() if not isinstance(feature, Value)}
    return "Columns: " + ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def check_not_missing(dataset: Dataset, name: str, split: str) -> None:
    """Raises ValueError where values of a column are missing (null, or NaN in a column of numbers)."""
    missing = pc.sum(pc.is_null(read_column(dataset, name), nan_is_null=True)).as_py()
    if missing:
        raise ValueError(
            f"column {name!r} of the {split} data has {missing} missing values in {len(dataset)} rows; "
            "fill them in or drop these rows"
        )


def check_strings(dataset: Dataset, name: str, argument: str, split: str) -> None:
    """Raises ValueError or TypeError where a column is not there, has missing values, or holds something but strings."""
    check_column(dataset, name, argument, split)
    check_not_missing(dataset, name, split)
    feature = dataset.features[name]
    if not is_string(feature):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(f"{argument}: column {name!r} of the {split} data must hold strings, not {kind}")


def is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


def is_list_of_strings(feature: Any) -> bool:
    return isinstance(feature, List) and is_string(feature.feature)


def is_image(feature: Any) -> bool:
    return isinstance(feature, Image)
