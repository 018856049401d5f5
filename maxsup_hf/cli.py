"""`maxsup-hf`: the commands of the library. torch and transformers are imported by the command that needs them."""

from __future__ import annotations

import argparse
import ast
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"


def tasks() -> dict[str, str]:
    """Task name -> what its script does, from the modules in the scripts folder; nothing is imported."""
    found = {}
    for path in sorted(SCRIPTS.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.replace("_", "-")] = docstring.partition("\n")[0]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `maxsup-hf`; `argv` defaults to the command line."""
    parser = argparse.ArgumentParser(prog="maxsup-hf", description="MaxSup and related losses for Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('maxsup-hf')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train or fine-tune a model",
        usage="%(prog)s TASK [flags]",
        description="Train or fine-tune a model. `maxsup-hf train TASK --help` lists the flags of a task.",
        epilog="tasks:\n" + "\n".join(f"  {name:24}{line}" for name, line in tasks().items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("task", metavar="TASK", nargs="?", type=_task, help="one of the tasks below")
    train.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the task")
    train.set_defaults(command=_train)

    compare = commands.add_parser("compare", help="train with several losses and seeds, and report", add_help=False)
    compare.set_defaults(command=_compare)

    losses = commands.add_parser("losses", help="list the losses with their parameters and defaults")
    losses.set_defaults(command=_losses)

    card = commands.add_parser("card", help="write the model card of a training anew, from what it recorded")
    card.add_argument("folder", metavar="DIR", help="the output_dir of a training")
    card.add_argument("--benchmark", metavar="OWNER/NAME", help="also write a result for this benchmark's leaderboard")
    card.add_argument("--task_id", help="the task's name in the benchmark")
    card.add_argument("--metric", default="test_accuracy", help="which result it is (test_accuracy)")
    card.add_argument("--benchmark_revision", metavar="SHA", help="of the benchmark's data")
    card.set_defaults(command=_card)

    push = commands.add_parser("push", help="push a trained model to the Hugging Face Hub")
    push.add_argument("folder", metavar="DIR", help="the model's folder, the output_dir of its training")
    push.add_argument("repo", metavar="REPO", help="namespace/name, or a name in your own namespace")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--revision", help="branch (default: main); made where it is absent")
    push.add_argument("--create-pr", action="store_true", help="make a pull request instead of a commit")
    push.set_defaults(command=_push)

    analyze = commands.add_parser("analyze", help="look at trained classifiers: figures and a report", add_help=False)
    analyze.set_defaults(command=_analyze)

    bench = commands.add_parser("bench", help="measure time and memory of a loss on this machine", add_help=False)
    bench.set_defaults(command=_bench)

    args, rest = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if args.command is _train and args.task is None:
        train.error(f"which TASK? One of {', '.join(tasks())}")
    if rest and args.command not in (_analyze, _bench, _compare):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    args.command(args)


def find_task(name: str) -> str:
    """The task of this name, with - or _.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = tasks()
    dashed = name.replace("_", "-")
    if dashed in known:
        return dashed
    close = difflib.get_close_matches(dashed, known, n=1, cutoff=0.3)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown task {name!r}; {hint}Tasks: {', '.join(known)}")


def _task(name: str) -> str:
    try:
        return find_task(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _train(args: argparse.Namespace) -> None:
    import_module(f"maxsup_hf.scripts.{args.task.replace('-', '_')}").main(args.flags)


def _card(args: argparse.Namespace) -> None:
    from maxsup_hf.hub.card import write_benchmark_result, write_card

    try:
        if (args.benchmark is None) != (args.task_id is None):
            raise ValueError("a result for a benchmark needs both --benchmark and --task_id")
        print(write_card(args.folder))
        if args.benchmark is not None:
            given = args.benchmark, args.task_id, args.metric, args.benchmark_revision
            print(write_benchmark_result(args.folder, *given))
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(2) from error


def _push(args: argparse.Namespace) -> None:
    from maxsup_hf.hub.push import Destination, PushError, push_folder

    try:
        info = push_folder(
            args.folder,
            Destination(args.repo, revision=args.revision, private=args.private),
            message="Upload model",
            create_pr=args.create_pr,
        )
    except PushError as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(1) from error
    print(f"pushed to {info.pr_url or info.commit_url}")


def _analyze(args: argparse.Namespace) -> None:
    import_module("maxsup_hf.analysis.cli").main(args.rest)


def _bench(args: argparse.Namespace) -> None:
    import_module("maxsup_hf.bench").main(args.rest)


def _compare(args: argparse.Namespace) -> None:
    from maxsup_hf.comparison.cli import main as compare

    compare(args.rest, tasks(), find_task)


def _losses(args: argparse.Namespace) -> None:
    from maxsup_hf.losses import get_spec, list_losses
    from maxsup_hf.losses._schedules import SCHEDULES

    try:
        names = list_losses()
    except (ValueError, TypeError) as error:  # of a file with losses of one's own
        print("error:", error, file=sys.stderr)
        raise SystemExit(2) from error
    for name in names:
        spec = get_spec(name)
        print(f"{name}\n    {spec.description}")
        shown = [*spec.parameters, *(f"{parameter}_end" for parameter in spec.parameters)]
        takes = [f"{key}={spec.defaults[key]!r}" for key in shown if spec.defaults[key] is not None]
        takes += [f"{key}={spec.defaults[key]!r} ({' | '.join(map(str, words))})" for key, words in spec.options.items()]
        if takes:
            print("    " + ", ".join(takes))
    print(
        "\nEvery number x moves to x_end over training, by schedule (" + ", ".join(SCHEDULES) + "), where x_end is given.\n"
        "Penalties add: --loss maxsup+z_loss --loss_kwargs maxsup.alpha=0.1,z_loss.lam=1e-4"
    )


if __name__ == "__main__":
    main()
