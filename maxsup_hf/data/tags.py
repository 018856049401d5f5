"""Sentences as lists of words, with a tag for each word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetInfo, Features, List, Value
from numpy.typing import NDArray

from maxsup_hf.data.columns import check_column, check_not_missing, find_column, is_list_of_strings, read_column
from maxsup_hf.data.labels import encode_labels
from maxsup_hf.data.loading import Splits

TOKEN_NAMES = ("tokens", "words", "sentence", "text")
TAG_NAMES = ("ner_tags", "tags", "labels", "ner", "pos_tags", "upos", "label")


def find_columns(dataset: Dataset, tokens: str | None, tags: str | None) -> tuple[str, str]:
    """The columns of the words and of their tags, as `find_column` does."""
    tag_column = find_column(dataset, "label_column_name", tags, fits=_is_list_of_classes, names=TAG_NAMES)
    return (
        find_column(dataset, "tokens_column_name", tokens, fits=is_list_of_strings, names=TOKEN_NAMES, taken=[tag_column]),
        tag_column,
    )


def encode_tags(splits: Splits, token_column: str, tag_column: str, order: Sequence[str] = ()) -> tuple[Splits, list[str]]:
    """Check the words, and replace the tags of all splits by indices into one list of names, as `encode_labels` does.

    Returns:
        Splits with the columns `tokens` and `labels`, lists of the same lengths; the K names.

    Raises:
        TypeError, ValueError: columns that do not hold lists, missing values, rows without words, rows with more or fewer
            tags than words, or what `encode_labels` refuses.
    """
    lengths, flat = {}, {}
    for split, dataset in splits.items():
        words = _check_lists(dataset, token_column, "tokens_column_name", split)
        tags = _check_lists(dataset, tag_column, "label_column_name", split)
        if not is_list_of_strings(dataset.features[token_column]):
            kind = dataset.features[token_column].feature
            raise TypeError(f"tokens_column_name: column {token_column!r} of the {split} data must hold words, not {kind}")
        lengths[split] = _lengths(words)
        _raise_first(lengths[split] == 0, split, "has no words; drop such rows")
        other = np.flatnonzero(lengths[split] != _lengths(tags))
        if len(other):
            row = other[0]
            raise ValueError(
                f"row {row} of the {split} data has {lengths[split][row]} words in column {token_column!r} but "
                f"{_lengths(tags)[row]} tags in column {tag_column!r} ({len(other)} such rows); every word needs one tag"
            )
        flat[split] = _flatten(dataset, tag_column)
    encoded, names = encode_labels(flat, tag_column, [_ROW], order)
    result = {}
    for split, dataset in splits.items():
        indices = read_column(encoded[split], "labels").to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths[split])])
        columns = {
            "tokens": read_column(dataset, token_column),
            "labels": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(indices)),
        }
        result[split] = Dataset(pa.table(columns))
    return result, names


_ROW = "row of the tag"


def _flatten(dataset: Dataset, column: str) -> Dataset:
    """One row for each tag, so that tags are the labels of a data set."""
    tags = pc.list_flatten(read_column(dataset, column))
    features = Features({column: dataset.features[column].feature, _ROW: Value("int64")})
    table = pa.table({column: tags, _ROW: pa.array(np.arange(len(tags)))})
    return Dataset(table, info=DatasetInfo(features=features))


def _check_lists(dataset: Dataset, column: str, argument: str, split: str) -> pa.ChunkedArray:
    check_column(dataset, column, argument, split)
    check_not_missing(dataset, column, split)
    feature = dataset.features[column]
    if not isinstance(feature, List):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(
            f"{argument}: column {column!r} of the {split} data must hold lists, not {kind}; csv and tsv files cannot hold "
            "any, json, jsonl and parquet files can"
        )
    lists = read_column(dataset, column)
    if pc.any(pc.is_null(pc.list_flatten(lists))).as_py():
        missing = [None in row for row in lists.to_pylist()]
        _raise_first(np.array(missing), split, f"has missing values in the list of column {column!r}; fill them in")
    return lists


def _lengths(lists: pa.ChunkedArray) -> NDArray[np.integer]:
    return pc.list_value_length(lists).to_numpy()


def _raise_first(wrong: NDArray[np.bool_], split: str, problem: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise ValueError(f"row {rows[0]} of the {split} data {problem} ({len(rows)} such rows)")


def _is_list_of_classes(feature: Any) -> bool:
    return isinstance(feature, List) and isinstance(feature.feature, ClassLabel)
