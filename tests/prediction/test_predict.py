"""`maxsup-hf predict` on models that `maxsup-hf train` made: what it writes is what the run evaluated."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maxsup_hf import cli
from maxsup_hf.data.builtin import digits, names_in_languages
from maxsup_hf.data.builtin_names import choices_of_names, questions_about_names, tagged_names
from maxsup_hf.data.builtin_scenes import digit_scenes
from maxsup_hf.data.builtin_texts import python_documentation, translated_phrases
from maxsup_hf.metrics import chrf, exact_match
from maxsup_hf.prediction.tasks import HEADS, TASKS, find_task
from tests.scripts.conftest import image_folder, picture, results, texts

SHORT = ["--max_steps", "12", "--save_strategy", "no", "--eval_strategy", "no", "--output_dir", "run"]


def train(task, rows, *flags):
    """A short run that is tested on the same rows that will be predicted, and its results."""
    rows.to_parquet("rows.parquet")
    files = ["--train_file", "rows.parquet", "--validation_file", "rows.parquet"]
    cli.main(["train", task, *files, *SHORT, *flags])
    return results("run")


def predict(*flags, capsys=None):
    if capsys is not None:
        capsys.readouterr()
    cli.main(["predict", "run", *flags])
    return capsys.readouterr().out if capsys is not None else None


def read(path="predictions.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("task", "rows"), [("image-classification", digits), ("text-classification", names_in_languages)])
def test_classes(task, rows, capsys):
    found = train(task, rows().shuffle(seed=0).select(range(150)))
    said = predict("--test_file", "rows.parquet", "--top_k", "3", capsys=capsys)
    assert f"accuracy: {found['eval_accuracy']:.4f} (" in said
    written = read()
    assert len(written) == 150 and float(written[0]["probability"]) >= float(written[0]["probability_2"]) > 0
    right = np.mean([row["prediction"] == row["label"] for row in written])
    assert right == pytest.approx(found["eval_accuracy"])


def test_tags():
    rows = tagged_names().select(range(60))
    found = train("token-classification", rows)
    predict("--test_file", "rows.parquet", "--output_file", "tags.jsonl")
    names = rows.features["tags"].feature.names
    right = [
        tag == names[label]
        for row, labels in zip(read_lines("tags.jsonl"), rows["tags"], strict=True)
        for tag, label in zip(row["prediction"], labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(found["eval_accuracy"])


def test_answers():
    rows = questions_about_names(60)
    found = train("question-answering", rows)
    predict("--test_file", "rows.parquet", "--output_file", "answers.parquet")
    written = pq.read_table("answers.parquet").to_pylist()
    scores = [exact_match(row["prediction"], each["text"]) for row, each in zip(written, rows["answers"], strict=True)]
    assert np.mean(scores) == pytest.approx(found["eval_exact_match"])


def test_choices():
    rows = choices_of_names(60)
    found = train("multiple-choice", rows)
    predict("--test_file", "rows.parquet")
    right = [int(row["index"]) == label for row, label in zip(read(), rows["label"], strict=True)]
    assert np.mean(right) == pytest.approx(found["eval_accuracy"])


def test_translations():
    rows = translated_phrases().select(range(30))
    found = train("sequence-to-sequence", rows)
    predict("--test_file", "rows.parquet", "--label_column_name", "target")
    written = read()
    assert chrf([row["prediction"] for row in written], rows["target"]) == pytest.approx(found["eval_chrf"], abs=1e-6)
    assert [row["label"] for row in written] == list(rows["target"])


@pytest.mark.parametrize("mlm", [False, True])
def test_texts(mlm):
    train("language-modeling", python_documentation().select(range(20)), "--mlm", str(mlm), "--block_size", "32")
    with open("new.csv", "w", encoding="utf-8") as file:
        file.write("text\nthe [MASK] of a [MASK]\nan [MASK]\n")
    predict("--test_file", "new.csv", "--max_new_tokens", "4", "--output_file", "out.jsonl")
    written = [row["prediction"] for row in read_lines("out.jsonl")]
    assert [len(tokens) for tokens in written] == [2, 1] if mlm else all(isinstance(text, str) for text in written)


def test_masks():
    rows = digit_scenes().select(range(12))
    found = train("semantic-segmentation", rows)
    predict("--test_file", "rows.parquet", "--output_file", "masks.csv")
    predicted = np.stack([np.asarray(Image.open(row["prediction"])) for row in read("masks.csv")])
    truth = np.stack([np.asarray(mask) for mask in rows["mask"]])
    assert (predicted == truth)[truth != 255].mean() == pytest.approx(found["eval_pixel_accuracy"], abs=1e-3)


def test_a_folder_of_images_without_labels(tmp_path):
    image_folder(tmp_path / "photos")
    cli.main(["train", "image-classification", "--train_dir", "photos", *SHORT])
    (tmp_path / "new").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "new" / f"{i}.png")
    predict("--test_dir", "new")
    assert [row["file"] for row in read()] == ["0.png", "1.png", "2.png"]
    assert {row["prediction"] for row in read()} <= {"cat", "dog"} and "label" not in read()[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --test_file, --test_dir and --dataset_name, got none"),
        (["--test_file", "no.csv"], "test_file: there is no file 'no.csv'"),
        (["--test_file", "train.csv", "--test_dir", "x"], "got test_file and test_dir"),
        (["--test_file", "train.csv", "--output_file", "out.txt"], "output_file: 'out.txt' must end in one of .csv, .jsonl"),
        (["--test_file", "train.csv", "--output_file", "no/out.csv"], "the folder of 'no/out.csv' does not exist"),
        (["--test_file", "train.csv", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--test_file", "train.csv"], "model: there is no folder './nowhere'"),
    ],
)
def test_wrong_input_is_one_line(flags, message, capsys):
    texts()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", "./nowhere", *flags])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said.startswith("error: ") and message in said


def test_every_head_has_a_task():
    assert set(HEADS.values()) == set(TASKS) and find_task(["ViTForImageClassification"]) == "image-classification"
    with pytest.raises(ValueError, match="name its task with --task"):
        find_task(["BertModel"])


@pytest.fixture
def classifier(tmp_path):
    texts()
    cli.main(["train", "text-classification", "--train_file", "train.csv", "--train_val_split", "0.5", *SHORT])


def one_line(capsys, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", "run", *flags])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said.startswith("error: ")
    return said


def test_nothing_is_lost_and_nothing_is_guessed(classifier, tmp_path, capsys):
    image_folder(tmp_path / "photos")
    assert "'train.csv' exists; name another file, or give --overwrite" in one_line(
        capsys, "--test_file", "train.csv", "--output_file", "train.csv"
    )
    assert "test_dir holds images, and the model is for text-classification" in one_line(capsys, "--test_dir", "photos")
    assert "the rows have no column 'klass'" in one_line(capsys, "--test_file", "train.csv", "--label_column_name", "klass")
    assert "error: " in one_line(capsys, "--test_file", "train.csv", "--device", "nowhere")
    (tmp_path / "semi.csv").write_text("text;id\ngood day;a7\n")
    predict("--test_file", "semi.csv", "--csv_delimiter", ";")
    assert read()[0]["id"] == "a7" and read()[0]["text"] == "good day"
    predict("--test_file", "semi.csv", "--csv_delimiter", ";", "--overwrite")
    for file in (tmp_path / "run").glob("tokenizer*"):
        file.unlink()
    assert "there is no tokenizer beside it" in one_line(capsys, "--test_file", "train.csv", "--output_file", "new.csv")


def test_the_accuracy_is_that_of_the_rows_whose_labels_are_classes(classifier, capsys):
    rows = [{"text": "good day", "label": label} for label in ("good", "bad", None, "ugly")]
    with open("labels.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    said = predict("--test_file", "labels.jsonl", capsys=capsys)
    assert "2 rows have no class of the model as their label: None, ugly" in said and "accuracy: 0.5000 (1 of 2)" in said
    with open("indices.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": "good day", "label": label}) + "\n" for label in (0, 1, -1, 7))
    said = predict("--test_file", "indices.jsonl", "--overwrite", capsys=capsys)
    assert "2 rows have no class of the model as their label: -1, 7" in said and "(1 of 2)" in said


def test_lines_of_text_are_rows(classifier, tmp_path):
    (tmp_path / "lines.txt").write_text("good day\nbad day\n\nbad night\n")
    predict("--test_file", "lines.txt")
    assert [row["text"] for row in read()][:2] == ["good day", "bad day"]
