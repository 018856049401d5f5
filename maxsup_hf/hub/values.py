"""Values of a record: one or several of them, numbers or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def is_finite(value: Any) -> bool:
    """Whether a result is a number; NaN and infinities are `None` in a record."""
    return value is not None and math.isfinite(value)


def as_list(value: Any) -> list[Any]:
    """A value or several of them, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def one_or_all(values: Sequence[Any]) -> Any:
    """The value of a list with one value, any other list as it is."""
    return values[0] if len(values) == 1 else list(values)


def as_text(value: Any) -> str:
    """The name or the settings of a data set, or those of several, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(as_text(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
