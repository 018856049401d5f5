"""Flags, the config file and the output folder of a training script."""

import json

import pytest
import yaml
from safetensors.torch import save_file

from maxsup_hf import cli
from maxsup_hf.scripts import text_classification
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.recipes import Recipes
from tests.scripts.conftest import results, texts


def flags(*argv):
    return parse(
        text_classification.TextClassificationArguments,
        list(argv),
        "text-classification",
        Recipes(
            builtin={"num_train_epochs": 11, "learning_rate": 0.25, "weight_decay": 0.5},
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


@pytest.mark.parametrize(("metric", "greater"), [("accuracy", True), ("eval_ece", False), ("nll", False), ("loss", False)])
def test_the_better_end_of_the_best_metric_is_that_of_its_record(metric, greater):
    assert flags("--metric_for_best_model", metric)[1].greater_is_better is greater
    assert flags("--metric_for_best_model", metric, "--greater_is_better", "true")[1].greater_is_better is True


def test_a_metric_without_a_better_end_chooses_no_model():
    with pytest.raises(ValueError, match="'top_margin' describes a model and has no better end"):
        flags("--metric_for_best_model", "top_margin")


def test_the_recipe_fits_the_run():
    assert flags()[1].num_train_epochs == 11
    assert flags("--train_file", "x.csv")[1].num_train_epochs == 12
    assert flags("--train_file", "x.csv", "--model_name_or_path", "m")[1].num_train_epochs == 13


def test_a_file_can_bring_the_data_that_choose_the_recipe(tmp_path):
    (tmp_path / "run.yaml").write_text("train_file: x.csv")
    assert flags("--config", "run.yaml")[1].num_train_epochs == 12


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
    save_file({}, checkpoint / "model.safetensors")
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
    for name in ("run/checkpoint-6", "latest", "1"):
        with pytest.raises(ValueError, match=rf"there is no folder '{name}'; name a checkpoint, or give true .* or auto"):
            flags("--resume_from_checkpoint", name, "--output_dir", "run")


# ---- help, names of other tools, settings ----


@pytest.mark.parametrize("task", cli.tasks())
def test_help_is_one_screen_and_begins_with_the_loss(task, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", task, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(lines) <= 60 and max(map(len, lines)) <= 100
    assert lines[2].split()[0] == "--loss" and any(line.startswith("  --train_file") for line in lines)


def test_the_settings_of_a_run_repeat_it(tmp_path):
    texts()
    (tmp_path / "run.yaml").write_text("loss: maxsup\nloss_kwargs: {alpha: 0.3}\n")
    argv = ["--train_file", "train.csv", "--learning_rate=1e-3", "--max_steps", "2", "--hub_token", "hf_secret"]
    text_classification.main(["--config", "run.yaml", *argv, "--output_dir", "first"])
    settings = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert settings == {
        "loss": "maxsup", "loss_kwargs": {"alpha": 0.3}, "train_file": "train.csv", "learning_rate": 1e-3, "max_steps": 2
    }  # fmt: skip
    text_classification.main(["--config", "first/config.yaml", "--output_dir", "second"])
    first, second = (results(folder) for folder in ("first", "second"))
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], rel=1e-6)
