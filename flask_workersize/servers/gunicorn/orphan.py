"""End a worker whose master was killed: it would hold the port against the next server."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

from ...log import say
from ...monitor.process import ORPHAN_SECONDS, TURN_SECONDS
from ...runtime.threads import start_thread

_LOOK_SECONDS = 1.0


def watch_master(worker: Any) -> None:
    """Watch, in a thread, for the death of the master, also while the worker is busy.

    The monitor is faster; it may have been killed, too.
    """
    start_thread("master", _watch, worker)


def _watch(worker: Any) -> None:
    while os.getppid() == worker.ppid:
        time.sleep(_LOOK_SECONDS)
    time.sleep(2 * TURN_SECONDS)
    if worker.alive:
        ending = f"ending worker {worker.pid} to free its port"
        line = f"the master was killed; {ending}."
        # In a thread of its own: the reader of the log may be gone, too, and a full pipe blocks.
        start_thread("log", say, logging.WARNING, line)
        os.kill(worker.pid, signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.kill(worker.pid, signal.SIGKILL)
