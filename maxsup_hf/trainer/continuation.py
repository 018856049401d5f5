"""The settings of a run that decide how it continues from a checkpoint, and what holds if they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from maxsup_hf.output.files import plain
from maxsup_hf.trainer.manifest import read_manifest

DECIDING = (
    "seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last", "dataloader_persistent_workers",
    "ignore_data_skip", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "lr_milestones", "lr_gamma", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "bf16", "fp16", "neftune_noise_alpha",
)  # fmt: skip


def settings_of(args: Any, rows: int | None = None, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The settings that a checkpoint records. The loss is recorded by `maxsup_hf.trainer.loss_state`.

    Args:
        args: the training arguments.
        rows: of the training data, `None` where the number is unknown.
        dtype: of the weights, `None` where the model is not known yet.
    """
    found = {name: getattr(args, name, None) for name in DECIDING}
    # A batch of 8 in one process and batches of 4 in two hold the same rows, in the same order.
    found["batch_size_of_all_processes"] = None if args.auto_find_batch_size else args.train_batch_size * args.world_size
    found["rows"] = rows
    found["dtype"] = None if dtype is None else str(dtype).removeprefix("torch.")
    found["length"] = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    found["processes"] = args.world_size
    return plain(found)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The settings that differ, with a phrase for each. What one of the two does not record is not compared."""
    return {
        key: f"{key}: {before[key]!r} there, {now[key]!r} here" for key in now if key in before and before[key] != now[key]
    }


def changes_on_resume(
    checkpoint: str | Path, args: Any, rows: int | None = None, dtype: torch.dtype | None = None
) -> dict[str, str]:
    """What differs between the run that wrote a checkpoint and the run that resumes it, with a phrase for each setting.

    Args:
        checkpoint: complete.
        args: training arguments of the run that resumes it.
        rows: of its training data, if they have been read.
        dtype: of its weights, if the model has been made.

    Raises:
        ValueError: something differs that decides the continuation, and `args.resume_anyway` is not set.
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return {}
    before, now = manifest.get("settings") or {}, settings_of(args, rows, dtype)
    unknown = [key for key in ("rows", "dtype", "batch_size_of_all_processes") if None in (before.get(key), now[key])]
    changes = differences(before, {key: value for key, value in now.items() if key not in unknown})
    if manifest.get("save_only_model") and not (manifest.get("finished") and "length" not in changes):
        changes["save_only_model"] = "optimizer, schedule and random state were not saved there (--save_only_model)"
    refused = [phrase for key, phrase in changes.items() if key not in ("length", "processes")]
    if refused and not args.resume_anyway:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} would not continue as the run that wrote it ({'; '.join(refused)}): pass "
            "the same settings, or accept what differs with --resume_anyway true"
        )
    return changes


def what_holds(changes: Mapping[str, str], deepspeed: bool = False) -> str:
    """What holds in a run that is resumed with other settings, in words for the log."""
    if "save_only_model" in changes:
        restored = "weights and step are those of the checkpoint, while optimizer and schedule start afresh"
    elif "optim" in changes:
        restored = "weights, random state and step are those of the checkpoint, while the new optimizer starts without state"
    else:
        restored = "weights, state of the optimizer, random state and step are those of the checkpoint"
    settings = "the settings are those given here"
    if deepspeed:
        settings += ", except for those of optimizer and schedule, which DeepSpeed restores"
    return f"{restored}; from the next step on {settings}, so the result is not that of an uninterrupted run"


@contextmanager
def settings_given_here(optimizer: Any, scheduler: Any) -> Iterator[None]:
    """Undo what loading a checkpoint does to the settings of optimizer and schedule: their state is that of the checkpoint,
    and learning rate, weight decay and the like remain those of this run."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # of Accelerate's wrapper
    given = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    rates: list[Any] = getattr(scheduler, "base_lrs", [])
    yield
    for group, settings in zip(optimizer.param_groups, given, strict=True):
        group.update(settings)
    if isinstance(scheduler, LambdaLR):  # every schedule of transformers but those that look at a metric
        scheduler.base_lrs = rates
        steps = scheduler.last_epoch
        scheduler._last_lr = [rate * shape(steps) for rate, shape in zip(rates, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate
