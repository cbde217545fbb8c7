"""An app that tells what the environment says of sockets."""

from __future__ import annotations

import os

from flask import Flask

from flask_workersize import WorkerSizing


def create_app() -> Flask:
    """Create the app."""
    app = Flask("environ")
    WorkerSizing(app)

    @app.get("/")
    def index() -> list[str]:
        return sorted(name for name in os.environ if name.startswith("LISTEN_"))

    return app
