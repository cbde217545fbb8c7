"""Less time for what is stuck, so that a test need not wait for it."""

from __future__ import annotations

from flask_workersize.monitor import process
from flask_workersize.servers import ending
from flask_workersize.servers.gunicorn import arbiter
from flask_workersize.servers.waitress import run


def hurry() -> None:
    """Shorten all that follows the graceful timeout."""
    for module in (arbiter, run):
        vars(module).update(WORKER_SECONDS=0, STUCK_SECONDS=0)
    ending.EXIT_SECONDS = ending._LOG_SECONDS = process.ORPHAN_SECONDS = 0.2
