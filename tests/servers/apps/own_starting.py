"""A gunicorn.conf.py from a template: it has every hook of a start, and none calls ours."""

from __future__ import annotations

from typing import Any

from flask_workersize.gunicorn_conf import *  # noqa: F403
from flask_workersize.gunicorn_conf import __all__  # noqa: F401


def on_starting(server: Any) -> None:  # type: ignore[no-redef]
    """Do nothing."""


def nworkers_changed(server: Any, new_value: int, old_value: int | None) -> None:
    """Do nothing."""


when_ready = on_exit = on_reload = on_starting


def pre_fork(server: Any, worker: Any) -> None:
    """Do nothing."""


post_fork = child_exit = worker_exit = pre_fork


def post_worker_init(worker: Any) -> None:
    """Do nothing."""
