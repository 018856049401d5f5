"""Run by `accelerate launch`: writes the gradients of one step over this rank's share of a batch.

accelerate launch --multi_gpu --num_processes 2 tests/distributed_gradients.py NAME OUTPUT SIZES…
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import PartialState

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny


def main(name: str, output: str, *sizes: str) -> None:
    torch.manual_seed(0)
    model = tiny.CLASSIFIERS[name]()
    args = MaxSupTrainingArguments(f"{output}.out", use_cpu=True)
    trainer = MaxSupTrainer(model, args)
    # Rank r takes every second micro-batch, so ranks hold different numbers of rows.
    data = tiny.batch(name)
    data["labels"][2] = -100
    rank, world = PartialState().process_index, PartialState().num_processes
    batches = tiny.cut(data, [int(size) for size in sizes])[rank::world]
    wrapped = trainer.accelerator.prepare(model)
    samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    for i, sample in enumerate(samples):
        if i < len(samples) - 1:
            with trainer.accelerator.no_sync(wrapped):
                trainer.training_step(wrapped, sample, num_items)
        else:
            trainer.training_step(wrapped, sample, num_items)
    if rank == 0:
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        torch.save({"processes": world, "gradients": gradients}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
