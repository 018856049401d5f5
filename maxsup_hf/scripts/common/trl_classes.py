"""TRL's SFTTrainer and its config with a loss. Importing this needs TRL, and takes seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
    """SFTTrainer that trains the loss of its config, and reports the perplexity."""
