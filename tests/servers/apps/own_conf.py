"""A gunicorn.conf.py with settings and hooks of its own, which calls none of ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from flask_workersize.gunicorn_conf import *  # noqa: F403
from flask_workersize.gunicorn_conf import __all__  # noqa: F401

keepalive = 9


def _note(line: str) -> None:
    with Path("hooks.txt").open("a") as file:
        file.write(f"{line}\n")


class Noted:
    """A hook that is an object."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, server: Any, worker: Any) -> None:
        """Note it."""
        _note(self.name)


def when_ready(server: Any) -> None:
    """Note it."""
    _note("when_ready")


def post_fork(server: Any, worker: Any) -> None:
    """Note it."""
    _note("post_fork")


def post_worker_init(worker: Any) -> None:
    """Note it, with two settings."""
    _note(f"post_worker_init {worker.cfg.keepalive} {worker.cfg.control_socket_disable}")


def worker_exit(server: Any, worker: Any) -> None:
    """Note it, and fail."""
    _note("worker_exit")
    raise LookupError("a hook that fails")


def _note_for(name: str, server: Any) -> None:
    _note(name)


pre_fork = Noted("pre_fork")
child_exit = Noted("child_exit")
on_exit = partial(_note_for, "on_exit")


def on_reload(server: Any) -> None:  # type: ignore[no-redef]
    """Note it."""
    _note("on_reload")


def nworkers_changed(server: Any, new_value: int, old_value: int | None) -> None:
    """Note it."""
    _note(f"nworkers_changed {new_value} {old_value}")
