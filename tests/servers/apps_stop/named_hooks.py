"""Hooks for gunicorn, named in app.config."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def post_fork(server: Any, worker: Any) -> None:
    """Write down which worker was forked."""
    with Path("hook.txt").open("a") as file:
        file.write(f"{worker.pid}\n")


def worker_exit(server: Any, worker: Any) -> None:
    """Raise what would climb to the loop of the master."""
    raise KeyboardInterrupt
