"""What is said at a start: each thing once, on one line, where it is seen."""

from __future__ import annotations

import logging
from contextlib import suppress

import click

from .errors import printable

logger = logging.getLogger("flask_workersize")


def say(level: int, line: str) -> None:
    """Log a line, and make sure that it is seen: without a handler it goes to standard error."""
    line = printable(line)
    if logger.hasHandlers() and logger.isEnabledFor(level):
        logger.log(level, line)
    else:
        prefix = "Warning: " if level >= logging.WARNING else ""
        # A full disk under the log is no reason not to serve.
        with suppress(OSError):
            click.echo(f"{prefix}{line}", err=True)
