"""What a loss remembers goes through checkpoints."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, list_losses
from tests import tiny, warm
from tests.launch import two_processes
from tests.trainer.trainings import arguments

SCRIPT = Path(__file__).with_name("train_with_state.py")


def run(folder, *flags):
    return warm.run(SCRIPT, folder, *flags, cwd=folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder).returncode == 0
    whole = torch.load(folder / "table.pt")
    assert whole["epoch"] == 3 and (whole["table"] > 0).any()
    return whole["table"]


def test_a_killed_run_ends_with_the_table_of_an_uninterrupted_one(uninterrupted, tmp_path):
    killed = run(tmp_path, "--die_at", "4")  # the epoch's last step: saved before the epoch's end was told
    assert killed.returncode == -signal.SIGKILL
    assert load_file(tmp_path / "checkpoint-4" / "loss_state.safetensors")["count"].sum() > 0
    assert run(tmp_path, "--resume", tmp_path / "checkpoint-4", "--die_at", "6").returncode == -signal.SIGKILL
    finished = run(tmp_path, "--resume", tmp_path / "checkpoint-6")  # in the middle of an epoch
    assert finished.returncode == 0, finished.stderr
    # Bit for bit: the same program, threads and shapes on one machine, and weights copied into memory that torch aligns, so
    # that both runs choose the same kernels.
    assert torch.equal(torch.load(tmp_path / "table.pt")["table"], uninterrupted)


def test_two_processes_learn_the_same_table(uninterrupted, tmp_path):
    two_processes(SCRIPT, tmp_path)
    pair = torch.load(tmp_path / "table.pt")
    assert pair["processes"] == 2
    torch.testing.assert_close(pair["table"], uninterrupted, rtol=1e-4, atol=1e-5)
    two_processes(SCRIPT, tmp_path, "--resume", tmp_path / "checkpoint-6")
    assert torch.equal(torch.load(tmp_path / "table.pt")["table"], pair["table"])


def train(folder, resume=None, max_steps=2, **kwargs):
    torch.manual_seed(1)
    args = MaxSupTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, max_steps=max_steps, save_strategy="steps", save_steps=1, **kwargs
    )
    trainer = MaxSupTrainer(tiny.vit(), args, train_dataset=tiny.rows(tiny.batch("vit", size=16)))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("name", list_losses())
def test_any_loss_resumes_itself(name, tmp_path):
    train(tmp_path, loss=name)
    train(tmp_path, resume=str(tmp_path / "checkpoint-1"), loss=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "label_smoothing"}, "loss: 'maxsup' there, 'label_smoothing' here"),
        ({"loss": "maxsup", "loss_kwargs": {"alpha": 0.3}}, "loss_kwargs: .*'alpha': 0.1.*there.*'alpha': 0.3"),
    ],
)
def test_another_loss_is_resumed_only_on_request(changed, message, tmp_path):
    train(tmp_path, loss="maxsup")
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=f"was trained with another loss .{message}"):
        train(tmp_path, resume=checkpoint, **changed)
    assert train(tmp_path, resume=checkpoint, resume_with_other_loss=True, **changed).state.global_step == 2


def test_a_checkpoint_without_what_was_learned(tmp_path):
    train(tmp_path, loss="online_label_smoothing")
    for name in ("loss_state.safetensors", "checkpoint-manifest.json"):  # neither is written by a stock Trainer
        (tmp_path / "checkpoint-1" / name).unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-1 has no loss_state.safetensors, so what loss 'online_label_smoothing'"
    ):
        train(tmp_path, resume=str(tmp_path / "checkpoint-1"), loss="online_label_smoothing")


def test_class_weights_of_another_training_are_not_resumed(tmp_path):
    kwargs = {"save_strategy": "steps", "save_steps": 1}
    data = tiny.rows(tiny.batch("bert"))
    MaxSupTrainer(tiny.bert(), arguments(tmp_path, class_weights=[1, 2, 3, 4, 5], **kwargs), train_dataset=data).train()
    other = MaxSupTrainer(tiny.bert(), arguments(tmp_path, class_weights=[5, 4, 3, 2, 1], **kwargs), train_dataset=data)
    with pytest.raises(ValueError, match=r"was trained with another loss \(class_weights: \[1"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
