"""Completion of `maxsup-hf` in bash and zsh: a script made by shtab from the parsers of all commands."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

import shtab
from transformers.hf_argparser import string_to_bool

from maxsup_hf import bench
from maxsup_hf.analysis import cli as analysis
from maxsup_hf.comparison import cli as comparison
from maxsup_hf.losses import list_losses
from maxsup_hf.prediction import cli as prediction
from maxsup_hf.scripts.common.arguments import HelpShown


def completion_script(shell: str, main: argparse.ArgumentParser, tasks: Mapping[str, str]) -> str:
    """The script that makes a shell complete commands, tasks, flags and their values.

    Args:
        shell: bash or zsh.
        main: parser of `maxsup-hf`, whose subparsers are the commands.
        tasks: task -> description.
    """
    own = {
        "analyze": analysis.parser(),
        "bench": bench.parser(),
        "compare": comparison.parser(tasks),
        "predict": prediction.parser(),
    }
    root = argparse.ArgumentParser(prog="maxsup-hf", description=main.description)
    commands = root.add_subparsers()
    (subparsers,) = (action for action in main._actions if isinstance(action, argparse._SubParsersAction))
    descriptions = {choice.dest: choice.help for choice in subparsers._choices_actions}
    for name, parser in {**subparsers.choices, **own}.items():
        command = commands.add_parser(name, help=descriptions[name])
        if name == "train":
            each = command.add_subparsers()
            for task, description in tasks.items():
                _copy_flags(_task_parser(task), each.add_parser(task, help=description), tasks)
        else:
            _copy_flags(parser, command, tasks)
    return shtab.complete(root, shell=shell)


def _task_parser(task: str) -> argparse.ArgumentParser:
    """The parser of a task's flags, as its script builds it for `--help_all`; an empty one if it needs what is missing."""
    script = import_module(f"maxsup_hf.scripts.{task.replace('-', '_')}")
    try:
        with redirect_stdout(StringIO()):
            script.prepare(["--help_all"])
    except HelpShown as shown:
        return shown.parser
    except ValueError:  # TRL is not installed
        pass
    return argparse.ArgumentParser(add_help=False)


def _copy_flags(source: argparse.ArgumentParser, target: argparse.ArgumentParser, tasks: Collection[str]) -> None:
    """Add the flags of a parser to another one, in one spelling, with what their values can be."""
    for action in source._actions:
        if action.dest == "help":
            continue
        flag = copy.copy(action)
        flag.option_strings = [name for name in action.option_strings if "-" not in name[2:]] or action.option_strings
        if flag.dest == "loss":
            flag.choices = list_losses()
        elif flag.dest == "task":
            flag.choices = flag.choices or list(tasks)
        elif flag.type is string_to_bool:
            flag.choices = ["true", "false"]
        elif flag.dest.endswith(("_file", "_name_or_path", "config", "config_name")):
            flag.complete = shtab.FILE  # type: ignore[attr-defined]
        elif flag.dest.endswith(("_dir", "folder")):
            flag.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        target._add_action(flag)
