"""What model_cards/results keeps of a comparison, and how its JSON files are written and read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxsup_hf.output.files import plain, replacing

RESULTS = Path(__file__).parent / "results"
DIGITS = 8  # a little more than float32 holds; the tables print at most five
OF_EACH_RUN = ("name", "loss", "seed", "point", "state", "reason", "rows", "train_seconds")
OVER_GRID = ("accuracy", "nll", "ece", "confidence_when_wrong")  # kept of each run of a grid
OF_ALL_RUNS = ("model", "dataset", "hyperparameters", "devices", "versions")
LEVELS = {"runs": 1, "tables": 2, "values": 1}  # top-level key -> nesting levels that are spread over several lines


def trim(found: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what tables, figures and verdicts need.

    This drops each run's training log, calibration curve, per-class values, metrics and command, and the tests of all
    pairs of losses. Running the experiment again restores them. Of the runs of a grid, the metrics in `OVER_GRID` are
    kept. What all runs share is kept once.

    Args:
        found: the contents of a `comparison.json`.

    Returns:
        Everything that `maxsup_hf.comparison.tables.markdown` reads, and `setup`: `OF_ALL_RUNS` of the first finished run.
    """
    finished = [run for run in found["runs"] if run["state"] == "finished"]
    setup = {key: finished[0][key] for key in OF_ALL_RUNS if key in finished[0]} if finished else {}
    kept = {**found, "setup": setup}
    kept["runs"] = [
        {key: run[key] for key in OF_EACH_RUN if key in run} | (_over_grid(run) if found.get("grid") else {})
        for run in found["runs"]
    ]
    kept["tables"] = {
        which: {metric: {key: of[key] for key in of if key != "differences"} for metric, of in metrics.items()}
        for which, metrics in found.get("tables", {}).items()
    }
    return kept


def _over_grid(run: Mapping[str, Any]) -> dict[str, Any]:
    by_split = run.get("metrics", {})
    return {"metrics": {split: {key: of[key] for key in OVER_GRID if key in of} for split, of in by_split.items()}}


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write JSON with one line for each run and each metric, and floats rounded to `DIGITS` significant digits."""
    rounded = json.loads(json.dumps(plain(found)), parse_float=lambda digits: float(f"{float(digits):.{DIGITS}g}"))
    lines = [f"{_text(key)}: {_spread(value, LEVELS.get(key, 0))}" for key, value in rounded.items()]
    with replacing(path) as unfinished:
        unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def comparisons() -> dict[str, dict[str, Any]]:
    """Name -> contents of every comparison in model_cards/results."""
    every = {path.stem: read(path) for path in sorted(RESULTS.glob("*.json"))}
    return {name: found for name, found in every.items() if "tables" in found}


def _spread(value: Any, levels: int) -> str:
    """JSON with a line for each item of the outermost `levels` containers."""
    if not levels or not value:
        return _text(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_spread(item, levels - 1) for item in value) + "\n]"
    return "{\n" + ",\n".join(f"{_text(key)}: {_spread(item, levels - 1)}" for key, item in value.items()) + "\n}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
