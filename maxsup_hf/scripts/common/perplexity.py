"""The perplexity of language models, over the tokens of an evaluation."""

from __future__ import annotations

from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from maxsup_hf.losses import IGNORE_INDEX
from maxsup_hf.metrics import perplexity
from maxsup_hf.trainer.validation import shifts_labels


class PerplexityMixin:
    """Before a Trainer of language models: the loss of an evaluation is the mean over its tokens, whatever batches they are
    in, and its perplexity is added."""

    _token_sums: torch.Tensor  # summed loss, and number of tokens

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labels = inputs.get("labels")
        found = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if found[0] is not None and labels is not None:
            counted = labels[..., 1:] if shifts_labels(self.model) else labels  # type: ignore[attr-defined]
            count = (counted != IGNORE_INDEX).sum().to(self._token_sums)
            self._token_sums += torch.stack([found[0].detach().to(self._token_sums) * count, count])
        return found

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self._token_sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        sums = self._token_sums.float().to(self.args.device)  # type: ignore[attr-defined]
        total, count = self.accelerator.reduce(sums, "sum").tolist()  # type: ignore[attr-defined]
        if count:
            output.metrics[f"{metric_key_prefix}_loss"] = total / count
            output.metrics[f"{metric_key_prefix}_perplexity"] = perplexity(total / count)
        return output
