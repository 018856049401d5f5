"""Default training arguments. Each task starts from those that suit small models; the user's flags override them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Recipes(NamedTuple):
    """Default training arguments of a task, flag -> value.

    Attributes:
        builtin: for a random model on the built-in data set.
        from_scratch: for a random model on the user's data.
        fine_tuning: with `--model_name_or_path`.
    """

    builtin: Mapping[str, Any]
    from_scratch: Mapping[str, Any]
    fine_tuning: Mapping[str, Any]


EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "logging_steps": 50}
FROM_SCRATCH = {
    **EVERY_EPOCH,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
}
BUILTIN = {**FROM_SCRATCH, "num_train_epochs": 4}
FINE_TUNING = {
    **EVERY_EPOCH,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
}
TEXTS = Recipes(BUILTIN, FROM_SCRATCH, FINE_TUNING)
