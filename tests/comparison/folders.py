"""Folders as finished runs leave them, with metrics that a test chooses."""

import json

import numpy as np

from maxsup_hf.comparison.plan import run_folder


def leave(folder, run, metrics, *, split="test", torch="2", **changes):
    """What a run writes: `metrics` is split -> name -> value; `changes` are of its details. `torch` is its version."""
    place = run_folder(folder, run)
    place.mkdir(parents=True)
    results = {f"{part}_{name}": value for part, of in metrics.items() for name, value in of.items()}
    results |= {"train_samples": 100, "eval_samples": 50, "test_samples": 40, "train_runtime": 1.5}
    record = {
        "versions": {"torch": torch, "numpy": "2"},
        "hyperparameters": {"learning_rate": 0.1},
        "command": f"maxsup-hf train {run.name}",
    }
    rng = np.random.default_rng(run.seed)
    rows, confidence = rng.integers(5, 20, 15), np.linspace(0.03, 0.97, 15)
    measured = {
        "geometry": {"d_within": 0.3, "r2": 0.4, "nc1": None, "d_within_per_class": [0.2, None, 0.4]},
        "curve": {
            "edges": np.linspace(0, 1, 16).tolist(),
            "rows": rows.tolist(),
            "confidence": confidence.tolist(),
            "accuracy": (confidence * rng.uniform(0.8, 1, 15)).tolist(),
        },
    }
    history = [
        {"step": step, "loss": 2 / step, "train_cross_entropy": 1 / step, "train_penalty": 0.1 * step, "epoch": 1.0}
        for step in (1, 2, 3)
    ] + [{"step": step, "eval_loss": 1 / step, "eval_accuracy": step / 4, "eval_runtime": 9.0} for step in (1, 2, 3)]
    details = {
        "initial_weights": f"weights{run.seed}", "batches": f"batches{run.seed}", "batch_count": 3, "processes": 1,
        "training_rows": {"wrong": [30, *range(9, 0, -1)], "rows": [100] * 10},
        "split": split, "classes": ["a", "b", "c"], "measured": measured, "not_measured": None, "history": history,
    } | changes  # fmt: skip
    for name, found in (("all_results.json", results), ("run.json", record), ("details.json", details)):
        (place / name).write_text(json.dumps(found))
