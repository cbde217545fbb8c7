"""An app that shows which contexts a request gets."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask, current_app, g

from flask_workersize import WorkerSizing


def create_app() -> Flask:
    """Create the app; each request adds 1 to ``g.n``, each teardown a line to a file."""
    app = Flask("contexts")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    WorkerSizing(app)

    @app.get("/")
    def index() -> dict[str, object]:
        g.n = g.get("n", 0) + 1
        return {"pid": os.getpid(), "n": g.n, "app": current_app.name}

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        with Path("teardowns.txt").open("a") as file:
            file.write(f"{os.getpid()} {g.get('n', 0)}\n")

    return app
