"""The tables of a comparison, as cells that both Markdown and the report are written from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from maxsup_hf.comparison.results import SHOWN
from maxsup_hf.comparison.statistics import FEWEST, TESTS
from maxsup_hf.output.tables import Table
from maxsup_hf.output.tables import markdown as as_markdown

NAMES = {
    "mean_iou": "mean IoU", "f1": "F1", "exact_match": "exact match", "chrf": "chrF", "bleu": "BLEU", "nll": "NLL",
    "brier": "Brier", "ece": "ECE", "mce": "MCE", "adaptive_ece": "adaptive ECE", "classwise_ece": "class-wise ECE",
    "feature_within": "within-class variation", "feature_r2": "R²", "error_auroc": "AUROC of errors",
}  # fmt: skip
SPLITS = {"test": "test data", "eval": "validation data"}


def metric_name(metric: str, higher: bool | None = None) -> str:
    """As a column is headed; the arrow says what is better."""
    name = NAMES.get(metric, metric.replace("_", " "))
    return name if higher is None else f"{name} {'↑' if higher else '↓'}"


def shown(metrics: Mapping[str, Any]) -> list[str]:
    """The main metrics. Where there is the NLL, the evaluation loss is the same."""
    return [metric for metric in SHOWN if metric in metrics and not (metric == "loss" and "nll" in metrics)]


def results_table(found: Mapping[str, Any], which: str) -> Table | None:
    """Mean ± standard deviation of the main metrics, a row for each loss; bold where the best stands out.

    Args:
        found: as in `comparison.json`.
        which: `"shared"` or `"chosen"`.
    """
    metrics = found.get("tables", {}).get(which)
    if not metrics:
        return None
    chosen = shown(metrics)
    losses = [loss for loss in found["losses"] if any(loss in metrics[metric]["values"] for metric in chosen)]
    bold = {
        (row, column)
        for column, metric in enumerate(chosen, 1)
        for row, loss in enumerate(losses)
        if metrics[metric]["significant"] and metrics[metric]["best"] == loss
    }
    rows = [
        [_label(loss, found, which), *(_cell(metrics[metric]["summary"].get(loss)) for metric in chosen)] for loss in losses
    ]
    header = ["loss", *(metric_name(metric, metrics[metric]["higher_is_better"]) for metric in chosen)]
    return Table(header, rows, bold=bold)


def all_metrics_table(found: Mapping[str, Any], which: str) -> Table:
    """Every metric, a row for each and a column for each loss."""
    metrics = found["tables"][which]
    losses = list(found["losses"])
    rows, bold = [], set()
    for i, (metric, of) in enumerate(metrics.items()):
        rows.append([metric_name(metric, of["higher_is_better"]), *(_cell(of["summary"].get(loss)) for loss in losses)])
        if of["significant"]:
            bold.add((i, 1 + losses.index(of["best"])))
    return Table(["metric", *losses], rows, bold=bold)


def differences_table(found: Mapping[str, Any], which: str, metric: str) -> Table:
    """Every pair of losses: mean difference, its confidence interval, p and p after Holm."""
    rows = []
    for d in found["tables"][which][metric]["differences"]:
        interval = "" if d["low"] is None else f"[{d['low']:+.4f}, {d['high']:+.4f}]"
        mean = "" if d["mean"] is None else f"{d['mean']:+.4f}"
        rows.append([f"{d['first']} − {d['second']}", str(d["n"]), mean, interval, _p(d["p"]), _p(d["p_holm"])])
    header = ["difference", "seeds", "mean", "95 % interval", "p", "p (Holm)"]
    return Table(header, rows, caption=metric_name(metric))


def test_note(found: Mapping[str, Any]) -> str:
    """Which test was made, or why none."""
    test, seeds = found["test"], len(found["seeds"])
    name, fewest = TESTS[test], FEWEST[test]
    if seeds < fewest:
        return (
            f"{seeds} seed{'s' * (seeds > 1)} {'is' if seeds == 1 else 'are'} too few for a test (the {name} needs at least "
            f"{fewest} here): nothing is bold, and no difference between losses is shown to be more than chance."
        )
    return (
        f"Mean ± standard deviation over {seeds} seeds. Bold: the best mean, where it differs from that of every other loss "
        f"by a two-sided {name} over the seeds, p < {found['level']:g} after Holm's correction for all pairs of losses. "
        "Where nothing is bold in a column, no loss was shown to be the best one."
        + (" With so few seeds only large and steady differences can be significant." if seeds < 6 else "")
    )


def markdown(found: Mapping[str, Any]) -> str:
    """`table.md`."""
    rows = found["split"] and next(
        (run["rows"].get(found["split"]) for run in found["runs"] if run["state"] == "finished"), None
    )
    lines = [f"# {found['task']}: {', '.join(found['losses'])}", ""]
    lines += [f"**{note}**\n" for note in notes(found)]
    for which, title in (("shared", "Same strength for all losses"), ("chosen", "Each loss at its own best")):
        table = results_table(found, which)
        if table is not None:
            where = f"{SPLITS[found['split']]}{f', {rows:,} rows' if rows else ''}"
            lines += [f"## {title} ({where})", "", as_markdown(table), ""]
            if which == "chosen":
                lines += [chosen_note(found), ""]
    lines += [test_note(found), "", *(f"{line}\n" for line in fairness_lines(found))]
    return "\n".join(lines).rstrip() + "\n"


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must not miss: failed and missing runs, and runs that do not compare."""
    lines = [f"These runs do not compare: {text}." for text in found["fairness"]["mismatches"]]
    for run in found["runs"]:
        if run["state"] == "failed":
            lines.append(f"The run {run['name']} failed: {run['reason']}.")
    missing = [run["name"] for run in found["runs"] if run["state"] == "missing"]
    if missing:
        lines.append(f"{len(missing)} of {len(found['runs'])} runs are not finished: {', '.join(missing)}.")
    return lines


