"""Columns are found by type or name, and read."""

import datasets
import pytest

from maxsup_hf.data.columns import find_column, is_string, read_texts
from tests.data.conftest import table


def text_column(dataset, given=None, taken=()):
    return find_column(dataset, "text_column_name", given, fits=is_string, names=("text", "title", "question"), taken=taken)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"a": ["x"], "b": [1]}, "a"),  # the only one of its type
        ({"a": ["x"], "text": ["y"]}, "text"),
        ({"title": ["x"], "text": ["y"]}, "text"),  # the first name wins
        ({"a": ["x"], "Title": ["y"]}, "Title"),
        ({"text": [1], "a": [2]}, "text"),  # wrong type, for its own check to say
    ],
)
def test_column_is_found(columns, found):
    assert text_column(table(**columns)) == found


def test_named_and_taken_columns():
    dataset = table(a=["x"], b=["y"])
    assert text_column(dataset, given="b") == "b"
    assert text_column(dataset, taken=["a"]) == "b"


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (
            {"a": ["x"], "b": ["y"]},
            None,
            r"could be any of a, b; .*--text_column_name\. Columns: a \(string\), b \(string\)",
        ),
        ({"title": ["x"], "question": ["y"]}, None, "could be any of title, question"),
        ({"a": [1]}, None, r"could not be found by type or name.*Columns: a \(int64\)"),
        ({"a": [1]}, "txet", r"no column 'txet'\. Columns: a \(int64\)"),
    ],
)
def test_column_is_not_found(columns, given, message):
    with pytest.raises(ValueError, match=message):
        text_column(table(**columns), given)


def test_texts_of_columns_in_order():
    dataset = table(a=["1", "2"], b=[["3", "4"], ["5"]])
    assert list(read_texts(dataset, ["b", "a"])) == ["3", "4", "5", "1", "2"]


def test_the_type_of_a_column_is_named():
    dataset = table(a=[[1]], b=[0]).cast_column("b", datasets.ClassLabel(names=["x"]))
    with pytest.raises(ValueError, match=r"no column 'c'\. Columns: a \(list of int64\), b \(ClassLabel\)"):
        text_column(dataset, given="c")
