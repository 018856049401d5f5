"""Run by two processes: writes the gradients of one step of SFTTrainer under the mixin, 2 rows × 2 micro-batches each.

accelerate launch --multi_gpu --num_processes 2 tests/trainer/sft_processes.py OUTPUT
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import TrainerCallback

from tests.launch import end_of_a_rank
from tests.trainer.test_sft import PROCESS_CASES, trainer


class Gradients(TrainerCallback):
    """Those that the optimizer gets."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}


def main(output):
    found = {}
    for mode, fused in PROCESS_CASES:
        with tempfile.TemporaryDirectory() as folder:
            made = trainer(mode, folder, (2, 2), fused_linear_loss=fused, max_grad_norm=0.0)
            made.add_callback(gradients := Gradients())
            made.train()
            found[mode, fused] = gradients.found, made.state.log_history[0], made.args.world_size
    if made.is_world_process_zero():
        torch.save(found, output)


if __name__ == "__main__":
    main(sys.argv[1])
    end_of_a_rank()
