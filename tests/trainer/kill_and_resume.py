"""Kills training with SIGKILL at random moments, damages what it left, resumes it, and compares the end with an
uninterrupted run, bit by bit.

python tests/trainer/kill_and_resume.py [--kills 20] [--processes 2] [--accumulation 3] [--loss maxsup] [--signal TERM]
    [--seed 0]

A small BERT with dropout learns from shuffled texts of different lengths, whose tokens are masked at random, and saves after
every second step; many kills fall into the saving. After three of four kills a random file of the newest complete checkpoint
is deleted or truncated, or bits of it are flipped, and that must be noticed. The run goes on from the newest complete
checkpoint (`--resume_from_checkpoint auto` of the scripts); when it comes to its end, its weights must be those of the
uninterrupted run, and the next run begins, until there were enough kills. With `--signal TERM` every rank, one after the
other, is asked to end, and must do so with a checkpoint. Ends with status 1 if a run could not be resumed, or ended
elsewhere.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.trainer.complete import damage, last_checkpoint

STEPS, ROWS, BATCH = 18, 96, 4
ASKED = 128 + signal.SIGTERM
FAULTS = ("none", "flip", "delete", "truncate")
fork = multiprocessing.get_context("fork")  # everything is imported once


class Began(TrainerCallback):
    def __init__(self, event):
        self.event = event

    def on_step_begin(self, args, state, control, **kwargs):
        self.event.set()


def collate(rows):
    """Pad to the longest text of the batch, and mask tokens at random."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows])
    noisy = torch.where(torch.rand(ids.shape) < 0.2, 1, ids)
    return {"input_ids": noisy, "attention_mask": (ids != 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


def train(folder, given, began):
    generator = random.Random(0)
    rows = [{"input_ids": generator.choices(range(2, 60), k=generator.randint(3, 12))} for _ in range(ROWS)]
    rows = [{**row, "labels": sum(row["input_ids"]) % 5} for row in rows]
    args = MaxSupTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", loss=given.loss, max_steps=STEPS, save_steps=2,
        per_device_train_batch_size=BATCH // given.processes, gradient_accumulation_steps=given.accumulation,
        learning_rate=1e-2, lr_scheduler_type="cosine", save_total_limit=3, logging_steps=1, dataloader_pin_memory=False,
        enable_jit_checkpoint=given.signal == "TERM",
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=5
    )
    trainer = MaxSupTrainer(
        BertForSequenceClassification(config), args, train_dataset=rows, data_collator=collate, callbacks=[Began(began)]
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if trainer.preempted:
        return False
    trainer.save_model()
    return True


def rank(number, port, log, folder, given, began):
    """One process of a run: what accelerate launch would tell it, and its messages to a file."""
    if given.processes > 1:
        size = str(given.processes)
        os.environ.update(
            RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size,
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
        )  # fmt: skip
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(format="%(levelname)s %(message)s")
    torch.set_num_threads(1)
    try:
        finished = train(folder, given, began)
    except BaseException:
        logging.exception("a run that could not go on")
        os._exit(1)
    if given.processes > 1:
        torch.distributed.barrier()
    os._exit(0 if finished else ASKED)


def start(folder, given, began):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.with_suffix(".log")
    ranks = [fork.Process(target=rank, args=(number, port, log, folder, given, began)) for number in range(given.processes)]
    for process in ranks:
        process.start()
    return ranks


def run(folder, given, delay=None):
    """Start or resume a run, and kill it after `delay` seconds of training. Returns the seconds that it trained, or `None`
    if it was killed."""
    began = fork.Event()
    ranks = start(folder, given, began)
    while not began.wait(0.05) and any(process.is_alive() for process in ranks):
        pass
    at = time.monotonic()
    for process in ranks:
        process.join(None if delay is None else max(0.0, at + delay - time.monotonic()))
    for process in ranks:
        if process.is_alive():
            os.kill(process.pid, signal.Signals[f"SIG{given.signal}"])
    for process in ranks:
        process.join(60)
    codes = {process.exitcode for process in ranks}
    by_signal = -signal.Signals[f"SIG{given.signal}"]  # TERM too, after training: then it is nobody's who would save
    killed = codes == {ASKED} or (by_signal in codes and codes <= {by_signal, 0})
    if not killed and codes != {0}:
        for process in ranks:
            process.kill()
        raise SystemExit(f"a run ended with {codes}:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    return None if killed else time.monotonic() - at


def inject(fault, checkpoint, generator):
    """Damage a random file of a complete checkpoint. Returns its name."""
    path = generator.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if fault == "delete" or not content:
        path.unlink()
    elif fault == "truncate":
        path.write_bytes(content[: generator.randrange(len(content))])
    else:
        for place in generator.sample(range(len(content)), min(len(content), generator.randint(1, 64))):
            content[place] ^= 0x40  # in JSON, what was white space is none any more
        path.write_bytes(content)
    return path.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--loss", default="online_label_smoothing")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    run(folder / "first", given)  # compiles kernels, so its time is not that of the others
    seconds = run(folder / "whole", given)
    expected = load_file(folder / "whole" / "model.safetensors")

    kills = half_written = runs = 0
    faults = dict.fromkeys(FAULTS, 0)
    killed = False
    while killed or kills < given.kills:
        output = folder / f"run-{runs}"
        # After enough kills the run that was killed last comes to its end.
        killed = run(output, given, generator.uniform(0, seconds / 2) if kills < given.kills else None) is None
        if killed:
            kills += 1
            broken = [path.name for path in output.glob("checkpoint-*") if damage(path)]
            half_written += bool(broken)
            newest = last_checkpoint(output)
            fault = generator.choice(FAULTS) if newest else "none"
            faults[fault] += 1
            damaged = "" if fault == "none" else f", then {fault} {inject(fault, Path(newest), generator)}"
            complete = Path(newest).name if newest else "nothing"
            print(f"kill {kills}: run {runs}, {complete} is complete, half-written: {broken}{damaged}", flush=True)
            if fault != "none" and damage(newest) is None:
                raise SystemExit(f"{newest} is damaged, and was taken for complete")
            continue
        found = load_file(output / "model.safetensors")
        differing = [name for name in expected if not torch.equal(found[name], expected[name])]
        if differing:
            raise SystemExit(f"run {runs} ended with other weights than the uninterrupted one: {differing}")
        print(f"run {runs} ended with the weights of the uninterrupted one")
        runs += 1
    print(
        f"{kills} of {given.kills} SIG{given.signal} survived ({half_written} left a half-written checkpoint; damaged "
        f"afterwards: {faults['flip']} by flipped bits, {faults['delete']} by a deleted file, {faults['truncate']} by a "
        f"truncated one) in {runs} runs of {given.processes} process(es), accumulation {given.accumulation}, {given.loss}: "
        "all weights bit-identical"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
