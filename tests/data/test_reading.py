"""Flags, the config file, columns, labels and splits: what every task shares."""

import json
import logging

import datasets
import numpy as np
import pytest

from maxsup_hf.data.builtin import LANGUAGES, digits, names_in_languages
from maxsup_hf.data.columns import find_column, is_string
from maxsup_hf.data.labels import encode_labels, find_label_column
from maxsup_hf.data.splits import hold_out_validation, stratified_indices
from maxsup_hf.scripts import text_classification
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.recipes import Recipes
from tests.scripts.conftest import texts, write


def flags(*argv):
    return parse(
        text_classification.TextClassificationArguments,
        list(argv),
        "text-classification",
        Recipes(
            embedded={"num_train_epochs": 11, "learning_rate": 0.25, "weight_decay": 0.5},
            from_scratch={"num_train_epochs": 12},
            fine_tuning={"num_train_epochs": 13},
        ),
    )


# ---- flags and the config file ----


def test_command_line_wins_over_file_wins_over_recipe(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\nnum-train-epochs: 5\nmax_train_samples: 7\nloss: maxsup\n")
    args, training_args = flags("--config", "run.yaml", "--num_train_epochs", "2")
    assert training_args.num_train_epochs == 2  # command line
    assert training_args.learning_rate == 1e-3  # file, and a number although YAML takes it for a string
    assert training_args.weight_decay == 0.5  # recipe
    assert args.max_train_samples == 7
    assert training_args.adam_beta1 == 0.9  # transformers


def test_config_file_may_be_json_and_hold_nested_values(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"loss": "maxsup", "loss_kwargs": {"alpha": 0.3}, "bf16": False}))
    _, training_args = flags("--config=run.json")
    assert training_args.loss_kwargs == {"alpha": 0.3}


def test_the_recipe_fits_the_run():
    assert flags()[1].num_train_epochs == 11
    assert flags("--train_file", "x.csv")[1].num_train_epochs == 12
    assert flags("--train_file", "x.csv", "--model_name_or_path", "m")[1].num_train_epochs == 13


def test_a_file_can_bring_the_data_that_choose_the_recipe(tmp_path):
    (tmp_path / "run.yaml").write_text("train_file: x.csv")
    assert flags("--config", "run.yaml")[1].num_train_epochs == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "'learning_rat'; did you mean 'learning_rate'"),
        ("num_train_epochs: three", "invalid float value: 'three'"),
        ("max_train_samples: 2.5", "invalid int value: '2.5'"),
        ("- a\n- b", "must hold keys and values, got list"),
        ("a: [1", "does not parse as YAML or JSON"),
        ("", "must hold keys and values, got NoneType"),
    ],
)
def test_bad_config_file(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        flags("--config", "run.yaml")


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["--config", "no.yaml"], FileNotFoundError, "config: .*no.yaml"),
        (["--train_fil", "x"], ValueError, "'--train_fil'; did you mean '--train_file'"),
        (["--num_train_epochs", "three"], ValueError, "num_train_epochs.*'three'"),
        (["--train_val_split", "1.5"], ValueError, "train_val_split must lie between 0 and 1"),
        (["--max_eval_samples", "0"], ValueError, "max_eval_samples must be at least 1, got 0"),
        (["--max_seq_length", "0"], ValueError, "max_seq_length must be at least 1"),
        (["--model_name_or_path", "a", "--config_name", "b"], ValueError, "exclude each other"),
        (["--loss", "maxsub"], ValueError, "did you mean 'maxsup'"),
        (["--loss_kwargs", "alhpa=0.1"], TypeError, "alhpa"),
        (["--resume_from_checkpoint", "nowhere"], FileNotFoundError, "resume_from_checkpoint: .*'nowhere'"),
        (["--resume_from_checkpoint", "true"], FileNotFoundError, "no complete checkpoint in 'outputs/text-classification'"),
    ],
)
def test_bad_flags(tmp_path, argv, error, message):
    with pytest.raises(error, match=message):
        flags(*argv)
    assert not list(tmp_path.iterdir())


