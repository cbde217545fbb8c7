"""An app whose connections stay open: streams, websockets, views that await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response

from flask_workersize import WorkerSizing

OVER = Path("over")
"""A file in the folder of the server, which ends the views that await."""

app = Flask(__name__)
app.config.update(SECRET_KEY="test", WORKERSIZE_BIND="127.0.0.1:0")


@app.get("/")
def hello() -> str:
    return "hello"


@app.get("/events")
def events() -> Response:
    def stream() -> Iterator[str]:
        while True:
            yield "data: tick\n\n"
            time.sleep(0.05)

    return Response(stream(), mimetype="text/event-stream")


@app.get("/await")
async def wait() -> str:
    while not OVER.exists():
        await asyncio.sleep(0.02)
    return "over"


try:
    from flask_socketio import SocketIO
except ImportError:
    pass
else:
    SocketIO(app, async_mode="threading")

WorkerSizing(app)
