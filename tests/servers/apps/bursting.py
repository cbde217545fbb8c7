"""An app for benchmarks: all workers take memory and give it back, at the same time."""

from __future__ import annotations

import threading
import time

from flask import Flask

from flask_workersize import WorkerSizing, worker_forked

MB = 1024 * 1024
TAKEN_MB = 2
PERIOD_SECONDS = 0.5


def _move() -> None:
    while True:
        taken = bytearray(b"x") * (TAKEN_MB * MB)
        time.sleep(PERIOD_SECONDS / 2)
        del taken
        # All in step, so that it is much in all.
        time.sleep(PERIOD_SECONDS - time.monotonic() % PERIOD_SECONDS)


def _begin(sender: object, **_: object) -> None:
    threading.Thread(target=_move, daemon=True).start()


def create_app() -> Flask:
    """Create the app."""
    app = Flask("bursting")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    WorkerSizing(app)
    worker_forked.connect(_begin, app)

    @app.get("/")
    def hello() -> str:
        return "hello"

    return app
