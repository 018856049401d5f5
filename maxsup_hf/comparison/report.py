"""`report.html` of a comparison, made from the content of `comparison.json` alone."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maxsup_hf.analysis.figures import reliability, within_class
from maxsup_hf.analysis.report import Picture, Section, write_report
from maxsup_hf.analysis.style import loss_order, save
from maxsup_hf.comparison import figures, tables
from maxsup_hf.comparison.verdict import UNITS, verdict
from maxsup_hf.losses import get_spec
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.metrics import ReliabilityCurve, get_metric
from maxsup_hf.output.files import replacing
from maxsup_hf.output.tables import Table

REPORT = "report.html"
BANDS = "Lines are means over the seeds, in a band of ± a standard deviation. "
PARTS_OF_LOSS = {"train_cross_entropy": "cross-entropy", "train_penalty": "penalty"}
OF_A_RUN = ("command", "kwargs", "model", "dataset", "rows", "hyperparameters", "devices", "processes", "versions",
            "train_seconds", "initial_weights", "batches", "batch_count", "metrics")  # fmt: skip
ARROWS = (
    "↑ and ↓ point to the better end. Metrics without an arrow describe the model, and neither end is better: confidences, "
    "margins, and how its features lie."
)
CALIBRATION = (
    "On the dotted diagonal a model is right as often as its confidence says. Bars are 95 % intervals over the rows; bins "
    "of fewer than 10 rows are faded. Within-class variation is 1 − ‖mean direction‖²: 0 if all features of a class point "
    "the same way, as they do when features have collapsed."
)
CHECKED = (
    "Each run recorded a fingerprint of its weights before the first step, and of its batches: the labels of all batches, "
    "and all inputs of the first hundred. Within a seed these must agree for all losses, or the comparison ends with an "
    "error. All models are evaluated by the same code on the same rows, with plain cross-entropy."
)


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Draw the figures into `folder/figures` and write the report, which contains them.

    Args:
        found: the content of `comparison.json`.
    """
    drawing = folder / "figures"
    finished = [run for run in found["runs"] if run["state"] == "finished"]
    shared = [run for run in finished if not run["point"]]
    sections = [_fairness(found)]
    if finished:
        sections = [
            *_results(found, drawing),
            _differences(found),
            _over_training(found, shared, drawing),
            _measured(shared, found["losses"], drawing),
            _fairness(found),
            Section("All metrics", [f"On the {_data(found)}. {ARROWS}"], [tables.all_metrics_table(found, "shared")]),
        ]
    sections.append(_runs(found))
    path = folder / REPORT
    with replacing(path) as unfinished:
        write_report(
            unfinished,
            tables.title(found),
            [section for section in sections if section.text or section.tables or section.figures],
            summary=[verdict(found)["line"], _summary(found, len(finished))],
            notes=tables.notes(found),
        )
    return path


def _summary(found: Mapping[str, Any], finished: int) -> str:
    seeds = ", ".join(map(str, found["seeds"]))
    return f"{len(found['losses'])} losses, seeds {seeds}: {finished} of {len(found['runs'])} runs finished."


def _data(found: Mapping[str, Any]) -> str:
    run = next(run for run in found["runs"] if run["state"] == "finished")
    rows = run["rows"].get(found["split"])
    name = run.get("dataset")
    is_file = any(flag.partition("=")[0] == "--train_file" for flag in found["flags"])  # which has the training data only
    where = tables.SPLITS[found["split"]] + (f" of {name}" if isinstance(name, str) and not is_file else "")
    return f"{where} ({rows:,} rows)" if rows else where


def _has_seeds(found: Mapping[str, Any]) -> bool:
    return max(tables.finished_seeds(found), default=0) > 1


# ---- results ----


def _results(found: Mapping[str, Any], drawing: Path) -> list[Section]:
    shared = tables.results_table(found, "shared")
    sections = []
    if shared is not None:
        held_out = ""
        if found["hold_out_test"] and found["split"] == "test":
            held_out = " If the data have no test rows, a fixed share of the validation rows serves as test data."
        text = [f"On the {_data(found)}.{held_out} {tables.test_note(found)}"]
        sections.append(Section(tables.TITLES["shared"], text, [shared], _spreads(found, "shared", drawing)))
    chosen = tables.results_table(found, "chosen")
    if chosen is not None:
        pictures = [*_over_grid(found, drawing), *_spreads(found, "chosen", drawing)]
        sections.append(Section(tables.TITLES["chosen"], [tables.chosen_note(found)], [chosen], pictures))
    return sections


