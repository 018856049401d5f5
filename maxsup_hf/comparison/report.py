"""`report.html` of a comparison, from `comparison.json` alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maxsup_hf.analysis import figures
from maxsup_hf.analysis.report import Picture, Section, write_report
from maxsup_hf.comparison import tables
from maxsup_hf.comparison.results import HIGHER
from maxsup_hf.losses import get_spec
from maxsup_hf.metrics import ReliabilityCurve
from maxsup_hf.output.tables import Table

REPORT = "report.html"
CURVES = {  # as the Trainer logs them
    "train_cross_entropy": "cross-entropy in training",
    "train_penalty": "penalty in training",
    "eval_loss": "cross-entropy on validation data",
    "eval_accuracy": "accuracy on validation data",
    "eval_ece": "ECE on validation data",
    "feature_within": "within-class variation on validation data",
    "feature_r2": "separability R² on validation data",
}
OF_A_RUN = ("command", "kwargs", "model", "dataset", "rows", "hyperparameters", "devices", "processes", "versions",
            "train_seconds", "initial_weights", "batches", "batch_count", "metrics")  # fmt: skip


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Draw the figures into `folder/figures`, and write the report that holds them.

    Args:
        found: as in `comparison.json`.
    """
    drawing = folder / "figures"
    finished = [run for run in found["runs"] if run["state"] == "finished"]
    shared = [run for run in finished if not run["point"]]
    sections = [_fairness(found)]
    if finished:
        sections = [
            *_results(found, drawing),
            _over_training(shared, found["losses"], drawing),
            _measured(shared, found["losses"], drawing),
            _fairness(found),
            _differences(found),
            Section("All metrics", [f"On the {_data(found)}. {MEANING}"], [tables.all_metrics_table(found, "shared")]),
        ]
    sections.append(_runs(found))
    return write_report(
        folder / REPORT,
        f"{found['task']}: {', '.join(found['losses'])}",
        [section for section in sections if section.text or section.tables or section.figures],
        summary=[_summary(found, len(finished))],
        notes=tables.notes(found),
    )


MEANING = (
    "↑ and ↓ say which end is better. What has no arrow describes the model: within-class variation and R² of its features, "
    "margins and confidences."
)


def _summary(found: Mapping[str, Any], finished: int) -> str:
    flags = f" Flags of every run: {' '.join(found['flags'])}." if found["flags"] else ""
    seeds = ", ".join(map(str, found["seeds"]))
    return f"{len(found['losses'])} losses, seeds {seeds}: {finished} of {len(found['runs'])} runs finished.{flags}"


def _data(found: Mapping[str, Any]) -> str:
    run = next(run for run in found["runs"] if run["state"] == "finished")
    rows = run["rows"].get(found["split"])
    name = run.get("dataset")
    where = tables.SPLITS[found["split"]] + (f" of {name}" if isinstance(name, str) else "")
    return f"{where} ({rows:,} rows)" if rows else where


# ---- results ----


def _results(found: Mapping[str, Any], drawing: Path) -> list[Section]:
    shared = tables.results_table(found, "shared")
    sections = []
    if shared is not None:
        held = ""
        if found["hold_out_test"] and found["split"] == "test":
            held = " Where the data have no test rows, a fixed share of the validation rows was set apart as such."
        text = [f"On the {_data(found)}.{held} {tables.test_note(found)}"]
        pictures = _spreads(found, "shared", drawing)
        sections.append(Section("Same strength for all losses", text, [shared], pictures))
    chosen = tables.results_table(found, "chosen")
    if chosen is not None:
        pictures = [*_over_grid(found, drawing), *_spreads(found, "chosen", drawing)]
        sections.append(Section("Each loss at its own best", [tables.chosen_note(found)], [chosen], pictures))
    return sections


def _spreads(found: Mapping[str, Any], which: str, drawing: Path) -> list[Picture]:
    pictures = []
    for metric in tables.shown(found["tables"][which]):
        of = found["tables"][which][metric]
        values = {loss: [_number(v) for v in seeds.values()] for loss, seeds in of["values"].items()}
        name = tables.metric_name(metric, of["higher_is_better"])
        path = figures.save(figures.spread(values, name), drawing, f"{which}-{metric}")
        pictures.append(Picture(path, f"{name}: each run (open), and mean ± standard deviation over seeds (filled)"))
    return pictures


def _over_grid(found: Mapping[str, Any], drawing: Path) -> list[Picture]:
    """Where the grid has one parameter: what was chosen by, against it."""
    if len(found["grid"]) != 1:
        return []
    (key,) = found["grid"]
    metric, values, losses = found["selected_by"], [], []
    for loss, of in found["chosen"].items():
        points = sorted(
            (value, _number(candidate["mean"]))
            for candidate in of["candidates"]
            if (value := _at(loss, candidate["kwargs"], key)) is not None
        )
        if points:
            values.append(tuple(np.array(points).T))
            losses.append(loss)
    if not values:
        return []
    name = tables.metric_name(metric, HIGHER.get(metric))
    drawn = figures.curves(values, losses, losses, (key, f"{name}, validation"))
    return [Picture(figures.save(drawn, drawing, "grid"), f"{name} on the validation data, mean over seeds, by {key}")]


def _at(loss: str, kwargs: Mapping[str, Any], key: str) -> float | None:
    parameter = next((name for name in get_spec(loss).parameters if key in (name, name.rpartition(".")[2])), None)
    return None if parameter is None else float(kwargs.get(parameter, get_spec(loss).defaults[parameter]))


