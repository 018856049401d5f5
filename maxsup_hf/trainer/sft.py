"""Support for TRL: SFTTrainer under `MaxSupMixin` trains the registered loss, TRL's other trainers are rejected.

SFTTrainer computes the log-probability of each label in a fused output layer without materializing the logits, so its
`compute_loss` calls no cross-entropy. In training, `sft_loss` replaces that method: the model computes its own loss with a
cross-entropy, which the patch replaces, and TRL's logs are computed from its logits. With `fused_linear_loss` there are no
logits, so `entropy` and `mean_token_accuracy` are not logged. Evaluation is TRL's own. This module never imports TRL: it
recognizes TRL's classes by the package that defines them.
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

LOSS_TYPES = ("nll", "chunked_nll")  # TRL's names for cross-entropy; the second never materializes the logits
STEP_METHODS = ("compute_loss", "training_step", "train", "_inner_training_loop")  # they determine the loss
CHUNK = 2**22  # logits that are processed at a time for the logs


# ---- validation ----


def check_trl_args(trainer_class: type, args: Any) -> None:
    """Check that the arguments of a TRL trainer are a TRL config, and that `loss_type` of an SFTConfig is cross-entropy.

    TRL converts other arguments to a config of its own, which loses the fields of the loss. `"chunked_nll"`, for which TRL
    before 1.15 replaces the forward of the model, is changed to `"nll"`.

    Raises:
        TypeError: `args` are not a TRL config.
        ValueError: `loss_type` is not cross-entropy.
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
            f"loss_type must be one of {', '.join(map(repr, LOSS_TYPES))} for loss={args.loss!r} to replace it, got "
            f"{args.loss_type!r}: leave loss_type out, or use SFTTrainer and SFTConfig without MaxSupMixin"
        )
    args.loss_type = "nll"


def check_trl(trainer_class: type, mixin: type) -> None:
    """Reject TRL's other trainers (DPO, reward, GRPO, …).

    The first class after the mixin that determines the loss decides. If that is a user's own class, the checks of its first
    step decide instead.

    Raises:
        ValueError: the class is a TRL trainer other than SFTTrainer.
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
    """While this is open, `sft_loss` replaces SFTTrainer's `compute_loss`, for classes in between that call it too. Has no
    effect on other trainers."""
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
        inputs: a micro-batch; `labels` (B, T), −100 where a token is ignored.
        return_outputs: as in `Trainer.compute_loss`.
        num_items_in_batch: unused, because the patch divides by the label count of the accumulated batch.

    Raises:
        ValueError: the sequences are divided among ranks.
    """
    if "shift_labels" in inputs:
        raise ValueError(
            f"loss={trainer.args.loss!r} does not support context or sequence parallelism in SFTTrainer, which divides "
            "sequences among ranks: leave parallelism_config out"
        )
    # Nothing predicts the first token, except the virtual tokens of prompt tuning, with which its label would be counted.
    labels = inputs["labels"].index_fill(1, torch.zeros(1, dtype=torch.long, device=inputs["labels"].device), IGNORE_INDEX)
    # The loss must be computed inside the forward: DDP and FSDP do not support parameters that are used after it.
    given = {**inputs, "labels": labels, "use_cache": False}
    if getattr(trainer, "aux_loss_enabled", False):
        given["output_router_logits"] = True
    loss, outputs = Trainer.compute_loss(trainer, model, given, return_outputs=True)
    _add_logs(trainer, given, outputs)
    return (loss, outputs) if return_outputs else loss


# ---- TRL's logs ----


def _add_logs(trainer: Any, inputs: dict[str, Any], outputs: Any) -> None:
    """Log `num_tokens`, `aux_loss`, and if there are logits `entropy` and `mean_token_accuracy`, over all ranks."""
    metrics, reduce = trainer._metrics["train"], trainer.accelerator.reduce
    mask = inputs.get("attention_mask")  # `None` without padding
    tokens = torch.ones_like(inputs["input_ids"]).sum() if mask is None else mask.sum()
    trainer._total_train_tokens += int(reduce(tokens, "sum")) // getattr(trainer, "_tp_size", 1)
    metrics["num_tokens"] = [trainer._total_train_tokens]
    if "output_router_logits" in inputs:
        metrics["aux_loss"].append(reduce(outputs.aux_loss.detach(), "mean").item())
    if isinstance(outputs.logits, LazyLogits):
        return
    entropy, correct, count = reduce(_token_sums(outputs.logits, inputs["labels"]), "sum").tolist()
    metrics["entropy"].append(entropy / max(count, 1))
    metrics["mean_token_accuracy"].append(correct / max(count, 1))


@torch.no_grad()
def _token_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed entropy, number of correct predictions and number of tokens, over the tokens that are not ignored.

    Args:
        logits: (B, V + T, K), the first V for the virtual tokens of prompt tuning.
        labels: (B, T).
    """
    offset = logits.shape[1] - labels.shape[1] - 1  # the token at t is predicted at t − 1
    sums = torch.zeros(3, device=logits.device)
    example, token = (labels != IGNORE_INDEX).to(logits.device).nonzero(as_tuple=True)
    targets = labels.to(logits.device)[example, token]
    size = max(1, CHUNK // logits.shape[-1])
    for i, j, target in zip(example.split(size), (token + offset).split(size), targets.split(size), strict=True):
        z = logits[i, j].float()
        entropy = torch.distributions.Categorical(logits=z, validate_args=False).entropy().sum()
        sums += torch.stack([entropy, (z.argmax(-1) == target).sum().float(), torch.full_like(entropy, len(target))])
    return sums