def _spreads(found: Mapping[str, Any], which: str, drawing: Path) -> list[Picture]:
    """A figure of each main metric: every run, and mean and standard deviation."""
    runs = "each run (open), and mean ± standard deviation over seeds (filled)" if _has_seeds(found) else "one run each"
    pictures = []
    for metric in tables.main_metrics(found["tables"][which]):
        by_loss = found["tables"][which][metric]["values"]
        values = {loss: [_as_float(value) for value in by_seed.values()] for loss, by_seed in by_loss.items()}
        heading = get_metric(metric).heading
        path = save(figures.spread(values, heading), drawing, f"{which}-{metric}")
        pictures.append(Picture(path, f"{heading}: {runs}"))
    return pictures


def _over_grid(found: Mapping[str, Any], drawing: Path) -> list[Picture]:
    """For a grid of one parameter: the metric that settings were chosen by, against the parameter."""
    if len(found["grid"]) != 1:
        return []
    (key,) = found["grid"]
    curves = {}
    for loss, choice in found["chosen"].items():
        points = []
        for candidate in choice["candidates"]:
            value = _parameter(loss, candidate["kwargs"], key)
            if value is not None:
                points.append((value, _as_float(candidate["mean"])))
        if points:
            x, means = np.array(sorted(points)).T
            curves[loss] = figures.band(x, [means])
    if not curves:
        return []
    heading, parameter = get_metric(found["selected_by"]).heading, tables.parameter(key)
    drawn = figures.curves(curves, (parameter, f"{heading}, validation"))
    caption = f"{heading} on the validation data, mean over seeds, by {parameter}"
    return [Picture(save(drawn, drawing, "grid"), caption)]


def _parameter(loss: str, kwargs: Mapping[str, Any], key: str) -> float | None:
    """The value of a parameter, which a sum of losses may have with a prefix; `None` for a loss without it."""
    parameter = next((name for name in get_spec(loss).parameters if key in (name, name.rpartition(".")[2])), None)
    return None if parameter is None else float(kwargs.get(parameter, get_spec(loss).defaults[parameter]))


# ---- training ----


def _over_training(found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], drawing: Path) -> Section:
    pictures = [*_wrong_rows(found, runs, drawing)]
    for key, (label, data) in _logged(runs).items():
        curves = {
            loss: _logged_band([run["history"] for run in runs if run["loss"] == loss], key) for loss in found["losses"]
        }
        curves = {loss: of for loss, of in curves.items() if len(of.x)}
        is_flat = all(np.ptp(of.mean) == 0 for of in curves.values())
        if is_flat or max(len(of.x) for of in curves.values()) < 2:
            continue
        path = save(figures.curves(curves, ("step", label)), drawing, f"training-{key}")
        pictures.append(Picture(path, f"{label}{data}"))
    bands = BANDS if _has_seeds(found) else ""
    text = [f"{bands}The penalty is that of each loss; the cross-entropy is plain for all losses."] if pictures else []
    return Section("During training", text, figures=pictures)


def _wrong_rows(found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], drawing: Path) -> list[Picture]:
    """The share of the training rows that are predicted wrong, in each tenth of the training that all runs have."""
    if not runs or not all(run.get("training_rows") for run in runs):
        return []
    counted = np.array([run["training_rows"]["rows"] for run in runs])
    parts = np.flatnonzero(counted.all(axis=0))
    if len(parts) < 2:
        return []
    curves = {}
    for loss in found["losses"]:
        counts = [run["training_rows"] for run in runs if run["loss"] == loss]
        shares = [np.array(count["wrong"])[parts] / np.array(count["rows"])[parts] for count in counts]
        if shares:
            curves[loss] = figures.band(100 * (parts + 0.5) / counted.shape[1], shares)
    units = UNITS.get(found["task"], "rows")
    drawn = figures.curves(curves, ("% of the steps", f"share of {units} wrong in training"), least=0)
    caption = (
        f"share of the training {units} predicted wrong when they are trained: MaxSup and label smoothing differ on these"
    )
    return [Picture(save(drawn, drawing, "training-wrong"), caption)]


