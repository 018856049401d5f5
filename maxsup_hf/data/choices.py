"""Columns and rows of multiple choice: questions with several choices, one of which is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from maxsup_hf.data.columns import (
    check_column,
    check_not_missing,
    check_some_labels,
    check_strings,
    check_type,
    find_column,
    identifier_columns,
    is_class,
    is_integer,
    is_list_of_strings,
    is_string,
    read_column,
)
from maxsup_hf.data.loading import Splits

QUESTION_NAMES = ("question", "context", "sent1", "prompt", "premise", "query", "text")
CHOICES_NAMES = ("choices", "options", "endings", "answers", "candidates")
LETTERS = "ABCDEFGHIJ"
RIGHT_CHOICE_NAMES = ("label", "labels", "answer", "target", "answer_index")


def usual_layout(dataset: Dataset, split: str) -> Dataset:
    """Bring the columns of ARC, RACE and SWAG into `question`, `choices` and `label`; others stay as they are.

    ARC has the choices as a dict of `text` and `label` and the right one as `answerKey`, RACE the right one as a letter,
    SWAG an ending in each of the columns `ending0`, `ending1`, …

    Raises:
        ValueError: missing values, or a right choice that is not one of the choices.
    """
    names = set(dataset.column_names)
    if {"question", "choices", "answerKey"} <= names:
        _check_full(dataset, ["question", "choices"], split)
        has_letters = isinstance(dataset.features["choices"], dict)
        rows = []
        for i, row in enumerate(dataset):
            choices = row["choices"]["text"] if has_letters else row["choices"]
            letters = row["choices"]["label"] if has_letters else LETTERS[: len(choices)]
            label = _place(row["answerKey"], letters, f"answerKey: row {i} of the {split} data")
            rows.append({"question": row["question"], "choices": choices, "label": label})
    elif {"article", "question", "options", "answer"} <= names:
        _check_full(dataset, ["article", "question", "options"], split)
        rows = [
            {
                "question": f"{row['article']}\n{row['question']}",
                "choices": row["options"],
                "label": _place(row["answer"], LETTERS[: len(row["options"])], f"answer: row {i} of the {split} data"),
            }
            for i, row in enumerate(dataset)
        ]
    elif {"sent1", "sent2", "ending0", "ending1", "label"} <= names:
        endings = sorted(name for name in names if name.startswith("ending"))
        _check_full(dataset, ["sent1", "sent2", *endings], split)
        rows = [
            {
                "question": row["sent1"],
                "choices": [f"{row['sent2']} {row[ending]}".strip() for ending in endings],
                "label": row["label"],
            }
            for row in dataset
        ]
    else:
        return dataset
    ids = identifier_columns(dataset, rows[0])
    return Dataset.from_list([{name: old[name] for name in ids} | new for old, new in zip(dataset, rows, strict=True)])


def _check_full(dataset: Dataset, columns: Sequence[str], split: str) -> None:
    for column in columns:
        check_not_missing(dataset, column, split)


def _place(letter: str | None, letters: Sequence[str], where: str) -> int:
    """Index of the right choice; -1 where it is withheld."""
    if not letter:
        return -1
    if letter not in letters:
        raise ValueError(f"{where} has {letter!r}, which is not one of its choices {', '.join(letters)}; correct or drop it")
    return list(letters).index(letter)


def find_choice_columns(
    dataset: Dataset, question: str | None, choices: str | None, label: str | None, split: str = "train"
) -> tuple[str, list[str], str]:
    """Find the column of the questions, the column or columns of the choices, and the column of the right choice.

    Args:
        choices: a column of lists, or comma-separated columns of one choice each.

    Raises:
        ValueError: see `find_column`.
    """
    label = find_column(dataset, "label_column_name", label, fits=is_class, names=RIGHT_CHOICE_NAMES, split=split)
    named = [name.strip() for name in choices.split(",")] if choices else [None]
    found = [
        find_column(
            dataset, "choices_column_name", name, fits=is_list_of_strings, names=CHOICES_NAMES, taken=[label], split=split
        )
        for name in named
    ]
    question = find_column(
        dataset, "question_column_name", question, fits=is_string, names=QUESTION_NAMES, taken=[label, *found], split=split
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
        TypeError, ValueError: a column does not exist or has the wrong type, values are missing, rows differ in the number
            of choices, or a label is neither an index nor one of the row's choices.
    """
    checked: Splits = {}
    first, count = "", 0  # the first split, and C of its first row
    for split, dataset in splits.items():
        check_strings(dataset, question, "question_column_name", split)
        rows = read_choices(dataset, choices, split)
        first, count = (first, count) if first else (split, len(rows[0]))
        check_counts(rows, count, split, of=first)
        columns = {
            "question": read_column(dataset, question),
            "choices": pa.array(rows, pa.list_(pa.string())),
            "labels": pa.array(_read_labels(dataset, label, rows, split)),
        }
        if split == "test":
            ids = identifier_columns(dataset, [question, *choices, label, *columns])
            columns |= {name: read_column(dataset, name) for name in ids}
        checked[split] = Dataset(pa.table(columns))
    return checked


def read_choices(dataset: Dataset, choices: list[str], split: str) -> list[list[str | None]]:
    """The choices of each row, from a column of lists or from a column for each choice.

    Raises:
        TypeError, ValueError: a column does not exist, has missing values, or holds something else.
    """
    if len(choices) > 1:
        for column in choices:
            check_strings(dataset, column, "choices_column_name", split)
        return [list(row) for row in zip(*(read_column(dataset, column).to_pylist() for column in choices), strict=True)]
    column = choices[0]
    check_column(dataset, column, "choices_column_name", split)
    check_not_missing(dataset, column, split)
    check_type(
        dataset, column, "choices_column_name", split, fits=is_list_of_strings, expected="lists of strings",
        hint="; or give a column for each choice, comma-separated",
    )  # fmt: skip
    return read_column(dataset, column).to_pylist()


def check_counts(rows: list[list[str | None]], count: int, split: str, of: str = "train") -> None:
    """Raise ValueError unless every row has `count` choices, as row 0 of a split, at least two, and none is missing."""
    if count < 2:
        raise ValueError(f"choices_column_name: row 0 of the {split} data has {count} choice; it needs at least two")
    for i, row in enumerate(rows):
        if None in row:
            raise ValueError(
                f"choices_column_name: row {i} of the {split} data has a missing choice in {row}; fill it in or drop such "
                "rows"
            )
        if len(row) != count:
            raise ValueError(
                f"choices_column_name: row {i} of the {split} data has {len(row)} choices, row 0 of the {of} data has "
                f"{count}; all rows need the same number"
            )


def _read_labels(dataset: Dataset, column: str, rows: list[list[str | None]], split: str) -> NDArray[np.int64]:
    """(N,) index of the right choice of each row."""
    check_column(dataset, column, "label_column_name", split)
    check_not_missing(dataset, column, split)
    check_type(
        dataset, column, "label_column_name", split, fits=_is_index_or_text, expected="indices of choices or their texts"
    )
    values = read_column(dataset, column).to_pylist()
    check_some_labels(values, column, split)
    labels = []
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        label = row.index(value) if value in row else value
        if not (isinstance(label, int) and 0 <= label < len(row)):
            raise ValueError(
                f"label_column_name: {value!r} in row {i} of the {split} data must be an index in [0, {len(row)}) or "
                f"one of the choices {row}"
            )
        labels.append(label)
    return np.array(labels, dtype=np.int64)


def _is_index_or_text(feature: Any) -> bool:
    return is_integer(feature) or is_class(feature) or is_string(feature)
