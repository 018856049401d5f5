"""How a run learns that the comparison which started it has ended."""

from __future__ import annotations

import os
import threading

VARIABLE = "MAXSUP_STDIN_IS_PARENT"  # in the environment of a run whose stdin the comparison holds the other end of


def end_with_parent() -> None:
    """From now on this process ends when its parent has, even if that was killed. Without `VARIABLE` nothing happens."""
    if os.environ.pop(VARIABLE, None) is None:
        return

    def wait() -> None:
        # not sys.stdin, whose lock this thread would hold for ever, and Python aborts at exit without it
        while os.read(0, 1):
            pass
        os._exit(143)

    threading.Thread(target=wait, daemon=True).start()
