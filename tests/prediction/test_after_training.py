"""`maxsup-hf train … --do_predict` writes what `maxsup-hf predict` writes with the trained model, for every task."""

import csv
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from maxsup_hf import cli
from maxsup_hf.data.builtin import digits, names_in_languages
from maxsup_hf.data.builtin_names import choices_of_names, questions_about_names, tagged_names
from maxsup_hf.data.builtin_scenes import digit_scenes
from maxsup_hf.data.builtin_texts import python_documentation, translated_phrases
from tests.scripts.conftest import NEEDS_TORCHVISION, NO_SEGFORMER, image_folder, results, texts

ROWS = {
    "image-classification": digits,
    "text-classification": names_in_languages,
    "token-classification": tagged_names,
    "question-answering": questions_about_names,
    "multiple-choice": choices_of_names,
    "sequence-to-sequence": translated_phrases,
    "language-modeling": python_documentation,
    "semantic-segmentation": digit_scenes,
    "sft": lambda: translated_phrases().rename_columns({"source": "prompt", "target": "completion"}),
}
FLAGS = {
    "language-modeling": (["--block_size", "32"], []),
    "sequence-to-sequence": (["--source_prefix", "say: "], ["--source_prefix", "say: "]),
    "sft": (["--max_length", "32"], []),
}
LABELS = {  # of the tasks whose test data needs none
    "image-classification": "label",
    "text-classification": "label",
    "token-classification": "tags",
    "question-answering": "answers",
    "sequence-to-sequence": "target",
    "semantic-segmentation": "mask",
}
BATCH = ["--per_device_eval_batch_size", "16"]
SHORT = [*BATCH, "--max_steps", "2", "--save_strategy", "no", "--eval_strategy", "no", "--do_predict", "true"]


def read(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("task", cli.tasks())
def test_the_same_predictions_as_later(task, capsys):
    if task == "sft":
        pytest.importorskip("trl", reason="needs TRL (pip install -e '.[sft]')")
    if task == "semantic-segmentation" and NO_SEGFORMER:
        pytest.skip(NEEDS_TORCHVISION)
    rows = ROWS[task]()
    rows = rows.shuffle(seed=0).select(range(min(40, len(rows))))
    rows = rows.flatten_indices().add_column("id", [f"row {i}" for i in range(len(rows))])
    rows.to_parquet("rows.parquet")
    train, predict = FLAGS.get(task, ([], []))
    files = ["--train_file", "rows.parquet", "--test_file", "rows.parquet", "--predictions_file", "first.jsonl"]
    cli.main(["train", task, *files, *SHORT, *train, "--output_dir", "run"])
    said = capsys.readouterr().out
    if task in ("image-classification", "text-classification"):
        assert f"accuracy: {results('run')['test_accuracy']:.4f} (" in said
        with open("run/per_class.csv", newline="", encoding="utf-8") as file:
            support = Counter(split for row in csv.DictReader(file) for split in [row["split"]] * int(row["support"]))
        assert support == {"validation": results("run")["eval_samples"], "test": 40}
    cli.main(["predict", "run", "--test_file", "rows.parquet", "--output_file", "second.jsonl", *predict])
    first, second = read("first.jsonl"), read("second.jsonl")
    assert [row["id"] for row in first] == [row["id"] for row in second] == rows["id"][:]
    for a, b in zip(first, second, strict=True):
        if task == "semantic-segmentation":
            assert np.array_equal(*(np.asarray(Image.open(row["prediction"])) for row in (a, b)))
        else:
            assert a["prediction"] == b["prediction"]
            assert a.get("probability") == pytest.approx(b.get("probability"), abs=1e-5)
    _evaluate_again(task, train)


def _evaluate_again(task, flags):
    """The model that was saved, without training data: the same results and predictions."""
    files = ["--test_file", "rows.parquet", "--predictions_file", "third.jsonl", "--do_predict", "true"]
    only = ["--do_train", "false", "--model_name_or_path", "run", "--seed", "7", *BATCH]
    cli.main(["train", task, *files, *only, *flags, "--output_dir", "again"])
    before, now = results("run"), results("again")
    others = ("runtime", "second", "num_tokens")
    of_test = [name for name in before if name.startswith("test_") and not name.endswith(others)]
    assert len(of_test) > 1 and {name for name in now if name.startswith("eval_")} == set()
    for name in of_test:
        assert now[name] == pytest.approx(before[name], rel=1e-4), name
    _same(task, "third.jsonl")
    if task in LABELS:
        datasets.Dataset.from_parquet("rows.parquet").remove_columns(LABELS[task]).to_parquet("unlabelled.parquet")
        files = ["--validation_file", "rows.parquet", "--test_file", "unlabelled.parquet"]
        only += ["--do_eval", "false", "--do_predict", "true", "--predictions_file", "fourth.jsonl"]
        cli.main(["train", task, *files, *only, *flags, "--output_dir", "unlabelled"])
        _same(task, "fourth.jsonl")


def _same(task, name):
    first, now = read("first.jsonl"), read(name)
    assert [row["id"] for row in now] == [row["id"] for row in first]
    if task != "semantic-segmentation":
        assert [row["prediction"] for row in now] == [row["prediction"] for row in first]


def test_the_rows_are_those_that_are_tested_and_a_model_may_be_only_used(tmp_path, capsys):
    image_folder(tmp_path / "photos")
    data = ["--train_dir", "photos", "--test_dir", "photos", "--max_test_samples", "5"]
    cli.main(["train", "image-classification", *data, "--max_steps", "2", "--save_strategy", "no", "--output_dir", "run"])
    tested = results("run")
    words = ["--model_name_or_path", "run", "--do_train", "false", "--do_eval", "false", "--do_predict", "true"]
    cli.main(["train", "image-classification", *data, *words, "--output_dir", "only"])
    assert {path.name for path in Path("only").iterdir()} == {"config.yaml", "predictions.csv"}
    with open("only/predictions.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert all(row["label"] == Path(row["file"]).parent.name for row in written)
    right = np.mean([row["prediction"] == row["label"] for row in written])
    assert len(written) == 5 and right == pytest.approx(tested["test_accuracy"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "do_predict: there is no test data to predict; give --test_file"),
        (["--test_file", "train.csv", "--predictions_file", "a.txt"], "predictions_file: 'a.txt' must end in one of .csv"),
        (["--test_file", "train.csv", "--predictions_file", "no/a.csv"], "the folder of 'no/a.csv' does not exist"),
        (["--test_file", "train.csv", "--predictions_file", "train.csv"], "predictions_file: 'train.csv' exists"),
        (["--do_predict", "false", "--predictions_file", "a.csv"], "predictions_file is written with --do_predict true"),
        (["--do_predict", "false", "--do_train", "false", "--do_eval", "false"], "do_train, do_eval and do_predict are all"),
    ],
)
def test_what_cannot_be_predicted_is_one_line_before_training(flags, message, capsys):
    texts()
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "text-classification", "--train_file", "train.csv", "--do_predict", "true", *flags])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said.startswith("error: ") and message in said
