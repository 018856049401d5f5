"""Questions with several choices, one of which is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from maxsup_hf.data.columns import (
    check_column,
    check_not_missing,
    check_strings,
    find_column,
    is_list_of_strings,
    is_string,
    read_column,
)
from maxsup_hf.data.loading import Splits

QUESTION_NAMES = ("question", "context", "sent1", "prompt", "premise", "query", "text")
CHOICES_NAMES = ("choices", "options", "endings", "answers", "candidates")
LABEL_NAMES = ("label", "labels", "answer", "target", "answer_index")


def find_columns(
    dataset: Dataset, question: str | None, choices: str | None, label: str | None
) -> tuple[str, list[str], str]:
    """The column of the questions, the one of the choices or the several of one each, and the column of the right choice.

    Raises:
        ValueError: as in `find_column`, or a single column is named for the choices and it holds no lists.
    """
    label = find_column(dataset, "label_column_name", label, fits=_is_class, names=LABEL_NAMES)
    named = [name.strip() for name in choices.split(",")] if choices else [None]
    found = [
        find_column(dataset, "choices_column_name", name, fits=is_list_of_strings, names=CHOICES_NAMES, taken=[label])
        for name in named
    ]
    question = find_column(
        dataset, "question_column_name", question, fits=is_string, names=QUESTION_NAMES, taken=[label, *found]
    )
    return question, found, label


def check_choices(splits: Splits, question: str, choices: list[str], label: str) -> Splits:
    """Check every row, and bring the choices and labels of all splits into one form.

    Args:
        choices: the name of a column of lists, or of C columns of one choice each.
        label: integers or a ClassLabel in [0, C), or strings that are one of the row's choices.

    Returns:
        Splits with the columns `question`, `choices` (lists of the same length C, at least 2) and `labels` (N,) in [0, C).

    Raises:
        TypeError, ValueError: a column that is missing or of another type, missing values, rows with more or fewer choices
            than others, or a label that is none of the row's choices.
    """
    result: Splits = {}
    count = None
    for split, dataset in splits.items():
        check_strings(dataset, question, "question_column_name", split)
        rows = _rows(dataset, choices, split)
        count = len(rows[0]) if count is None else count
        if count < 2:
            raise ValueError(f"choices_column_name: row 0 of the {split} data has {count} choice; it needs at least two")
        for i, row in enumerate(rows):
            if None in row:
                raise ValueError(f"row {i} of the {split} data has a missing choice in {row}; fill it in or drop such rows")
            if len(row) != count:
                raise ValueError(
                    f"row {i} of the {split} data has {len(row)} choices, row 0 of the train data has {count}; all rows "
                    "need the same number"
                )
        columns = {
            "question": read_column(dataset, question),
            "choices": pa.array(rows, pa.list_(pa.string())),
            "labels": pa.array(_labels(dataset, label, rows, split)),
        }
        result[split] = Dataset(pa.table(columns))
    return result


def _rows(dataset: Dataset, choices: list[str], split: str) -> list[list[str | None]]:
    if len(choices) > 1:
        for column in choices:
            check_strings(dataset, column, "choices_column_name", split)
        return [list(row) for row in zip(*(read_column(dataset, column).to_pylist() for column in choices), strict=True)]
    check_column(dataset, choices[0], "choices_column_name", split)
    check_not_missing(dataset, choices[0], split)
    feature = dataset.features[choices[0]]
    if not is_list_of_strings(feature):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(
            f"choices_column_name: column {choices[0]!r} of the {split} data must hold lists of strings, not {kind}; or "
            "name a column for each choice, with commas between them"
        )
    return read_column(dataset, choices[0]).to_pylist()


def _labels(dataset: Dataset, column: str, rows: list[list[str | None]], split: str) -> np.ndarray:
    check_column(dataset, column, "label_column_name", split)
    check_not_missing(dataset, column, split)
    feature = dataset.features[column]
    is_number = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    if not (is_number or _is_class(feature) or is_string(feature)):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(
            f"label_column_name: column {column!r} of the {split} data must hold numbers of choices or their texts, "
            f"not {kind}"
        )
    labels = []
    for i, (value, row) in enumerate(zip(read_column(dataset, column).to_pylist(), rows, strict=True)):
        label = row.index(value) if value in row else value
        if not (isinstance(label, int) and 0 <= label < len(row)):
            raise ValueError(
                f"label_column_name: {value!r} in row {i} of the {split} data must be an index in [0, {len(row)}) or "
                f"one of the choices {row}"
            )
        labels.append(label)
    return np.array(labels, dtype=np.int64)


def _is_class(feature: Any) -> bool:
    return isinstance(feature, ClassLabel)
