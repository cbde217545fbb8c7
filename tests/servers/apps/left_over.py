"""Apps that leave threads and connections when they are loaded, and one that renews them."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from flask import Flask

from flask_workersize import WorkerSizing
from flask_workersize.runtime.fork import worker_forked

kept: list[Any] = [socket.socketpair(), os.dup(2)]


def open_and_start(app: Flask | None = None) -> None:
    """Connect to the test's listener, and start a thread."""
    kept.append(socket.create_connection(("127.0.0.1", int(os.environ["LEFT_OVER_PORT"]))))
    threading.Thread(target=threading.Event().wait, name="mailer", daemon=True).start()


def create_app(renews: bool = False) -> Flask:
    """Create the app; it renews what it left in each worker, if asked to."""
    app = Flask("left_over")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    WorkerSizing(app)
    app.add_url_rule("/", view_func=lambda: "hello")
    open_and_start()
    if renews:
        worker_forked.connect(open_and_start, app)
    return app
