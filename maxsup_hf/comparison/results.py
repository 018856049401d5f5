"""From the folders of the runs to `comparison.json`: everything that tables and figures are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maxsup_hf.comparison import statistics
from maxsup_hf.comparison.plan import DETAILS, Plan, Run, alphas, run_folder
from maxsup_hf.output.files import plain

COMPARISON = "comparison.json"
# What is better: True for more. Metrics that are not listed describe, and none is best.
HIGHER = {
    **dict.fromkeys(("mean_iou", "pixel_accuracy", "f1", "precision", "recall", "exact_match", "chrf", "bleu"), True),
    **dict.fromkeys(("loss", "nll", "perplexity", "brier", "ece", "adaptive_ece", "classwise_ece", "mce"), False),
    "accuracy": True,
    "error_auroc": True,
}  # fmt: skip
SELECTED_BY = ("mean_iou", "f1", "chrf", "accuracy", "loss")  # the first of them that a task has
SHOWN = (
    "mean_iou", "pixel_accuracy", "f1", "exact_match", "chrf", "bleu", "accuracy", "loss", "perplexity", "nll", "brier",
    "ece", "confidence_when_wrong", "feature_within", "feature_r2",
)  # fmt: skip
CLOCKS = ("runtime", "samples_per_second", "steps_per_second", "samples", "jit_compilation_time", "model_preparation_time")

Values = dict[str, dict[int, float]]  # loss -> seed -> value


class UnfairError(RuntimeError):
    """Runs that were to be alike were not."""


def collect(plan: Plan, folder: Path, failed: Mapping[str, str], test: str) -> dict[str, Any]:
    """Read what the finished runs left.

    Args:
        failed: name -> why, of the runs that failed.
        test: one of `statistics.TESTS`.

    Returns:
        Plain data, as in `comparison.json`; NaN is `None`.
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
        found["selected_by"] = next((m for m in SELECTED_BY if m in finished[0]["metrics"]["eval"]), "loss")
        found["tables"] = {"shared": _table([run for run in finished if not run["point"]], found["split"], test)}
        if plan.grid:
            found["chosen"] = choose(runs, found["selected_by"])
            best = [run for run in finished if _at(run) == found["chosen"].get(run["loss"], {}).get("setting")]
            found["tables"]["chosen"] = _table(best, found["split"], test)
    return plain(found)


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
    record = json.loads((place / "run.json").read_text(encoding="utf-8"))
    results = json.loads((place / "all_results.json").read_text(encoding="utf-8"))
    geometry = {f"feature_{key.removeprefix('d_')}": value
                for key, value in ((details["measured"] or {}).get("geometry") or {}).items()
                if not isinstance(value, list)}  # fmt: skip
    metrics = {"eval": _metrics(results, "eval"), "test": _metrics(results, "test")}
    for name in ("feature_within", "feature_r2"):  # as the callback logs them of the validation data
        if name in results:
            metrics["eval"][name] = results[name]
    metrics[details["split"]] |= geometry
    about = {
        key: record[key]
        for key in ("model", "dataset", "hyperparameters", "devices", "versions", "command")
        if key in record
    }
    history = [{key: value for key, value in entry.items() if not key.endswith(CLOCKS)} for entry in details.pop("history")]
    rows = {split: results.get(f"{split}_samples") for split in ("train", "eval", "test")}
    return found | details | about | {
        "state": "finished", "metrics": metrics, "rows": rows, "history": history,
        "train_seconds": results.get("train_runtime"),
    }  # fmt: skip


def _metrics(results: Mapping[str, Any], split: str) -> dict[str, float]:
    named = {key.removeprefix(f"{split}_"): value for key, value in results.items() if key.startswith(f"{split}_")}
    return {key: value for key, value in named.items() if key not in CLOCKS and isinstance(value, (int, float))}


def _at(run: Mapping[str, Any]) -> str:
    return json.dumps(run["kwargs"], sort_keys=True)


