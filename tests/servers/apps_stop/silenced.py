"""The slow app, which can block signals as some libraries do, and fill its standard error."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from flask import Flask
from hurried import hurry  # type: ignore[import-not-found]
from slow import create_app as create_slow  # type: ignore[import-not-found]


def wait_for_signal() -> None:
    """Take a signal that is blocked for that."""
    signal.sigwait({signal.SIGUSR2})
    Path("usr2.here").touch()


def create_app() -> Flask:
    """Create the app; variables say what it does to signals, to the log, and to our patience."""
    if os.environ.get("HURRIED"):
        hurry()
    if os.environ.get("WAITS"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=wait_for_signal, daemon=True).start()
    if os.environ.get("BLOCKED"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    if os.environ.get("LOGGED"):
        logging.basicConfig(level=logging.INFO)
    app: Flask = create_slow()

    @app.get("/fill")
    def fill() -> str:
        """Write to standard error until its pipe takes no more."""
        os.set_blocking(sys.stderr.fileno(), False)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(sys.stderr.fileno(), b"." * size)
        os.set_blocking(sys.stderr.fileno(), True)
        return "full"

    @app.get("/log")
    def log() -> str:
        Path("log.here").touch()
        app.logger.warning("somebody was here")
        return "logged"

    return app
