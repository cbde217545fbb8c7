"""Clients that connect and send no request: how long others wait because of them."""

from __future__ import annotations

import math
import socket
import time
from contextlib import suppress

from ..runtime.polling import wait_readable
from .stopping import WatchedSocket, silent_seconds

HEADER_SECONDS = 3.0
"""How long a client may take to send the whole header of a request while other requests wait: as
long as TCP takes to send a lost packet twice more."""


def has_spoken(connection: socket.socket) -> bool | None:
    """Return whether there is something to read.

    ``None`` is not yet, ``False`` that nothing will come: the client has closed the connection, or
    its half of it. With TLS it is about the encrypted bytes.
    """
    # Windows has no such flag; there the socket has to be one that does not block.
    flags = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)
    try:
        return bool(socket.socket.recv(connection, 1, flags))
    except BlockingIOError:
        return None
    except OSError:
        return False


def established_at(connection: socket.socket) -> float:
    """Return since when a connection that was just accepted has been silent, also in the kernel.

    :return: a moment of :func:`time.monotonic`; now if the kernel does not report it
    """
    now = time.monotonic()
    with suppress(OSError):
        silent = silent_seconds(connection)
        return now - silent if silent < math.inf else now
    return now


def stop_listening_to(connection: socket.socket) -> None:
    """End a wait for the rest of a request, if there is one.

    What has arrived is read all the same.
    """
    if isinstance(connection, WatchedSocket) and not connection.is_awaited:
        return
    # It may be closed by now, which is as good.
    with suppress(OSError, ValueError):
        if not wait_readable([connection], 0):
            # Not SSLSocket's own, which would take the encryption from the thread that reads.
            socket.socket.shutdown(connection, socket.SHUT_RD)
