"""Two apps in one process: each can say of itself, and of the other, whether it is served."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask

from flask_workersize import CapacityReport, WorkerSizing

apps: dict[str, Flask] = {}


def report(name: str) -> CapacityReport:
    """Return the report of one of the apps."""
    found: CapacityReport = apps[name].extensions["workersize"].report()
    return found


def create(name: str, **config: Any) -> Flask:
    """Create one of the apps."""
    app = Flask(name)
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0, **config)
    WorkerSizing(app)
    apps[name] = app

    @app.get("/both")
    def both() -> dict[str, object]:
        reports = {name: report(name).model_dump(mode="json") for name in apps}
        return {"pid": os.getpid(), "reports": reports}

    return app


first = create("first", WORKERSIZE_WORKER_MEMORY_MB=111)
second = create("second", WORKERSIZE_WORKER_MEMORY_MB=222)
