"""The tables and sentences of a comparison, which both `table.md` and the report are made of.

`found` is always the content of `comparison.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from maxsup_hf.comparison.statistics import FEWEST, TESTS
from maxsup_hf.comparison.verdict import SPLITS, signed, verdict
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.metrics import get_metric
from maxsup_hf.metrics._records import ranked
from maxsup_hf.output.tables import Table, minus
from maxsup_hf.output.tables import markdown as as_markdown

COUNTS = ("feature_rows", "feature_zero_features")  # of rows, which are no metrics
TITLES = {"shared": "Same strength for all losses", "chosen": "Each loss at its own best"}


def main_metrics(names: Iterable[str]) -> list[str]:
    """Those of some metrics that are columns of the results, in order. The evaluation loss is left out beside the NLL, which
    it equals."""
    columns = ranked(names)
    return [name for name in columns if not (name == "loss" and "nll" in columns)]


# ---- tables ----


def results_table(found: Mapping[str, Any], which: str) -> Table | None:
    """Mean ± standard deviation of the main metrics, a row for each loss; a mean that is significantly the best is bold.

    Args:
        which: `"shared"` or `"chosen"`.
    """
    metrics = found.get("tables", {}).get(which)
    if not metrics:
        return None
    columns = main_metrics(metrics)
    losses = [loss for loss in found["losses"] if any(loss in metrics[metric]["values"] for metric in columns)]
    rows = []
    for loss in losses:
        cells = [_mean_and_deviation(metrics[metric]["summary"].get(loss)) for metric in columns]
        rows.append([_label(loss, found, which), *cells])
    bold = set()
    for column, metric in enumerate(columns, 1):
        if metrics[metric]["significant"]:
            bold.add((losses.index(metrics[metric]["best"]), column))
    return Table(["loss", *(get_metric(metric).heading for metric in columns)], rows, bold=bold)


def all_metrics_table(found: Mapping[str, Any], which: str) -> Table:
    """Every metric: a row for each metric, a column for each loss."""
    losses = list(found["losses"])
    rows: list[list[str]] = []
    bold = set()
    for metric, values in found["tables"][which].items():
        if metric in COUNTS:
            continue
        if values["significant"]:
            bold.add((len(rows), 1 + losses.index(values["best"])))
        cells = [_mean_and_deviation(values["summary"].get(loss)) for loss in losses]
        rows.append([get_metric(metric).full_heading, *cells])
    return Table(["metric", *map(loss_label, losses)], rows, bold=bold)


def differences_table(found: Mapping[str, Any], which: str) -> Table | None:
    """Every pair of losses: the mean difference of each main metric, its confidence interval and its p-value.

    A difference with p < `found["level"]` after Holm's correction is bold.
    """
    metrics = found.get("tables", {}).get(which, {})
    columns = [metric for metric in main_metrics(metrics) if metrics[metric].get("differences")]
    if not columns:
        return None
    decimals = [_decimals(metrics[metric]) for metric in columns]
    rows: list[list[str]] = []
    bold = set()
    for of_pair in zip(*(metrics[metric]["differences"] for metric in columns), strict=True):
        pair = f"{loss_label(of_pair[0]['first'])} − {loss_label(of_pair[0]['second'])}"
        for column, d in enumerate(of_pair, 1):
            if d["p_holm"] is not None and d["p_holm"] < found["level"]:
                bold.add((len(rows), column))
        rows.append([pair, *map(_mean, of_pair, decimals)])
        if any(d["low"] is not None for d in of_pair):
            rows.append(["95 % interval", *map(_interval, of_pair, decimals)])
        if any(d["p_holm"] is not None for d in of_pair):
            rows.append(["p", *(_p_value(d["p_holm"]) for d in of_pair)])
    return Table(["difference", *(get_metric(metric).heading for metric in columns)], rows, bold=bold)


# ---- sentences ----


def test_note(found: Mapping[str, Any]) -> str:
    """Which significance test was made, or why there is none."""
    finished = finished_seeds(found)
    seeds, most = min(finished), max(finished)
    name, fewest = TESTS[found["test"]], FEWEST[found["test"]]
    over = f"{seeds} to {most} seeds, as not all runs have finished" if seeds < most else f"{seeds} seeds"
    means = f"Mean ± standard deviation over {over}" if most > 1 else "One seed"
    if most < fewest:
        return (
            f"{means}: too few for a significance test (the {name} needs at least {fewest}), so any difference between "
            "losses may be due to chance."
        )
    note = (
        f"{means}. Bold: the best mean, if it differs from that of every other loss "
        f"(two-sided {name} over the seeds, p < {found['level']:g} after Holm's correction for all pairs of losses). In a "
        "column without bold, no loss is significantly better than all others."
    )
    if seeds < fewest:
        return f"{note} Here nothing can be bold: a loss with fewer than {fewest} seeds cannot be tested."
    if seeds < 6:
        note += " With so few seeds, only large and consistent differences can be significant."
    return note


def finished_seeds(found: Mapping[str, Any]) -> list[int]:
    """How many seeds have finished with the shared strength, of each loss of which any has."""
    shared = [run["loss"] for run in found["runs"] if run["state"] == "finished" and not run["point"]]
    return [shared.count(loss) for loss in found["losses"] if loss in shared]


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must not miss: failed and missing runs, and runs that cannot be compared."""
    lines = [f"These runs cannot be compared: {mismatch}." for mismatch in found["fairness"]["mismatches"]]
    for run in found["runs"]:
        if run["state"] == "failed":
            lines.append(f"The run {run['name']} failed: {run['reason']}.")
    missing = [run["name"] for run in found["runs"] if run["state"] == "missing"]
    if missing:
        lines.append(f"{len(missing)} of {len(found['runs'])} runs have not finished: {', '.join(missing)}.")
    return lines