# ---- output folder ----


def test_default_output_folders_are_numbered(tmp_path):
    assert flags()[1].output_dir == "outputs/text-classification"
    for i, expected in enumerate(["outputs/text-classification", "outputs/text-classification-2"]):
        folder = flags()[1].output_dir
        assert folder == expected
        (tmp_path / folder).mkdir(parents=True)
        assert flags()[1].output_dir == expected, "an empty folder is free"
        (tmp_path / folder / "something").write_text(str(i))


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match="output_dir: 'run' is not empty"):
        flags("--output_dir", "run")
    assert (tmp_path / "run" / "model.safetensors").read_text() == "precious"


def test_resume_writes_to_the_folder_of_the_checkpoint(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    for argv in (
        ["--resume_from_checkpoint", "run/checkpoint-5"],
        ["--resume_from_checkpoint", "true", "--output_dir", "run"],
        ["--resume_from_checkpoint", "run/checkpoint-5", "--output_dir", "run"],
    ):
        _, training_args = flags(*argv)
        assert (training_args.output_dir, training_args.resume_from_checkpoint) == ("run", "run/checkpoint-5")
    _, training_args = flags("--resume_from_checkpoint", "run/checkpoint-5", "--output_dir", "other")
    assert training_args.output_dir == "other"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="'other' is not empty and not the folder of the checkpoint"):
        flags("--resume_from_checkpoint", "run/checkpoint-5", "--output_dir", "other")


# ---- columns ----


def table(**columns):
    return datasets.Dataset.from_dict(columns)


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


def test_label_column_by_type_then_name():
    classes = datasets.ClassLabel(names=["n", "y"])
    assert find_label_column(table(label=[1], kind=[0]).cast_column("kind", classes), None) == "kind"
    assert find_label_column(table(x=[1], target=["a"]), None) == "target"
    both = table(coarse=[0], fine=[0]).cast_column("coarse", classes).cast_column("fine", classes)
    with pytest.raises(
        ValueError, match=r"label_column_name: the column could be any of coarse, fine.*coarse \(ClassLabel\)"
    ):
        find_label_column(both, None)


# ---- labels ----


def encode(train, validation=None, order=(), **kwargs):
    splits = {"train": table(x=list(range(len(train))), label=train)}
    if validation is not None:
        splits["validation"] = table(x=list(range(len(validation))), label=validation)
    encoded, names = encode_labels(splits, "label", ["x"], order, **kwargs)
    return {split: list(dataset["labels"]) for split, dataset in encoded.items()}, names


def test_integers_are_sorted_as_numbers():
    assert encode([10, 2, 10, 30], [30]) == ({"train": [1, 0, 1, 2], "validation": [2]}, ["2", "10", "30"])


def test_strings_and_booleans():
    assert encode(["b", "a", "b"]) == ({"train": [1, 0, 1]}, ["a", "b"])
    assert encode([True, False]) == ({"train": [1, 0]}, ["False", "True"])


def test_order_of_a_pretrained_head_is_kept_where_the_classes_are_the_same():
    assert encode(["b", "a", "b"], order=["b", "a"]) == ({"train": [0, 1, 0]}, ["b", "a"])
    assert encode(["b", "a", "b"], order=["b", "c"]) == ({"train": [1, 0, 1]}, ["a", "b"])


def test_class_labels_are_matched_by_name():
    train = table(x=[1, 2], label=[0, 1]).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    validation = table(x=[3, 4], label=[0, 1]).cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    splits, names = encode_labels({"train": train, "validation": validation}, "label", ["x"])
    assert names == ["cat", "dog"]
    assert list(splits["train"]["labels"]) == [0, 1]
    assert list(splits["validation"]["labels"]) == [1, 0]
    assert splits["train"].column_names == ["x", "labels"]


