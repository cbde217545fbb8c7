"""gunicorn's sync worker, made to stop without losing a request.

It overrides what gunicorn does not document; tests/servers/test_canary_stopping.py lists it.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Any

from gunicorn.workers import sync

from ...runtime.polling import wait_readable
from ..silence import HEADER_SECONDS, established_at, has_spoken
from ..stopping import (
    LATE_SILENCE_SECONDS,
    SETTLE_SECONDS,
    WatchedSocket,
    admit,
)
from .careful import CarefulWorker
from .graceful_worker import GracefulWorker


class SyncWorker(GracefulWorker, CarefulWorker, sync.SyncWorker):
    """gunicorn's sync worker, which serves what is queued before it ends with the server."""

    _has_goodbye_thread = True

    def run(self) -> None:
        """Serve until stopped, then what is queued."""
        super().run()
        if self._server_stops():
            self._drain()
        self._say_goodbye()

    def wait(self, timeout: float) -> Any:
        """Wait for connections and signals; gunicorn's takes no descriptor above 1,023."""
        self.notify()
        ready = wait_readable(self.wait_fds, timeout)
        if self.PIPE[0] in ready:
            os.read(self.PIPE[0], 1)
        return ready

    def _drain(self) -> None:
        budget, accepted = self.stop_signal.budget(self.cfg.graceful_timeout), 0
        while budget.allows(accepted) and not self._in_a_hurry:
            ready = wait_readable(self.sockets, SETTLE_SECONDS)
            if not ready:
                return
            for listener in ready:
                self.notify()
                # Also where another worker was faster: then all that waited at the stop are taken.
                accepted += 1
                with suppress(BlockingIOError, ConnectionAbortedError):
                    self.accept(listener)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve one connection, known to the thread that hangs up on silent clients."""
        # From here on this worker can serve no other client, whatever this one does.
        self._note_held(1)
        try:
            self._serve(listener, client, addr)
        finally:
            self._note_held(0)

    def _note_held(self, count: int) -> None:
        if self.row is not None:
            self.row.note_held(count)

    def _serve(self, listener: Any, client: socket.socket, addr: Any) -> None:
        patience = admit(client)
        has_something, since = has_spoken(client), time.monotonic()
        if patience < LATE_SILENCE_SECONDS and not (self.cfg.is_ssl and has_something):
            # Also in the queue of the kernel it could have sent what it owes; not so with TLS,
            # which begins to talk only now.
            since = established_at(client)
        is_late = since + HEADER_SECONDS < time.monotonic()
        if has_something is None and is_late and self._are_others_waiting():
            client.close()
            return
        # TLS takes the descriptor over; a copy can still be shut down.
        watched = client.dup() if self.cfg.is_ssl else WatchedSocket(client)
        self._open[watched] = patience
        self._due[watched] = since + HEADER_SECONDS
        try:
            super().handle(listener, client if self.cfg.is_ssl else watched, addr)
        finally:
            self._due.clear()
            del self._open[watched]
            watched.close()

    def handle_request(self, listener: Any, req: Any, client: Any, addr: Any) -> Any:
        """Serve a request, whose header is there."""
        self._due.clear()
        return super().handle_request(listener, req, client, addr)
