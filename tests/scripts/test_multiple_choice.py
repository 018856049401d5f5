"""Multiple choice, from input to saved model."""

import datasets
import pytest
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from maxsup_hf.scripts import multiple_choice
from maxsup_hf.scripts.multiple_choice import prepare
from tests.scripts.conftest import results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "20", "--disable_tqdm", "true"]
QUESTIONS = ["an animal", "a colour", "an animal", "a colour"] * 2
CHOICES = [["cat", "red"], ["dog", "blue"], ["green", "dog"], ["red", "cat"]] * 2
LABELS = [0, 1, 1, 0] * 2


def puzzles(name="train.jsonl", questions=QUESTIONS, choices=CHOICES, labels=LABELS):
    return write(name, {"question": questions, "choices": choices, "label": labels})


def run(*argv):
    multiple_choice.main([*argv, *SHORT])


def test_without_data(capsys):
    run("--max_train_samples", "500")
    folder = "outputs/multiple-choice"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    assert {"eval_loss", "eval_accuracy", "eval_nll", "eval_ece"} <= set(results(folder))
    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    choices = ["Schweden", "Zulu", "Euro"]  # any number of them
    inputs = tokenizer(["Which is a currency?"] * 3, choices, padding=True, return_tensors="pt")
    assert model(**{name: value[None] for name, value in inputs.items()}).logits.shape == (1, 3)


@pytest.mark.parametrize("extension", ["json", "jsonl", "parquet"])
def test_files_with_a_test_set(extension):
    train, test = puzzles(f"train.{extension}"), puzzles(f"test.{extension}", QUESTIONS[:2], CHOICES[:2], LABELS[:2])
    job = prepare(["--train_file", train, "--test_file", test, "--output_dir", "run"])
    assert list(job.test_dataset["labels"]) == [0, 1]
    assert len(job.trainer.train_dataset) + len(job.trainer.eval_dataset) == 8
    tokenizer = job.trainer.processing_class
    pairs = [tokenizer.decode(ids, skip_special_tokens=True).split() for ids in job.test_dataset[0]["input_ids"]]
    assert pairs == [["an", "animal", "cat"], ["an", "animal", "red"]]


def test_a_column_for_each_choice_and_the_right_one_as_text():
    first, second = ([row[i] for row in CHOICES] for i in range(2))
    right = [row[label] for row, label in zip(CHOICES, LABELS, strict=True)]
    write("train.csv", {"id": list(range(8)), "sent1": QUESTIONS, "ending0": first, "ending1": second, "answer": right})
    argv = ["--train_file", "train.csv", "--validation_file", "train.csv", "--output_dir", "x"]
    job = prepare([*argv, "--choices_column_name", "ending0, ending1"])
    assert list(job.trainer.eval_dataset["labels"]) == LABELS
    with pytest.raises(ValueError, match="choices_column_name.*could not be found by type or name.*ending0"):
        prepare(argv)
    with pytest.raises(TypeError, match="'ending0' of the train data must hold lists.*a column for each choice"):
        prepare([*argv, "--choices_column_name", "ending0"])


def test_learns_from_a_file():
    only_at_the_end = ["--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
    files = ["--train_file", puzzles(), "--validation_file", puzzles("validation.parquet")]
    multiple_choice.main([*files, "--output_dir", "run", "--num_train_epochs", "40", *only_at_the_end])
    found = results("run")
    assert found["eval_accuracy"] == 1.0
    assert found["eval_nll"] == pytest.approx(found["eval_loss"], rel=1e-4)


def test_hub_style_dataset_leaves_out_a_test_split_without_labels():
    rows = {"question": QUESTIONS, "choices": CHOICES, "label": LABELS}
    splits = {"train": rows, "validation": rows, "test": {**rows, "label": [-1] * 8}}
    datasets.DatasetDict({name: datasets.Dataset.from_dict(split) for name, split in splits.items()}).save_to_disk("mine")
    assert prepare(["--dataset_name", "mine", "--output_dir", "x"]).test_dataset is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"choices": [["a", "b"], ["a", "b", "c"]]}, ValueError, "row 1 of the train data has 3 choices, row 0 .* has 2"),
        ({"choices": [["a", "b"], ["a", None]]}, ValueError, "row 1 of the train data has a missing choice"),
        ({"choices": [["a", "b"], None]}, ValueError, "'choices' of the train data has 1 missing values"),
        ({"choices": [["a"], ["b"]]}, ValueError, "row 0 of the train data has 1 choice; it needs at least two"),
        ({"choices": [[1, 2], [3, 4]]}, TypeError, "choices_column_name: column 'choices' .* must hold lists of strings"),
        ({"labels": [0, 2]}, ValueError, r"label_column_name: 2 in row 1 of the train data must be an index in \[0, 2\)"),
        ({"labels": [0, -1]}, ValueError, "label_column_name: -1 in row 1"),
        ({"labels": [0, None]}, ValueError, "'label' of the train data has 1 missing values"),
        ({"labels": ["a", "B"]}, ValueError, "'B' in row 1 of the train data must be an index in .* or one of the choices"),
        ({"labels": [0.5, 1.0]}, TypeError, "label_column_name: .* not (double|float64)"),
        ({"questions": ["x", None]}, ValueError, "'question' of the train data has 1 missing values"),
        ({"questions": [1, 2]}, TypeError, "question_column_name: column 'question' .* must hold strings"),
    ],
)
def test_bad_rows(changes, error, message):
    rows = {"questions": ["x", "y"], "choices": [["a", "b"], ["c", "d"]], "labels": [0, 1]}
    with pytest.raises(error, match=message):
        prepare(["--train_file", puzzles(**{**rows, **changes})])
