"""Files that are complete or not there, and JSON that every parser reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from maxsup_hf.output.secrets import mask_file


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a file beside `path` to write to. It takes the place of `path` at the end, with its secrets masked, and is
    removed after an error, so that whoever reads `path` finds the old content or the new one, never a part."""
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
        mask_file(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as `plain` makes it, by `replacing`."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """A value in JSON's types: tensors and arrays become lists, NaN and infinities `None`, enums their values, and what JSON
    has no type for its string."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy or torch, a scalar too
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
