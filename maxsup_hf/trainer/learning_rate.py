"""A learning rate that falls in steps, which the schedules of transformers do not have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import LambdaLR


def parse_milestones(value: Sequence[float] | str | None) -> list[float]:
    """Shares of the training at which the learning rate falls.

    Args:
        value: numbers, or text such as `"0.6,0.8"` or `"[0.6, 0.8]"`; `None` for no steps.

    Raises:
        ValueError: not rising numbers between 0 and 1.
    """
    try:
        found = json.loads(f"[{value.strip().strip('[]')}]") if isinstance(value, str) else list(value or [])
        valid = all(0 < share < 1 for share in found) and sorted(set(found)) == found
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"lr_milestones must be rising shares of the training between 0 and 1, as 0.6,0.8, got {value!r}")
    return found


def step_schedule(optimizer: Any, milestones: Sequence[float], gamma: float, warmup_steps: int, steps: int) -> LambdaLR:
    """Linear warm-up, then a factor of `gamma` at each milestone."""

    def factor(step: int) -> float:
        warm = step / warmup_steps if step < warmup_steps else 1.0
        return warm * gamma ** sum(step >= share * steps for share in milestones)

    return LambdaLR(optimizer, factor)


class StepScheduleMixin:
    """Makes a Trainer follow `args.lr_milestones`."""

    args: Any
    optimizer: Any
    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of transformers, or the one of `lr_milestones`."""
        milestones = getattr(self.args, "lr_milestones", None)
        if self.lr_scheduler is None and milestones:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = step_schedule(
                optimizer or self.optimizer, milestones, self.args.lr_gamma, warmup, num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
