"""A run.py of one's own: it cleans up after itself, and so does each worker."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from facts import create_app  # type: ignore[import-not-found]

from flask_workersize import serve


def note(who: str) -> None:
    """Write down who came by, and in which process."""
    with Path("notes.txt").open("a") as file:
        file.write(f"{who} {os.getpid()}\n")


atexit.register(note, "atexit")
try:
    serve(create_app(), *sys.argv[1:])  # type: ignore[arg-type]
    note("returned")
finally:
    note("finally")
