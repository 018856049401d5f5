"""TRL's SFTTrainer under `MaxSupMixin`.

SFTTrainer takes the log-probability of each label from a fused output layer and never makes the logits, so no
cross-entropy passes through its own `compute_loss`. In training the model's own loss stands in for it, which is a
cross-entropy on logits (or on none, with `fused_linear_loss`), and TRL's logs are computed here. Evaluation stays TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from maxsup_hf.lazy_logits import LazyLogits
from maxsup_hf.normalization import IGNORE_INDEX

LOSS_TYPES = ("nll", "chunked_nll")  # what SFTTrainer calls plain cross-entropy, and its fused form
CHUNK = 2**24  # logits whose entropy is computed at a time


def prepare_sft_args(args: Any) -> None:
    """Refuse a `loss_type` of SFTConfig that is another loss, and turn the fused form of cross-entropy into the plain one.

    Raises:
        ValueError: names loss_type.
    """
    if not any(_is_trl(base) and base.__name__ == "SFTConfig" for base in type(args).__mro__):
        return
    if args.loss_type not in LOSS_TYPES:
        raise ValueError(
            f"loss_type={args.loss_type!r} of SFTConfig and loss={args.loss!r} are two losses for one training: leave "
            "loss_type at its default, or use TRL's own SFTTrainer and SFTConfig"
        )
    args.loss_type = "nll"


def is_sft(trainer_class: type, mixin: type) -> bool:
    """Whether `compute_loss` after the mixin is SFTTrainer's own."""
    base = _next_compute_loss(trainer_class, mixin)
    return _is_trl(base) and base.__name__ == "SFTTrainer"


def check_trl(trainer_class: type, mixin: type) -> None:
    """Refuse TRL's other trainers, whose losses are not cross-entropies over classes.

    Raises:
        ValueError: names the trainer.
    """
    base = _next_compute_loss(trainer_class, mixin)
    if _is_trl(base) and base.__name__ != "SFTTrainer":
        raise ValueError(
            f"{trainer_class.__name__} trains on the loss of TRL's {base.__name__}, which is not a cross-entropy over "
            "classes that another loss could replace: use that trainer without MaxSupMixin, or SFTTrainer with it"
        )


def _next_compute_loss(trainer_class: type, mixin: type) -> type:
    classes = trainer_class.__mro__
    return next(base for base in classes[classes.index(mixin) + 1 :] if "compute_loss" in vars(base))


def _is_trl(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "trl"


def sft_loss(trainer: Any, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
    """The training loss of an SFTTrainer as the model computes it, with TRL's logs.

    Args:
        trainer: an SFTTrainer.
        model: as it is called in the step.
        inputs: of a micro-batch; `labels` (B, T).
        return_outputs: as in `Trainer.compute_loss`.
    """
    inputs = {**inputs, "use_cache": False}  # which does not go with gradient checkpointing
    if getattr(trainer, "aux_loss_enabled", False):
        inputs["output_router_logits"] = True
    loss, outputs = Trainer.compute_loss(trainer, model, inputs, True)
    metrics = trainer._metrics["train"]
    if not isinstance(outputs.logits, LazyLogits):  # else there are none to look at
        for name, value in _token_metrics(outputs.logits, inputs["labels"], trainer.accelerator).items():
            metrics[name].append(value)
    trainer._total_train_tokens += _num_tokens(inputs, trainer.accelerator)
    metrics["num_tokens"] = [trainer._total_train_tokens]
    if getattr(trainer, "aux_loss_enabled", False):
        metrics["aux_loss"].append(trainer.accelerator.gather_for_metrics(outputs.aux_loss.detach()).mean().item())
    return (loss, outputs) if return_outputs else loss


@torch.no_grad()
def _token_metrics(logits: Tensor, labels: Tensor, accelerator: Any) -> dict[str, float]:
    """TRL's `entropy` and `mean_token_accuracy`: means over the labels that are counted, of all ranks."""
    logits, labels = logits[:, -labels.shape[1] :][:, :-1], labels[:, 1:]  # behind the virtual tokens of prompt tuning
    counted = (labels != IGNORE_INDEX).to(logits.device)
    rows, targets = logits[counted], labels.to(logits.device)[counted]
    entropy = torch.zeros((), device=logits.device)
    for chunk in rows.split(max(1, CHUNK // rows.shape[-1])):
        log_q = chunk.float().log_softmax(-1)
        entropy -= (log_q.exp() * log_q).sum()
    found = torch.stack([entropy, (rows.argmax(-1) == targets).sum().float(), counted.sum().float()])
    entropy, right, count = accelerator.gather_for_metrics(found[None]).sum(0).tolist()
    return {"entropy": entropy / max(count, 1), "mean_token_accuracy": right / max(count, 1)}


def _num_tokens(inputs: Mapping[str, Tensor], accelerator: Any) -> int:
    """How many tokens of all ranks are not padding; without padding there is no attention mask."""
    mask = inputs.get("attention_mask")
    own = mask.sum() if mask is not None else torch.tensor(inputs["input_ids"].numel(), device=inputs["input_ids"].device)
    return int(accelerator.gather_for_metrics(own).sum().item())
