"""An app with what the doctor finds: each worker has it for itself."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask
from flask_caching import Cache
from flask_limiter import Limiter

from flask_workersize import WorkerSizing

WORKERS = 2

app = Flask(__name__)
app.config.update(
    CACHE_TYPE="SimpleCache",
    SECRET_KEY=os.urandom(16),
    WORKERSIZE_BIND="127.0.0.1:0",
    WORKERSIZE_WORKERS=WORKERS,
)
cache = Cache(app)
limiter = Limiter(lambda: "everybody", app=app, storage_uri="memory://")
WorkerSizing(app)
threading.Thread(target=threading.Event().wait, name="loaded", daemon=True).start()


@app.get("/")
@limiter.limit("1 per day")
def once() -> dict[str, Any]:
    """Answer once a day, they say; wait for the other worker, so that it is asked too."""
    me = str(os.getpid())
    cache.set("worker", me)
    Path("answers", me).touch()
    deadline = time.monotonic() + 20
    while len(list(Path("answers").iterdir())) < WORKERS and time.monotonic() < deadline:
        time.sleep(0.01)
    return {
        "pid": me,
        "cached": cache.get("worker"),
        "key": str(app.secret_key),
        "threads": [thread.name for thread in threading.enumerate()],
    }
