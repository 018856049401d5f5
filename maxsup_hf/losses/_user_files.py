"""Python files with a user's own losses, listed in the environment variable MAXSUP_HF_LOSSES."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

# Several files are separated by os.pathsep. An environment variable rather than a flag, because it reaches every process
# that a command starts: launchers, the runs of a comparison, workers.
VARIABLE = "MAXSUP_HF_LOSSES"

_loaded: set[str] = set()


def load_user_files() -> None:
    """Run each file that the environment variable lists, once per process.

    Raises:
        ValueError: a path that is not a Python file, or a file that cannot be run.
        ValueError, TypeError: from a registration in a file.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        path = str(Path(name).resolve())
        if path in _loaded or path == _main_file():  # the main script registers its losses itself
            continue
        if not os.path.isfile(path):
            raise ValueError(f"{VARIABLE} must name Python files with losses, got {name!r}, which is not a file")
        _loaded.add(path)  # before it runs, because it may itself ask for the registered losses
        _run(name, path)


def _main_file() -> str | None:
    main = getattr(sys.modules["__main__"], "__file__", None)
    return None if main is None else str(Path(main).resolve())


def _run(name: str, path: str) -> None:
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{VARIABLE} must name Python files with losses, got {name!r}, which does not end in .py")
    try:
        spec.loader.exec_module(module_from_spec(spec))
    except (ValueError, TypeError):  # a registration that failed, whose message says why
        raise
    except Exception as error:
        raise ValueError(f"{VARIABLE}: {name!r} cannot be run: {type(error).__name__}: {error}") from error
