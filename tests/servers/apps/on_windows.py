"""The facts app on a system that says it is Windows, and lacks what Windows lacks."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys

from facts import create_app as create_facts  # type: ignore[import-not-found]
from flask import Flask

MISSING = {
    os: ("fork", "nice", "geteuid"),
    select: ("poll", "epoll"),
    signal: ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "pthread_sigmask", "siginterrupt"),
    socket: ("AF_UNIX",),
}


def create_app() -> Flask:
    """Create the app; what is decided from now on is decided for Windows."""
    app: Flask = create_facts()
    sys.platform = "win32"
    # It is not installed there: this import fails.
    sys.modules["gunicorn"] = None  # type: ignore[assignment]
    for module, names in MISSING.items():
        for name in names:
            delattr(module, name)
    return app
