"""Four apps that cost something known: CPU time, waiting, both, and memory."""

from __future__ import annotations

import itertools
import os
import time

from flask import Flask, abort, redirect
from werkzeug.wrappers import Response

from flask_workersize import WorkerSizing

MB = 1024 * 1024
_kept: list[bytearray] = []


def _compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(200))


def create_app() -> Flask:
    """Create the app; its instance folder is ``COSTLY_INSTANCE``.

    ``COSTLY_LOADS_MB`` are loaded with it; with ``BARE`` it has no extension.
    """
    loaded = bytearray(os.urandom(1)) * (int(os.environ.get("COSTLY_LOADS_MB", "0")) * MB)
    app = Flask("costly", instance_path=os.environ.get("COSTLY_INSTANCE"))
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0, LOADED=loaded)
    if not os.environ.get("BARE"):
        WorkerSizing(app)
    count = itertools.count(1)

    @app.get("/none")
    def none() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/cpu")
    def cpu() -> dict[str, int]:
        """Compute for 10 ms."""
        _compute(0.010)
        return {"pid": os.getpid()}

    @app.get("/wait")
    def wait() -> dict[str, int]:
        """Wait for 50 ms."""
        time.sleep(0.050)
        return {"pid": os.getpid()}

    @app.get("/both")
    def both() -> dict[str, int]:
        """Compute for 5 ms and wait for 45 ms."""
        _compute(0.005)
        time.sleep(0.045)
        return {"pid": os.getpid()}

    @app.get("/memory")
    def memory() -> dict[str, int]:
        """Need 40 MB in each process from the first request on, compute and wait for 5 ms each."""
        if not _kept:
            _kept.append(bytearray(os.urandom(1)) * (40 * MB))
        _compute(0.005)
        time.sleep(0.005)
        return {"pid": os.getpid()}

    @app.get("/closed")
    def closed() -> Response:
        return redirect("/login?next=/closed")

    @app.get("/forbidden")
    def forbidden() -> str:
        abort(403)

    @app.get("/moved")
    def moved() -> Response:
        return redirect("/none")

    @app.get("/fails")
    def fails() -> str:
        raise RuntimeError("on purpose")

    @app.get("/sometimes")
    def sometimes() -> str:
        """Fail once in three times."""
        if next(count) % 3 == 0:
            raise RuntimeError("on purpose")
        return "well"

    @app.get("/dies")
    def dies() -> str:
        os._exit(1)

    return app
