"""What a forked process must not share: a worker's database connections, the monitor's sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

from blinker import Namespace
from flask import Flask

worker_forked = Namespace().signal("worker-forked")
"""Sent in each worker after it was forked from a process that had loaded the app; the sender is
the app. Extensions connect to it to drop what must not be shared with the parent, such as
connections, without closing the parent's."""

_inherited: list[Any] = []
"""Pools of the parent, kept: some drivers close the session when the garbage collector finds a
connection, which would end the parent's."""


def after_fork(app: Flask) -> None:
    """Drop what a worker inherited and must not share, and send ``worker_forked``.

    Pools of Flask-SQLAlchemy are replaced without closing the parent's connections (SQLAlchemy,
    "Using Connection Pools with Multiprocessing or os.fork()").
    """
    for engine in engines_of(app):
        _inherited.append(engine.pool)
        engine.dispose(close=False)
    worker_forked.send(app)


def engines_of(app: Flask) -> list[Any]:
    """Return the engines of Flask-SQLAlchemy; version 2 does not list them."""
    database = app.extensions.get("sqlalchemy")
    if database is None:
        return []
    with app.app_context():
        return list(getattr(database, "engines", {}).values())


def give_up_streams(kept: Iterable[int]) -> None:
    """Give up listeners and connections that were inherited: they would not close with the app.

    Each is replaced, not closed, so that code that knows its number writes to nothing.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2 and descriptor not in kept and _is_stream(descriptor):
            os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _is_stream(descriptor: int) -> bool:
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        # Not a socket, or closed by now.
        return False
    found.detach()
    return found.type == socket.SOCK_STREAM