def fairness_lines(found: Mapping[str, Any]) -> list[str]:
    """What was checked to be the same for all, and with which strength each loss was trained."""
    fair = found["fairness"]
    lines = []
    for seed, of in fair["seeds"].items():
        if fair["mismatches"]:
            break
        lines.append(
            f"Seed {seed}: {of['runs']} runs began with the same weights (fingerprint {of['initial_weights'][:8]}) and saw "
            f"the same {of['batch_count']:,} batches in the same order ({of['batches'][:8]})."
        )
    with_alpha = {loss: strength for loss, strength in fair["strength"].items() if strength}
    described = "; ".join(f"{loss} {_strength(strength)}" for loss, strength in with_alpha.items())
    if len(with_alpha) > 1 and fair["same_strength"]:
        lines.append(
            f"Losses with an α have the same α and the same schedule: {_strength(next(iter(with_alpha.values())))}."
        )
    elif described:
        told = " Not the same for all, as it was asked for." if len(with_alpha) > 1 else ""
        lines.append(f"Strength: {described}.{told}")
    others = {
        loss: {key: value for key, value in kwargs.items() if key.rpartition(".")[2] not in fair["strength"][loss]}
        for loss, kwargs in found["losses"].items()
    }
    told = "; ".join(f"{loss} {', '.join(f'{key} = {v}' for key, v in of.items())}" for loss, of in others.items() if of)
    if told:
        lines.append(f"Told by --loss_kwargs: {told}. What is not told is the loss's default.")
    return lines


def chosen_note(found: Mapping[str, Any]) -> str:
    chosen = "; ".join(
        f"{loss} {_strength({k.rpartition('.')[2]: v for k, v in of['kwargs'].items()})}"
        for loss, of in found["chosen"].items()
        if of["kwargs"]
    )
    grid = " × ".join(f"{key} = {', '.join(f'{value:g}' for value in values)}" for key, values in found["grid"].items())
    moving = any(
        key.endswith("_end") and end is not None for kwargs in found["losses"].values() for key, end in kwargs.items()
    )
    grid += ", with ends in proportion," * moving
    return (
        f"Chosen for each loss by the mean {metric_name(found['selected_by'])} over the seeds on the validation data, never "
        f"on the test data, among {grid} and the setting shared by all: {chosen}. A loss with nothing to choose stands here "
        "as above."
    )


def _label(loss: str, found: Mapping[str, Any], which: str) -> str:
    point = found["chosen"].get(loss, {}).get("kwargs", {}) if which == "chosen" else {}
    strength = {key.rpartition(".")[2]: value for key, value in point.items()}
    return f"{loss} ({_strength(strength)})" if strength else loss


def _strength(strength: Mapping[str, Any]) -> str:
    parts = []
    for key, value in strength.items():
        if key.endswith("_end") or key == "schedule":
            continue
        end = strength.get(f"{key}_end")
        schedule = f", {strength['schedule']}" if "schedule" in strength and end is not None else ""
        name = "α" if key == "alpha" else key
        parts.append(f"{name} = {value}" if end in (None, value) else f"{name} {value} → {end}{schedule}")
    return ", ".join(parts)


def _cell(summary: Mapping[str, Any] | None) -> str:
    if summary is None or summary["mean"] is None:
        return "–"
    digits = _digits(summary)
    sd = "" if summary["sd"] is None else f" ± {summary['sd']:.{digits}f}"
    return f"{summary['mean']:.{digits}f}{sd}"


def _digits(summary: Mapping[str, Any]) -> int:
    """Four decimals, fewer for great numbers."""
    size = abs(summary["mean"])
    return 4 if size < 10 else max(0, 4 - int(math.log10(size)))


def _p(p: float | None) -> str:
    return "no test" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
