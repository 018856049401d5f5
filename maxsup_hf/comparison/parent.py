"""How a run learns that the comparison which started it has ended."""

from __future__ import annotations

import os
import sys
import threading

VARIABLE = "MAXSUP_STDIN_IS_PARENT"  # in the environment of a run whose stdin the comparison holds the other end of


def end_with_parent() -> None:
    """From now on this process ends when its parent has, even if that was killed. Without `VARIABLE` nothing happens."""
    if os.environ.pop(VARIABLE, None) is None:
        return

    def wait() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os._exit(143)

    threading.Thread(target=wait, daemon=True).start()
