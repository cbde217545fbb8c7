"""Log lines of a start: each once, on one line, where it is seen."""

from __future__ import annotations

import logging
import select
import sys
from collections.abc import Iterable
from contextlib import suppress

import click

from .errors import printable

logger = logging.getLogger("flask_workersize")


def say(level: int, line: str, via: logging.Logger = logger) -> None:
    """Log a line, and make sure that it is seen: if no handler takes it, print it.

    An app that configures logging may disable every logger that is there already, or all logging:
    then the line goes to standard error.
    """
    line = printable(line)
    for log in (via, logger):
        if _is_heard(log, level):
            log.log(level, "%s", line)
            return
    prefix = "Warning: " if level >= logging.WARNING else ""
    # A full disk under the log, or a closed stream, must not stop the server.
    with suppress(OSError, ValueError):
        click.echo(f"{prefix}{line}", err=True)


def say_if_read(level: int, line: str) -> None:
    """Log a line, but drop it if standard error is a pipe that is full: its reader has stopped.

    For lines that anyone can cause repeatedly, as by a signal: the writer might block.
    """
    if _can_write():
        say(level, line)


def _can_write() -> bool:
    if sys.platform == "win32":
        return True
    poll = select.poll()
    try:
        poll.register(sys.stderr, select.POLLOUT)
        return bool(poll.poll(0))
    except (AttributeError, OSError, TypeError, ValueError):
        # Not a file, or one that cannot be polled.
        return True


def shown(names: Iterable[str], most: int = 5) -> str:
    """Return names of the app's own as a part of one line."""
    quoted = [f'"{printable(name)}"' for name in names]
    rest = len(quoted) - most
    return ", ".join(quoted[:most]) + (f" and {rest} more" if rest > 0 else "")


def _is_heard(log: logging.Logger, level: int) -> bool:
    """Return whether a line of this level reaches a handler that can write it."""
    node: logging.Logger | None = log if log.isEnabledFor(level) else None
    while node is not None:
        if any(level >= handler.level and _writes(handler) for handler in node.handlers):
            return True
        node = node.parent if node.propagate else None
    return False


def _writes(handler: logging.Handler) -> bool:
    is_closed = getattr(getattr(handler, "stream", None), "closed", False)
    return not isinstance(handler, logging.NullHandler) and is_closed is not True
