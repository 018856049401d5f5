"""`maxsup-hf predict` on models that `maxsup-hf train` made: what it writes is what the run evaluated."""

import csv
import json
import shutil
from pathlib import Path

import datasets
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
from maxsup_hf.prediction.data import write_rows
from maxsup_hf.prediction.tasks import HEADS, TASKS, find_task
from tests.scripts.conftest import image_folder, picture, results, texts, write

SHORT = ["--max_steps", "12", "--save_strategy", "no", "--eval_strategy", "no", "--output_dir", "run"]


def train(task, rows, *flags):
    """A short run that is tested on the same rows that will be predicted, and its results."""
    rows.to_parquet("rows.parquet")
    files = ["--train_file", "rows.parquet", "--validation_file", "rows.parquet"]
    cli.main(["train", task, *files, *SHORT, *flags])
    return results("run")


def written(*flags, capsys=None):
    """The rows of a prediction, read back from each of the formats; and what was printed at the last."""
    for ending in READERS:
        said = predict(*flags, "--output_file", f"out.{ending}", capsys=capsys)
    return [reader(f"out.{ending}") for ending, reader in READERS.items()], said


def words(value):
    """A list, which is a text in csv."""
    return value.split(" ") if isinstance(value, str) else value


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


READERS = {"csv": read, "jsonl": read_lines, "parquet": lambda path: pq.read_table(path).to_pylist()}


@pytest.mark.parametrize("ending", READERS)
def test_no_file_of_predictions_holds_a_token(ending, tmp_path):
    """Parquet is compressed, so nothing would find it there."""
    path = tmp_path / f"out.{ending}"
    write_rows(str(path), [{"text": f"log in with hf_{'a1B2' * 8}", "prediction": ["x", "y"], "probability": 0.5}])
    (row,) = READERS[ending](path)
    assert row["text"] == "log in with <token>" and words(row["prediction"]) == ["x", "y"]
    assert float(row["probability"]) == 0.5


@pytest.mark.parametrize(("task", "rows"), [("image-classification", digits), ("text-classification", names_in_languages)])
def test_classes(task, rows, capsys):
    found = train(task, rows().shuffle(seed=0).select(range(150)))
    formats, said = written("--test_file", "rows.parquet", "--top_k", "3", capsys=capsys)
    assert f"accuracy: {found['eval_accuracy']:.4f} (" in said
    for rows in formats:
        assert len(rows) == 150 and float(rows[0]["probability"]) >= float(rows[0]["probability_2"]) > 0
        assert np.mean([row["prediction"] == row["label"] for row in rows]) == pytest.approx(found["eval_accuracy"])


def test_tags():
    rows = tagged_names().select(range(60))
    found = train("token-classification", rows)
    names = rows.features["tags"].feature.names
    for predicted in written("--test_file", "rows.parquet")[0]:
        right = [
            tag == names[label]
            for row, labels in zip(predicted, rows["tags"], strict=True)
            for tag, label in zip(words(row["prediction"]), labels, strict=True)
        ]
        assert np.mean(right) == pytest.approx(found["eval_accuracy"])


def test_tags_of_long_sentences(caplog):
    """Every word has a tag, that of a window in which it is not at the edge; words without tags may come as CoNLL."""
    rows = tagged_names().select(range(60))
    train("token-classification", rows)
    long = [token for tokens in rows["tokens"][:40] for token in tokens]
    Path("long.conll").write_text("\n".join(long) + "\n\nAnna\n", encoding="utf-8")
    predict("--test_file", "long.conll", "--max_seq_length", "32", "--output_file", "long.jsonl")
    (first, second), names = read_lines("long.jsonl"), set(rows.features["tags"].feature.names)
    assert first["words"] == long and set(first["prediction"]) <= names
    assert second["words"] == ["Anna"] and len(second["prediction"]) == 1
    predict("--test_file", "long.conll", "--output_file", "whole.jsonl")
    whole = read_lines("whole.jsonl")[0]["prediction"]
    assert np.mean([a == b for a, b in zip(first["prediction"], whole, strict=True)]) > 0.6
    assert "no tag" not in caplog.text


