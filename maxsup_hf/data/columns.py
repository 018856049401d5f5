"""Finding, checking and reading the columns of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, List, Value

from maxsup_hf.losses import IGNORE_INDEX

logger = logging.getLogger(__name__)


# ---- reading ----


def read_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column's stored values, without running transforms or decoding images."""
    return dataset.select_columns(name).with_format("arrow")[:].column(name)


def read_texts(dataset: Dataset, columns: Sequence[str]) -> Iterator[str]:
    """All strings of some columns, one column after the other. A column may also hold lists of strings."""
    for column in columns:
        for value in read_column(dataset, column).to_pylist():
            yield from [value] if isinstance(value, str) else value


# ---- finding ----

# Columns by which a row is known, in lower case.
IDENTIFIERS = ("id", "idx", "guid", "uid", "image_id", "file", "file_name", "filename", "path")


def identifier_columns(dataset: Dataset, used: Collection[str] = ()) -> list[str]:
    """Columns by which rows are known, which are written beside predictions, without those that are used otherwise."""
    return [name for name in dataset.column_names if name.lower() in IDENTIFIERS and name not in used]


def find_column(
    dataset: Dataset,
    argument: str,
    given: str | None,
    *,
    fits: Callable[[Any], bool],
    names: Sequence[str],
    taken: Collection[str] = (),
    split: str = "train",
) -> str:
    """The column that the user names, or the only one that it can be.

    Args:
        argument: the flag that names the column, for messages.
        given: the flag's value.
        fits: whether a feature has the right type.
        names: common names of such a column, in lower case. If several are present, only the first of this list is taken
            without asking.
        taken: columns that are used for something else.
        split: that the rows are of, for messages.

    Raises:
        ValueError: the named column does not exist or is taken, or none or several columns qualify. The message lists all
            columns.
    """
    if given is not None:
        check_column(dataset, given, argument, split)
        if given in taken:
            raise ValueError(
                f"{argument}: column {given!r} is already used for something else, such as the labels; name another one. "
                f"{_columns(dataset)}"
            )
        return given
    free = [name for name in dataset.column_names if name not in taken]
    fitting = [name for name in free if fits(dataset.features[name])]
    # If no type fits, a name still decides: the caller's check of the type then says what is wrong with that column.
    common = [column for name in names for column in fitting or free if column.strip().lower() == name]
    candidates = common or fitting
    if len(candidates) == 1 or (common and common[0].strip().lower() == names[0]):
        logger.info("%s: %s (found in the data)", argument, candidates[0])
        return candidates[0]
    problem = f"could be any of {', '.join(candidates)}" if candidates else "could not be found by type or name"
    hint = "; `maxsup-hf predict` needs no labels" if (argument, split) == ("label_column_name", "test") else ""
    raise ValueError(f"{argument}: the column {problem}; name it with --{argument}{hint}. {_columns(dataset)}")


def report_columns(dataset: Dataset, used: Collection[str]) -> None:
    """Log which columns of the training data are used and which are not. Unused texts are a warning, unless they name rows:
    half of the input may be there."""
    unused = [name for name in dataset.column_names if name not in used]
    ids = identifier_columns(dataset)
    texts = [name for name in unused if is_string(dataset.features[name]) and name not in ids]
    logger.log(
        logging.WARNING if texts else logging.INFO,
        "columns used: %s; not used: %s", ", ".join(dict.fromkeys(used)), ", ".join(unused) or "none",
    )  # fmt: skip


# ---- checking ----


def check_column(dataset: Dataset, name: str, argument: str, split: str = "train") -> None:
    """Raise ValueError if a split has no such column; the message lists those that it has."""
    if name not in dataset.column_names:
        raise ValueError(f"{argument}: the {split} data has no column {name!r}. {_columns(dataset)}")


def check_not_missing(dataset: Dataset, name: str, split: str) -> None:
    """Raise ValueError if a column has missing values (null, or NaN in a column of numbers)."""
    missing = pc.sum(pc.is_null(read_column(dataset, name), nan_is_null=True)).as_py()
    if missing:
        raise ValueError(
            f"column {name!r} of the {split} data has {missing} missing values in {len(dataset)} rows; "
            "fill them in or drop these rows"
        )


def check_some_labels(labels: Sequence[Any], name: str, split: str) -> None:
    """Raise ValueError if all labels of a column are the ignored one."""
    if set(labels) == {IGNORE_INDEX}:
        raise ValueError(
            f"label_column_name: column {name!r} of the {split} data is {IGNORE_INDEX} in all rows, which is ignored: there "
            "is nothing to learn"
        )


def check_type(
    dataset: Dataset, name: str, argument: str, split: str, *, fits: Callable[[Any], bool], expected: str, hint: str = ""
) -> None:
    """Raise TypeError if a column holds something other than `expected`; `hint` ends the message."""
    feature = dataset.features[name]
    if not fits(feature):
        raise TypeError(
            f"{argument}: column {name!r} of the {split} data must hold {expected}, not {type_name(feature)}{hint}"
        )


def check_strings(dataset: Dataset, name: str, argument: str, split: str) -> None:
    """Raise ValueError or TypeError if a column does not exist, has missing values, or holds anything but strings; or if all
    strings of the training data are blank."""
    check_column(dataset, name, argument, split)
    check_not_missing(dataset, name, split)
    check_type(dataset, name, argument, split, fits=is_string, expected="strings")
    if split == "train" and pc.all(pc.equal(pc.utf8_trim_whitespace(read_column(dataset, name)), "")).as_py():
        raise ValueError(f"{argument}: all {len(dataset)} values of column {name!r} of the train data are blank")


# ---- types ----


def type_name(feature: Any) -> str:
    """What a column holds, for messages: `int64`, `list of string`, `ClassLabel`, …"""
    if isinstance(feature, Value):
        return feature.dtype
    if isinstance(feature, List):
        return f"list of {type_name(feature.feature)}"
    return type(feature).__name__


def is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


def is_integer(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))


def is_list(feature: Any) -> bool:
    return isinstance(feature, List)


def is_list_of_strings(feature: Any) -> bool:
    return isinstance(feature, List) and is_string(feature.feature)


def is_class(feature: Any) -> bool:
    return isinstance(feature, ClassLabel)


def is_list_of_classes(feature: Any) -> bool:
    return isinstance(feature, List) and is_class(feature.feature)


def is_image(feature: Any) -> bool:
    return isinstance(feature, Image)


def _columns(dataset: Dataset) -> str:
    """All columns and their types, for messages."""
    shown = {name: name if name == name.strip() else repr(name) for name in dataset.features}
    return "Columns: " + ", ".join(f"{shown[name]} ({type_name(feature)})" for name, feature in dataset.features.items())
