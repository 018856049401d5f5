"""Which trained models a comparison keeps: those of all runs, the best one of each loss, or none."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from maxsup_hf.comparison.plan import Plan, Run, is_finished, model_bytes, run_folder, weights
from maxsup_hf.comparison.results import metrics_of, selecting_metric
from maxsup_hf.hub.record import NOT_KEPT, RECORD, read_record
from maxsup_hf.metrics import get_metric
from maxsup_hf.output.files import replacing
from maxsup_hf.output.weights import LOSS_STATE_NAME


def keep_models(plan: Plan, folder: Path) -> None:
    """Remove the weights and checkpoints of the finished runs that `plan.save_models` does not keep.

    Of each loss, `best` keeps the run with the best value of the metric that settings are chosen by, on validation data.
    Results, tokenizers and configurations stay.
    """
    if plan.save_models == "all":
        return
    by_loss: dict[str, list[Run]] = {}
    for run in plan.runs():
        if is_finished(folder, run) and weights(run_folder(folder, run)):
            by_loss.setdefault(run.loss, []).append(run)
    for runs in by_loss.values():
        best = max(runs, key=lambda run: _score(run_folder(folder, run))) if plan.save_models == "best" else None
        for run in runs:
            if run is not best:
                _remove(run_folder(folder, run), plan.save_models)


def models_line(plan: Plan, folder: Path) -> str:
    """What is kept of the models, and how large it is."""
    sizes = {run.name: model_bytes(run_folder(folder, run)) for run in plan.runs() if is_finished(folder, run)}
    kept = [name for name, size in sizes.items() if size]
    total = f"{sum(sizes.values()) / 1e6:,.1f} MB in {folder / 'runs'}"
    if not kept:
        return "models: none kept (--save_models best or all keeps them)"
    if len(kept) == len(sizes):
        return f"models: those of all {len(kept)} finished runs, {total}"
    return f"models: {', '.join(kept)}, {total}; --save_models {plan.save_models} removed those of the other runs"


def _score(folder: Path) -> float:
    """How good a run is on the validation data; greater is better."""
    path = folder / "all_results.json"
    metrics = metrics_of(json.loads(path.read_text(encoding="utf-8")), "eval") if path.is_file() else {}
    name = selecting_metric(metrics)
    value = metrics.get(name, math.nan)
    if math.isnan(value):
        return -math.inf
    return value if get_metric(name).higher_is_better else -value


def _remove(folder: Path, how: str) -> None:
    command = read_record(folder).get("command") if (folder / RECORD).is_file() else None
    again = f"; to have them, train again: {command}" if command else ""
    with replacing(folder / NOT_KEPT) as unfinished:
        unfinished.write_text(
            f"its weights were removed by `maxsup-hf compare --save_models {how}`{again}\n", encoding="utf-8"
        )
    for path in weights(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / LOSS_STATE_NAME).unlink(missing_ok=True)
