"""Columns and rows of token classification: lists of words with a tag for each word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, Value
from numpy.typing import NDArray

from maxsup_hf.data.columns import (
    check_column,
    check_not_missing,
    check_type,
    find_column,
    identifier_columns,
    is_list,
    is_list_of_classes,
    is_list_of_strings,
    read_column,
)
from maxsup_hf.data.files import FORMATS, Reader, read_text
from maxsup_hf.data.labels import encode_labels
from maxsup_hf.data.loading import Splits

TOKEN_NAMES = ("tokens", "words", "sentence", "text")
TAG_NAMES = ("ner_tags", "tags", "labels", "ner", "pos_tags", "upos", "label")

_ROW = "row of the tag"


def read_conll(path: str, tagged: bool = True) -> Dataset:
    """The sentences of a CoNLL file: a word and its tag in each line, the first and the last of its columns, and an empty
    line after each sentence. Columns: `tokens`, `tags`.

    Args:
        tagged: whether every word needs a tag. If not, and a line has a single column, there is no column `tags`.

    Raises:
        ValueError: a line has a single column, or the first column counts the words, as in CoNLL-U.
    """
    sentences: list[tuple[list[str], list[str]]] = [([], [])]
    has_tags = True
    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = line.split("\t") if "\t" in line else line.split()
        cells = [cell.strip() for cell in cells if cell.strip()]
        if not cells or cells[0] == "-DOCSTART-":
            sentences.append(([], []))
        elif len(cells) == 1 and tagged:
            raise ValueError(f"line {number} has a single column, {cells[0]!r}; expected a word and its tag")
        elif not _is_comment(line, sentences[-1][0]):
            sentences[-1][0].append(cells[0])
            sentences[-1][1].append(cells[-1])
            has_tags = has_tags and len(cells) > 1
    filled = [sentence for sentence in sentences if sentence[0]]
    if filled and all(words == [str(i) for i in range(1, len(words) + 1)] for words, _ in filled):
        raise ValueError(
            "the first column counts the words; expected the words in the first column and the tags in the last"
        )
    columns = {"tokens": [words for words, _ in filled], "tags": [tags for _, tags in filled]}
    return Dataset.from_dict(columns if has_tags else {"tokens": columns["tokens"]})


def _is_comment(line: str, words: Sequence[str]) -> bool:
    """Whether a line is a comment, as CoNLL-U has them before a sentence: a tweet may hold a word `#`."""
    return line.startswith("# ") and not words


CONLL_FORMATS: dict[str, Reader] = {**FORMATS, ".txt": read_conll, ".conll": read_conll}


def find_tag_columns(dataset: Dataset, tokens: str | None, tags: str | None, split: str = "train") -> tuple[str, str]:
    """Find the columns of the words and of their tags; see `find_column`."""
    tags = find_column(dataset, "label_column_name", tags, fits=is_list_of_classes, names=TAG_NAMES, split=split)
    tokens = find_column(
        dataset, "tokens_column_name", tokens, fits=is_list_of_strings, names=TOKEN_NAMES, taken=[tags], split=split
    )
    return tokens, tags


def encode_tags(
    splits: Splits, token_column: str, tag_column: str, order: Sequence[str] = (), only_these: bool = False
) -> tuple[Splits, list[str]]:
    """Check the words, and replace the tags of all splits by indices into one list of names, as `encode_labels` does.

    Returns:
        Splits with the columns `tokens` and `labels`, lists of the same lengths; the K names.

    Raises:
        TypeError, ValueError: a column does not hold lists, values are missing, a row has no words or more or fewer tags
            than words; or see `encode_labels`.
    """
    lengths = {split: _check_sentences(dataset, token_column, tag_column, split) for split, dataset in splits.items()}
    flat = {split: _flatten(dataset, tag_column) for split, dataset in splits.items()}
    encoded, names = encode_labels(flat, tag_column, [_ROW], order, only_these=only_these)
    tagged = {}
    for split, dataset in splits.items():
        indices = read_column(encoded[split], "labels").to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths[split])])
        columns = {
            "tokens": read_column(dataset, token_column),
            "labels": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(indices)),
        }
        if split == "test":
            ids = identifier_columns(dataset, [token_column, tag_column, *columns])
            columns |= {name: read_column(dataset, name) for name in ids}
        tagged[split] = Dataset(pa.table(columns))
    return tagged, names


def _check_sentences(dataset: Dataset, token_column: str, tag_column: str, split: str) -> NDArray[np.integer]:
    """(N,) number of words of each row, each of which has a tag."""
    words = check_lists(dataset, token_column, "tokens_column_name", split)
    tags = check_lists(dataset, tag_column, "label_column_name", split)
    check_type(dataset, token_column, "tokens_column_name", split, fits=is_list_of_strings, expected="lists of words")
    lengths, tag_counts = _lengths(words), _lengths(tags)
    _raise_first(lengths == 0, "tokens_column_name", split, "has no words; drop such rows")
    different = np.flatnonzero(lengths != tag_counts)
    if len(different):
        row = different[0]
        raise ValueError(
            f"label_column_name: row {row} of the {split} data has {lengths[row]} words in column {token_column!r} but "
            f"{tag_counts[row]} tags in column {tag_column!r} ({len(different)} such rows); every word needs one tag"
        )
    return lengths


def _flatten(dataset: Dataset, column: str) -> Dataset:
    """A data set with one row for each tag, so that `encode_labels` can encode tags too."""
    tags = pc.list_flatten(read_column(dataset, column))
    features = Features({column: dataset.features[column].feature, _ROW: Value("int64")})
    table = pa.table({column: tags, _ROW: pa.array(np.arange(len(tags)))})
    return Dataset(table, info=DatasetInfo(features=features))


def check_lists(dataset: Dataset, column: str, argument: str, split: str) -> pa.ChunkedArray:
    """A column of lists; raise ValueError or TypeError if it does not exist, has missing values, or holds anything else."""
    check_column(dataset, column, argument, split)
    check_not_missing(dataset, column, split)
    check_type(
        dataset, column, argument, split, fits=is_list, expected="lists",
        hint="; csv and tsv files cannot hold lists, but json, jsonl and parquet files can",
    )  # fmt: skip
    lists = read_column(dataset, column)
    if pc.any(pc.is_null(pc.list_flatten(lists))).as_py():
        missing = np.array([None in row for row in lists.to_pylist()])
        _raise_first(missing, argument, split, f"has missing values in the list of column {column!r}; fill them in")
    return lists


def _lengths(lists: pa.ChunkedArray) -> NDArray[np.integer]:
    return pc.list_value_length(lists).to_numpy()


def _raise_first(wrong: NDArray[np.bool_], argument: str, split: str, problem: str) -> None:
    """Raise ValueError if any row is wrong; the message says which is the first."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise ValueError(f"{argument}: row {rows[0]} of the {split} data {problem} ({len(rows)} such rows)")
