"""The command line, `maxsup-hf`. torch and transformers are imported only by the commands that need them."""

from __future__ import annotations

import argparse
import ast
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from maxsup_hf.output.guard import masked_output
from maxsup_hf.output.parser import Parser
from maxsup_hf.output.secrets import keep_flags

if TYPE_CHECKING:
    from maxsup_hf.losses import LossSpec

SCRIPTS = Path(__file__).parent / "scripts"


def tasks() -> dict[str, str]:
    """Task name -> first line of its script's docstring, for every script in the folder. Nothing is imported."""
    found = {}
    for path in sorted(SCRIPTS.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.replace("_", "-")] = docstring.partition("\n")[0]
    return found


@masked_output()
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `maxsup-hf`; `argv` defaults to the command line."""
    keep_flags(argv or ())
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if args.command is _train and args.task is None:
        args.parser.error(f"TASK is missing; choose one of {', '.join(tasks())}")
    if rest and args.command not in (_analyze, _bench, _compare, _predict):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    args.command(args)


def _parser() -> Parser:
    parser = Parser(prog="maxsup-hf", description="MaxSup and related losses for Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('maxsup-hf')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_train(commands)
    # The commands without help here parse their own flags, --help included: their parsers are built only when needed.
    compare = commands.add_parser("compare", help="train with several losses and seeds, and report", add_help=False)
    compare.set_defaults(command=_compare)
    predict = commands.add_parser("predict", help="write the predictions of a trained model to a file", add_help=False)
    predict.set_defaults(command=_predict)
    losses = commands.add_parser("losses", help="list the losses with their parameters and defaults")
    losses.set_defaults(command=_losses, parser=losses)
    _add_card(commands)
    _add_push(commands)
    analyze = commands.add_parser("analyze", help="compare trained classifiers in figures and a report", add_help=False)
    analyze.set_defaults(command=_analyze)
    bench = commands.add_parser("bench", help="measure the time and memory that losses take on this machine", add_help=False)
    bench.set_defaults(command=_bench)
    completion = commands.add_parser("completion", help="print a script that completes commands and flags in a shell")
    completion.add_argument("shell", choices=("bash", "zsh"), help="for which shell")
    completion.set_defaults(command=_completion, parser=completion)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
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
    train.set_defaults(command=_train, parser=train)


def _add_card(commands: argparse._SubParsersAction) -> None:
    card = commands.add_parser("card", help="write the model card of a training run from its record")
    card.add_argument("folder", metavar="DIR", help="the output_dir of a training run")
    card.add_argument("--license", help="as the Hub names it, such as apache-2.0")
    card.add_argument("--language", metavar="CODE", nargs="+", default=[], help="ISO 639 codes, such as en de")
    card.add_argument("--base_model", metavar="OWNER/NAME", help="the model that was fine-tuned, on the Hub")
    card.add_argument("--dataset", metavar="OWNER/NAME", nargs="+", default=[], help="the training data, on the Hub")
    card.add_argument(
        "--comparison", metavar="DIR", help="output_dir of `maxsup-hf compare`: show the results of its losses"
    )
    card.add_argument("--example", metavar="TEXT_OR_IMAGE", help="show what the model answers to a text or an image file")
    card.add_argument("--trust_remote_code", action="store_true", help="run the model's own code in DIR for the example")
    card.add_argument("--benchmark", metavar="OWNER/NAME", help="also write a result for the leaderboard of this benchmark")
    card.add_argument("--task_id", help="the task's id in the benchmark; required with --benchmark")
    card.add_argument("--metric", default="test_accuracy", help="the result to write (test_accuracy)")
    card.add_argument("--benchmark_revision", metavar="SHA", help="commit of the benchmark's data that was evaluated on")
    card.set_defaults(command=_card, parser=card)


def _add_push(commands: argparse._SubParsersAction) -> None:
    push = commands.add_parser("push", help="push a trained model to the Hugging Face Hub")
    push.add_argument("folder", metavar="DIR", help="the folder of the model, such as the output_dir of its training run")
    push.add_argument("repo", metavar="REPO", help="NAMESPACE/NAME, or NAME in your own namespace")
    push.add_argument(
        "--private", action="store_true", default=None, help="create a private repository; refused if a public one exists"
    )
    push.add_argument(
        "--revision", help="branch (default: main); created if it does not exist. refs/pr/N: an open pull request"
    )
    push.add_argument(
        "--create-pr", "--create_pr", action="store_true",
        help="open a pull request, to somebody else's model too, instead of committing to the branch",
    )  # fmt: skip
    push.add_argument(
        "--push_timeout", "--push-timeout", type=_seconds, metavar="SECONDS",
        help="end after this time, with the command that pushes later (120, 5 more for each MB, and the pauses that the "
        "Hub asks for)",
    )  # fmt: skip
    push.set_defaults(command=_push, parser=push)


def find_task(name: str) -> str:
    """The task with this name, spelled with - or _.

    Raises:
        ValueError: there is no such task; the message suggests the closest.
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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds greater than 0, got {text!r}")
    return value


