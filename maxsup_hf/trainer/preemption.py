"""At SIGTERM, all ranks of a training end after the same step, with a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from transformers.trainer_jit_checkpoint import CheckpointManager, JITCheckpointCallback


class StopAtSigterm(JITCheckpointCallback):
    """Replaces the stock callback for SIGTERM, whose signal handler it keeps.

    The stock one saves wherever a rank happens to be, possibly between the backward and the optimizer's step, when the
    random number generators are already in the state of the next step. And ranks receive the signal one by one, so they
    save at different steps and wait for each other forever. Here all ranks agree at the end of a step, and the training loop
    saves as usual.
    """

    trainer: Any
    jit_manager: Any

    def __init__(self, trainer: Any, manager: CheckpointManager):
        self.trainer, self.jit_manager = trainer, manager
        # By default it delays saving, in case SIGKILL follows at once. An incomplete checkpoint does no harm here.
        manager.kill_wait = 0

    def _any_rank_is_signalled(self) -> bool:
        signalled = torch.tensor(float(self.jit_manager.is_checkpoint_requested), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(signalled, "sum"))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stock callback would save here."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stock callback would save here."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._any_rank_is_signalled() and state.global_step < state.max_steps:
            self.trainer.preempted = control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # SIGKILL may follow soon

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.preempted:  # the loop treats the early stop as the end of an epoch
            control.should_save = control.should_evaluate = False
