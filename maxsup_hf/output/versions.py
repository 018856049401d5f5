"""The versions that a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("maxsup-hf", "transformers", "torch", "datasets", "tokenizers", "accelerate", "peft")


def versions(*more: str) -> dict[str, str]:
    """Package -> version of `PACKAGES` and `more`, of those that are installed, and `python`."""
    found = {}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