def test_answers():
    rows = questions_about_names(60)
    found = train("question-answering", rows)
    for predicted in written("--test_file", "rows.parquet")[0]:
        pairs = zip(predicted, rows["answers"], strict=True)
        assert np.mean([exact_match(row["prediction"], each["text"]) for row, each in pairs]) == pytest.approx(
            found["eval_exact_match"]
        )
    _answers_from_every_form(rows, [row["prediction"] for row in predicted])


def _answers_from_every_form(rows, expected):
    """SQuAD's own json, plain rows and a saved data set, with and without answers."""
    asked, texts = rows.remove_columns("answers"), [each["text"] for each in rows["answers"]]
    qas = [
        {"id": f"q{i}", "question": row["question"], "answers": [], "context": row["context"]} for i, row in enumerate(asked)
    ]
    for answered in (True, False):
        for qa, row in zip(qas, rows, strict=True):
            found = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            qa["answers"] = [{"text": text, "answer_start": start} for text, start in found] if answered else []
        paragraphs = [{"context": qa["context"], "qas": [qa]} for qa in qas]
        Path("squad.json").write_text(json.dumps({"version": "2", "data": [{"paragraphs": paragraphs}]}))
        predict("--test_file", "squad.json", "--output_file", "squad.jsonl", "--overwrite")
        predicted = read_lines("squad.jsonl")
        assert [row["prediction"] for row in predicted] == expected
        assert [row["id"] for row in predicted] == [qa["id"] for qa in qas]
        assert [row["label"] for row in predicted] == (texts if answered else [[]] * len(texts))
    asked.to_csv("asked.csv", index=False)
    asked.add_column("answer", [each[0] for each in texts]).to_csv("answered.csv", index=False)
    asked.to_json("lines.json", lines=True)
    asked.to_parquet("asked.parquet")
    rows.save_to_disk("saved")
    for name in ("asked.csv", "answered.csv", "lines.json", "asked.parquet", "saved"):
        predict("--test_dir" if name == "saved" else "--test_file", name, "--overwrite", "--output_file", "other.jsonl")
        assert [row["prediction"] for row in read_lines("other.jsonl")] == expected, name


def test_choices():
    rows = choices_of_names(60)
    found = train("multiple-choice", rows)
    for predicted in written("--test_file", "rows.parquet")[0]:
        right = [int(row["index"]) == label for row, label in zip(predicted, rows["label"], strict=True)]
        assert np.mean(right) == pytest.approx(found["eval_accuracy"])
        assert [row["question"] for row in predicted] == rows["question"][:]


def test_translations():
    rows = translated_phrases().select(range(30))
    found = train("sequence-to-sequence", rows)
    for predicted in written("--test_file", "rows.parquet", "--label_column_name", "target")[0]:
        texts = [row["prediction"] for row in predicted]
        assert chrf(texts, rows["target"]) == pytest.approx(found["eval_chrf"], abs=1e-6)
        assert [row["label"] for row in predicted] == list(rows["target"])
        assert [row["source"] for row in predicted] == list(rows["source"])


@pytest.mark.parametrize("mlm", [False, True])
def test_texts(mlm, caplog, capsys):
    train("language-modeling", python_documentation().select(range(20)), "--mlm", str(mlm), "--block_size", "32")
    with open("new.csv", "w", encoding="utf-8") as file:
        file.write("text\nthe [MASK] of a [MASK]\nan [MASK]\n")
    predict("--test_file", "new.csv", "--max_new_tokens", "4", "--output_file", "out.jsonl")
    written = [row["prediction"] for row in read_lines("out.jsonl")]
    if mlm:
        assert [len(tokens) for tokens in written] == [2, 1]
        return
    assert all(isinstance(text, str) for text in written)
    write("long.jsonl", {"text": ["the statement " * 40 + "is"]})
    predict("--test_file", "long.jsonl", "--max_new_tokens", "100", "--output_file", "long.csv")
    assert "cut to their last 16 tokens" in caplog.text and "max_new_tokens is lowered to 16" in caplog.text
    write("empty.jsonl", {"text": ["the", ""]})
    assert "row 1 of the test data is empty" in one_line(capsys, "--test_file", "empty.jsonl")


