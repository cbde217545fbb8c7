"""An app whose requests take long, in the ways that matter to a stop."""

from __future__ import annotations

import encodings.idna  # noqa: F401  # else loaded when first used, by a user who may not read it
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flask import Flask, Response, request, send_file

from flask_workersize import WorkerSizing

BIG_BYTES = 20 * 1024 * 1024


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 25
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


_held: list[int] = []


def _hold_files() -> None:
    """Hold 1,200 more files open, where the test wants that: more than select(2) can watch."""
    if os.environ.get("SLOW_FILES"):
        _held.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(1200))


def create_app() -> Flask:
    """Create the app; ``FACTS_CONFIG`` is its config."""
    _hold_files()
    if os.environ.get("SLOW_WORKER") and "gunicorn" in sys.modules:
        Path("worker.here").touch()
        _await(Path("worker.go").exists)
    app = Flask("slow")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    app.config.from_mapping(json.loads(os.environ.get("FACTS_CONFIG", "{}")))
    WorkerSizing(app)

    @app.get("/")
    def index() -> dict[str, int]:
        return {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}

    @app.get("/sleep")
    def sleep() -> dict[str, int]:
        """Touch the file NAME.here, and answer after some seconds."""
        Path(f"{request.args['name']}.here").touch()
        time.sleep(float(request.args["seconds"]))
        return {"pid": os.getpid()}

    @app.get("/hold")
    def hold() -> dict[str, int]:
        """Write the process to the file NAME.here, and answer when there is a file NAME.go."""
        name = request.args["name"]
        _hold_files()
        Path(f"{name}.here").write_text(str(os.getpid()))
        _await(Path(f"{name}.go").exists)
        return {"pid": os.getpid()}

    @app.get("/big")
    def big() -> Response:
        """Answer with more than any buffer on the way takes."""
        return Response(b"x" * BIG_BYTES)

    @app.get("/stream")
    def stream() -> Response:
        """Send a first part, and the second when there is a file stream.go."""

        def parts() -> Iterator[bytes]:
            yield b"first "
            _await(Path("stream.go").exists)
            yield b"second"

        return Response(parts())

    @app.get("/file")
    def file() -> Response:
        """Send more than any buffer on the way takes, by the server's own file wrapper."""
        path = Path("big.bin").absolute()
        path.write_bytes(b"x" * BIG_BYTES)
        return send_file(path)

    @app.post("/upload")
    def upload() -> dict[str, int]:
        """Think for a while, then read the body; tell its length."""
        Path("upload.here").touch()
        time.sleep(float(request.args.get("seconds", "0")))
        received = 0
        while chunk := request.stream.read(65536):
            received += len(chunk)
        return {"received": received}

    @app.post("/form")
    def form() -> dict[str, int]:
        """Tell how long the file of a form is."""
        return {"received": len(request.files["file"].read())}

    @app.get("/later")
    def later() -> dict[str, int]:
        """Answer, and go on with a job in a thread that the interpreter waits for at its exit."""

        def job() -> None:
            Path("job.here").touch()
            time.sleep(1)
            Path("job.done").touch()

        threading.Thread(target=job).start()
        return {"pid": os.getpid()}

    return app
