"""An app for benchmarks: hello, waiting and computing."""

from __future__ import annotations

import os
import time

from flask import Flask, request

from flask_workersize import WorkerSizing


def create_app() -> Flask:
    """Create the app; with ``BARE`` it has no extension."""
    app = Flask("busy")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    if not os.environ.get("BARE"):
        WorkerSizing(app)

    @app.get("/")
    def hello() -> str:
        return "hello"

    @app.get("/wait")
    def wait() -> str:
        time.sleep(float(request.args["seconds"]))
        return "waited"

    @app.get("/compute")
    def compute() -> str:
        until = time.monotonic() + float(request.args["seconds"])
        while time.monotonic() < until:
            sum(range(1000))
        return "computed"

    return app
