"""A gunicorn.conf.py that adds settings of its own to ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask_workersize import gunicorn_conf
from flask_workersize.gunicorn_conf import *  # noqa: F403
from flask_workersize.gunicorn_conf import __all__  # noqa: F401

keepalive = 9


def post_worker_init(worker: Any) -> None:  # type: ignore[no-redef]
    """Call ours, then do what this file is for."""
    gunicorn_conf.post_worker_init(worker)
    with Path("settings.txt").open("a") as file:
        file.write(f"{worker.cfg.keepalive} {worker.cfg.control_socket_disable}\n")
