"""Keep the signals that reach a worker before it has handlers of its own.

Until then it has the master's, which would swallow a stop.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
"""Those that a worker answers: they end it, or let it open its logs again."""

_thread = threading.local()
"""Knows of the thread whether its next fork is a worker's."""


def hold_signals() -> None:
    """Let signals wait until this thread has forked; in its child until :func:`defer_signals`."""
    _thread.holds = True
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _release_signals() -> None:
    """Let signals in; a fork of something other than a worker changes nothing."""
    if getattr(_thread, "holds", False):
        _thread.holds = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


# Called after a fork that fails, too.
os.register_at_fork(after_in_parent=_release_signals)


def defer_signals(worker: Any) -> None:
    """Let signals into a new worker, and answer them as soon as it has handlers.

    They are not blocked until then: programs started from here on would inherit that.
    """
    early: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda signum, frame: early.append(signum))
    _release_signals()
    init_signals = worker.init_signals

    def init_and_answer() -> None:
        init_signals()
        for number in early:
            signal.raise_signal(number)

    worker.init_signals = init_and_answer
