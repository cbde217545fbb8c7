"""An app whose process sends signals to workers before these have run anything at all."""

from __future__ import annotations

import os
import signal

from facts import create_app  # type: ignore[import-not-found]

__all__ = ["create_app"]

_fork = os.fork
_sent = iter([None, signal.SIGTERM, signal.SIGQUIT, signal.SIGTERM])
"""One for each fork: none for the first, the monitor's."""


def _signalling_fork() -> int:
    pid = _fork()
    number = next(_sent, None) if pid else None
    if number is not None:
        os.kill(pid, number)
    return pid


# On one CPU the parent goes on before its child begins.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.fork = _signalling_fork
