"""The command line of `maxsup-hf compare`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maxsup_hf.comparison import results, tables
from maxsup_hf.comparison.execute import BadInput, execute
from maxsup_hf.comparison.models import models_line
from maxsup_hf.comparison.plan import PLAN, SAVE_MODELS, Plan, alphas, check_grid, keep_plan, load_plan, share_strength
from maxsup_hf.comparison.statistics import TESTS
from maxsup_hf.data.files import loading
from maxsup_hf.hub.describe import add_comparison
from maxsup_hf.losses import flatten, get_spec
from maxsup_hf.losses._schedules import SCHEDULES
from maxsup_hf.output.files import replacing, write_json
from maxsup_hf.output.messages import one_line
from maxsup_hf.output.parser import Parser
from maxsup_hf.output.secrets import without_hub_token
from maxsup_hf.trainer.training_args import parse_loss_kwargs

LOSSES = "cross_entropy,label_smoothing,online_label_smoothing,maxsup"
OURS = {  # flags of the scripts that a comparison sets itself
    "--loss": "use --losses", "--seed": "use --seeds", "--data_seed": "use --seeds",
    "--resume_from_checkpoint": "finished runs are kept anyway", "--dry_run": "use `maxsup-hf train TASK --dry_run`",
    "--push_to_hub": "use `maxsup-hf push` afterwards", "--disable_tqdm": "there is one bar for all runs",
}  # fmt: skip
KEPT = {
    "none": "no models are kept (--save_models best or all keeps them)",
    "best": "the best model of each loss is kept (--save_models all keeps every run's)",
    "all": "the models of all runs are kept (--save_models best keeps the best of each loss)",
}
DATA = ("dataset_name", *(f"{split}_{kind}" for kind in ("file", "dir") for split in ("train", "validation", "test")))
# Without data of the user's own: enough validation rows to set some apart as test data, and runs so short that the
# comparison takes minutes on two cores and its models still make errors. The user's own flags take precedence.
BUILTIN = {"train_val_split": 0.3}
QUICK: dict[str, dict[str, float]] = {
    "image-classification": {"train_val_split": 0.5, "max_train_samples": 300, "per_device_train_batch_size": 32},
    "language-modeling": {"max_train_samples": 160},
    "multiple-choice": {"max_train_samples": 600, "max_eval_samples": 800},
    "question-answering": {"max_train_samples": 1400, "max_eval_samples": 1000},
    "semantic-segmentation": {"max_train_samples": 100},
    "sequence-to-sequence": {"max_train_samples": 1200, "num_train_epochs": 3, "max_eval_samples": 200},
    "sft": {"max_train_samples": 1000, "max_eval_samples": 200},
    "text-classification": {"max_train_samples": 3000},
    "token-classification": {"max_train_samples": 1000, "max_eval_samples": 1000},
}


def parser(tasks: Mapping[str, str]) -> Parser:
    found = Parser(
        prog="maxsup-hf compare",
        usage="%(prog)s TASK [--losses …] [--seeds …] [flags of compare] [flags of the task's script]",
        description="Train with each loss and each seed, evaluate all models alike, and write comparison.json, table.md and "
        "report.html. After an interruption, the same command continues: finished runs are kept. All other flags are passed "
        "to every run; `maxsup-hf train TASK --help` lists them.",
        epilog="tasks:\n" + "\n".join(f"  {name:24}{line}" for name, line in tasks.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("task", metavar="TASK", nargs="?", help="one of the tasks below")
    add("--losses", metavar="A,B,…", default=LOSSES, help=f"registered losses, or sums of them ({LOSSES})")
    add("--seeds", metavar="0,1,…", default="0,1,2", help="each loss is trained with each seed (0,1,2)")
    add("--alpha", type=float, help="alpha of every loss that has one (that of maxsup, 0.1, with its alpha_end)")
    add("--alpha_end", type=float, help="alpha at the end of training (0.2; with --alpha alone, alpha is constant)")
    add("--schedule", choices=list(SCHEDULES), help="how alpha moves to alpha_end (linear)")
    add("--loss_kwargs", default="", metavar="LOSS.KEY=VALUE,…", help="parameters of a single loss: maxsup.alpha=0.2")
    add("--grid", action="append", default=[], metavar="KEY=V1,V2,…", help="also train with these values; each loss's best "
        "is chosen on validation data, for a second table; may be repeated")  # fmt: skip
    add("--hold_out_test", type=float, metavar="SHARE", help="share of the validation data that becomes test data if there "
        "is none (0; 0.5 with --grid or the built-in data)")  # fmt: skip
    add("--test", choices=list(TESTS), default="t", help="paired test over seeds: t or wilcoxon (t)")
    add("--jobs", type=int, help="runs at the same time (1; 2 on the built-in data, without a GPU)")
    add("--accelerate_config", metavar="FILE", help="config for `accelerate launch` (accelerate's default config, if there "
        "is one; none: plain processes)")  # fmt: skip
    add("--save_models", choices=SAVE_MODELS, help="which models stay on disk: none, the best one of each loss on "
        "validation data, or all; checkpoints go with their model (best; all with --save_strategy)")  # fmt: skip
    add("--output_dir", metavar="DIR", help="folder of the comparison (outputs/compare-TASK)")
    add("--report_only", metavar="DIR", help="rewrite JSON, table and report of a comparison; nothing is trained")
    return found


def main(argv: Sequence[str], tasks: Mapping[str, str], find_task: Callable[[str], str]) -> None:
    """Entry point. Exit status 2: bad input; 1: runs failed or cannot be compared; 130: interrupted.

    Args:
        argv: the command line after `compare`.
        tasks: name -> description.
        find_task: name as typed -> name of the task; raises ValueError for an unknown one.
    """
    known = parser(tasks)
    args, flags = known.parse_known_args(argv)
    try:
        if find_spec("matplotlib") is None:
            raise ValueError("the report's figures need matplotlib: pip install matplotlib")
        if args.report_only and args.save_models:
            raise ValueError(
                "save_models: --report_only removes nothing; repeat the command of the comparison with --save_models, which "
                "keeps its finished runs"
            )
        if args.report_only:
            folder = Path(args.report_only)
            raise SystemExit(_report(load_plan(folder), folder, _failed_before(folder), args.test))
        if args.task is None:
            known.error("the following arguments are required: TASK")
        plan, folder, jobs = make_plan(args, find_task(args.task), [flag for flag in flags if flag != "--"])
        is_new = not (folder / PLAN).is_file()
        with _lock(folder):
            keep_plan(folder, plan)
            print(f"{len(plan.runs())} runs in {folder}; {KEPT[plan.save_models]}", file=sys.stderr)
            try:
                failed = execute(plan, folder, jobs)
            except BadInput:
                if is_new:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            status = _report(plan, folder, failed, args.test)
    except (ValueError, TypeError, OSError) as error:
        print("error:", one_line(error), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command to continue; finished runs are kept", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(status)


def make_plan(args: argparse.Namespace, task: str, flags: Sequence[str]) -> tuple[Plan, Path, int]:
    """Check the flags.

    Returns:
        The plan, the folder, and the number of runs at the same time.

    Raises:
        ValueError, TypeError: a flag is wrong; the message says how to correct it.
    """
    for flag in flags:
        name = flag.partition("=")[0]
        if name in OURS:
            raise ValueError(f"{name}: a comparison sets this flag for each run; {OURS[name]}")
    losses = _losses(args)
    grid = _grid(args.grid)
    check_grid(losses, grid)
    given = {flag.partition("=")[0] for flag in flags}
    builtin = given.isdisjoint(f"--{name}" for name in (*DATA, "config"))
    if builtin:
        flags = _with_defaults(BUILTIN | QUICK.get(task, {}), flags)
    folder = Path(args.output_dir or f"outputs/compare-{task}")
    save_models = args.save_models or _default_save_models(folder, flags)
    flags = _with_defaults({"save_strategy": "no"}, flags)
    share = args.hold_out_test
    if share is None:
        share = 0.5 if grid or builtin else 0.0
    if not 0 <= share < 1:
        raise ValueError(f"hold_out_test must be at least 0 and less than 1, got {share}")
    jobs = _default_jobs(builtin) if args.jobs is None else args.jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    flags = without_hub_token(flags)  # of no use: runs of a comparison are not pushed
    launch = _accelerate_config(args.accelerate_config)
    return Plan(task, losses, _seeds(args.seeds), grid, tuple(flags), share, launch, save_models), folder, jobs


def _report(plan: Plan, folder: Path, failed: Mapping[str, str], test: str) -> int:
    """Write the results of the finished runs. Returns the exit status."""
    from maxsup_hf.comparison import report  # which needs matplotlib

    found = results.collect(plan, folder, failed, test)
    write_json(folder / results.COMPARISON, found)
    text = tables.markdown(found)
    with replacing(folder / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    report.write(found, folder)
    _write_cards(found, folder)
    finished = sum(run["state"] == "finished" for run in found["runs"])
    print(text)
    print(f"{finished} of {len(found['runs'])} runs finished; saved to {folder}")
    if finished:
        print(models_line(plan, folder))
    try:
        results.check_fair(found)
    except results.UnfairError as error:
        print("error:", error, file=sys.stderr)
        return 1
    return 0 if finished == len(found["runs"]) else 1


def _write_cards(found: Mapping[str, Any], folder: Path) -> None:
    """Add the results of all losses to the cards of the runs, unless the runs cannot be compared."""
    if found["fairness"]["mismatches"]:
        return
    for run in found["runs"]:
        place = folder / "runs" / run["name"]
        if run["state"] == "finished" and not run["point"] and (place / "README.md").is_file():
            add_comparison(place, found, run["loss"])


def _failed_before(folder: Path) -> dict[str, str]:
    """Name -> reason, of the runs that failed according to the last report."""
    path = folder / results.COMPARISON
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    return {run["name"]: run["reason"] for run in runs if run["state"] == "failed"}


def _lock(folder: Path) -> FileLock:
    """Raises:
    OSError: the folder cannot be made or written to, or another comparison is running in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise OSError(
            f"output_dir: another comparison is running in {str(folder)!r}; wait for it, or name another folder"
        ) from None
    except OSError as error:
        raise OSError(f"output_dir: {str(folder)!r} cannot be written to: {error.strerror or error}") from None
    return lock


