"""The plan of a comparison: its runs, their losses' strengths, and the folder that keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from maxsup_hf.losses import get_spec, prefix_of
from maxsup_hf.output.files import write_json
from maxsup_hf.output.secrets import masked_words
from maxsup_hf.output.weights import weight_files

PLAN = "plan.json"
DETAILS = "details.json"  # of a run, written last: a folder that has it holds a finished run
PROGRESS = "progress"  # of a run, the share of its steps that are done
SAVE_MODELS = ("none", "best", "all")
GROWS = ("losses", "seeds", "grid")  # may be extended later, because finished runs stay valid


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        loss: name.
        seed: of the weights, the order of the rows and everything else that is random.
        kwargs: of the loss, those that differ from its defaults.
        point: of the grid, `{}` for the setting that all losses share.
    """

    loss: str
    seed: int
    kwargs: dict[str, Any]
    point: dict[str, float] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The loss and its point of the grid."""
        return "-".join([self.loss, *(f"{key}={value:g}" for key, value in self.point.items())])

    @property
    def name(self) -> str:
        return f"{self.setting}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        task: `"image-classification"`.
        losses: name -> keyword arguments.
        seeds: at least one.
        grid: parameter -> values.
        flags: of the task's script, the same for every run.
        hold_out_test: share of the validation data that becomes test data if there is none.
        accelerate_config: of `accelerate launch`, or `None`.
        save_models: one of `SAVE_MODELS`, which models stay on disk. It may change later. Plans of version 0.1 have none,
            and kept all.
    """

    task: str
    losses: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    hold_out_test: float = 0.0
    accelerate_config: str | None = None
    save_models: str = "all"

    def runs(self) -> list[Run]:
        """Every run once, seed by seed, so that finished runs can be compared after an interruption."""
        found: dict[tuple[str, int, str], Run] = {}
        for seed, (loss, kwargs) in product(self.seeds, self.losses.items()):
            for point in ({}, *grid_points(loss, self.grid)):
                run = Run(loss, seed, at_point(loss, kwargs, point), point)
                found.setdefault((loss, seed, json.dumps(run.kwargs, sort_keys=True)), run)
        return sorted(found.values(), key=lambda run: bool(run.point))


def share_strength(
    losses: Sequence[str],
    alpha: float,
    alpha_end: float | None,
    schedule: str | None,
    own: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Give every loss that has an alpha the same alpha and the same schedule.

    Args:
        losses: registered names, or sums of them.
        alpha: of all of them.
        alpha_end: alpha at the end of training, `None` for a constant one.
        schedule: how alpha moves. Default: the loss's own (linear).
        own: loss -> its own parameters, which take precedence. Its own alpha is constant unless its end is given too.

    Returns:
        loss -> keyword arguments of `create_loss`.

    Raises:
        ValueError, TypeError: an unknown loss or parameter, a loss named twice, a value out of range.
    """
    if not losses or len(set(losses)) < len(losses):
        raise ValueError(f"losses must be one or more distinct names, comma-separated, got {','.join(losses)!r}")
    for name in own:
        if name not in losses:
            raise ValueError(f"loss_kwargs: {name!r} is not one of the compared losses ({', '.join(losses)})")
    found = {}
    for loss in losses:
        spec = get_spec(loss)
        kwargs: dict[str, Any] = {}
        for parameter in alphas(loss):
            prefix, given = prefix_of(parameter), own.get(loss, {})
            end = None if parameter in given else alpha_end
            kwargs |= {parameter: alpha, f"{parameter}_end": given.get(f"{parameter}_end", end)}
            if schedule is not None and kwargs[f"{parameter}_end"] is not None:
                kwargs[f"{prefix}schedule"] = schedule
        kwargs |= own.get(loss, {})
        spec.resolve(kwargs)
        found[loss] = kwargs
    return found


def alphas(loss: str) -> list[str]:
    """The alphas among the parameters of a loss, or of a sum of losses."""
    return [parameter for parameter in get_spec(loss).parameters if parameter.rpartition(".")[2] == "alpha"]


def grid_points(loss: str, grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination of values of the parameters that a loss has; none for a loss without any of them."""
    keys = [key for key in grid if _parameters(loss, key)]
    if not keys:
        return []
    return [dict(zip(keys, values, strict=True)) for values in product(*(grid[key] for key in keys))]


def at_point(loss: str, kwargs: Mapping[str, Any], point: Mapping[str, float]) -> dict[str, Any]:
    """The keyword arguments at a point of the grid. The end of a parameter that moves changes by the same factor."""
    found = dict(kwargs)
    defaults = get_spec(loss).defaults
    for key, value in point.items():
        for parameter in _parameters(loss, key):
            now, end = (found.get(name, defaults[name]) for name in (parameter, f"{parameter}_end"))
            found[parameter] = value
            if end is not None:
                found[f"{parameter}_end"] = float(f"{value * end / now:.12g}") if now else None
    return found


def check_grid(losses: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Sequence[float]]) -> None:
    """Raises:
    ValueError, TypeError: a parameter that none of the losses has, or a value out of range.
    """
    for key in grid:
        if not any(_parameters(loss, key) for loss in losses):
            raise ValueError(f"grid: none of the losses {', '.join(losses)} has a parameter {key!r}")
    for loss, kwargs in losses.items():
        for point in grid_points(loss, grid):
            get_spec(loss).resolve(at_point(loss, kwargs, point))