def _over_training(runs: Sequence[Mapping[str, Any]], losses: Sequence[str], drawing: Path) -> Section:
    pictures = []
    for key, label in CURVES.items():
        lines = {loss: _mean_curve([run["history"] for run in runs if run["loss"] == loss], key) for loss in losses}
        present = [loss for loss in figures.loss_order(losses) if len(lines[loss][0])]
        flat = all(np.ptp(lines[loss][1]) == 0 for loss in present)
        if max((len(lines[loss][0]) for loss in present), default=0) < 2 or flat:
            continue
        drawn = figures.curves([lines[loss] for loss in present], present, present, ("step", label))
        pictures.append(Picture(figures.save(drawn, drawing, f"training-{key}"), f"{label.capitalize()}, mean over seeds"))
    text = ["The penalty is that of the loss in question; cross-entropy is plain for all."] if pictures else []
    return Section("During training", text, figures=pictures)


def _mean_curve(histories: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean over runs at those steps that all of them logged."""
    logs = [{entry["step"]: entry[key] for entry in history if entry.get(key) is not None} for history in histories]
    steps = sorted(set.intersection(*map(set, logs))) if logs else []
    return np.array(steps), np.array([np.mean([log[step] for log in logs]) for step in steps])


def _measured(runs: Sequence[Mapping[str, Any]], losses: Sequence[str], drawing: Path) -> Section:
    title = "Calibration and features"
    reasons = sorted({run["not_measured"] for run in runs if run.get("not_measured")})
    measured = {loss: [run["measured"] for run in runs if run["loss"] == loss and run["measured"]] for loss in losses}
    present = [loss for loss in figures.loss_order(losses) if measured[loss]]
    if not present:
        return Section(title, [f"Not measured: {reason}." for reason in reasons])
    classes = next(run["classes"] for run in runs if run["measured"])
    pooled = [pool([of["curve"] for of in measured[loss]]) for loss in present]
    within = [
        np.mean([np.array(of["geometry"]["d_within_per_class"], dtype=float) for of in measured[loss]], axis=0)
        for loss in present
    ]
    drawn = {
        "reliability": (
            figures.reliability(pooled, present, present),
            "Reliability diagram, the rows of all seeds together",
        ),
        "within_class": (
            figures.within_class(within, present, present, classes),
            "Within-class variation of each class, mean over seeds: how far its features spread",
        ),
    }
    pictures = [Picture(figures.save(fig, drawing, name), caption) for name, (fig, caption) in drawn.items()]
    return Section(title, [CALIBRATION], figures=pictures)


CALIBRATION = (
    "On the dotted diagonal a model is right as often as it says. Within-class variation is 1 − ‖mean direction‖²: 0 where "
    "all rows of a class point the same way, as they do when features have collapsed."
)


def pool(curves: Sequence[Mapping[str, Any]]) -> ReliabilityCurve:
    """The reliability curve of all rows together.

    Args:
        curves: with the fields of `ReliabilityCurve` as lists, `None` in empty bins, and the same edges.
    """
    edges = np.array(curves[0]["edges"], dtype=float)
    rows = np.array([curve["rows"] for curve in curves])
    total = rows.sum(0)

    def mean(field: str) -> np.ndarray:
        values = np.nan_to_num(np.array([curve[field] for curve in curves], dtype=float))
        return np.where(total > 0, (values * rows).sum(0) / np.maximum(total, 1), math.nan)

    return ReliabilityCurve(edges, total, mean("confidence"), mean("accuracy"))


# ---- what was checked, and the runs ----


def _fairness(found: Mapping[str, Any]) -> Section:
    rows = [
        [seed, str(of["runs"]), of["initial_weights"][:12], f"{of['batch_count']:,}", of["batches"][:12]]
        for seed, of in found["fairness"]["seeds"].items()
    ]
    table = Table(["seed", "runs", "initial weights", "batches", "order and rows"], rows, "Fingerprints")
    return Section("The same for all", [CHECKED, *tables.fairness_lines(found)], [table] if rows else [])


CHECKED = (
    "Each run left a fingerprint of its weights before the first step, and of the batches that it was trained on: the "
    "labels of all of them, and all inputs of the first hundred. Within a seed they must agree over all losses, or the "
    "comparison ends with an error. All models are evaluated by the same code on the same rows, by plain cross-entropy."
)


def _differences(found: Mapping[str, Any]) -> Section:
    metrics = found["tables"]["shared"]
    chosen = [metric for metric in tables.shown(metrics) if metrics[metric]["differences"]]
    text = [f"Paired by seed. Two-sided {tables.TESTS[found['test']]}; p (Holm) is corrected for all pairs of a metric."]
    return Section(
        "Differences between losses",
        text if chosen else [],
        [tables.differences_table(found, "shared", metric) for metric in chosen],
    )


def _runs(found: Mapping[str, Any]) -> Section:
    key = found.get("selected_by", "loss")
    rows = []
    for run in found["runs"]:
        metrics = run.get("metrics", {}).get(found["split"] or "eval", {})
        value = metrics.get(key)
        seconds = run.get("train_seconds")
        rows.append(
            [
                run["name"],
                run["state"],
                "–" if seconds is None else f"{seconds:.1f}",
                "–" if value is None else f"{value:.4f}",
            ]
        )
    table = Table(["run", "state", "seconds of training", tables.metric_name(key, HIGHER.get(key))], rows)
    files = {
        run["name"]: json.dumps({name: run[name] for name in OF_A_RUN if name in run}, indent=1, ensure_ascii=False)
        for run in found["runs"]
        if run["state"] == "finished"
    }
    return Section("Runs", ["Command, settings, versions and metrics of each run unfold below."], [table], files=files)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
