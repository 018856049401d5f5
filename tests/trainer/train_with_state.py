"""Trains a tiny model with online label smoothing, three epochs of four steps, and saves every step.

python tests/trainer/train_with_state.py OUTPUT [--resume CHECKPOINT] [--die_at STEP]     # STEP: killed after it was saved

At the end the main process writes the table to OUTPUT/table.pt. Also run by `accelerate launch`, on the same batches.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import TrainerCallback

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.launch import end_of_a_rank


class Die(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--resume")
    parser.add_argument("--die_at", type=int)
    given = parser.parse_args()
    args = MaxSupTrainingArguments(
        given.output, use_cpu=True, disable_tqdm=True, loss="online_label_smoothing", num_train_epochs=3,
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")), learning_rate=1e-2, save_strategy="steps",
        save_steps=1, train_sampling_strategy="sequential",
    )  # fmt: skip
    torch.manual_seed(1)
    data = tiny.batch("vit", size=32)
    data["pixel_values"][:, 0] += data["labels"][:, None, None]  # something to learn, so that rows are right
    trainer = MaxSupTrainer(tiny.vit(), args, train_dataset=tiny.rows(data), callbacks=[Die(given.die_at)])
    trainer.train(resume_from_checkpoint=given.resume)
    if trainer.is_world_process_zero():
        state = trainer.loss_function.state
        torch.save({"epoch": state.epoch, "table": state.table, "processes": args.world_size}, f"{given.output}/table.pt")


if __name__ == "__main__":
    main()
    end_of_a_rank()