def _train(args: argparse.Namespace) -> None:
    script = import_module(f"maxsup_hf.scripts.{args.task.replace('-', '_')}")
    from maxsup_hf.prediction.after_training import prepare_predictions
    from maxsup_hf.scripts.common import run

    run.main(script.prepare, args.flags, predict=prepare_predictions)


def _bars_on_terminals_only() -> None:
    if not sys.stderr.isatty():
        import_module("maxsup_hf.scripts.common.console").disable_library_bars()


def _card(args: argparse.Namespace) -> None:
    from maxsup_hf.hub.card import write_benchmark_result
    from maxsup_hf.hub.describe import describe

    names = ("license", "language", "base_model", "dataset", "comparison", "example", "trust_remote_code")
    given = {name: getattr(args, name) for name in names}
    try:
        if (args.benchmark is None) != (args.task_id is None):
            raise ValueError("--benchmark and --task_id must be given together")
        print(describe(args.folder, **given))
        if args.benchmark is not None:
            print(
                write_benchmark_result(
                    args.folder, args.benchmark, args.task_id, metric=args.metric, revision=args.benchmark_revision
                )
            )
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(2) from error


def _push(args: argparse.Namespace) -> None:
    from maxsup_hf.hub.push import Destination, PushError, push

    to = Destination(args.repo, revision=args.revision, private=args.private, timeout=args.push_timeout)
    try:
        info, changed = push(args.folder, to, message="Upload model", create_pr=args.create_pr)
    except PushError as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(1) from error
    if changed:
        print(f"pushed to {info.pr_url or info.commit_url}")
    else:
        print(f"no change: the repository already has these files ({info.commit_url})")


def _analyze(args: argparse.Namespace) -> None:
    _bars_on_terminals_only()
    import_module("maxsup_hf.analysis.cli").main(args.rest)


def _bench(args: argparse.Namespace) -> None:
    _known_losses()
    import_module("maxsup_hf.bench").main(args.rest)


def _predict(args: argparse.Namespace) -> None:
    _bars_on_terminals_only()
    import_module("maxsup_hf.prediction.cli").main(args.rest)


def _completion(args: argparse.Namespace) -> None:
    _known_losses()
    from maxsup_hf.completion import completion_script

    print(completion_script(args.shell, _parser(), tasks()))


def _compare(args: argparse.Namespace) -> None:
    from maxsup_hf.comparison.cli import main as compare

    compare(args.rest, tasks(), find_task)


def _known_losses() -> list[str]:
    """The names of the losses. A file named in MAXSUP_HF_LOSSES that cannot be used ends the program."""
    from maxsup_hf.losses import list_losses

    try:
        return list_losses()
    except (ValueError, TypeError) as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(2) from error


def _losses(args: argparse.Namespace) -> None:
    from maxsup_hf.losses import get_spec
    from maxsup_hf.losses._schedules import SCHEDULES

    for name in _known_losses():
        spec = get_spec(name)
        print(f"{name}\n    {spec.description}")
        parameters = _defaults(spec)
        if parameters:
            print("    " + ", ".join(parameters))
    print(
        f"\nA parameter x moves to x_end during training if x_end is set, by schedule ({', '.join(SCHEDULES)}).\n"
        "Penalties can be summed: --loss maxsup+z_loss --loss_kwargs maxsup.alpha=0.1,z_loss.lam=1e-4"
    )


def _defaults(spec: LossSpec) -> list[str]:
    """`name=default` of every parameter of a loss that has a default, with the choices of an option."""
    names = [*spec.parameters, *(f"{parameter}_end" for parameter in spec.parameters)]
    found = [f"{name}={spec.defaults[name]!r}" for name in names if spec.defaults[name] is not None]
    for name, choices in spec.options.items():
        found.append(f"{name}={spec.defaults[name]!r} ({' | '.join(map(str, choices))})")
    return found


if __name__ == "__main__":
    main()
