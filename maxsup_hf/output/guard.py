"""Masking of secrets in everything that a command prints: its streams, its logs and the traceback that ends it."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from maxsup_hf.output.secrets import keep_flags, masked


class _MaskedStream:
    """A text stream whose secrets are masked."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def masked_output() -> Iterator[None]:
    """Mask secrets on stdout and stderr, in logs, and in the traceback of an error that ends the command.

    Handlers of logs hold streams of their own, so log records are masked when they are made. Use it as a decorator of the
    function that a command begins with; the flags of the process are read for secrets first.
    """
    keep_flags(sys.argv[1:])
    if isinstance(sys.stderr, _MaskedStream):  # a command that another one calls
        yield
        return
    streams, factory = (sys.stdout, sys.stderr), logging.getLogRecordFactory()
    sys.stdout, sys.stderr = map(_MaskedStream, streams)  # type: ignore[assignment]
    logging.setLogRecordFactory(_masking(factory))
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        if masked(text) == text:
            raise
        print(masked(text), end="", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        sys.stdout, sys.stderr = streams
        logging.setLogRecordFactory(factory)


def _masking(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit, which the handler reports
            return record
        if masked(text) != text:
            record.msg, record.args = masked(text), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = masked(logging.Formatter().formatException(record.exc_info))
        return record

    return factory
