"""What waitress knows of a request that is about to begin."""

from __future__ import annotations

import socket
import time
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from waitress.parser import HTTPRequestParser
from waitress.task import WSGITask

_TASK_KEY = "flask_workersize.task"


class TimedParser(HTTPRequestParser):
    """A request that knows since when it is complete."""

    completed_at = 0.0

    def received(self, data: bytes) -> int:
        """Take what has come, and note the time if that was the rest."""
        count: int = super().received(data)
        if self.completed:
            self.completed_at = time.monotonic()
        return count


class Task(WSGITask):
    """A request on its way to the app, where the meter finds it again."""

    def get_environment(self) -> dict[str, Any]:
        """Return waitress' environment of the request, with the task itself."""
        environ: dict[str, Any] = super().get_environment()
        environ[_TASK_KEY] = self
        return environ


def announce_close(request: Any) -> None:
    """Make the response to a request announce that the connection is closed, and close it then."""
    request.headers["CONNECTION"] = "close"


class WaitressArrival:
    """Knows since when a request was complete."""

    def waited(self, environ: WSGIEnvironment) -> float:
        """Return the time since it was complete."""
        completed_at: float = environ[_TASK_KEY].request.completed_at
        return time.monotonic() - completed_at

    def connection(self, environ: WSGIEnvironment) -> socket.socket:
        """Return the connection of a request."""
        connection: socket.socket = environ[_TASK_KEY].channel.socket
        return connection

    def announce_close(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        """Close the connection after the response."""
        announce_close(environ[_TASK_KEY].request)