def _parameters(loss: str, key: str) -> list[str]:
    """The parameters of a loss that a key names: of a sum of losses, with or without the name of a loss in it."""
    return [parameter for parameter in get_spec(loss).parameters if key in (parameter, parameter.rpartition(".")[2])]


# ---- the folder ----


def run_folder(folder: Path, run: Run) -> Path:
    return folder / "runs" / run.name


def is_finished(folder: Path, run: Run) -> bool:
    return (run_folder(folder, run) / DETAILS).is_file()


def weights(folder: Path) -> list[Path]:
    """The files of weights, with the index of shards, and the checkpoints in the folder of a run."""
    return [*weight_files(folder), *folder.glob("*.index.json"), *folder.glob("checkpoint-*")]


def model_bytes(folder: Path) -> int:
    """Size of the weights and checkpoints in the folder of a run."""
    files = [file for path in weights(folder) for file in (path, *path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def keep_plan(folder: Path, plan: Plan) -> None:
    """Write the plan, unless the folder holds other files. A comparison without a finished run is overwritten.

    Raises:
        FileExistsError: the folder holds a comparison with other settings, or other files.
        OSError: it cannot be written to.
    """
    path = folder / PLAN
    plan = replace(plan, flags=tuple(masked_words(plan.flags)))
    if path.is_file():
        before = load_plan(folder)
        differing = _differences(before, plan)
        if differing and any(is_finished(folder, run) for run in before.runs()):
            raise FileExistsError(
                f"output_dir: {str(folder)!r} contains a comparison with other settings: {'; '.join(differing)}. Repeat its "
                "settings (losses, seeds and grid may grow), or name another folder"
            )
    elif folder.is_dir() and any(name != ".lock" for name in os.listdir(folder)):
        raise FileExistsError(
            f"output_dir: {str(folder)!r} is not empty and does not contain a comparison; name another folder"
        )
    write_json(path, asdict(plan))


def load_plan(folder: Path) -> Plan:
    """Raises:
    FileNotFoundError: the folder does not contain a comparison.
    ValueError: its plan cannot be read.
    """
    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} does not contain a comparison: {PLAN} is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["seeds"], found["flags"] = tuple(found["seeds"]), tuple(found["flags"])
        found["grid"] = {key: tuple(values) for key, values in found["grid"].items()}
        return Plan(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as the plan of a comparison: {error}") from error


def _differences(before: Plan, now: Plan) -> list[str]:
    found = []
    for name in (name for name in asdict(now) if name not in (*GROWS, "save_models")):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            found.append(f"{name} was {_as_text(old)}, now {_as_text(new)}")
    for loss, kwargs in before.losses.items():
        if loss not in now.losses:
            found.append(f"losses had {loss}")
        elif kwargs != now.losses[loss]:
            found.append(f"{loss} had {json.dumps(kwargs)}, now {json.dumps(now.losses[loss])}")
    left_out = [seed for seed in before.seeds if seed not in now.seeds]
    if left_out:
        found.append(f"seeds had {', '.join(map(str, left_out))}")
    for key, values in before.grid.items():
        gone = [value for value in values if value not in now.grid.get(key, ())]
        if gone:
            found.append(f"grid had {key}={','.join(f'{value:g}' for value in gone)}")
    return found


def _as_text(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else repr(value)
