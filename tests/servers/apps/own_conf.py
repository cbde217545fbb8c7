"""A gunicorn.conf.py with settings and hooks of its own, which calls none of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask_workersize.gunicorn_conf import *  # noqa: F403
from flask_workersize.gunicorn_conf import __all__  # noqa: F401

keepalive = 9


def _note(line: str) -> None:
    with Path("hooks.txt").open("a") as file:
        file.write(f"{line}\n")


def when_ready(server: Any) -> None:
    """Note it."""
    _note("when_ready")


def pre_fork(server: Any, worker: Any) -> None:  # type: ignore[no-redef]
    """Note it."""
    _note("pre_fork")


def post_fork(server: Any, worker: Any) -> None:
    """Note it."""
    _note("post_fork")


def post_worker_init(worker: Any) -> None:
    """Note it, with two settings."""
    _note(f"post_worker_init {worker.cfg.keepalive} {worker.cfg.control_socket_disable}")


def child_exit(server: Any, worker: Any) -> None:
    """Note it."""
    _note("child_exit")