# ---- flags ----


def _losses(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> keyword arguments, of the losses to compare."""
    names = [name.strip() for name in args.losses.split(",") if name.strip()]
    if (args.alpha, args.alpha_end, args.schedule) != (None, None, None) and not any(map(alphas, names)):
        raise ValueError(
            f"alpha, alpha_end and schedule are for losses with an alpha, and none of {', '.join(names)} has one"
        )
    alpha, alpha_end = args.alpha, args.alpha_end
    if alpha is None:
        defaults = get_spec("maxsup").defaults
        alpha = defaults["alpha"]
        alpha_end = defaults["alpha_end"] if alpha_end is None else alpha_end
    return share_strength(names, alpha, alpha_end, args.schedule, _parameters_by_loss(args.loss_kwargs, names))


def _parameters_by_loss(text: str, losses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`maxsup.alpha=0.2` -> `{"maxsup": {"alpha": 0.2}}`; for a sum of losses `maxsup+z_loss.z_loss.lam=1e-4`."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flatten(parse_loss_kwargs(text)).items():
        owners = [loss for loss in losses if key.startswith(f"{loss}.")]
        if not owners:
            raise ValueError(
                f"loss_kwargs must be LOSS.KEY=VALUE with one of the compared losses ({', '.join(losses)}), got {key!r}; "
                "--alpha, --alpha_end and --schedule apply to all of them"
            )
        loss = max(owners, key=len)
        found.setdefault(loss, {})[key[len(loss) + 1 :]] = value
    return found


def _grid(given: Sequence[str]) -> dict[str, tuple[float, ...]]:
    found = {}
    for text in given:
        key, equals, values = text.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")] if equals else []
        except ValueError:
            numbers = []
        if not numbers:
            raise ValueError(f"grid must be KEY=V1,V2,… with numbers, such as alpha=0.05,0.1,0.2; got {text!r}")
        found[key.strip()] = tuple(dict.fromkeys(numbers))
    return found


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ValueError(f"seeds must be comma-separated, distinct integers of at least 0, such as 0,1,2; got {text!r}")
    return found


def _with_defaults(defaults: Mapping[str, Any], flags: Sequence[str]) -> list[str]:
    given = {flag.partition("=")[0] for flag in flags}
    missing = {f"--{name}": str(value) for name, value in defaults.items() if f"--{name}" not in given}
    return [word for pair in missing.items() for word in pair] + list(flags)


def _default_save_models(folder: Path, flags: Sequence[str]) -> str:
    """That of the comparison that is continued; `all` for whoever asks for checkpoints; else `best`."""
    if (folder / PLAN).is_file():
        return load_plan(folder).save_models
    words = [word for flag in flags for word in flag.split("=", 1)]
    asked = "--save_strategy" in words and words[words.index("--save_strategy") + 1 :][:1] != ["no"]
    return "all" if asked else "best"


def _default_jobs(builtin: bool) -> int:
    import torch

    return min(2, os.cpu_count() or 1) if builtin and not torch.accelerator.is_available() else 1


def _accelerate_config(given: str | None) -> str | None:
    if given == "none":
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if given is not None:
        if not Path(given).is_file():
            raise ValueError(
                f"accelerate_config: there is no file {given!r}; `accelerate config --config_file {given}` makes one"
            )
        hint = f"; `accelerate config --config_file {given}` makes one"
        with loading("accelerate_config", given, hint):
            load_config_from_file(given)
        return str(Path(given).absolute())
    return default_config_file if Path(default_config_file).is_file() else None
