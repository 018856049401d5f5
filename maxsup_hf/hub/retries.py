"""Requests to the Hub, repeated while their error may pass, up to a deadline.

The client retries some requests itself. On top of that, a failed call is repeated if the error may be transient (429, 409
or 412 from a commit that another one overtook, 5xx, a broken connection, an HTML page instead of JSON), after the pause that
RateLimit or Retry-After asks for. Repeating a push is cheap: files that have already arrived are not sent again.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, thread, wait
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from maxsup_hf.output.secrets import masked

logger = logging.getLogger(__name__)

ATTEMPTS = 5
LONGEST_PAUSE = 300.0  # seconds, of those that the Hub asks for
PATIENCE = 120.0  # seconds that a push may take by default,
SLOWEST = 2e5  # and one more for each of these bytes
POLL = 0.2  # seconds
GRACE = 1.0  # seconds for a request to return with its error
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
HINTS = {
    401: "; run `hf auth login` with a valid token",
    403: "; the token needs the role write in that namespace: run `hf auth login` with such a token",
    404: "; check the repository name and what the token has access to",
}

Result = TypeVar("Result")


class PushError(OSError):
    """A push failed. The message says why and what to type next; `__cause__` is the client's error."""


class UnexpectedAnswer(ConnectionError):
    """The Hub, or a proxy in front of it, answered a request with something else than it should."""


UNEXPECTED = (UnexpectedAnswer, KeyError, TypeError)  # as the client's code ends at such an answer


class Deadline:
    """The end of a push with all of its requests, attempts and pauses.

    Args:
        seconds: from now. `None`: `PATIENCE`, 5 seconds for each MB, and the pauses that the Hub asks for.
        size: bytes that are pushed.
        given_up: set it to end the push at once, from another thread.

    Attributes:
        later: the command that pushes the saved model later, for messages.
        refused: a pause that the Hub asked for, and that was too long.
    """

    later = ""
    refused: float | None = None

    def __init__(self, seconds: float | None = None, size: int = 0, given_up: threading.Event | None = None):
        self.seconds = round(PATIENCE + size / SLOWEST) if seconds is None else seconds
        self._grows = seconds is None
        self._end = time.monotonic() + self.seconds
        self._given_up = given_up or threading.Event()

    def left(self) -> float:
        """Seconds until the end, at least 0."""
        return 0.0 if self._given_up.is_set() else max(0.0, self._end - time.monotonic())

    def ask(self, pause: float) -> None:
        """Move the end by a pause that the Hub asks for, unless the user chose it or the pause is too long: then
        the push ends soon."""
        if self._grows and pause <= LONGEST_PAUSE:
            self.seconds += pause + GRACE
            self._end += pause + GRACE
        elif pause >= self.left():
            self.refused = pause
            self._end = min(self._end, time.monotonic() + GRACE)

    def pause(self, seconds: float) -> None:
        """Wait, unless the push is given up."""
        self._given_up.wait(seconds)


def with_retries(call: Callable[[], Result], action: str, deadline: Deadline) -> Result:
    """Call, and call again as long as the error may be transient and the deadline has not passed.

    A call that does not return in time is left to itself, in a thread that ends with the process.

    Args:
        call: the request.
        action: what it does, for messages ("pushing … to …").
        deadline: shared by all requests of a push.

    Raises:
        PushError: the error is permanent, the last of `ATTEMPTS` failed, or the deadline passed. Secrets are masked.
    """
    finish = f"; the saved model is unchanged: `{deadline.later}` pushes it" if deadline.later else ""
    last: BaseException | None = None
    for attempt in range(1, ATTEMPTS + 1):
        future = _call(call, deadline)
        if not future.done():
            raise PushError(masked(f"{action} {_too_late(deadline, last)}{finish}")) from last
        last = future.exception()
        if last is None:
            return future.result()
        if not isinstance(last, Exception):
            raise last
        reason = f"{action} failed: {_reason(last)}"
        asked = asked_pause(getattr(_root(last), "response", None))
        pause = 2.0 ** (attempt - 1) if asked is None else asked
        why = _why_not_again(last, attempt, pause, deadline)
        if why is not None:
            raise PushError(masked(f"{reason}{why}{finish}")) from last
        logger.warning("%s", masked(f"{reason}; trying again in {pause:g} s"))
        deadline.pause(pause)
    raise AssertionError("the last attempt returns or raises")


