"""Remove absolute paths and the host name from what is published."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# Folders at the root of a machine that hold files of its users.
ROOTS = (
    r"home|Users|Volumes|root|tmp|private|var|mnt|media|data\d*|scratch|work|workspace|opt|srv|storage|content|kaggle|gpfs|"
    r"lustre|nfs|net|fsx|efs|dbfs|projects?|nvme\d*|ssd\d*|disk\d*|raid\d*"
)
HOST = "host"
HOME = re.compile(r"(?:file://)?/+(?:home|Users)/+[^/]+/*")  # of any user, whose name it ends with


def public_text(text: str) -> str:
    """A text in which absolute paths to files of a user are names. Links to web pages are left as they are."""
    return _paths(os.path.expanduser("~"), tempfile.gettempdir(), os.getcwd()).sub(lambda match: _name(match[0]), text)


def public_values(value: Any) -> Any:
    """Settings in JSON's types, without paths and the host name. A text that is an absolute path of any root is one here."""
    if isinstance(value, dict):
        return {key: public_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public_values(item) for item in value]
    if not isinstance(value, str):
        return value
    return without_host(public_text(value) if name_of_absolute(value) is None else _name(value))


def name_of_absolute(path: str) -> str | None:
    """The last part of an absolute path, which may be one of Windows or begin with `~`; `None` for any other text."""
    if PureWindowsPath(path).is_absolute():
        return PureWindowsPath(path).name
    return PurePosixPath(path).name if path.startswith(("/", "~", "file:/")) else None


def without_host(text: str) -> str:
    """A text with the name of this machine replaced by `host`, unless the name could be any word."""
    name = socket.gethostname()
    if len(name) < 3 or name.isalpha():
        return text
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", HOST, text)


def _paths(*folders: str) -> re.Pattern[str]:
    known = "|".join(re.escape(folder.rstrip("/")) for folder in folders if len(folder) > 1)
    end = r"""[^\s"'`,;:)\]}<>|\\/]"""
    posix = rf"(?:file://|(?<![\w.~/<+-]))(?:{known}|/(?:{ROOTS}))(?![\w.-])(?:/+{end}*)*"
    windows = rf"(?<!\w)[A-Za-z]:[\\/]+Users(?:[\\/]+{end}*)*"
    return re.compile(f"{posix}|{windows}")


def _name(path: str) -> str:
    name = name_of_absolute(path)
    if HOME.fullmatch(path) or path.rstrip("/") == os.path.expanduser("~"):
        name = ""
    return path if name is None else name or "folder"
