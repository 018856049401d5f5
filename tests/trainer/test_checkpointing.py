"""Nothing is lost: kills, full disks and SIGTERM leave checkpoints that are resumed."""

import errno
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.trainer.checkpointing import CheckpointError, check_writable, damage, last_checkpoint
from tests import HANGS, tiny

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


def trainer(folder, callbacks=(), **kwargs):
    torch.manual_seed(0)
    kwargs = {"max_steps": 6, "save_steps": 2, **kwargs}
    args = MaxSupTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **kwargs)
    return MaxSupTrainer(tiny.vit(), args, train_dataset=tiny.rows(tiny.batch("vit", size=16)), callbacks=list(callbacks))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder).train()
    return folder


@pytest.fixture
def output(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


# ---- complete ones ----


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


DAMAGE = {
    "no state": (lambda folder: (folder / "trainer_state.json").unlink(), "has no trainer_state.json"),
    "half a state": (lambda folder: cut(folder / "trainer_state.json"), "_state.json, which is written last, is truncated"),
    "half the weights": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is damaged"),
    "half an optimizer": (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt is truncated"),
    "no rng": (lambda folder: (folder / "rng_state.pth").write_bytes(b""), "rng_state.pth is truncated"),
    "a mark of transformers": (lambda folder: (folder / "checkpoint-is-incomplete.txt").touch(), "checkpoint-is-incomplete"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_newest_complete_checkpoint_is_resumed_and_the_message_says_so(name, output, caplog):
    destroy, reason = DAMAGE[name]
    assert all(damage(path) is None for path in output.glob("checkpoint-*"))
    destroy(output / "checkpoint-6")
    assert reason in damage(output / "checkpoint-6")
    again = trainer(output, max_steps=8)
    again.train(resume_from_checkpoint=True)
    assert f"resuming {output}/checkpoint-4, the newest complete checkpoint. Skipped: checkpoint-6 (" in caplog.text
    assert reason in caplog.text
    assert damage(output / "checkpoint-6") is None and again.state.global_step == 8


def test_a_broken_checkpoint_is_refused_by_name(output):
    (output / "checkpoint-6" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6' is not a complete checkpoint: it has no trainer_state.json"):
        trainer(output).train(resume_from_checkpoint=str(output / "checkpoint-6"))


def test_no_checkpoint_at_all(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="there is no complete checkpoint in"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_stock_trainer_resumes_them(tmp_path):
    # (not ViT's: see the end of maxsup_hf/trainer/trainer.py)
    data, steps = tiny.rows(tiny.batch("bert", size=16)), {"use_cpu": True, "disable_tqdm": True, "save_steps": 2}
    MaxSupTrainer(tiny.bert(), MaxSupTrainingArguments(str(tmp_path), max_steps=4, **steps), train_dataset=data).train()
    assert get_last_checkpoint(tmp_path) == last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    stock = Trainer(tiny.bert(), TrainingArguments(str(tmp_path), max_steps=6, **steps), train_dataset=data)
    assert stock.train(resume_from_checkpoint=True).global_step == 6


# ---- nothing to write to ----


class Limit(TrainerCallback):
    """From the second step on, files may not be longer than 1 kB: as on a full disk, and real."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def on_a_full_disk(folder, result):
    try:
        trainer(folder, [Limit()]).train()
    except CheckpointError as error:
        result.put(str(error))
    result.put("saved")


def test_disk_full(tmp_path):
    fork = multiprocessing.get_context("fork")
    result = fork.Queue()
    process = fork.Process(target=on_a_full_disk, args=(tmp_path, result))
    process.start()
    message = result.get(timeout=HANGS)
    process.join()
    assert message.startswith(f"the checkpoint of step 4 could not be written to '{tmp_path}/checkpoint-4': ")
    assert "Earlier checkpoints are unchanged" in message
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert trainer(tmp_path).train(resume_from_checkpoint=True).global_step == 6


def test_a_read_only_folder_is_found_before_training(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("maxsup_hf.trainer.checkpointing.tempfile.TemporaryFile", refuse)
    with pytest.raises(
        CheckpointError, match=r"output_dir: '.*' cannot be written to .*Read-only file system.*--output_dir"
    ):
        trainer(tmp_path).train()
    trainer(tmp_path, save_strategy="no").train()  # nothing to write


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="/proc, where not even root writes files")
def test_a_folder_that_really_cannot_be_written_to():
    with pytest.raises(CheckpointError, match="cannot be written to"):
        check_writable("/proc/self")


# ---- the same to the last bit ----


class Rows(Dataset):
    """Texts of different lengths, a random token of each masked when it is read."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        ids = [3 + (7 * index + i) % 37 for i in range(3 + index % 5)]
        ids[int(torch.randint(len(ids), ()))] = 1
        return {"input_ids": ids, "labels": index % tiny.CLASSES}


def weights(folder, resume=None, callbacks=(), **kwargs):
    torch.manual_seed(0)
    args = MaxSupTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", max_steps=8, save_steps=1, logging_steps=1,
        per_device_train_batch_size=4, learning_rate=1e-2, dataloader_pin_memory=False, **kwargs,
    )  # fmt: skip
    model = tiny.bert(hidden_dropout_prob=0.1)
    trainer = MaxSupTrainer(model, args, train_dataset=Rows(), data_collator=pad, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    return losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def pad(rows):
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([row["labels"] for row in rows])}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"dataloader_num_workers": 1},
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "sequential"},
    ],
    ids=str,
)
def test_resumed_data_and_weights_are_those_of_an_uninterrupted_run(kwargs, tmp_path):
    losses, expected = weights(tmp_path, **kwargs)
    for step in (4, 6):  # within an epoch (of 6 steps, or 3), and at its end
        again, found = weights(tmp_path / str(step), str(tmp_path / f"checkpoint-{step}"), **kwargs)
        # Bit for bit: the same program, threads and shapes on one machine, and weights copied into memory that torch
        # aligns, so that both runs choose the same kernels.
        assert again == losses
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_augmentation_changes_with_the_epoch(tmp_path):
    seen = []

    class Reads(Rows):
        def __getitem__(self, index):
            seen.append((index, tuple((row := super().__getitem__(index))["input_ids"])))
            return row

    args = MaxSupTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, num_train_epochs=2, save_strategy="no",
        train_sampling_strategy="sequential", dataloader_pin_memory=False,
    )  # fmt: skip
    MaxSupTrainer(tiny.bert(), args, train_dataset=Reads(), data_collator=pad).train()
    first, second = seen[:24], seen[24:]
    assert [index for index, _ in first] == [index for index, _ in second] == list(range(24))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 16  # of 24; by chance about 5


# ---- killed, or asked to end ----


@pytest.mark.parametrize(
    "flags", ["--kills 3", "--kills 2 --processes 2 --accumulation 3 --loss maxsup", "--kills 1 --processes 2 --signal TERM"]
)
def test_kill_and_resume(flags):
    result = subprocess.run([sys.executable, SCRIPT, *flags.split()], capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert "bit-identical" in result.stdout.splitlines()[-1]