@pytest.mark.parametrize(
    ("train", "validation", "error", "message"),
    [
        ([0.5, 1.5], None, TypeError, "is float64, which is a regression"),
        ([[0, 1], [1]], None, TypeError, "holds lists, which is multi-label"),
        ([{"a": 1}, {"a": 2}], None, TypeError, "labels must be class names, integers or strings"),
        ([1, 1, 1], None, ValueError, "'label' of the training data has a single class, '1'"),
        ([-1, 0, 1, -1], None, ValueError, r"has 2 negative labels \(the least is -1\)"),
        (["a", None, "b"], None, ValueError, "'label' of the train data has 1 missing values in 3 rows"),
        ([1.0, float("nan"), 2.0, None], None, ValueError, "has 2 missing values in 4 rows"),
        (["a", "b"], ["a", "c", "d"], ValueError, "validation data has labels that the training data lacks: 'c', 'd'"),
        (["a", "b"], ["a", None], ValueError, "'label' of the validation data has 1 missing"),
    ],
)
def test_bad_labels(train, validation, error, message):
    with pytest.raises(error, match=message):
        encode(train, validation)


def test_withheld_test_labels(caplog):
    train, hidden = table(x=[1, 2], label=[0, 1]), table(x=[3, 4], label=[-1, -1])
    splits = {"train": train, "test": hidden}
    assert list(encode_labels(splits, "label", ["x"], hidden_test=True)[0]) == ["train"]
    assert "will not be evaluated" in caplog.text
    with pytest.raises(ValueError, match="'label' of the test data has 2 negative labels"):
        encode_labels(splits, "label", ["x"])


# ---- splits ----


@pytest.mark.parametrize("count", [1, 10, 37, 99, 100])
def test_stratified_indices_keep_the_shares_of_the_classes(count):
    labels = np.repeat([0, 1, 2, 3], [60, 30, 9, 1])
    chosen = stratified_indices(labels, count)
    assert len(set(chosen)) == len(chosen) == count
    shares = np.bincount(labels[chosen], minlength=4)
    assert (abs(shares - np.array([60, 30, 9, 1]) * count / 100) < 1).all()
    assert (chosen == stratified_indices(labels, count)).all()
    assert (chosen == stratified_indices(3 - labels, count)).all(), "which rows must not depend on the numbers of classes"
    assert count in (1, 100) or (chosen != np.arange(count)).any()


def test_validation_is_held_out_only_where_there_is_none(caplog):
    rows = table(x=list(range(20)), labels=[0, 1] * 10)
    with caplog.at_level(logging.INFO, "maxsup_hf"):
        splits = hold_out_validation({"train": rows}, 0.2, "labels")
    assert "held out 4 of the 20 training rows" in caplog.text
    assert sorted(list(splits["train"]["x"]) + list(splits["validation"]["x"])) == list(range(20))
    assert sorted(splits["validation"]["labels"]) == [0, 0, 1, 1]
    given = {"train": rows, "validation": table(x=[1], labels=[0])}
    assert hold_out_validation(given, 0.2, "labels") == given


# ---- embedded data ----


def test_digits():
    dataset = digits()
    assert len(dataset) == 1797 and dataset[0]["image"].size == (8, 8)
    assert np.bincount(dataset["label"]).min() > 150


def test_names_in_languages():
    dataset = names_in_languages()
    assert len(dataset) > 10_000 and len(set(dataset["text"])) == len(dataset)
    assert np.bincount(dataset["label"], minlength=len(LANGUAGES)).min() > 300
    row = dataset["text"].index("Deutschland") if "Deutschland" in dataset["text"] else dataset["text"].index("Frankreich")
    assert dataset.features["label"].int2str(dataset[row]["label"]) == "de"
    assert dataset["text"][:50] == sorted(dataset["text"][:50])


# ---- sources ----


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
        (["--train_file", "latin.csv"], ValueError, "'latin.csv' is not UTF-8; save it as that"),
        (["--train_file", "good.csv", "--text_column_name", "label"], ValueError, "'label' is something else already"),
        (["--alpha", "0.1"], ValueError, "'--alpha'; what a loss takes stands in loss_kwargs, as --loss_kwargs alpha=0.1"),
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
