"""An app whose waitress cannot stop, and is cut short within a moment of the graceful timeout."""

from __future__ import annotations

import time

from flask import Flask
from hurried import hurry  # type: ignore[import-not-found]
from slow import create_app as create_slow  # type: ignore[import-not-found]

from flask_workersize.app_state import get_state
from flask_workersize.servers.waitress import run

hurry()
app: Flask = create_slow()
run._Server.stop = lambda *_, **__: time.sleep(60)  # type: ignore[method-assign]


@app.get("/exhaust")
def exhaust() -> str:
    """Do as the memory guard does when memory runs out."""
    board = get_state(app).board
    assert board is not None
    board.is_exit_asked = True
    return "soon"
