"""The errors that a person can cause, each shown as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click


def printable(text: str) -> str:
    """Return a text as one line: what a terminal or a log would act on becomes a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


class _OneLine:
    """Show only the message: click would print the usage of the command above it."""

    def show(self: Any, file: IO[Any] | None = None) -> None:
        """Print the message to standard error, or to ``file``."""
        click.echo(f"Error: {printable(self.format_message())}", file=file, err=file is None)


class WorkerSizeConfigError(_OneLine, click.UsageError, ValueError):
    """Settings that cannot be used.

    The message is one line: what is wrong, the likely cause and what to do. It names the variable
    that was really set and never its value. The exit status is 2.
    """


class WorkerSizeStartError(_OneLine, click.ClickException):
    """A server that could not be started, a port in use for example. The exit status is 1."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with one line and a status if the block fails."""
    try:
        yield
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
