"""Remove absolute paths and the host name from what is published."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import PurePosixPath, PureWindowsPath

# Folders at the root of a machine that hold files of its users.
ROOTS = (
    "home|Users|root|tmp|private|var|mnt|media|data|scratch|work|workspace|opt|srv|storage|content|kaggle|gpfs|lustre|nfs"
)
HOST = "host"


def public_text(text: str) -> str:
    """A text in which absolute paths to files of a user are names. Links to web pages are left as they are."""
    return _paths(os.path.expanduser("~"), tempfile.gettempdir(), os.getcwd()).sub(lambda match: _name(match[0]), text)


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
    end = r"""[^\s"'`,;:)\]}>|\\/]"""
    posix = rf"(?:file://|(?<![\w.~/<-]))(?:{known}|/(?:{ROOTS}))(?![\w.-])(?:/+{end}*)*"
    windows = rf"(?<!\w)[A-Za-z]:[\\/]+Users(?:[\\/]+{end}*)*"
    return re.compile(f"{posix}|{windows}")


def _name(path: str) -> str:
    name = name_of_absolute(path)
    return path if name is None else name or "folder"
