"""Which servers are asked, and how often; once, or until somebody ends it."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import click
from flask import Flask

from ...app_state import get_state, prepare
from ...errors import WorkerSizeConfigError
from .ask import Asker
from .format import screen
from .layout import Look, can_show
from .screen import has_colour, is_live, live_screen
from .target import Target, checked_token

_NUMBER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 3600.0


def run(targets: Sequence[Target], token: str | None, once: bool, seconds: float) -> None:
    """Show what servers report: live on a terminal, else once.

    :param targets: the servers
    :param token: what is sent to each of them
    :param once: not live on a terminal either
    :param seconds: time between two updates
    :raises click.exceptions.Exit: after printing once, with 1 if one did not answer
    """
    asker = Asker(targets, checked_token(token))
    if once or not is_live(sys.stdout):
        _print_once(asker)
    else:
        _watch(asker, seconds)


def read_seconds(text: str) -> float:
    """Return the seconds of ``--interval``.

    :raises WorkerSizeConfigError: if they are not valid
    """
    if _NUMBER.fullmatch(text) and _LEAST_SECONDS <= float(text) <= _MOST_SECONDS:
        return float(text)
    raise WorkerSizeConfigError(
        f"--interval is not a number from {_LEAST_SECONDS:g} to {_MOST_SECONDS:,.0f}."
    )


def own_server(app: Flask) -> tuple[Target, str | None]:
    """Return where the server of this app reports, and the token that it needs.

    :raises WorkerSizeConfigError: if neither its health port nor its token is set
    """
    settings, _ = prepare(app)
    path = get_state(app).report_url
    token = settings.health_token and settings.health_token.get_secret_value()
    if settings.health_port and settings.health_address:
        return Target.of(_reachable(settings.health_address)), token or None
    address = settings.addresses[0]
    if token and path and not address.endswith(":0"):
        return Target.of(_reachable(address), path), token
    raise WorkerSizeConfigError(
        "The server of this app cannot be asked: set NOW_LMS_HEALTH_PORT or NOW_LMS_HEALTH_TOKEN "
        "as the server has it, or name a URL, such as flask workersize top http://host:8081."
    )


def _reachable(address: str) -> str:
    """Return an address to connect to: one that stands for every interface becomes loopback."""
    if address.startswith("unix:"):
        return address
    host, _, port = address.rpartition(":")
    host = _LOOPBACK.get(host, host)
    return f"http://{host}:{port}"


_LOOPBACK = {
    "": "127.0.0.1",
    "0.0.0.0": "127.0.0.1",
    "[::]": "[::1]",
    "[::ffff:0.0.0.0]": "127.0.0.1",
}


def _print_once(asker: Asker) -> None:
    answers = asker.ask()
    width = shutil.get_terminal_size().columns
    look = Look(width, has_colour(sys.stdout), not can_show(sys.stdout.encoding))
    text = "\n".join(screen(answers, look, time.time()))
    # What the terminal cannot show is no reason to fail.
    click.echo(text.encode(sys.stdout.encoding, "replace"))
    raise click.exceptions.Exit(int(any(answer.report is None for answer in answers)))


def _watch(asker: Asker, seconds: float) -> None:
    is_ascii = not can_show(sys.stdout.encoding)
    # Ctrl-C ends it, as top and watch, and so does a terminal that is gone.
    with suppress(KeyboardInterrupt, OSError), live_screen(sys.stdout) as terminal:
        while True:
            answers = asker.ask()
            is_over = False
            while not is_over:
                look = Look(terminal.size.columns, has_colour(sys.stdout), is_ascii)
                terminal.draw(screen(answers, look, time.time()))
                is_over = terminal.wait(seconds)
