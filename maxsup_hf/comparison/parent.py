"""End a run when the comparison that started it has ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "MAXSUP_STDIN_IS_PARENT"  # set for a run whose stdin is a pipe from the comparison
BAD_INPUT = "MAXSUP_BAD_INPUT_FILE"  # a file that a run makes if its input is bad


@contextmanager
def noting_bad_input() -> Iterator[None]:
    """If the program ends with status 2, make the file that the comparison looks for: `accelerate launch` turns every status
    into 1."""
    file = os.environ.pop(BAD_INPUT, None)
    try:
        yield
    except SystemExit as end:
        if end.code == 2 and file is not None:
            Path(file).touch()
        raise


def end_with_parent() -> None:
    """From now on end this process when its parent has ended, even if it was killed. Without `VARIABLE`, do nothing."""
    if os.environ.pop(VARIABLE, None) is None:
        return

    def wait() -> None:
        # Not sys.stdin: this thread would hold its lock forever, and Python needs the lock at exit, or aborts.
        while os.read(0, 1):
            pass
        os._exit(143)

    threading.Thread(target=wait, daemon=True).start()