def _call(call: Callable[[], Result], deadline: Deadline) -> Future[Result]:
    """Call in a thread of its own, and wait for it until the deadline."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    with _heeding(deadline):
        threading.Thread(target=work, daemon=True).start()
        try:
            while not future.done() and deadline.left():
                wait([future], timeout=min(POLL, deadline.left()))
        finally:
            if not future.done():
                _let_go()
    return future


@contextmanager
def _heeding(deadline: Deadline) -> Iterator[None]:
    """Tell the deadline of every pause that the Hub asks for: the client keeps some of them itself, within a call."""

    def heed(response: Any) -> None:
        pause = asked_pause(response)
        if response.status_code in TRANSIENT and pause is not None:
            deadline.ask(pause)

    hooks = get_session().event_hooks["response"]
    hooks.append(heed)
    try:
        yield
    finally:
        hooks.remove(heed)


def _let_go() -> None:
    """Let the process end before the threads of a call that did not return in time.

    Python joins the threads of all pools at exit. Those that the client starts in a daemon thread are daemons, as no other
    threads of pools are.
    """
    for each in list(thread._threads_queues):
        if each.daemon:
            del thread._threads_queues[each]  # type: ignore[attr-defined]


def _too_late(deadline: Deadline, last: BaseException | None) -> str:
    text = f"did not finish within {deadline.seconds:g} s (push_timeout)"
    if last is not None:
        text += f", and before that failed: {_reason(last)}"
    if deadline.refused is not None:
        text += f"; the Hub asks to wait for {deadline.refused:,.0f} s"
    return text


def _why_not_again(error: Exception, attempt: int, pause: float, deadline: Deadline) -> str | None:
    """The end of the message if this attempt was the last, else `None`."""
    if not is_transient(error):
        return HINTS.get(_status(error) or 0, "")
    if pause > LONGEST_PAUSE:
        return f"; the Hub asks to wait for {pause:,.0f} s"
    if pause >= deadline.left():
        return f"; no time is left of {deadline.seconds:g} s (push_timeout)"
    return f"; gave up after {attempt} attempts" if attempt == ATTEMPTS else None


def is_transient(error: BaseException) -> bool:
    """A status that may pass, a broken connection, or an HTML page where JSON was expected."""
    error = _root(error)
    status = _status(error)
    if status is not None:
        return status in TRANSIENT
    return isinstance(error, (json.JSONDecodeError, *UNEXPECTED, ConnectionError, TimeoutError)) or _is_of_http(error)


def asked_pause(response: Any) -> float | None:
    """Seconds to wait according to RateLimit (`"api";r=0;t=55`) or Retry-After (a number of seconds or a date)."""
    headers = getattr(response, "headers", {})
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    if limit:
        return float(limit[1])
    value = headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _root(error: BaseException) -> BaseException:
    """The error of the request behind an error such as "Error while uploading 'model.safetensors'"."""
    found: BaseException | None = error
    while found is not None:
        if _status(found) is not None or _is_of_http(found):
            return found
        found = found.__cause__ or found.__context__
    return error


def _status(error: BaseException) -> int | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    return getattr(error.response, "status_code", None)


def _is_of_http(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0].startswith("http")  # http.client, httpx, httpcore


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "the Hub answered with something that is not JSON"
    if isinstance(error, UNEXPECTED):
        return "the Hub answered with something that its client cannot read"
    root = _root(error)
    about = "" if root is error else f"{masked_message(error)} "
    return f"{_status(root) or type(root).__name__}: {about}{masked_message(root)}"


def masked_message(error: BaseException) -> str:
    """The message of an error on one line, without secrets and the signatures in addresses, in at most 300 characters."""
    message = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", masked(str(error)))
    return " ".join(message.split())[:300]
