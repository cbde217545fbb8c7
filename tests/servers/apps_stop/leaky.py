"""An app whose memory grows, in the ways that matter to the guard."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

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


def _hold_in_launcher(order: Path) -> None:
    """Hold memory for as long as a file is there that says how much, in MB."""
    while True:
        while not order.exists():
            time.sleep(0.05)
        held = [bytearray(b"x") * MB for _ in range(int(order.read_text()))]
        while order.exists():
            time.sleep(0.05)
        del held


def _add_others(app: Flask) -> None:
    """Add what takes memory that is not the workers' own."""

    @app.get("/read")
    def read() -> dict[str, int]:
        """Read a file some times, so that it is in the page cache."""
        for _ in range(int(request.args["times"])):
            with open(request.args["file"], "rb", buffering=0) as file:
                while file.read(MB):
                    pass
        return {"pid": os.getpid()}

    @app.get("/write")
    def write() -> dict[str, int]:
        """Write a file of so many MB."""
        with open(request.args["file"], "wb") as file:
            for _ in range(int(request.args["mb"])):
                file.write(bytes(MB))
        return {"pid": os.getpid()}

    @app.get("/child")
    def child() -> dict[str, int]:
        """Run a program that takes memory, MB by MB, holds it, and ends."""
        program = (
            "import sys, time; held = [b'x' * 1048576 for _ in range(int(sys.argv[1]))];"
            "time.sleep(float(sys.argv[2]))"
        )
        command = [sys.executable, "-c", program, request.args["mb"], request.args["seconds"]]
        return {"status": subprocess.run(command, check=False).returncode}


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
    if order := os.environ.get("LAUNCHER_HOLDS"):
        # It stays in the launcher: threads are not forked.
        threading.Thread(target=_hold_in_launcher, args=[Path(order)], daemon=True).start()

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

    _add_others(app)

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
