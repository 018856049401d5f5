"""Collect what finished runs left into `comparison.json`, which all tables and figures are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from maxsup_hf.comparison import statistics
from maxsup_hf.comparison.plan import DETAILS, Plan, Run, alphas, model_bytes, run_folder
from maxsup_hf.comparison.verdict import verdict
from maxsup_hf.hub.record import read_record
from maxsup_hf.metrics import get_metric
from maxsup_hf.metrics._records import ranked
from maxsup_hf.metrics.geometry import feature_metric
from maxsup_hf.output.files import plain

COMPARISON = "comparison.json"
CLOCKS = ("runtime", "samples_per_second", "steps_per_second", "samples", "jit_compilation_time", "model_preparation_time")

Values = dict[str, dict[int, float]]  # loss -> seed -> value


DIFFERING = {  # what must be the same for all runs of a seed, and how it is called
    "initial_weights": "initial weights",
    "batches": "batches or a different order of them",
    "versions": "versions of libraries",
}


class UnfairError(RuntimeError):
    """Runs that had to agree in weights, batches, versions or evaluation data did not."""


def collect(plan: Plan, folder: Path, failed: Mapping[str, str], test: str) -> dict[str, Any]:
    """Read the results of the finished runs.

    Args:
        failed: name -> reason, of the runs that failed.
        test: one of `statistics.TESTS`.

    Returns:
        The content of `comparison.json`, which begins with the verdict; NaN is `None`.
    """
    runs = [_read(run, folder, failed) for run in plan.runs()]
    finished = [run for run in runs if run["state"] == "finished"]
    splits = sorted({run["split"] for run in finished})
    found = {
        **asdict(plan),
        "runs": runs,
        "split": splits[-1] if splits else None,
        "fairness": fairness(plan, finished),
        "test": test,
        "level": statistics.LEVEL,
    }
    if finished:
        found["selected_by"] = selecting_metric(finished[0]["metrics"]["eval"])
        shared = [run for run in finished if not run["point"]]
        found["training_rows"] = _training_rows(shared)
        found["tables"] = {"shared": _table(shared, found["split"], test)}
        if plan.grid:
            found["chosen"] = choose(runs, found["selected_by"])
            best = [run for run in finished if _setting(run) == found["chosen"].get(run["loss"], {}).get("setting")]
            found["tables"]["chosen"] = _table(best, found["split"], test)
    return plain({"verdict": verdict(found), **found})


def _training_rows(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """loss -> `wrong` and `rows` of each tenth of the training, summed over its runs; without the losses of which a run did
    not count them, as in version 0.1."""
    found: dict[str, dict[str, list[int]]] = {}
    for loss in dict.fromkeys(run["loss"] for run in runs):
        counts = [run.get("training_rows") or {} for run in runs if run["loss"] == loss]
        if all(counts):
            found[loss] = {key: np.sum([count[key] for count in counts], axis=0).tolist() for key in ("wrong", "rows")}
    return found


def selecting_metric(metrics: Mapping[str, float]) -> str:
    """The metric of the validation data that settings are chosen by."""
    return next((name for name in ranked(metrics) if get_metric(name).higher_is_better is not None), "loss")


def _read(run: Run, folder: Path, failed: Mapping[str, str]) -> dict[str, Any]:
    place = run_folder(folder, run)
    found: dict[str, Any] = {
        "name": run.name, "loss": run.loss, "seed": run.seed, "kwargs": run.kwargs, "point": run.point,
        "state": "failed" if run.name in failed else "missing",
    }  # fmt: skip
    if run.name in failed:
        found["reason"] = failed[run.name]
    if not (place / DETAILS).is_file():
        return found
    details = json.loads((place / DETAILS).read_text(encoding="utf-8"))
    record = read_record(place)
    results = json.loads((place / "all_results.json").read_text(encoding="utf-8"))
    metrics = {"eval": metrics_of(results, "eval"), "test": metrics_of(results, "test")}
    for name in ("feature_within", "feature_r2"):  # the callback logs those of the validation data without a prefix
        if name in results:
            metrics["eval"][name] = results[name]
    geometry = (details["measured"] or {}).get("geometry") or {}
    metrics[details["split"]] |= {
        feature_metric(name): value for name, value in geometry.items() if not isinstance(value, list)
    }
    about = {
        key: record[key]
        for key in ("model", "dataset", "hyperparameters", "devices", "versions", "command")
        if key in record
    }
    history = [{key: value for key, value in entry.items() if not key.endswith(CLOCKS)} for entry in details.pop("history")]
    rows = {split: results.get(f"{split}_samples") for split in ("train", "eval", "test")}
    return found | details | about | {
        "state": "finished", "metrics": metrics, "rows": rows, "history": history,
        "train_seconds": results.get("train_runtime"), "model_bytes": model_bytes(place),
    }  # fmt: skip


def metrics_of(results: Mapping[str, Any], split: str) -> dict[str, float]:
    """The metrics of a split among the results of a run, without clocks and counts."""
    named = {key.removeprefix(f"{split}_"): value for key, value in results.items() if key.startswith(f"{split}_")}
    return {key: value for key, value in named.items() if key not in CLOCKS and isinstance(value, (int, float))}


def _setting(run: Mapping[str, Any]) -> str:
    return json.dumps(run["kwargs"], sort_keys=True)


# ---- fairness ----


def fairness(plan: Plan, finished: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Check that the runs of each seed agree.

    The versions of libraries may differ between seeds, as where a comparison is continued on another machine, for losses
    are compared within a seed.

    Returns:
        `seeds`: seed -> number of `runs`, `batch_count`, `versions`, and fingerprints of `initial_weights` and `batches`;
        `mismatches`: a sentence for each disagreement; `strength`: loss -> its alpha and schedule; `same_strength`: whether
        all losses with an alpha share these.
    """
    seeds: dict[str, Any] = {}
    mismatches = []
    for seed in plan.seeds:
        runs = [run for run in finished if run["seed"] == seed]
        if not runs:
            continue
        seeds[str(seed)] = {"runs": len(runs), "batch_count": runs[0]["batch_count"]}
        for key, differing in DIFFERING.items():
            seeds[str(seed)][key] = runs[0].get(key)
            others = [run["name"] for run in runs if run.get(key) != runs[0].get(key)]
            if others:
                mismatches.append(f"seed {seed}: {', '.join(others)} had different {differing} than {runs[0]['name']}")
    for key in ("rows", "split", "processes"):
        values = {json.dumps(run.get(key), sort_keys=True) for run in finished}
        if len(values) > 1:
            mismatches.append(f"the runs differ in {key}: {' and '.join(sorted(values))}")
    strengths = {json.dumps(_strength(loss, kwargs), sort_keys=True) for loss, kwargs in plan.losses.items() if alphas(loss)}
    return {
        "seeds": seeds,
        "mismatches": mismatches,
        "same_strength": len(strengths) <= 1,
        "strength": {loss: _strength(loss, kwargs) for loss, kwargs in plan.losses.items()},
    }


