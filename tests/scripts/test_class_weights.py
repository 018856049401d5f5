"""`--class_weights` of the tasks: where it fits, and the weights that it means for their data."""

import pytest
import torch

from maxsup_hf.cli import main
from maxsup_hf.scripts import image_classification, semantic_segmentation, text_classification, token_classification
from maxsup_hf.scripts.common import run
from maxsup_hf.trainer.class_weights import weights_for_training
from tests.scripts.conftest import NEEDS_TORCHVISION, NO_SEGFORMER, image_folder, texts

CLASSIFYING = ("image-classification", "text-classification", "token-classification", "semantic-segmentation")
TASKS = (*CLASSIFYING, "language-modeling", "question-answering", "multiple-choice", "sequence-to-sequence")


def weights(job):
    trainer = job.trainer
    return weights_for_training(trainer.args.class_weights, trainer.model, trainer.train_dataset)


@pytest.mark.parametrize("task", TASKS)
def test_in_the_help(task, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", task, "--help"])
    assert stop.value.code == 0 and "--class_weights" in capsys.readouterr().out


@pytest.mark.parametrize("task", [task for task in TASKS if task not in CLASSIFYING])
@pytest.mark.parametrize("how", ["command line", "config"])
def test_refused_where_there_are_no_classes_before_data_are_read(task, how, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("class_weights: [1, 2]\n")
    given = ["--class_weights", "balanced"] if how == "command line" else ["--config", "run.yaml"]
    with pytest.raises(SystemExit) as stop:
        main(["train", task, *given, "--train_file", "missing.csv"])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(said.splitlines()) == 1
    assert "error: class_weights are for tasks that classify" in said and f"{task} does not" in said


@pytest.mark.parametrize(
    "given",
    ["class_weights: [3, 1e-3]", "class_weights: {good: 1e-3, bad: 3}", "class_weights: 3,1e-3"],
    ids=["list", "mapping", "text"],
)
def test_in_a_config_file(given, tmp_path):
    (tmp_path / "run.yaml").write_text(given + "\n")
    argv = ["--train_file", texts(), "--output_dir", "x"]
    job = text_classification.prepare([*argv, "--config", "run.yaml"])
    assert weights(job).tolist() == pytest.approx([3.0, 1e-3])  # bad, good
    job = text_classification.prepare([*argv, "--config", "run.yaml", "--class_weights", "1,2"])
    assert weights(job).tolist() == [1.0, 2.0], "the command line wins"


@pytest.mark.parametrize(
    ("given", "message"),
    [("even", "class_weights must be 'balanced'"), ("1,-1", r"class_weights\[1\] must be a finite number")],
)
def test_a_bad_value_is_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "text-classification", "--train_file", "missing.csv", "--class_weights", given])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and len(said.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        text_classification.prepare(["--train_file", "missing.csv", "--class_weights", given])


def test_balanced_texts():
    train = texts(labels=["good"] * 6 + ["bad"] * 2)
    argv = ["--train_file", train, "--validation_file", train, "--output_dir", "x", "--class_weights", "balanced"]
    assert weights(text_classification.prepare(argv)).tolist() == pytest.approx([8 / (2 * 2), 8 / (2 * 6)])


def test_balanced_images(tmp_path):
    image_folder(tmp_path / "train", names=["cat"], count=3)
    image_folder(tmp_path / "train", names=["dog"], count=9)
    argv = ["--train_dir", "train", "--validation_dir", "train", "--output_dir", "x", "--class_weights", "balanced"]
    assert weights(image_classification.prepare(argv)).tolist() == pytest.approx([12 / (2 * 3), 12 / (2 * 9)])


def test_balanced_tokens():
    job = token_classification.prepare(["--output_dir", "x", "--class_weights", "balanced", "--max_train_samples", "50"])
    labels = torch.cat([torch.tensor(row["labels"]) for row in job.trainer.train_dataset])
    labels = labels[labels != -100]
    found = weights(job)
    assert found.tolist() == pytest.approx((len(labels) / (len(found) * torch.bincount(labels))).tolist())


@pytest.mark.skipif(NO_SEGFORMER, reason=NEEDS_TORCHVISION)
def test_balanced_pixels():
    argv = ["--output_dir", "x", "--class_weights", "balanced", "--max_train_samples", "40"]
    job = semantic_segmentation.prepare(argv)
    masks = torch.stack([torch.as_tensor(row["labels"]) for row in job.trainer.train_dataset])
    counts = torch.bincount(masks[masks != 255], minlength=job.trainer.model.config.num_labels)
    assert weights(job).tolist() == pytest.approx((counts.sum() / (len(counts) * counts)).tolist())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,2,3", "one weight for each of the model's 2 classes, got 3"),
        ('{"good": 1, "yak": 2}', "got unknown: 'yak'; missing: 'bad'"),
    ],
)
def test_what_does_not_fit_the_data_is_one_line(given, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", "text-classification", "--train_file", texts(), "--class_weights", given, "--output_dir", "x"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 2 and line.startswith("error: class_weights must") and message in line
    assert not list((tmp_path / "x").glob("*"))


def test_the_run_has_numbers_and_says_them(caplog):
    train = texts(labels=["good"] * 6 + ["bad"] * 2)
    argv = ["--train_file", train, "--validation_file", train, "--output_dir", "x", "--class_weights", "balanced"]
    found = []
    caplog.set_level("INFO", "maxsup_hf")
    run.main(text_classification.prepare, argv, act=lambda job: found.append(job.trainer.args.class_weights))
    assert found[0] == pytest.approx([2.0, 2 / 3]) and "class_weights='balanced': bad 2, good 0.6667" in caplog.text
