"""Files in the forms that people have them."""

import gzip
import json

import datasets
import pytest

from maxsup_hf.data.answers import SQUAD_FORMATS, check_answers, read_squad
from maxsup_hf.data.choices import check_choices, usual_layout
from maxsup_hf.data.files import load_file
from maxsup_hf.data.tags import CONLL_FORMATS, encode_tags, read_conll
from maxsup_hf.scripts import text_classification
from tests.data.conftest import table

LINES = "text,label\ngood day,a\nbad day,b\n"


def test_compressed_several_and_patterns(tmp_path):
    (tmp_path / "1.csv.gz").write_bytes(gzip.compress(LINES.encode()))
    for name in ("2.csv", "3.csv"):
        (tmp_path / name).write_text(LINES)
    assert len(load_file("train_file", "1.csv.gz")) == 2
    assert len(load_file("train_file", "1.csv.gz, 2.csv")) == len(load_file("train_file", "[23].csv")) == 4
    (tmp_path / "a[1]*.csv").write_text(LINES)  # a name, not a pattern
    assert len(load_file("train_file", "a[1]*.csv")) == 2
    (tmp_path / "4.csv").write_text("text,klass\nx,a\n")
    with pytest.raises(
        ValueError, match="all files need the same columns, but '2.csv' has text, label and '4.csv' has text, klass"
    ):
        load_file("train_file", "2.csv,4.csv")
    with pytest.raises(FileNotFoundError, match=r"train_file: there is no file '5\*.csv'"):
        load_file("train_file", "2.csv,5*.csv")


def test_another_delimiter_is_proposed_and_taken(tmp_path):
    (tmp_path / "t.csv").write_text(LINES.replace(",", ";"))
    with pytest.raises(ValueError, match="give --csv_delimiter ';'"):
        load_file("train_file", "t.csv")
    assert load_file("train_file", "t.csv", delimiter=";").column_names == ["text", "label"]
    (tmp_path / "u.csv").write_text(LINES.replace(",", "\t"))
    for tab in ("\\t", "\t"):
        argv = ["--train_file", "u.csv", "--train_val_split", "0.5", "--csv_delimiter", tab, "--output_dir", "x"]
        with pytest.raises(ValueError, match="no class of the training data has rows enough"):  # so it was read
            text_classification.prepare(argv)


def test_a_folder_of_save_to_disk_under_the_flag_of_a_file():
    rows = table(text=["a", "b"], label=[0, 1])
    rows.save_to_disk("one")
    datasets.DatasetDict(train=rows).save_to_disk("many")
    assert load_file("train_file", "one").column_names == ["text", "label"]
    with pytest.raises(ValueError, match="holds the splits train; give it as --dataset_name many"):
        load_file("train_file", "many")


def test_slices_of_splits_and_nested_columns():
    rows = table(data=[{"text": f"t{i}", "n": i} for i in range(20)], label=[0, 1] * 10)
    datasets.DatasetDict(train=rows).save_to_disk("mine")
    argv = ["--dataset_name", "mine", "--text_column_name", "data.text", "--output_dir", "x"]
    slices = ["--train_split_name", "train[:50%]", "--validation_split_name", "train[16:]"]
    job = text_classification.prepare([*argv, *slices])
    assert (len(job.trainer.train_dataset), len(job.trainer.eval_dataset)) == (10, 4)
    with pytest.raises(ValueError, match="train_split_name: 'train\\[a:\\]' could not be loaded"):
        text_classification.prepare([*argv, "--train_split_name", "train[a:]"])


def test_conll(tmp_path):
    text = "-DOCSTART- -X- O\n\n# id = 1\nEU NNP B-ORG\nrejects VB O\n\n\nPeter\tB-PER\n# O\n"
    (tmp_path / "t.conll").write_text(text)
    rows = read_conll("t.conll")
    assert rows["tokens"][:] == [["EU", "rejects"], ["Peter", "#"]] and rows["tags"][:] == [["B-ORG", "O"], ["B-PER", "O"]]
    assert encode_tags({"train": rows}, "tokens", "tags")[1] == ["B-ORG", "B-PER", "O"]
    (tmp_path / "bad.conll").write_text("EU B-ORG\nrejects\n")
    with pytest.raises(ValueError, match="line 2 has a single column, 'rejects'"):
        read_conll("bad.conll")
    (tmp_path / "counted.conll").write_text("1\tAnna\tB-PER\n2\tsings\tO\n\n1\tBob\tB-PER\n")
    with pytest.raises(ValueError, match="the first column counts the words"):
        read_conll("counted.conll")


def test_squad_as_it_is_distributed(tmp_path):
    qas = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": "2", "question": "When?", "is_impossible": True, "answers": []},
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ann came.", "qas": qas}]}]}))
    checked = check_answers(read_squad("squad.json"), "question", "context", "answers", "train")
    assert checked["texts"][:] == [["Ann"], []] and checked["start"][:] == [0, -1]
    (tmp_path / "rows.json").write_text('[{"question": "Who?", "context": "Ann", "answers": "Ann"}]')
    assert read_squad("rows.json").column_names == ["question", "context", "answers"]


def test_compressed_texts_of_other_layouts(tmp_path):
    (tmp_path / "t.conll.gz").write_bytes(gzip.compress(b"EU B-ORG\n\nPeter B-PER\n"))
    assert load_file("train_file", "t.conll.gz", CONLL_FORMATS)["tokens"][:] == [["EU"], ["Peter"]]
    squad = {"data": [{"paragraphs": [{"context": "Ann came.", "qas": [{"question": "Who?"}]}]}]}
    (tmp_path / "s.json.gz").write_bytes(gzip.compress(json.dumps(squad).encode()))
    assert load_file("train_file", "s.json.gz", SQUAD_FORMATS)["question"][:] == ["Who?"]


def test_words_without_tags(tmp_path):
    (tmp_path / "words.conll").write_text("EU\nrejects\n\nPeter B-PER\n")
    assert read_conll("words.conll", tagged=False).to_dict() == {"tokens": [["EU", "rejects"], ["Peter"]]}


def test_answers_as_a_list_of_strings():
    rows = table(question=["Who?", "?"], context=["Ann and Bob", "Bob"], answers=[["Bob", "Ann"], []])
    checked = check_answers(rows, "question", "context", "answers", "train")
    assert checked["texts"][:] == [["Bob", "Ann"], []] and checked["start"][:] == [8, -1]


@pytest.mark.parametrize(
    "columns",
    [
        {"question": ["Q"], "choices": [{"text": ["x", "y"], "label": ["A", "B"]}], "answerKey": ["B"]},
        {"question": ["Q"], "choices": [["x", "y"]], "answerKey": ["B"]},
        {"article": ["Q"], "question": ["?"], "options": [["x", "y"]], "answer": ["B"]},
        {"sent1": ["Q"], "sent2": ["He"], "ending0": ["x"], "ending1": ["y"], "label": [1], "video-id": ["v"]},
    ],
    ids=["ARC", "letters", "RACE", "SWAG"],
)
def test_layouts_of_multiple_choice(columns):
    rows = usual_layout(table(**columns), "train")
    checked = check_choices({"train": rows}, "question", ["choices"], "label")["train"]
    assert checked["labels"][0] == 1 and checked["choices"][0][1].endswith("y") and checked["question"][0].startswith("Q")


def test_other_layouts_stay_as_they_are():
    rows = table(question=["Q"], choices=[["x", "y"]], label=[0])
    assert usual_layout(rows, "train") is rows
