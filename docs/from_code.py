"""Sphinx directives that write reference pages from the code: command-line flags, the tables of losses and metrics.

- `{flags} compare` lists the flags of `maxsup-hf compare`, from its parser; `{flags} train TASK` those that only this task
  has, and the training arguments that it starts from.
- `{shared-flags}` lists the flags that every task takes.
- `{losses}` lists the registered losses with their parameters.
- `{metrics}` lists the registered metrics.
- `{modules}` lists the modules of the package with what each does.
"""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.hf_argparser import string_to_bool

import maxsup_hf
from maxsup_hf.cli import main, tasks
from maxsup_hf.losses import LossSpec, get_spec, list_losses
from maxsup_hf.metrics import METRICS

OF_TRANSFORMERS = {field.name for field in fields(Seq2SeqTrainingArguments)}
OF_THIS_MACHINE = {
    "output_dir",
    "use_cpu",
    "dataloader_pin_memory",
    "disable_tqdm",
}  # their defaults depend on where the docs are built
KINDS: dict[Any, str] = {int: "INT", float: "FLOAT", string_to_bool: "true|false", Path: "FILE"}


PACKAGE = Path(maxsup_hf.__file__).parent
# From the top layer to the bottom, as import-linter holds them (pyproject.toml).
ROOMS = (
    "", "comparison", "prediction", "analysis", "scripts", "bench", "trainer", "hub", "data", "metrics", "losses", "ops",
    "output",
)  # fmt: skip


class _Asked(BaseException):
    """Carries the parser that was about to print its help; commands turn any `Exception` into a line."""


@cache
def parser(command: str) -> argparse.ArgumentParser:
    """The parser behind `maxsup-hf COMMAND --help`."""

    def catch(self: argparse.ArgumentParser, file: Any = None) -> NoReturn:
        raise _Asked(self)

    with patch.object(argparse.ArgumentParser, "print_help", catch):
        try:
            main([*command.split(), "--help_all" if command.startswith("train ") else "--help"])
        except _Asked as asked:
            return asked.args[0]
    raise ValueError(f"`maxsup-hf {command} --help` prints no help of a parser")


def own_flags(command: str) -> dict[str, argparse.Action]:
    """Flags and positional arguments of a command by name, without `--help` and those of transformers."""
    hidden = OF_TRANSFORMERS | {"help", "help_all"}
    actions = _actions(parser(command)).items()
    return {name: action for name, action in actions if name not in hidden and action.help != argparse.SUPPRESS}