def _logged(runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Key of the log -> label and data, of what may be drawn over training: parts of the loss, and main metrics of
    evaluations."""
    keys = {key for run in runs for entry in run["history"] for key in entry}
    of_validation = {key.removeprefix("eval_"): key for key in keys if key.startswith(("eval_", "feature_"))}
    metrics = {of_validation[name]: get_metric(name).label for name in tables.main_metrics(of_validation)}
    parts = {key: (label, " in training") for key, label in PARTS_OF_LOSS.items()}
    return parts | {key: (label, " on validation data") for key, label in metrics.items()}


def _logged_band(histories: Sequence[Sequence[Mapping[str, Any]]], key: str) -> figures.Band:
    """A logged value of several runs, at those steps that all of them logged."""
    logs = [{entry["step"]: entry[key] for entry in history if entry.get(key) is not None} for history in histories]
    steps = sorted(set.intersection(*map(set, logs))) if logs else []
    return figures.band(np.array(steps, dtype=int), np.array([[log[step] for step in steps] for log in logs], dtype=float))


# ---- calibration and features ----


def _measured(runs: Sequence[Mapping[str, Any]], losses: Sequence[str], drawing: Path) -> Section:
    title = "Calibration and features"
    reasons = sorted({run["not_measured"] for run in runs if run.get("not_measured")})
    measured = {loss: [run["measured"] for run in runs if run["loss"] == loss and run["measured"]] for loss in losses}
    present = [loss for loss in loss_order(losses) if measured[loss]]
    if not present:
        return Section(title, [f"Not measured: {reason}." for reason in reasons])
    classes = next(run["classes"] for run in runs if run["measured"])
    pooled = [pool([run["curve"] for run in measured[loss]]) for loss in present]
    within = []
    for loss in present:
        of_runs = [np.array(run["geometry"]["d_within_per_class"], dtype=float) for run in measured[loss]]
        within.append(np.mean(of_runs, axis=0))
    names, seeds = list(map(loss_label, present)), max(len(measured[loss]) for loss in present)
    pictures = [
        Picture(
            save(reliability(pooled, names, present), drawing, "reliability"),
            "Reliability diagram" + (", rows of all seeds together" if seeds > 1 else ""),
        ),
        Picture(
            save(within_class(within, names, present, classes), drawing, "within_class"),
            f"Within-class variation of each class{', mean over seeds' if seeds > 1 else ''}: how far its features spread",
        ),
    ]
    return Section(title, [CALIBRATION], figures=pictures)


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


# ---- checks and runs ----


def _fairness(found: Mapping[str, Any]) -> Section:
    rows = [
        [seed, str(same["runs"]), f"{same['batch_count']:,}", same["initial_weights"][:8], same["batches"][:8]]
        for seed, same in found["fairness"]["seeds"].items()
    ]
    header = ["seed", "runs", "batches", "fingerprint of weights", "of batches"]
    return Section(
        "The same for all losses", [CHECKED, *tables.strength_lines(found)], [Table(header, rows)] if rows else []
    )


def _differences(found: Mapping[str, Any]) -> Section:
    table = tables.differences_table(found, "shared")
    title = "Differences between losses"
    return Section(title) if table is None else Section(title, [tables.differences_note(found)], [table])


def _runs(found: Mapping[str, Any]) -> Section:
    selected_by = found.get("selected_by", "loss")
    rows = []
    for run in found["runs"]:
        seconds = run.get("train_seconds")
        value = run.get("metrics", {}).get(found["split"] or "eval", {}).get(selected_by)
        rows.append([
            run["name"],
            run["state"],
            "–" if seconds is None else f"{seconds:.1f}",
            "–" if value is None else f"{value:.4f}",
            _model(run),
        ])  # fmt: skip
    table = Table(["run", "state", "seconds of training", get_metric(selected_by).heading, "model"], rows)
    flags = {"flags of every run": _in_lines(found["flags"])} if found["flags"] else {}
    files = flags | {
        run["name"]: json.dumps({name: run[name] for name in OF_A_RUN if name in run}, indent=1, ensure_ascii=False)
        for run in found["runs"]
        if run["state"] == "finished"
    }
    first = "The flags, and the command" if flags else "The command"
    text = f"{first}, settings, versions and metrics of each finished run unfold below."
    return Section("Runs", [text] if files else [], [table], files=files)


def _in_lines(words: Sequence[str]) -> str:
    """Flags as they are typed in a shell, each with its values in a line of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return "\n".join(lines)


def _model(run: Mapping[str, Any]) -> str:
    """The size of the model of a run, if it was kept."""
    if "model_bytes" not in run:
        return "–"
    return f"{run['model_bytes'] / 1e6:,.1f} MB" if run["model_bytes"] else "not kept"


def _as_float(value: float | None) -> float:
    """A value of `comparison.json`, where NaN is `None`."""
    return math.nan if value is None else float(value)