def _strength(loss: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Alpha, its end and its schedule, without the name of a loss in a sum."""
    names = ("alpha", "alpha_end", "schedule")
    return {key.rpartition(".")[2]: value for key, value in kwargs.items() if key.rpartition(".")[2] in names}


# ---- statistics ----


def _table(runs: Sequence[Mapping[str, Any]], split: str, test: str) -> dict[str, Any]:
    """metric -> `values` (loss -> seed -> value), `summary`, `differences` of all pairs, `best` and whether it is
    `significant`. Metrics that are columns of the results come first."""
    names = {name for run in runs for name in run["metrics"][split]}
    columns = ranked(names)
    found = {}
    for metric in (*columns, *sorted(names.difference(columns))):
        values: Values = {}
        for run in runs:
            value = run["metrics"][split].get(metric)
            values.setdefault(run["loss"], {})[run["seed"]] = math.nan if value is None else float(value)
        pairs = statistics.differences(values, test)
        higher_is_better = get_metric(metric).higher_is_better
        best = None if higher_is_better is None else statistics.best(values, higher_is_better)
        found[metric] = {
            "higher_is_better": higher_is_better,
            "values": values,
            "summary": {loss: statistics.summarise(by_seed)._asdict() for loss, by_seed in values.items()},
            "differences": [{"first": a, "second": b, **d._asdict()} for (a, b), d in pairs.items()],
            "best": best,
            "significant": best is not None and statistics.stands_out(best, pairs),
        }
    return found


def choose(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """Each loss's best setting by the mean of a metric over seeds, on validation data only.

    Only settings whose runs have all finished are considered; of equally good ones the first of the grid wins.

    Returns:
        loss -> `kwargs`, `point`, `setting`, and `candidates`: the mean and number of seeds at each setting.
    """
    by_setting: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        by_setting.setdefault(run["loss"], {}).setdefault(_setting(run), []).append(run)
    better = max if get_metric(metric).higher_is_better else min
    found = {}
    for loss, settings in by_setting.items():
        candidates = []
        for setting, of_setting in settings.items():
            values = {run["seed"]: run["metrics"]["eval"][metric] for run in of_setting if run["state"] == "finished"}
            candidates.append({
                "setting": setting, "kwargs": of_setting[0]["kwargs"], "point": of_setting[0]["point"],
                **statistics.summarise(values)._asdict(), "whole": len(values) == len(of_setting),
            })  # fmt: skip
        complete = [candidate for candidate in candidates if candidate["whole"] and math.isfinite(candidate["mean"])]
        if complete:
            best = better(complete, key=lambda candidate: candidate["mean"])
            found[loss] = {key: best[key] for key in ("setting", "kwargs", "point")} | {"candidates": candidates}
    return found


def check_fair(found: Mapping[str, Any]) -> None:
    """Raises:
    UnfairError: `fairness` found mismatches.
    """
    mismatches = found["fairness"]["mismatches"]
    if mismatches:
        raise UnfairError("the runs cannot be compared: " + "; ".join(mismatches))
