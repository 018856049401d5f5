"""TRL's trainers under `MaxSupMixin`: SFTTrainer trains the registered loss, the others are refused.

SFTTrainer takes the log-probability of each label from a fused output layer that never makes the logits, so no cross-entropy
passes through its `compute_loss`. In training `logits_loss` stands in for that method: a forward without labels, which
leaves the model's own logits alone in every version of TRL, then a cross-entropy on them for the patch to replace, and TRL's
logs. Evaluation stays TRL's. Nothing here imports TRL: its classes are recognised by where they were defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from maxsup_hf.lazy_logits import LazyLogits
from maxsup_hf.normalization import IGNORE_INDEX

LOSS_TYPES = ("nll", "chunked_nll")  # TRL's names for cross-entropy; the second never makes the logits
STEP_METHODS = ("compute_loss", "training_step", "train", "_inner_training_loop")  # those that decide on the loss
CHUNK = 2**22  # logits that are looked at together for the logs


# ---- what is refused ----


def check_sft_args(args: Any) -> None:
    """Refuse a `loss_type` of SFTConfig that is not cross-entropy.

    Raises:
        ValueError: names loss_type.
    """
    is_config = any(base.__name__ == "SFTConfig" and _is_trl(base) for base in type(args).__mro__)
    if is_config and args.loss_type not in LOSS_TYPES:
        raise ValueError(
            f"loss_type must be one of {', '.join(map(repr, LOSS_TYPES))} for loss={args.loss!r} to take its place, got "
            f"{args.loss_type!r}: leave loss_type out, or use SFTTrainer and SFTConfig without MaxSupMixin"
        )


def check_trl(trainer_class: type, mixin: type) -> None:
    """Refuse TRL's other trainers (DPO, reward, GRPO, …).

    What decides is the first class after the mixin that has a say in the loss: a `compute_loss` of the user's own is left to
    the checks of its first step.

    Raises:
        ValueError: names the trainer.
    """
    after = trainer_class.__mro__[trainer_class.__mro__.index(mixin) + 1 :]
    others = (base for base in after if _package(base) != "maxsup_hf")
    owner = next((base for base in others if any(name in vars(base) for name in STEP_METHODS)), object)
    if _is_trl(owner) and not _is_sft(owner):
        raise ValueError(
            f"{trainer_class.__name__} trains on the loss of TRL's {owner.__name__}, which is not a cross-entropy over "
            f"classes that MaxSupMixin could replace: use {owner.__name__} without MaxSupMixin, or SFTTrainer with it"
        )


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_trl(cls: type) -> bool:
    return _package(cls) == "trl"


def _is_sft(cls: type) -> bool:
    return cls.__name__ == "SFTTrainer" and _is_trl(cls)


# ---- the training loss ----


@contextmanager
def sft_loss_replaced(trainer_class: type) -> Iterator[None]:
    """While this is open, SFTTrainer's own `compute_loss` is `logits_loss`, also for classes in between that call it. Does
    nothing for other trainers."""
    sft: Any = next(filter(_is_sft, trainer_class.__mro__), None)
    if sft is None or "compute_loss" not in vars(sft):
        yield
        return
    original: Callable[..., Any] = sft.compute_loss
    sft.compute_loss = logits_loss
    try:
        yield
    finally:
        sft.compute_loss = original


def logits_loss(
    trainer: Any, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    """The cross-entropy of each next token on the logits of a language model, and what TRL logs in training.

    Args:
        trainer: an SFTTrainer.
        model: as it is called in the step.
        inputs: a micro-batch; `labels` (B, T), −100 where a token is not trained.
        return_outputs: as in `Trainer.compute_loss`.
        num_items_in_batch: not used: the patch divides by what the accumulated batch counts.

    Raises:
        ValueError: the sequences are divided among ranks.
    """
    if "shift_labels" in inputs:
        raise ValueError(
            f"loss={trainer.args.loss!r} does not support context or sequence parallelism in SFTTrainer, which divides "
            "sequences among ranks: leave parallelism_config out"
        )
    has_router = getattr(trainer, "aux_loss_enabled", False)
    options = {"use_cache": False} | ({"output_router_logits": True} if has_router else {})
    outputs = model(**{key: value for key, value in inputs.items() if key != "labels"}, **options)
    labels = inputs["labels"].to(outputs.logits.device)
    # Prompt tuning puts virtual tokens in front. The labels are shifted, as in transformers: it spares a copy of the logits.
    logits = outputs.logits[:, -labels.shape[1] :]
    logits = logits.reshape(-1, logits.shape[-1])
    target = pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:].reshape(-1)
    loss = nn.functional.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)
    if has_router:
        loss = loss + _router_weight(trainer) * outputs.aux_loss.to(loss.device)
    _add_logs(trainer, inputs, logits, target, outputs.aux_loss if has_router else None)
    return (loss, outputs) if return_outputs else loss


def _router_weight(trainer: Any) -> float:
    of_model = getattr(trainer.model.config.get_text_config(), "router_aux_loss_coef", 0.0)  # before TRL 1.3
    return getattr(trainer, "router_aux_loss_coef", of_model)


# ---- TRL's logs ----


def _add_logs(trainer: Any, inputs: dict[str, Any], logits: Any, target: Tensor, aux_loss: Tensor | None) -> None:
    """`num_tokens`, `aux_loss`, and where there are logits `entropy` and `mean_token_accuracy`, over all ranks."""
    metrics, reduce = trainer._metrics["train"], trainer.accelerator.reduce
    mask = inputs.get("attention_mask")  # without padding there is none
    tokens = torch.ones_like(inputs["input_ids"]).sum() if mask is None else mask.sum()
    trainer._total_train_tokens += int(reduce(tokens, "sum")) // getattr(trainer, "_tp_size", 1)
    metrics["num_tokens"] = [trainer._total_train_tokens]
    if aux_loss is not None:
        metrics["aux_loss"].append(reduce(aux_loss.detach(), "mean").item())
    if not isinstance(logits, LazyLogits):
        entropy, right, count = reduce(_token_sums(logits.detach(), target), "sum").tolist()
        metrics["entropy"].append(entropy / max(count, 1))
        metrics["mean_token_accuracy"].append(right / max(count, 1))


@torch.no_grad()
def _token_sums(logits: Tensor, target: Tensor) -> Tensor:
    """Summed entropy, number of right predictions and number of rows, over the rows that are not ignored."""
    sums = torch.zeros(3, device=logits.device)
    for rows in (target != IGNORE_INDEX).nonzero().squeeze(1).split(max(1, CHUNK // logits.shape[-1])):
        z = logits[rows].float()
        entropy = torch.distributions.Categorical(logits=z, validate_args=False).entropy().sum()
        right = (z.argmax(-1) == target[rows]).sum()
        sums += torch.stack([entropy, right.float(), torch.full_like(entropy, len(rows))])
    return sums
