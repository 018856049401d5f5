"""A parser of command lines whose errors are one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, NoReturn

UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """ArgumentParser without abbreviations of flags. An error is one line, which suggests the closest flag instead of
    listing all of them, and ends with status 2."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith(UNKNOWN):
            word = message.removeprefix(UNKNOWN).split()[0].partition("=")[0]
            close = difflib.get_close_matches(word, self._option_string_actions, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: {message}; {hint}`{self.prog} --help` lists the arguments", file=sys.stderr)
        raise SystemExit(2)