def strength_lines(found: Mapping[str, Any]) -> list[str]:
    """The strength that each loss was trained with, its other parameters, and versions that differ between seeds."""
    fairness = found["fairness"]
    return [line for line in (_strength_line(fairness), _other_parameters_line(found), _versions_line(fairness)) if line]


def _seed_lines(fairness: Mapping[str, Any]) -> list[str]:
    if fairness["mismatches"]:
        return []
    return [
        f"Seed {seed}: {same['runs']} runs started from the same weights (fingerprint {same['initial_weights'][:8]}) and "
        f"saw the same {same['batch_count']:,} batches in the same order ({same['batches'][:8]})."
        for seed, same in fairness["seeds"].items()
    ]


def _versions_line(fairness: Mapping[str, Any]) -> str:
    """Which seeds ran with which versions, of the libraries of which there are several."""
    by_seed = {seed: of.get("versions") or {} for seed, of in fairness["seeds"].items()}
    found: dict[str, set[str]] = {}
    for versions in by_seed.values():
        for name, version in versions.items():
            found.setdefault(name, set()).add(version)
    several = sorted(name for name, of in found.items() if len(of) > 1)
    if not several:
        return ""
    told = [
        f"seed {seed} with " + ", ".join(f"{name} {versions[name]}" for name in several if name in versions)
        for seed, versions in by_seed.items()
    ]
    return (
        f"Within a seed, all losses ran with the same versions of libraries, which differ between seeds: {'; '.join(told)}."
    )


def _strength_line(fairness: Mapping[str, Any]) -> str:
    with_alpha = {loss: strength for loss, strength in fairness["strength"].items() if strength}
    if len(with_alpha) > 1 and fairness["same_strength"]:
        shared = _describe(next(iter(with_alpha.values())))
        return f"All losses with an α have the same α and the same schedule: {shared}."
    if not with_alpha:
        return ""
    described = "; ".join(f"{loss_label(loss)} {_describe(strength)}" for loss, strength in with_alpha.items())
    return f"Strength: {described}." + (" It differs between losses, as requested." if len(with_alpha) > 1 else "")


def _other_parameters_line(found: Mapping[str, Any]) -> str:
    described = []
    for loss, kwargs in found["losses"].items():
        strength = found["fairness"]["strength"][loss]
        others = [f"{key} = {value}" for key, value in kwargs.items() if key.rpartition(".")[2] not in strength]
        if others:
            described.append(f"{loss_label(loss)} {', '.join(others)}")
    return f"Set by --loss_kwargs: {'; '.join(described)}. All other parameters have their defaults." if described else ""


def chosen_note(found: Mapping[str, Any]) -> str:
    """How each loss's own best setting was chosen."""
    chosen = "; ".join(
        f"{loss_label(loss)} {_describe(_without_prefix(choice['kwargs']))}"
        for loss, choice in found["chosen"].items()
        if choice["kwargs"]
    )
    grid = " × ".join(
        f"{parameter(key)} = {', '.join(f'{value:g}' for value in values)}" for key, values in found["grid"].items()
    )
    if any(_moves(kwargs) for kwargs in found["losses"].values()):
        grid += " (with the end in proportion)"
    return (
        f"For each loss, the setting with the best mean {get_metric(found['selected_by']).label} over the seeds on the "
        f"validation data, never on the test data, among {grid} and the shared setting: {chosen}. A loss without these "
        "parameters is the same as above."
    )


