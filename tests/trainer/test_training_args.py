import json
import sys
from dataclasses import dataclass

import pytest
import torch
import yaml
from transformers import HfArgumentParser

from maxsup_hf import MaxSupArgumentsMixin, MaxSupSeq2SeqTrainingArguments, MaxSupTrainingArguments
from maxsup_hf.trainer.training_args import parse_loss_kwargs

BOTH = pytest.mark.parametrize("cls", [MaxSupTrainingArguments, MaxSupSeq2SeqTrainingArguments])


def parse(cls, *words):
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses(["--output_dir", "out", *words])
    return args


@BOTH
def test_defaults(cls):
    args = parse(cls)
    assert args.loss == "maxsup" and args.loss_kwargs == {}


@BOTH
@pytest.mark.parametrize(
    "kwargs", ['{"alpha": 0.3, "alpha_end": null}', "alpha=0.3,alpha_end=None", " alpha = 3e-1 , alpha_end=null,"]
)
def test_command_line(cls, kwargs):
    args = parse(cls, "--loss", "maxsup", "--loss_kwargs", kwargs)
    assert args.loss_kwargs == {"alpha": 0.3, "alpha_end": None}
    assert args.to_dict()["loss"] == "maxsup" and args.to_dict()["loss_kwargs"] == args.loss_kwargs
    assert json.loads(args.to_json_string())["loss_kwargs"] == args.loss_kwargs


@BOTH
def test_yaml_and_json_files(cls, tmp_path):
    settings = {"output_dir": "out", "loss": "label_smoothing", "loss_kwargs": {"alpha": 0.2}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run.json").write_text(json.dumps(settings))
    parser = HfArgumentParser(cls)
    for (args,) in (parser.parse_yaml_file(tmp_path / "run.yaml"), parser.parse_json_file(tmp_path / "run.json")):
        assert (args.loss, args.loss_kwargs) == ("label_smoothing", {"alpha": 0.2})


@BOTH
def test_help(cls):
    text = HfArgumentParser(cls).format_help()
    assert "--loss LOSS" in text and "--loss_kwargs LOSS_KWARGS" in text and "alpha=0.1,alpha_end=0.2" in text


@BOTH
def test_persistent_workers_need_workers(cls):
    assert parse(cls, "--dataloader_persistent_workers", "true", "--dataloader_num_workers", "1").dataloader_num_workers == 1
    with pytest.raises(ValueError, match="dataloader_num_workers, the number of workers, to be at least 1, got 0"):
        parse(cls, "--dataloader_persistent_workers", "true")


def test_saved_arguments(tmp_path):
    args = MaxSupTrainingArguments(str(tmp_path), loss_kwargs="alpha=0.3")
    torch.save(args, tmp_path / "training_args.bin")
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (loaded.loss, loaded.loss_kwargs) == ("maxsup", {"alpha": 0.3})


def test_on_another_arguments_class():
    from transformers import TrainingArguments

    @dataclass
    class Mine(MaxSupArgumentsMixin, TrainingArguments):
        own: int = 1

    sys.modules[__name__].Mine = Mine
    assert parse(Mine, "--own", "2", "--loss", "cross_entropy").loss == "cross_entropy"


def test_an_epoch_wise_schedule_takes_the_epochs_of_the_training():
    assert MaxSupTrainingArguments("out", num_train_epochs=7, loss_kwargs="schedule=epoch").loss_kwargs["epochs"] == 7
    with pytest.raises(ValueError, match=r"epochs of loss 'maxsup' must be the epochs of this training, 7, .* got 9"):
        MaxSupTrainingArguments("out", num_train_epochs=7, loss_kwargs={"schedule": "epoch/(T-1)", "epochs": 9})
    args = MaxSupTrainingArguments("out", num_train_epochs=7, loss_kwargs="schedule=epoch")
    args.num_train_epochs = 3  # as a hyperparameter search does
    assert args.make_loss().kwargs["epochs"] == 3
    with pytest.raises(ValueError, match="epochs must be a whole number"):
        MaxSupTrainingArguments("out", max_steps=10, loss_kwargs="schedule=epoch")


def test_the_users_dict_is_left_alone():
    for loss, mine in (("maxsup", {"schedule": "epoch"}), ("maxsup+z_loss", {"maxsup": {"schedule": "epoch"}})):
        copy = json.loads(json.dumps(mine))
        MaxSupTrainingArguments("out", loss=loss, loss_kwargs=mine)
        assert mine == copy


@BOTH
@pytest.mark.parametrize(
    "kwargs",
    [
        '{"maxsup": {"alpha": 0.3, "schedule": "epoch"}, "z_loss": {"lam": 0.01}}',
        "maxsup.alpha=0.3,maxsup.schedule=epoch,z_loss.lam=0.01",
    ],
)
def test_a_sum_of_losses(cls, kwargs):
    args = parse(cls, "--loss", "maxsup+z_loss", "--loss_kwargs", kwargs, "--num_train_epochs", "5")
    expected = {"maxsup.alpha": 0.3, "maxsup.schedule": "epoch", "z_loss.lam": 0.01, "maxsup.epochs": 5}
    assert args.loss_kwargs == expected


@BOTH
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"loss": "maxsub"}, ValueError, "unknown loss 'maxsub', did you mean 'maxsup'"),
        ({"loss": None}, TypeError, "loss must be a name"),
        ({"loss_kwargs": {"alpa": 0.1}}, TypeError, "no parameter 'alpa', did you mean 'alpha'"),
        ({"loss_kwargs": {"alpha": "0.1"}}, TypeError, "alpha.*must be a number, got str '0.1'"),
        ({"loss_kwargs": "alpha=strong"}, TypeError, "alpha.*must be a number, got str 'strong'"),
        ({"loss_kwargs": {"alpha": -0.1}}, ValueError, "alpha.*at least 0, got -0.1"),
        ({"loss_kwargs": "alpha=NaN"}, ValueError, "alpha.*finite.*nan"),
        ({"loss_kwargs": {"alpha": float("nan")}}, ValueError, "alpha.*finite.*nan"),
        ({"loss_kwargs": '{"alpha": 0.1'}, ValueError, "loss_kwargs is not valid JSON"),
        ({"loss_kwargs": "0.1"}, ValueError, "loss_kwargs must be a JSON object or key=value pairs, got '0.1'"),
        ({"loss_kwargs": [0.1]}, TypeError, "loss_kwargs must be a dict.*got list"),
        ({"label_smoothing_factor": 0.1}, ValueError, r"""--loss label_smoothing --loss_kwargs '\{"alpha": 0.1\}'"""),
        ({"label_smoothing_factor": 0.1, "loss": "cross_entropy"}, ValueError, "two losses for one training"),
    ],
)
def test_misuse(cls, kwargs, error, message):
    with pytest.raises(error, match=message):
        cls("out", **kwargs)


def test_parse_loss_kwargs_keeps_words():
    assert parse_loss_kwargs("schedule=epoch/(T-1),epochs=90") == {"schedule": "epoch/(T-1)", "epochs": 90}
