"""Hooks and an app that write down which signals are blocked in what they start, wherever that is.

A line in blocked.txt has the place, and ``SigBlk`` of proc_pid_status(5).
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from facts import create_app as create_facts  # type: ignore[import-not-found]
from flask import Flask

from flask_workersize import worker_forked


def note_blocked(place: str) -> None:
    """Write the line of this process."""
    mask = Path("/proc/self/status").read_text().partition("SigBlk:")[2].split()[0]
    with Path("blocked.txt").open("a") as file:
        file.write(f"{place} {mask}\n")


def _start(place: str) -> None:
    program = "import inheriting, sys; inheriting.note_blocked(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, f"{place}-program"], check=True)
    child = multiprocessing.get_context("fork").Process(
        target=note_blocked, args=(f"{place}-child",)
    )
    child.start()
    child.join()


def pre_fork(server: Any, worker: Any) -> None:
    """Start what a master may start beside its workers."""
    _start("pre_fork")


def post_fork(server: Any, worker: Any) -> None:
    """Start what a worker may start at once."""
    _start("post_fork")


def _start_in_thread(app: Flask) -> None:
    thread = threading.Thread(target=_start, args=("thread",))
    thread.start()
    thread.join()


def create_app() -> Flask:
    """Create the app."""
    app: Flask = create_facts()
    worker_forked.connect(_start_in_thread, app, weak=False)

    @app.get("/start")
    def start() -> str:
        _start("view")
        return ""

    return app
