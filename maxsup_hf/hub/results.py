"""The results of a run as its card shows them: its own, and those of the losses that were trained beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from maxsup_hf.hub.metadata import SPLITS
from maxsup_hf.hub.values import is_finite
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.metrics import get_metric
from maxsup_hf.metrics._records import ranked
from maxsup_hf.output.tables import Table, markdown

SPACE = "\N{NO-BREAK SPACE}"
COMPARED_ON = {"test": "test data", "eval": "validation data"}


def result_tables(results: Mapping[str, float | None]) -> tuple[str, str]:
    """The main metrics and all others, each as a table of values on each split and a list of what the metrics tell."""
    values: dict[str, dict[str, str]] = {}
    for key, value in results.items():
        split, _, metric = key.partition("_")
        values.setdefault(metric, {})[SPLITS.get(split, split)] = f"{value:.4g}" if is_finite(value) else "undefined"
    columns = [split for split in SPLITS.values() if any(split in of for of in values.values())]
    main = ranked(values) or list(values)
    return _with_meanings(main, values, columns), _with_meanings([key for key in values if key not in main], values, columns)


def _with_meanings(metrics: Sequence[str], values: Mapping[str, Mapping[str, str]], columns: Sequence[str]) -> str:
    if not metrics:
        return ""
    records = {metric: get_metric(metric) for metric in metrics}
    rows = [[records[metric].heading, *(values[metric].get(split, "") for split in columns)] for metric in metrics]
    told = {record.label: record.meaning or record.formula for record in records.values()}
    meanings = [f"- {label}: {meaning}" for label, meaning in told.items() if meaning]
    return "\n".join([markdown(Table(["metric", *columns], rows)), "", *meanings]).strip()


def confidence_gap(results: Mapping[str, float | None]) -> float:
    """Mean confidence minus accuracy, on the test data if there are results, else on the validation data; 0 if unknown."""
    for split in ("test", "eval"):
        accuracy = results.get(f"{split}_accuracy")
        right, wrong = (results.get(f"{split}_confidence_when_{outcome}") for outcome in ("right", "wrong"))
        if accuracy is not None and (is_finite(right) or is_finite(wrong)):
            shares = ((accuracy, right), (1 - accuracy, wrong))
            return sum(share * value for share, value in shares if value is not None and is_finite(value)) - accuracy
    return 0.0


def comparison_of(found: Mapping[str, Any], loss: str) -> dict[str, Any]:
    """What a card says about a comparison, as plain data.

    Args:
        found: the content of `comparison.json`.
        loss: of the card's model.

    Raises:
        ValueError: the comparison has no results, or none of this loss.
    """
    table = found.get("tables", {}).get("shared", {})
    metrics = [metric for metric in ranked(table) if not (metric == "loss" and "nll" in table)]
    compared = [name for name in found.get("losses", {}) if any(name in table[metric]["summary"] for metric in metrics)]
    if loss not in compared:
        raise ValueError(
            f"the comparison must have results of the loss {loss!r}, it has those of {', '.join(compared) or 'none'}"
        )
    finished = next(run for run in found["runs"] if run["state"] == "finished")
    shared = [run.get("loss") for run in found["runs"] if run["state"] == "finished" and not run.get("point")]
    return {
        "loss": loss,
        "losses": compared,
        "seeds": found["seeds"],
        "fewest_seeds": min(shared.count(name) for name in compared) or len(found["seeds"]),
        "split": found["split"],
        "rows": {split: finished.get("rows", {}).get(split) for split in ("train", found["split"])},
        "metrics": {
            metric: {name: [of["mean"], of["sd"]] for name, of in table[metric]["summary"].items()} for metric in metrics
        },
        "best": {metric: table[metric]["best"] for metric in metrics if table[metric]["significant"]},
    }


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The table of a comparison, with the sentences that explain it."""
    metrics, losses = list(comparison["metrics"]), comparison["losses"]
    rows = []
    for loss in losses:
        name = loss_label(loss) + (" (this model's)" if loss == comparison["loss"] else "")
        rows.append([name, *(_mean(comparison, metric, loss) for metric in metrics)])
    bold = {(losses.index(best), metrics.index(metric) + 1) for metric, best in comparison["best"].items()}
    table = Table(["loss", *(get_metric(metric).heading for metric in metrics)], rows, bold=bold)
    return f"{_conditions(comparison)}\n\n{markdown(table)}"


def _conditions(comparison: Mapping[str, Any]) -> str:
    """What was compared, and how sure the differences are."""
    seeds = len(comparison["seeds"])
    fewest = comparison.get("fewest_seeds", seeds)  # which cards of version 0.1 do not have
    evaluated, trained = comparison["rows"].get(comparison["split"]), comparison["rows"].get("train")
    rows = f" ({evaluated:,} rows)" if evaluated else ""
    training = f" on {trained:,} training rows" if trained else ""
    spread = "With one seed, any difference may be due to chance."
    if seeds > 1:
        over = f"{seeds} seeds" if fewest == seeds else f"{fewest} to {seeds} seeds"
        spread = (
            f"Mean ± standard deviation over {over}; a mean is bold if it is significantly better than that of every other "
            "loss."
        )
    return (
        f"Results on the {COMPARED_ON[comparison['split']]}{rows}, from runs{training} that differ in the loss only: within "
        f"a seed, they started from the same weights and saw the same batches in the same order. {spread}"
    )


def _mean(comparison: Mapping[str, Any], metric: str, loss: str) -> str:
    """Mean and standard deviation, kept on one line by spaces that do not break: with three decimals, fewer from 10 on."""
    mean, deviation = comparison["metrics"][metric].get(loss, (None, None))
    if mean is None:
        return "–"
    decimals = 3 if abs(mean) < 10 else max(0, 3 - math.floor(math.log10(abs(mean))))
    spread = "" if deviation is None else f"{SPACE}±{SPACE}{deviation:.{decimals}f}"
    return f"{mean:.{decimals}f}{spread}"
