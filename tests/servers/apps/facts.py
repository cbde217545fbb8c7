"""An app that tells what it sees; its config is the test's word."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, request

from flask_workersize import WorkerSizing

with Path("loaded.txt").open("a") as file:
    file.write(f"{os.getpid()}\n")


def create_app() -> Flask:
    """Create the app; without another word it is served on a free port of loopback."""
    app = Flask("facts")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    app.config.from_mapping(json.loads(os.environ.get("FACTS_CONFIG", "{}")))
    WorkerSizing(app)
    plan_at_creation = app.config.get("WORKERSIZE_PLAN")

    def facts() -> dict[str, Any]:
        state = app.extensions["workersize"]
        return {
            "pid": os.getpid(),
            "thread": threading.current_thread().name,
            "threads": [thread.name for thread in threading.enumerate()],
            "remote_addr": request.remote_addr,
            "scheme": request.scheme,
            "host": request.host,
            "script_root": request.script_root,
            "proxy_headers": sorted(key for key in request.environ if "FORWARDED" in key),
            "plan": state.get_plan().to_dict(),
            "memory_at_creation": plan_at_creation and plan_at_creation.memory_available_mb,
            "serving": state.serving,
        }

    @app.get("/")
    def index() -> dict[str, Any]:
        return facts()

    @app.get("/adjustments")
    def adjustments() -> dict[str, Any]:
        """Tell what the running waitress was really given."""
        from waitress.adjustments import Adjustments

        (found,) = (item for item in gc.get_objects() if isinstance(item, Adjustments))
        return {name: getattr(found, name) for name in request.args.getlist("name")}

    @app.get("/gather")
    def gather() -> dict[str, Any]:
        """Answer when as many requests as asked for are here, in whatever threads or processes."""
        place = Path(request.args["place"])
        place.mkdir(exist_ok=True)
        (place / f"{os.getpid()}-{threading.get_ident()}").touch()
        _wait(lambda: len(list(place.iterdir())) >= int(request.args["count"]))
        return facts()

    @app.get("/hold")
    def hold() -> Response:
        """Touch the file NAME.here, and answer when there is a file NAME.go."""
        name = request.args["name"]
        Path(f"{name}.here").touch()
        _wait(Path(f"{name}.go").exists)
        return Response(f"{os.getpid()}\n")

    return app


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        if time.monotonic() > deadline:
            abort(503)
        time.sleep(0.005)
