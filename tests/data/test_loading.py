"""Loading rows from files."""

import pytest

from maxsup_hf.data.files import TEXT_FORMATS, load_file
from maxsup_hf.scripts import text_classification
from tests.scripts.conftest import write


def test_words_that_pandas_takes_for_missing_are_words(tmp_path):
    write("train.csv", {"text": ["NA", "null", "None", "nan"] * 4, "label": ["NA", "no", "NA", "no"] * 4})
    job = text_classification.prepare(["--train_file", "train.csv", "--output_dir", "out"])
    assert job.trainer.model.config.id2label == {0: "NA", 1: "no"}


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "txt"])
def test_a_file_in_another_encoding_is_recognized(extension):
    content = {"csv": "text,label\nfrüh,a\n", "tsv": "text\tlabel\nfrüh\ta\n", "json": '[{"text": "früh"}]'}
    with open(f"latin.{extension}", "w", encoding="latin-1") as file:
        file.write(content.get(extension, "früh"))
    with pytest.raises(ValueError, match=rf"train_file: 'latin.{extension}' is not encoded in UTF-8"):
        load_file("train_file", f"latin.{extension}", TEXT_FORMATS)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("b.csv", "text,label\n"), ("c.json", "[]"), ("d.jsonl", "\n"), ("e.txt", "")]
)
def test_a_file_without_rows_is_empty(name, content):
    with open(name, "w", encoding="utf-8") as file:
        file.write(content)
    with pytest.raises(ValueError, match=f"train_file: '{name}' is empty; it must have at least one row"):
        load_file("train_file", name, TEXT_FORMATS)


def test_other_errors_keep_their_message_whatever_its_words():
    """Emptiness and encoding are found by reading the file, not by matching the messages of other libraries."""
    with open("words.json", "w", encoding="utf-8") as file:
        file.write("{corresponds to no data, codec can't decode")
    with pytest.raises(ValueError, match="'words.json' could not be loaded: "):
        load_file("train_file", "words.json")


def test_a_file_that_has_changed_is_read_again():
    for rows in (["a"], ["b", "c"]):
        write("train.csv", {"text": rows})
        assert load_file("train_file", "train.csv")["text"][:] == rows
