"""A run is continued with the settings that it began with, and a finished one not at all."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from maxsup_hf.trainer.complete import damage
from maxsup_hf.trainer.continuation import changes_on_resume
from tests.trainer.trainings import flip, saving

# ---- with other settings ----

OTHER = {
    "seed": {"seed": 1},
    "data_seed": {"data_seed": 1},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "batch_size_of_all_processes": {"per_device_train_batch_size": 2},
    "learning_rate": {"learning_rate": 1e-3},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine"},
    "lr_milestones": {"lr_milestones": [0.5]},
    "warmup_steps": {"warmup_steps": 3},
    "optim": {"optim": "sgd"},
    "weight_decay": {"weight_decay": 0.1},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
    "ignore_data_skip": {"ignore_data_skip": True},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "bf16": {"bf16": True},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_refused(name, finished):
    again = saving(finished, **OTHER[name])
    with pytest.raises(
        ValueError, match=rf"checkpoint-4 would not continue as .*{name}: .* there, .* here.*--resume_anyway"
    ):
        again.train(resume_from_checkpoint=str(finished / "checkpoint-4"))


def test_another_number_of_rows_is_refused(finished):
    again = saving(finished)
    again.train_dataset = again.train_dataset[:-1]
    with pytest.raises(ValueError, match=r"rows: 16 there, 15 here"):
        again.train(resume_from_checkpoint=str(finished / "checkpoint-4"))


def test_weights_of_another_type_are_refused(finished):
    again = saving(finished)
    again.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype: 'float32' there, 'bfloat16' here"):
        again.train(resume_from_checkpoint=str(finished / "checkpoint-4"))


def test_the_same_rows_in_another_number_of_processes_are_not_refused(finished):
    args = saving(finished).args
    two = SimpleNamespace(**{**vars(args), "train_batch_size": args.train_batch_size // 2, "world_size": 2})
    assert set(changes_on_resume(finished / "checkpoint-4", two, 16)) == {"processes"}


def test_a_longer_training_is_said_and_not_refused(output, caplog):
    rates = Rates()
    saving(output, [rates], max_steps=8, learning_rate=5e-5).train(resume_from_checkpoint=True)
    assert "length: '6 steps' there, '8 steps' here" in caplog.text
    assert rates.seen == pytest.approx({7: 5e-5 * 2 / 8, 8: 5e-5 * 1 / 8})


class Rates(TrainerCallback):
    """The learning rate of each step that is taken, step -> rate."""

    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.seen[state.global_step + 1] = optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({"learning_rate": 1e-3}, "weights, state of the optimizer, random state and step are those of the checkpoint"),
        ({"learning_rate": 1e-3, "optim": "sgd"}, "the new optimizer starts without state"),
        ({"learning_rate": 1e-3, "weight_decay": 0.1}, "the settings are those given here"),
    ],
    ids=str,
)
def test_resume_anyway_trains_with_the_settings_given_here(changed, held, output, caplog):
    rates = Rates()
    again = saving(output, [rates], resume_anyway=True, **changed)
    again.train(resume_from_checkpoint=str(output / "checkpoint-4"))
    assert held in caplog.text and "not that of an uninterrupted run" in caplog.text
    assert rates.seen == pytest.approx({5: 1e-3 * 2 / 6, 6: 1e-3 * 1 / 6})
    assert {group["weight_decay"] for group in again.optimizer.param_groups} == {changed.get("weight_decay", 0.0), 0.0}
    steps = {float(state["step"]) for state in again.optimizer.state.values() if "step" in state}
    assert steps == (set() if "optim" in changed else {6})  # of Adam, since the start of the training


def test_checkpoints_of_save_only_model(tmp_path, caplog):
    kwargs = {"save_only_model": True}
    first = saving(tmp_path, **kwargs)
    first.train()
    assert damage(tmp_path / "checkpoint-6") is None
    flip(tmp_path / "checkpoint-2" / "model.safetensors")
    assert "model.safetensors" in damage(tmp_path / "checkpoint-2")
    checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="optimizer, schedule and random state were not saved there"):
        saving(tmp_path, **kwargs).train(resume_from_checkpoint=checkpoint)
    assert saving(tmp_path, **kwargs).train(resume_from_checkpoint=True).global_step == 6  # nothing is left to train
    anyway = saving(tmp_path, resume_anyway=True, **kwargs)
    assert anyway.train(resume_from_checkpoint=checkpoint).global_step == 6
    assert "optimizer and schedule start afresh" in caplog.text


# ---- a finished run ----


@pytest.mark.parametrize("length", [{"max_steps": 6}, {"max_steps": -1, "num_train_epochs": 3}], ids=str)
def test_a_finished_run_trains_no_further(length, tmp_path):
    length = {**length, "class_weights": "balanced"}
    first = saving(tmp_path, **length)
    first.train()
    again = saving(tmp_path, **length)
    result = again.train(resume_from_checkpoint=True)
    assert again.already_finished and not first.already_finished
    assert result.global_step == again.state.global_step == 6 and result.metrics == {}
    assert again.trained_loss is not None and torch.equal(again.trained_class_weights, first.trained_class_weights)
    assert same(first.model, again.model)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoint-6").iterdir()}
    assert files and {path: path.stat().st_mtime_ns for path in files} == files
    assert again.state.log_history == first.state.log_history[:-1]  # without a time of a training that was none


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_best_model_of_a_run_that_was_moved(tmp_path):
    def keeps_the_best(folder, **kwargs):
        best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
        return saving(folder, **best, **kwargs)

    before, after = tmp_path / "before", tmp_path / "after"
    keeps_the_best(before, greater_is_better=True, learning_rate=1e-3).train()  # the loss falls, so the first is the "best"
    before.rename(after)
    again = keeps_the_best(after, greater_is_better=True, learning_rate=1e-3)
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(after / "checkpoint-2")
    expected = load_file(after / "checkpoint-2" / "model.safetensors")
    again.save_model()
    assert all(torch.equal(value, expected[name]) for name, value in load_file(after / "model.safetensors").items())


def test_a_run_that_was_stopped_early_trains_no_further(tmp_path):
    def stops_early():
        kwargs = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.0}
        return saving(tmp_path, [EarlyStoppingCallback(1)], max_steps=20, **kwargs)

    first = stops_early()
    first.train()
    assert first.state.global_step == 4
    again = stops_early()
    again.train(resume_from_checkpoint=True)
    assert again.already_finished and again.state.global_step == 4 and same(first.model, again.model)
    again = stops_early()  # the counter of the callback is that of the checkpoint
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 4 and not again.already_finished
