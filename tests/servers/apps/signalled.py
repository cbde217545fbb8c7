"""The facts app, whose first worker is told to end before it is ready."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from facts import create_app as create_facts  # type: ignore[import-not-found]
from flask import Flask


def create_app() -> Flask:
    """Create the app with its hook."""
    app: Flask = create_facts()
    app.config["WORKERSIZE_GUNICORN_OPTIONS"] = {"post_fork": terminate_first}
    return app


def terminate_first(server: Any, worker: Any) -> None:
    """Be what a SIGTERM is that reaches a worker right after its fork."""
    if worker.age == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        Path("terminated.txt").write_text(str(os.getpid()))
