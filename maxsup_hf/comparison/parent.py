"""End a run when the comparison that started it has ended."""

from __future__ import annotations

import os
import threading

VARIABLE = "MAXSUP_STDIN_IS_PARENT"  # set for a run whose stdin is a pipe from the comparison


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
