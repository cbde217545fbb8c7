"""Connections whose response is complete: closed without cutting off the response.

A connection that is closed while its client still sends is reset, and a reset discards what the
client has not read yet. So the server first announces that it sends no more, reads on and discards
what comes until the client has closed, too (RFC 9112, section 9.6). gunicorn waits for that in the
worker's only thread, or in the loop of a threaded worker, up to 2 seconds for each client that does
not close, and drops one that still sends after 64 KiB.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Any

from ...runtime.threads import start_thread

QUIET_SECONDS = 2.0
"""How long a client may send nothing before its connection is closed, as gunicorn has it."""

MOST_SECONDS = 30.0
"""How long a client may go on sending."""

MOST_CONNECTIONS = 128
"""How many such connections are open at once; the oldest is closed for one more. Each costs a file
descriptor, beyond those that the limits on connections count."""

_PART_BYTES = 64 * 1024
_TURN_SECONDS = 0.5


class Goodbyes:
    """Open connections whose clients have their response and have not closed yet.

    :param has_thread: whether a thread of its own reads, started once it is needed; else the owner
        calls :meth:`turn` when :meth:`fileno` can be read, and at least once a second
    """

    def __init__(self, has_thread: bool = False) -> None:
        self._has_thread = has_thread
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        # The earliest first; each with the moments by which it has to send, and to close.
        self._open: dict[socket.socket, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._is_needed = threading.Event()

    def __len__(self) -> int:
        return len(self._open)

    def fileno(self) -> int:
        """Return what can be read when a client has sent something, or has closed."""
        return self._selector.fileno()

    def take(self, connection: socket.socket, *limits: Any) -> None:
        """Close a connection for writing now, and altogether when its client has closed.

        It stands in for gunicorn's ``util.close_graceful``, whose limits it replaces.
        """
        try:
            # TLS ends here, too: what follows is not decrypted any more.
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            # Closed already, or the client is gone.
            connection.close()
            return
        kind = connection.family, connection.type, connection.proto
        descriptor = connection.detach()
        if descriptor < 0:
            # A thread of the app, such as that of a websocket, has closed it since.
            return
        plain = socket.socket(*kind, fileno=descriptor)
        plain.setblocking(False)
        if _has_closed(plain):
            plain.close()
        else:
            self._add(plain)

    def _add(self, connection: socket.socket) -> None:
        now = time.monotonic()
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                self._close(next(iter(self._open)))
            self._open[connection] = now + QUIET_SECONDS, now + MOST_SECONDS
            self._selector.register(connection, selectors.EVENT_READ)
            self._is_needed.set()
        if self._has_thread and self._thread is None:
            self._thread = start_thread("goodbye", self._run)

    def _run(self) -> None:
        while self._is_needed.wait():
            self.turn(_TURN_SECONDS)

    def turn(self, seconds: float = 0.0) -> None:
        """Read and discard what has come, wait so long for it at most, and close what is over."""
        ready = self._selector.select(seconds)
        now = time.monotonic()
        with self._lock:
            for key, _ in ready:
                connection: Any = key.fileobj
                if connection not in self._open:
                    continue
                if _has_closed(connection):
                    self._close(connection)
                else:
                    self._open[connection] = now + QUIET_SECONDS, self._open[connection][1]
            for connection in [item for item, until in self._open.items() if min(until) <= now]:
                self._close(connection)
            if not self._open:
                self._is_needed.clear()

    def finish(self, seconds: float) -> None:
        """Wait so long for the rest at most, then close it."""
        until = time.monotonic() + seconds
        while self._open and (left := until - time.monotonic()) > 0:
            self.turn(min(left, 0.05))
        with self._lock:
            for connection in list(self._open):
                self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        del self._open[connection]
        self._selector.unregister(connection)
        connection.close()


def _has_closed(connection: socket.socket) -> bool:
    """Discard a part of what a client has sent, and return whether it has closed."""
    try:
        return not connection.recv(_PART_BYTES)
    except BlockingIOError:
        return False
    except OSError:
        return True
