"""TRL's SFTTrainer and its config with a loss. Importing this needs TRL, and takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from maxsup_hf.data.arguments import flag
from maxsup_hf.scripts.common.perplexity import PerplexityMixin
from maxsup_hf.trainer.trainer import MaxSupMixin
from maxsup_hf.trainer.training_args import MaxSupArgumentsMixin


@dataclass
class MaxSupSFTConfig(MaxSupArgumentsMixin, SFTConfig):
    """SFTConfig with `loss`, `loss_kwargs`, `class_weights` and `fused_linear_loss`."""

    # TRL's default is bfloat16 everywhere, which is slow on most CPUs
    bf16: bool = flag(
        "Train in bfloat16 (default: on a GPU that has it).", torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )


class MaxSupSFTTrainer(PerplexityMixin, MaxSupMixin, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that trains the loss of its config, and reports the perplexity.

    TRL names its metrics of any evaluation `eval_…`, also those of the test data; here they have the prefix of the others.
    """

    _prefix = "eval"

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self._prefix = metric_key_prefix
        return super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if not self.model.training and self._prefix != "eval":
            found = self._metrics["eval"]
            logs.update({f"{self._prefix}_{name}": sum(values) / len(values) for name, values in found.items()})
            found.clear()
        super().log(logs, *args, **kwargs)