def _actions(found: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """By name; of `--flag` and `--no_flag` the first."""
    actions: dict[str, argparse.Action] = {}
    for action in found._actions:
        actions.setdefault(action.dest, action)
    return actions


@cache
def shared_flags() -> tuple[str, ...]:
    """Names of the flags that every task has, with the same description."""
    each = [{name: action.help for name, action in own_flags(f"train {task}").items()} for task in tasks()]
    return tuple(name for name, text in each[0].items() if all(flags.get(name) == text for flags in each))


def starts_from(task: str) -> dict[str, Any]:
    """Training arguments of transformers that a task sets, where no data are named: name -> value."""
    usual = _actions(HfArgumentParser(Seq2SeqTrainingArguments))
    return {
        name: _word(action.default)
        for name, action in _actions(parser(f"train {task}")).items()
        if name in OF_TRANSFORMERS - OF_THIS_MACHINE and _word(action.default) != _word(usual[name].default)
    }


def _word(value: Any) -> str:
    """A value as it is typed."""
    value = getattr(value, "value", value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- as Markdown ----


def as_option(action: argparse.Action) -> list[str]:
    """A flag, or a positional argument, as MyST's `option` directive."""
    names = [name for name in action.option_strings if "-" not in name.lstrip("-") or name.count("-") == 3]
    signature = f"{names[0] if names else ''} {_value(action)}".strip()
    text = " ".join((action.help or "").replace("%%", "%").split())
    default = _word(action.default)
    said = action.default is None or not names or not default or f"({default})" in text or "(default: " in text
    return [f"```{{option}} {signature}", _escaped(text) + ("" if said else f" (default: {default})"), "```", ""]


def _value(action: argparse.Action) -> str:
    """What a flag takes: its metavar, its choices, or the kind of value."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.choices is not None:
        return "|".join(map(_word, action.choices)) if action.metavar is None else action.metavar
    word = action.metavar or KINDS.get(action.type, "TEXT")
    return " ".join([word] * action.nargs) if isinstance(action.nargs, int) else word


def _escaped(text: str) -> str:
    """A line of help, which is no Markdown."""
    return re.sub(r"([\\*_<\[])", r"\\\1", text)


class _FromCode(SphinxDirective):
    has_content = False

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines()))

    def lines(self) -> list[str]:
        raise NotImplementedError


class Flags(_FromCode):
    required_arguments = 1
    final_argument_whitespace = True

    def lines(self) -> list[str]:
        command = self.arguments[0]
        is_task = command.startswith("train ")
        shared = shared_flags() if is_task else ()
        listed = [action for name, action in own_flags(command).items() if name not in shared]
        lines = [f"```{{program}} maxsup-hf {command}", "```", ""]
        for action in listed:
            lines += as_option(action)
        if is_task:
            start = starts_from(command.removeprefix("train "))
            lines += [
                "Without data of your own it starts from",
                "",
                "```text",
                *(f"--{k} {v}" for k, v in start.items()),
                "```",
                "",
            ]
        return lines


class SharedFlags(_FromCode):
    def lines(self) -> list[str]:
        flags = own_flags(f"train {next(iter(tasks()))}")
        lines = ["```{program} maxsup-hf train", "```", ""]
        for name in shared_flags():
            lines += as_option(flags[name])
        return lines


class Losses(_FromCode):
    def lines(self) -> list[str]:
        lines = []
        for name in list_losses():
            lines += [f"`{name}`", f": {_escaped(get_spec(name).description)}", ""]
            takes = _takes(get_spec(name))
            lines += [f"  Takes {'; '.join(takes)}.", ""] if takes else []
            paper = re.search(r"title=\{(.*)\},", get_spec(name).citation)
            lines += [f"  From *{paper[1]}*.", ""] if paper else []
        return lines


def _takes(spec: LossSpec) -> list[str]:
    """Parameters and options of a loss, with their defaults."""
    takes = []
    for name in spec.parameters:
        end = spec.defaults[f"{name}_end"]
        takes.append(f"`{name}={spec.defaults[name]:g}`" + ("" if end is None else f", `{name}_end={end:g}`"))
    for name, words in spec.options.items():
        takes.append(f"`{name}={spec.defaults[name]}` (one of {', '.join(map(str, words))})")
    return takes


class Metrics(_FromCode):
    def lines(self) -> list[str]:
        lines = []
        for metric in METRICS.values():
            better = {True: ", higher is better", False: ", lower is better", None: ""}[metric.higher_is_better]
            lines += [f"`{metric.name}`", f": {_escaped(metric.full_name)}{better}.", ""]
            lines += [f"  {_escaped(metric.formula)}.", ""] if metric.formula else []
            lines += [f"  From {_escaped(metric.paper)}.", ""] if metric.paper else []
        return lines


class Modules(_FromCode):
    """The modules of the package, from the top layer to the bottom, with the first sentence of each docstring."""

    def lines(self) -> list[str]:
        found = []
        for room in ROOMS:
            folder = PACKAGE / room if room else PACKAGE
            files = sorted(folder.rglob("*.py") if room else folder.glob("*.py"))
            named = [(path, summary) for path in files if (summary := _summary(path))]
            found += [f"**`{room or 'maxsup_hf'}/`**", "", "| module | |", "|---|---|"]
            found += [f"| `{path.relative_to(folder).as_posix()}` | {summary} |" for path, summary in named]
            found.append("")
        return found


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("flags", Flags)
    app.add_directive("shared-flags", SharedFlags)
    app.add_directive("losses", Losses)
    app.add_directive("metrics", Metrics)
    app.add_directive("modules", Modules)
    return {"parallel_read_safe": True}
