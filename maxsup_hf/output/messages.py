"""Short error messages: lists and texts that are cut, and errors on one line."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first items, and how many more there are."""
    more = len(items) - most
    return separator.join(items[:most]) + (f" and {more} more" if more > 0 else "")


def one_line(error: Exception) -> str:
    """The message of an error for the command line, after its type if that is unexpected."""
    text = " ".join(str(error).split())
    expected = (ValueError, TypeError, OSError, ImportError, RuntimeError)
    return text if text and isinstance(error, expected) else f"{type(error).__name__}: {text}"


def shortened(text: str, most: int = 60) -> str:
    """A text in quotes, cut to `most` characters."""
    return repr(text if len(text) <= most else text[: most - 3] + "…")
