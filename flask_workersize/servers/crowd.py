"""More clients than a process has descriptors for: how many fit, and log lines about the rest."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

MOST_CONNECTIONS = 1000
"""Connections that are open at once. At waitress' own 100 a page with many idle browsers looks
like a hang; an idle connection costs a few KB."""

_FEWEST_CONNECTIONS = 8
_SPARE = 16
"""Descriptors kept for files opened while serving: databases, files, what the monitor reads."""

_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

QUIET_SECONDS = 60.0
"""How long a line that clients can cause is not repeated."""

_CAUSED_BY_CLIENTS = (
    "total open connections ",
    "server accept() threw an exception",
    "Socket error",
    "Task queue depth is ",
)


def connection_limit(descriptors_each: int) -> int:
    """Return how many connections this process may hold, by the descriptors that are free now."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        # No /proc behind it, as in a bare chroot.
        used = _SPARE
    free = soft - used - _SPARE
    return max(_FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, free // descriptors_each))


def watch_accept(server: Any, when_full: Callable[[Any], None]) -> None:
    """Have a server of waitress call ``when_full`` with itself when it has no descriptor left.

    Without this it logs a traceback and tries again at once, for as long as a client waits.
    """
    accept = server.accept

    def watched() -> Any:
        try:
            return accept()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            when_full(server)
            return None

    server.accept = watched


class Quiet:
    """Decides whether a line may be logged: each once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def allows(self, line: str) -> bool:
        """Return whether the line has not been logged in the last minute, and note that it is."""
        now = self._clock()
        if now < self._until.get(line, now):
            return False
        self._until[line] = now + QUIET_SECONDS
        return True


class _Filter(logging.Filter):
    """Lets through each line that clients can cause once a minute, and all others."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet = Quiet()

    def filter(self, record: logging.LogRecord) -> bool:
        line = str(record.msg)
        return not line.startswith(_CAUSED_BY_CLIENTS) or self._quiet.allows(line)


def quiet_waitress() -> None:
    """Keep a flood of clients from becoming a flood of log lines of waitress."""
    for name in ("waitress", "waitress.queue"):
        log = logging.getLogger(name)
        if not any(isinstance(item, _Filter) for item in log.filters):
            log.addFilter(_Filter())
