"""Entries of a record, which may be one value, several or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def is_finite(value: Any) -> bool:
    """Whether a result is a number; NaN and infinities are `None` in a record."""
    return value is not None and math.isfinite(value)


def as_list(value: Any) -> list[Any]:
    """One value, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def one_or_all(value: Any) -> Any:
    """One value as itself, any other number of them as a list."""
    values = as_list(value)
    return values[0] if len(values) == 1 else values


def as_text(value: Any) -> str:
    """The name or the settings of a data set, or those of several, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(as_text(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
