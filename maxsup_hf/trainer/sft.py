"""TRL's trainers under `MaxSupMixin`: SFTTrainer trains the registered loss, the others are refused.

SFTTrainer takes the log-probability of each label from a fused output layer that never makes the logits, so no cross-entropy
passes through its `compute_loss`. In training `sft_loss` stands in for that method: the model computes its own loss, for the
patch to replace, and TRL's logs are made from its logits; with `fused_linear_loss` there are none, so that `entropy` and
`mean_token_accuracy` are left out. Evaluation stays TRL's. Nothing here imports TRL: its classes are recognised by where
they were defined.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from maxsup_hf.losses import IGNORE_INDEX
from maxsup_hf.trainer.lm_head_patch import LazyLogits

LOSS_TYPES = ("nll", "chunked_nll")  # TRL's names for cross-entropy; the second never makes the logits
STEP_METHODS = ("compute_loss", "training_step", "train", "_inner_training_loop")  # those that decide on the loss
CHUNK = 2**22  # logits that are looked at together for the logs


# ---- what is refused ----


def check_trl_args(trainer_class: type, args: Any) -> None:
    """Refuse arguments that a trainer of TRL would turn into a config of its own, without a loss, and a `loss_type` of
    SFTConfig that is not cross-entropy.

    `"chunked_nll"`, with which TRL before 1.15 replaces the forward of the model, becomes `"nll"`.

    Raises:
        TypeError: not a config of TRL.
        ValueError: names loss_type.
    """
    owner = next(filter(_is_trl, trainer_class.__mro__), None)
    if owner is None:
        return
    if not any(map(_is_trl, type(args).__mro__)):
        config = owner.__name__.replace("Trainer", "Config")
        raise TypeError(
            f"args of a {owner.__name__} under MaxSupMixin must be a {config} with the fields of MaxSupArgumentsMixin, got "
            f"{type(args).__name__}: write @dataclass class MyConfig(MaxSupArgumentsMixin, {config})"
        )
    if not any(map(_is_sft, trainer_class.__mro__)):
        return
    if args.loss_type not in LOSS_TYPES:
        raise ValueError(
            f"loss_type must be one of {', '.join(map(repr, LOSS_TYPES))} for loss={args.loss!r} to take its place, got "
            f"{args.loss_type!r}: leave loss_type out, or use SFTTrainer and SFTConfig without MaxSupMixin"
        )
    args.loss_type = "nll"


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
    """While this is open, SFTTrainer's own `compute_loss` is `sft_loss`, also for a class in between that calls it. Does
    nothing for other trainers."""
    sft: Any = next(filter(_is_sft, trainer_class.__mro__), None)
    if sft is None:
        yield
        return
    original = sft.compute_loss
    sft.compute_loss = sft_loss
    try:
        yield
    finally:
        sft.compute_loss = original


def sft_loss(
    trainer: Any, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    """The loss that a language model computes itself, and what TRL logs in training.

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
    # Nothing predicts the first token, except with prompt tuning, whose virtual tokens would make the count a larger one.
    labels = inputs["labels"].index_fill(1, torch.zeros(1, dtype=torch.long, device=inputs["labels"].device), IGNORE_INDEX)
    # The loss is computed inside of the forward: DDP and FSDP do not serve parameters that are used after it.
    given = {**inputs, "labels": labels, "use_cache": False}
    if getattr(trainer, "aux_loss_enabled", False):
        given["output_router_logits"] = True
    loss, outputs = Trainer.compute_loss(trainer, model, given, return_outputs=True)
    _add_logs(trainer, given, outputs)
    return (loss, outputs) if return_outputs else loss


# ---- TRL's logs ----


def _add_logs(trainer: Any, inputs: dict[str, Any], outputs: Any) -> None:
    """`num_tokens`, `aux_loss`, and where there are logits `entropy` and `mean_token_accuracy`, over all ranks."""
    metrics, reduce = trainer._metrics["train"], trainer.accelerator.reduce
    mask = inputs.get("attention_mask")  # without padding there is none
    tokens = torch.ones_like(inputs["input_ids"]).sum() if mask is None else mask.sum()
    trainer._total_train_tokens += int(reduce(tokens, "sum")) // getattr(trainer, "_tp_size", 1)
    metrics["num_tokens"] = [trainer._total_train_tokens]
    if "output_router_logits" in inputs:
        metrics["aux_loss"].append(reduce(outputs.aux_loss.detach(), "mean").item())
    if isinstance(outputs.logits, LazyLogits):
        return
    entropy, right, count = reduce(_token_sums(outputs.logits, inputs["labels"]), "sum").tolist()
    metrics["entropy"].append(entropy / max(count, 1))
    metrics["mean_token_accuracy"].append(right / max(count, 1))


@torch.no_grad()
def _token_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed entropy, number of right predictions and number of tokens, over those that are trained.

    Args:
        logits: (B, V + T, K), behind V virtual tokens of prompt tuning.
        labels: (B, T).
    """
    before = logits.shape[1] - labels.shape[1] - 1  # the token at t is predicted at t − 1
    sums = torch.zeros(3, device=logits.device)
    example, token = (labels != IGNORE_INDEX).to(logits.device).nonzero(as_tuple=True)
    targets = labels.to(logits.device)[example, token]
    size = max(1, CHUNK // logits.shape[-1])
    for i, j, target in zip(example.split(size), (token + before).split(size), targets.split(size), strict=True):
        z = logits[i, j].float()
        entropy = torch.distributions.Categorical(logits=z, validate_args=False).entropy().sum()
        sums += torch.stack([entropy, (z.argmax(-1) == target).sum().float(), torch.full_like(entropy, len(target))])
    return sums
