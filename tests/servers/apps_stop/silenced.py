"""The slow app, which can block signals as some libraries do, and fill its standard error."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from flask import Flask
from slow import create_app as create_slow  # type: ignore[import-not-found]


def create_app() -> Flask:
    """Create the app; ``BLOCKED`` and ``LOGGED`` say what it does to signals and to the log."""
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
