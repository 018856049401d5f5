"""Run by two processes: writes every family's gradients of one step over this rank's share of a batch.

accelerate launch --multi_gpu --num_processes 2 tests/trainer/distributed_gradients.py ddp|fsdp OUTPUT [FAMILY …]

With names of families they are those of test_fused_trainer.py, trained with fused_linear_loss.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.heads import HEADS
from tests.launch import end_of_a_rank


def gradients(head, wrapping, folder, **kwargs):
    torch.manual_seed(0)
    model = tiny.freeze_batch_norm(head.build())
    args = MaxSupTrainingArguments(folder, use_cpu=True, **kwargs)
    trainer = MaxSupTrainer(model, args)
    state = PartialState()
    # Rank r takes every second micro-batch, so ranks hold different numbers of rows.
    batches = tiny.cut(head.batch(torch.Generator().manual_seed(1)), [3, 1, 2, 2])[
        state.process_index :: state.num_processes
    ]
    if wrapping == "fsdp":
        wrapped = shard(model, mesh=init_device_mesh("cpu", (state.num_processes,)), reshard_after_forward=True)
    else:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    for sample in samples:  # both reduce after every micro-batch: the mean over ranks of what it added
        trainer.training_step(wrapped, sample, num_items)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def shard(model, **kwargs):
    """As accelerate does: each layer, then what is left, the output embedding with it."""
    for module in reversed(list(model.modules())):
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                fully_shard(layer, **kwargs)
    return fully_shard(model, **kwargs)


def main(wrapping: str, output: str, *fused: str) -> None:
    MaxSupTrainingArguments(f"{output}.out", use_cpu=True)  # starts the process group, on the CPU
    state = PartialState()
    if fused:
        from tests.trainer.fused import FUSED as heads
    else:
        heads = HEADS
    folder, kwargs = f"{output}.out", {"fused_linear_loss": bool(fused)}
    found = {name: gradients(head, wrapping, folder, **kwargs) for name, head in heads.items() if head.additive}
    if state.is_main_process:
        torch.save({"processes": state.num_processes, "gradients": found}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_of_a_rank()
