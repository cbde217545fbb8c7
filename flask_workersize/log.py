"""What is said at a start: each thing once, on one line, where it is seen."""

from __future__ import annotations

import logging
import select
import sys
from contextlib import suppress

import click

logger = logging.getLogger("flask_workersize")


def say(level: int, line: str) -> None:
    """Log a line, and make sure that it is seen: without a handler it goes to standard error."""
    if logger.hasHandlers() and logger.isEnabledFor(level):
        logger.log(level, line)
    else:
        prefix = "Warning: " if level >= logging.WARNING else ""
        # A full disk under the log is no reason not to serve.
        with suppress(OSError):
            click.echo(f"{prefix}{line}", err=True)


def say_if_read(level: int, line: str) -> None:
    """Log a line, but drop it if standard error is a pipe that is full: its reader has stopped.

    For what anybody can cause again and again, as by a signal: the writer would have to wait.
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
        # No file, or none that can be asked.
        return True
