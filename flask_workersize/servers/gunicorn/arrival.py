"""What gunicorn knows of a request that is about to begin."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from weakref import WeakSet
from wsgiref.types import StartResponse, WSGIEnvironment

from ..stopping import since_last_data


class GunicornArrival:
    """Asks the kernel; ``closes`` is whether the response of a worker can be closed."""

    def __init__(self, closes: bool) -> None:
        self._closes = closes
        self._asked: WeakSet[ssl.SSLSocket] = WeakSet()

    def waited(self, environ: WSGIEnvironment) -> float | None:
        """Return the time since the last data came.

        Not with HTTP/2, where many requests share a connection, and not for the first request over
        TLS: there the handshake was the last, and it is made by the worker itself.
        """
        connection = environ["gunicorn.socket"]
        if isinstance(connection, ssl.SSLSocket) and connection not in self._asked:
            self._asked.add(connection)
            return None
        return None if environ["SERVER_PROTOCOL"] == "HTTP/2.0" else since_last_data(connection)

    def connection(self, environ: WSGIEnvironment) -> socket.socket:
        """Return the connection of a request."""
        connection: socket.socket = environ["gunicorn.socket"]
        return connection

    def announce_close(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        """Close the connection after the response, as gunicorn does after its last one."""
        response: Any = getattr(start_response, "__self__", None)
        if self._closes and response is not None:
            response.force_close()