# ---- the same for all ----


def fairness(plan: Plan, finished: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is the same over the losses of each seed, and what is not.

    Returns:
        `seeds`: seed -> fingerprints of `initial_weights` and `batches`, and the number of `runs` that have them;
        `mismatches`: sentences, empty if all is as it must be; `strength`: what the losses' parameters are;
        `differing`: keyword arguments that the losses with an alpha do not share, told so by the user.
    """
    seeds: dict[str, Any] = {}
    mismatches = []
    for seed in plan.seeds:
        runs = [run for run in finished if run["seed"] == seed]
        if not runs:
            continue
        seeds[str(seed)] = {"runs": len(runs), "batch_count": runs[0]["batch_count"]}
        for what, words in (
            ("initial_weights", "initial weights"),
            ("batches", "batches, or the same in another order,"),
        ):
            seeds[str(seed)][what] = runs[0][what]
            other = [run["name"] for run in runs if run[what] != runs[0][what]]
            if other:
                mismatches.append(f"seed {seed}: {', '.join(other)} had other {words} than {runs[0]['name']}")
    for what in ("versions", "rows", "split", "processes"):
        values = {json.dumps(run.get(what), sort_keys=True) for run in finished}
        if len(values) > 1:
            mismatches.append(f"the runs differ in {what}: {' and '.join(sorted(values))}")
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


# ---- numbers ----


def _table(runs: Sequence[Mapping[str, Any]], split: str, test: str) -> dict[str, Any]:
    """metric -> `values` (loss -> seed -> value), `summary`, `differences` of all pairs, `best` and whether it is
    `significant`."""
    names = {name for run in runs for name in run["metrics"][split]}
    found = {}
    for metric in (*(name for name in SHOWN if name in names), *sorted(names - set(SHOWN))):
        values: Values = {}
        for run in runs:
            value = run["metrics"][split].get(metric)
            values.setdefault(run["loss"], {})[run["seed"]] = math.nan if value is None else float(value)
        pairs = statistics.differences(values, test)
        best = statistics.best(values, HIGHER[metric]) if metric in HIGHER else None
        found[metric] = {
            "higher_is_better": HIGHER.get(metric),
            "values": values,
            "summary": {loss: statistics.summarise(of)._asdict() for loss, of in values.items()},
            "differences": [{"first": a, "second": b, **d._asdict()} for (a, b), d in pairs.items()],
            "best": best,
            "significant": best is not None and statistics.stands_out(best, pairs),
        }
    return found


def choose(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """Each loss's best setting by the mean of a metric over seeds, on validation data alone.

    Only settings whose runs have all finished are compared; of equally good ones the first of the grid is taken.

    Returns:
        loss -> `kwargs`, `point`, `setting`, and `candidates`: the mean and number of seeds at each setting.
    """
    by_setting: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        by_setting.setdefault(run["loss"], {}).setdefault(_at(run), []).append(run)
    found = {}
    for loss, settings in by_setting.items():
        candidates = []
        for setting, of in settings.items():
            values = {run["seed"]: run["metrics"]["eval"][metric] for run in of if run["state"] == "finished"}
            candidates.append({
                "setting": setting, "kwargs": of[0]["kwargs"], "point": of[0]["point"],
                **statistics.summarise(values)._asdict(), "whole": len(values) == len(of),
            })  # fmt: skip
        whole = [candidate for candidate in candidates if candidate["whole"] and math.isfinite(candidate["mean"])]
        if whole:
            best = (max if HIGHER[metric] else min)(whole, key=lambda candidate: candidate["mean"])
            found[loss] = {key: best[key] for key in ("setting", "kwargs", "point")} | {"candidates": candidates}
    return found


def check_fair(found: Mapping[str, Any]) -> None:
    """Raises:
    UnfairError: see `fairness`.
    """
    mismatches = found["fairness"]["mismatches"]
    if mismatches:
        raise UnfairError("the runs do not compare: " + "; ".join(mismatches))
