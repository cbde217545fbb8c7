"""Give a forked worker connections of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blinker import Namespace

if TYPE_CHECKING:
    from flask import Flask

worker_forked = Namespace().signal("worker-forked")
"""Sent in each worker after it was forked from a process that had loaded the app; the sender is
the app. Extensions connect to it to drop what must not be shared with the parent, such as
connections, without closing the parent's."""

_inherited: list[Any] = []
"""Pools of the parent, kept: some drivers say goodbye to the database when the garbage collector
finds a connection, which would end the parent's session."""


def after_fork(app: Flask) -> None:
    """Drop what a worker inherited and must not share, and tell who listens.

    Pools of Flask-SQLAlchemy are replaced without closing the parent's connections (SQLAlchemy,
    "Using Connection Pools with Multiprocessing or os.fork()").
    """
    database = app.extensions.get("sqlalchemy")
    if database is not None:
        with app.app_context():
            for engine in getattr(database, "engines", {}).values():
                _inherited.append(engine.pool)
                engine.dispose(close=False)
    worker_forked.send(app)
