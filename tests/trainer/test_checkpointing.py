"""Nothing is lost: kills, full disks and SIGTERM leave checkpoints that are resumed."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
import xxhash
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.trainer.checkpointing import CheckpointError, check_writable
from maxsup_hf.trainer.complete import damage, last_checkpoint
from maxsup_hf.trainer.manifest import changed_files, read_manifest, write_manifest
from tests import HANGS, tiny, warm
from tests.trainer.trainings import flip, saving

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


# ---- complete ones ----


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


FILES = (
    "checkpoint-manifest.json", "config.json", "loss_state.safetensors", "model.safetensors", "optimizer.pt",
    "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin",
)  # fmt: skip


@pytest.mark.parametrize("destroy", [delete, truncate, empty, flip])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_noticed_and_named(name, destroy, output):
    checkpoint = output / "checkpoint-6"
    assert damage(checkpoint) is None
    destroy(checkpoint / name)
    assert name in damage(checkpoint)
    assert last_checkpoint(output) == str(output / "checkpoint-4")


MANIFEST = "checkpoint-manifest.json"


def manifest(**changed):
    """A change of the manifest, whose own hash is that of the changed one."""

    def change(run):
        content = json.loads((run / "checkpoint-6" / MANIFEST).read_text()) | changed
        del content["xxh3_128"]
        digest = {"xxh3_128": xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())}
        (run / "checkpoint-6" / MANIFEST).write_text(json.dumps(content | digest))

    return change


def added(name, content=b"x"):
    return lambda run: (run / "checkpoint-6" / name).write_bytes(content)


def made(name, kind=Path.mkdir):
    def make(run):
        (run / name).unlink(missing_ok=True)
        kind(run / name)

    return make


def without(*names):
    return lambda run: [(run / "checkpoint-6" / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("change", "reason"),
    {
        "swapped": (
            lambda run: shutil.copy(run / "checkpoint-4" / "optimizer.pt", run / "checkpoint-6"),
            "optimizer.pt has changed",
        ),
        "another manifest": (
            lambda run: shutil.copy(run / "checkpoint-4" / MANIFEST, run / "checkpoint-6"),
            "it holds the checkpoint of step 4",
        ),
        "no files": (manifest(files={}), f"{MANIFEST} was written by a version of maxsup_hf that this one cannot read"),
        "other hashes": (manifest(files={"config.json": {"size": 1, "sha256": "0"}}), "that this one cannot read"),
        "a list": (added(MANIFEST, b"[]"), f"{MANIFEST} is damaged"),
        "a folder": (made(f"checkpoint-6/{MANIFEST}"), f"{MANIFEST} cannot be read"),
        "older weights": (added("pytorch_model.bin"), "pytorch_model.bin was added later"),
        "a scaler": (added("scaler.pt"), "scaler.pt was added later"),
        "without a manifest": (without(MANIFEST), f"it has no {MANIFEST}, which is written last"),
        "half deleted": (without(MANIFEST, "loss_state.safetensors", "optimizer.pt"), "it has no optimizer"),
    }.values(),
)  # fmt: skip
def test_a_checkpoint_that_is_not_what_was_written_is_skipped(change, reason, output):
    change(output)
    assert reason in damage(output / "checkpoint-6")
    assert last_checkpoint(output) == str(output / "checkpoint-4")


@pytest.mark.parametrize(
    "change",
    [
        manifest(written_by="a newer version"),
        added("notes.txt"),
        lambda run: shutil.copytree(run / "checkpoint-2", run / "checkpoint-9"),
        made("checkpoint-7"),
        made("checkpoint-7", Path.touch),
        made("checkpoint-²"),
    ],
)
def test_the_newest_checkpoint_is_found_among_others(change, output):
    change(output)
    assert last_checkpoint(output) == str(output / "checkpoint-6")


def test_a_run_is_not_taken_for_a_checkpoint(output):
    with pytest.raises(ValueError, match=r"is not a checkpoint, but has some: name '.*checkpoint-6'"):
        saving(output).train(resume_from_checkpoint=str(output))


def test_every_file_of_a_checkpoint_is_in_its_manifest(finished):
    assert sorted(path.name for path in (finished / "checkpoint-6").iterdir()) == sorted(FILES)


def test_callbacks_may_change_a_checkpoint_when_they_are_told_of_it(tmp_path):
    class Changes(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            checkpoint = tmp_path / f"checkpoint-{state.global_step}"
            (checkpoint / "training_args.bin").unlink()
            (checkpoint / "config.json").write_text("{}")

    training = saving(tmp_path)
    training.add_callback(Changes())
    training.train()
    assert damage(tmp_path / "checkpoint-6") is None
    flip(tmp_path / "checkpoint-6" / "config.json")
    assert "config.json" in damage(tmp_path / "checkpoint-6")


def test_a_checkpoint_that_disappears_while_it_is_looked_at(output, monkeypatch):
    without(MANIFEST, "loss_state.safetensors")(output)
    read = Path.read_text

    def vanish(path, **kwargs):
        text = read(path, **kwargs)
        if path.name == "trainer_state.json":
            shutil.rmtree(path.parent)
        return text

    monkeypatch.setattr(Path, "read_text", vanish)
    assert damage(output / "checkpoint-6")
    assert last_checkpoint(output) == str(output / "checkpoint-4")


def test_folders_of_sharded_checkpoints_are_verified_too(tmp_path):
    shards = [f"{folder}/{name}" for folder in ("global_step4", "pytorch_model_fsdp_0") for name in (".metadata", "0.pt")]
    for name in shards:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 100_000)
    write_manifest(tmp_path, {})
    assert changed_files(tmp_path, read_manifest(tmp_path)) == []
    for name in shards:
        flip(tmp_path / name)
    assert [each.split()[0] for each in changed_files(tmp_path, read_manifest(tmp_path))] == sorted(shards)


def test_the_newest_complete_checkpoint_is_resumed_and_the_message_says_so(output, caplog):
    flip(output / "checkpoint-6" / "optimizer.pt")
    again = saving(output, max_steps=8)
    again.train(resume_from_checkpoint=True)
    reason = "checkpoint-6 (optimizer.pt has changed since it was written (its hash differs))"
    assert f"resuming {output}/checkpoint-4, the newest complete checkpoint. Skipped: {reason}" in caplog.text
    assert damage(output / "checkpoint-6") is None and again.state.global_step == 8


@pytest.mark.parametrize(
    ("name", "destroy", "reason"),
    [
        ("trainer_state.json", delete, "has no trainer_state.json"),
        ("trainer_state.json", halve, "its trainer_state.json is truncated"),
        ("model.safetensors", truncate, "model.safetensors is damaged"),
        ("model.safetensors", delete, "it has no weights"),
        ("optimizer.pt", truncate, "optimizer.pt is truncated"),
        ("rng_state.pth", empty, "rng_state.pth is truncated"),
    ],
)
def test_damage_to_a_checkpoint_without_a_manifest(name, destroy, reason, output):
    checkpoint = output / "checkpoint-6"
    (checkpoint / "checkpoint-manifest.json").unlink()
    (checkpoint / "loss_state.safetensors").unlink()
    (checkpoint / "training_args.bin").unlink()
    assert damage(checkpoint) is None
    destroy(checkpoint / name)
    assert reason in damage(checkpoint)


def test_a_shard_that_is_missing(output):
    checkpoint = output / "checkpoint-6"
    (checkpoint / "checkpoint-manifest.json").unlink()
    (checkpoint / "loss_state.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert damage(checkpoint) == "model-1.safetensors of model.safetensors.index.json is missing"


def test_a_best_model_that_is_damaged_is_not_loaded(tmp_path):
    class Damages(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                flip(tmp_path / "checkpoint-2" / "model.safetensors")

    kwargs = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.0}
    with pytest.raises(
        CheckpointError, match=r"the best checkpoint .*checkpoint-2' is damaged: model.safetensors has changed"
    ):
        saving(tmp_path, [Damages()], **kwargs).train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_a_checkpoint_that_transformers_marks_as_incomplete(output):
    (output / "checkpoint-6" / "checkpoint-is-incomplete.txt").touch()
    assert "checkpoint-is-incomplete.txt" in damage(output / "checkpoint-6")


def test_a_broken_checkpoint_is_refused_by_name(output):
    (output / "checkpoint-6" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6' is not a complete checkpoint: trainer_state.json is missing"):
        saving(output).train(resume_from_checkpoint=str(output / "checkpoint-6"))


def test_no_checkpoint_at_all(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="there is no complete checkpoint in"):
        saving(tmp_path).train(resume_from_checkpoint=True)


def test_a_stock_trainer_resumes_them(tmp_path):
    # (not ViT's: see the end of maxsup_hf/trainer/trainer.py)
    data, steps = tiny.rows(tiny.batch("bert", size=16)), {"use_cpu": True, "disable_tqdm": True, "save_steps": 2}
    MaxSupTrainer(tiny.bert(), MaxSupTrainingArguments(str(tmp_path), max_steps=4, **steps), train_dataset=data).train()
    assert get_last_checkpoint(tmp_path) == last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    stock = Trainer(tiny.bert(), TrainingArguments(str(tmp_path), max_steps=6, **steps), train_dataset=data)
    assert stock.train(resume_from_checkpoint=True).global_step == 6


def test_a_checkpoint_of_a_stock_trainer_is_resumed_with_one_line_that_it_cannot_be_verified(tmp_path, caplog):
    data, steps = tiny.rows(tiny.batch("bert", size=16)), {"use_cpu": True, "disable_tqdm": True, "save_steps": 2}
    Trainer(tiny.bert(), TrainingArguments(str(tmp_path), max_steps=2, **steps), train_dataset=data).train()
    ours = MaxSupTrainer(tiny.bert(), MaxSupTrainingArguments(str(tmp_path), max_steps=4, **steps), train_dataset=data)
    ours.train(resume_from_checkpoint=True)
    assert ours.state.global_step == 4
    (line,) = [record.message for record in caplog.records if "cannot be verified" in record.message]
    assert "checkpoint-2 has no checkpoint-manifest.json" in line


# ---- nothing to write to ----


class Limit(TrainerCallback):
    """From the end of a step on, files may not be longer than 1 kB: as on a full disk, and real."""

    def __init__(self, step):
        self.step = step

    def on_train_end(self, args, state, control, **kwargs):
        if self.step == state.global_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    def on_step_begin(self, args, state, control, **kwargs):
        self.on_train_end(args, state, control)


def on_a_full_disk(folder, step, result):
    try:
        training = saving(folder, [Limit(step)])
        training.train()
        training.save_result()
    except CheckpointError as error:
        result.put(str(error))
    result.put("saved")


@pytest.mark.parametrize(
    ("step", "message", "safe", "complete"),
    [
        (
            2,
            "the checkpoint of step 4 could not be written to '{0}/checkpoint-4': ",
            "Earlier checkpoints are unchanged",
            {2},
        ),
        (6, "the trained model could not be written to '{0}': ", "{0}/checkpoint-6 is complete: free some space", {2, 4, 6}),
    ],
    ids=["a checkpoint", "the end"],
)
def test_disk_full(step, message, safe, complete, tmp_path):
    fork = multiprocessing.get_context("fork")
    result = fork.Queue()
    process = fork.Process(target=on_a_full_disk, args=(tmp_path, step, result))
    process.start()
    found = result.get(timeout=HANGS)
    process.join()
    assert found.startswith(message.format(tmp_path)) and safe.format(tmp_path) in found and "\n" not in found
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in complete}
    assert not (tmp_path / "model.safetensors").exists()
    assert saving(tmp_path).train(resume_from_checkpoint=True).global_step == 6


def test_an_old_checkpoint_is_deleted_only_once_the_new_one_is_complete(tmp_path, monkeypatch):
    def fail(folder, contents):
        if contents["step"] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_manifest(folder, contents)

    monkeypatch.setattr("maxsup_hf.trainer.checkpointing.write_manifest", fail)
    with pytest.raises(CheckpointError, match="No space left on device. Earlier checkpoints are unchanged"):
        saving(tmp_path, save_total_limit=1).train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_damaged_checkpoint_does_not_outlive_a_new_one(output, monkeypatch):
    monkeypatch.setattr(os.path, "getmtime", lambda path: 0.0)  # as on file systems without times
    flip(output / "checkpoint-6" / "optimizer.pt")
    saving(output, save_steps=1, max_steps=5, save_total_limit=1).train(resume_from_checkpoint=True)
    assert last_checkpoint(output) == str(output / "checkpoint-5")


def test_a_read_only_folder_is_found_before_training(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("maxsup_hf.trainer.checkpointing.tempfile.TemporaryFile", refuse)
    with pytest.raises(
        CheckpointError, match=r"output_dir: '.*' cannot be written to .*Read-only file system.*--output_dir"
    ):
        saving(tmp_path).train()
    saving(tmp_path, save_strategy="no").train()  # nothing to write


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


def test_persistent_workers_evaluate_the_data_that_is_given(tmp_path):
    found, rows, before = {}, [Rows()[index] for index in range(24)], set(multiprocessing.active_children())
    for persistent in (False, True):
        args = MaxSupTrainingArguments(
            str(tmp_path), use_cpu=True, disable_tqdm=True, dataloader_num_workers=1, dataloader_pin_memory=False,
            dataloader_persistent_workers=persistent,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = MaxSupTrainer(tiny.bert(), args, eval_dataset=rows, data_collator=pad)
        given = (None, rows[:5], None, {"five": rows[:5], "all": rows})
        found[persistent] = [trainer.evaluate(data) for data in given]
        for named in (rows[:5], rows):  # replaced under the same name
            trainer.eval_dataset = {"named": named}
            found[persistent].append(trainer.evaluate())
        for metrics in found[persistent]:
            for clock in [name for name in metrics if "second" in name or "time" in name]:
                del metrics[clock]
    for data in (rows, rows[:5]):
        trainer.predict(data)
    # one worker for the data without a name, one for those with it, and one for the last prediction
    assert len(set(multiprocessing.active_children()) - before) == 3
    assert found[True] == found[False]
    assert found[True][0] == found[True][2] != found[True][1]


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
def test_kill_and_resume(flags, tmp_path):
    result = warm.run(SCRIPT, *flags.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert "bit-identical" in result.stdout.splitlines()[-1]
