"""An app whose memory grows, in the ways that matter to the guard."""

from __future__ import annotations

import mmap
import os
import threading
import time
from itertools import count

from flask import Flask, request

from flask_workersize import WorkerSizing

MB = 1024 * 1024
_kept: list[bytearray] = []
_shared: list[mmap.mmap] = []
_pages = count()
SHARED_BYTES = 400 * MB


def _hold(megabytes: float) -> None:
    # Written to, since the kernel counts only pages that were touched.
    _kept.append(bytearray(os.urandom(1)) * int(megabytes * MB))


def create_app() -> Flask:
    """Create the app; with ``BARE`` it has no extension, with ``LEAKY_THREAD`` one that stays."""
    app = Flask("leaky")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    if not os.environ.get("BARE"):
        WorkerSizing(app)

    if os.environ.get("LEAKY_THREAD"):
        threading.Thread(target=time.sleep, args=(90,)).start()

    @app.before_request
    def work() -> None:
        """Compute for some milliseconds, as a page does."""
        until = time.thread_time() + 0.003
        while time.thread_time() < until:
            sum(range(200))

    _shared.append(mmap.mmap(-1, SHARED_BYTES))

    @app.get("/")
    def index() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/leak")
    def leak() -> dict[str, int]:
        """Keep some memory for ever."""
        _hold(float(request.args.get("mb", "0.5")))
        return {"pid": os.getpid()}

    @app.get("/hold")
    def hold() -> dict[str, int]:
        """Take memory for some seconds."""
        taken = bytearray(b"x") * (int(request.args["mb"]) * MB)
        time.sleep(float(request.args["seconds"]))
        return {"taken": len(taken)}

    @app.get("/burst")
    def burst() -> dict[str, int]:
        """Take 60 MB for a second, once in 50 requests."""
        # Not a count of this process: a server that replaces its workers would never get there.
        if int.from_bytes(os.urandom(4)) % 50 == 0:
            taken = bytearray(b"x") * (60 * MB)
            time.sleep(1)
            del taken
        return {"pid": os.getpid()}

    @app.get("/honest")
    def honest() -> dict[str, int]:
        """Need 60 MB from the first request on, and no more."""
        if not _kept:
            _hold(float(request.args.get("mb", "60")))
        return {"pid": os.getpid()}

    @app.get("/shared")
    def shared() -> dict[str, int]:
        """Let memory grow that all workers share, by 0.1 MB, up to 60 MB."""
        start = next(_pages) * MB // 10
        if start < 60 * MB:
            for offset in range(start, start + MB // 10, 4096):
                _shared[0][offset] = 1
        return {"pid": os.getpid()}

    @app.get("/none")
    def none() -> dict[str, int]:
        """Need nothing."""
        return {"pid": os.getpid()}

    return app
