"""The command of a run as its card shows it: absolute paths become placeholders, which are explained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from maxsup_hf.output.private import name_of_absolute

MEANINGS = {
    "DATA": "the folder of your copy of the data",
    "MODELS": "the folder of the model that the training starts from",
    "FOLDER": "a folder of your own",
}
OUTPUTS = ("--output_dir", "--logging_dir", "--predictions_file")


def with_placeholders(words: Sequence[str]) -> list[str]:
    """A command line whose absolute paths begin with a placeholder: `/home/me/train.csv` -> `DATA/train.csv`."""
    found = []
    for flag, word in _with_flags(words):
        before = f"{flag}=" if word.startswith(f"{flag}=") else ""
        found.append(before + _portable(flag, word.removeprefix(before)))
    return found


def without_resuming(words: Sequence[str]) -> list[str]:
    """A command line without `--resume_from_checkpoint`: a run is reproduced from its start."""
    return [word for flag, word in _with_flags(words) if flag != "--resume_from_checkpoint"]


def _with_flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word after the flag that it is, or is a value of; the flag is empty before the first one."""
    flag = ""
    for word in words:
        flag = word.partition("=")[0] if word.startswith("--") else flag
        yield flag, word


def portable(command: str) -> str:
    """A command as `with_placeholders` shows it; records of version 0.1 have paths."""
    return shlex.join(with_placeholders(shlex.split(command)))


def with_base_model(command: str, base_model: str) -> str:
    """A command whose `--model_name_or_path` is this model of the Hub, instead of a placeholder."""
    return re.sub(r"(?<=--model_name_or_path[ =])MODELS/\S*", base_model, command)


def placeholders(command: str) -> dict[str, str]:
    """Placeholder -> meaning, of those in a command."""
    return {name: meaning for name, meaning in MEANINGS.items() if re.search(rf"(?<![\w./-]){name}/", command)}


def in_lines(command: str, width: int = 100) -> str:
    """A command, continued on a new line before the flag that would make it too wide."""
    lines = [""]
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if word.startswith("--") and len(lines[-1]) + len(quoted) > width:
            lines.append(f"    {quoted}")
        else:
            lines[-1] += f" {quoted}" if lines[-1] else quoted
    return " \\\n".join(lines)


def _portable(flag: str, value: str) -> str:
    """The value of a flag, which may be several paths, comma-separated."""
    return ",".join(_portable_path(flag, path) for path in value.split(","))


def _portable_path(flag: str, path: str) -> str:
    """An absolute path without its folders; any other text as it is."""
    name = name_of_absolute(path)
    if name is None:
        return path
    return name if flag in OUTPUTS else f"{_placeholder(flag)}/{name}"


def _placeholder(flag: str) -> str:
    if flag.endswith(("_file", "_dir", "--dataset_name")):
        return "DATA"
    return "MODELS" if flag in ("--model_name_or_path", "--config_name", "--tokenizer_name") else "FOLDER"