def differences_note(found: Mapping[str, Any]) -> str:
    """What the table of differences shows."""
    if max(finished_seeds(found)) == 1:
        return "First loss − second loss. With one seed there is neither an interval nor a test."
    name = TESTS[found["test"]]
    return (
        "First loss − second loss, paired by seed: the mean difference, its 95 % confidence interval by t, and the p-value "
        f"of a two-sided {name} after Holm's correction for all pairs of losses in a metric. Bold: p < {found['level']:g}. "
        f"With fewer than {FEWEST[found['test']]} seeds, or where all differences are equal, there is no test."
    )


def title(found: Mapping[str, Any]) -> str:
    return f"{found['task']}: {', '.join(map(loss_label, found['losses']))}"


def markdown(found: Mapping[str, Any]) -> str:
    """The content of `table.md`."""
    lines = [f"# {title(found)}", "", verdict(found)["line"], ""]
    lines += [f"**{note}**\n" for note in notes(found)]
    for which, heading in TITLES.items():
        table = results_table(found, which)
        if table is None:
            continue
        lines += [f"## {heading} ({_evaluated_on(found)})", "", as_markdown(table), ""]
        if which == "chosen":
            lines += [chosen_note(found), ""]
    if finished_seeds(found):
        lines += [test_note(found), ""]
    lines += [*(f"{line}\n" for line in (*_seed_lines(found["fairness"]), *strength_lines(found)))]
    return "\n".join(lines).rstrip() + "\n"


def _evaluated_on(found: Mapping[str, Any]) -> str:
    finished = next(run for run in found["runs"] if run["state"] == "finished")
    rows = finished["rows"].get(found["split"])
    return SPLITS[found["split"]] + (f", {rows:,} rows" if rows else "")


# ---- cells ----


def _label(loss: str, found: Mapping[str, Any], which: str) -> str:
    kwargs = found["chosen"].get(loss, {}).get("kwargs", {}) if which == "chosen" else {}
    name = loss_label(loss)
    return f"{name} ({_describe(_without_prefix(kwargs))})" if kwargs else name


def _without_prefix(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a sum of losses without the names of its losses."""
    return {key.rpartition(".")[2]: value for key, value in kwargs.items()}


def _describe(parameters: Mapping[str, Any]) -> str:
    """`α 0.1 → 0.2, cosine`: what moves over training, with its end and schedule, and `α = 0.1`: what is constant."""
    parts = []
    for key, value in parameters.items():
        if key.endswith("_end") or key == "schedule":
            continue
        name, end = parameter(key), parameters.get(f"{key}_end")
        if end in (None, value):
            parts.append(f"{name} = {value}")
        else:
            schedule = f", {parameters['schedule']}" if "schedule" in parameters else ""
            parts.append(f"{name} {value} → {end}{schedule}")
    return ", ".join(parts)


def parameter(key: str) -> str:
    """How a parameter of a loss is written: `α` for `alpha`."""
    return "α" if key == "alpha" else key


def _moves(kwargs: Mapping[str, Any]) -> bool:
    return any(key.endswith("_end") and value is not None for key, value in kwargs.items())


def _mean_and_deviation(summary: Mapping[str, Any] | None) -> str:
    if summary is None or summary["mean"] is None:
        return "–"
    decimals = _fitting(summary["mean"])
    deviation = "" if summary["sd"] is None else f" ± {summary['sd']:.{decimals}f}"
    return minus(f"{summary['mean']:.{decimals}f}{deviation}")


def _fitting(value: float) -> int:
    """Decimals of a value: fewer of a large one."""
    return 4 if abs(value) < 10 else max(0, 4 - int(math.log10(abs(value))))


def _decimals(of_metric: Mapping[str, Any]) -> int:
    """Decimals of the differences between the means of a metric."""
    means = [summary["mean"] for summary in of_metric["summary"].values() if summary["mean"] is not None]
    return min(map(_fitting, means), default=4)


def _mean(difference: Mapping[str, Any], decimals: int) -> str:
    return "–" if difference["mean"] is None else signed(difference["mean"], decimals)


def _interval(difference: Mapping[str, Any], decimals: int) -> str:
    low, high = difference["low"], difference["high"]
    return "–" if low is None else f"[{signed(low, decimals)}, {signed(high, decimals)}]"


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