def test_masks(capsys):
    rows = digit_scenes().select(range(12))
    found = train("semantic-segmentation", rows)
    truth = np.stack([np.asarray(mask) for mask in rows["mask"]])
    for ending, reader in READERS.items():
        predict("--test_file", "rows.parquet", "--output_file", f"{ending}.{ending}")
        predicted = np.stack([np.asarray(Image.open(row["prediction"])) for row in reader(f"{ending}.{ending}")])
        assert (predicted == truth)[truth != 255].mean() == pytest.approx(found["eval_pixel_accuracy"], abs=1e-3)
    for name in ("1.png", "1.jpg"):
        Path("photos").mkdir(exist_ok=True)
        picture(0, 40).save(f"photos/{name}")
    assert "the masks go into 'photos', which is not empty" in one_line(
        capsys, "--test_dir", "photos", "--output_file", "photos.csv", "--overwrite"
    )
    predict("--test_dir", "photos", "--output_file", "masks.csv")
    assert [row["prediction"] for row in read("masks.csv")] == ["masks/1.jpg.png", "masks/1.png.png"]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """The folders of a classifier of images and of one of texts, trained for a few steps, with their data."""
    folders = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.chdir(folders[0])
        image_folder(folders[0] / "photos")
        cli.main(["train", "image-classification", "--train_dir", "photos", *SHORT])
        patch.chdir(folders[1])
        texts()
        cli.main(["train", "text-classification", "--train_file", "train.csv", "--train_val_split", "0.5", *SHORT])
    return folders


@pytest.fixture
def image_classifier(classifiers, tmp_path):
    shutil.copytree(classifiers[0], tmp_path, dirs_exist_ok=True)


def test_a_folder_of_images_without_labels(image_classifier, tmp_path, caplog):
    """It is read as folders of classes are: links are followed, and what tools leave behind is not an image."""
    image_folder(tmp_path / "elsewhere", ("linked",), 1)
    image_folder(tmp_path / "new", (".ipynb_checkpoints",), 1)
    for i in range(2):
        picture(i).save(tmp_path / "new" / f"{i}.png")
    (tmp_path / "new" / "linked").symlink_to(tmp_path / "elsewhere" / "linked")
    (tmp_path / "new" / "phone.HEIC").write_text("")
    predict("--test_dir", "new")
    assert [row["file"] for row in read()] == ["0.png", "1.png", "linked/0.png"]
    assert {row["prediction"] for row in read()} <= {"cat", "dog"} and "label" not in read()[0]
    assert "1 file .HEIC skipped" in caplog.text


def test_broken_images_are_all_named_or_skipped(image_classifier, tmp_path, capsys):
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "photos" / name).write_text("not an image")
    said = one_line(capsys, "--test_dir", "photos")
    assert "2 of 12 images" in said and "cat/1.png" in said and "dog/2.png" in said and "--skip_broken_images" in said
    assert not Path("predictions.csv").exists()
    formats, said = written("--test_dir", "photos", "--skip_broken_images", capsys=capsys)
    for rows in formats:
        empty = [row["file"] for row in rows if not row["prediction"]]
        assert len(rows) == 12 and empty == ["cat/1.png", "dog/2.png"] and rows[0]["probability"]
    assert "of 10)" in said and "2 rows have no prediction" in said


def test_rows_keep_the_names_of_their_images(image_classifier, tmp_path):
    write("paths.csv", {"image_path": [f"photos/cat/{i}.png" for i in range(3)], "image_id": [7, 8, 9]})
    predict("--test_file", "paths.csv")
    names = [(row["image_id"], row["image_path"]) for row in read()]
    assert names == [(str(7 + i), f"photos/cat/{i}.png") for i in range(3)]
    predict("--dataset_name", "photos", "--split", "train[:3]", "--overwrite", "--bf16", "--dataloader_num_workers", "1")
    assert [Path(row["file"]).name for row in read()] == ["0.png", "1.png", "2.png"] and read()[0]["label"] == "cat"


def test_every_head_has_a_task():
    assert set(HEADS.values()) == set(TASKS) and find_task(["ViTForImageClassification"]) == "image-classification"
    assert all(find_task(["Net", task.auto_class.__name__]) == name for name, task in TASKS.items())
    with pytest.raises(ValueError, match="name its task with --task"):
        find_task(["BertModel"])


@pytest.fixture
def classifier(classifiers, tmp_path):
    shutil.copytree(classifiers[1], tmp_path, dirs_exist_ok=True)


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
