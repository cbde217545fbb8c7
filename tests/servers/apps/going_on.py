"""A run.py that goes on after its server, and says whether its signals are its own again."""

from __future__ import annotations

import signal
from typing import Any

from facts import create_app  # type: ignore[import-not-found]

from flask_workersize import serve

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def own(signum: int, frame: Any) -> None:
    """Be the script's handler."""


for name in NAMES:
    signal.signal(getattr(signal, name), own)
app = create_app()
serve(app, "waitress")
for name in NAMES:
    print(name, signal.getsignal(getattr(signal, name)) is own)
print(app.extensions["workersize"].serving)
