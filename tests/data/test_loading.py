"""Loading rows, and the one-line messages for wrong input before anything is written."""

import datasets
import pytest

from maxsup_hf.data.files import TEXT_FORMATS, load_file
from maxsup_hf.scripts import text_classification
from tests.scripts.conftest import texts, write


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["--train_file", "no.csv"], FileNotFoundError, "train_file: there is no file 'no.csv'"),
        (["--train_file", "good.csv", "--validation_file", "no.csv"], FileNotFoundError, "validation_file: .*'no.csv'"),
        (["--train_file", "notes.txt"], ValueError, r"'notes.txt' must end in one of \.csv"),
        (
            ["--train_file", "broken.csv"],
            ValueError,
            "train_file: 'broken.csv' could not be loaded: .*EOF inside string.*; are its columns separated by commas",
        ),
        (["--train_file", "commas.csv"], ValueError, "'commas.csv' has rows with more cells than its first line has names"),
        (["--train_file", "semicolons.csv"], ValueError, "must be separated by commas, got 'text;label'"),
        (["--train_file", "latin.csv"], ValueError, "'latin.csv' is not encoded in UTF-8; save it in that encoding"),
        (
            ["--train_file", "good.csv", "--text_column_name", "label"],
            ValueError,
            "'label' is already used for",
        ),
        (["--alpha", "0.1"], ValueError, "'--alpha'; parameters of a loss go into loss_kwargs, as --loss_kwargs alpha=0.1"),
        (["--model_name_or_path", "./nowhere"], ValueError, "model_name_or_path: there is no folder './nowhere'"),
        (["--train_file", "broken.jsonl"], ValueError, "'broken.jsonl' could not be loaded: JSON parse error"),
        (["--train_file", "broken.parquet"], ValueError, "'broken.parquet' could not be loaded: Parquet"),
        (["--train_file", "nothing.csv"], ValueError, "'nothing.csv' is empty"),
        (["--train_file", "header.csv"], ValueError, "'header.csv' is empty"),
        (["--train_file", "empty.parquet"], ValueError, "is empty"),
        (["--validation_file", "good.csv"], ValueError, "validation_file is given without training data; give train_file"),
        (["--train_file", "good.csv", "--dataset_name", "d"], ValueError, "one kind of source, got dataset_name and train"),
        (["--dataset_name", "no/such/thing"], ValueError, "dataset_name: 'no/such/thing' could not be loaded"),
        (["--dataset_name", "saved", "--train_split_name", "trian"], ValueError, "'trian'; name one of these: train"),
        (["--model_name_or_path", "no/such/model"], ValueError, "model_name_or_path: 'no/such/model' could not be loaded"),
        (["--config_name", "no/such/model"], ValueError, "config_name: 'no/such/model' could not be loaded"),
        (["--tokenizer_name", "no/such/model"], ValueError, "tokenizer_name: 'no/such/model' could not be loaded"),
        (["--train_file", "good.csv", "--text_column_name", "txet"], ValueError, "no column 'txet'. Columns: text"),
        (["--train_file", "good.csv", "--text_column_name", "a,b,c"], ValueError, "one column or two"),
        (["--train_file", "good.csv", "--label_column_name", "lable"], ValueError, "no column 'lable'. Columns: text"),
        (["--train_file", "good.csv", "--validation_file", "other.csv"], ValueError, "validation data has no column 'text'"),
        (["--train_file", "gaps.csv"], ValueError, "column 'text' of the train data has 1 missing"),
        (["--train_file", "numbers.csv"], TypeError, "column 'text' of the train data must hold strings, not int64"),
        (["--max_seq_length", "9999"], ValueError, "max_seq_length: 9999 tokens are more than the 512"),
    ],
)
def test_bad_sources_end_with_one_line_before_anything_is_written(tmp_path, capsys, argv, error, message):
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "broken.csv").write_text('a,b\n"x,,\n')
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    (tmp_path / "broken.parquet").write_text("nope")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "commas.csv").write_text("text,label\n" + "hello, you,a\n" * 8)
    (tmp_path / "semicolons.csv").write_text("text;label\n" + "hello;a\n" * 8)
    (tmp_path / "latin.csv").write_bytes("text,label\nfrüh,a\n".encode("latin-1"))
    (tmp_path / "header.csv").write_text("text,label\n")
    datasets.Dataset.from_dict({"text": [], "label": []}).to_parquet(tmp_path / "empty.parquet")
    texts("good.csv")
    texts("other.csv", text="words")
    texts("gaps.csv", texts=["a", "b", None, "d", "e", "f", "g", "h"])
    texts("numbers.csv", texts=range(8))
    datasets.DatasetDict(train=datasets.Dataset.from_csv("good.csv")).save_to_disk("saved")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        text_classification.prepare([*argv, "--output_dir", "out"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        text_classification.main([*argv, "--output_dir", "out"])
    assert exit.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in lines[0]
    assert sorted({path.name for path in tmp_path.iterdir()} - {"cache"}) == sorted({*before} - {"cache"})


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
        file.write("corresponds to no data, codec can't decode")
    with pytest.raises(ValueError, match="'words.json' could not be loaded: "):
        load_file("train_file", "words.json")


def test_a_file_that_has_changed_is_read_again():
    for rows in (["a"], ["b", "c"]):
        write("train.csv", {"text": rows})
        assert load_file("train_file", "train.csv")["text"][:] == rows
