"""A thread pool for functions that release the GIL, usable after a fork and from several threads at once.

numba's own pools are not: `workqueue` aborts the process when two threads enter it, and GNU OpenMP does not survive a fork.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_executor: ThreadPoolExecutor | None = None
_workers = 0


def share(task: Callable[[int, int], None], count: int, threads: int, multiple: int = 1) -> None:
    """Call `task(first, last)` on ranges that cover `range(count)`, on up to `threads` threads including the caller.

    Each thread takes the next range when it finishes one, and the caller waits only for ranges that another thread has
    started. So callers that share the pool never wait for each other's work.

    Args:
        multiple: ranges begin at multiples of this.
    """
    size = -(-count // (threads * 4 * multiple)) * multiple
    ranges = deque((first, min(first + size, count)) for first in range(0, count, size))

    def work() -> None:
        while ranges:
            try:
                first, last = ranges.popleft()
            except IndexError:  # another thread took the last one
                return
            task(first, last)

    helpers = _submit(work, threads - 1)
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _submit(work: Callable[[], None], count: int) -> list[Future[None]]:
    """Have `count` pool threads call `work`, or none at interpreter shutdown."""
    global _executor, _workers
    executor = _executor
    if executor is None or _workers < count:
        # Two threads that get here at once create two pools; the one that is dropped ends when its work is done.
        executor = _executor = ThreadPoolExecutor(count, thread_name_prefix="maxsup_hf")
        _workers = count
    try:
        return [executor.submit(work) for _ in range(count)]
    except RuntimeError:  # the interpreter is shutting down and cannot start threads
        return []


def _forget() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _executor, _workers
    _executor, _workers = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
