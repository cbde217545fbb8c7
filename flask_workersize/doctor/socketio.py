"""Flask-SocketIO: its clients need one worker, and a server with websockets."""

from __future__ import annotations

from collections.abc import Iterable

from .finding import Case, Finding


def needs_one_worker(case: Case) -> Iterable[Finding]:
    """Find Flask-SocketIO: it keeps the session of each client in one process.

    Flask-SocketIO, "Using Multiple Workers": requests of a client must reach the same worker,
    which gunicorn cannot ensure.
    """
    if "socketio" in case.app.extensions:
        yield Finding(
            "breaks",
            "Flask-SocketIO keeps each client in one process: several workers break polling. "
            "Under waitress, which has no websockets, only polling works.",
            "Use gunicorn with NOW_LMS_WORKERS=1 and many NOW_LMS_THREADS, or serve Socket.IO from "
            "a process of its own.",
        )
