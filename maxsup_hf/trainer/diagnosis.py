"""Explanations of training steps that failed, or that did not train the requested loss.

An exception is explained by where it was raised, never by the words of its message.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.trainer_utils import unwrap_peft_model

from maxsup_hf.trainer.cross_entropy_patch import CrossEntropyPatch
from maxsup_hf.trainer.validation import code_of


def explain_error(error: Exception, model: nn.Module, patch: CrossEntropyPatch) -> str | None:
    """Why a training step failed before its first cross-entropy, or `None` where the exception speaks for itself.

    Args:
        error: raised by the step.
        model: the model, not wrapped for distributed training.
        patch: as it was during the step.
    """
    if should_reduce_batch_size(error):  # out of memory: auto_find_batch_size handles the exception as it is
        return None
    raised_in = _functions(error)
    if patch.calls or code_of(CrossEntropyPatch.cross_entropy) in raised_in:
        return None
    name, requested = type(model).__name__, f"loss={patch.loss.spec.name!r} was asked for"
    if _has_no_loss(error, raised_in[-1], model):
        return (
            f"{requested}, but {name} is a head that transformers gives no loss for these labels "
            f"({type(error).__name__}: {error}). Use a head whose loss is a cross-entropy over classes"
        )
    if patch.soft_labels is not None:
        return (
            f"{requested} with soft labels, but {name} failed on the integer labels that stand in for them, before any "
            f"cross-entropy ({type(error).__name__}: {error}). If its own loss takes floating labels (multi-label, KL "
            "divergence), use the stock Trainer for this head"
        )
    return None


def _has_no_loss(error: Exception, raised_in: CodeType, model: nn.Module) -> bool:
    """Whether transformers has no loss for the labels that the model was given.

    Args:
        error: raised before any cross-entropy.
        raised_in: the function that raised it.
        model: that was trained.
    """
    if isinstance(error, NotImplementedError):
        return True
    if raised_in is code_of(Trainer.compute_loss):  # its only ValueError: the outputs of the model hold no loss
        return isinstance(error, ValueError)
    model = unwrap_peft_model(model)
    if not isinstance(model, PreTrainedModel) or raised_in is not code_of(model.forward):
        return False
    if isinstance(error, ValueError):  # a forward without any loss refuses labels; others check their inputs too
        return not any("loss" in name.lower() or name == "cross_entropy" for name in raised_in.co_names)
    # For a head of a kind that it does not know, transformers falls back to the loss of causal language models. A forward
    # that calls it with the arguments of another loss fails at that call.
    is_fallback = not hasattr(model, "_loss_function") and getattr(model, "loss_type", None) not in LOSS_MAPPING
    return isinstance(error, TypeError) and is_fallback and "loss_function" in raised_in.co_names


def _functions(error: BaseException) -> list[CodeType]:
    """Code of the functions that an exception passed through, the one that raised it last."""
    codes, traceback = [], error.__traceback__
    while traceback is not None:
        codes.append(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    return codes


def explain_untrained(patch: CrossEntropyPatch, model: nn.Module, owner: type) -> str:
    """What a finished step was trained on instead of the requested loss.

    Args:
        patch: as it was during the step.
        model: the model, not wrapped for distributed training.
        owner: the Trainer's class.
    """
    what = f"{owner.__name__}.compute_loss" if has_own_compute_loss(owner) else type(model).__name__
    if patch.calls:
        found = f"the loss that {what} trains on does not depend on the cross-entropy that was computed in the step"
    else:
        found = (
            f"{what} trained on a loss without a cross-entropy that can be replaced (regression, multi-label, "
            "detection, contrastive, a formula of its own or a fused kernel)"
        )
    return (
        f"loss={patch.loss.spec.name!r} was asked for, but {found}. The weights were not updated in this step. Compute the "
        "loss with torch.nn.functional.cross_entropy or torch.nn.CrossEntropyLoss, called by that name and not through a "
        "reference that was kept before training; use a head whose loss is a cross-entropy over classes; or use the "
        "stock Trainer"
    )


def has_own_compute_loss(owner: type) -> bool:
    """Whether the first `compute_loss` of a Trainer's class is the user's own."""
    definer = next((base for base in owner.__mro__ if "compute_loss" in vars(base)), owner)
    return definer.__module__.partition(".")[0] not in ("maxsup_hf", "transformers")


def overrides_compute_loss(trainer: Any) -> bool:
    """Whether the loss is computed by a `compute_loss` of the user's own, on the Trainer itself or in any of its classes."""
    if "compute_loss" in vars(trainer):
        return True
    packages = [base.__module__.partition(".")[0] for base in type(trainer).__mro__ if "compute_loss" in vars(base)]
    return next(package for package in packages if package != "maxsup_hf") != "transformers"
