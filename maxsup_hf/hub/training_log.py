"""The log of a training, as its card shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maxsup_hf.metrics import get_metric
from maxsup_hf.metrics._records import ranked
from maxsup_hf.output.tables import Table, markdown

MOST_ROWS = 12


def training_log(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """A few rows of a Trainer's `log_history`, spread evenly over the training: the step, the epoch, the losses, and the
    first metric of the evaluations. What was logged at the same step is one row.

    Args:
        history: in the order in which it was logged.
    """
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        if "train_runtime" in entry:  # the summary at the end
            continue
        values = {key: value for key, value in entry.items() if isinstance(value, (int, float)) and math.isfinite(value)}
        rows.setdefault(int(entry.get("step", 0)), {}).update(values)
    metrics = {key for row in rows.values() for key in row if key.startswith("eval_")}
    shown = ranked(key.removeprefix("eval_") for key in metrics if key != "eval_loss")[:1]
    keys = ["loss", "eval_loss", *(f"eval_{name}" for name in shown)]
    found = []
    for step, row in sorted(rows.items()):
        values = {key: row[key] for key in keys if key in row}
        if values:
            found.append({"step": step, "epoch": row.get("epoch", 0.0), **values})
    return _thinned(found)


def log_table(rows: Sequence[Mapping[str, float]]) -> str:
    """The rows of `training_log` as Markdown; empty if there are fewer than two."""
    if len(rows) < 2:
        return ""
    logged = dict.fromkeys(key for row in rows for key in row if key not in ("step", "epoch"))
    keys = sorted(logged, key=lambda key: key != "loss")  # the training loss first
    cells = [[f"{row['epoch']:.4g}", row["step"], *(_cell(row.get(key)) for key in keys)] for row in rows]
    return markdown(Table(["epoch", "step", *map(_heading, keys)], cells))


def _heading(key: str) -> str:
    if key == "loss":
        return "training loss"
    name = key.removeprefix("eval_")
    return "validation loss" if name == "loss" else f"validation {get_metric(name).label}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most `MOST_ROWS` of them, with the last one. Rows of evaluations are preferred if they are enough for a table."""
    evaluated = [row for row in rows if any(key.startswith("eval_") for key in row)]
    kept = evaluated if len(evaluated) > 2 else rows
    if len(kept) <= MOST_ROWS:
        return kept
    step = (len(kept) - 1) / (MOST_ROWS - 1)
    return [kept[round(i * step)] for i in range(MOST_ROWS)]
