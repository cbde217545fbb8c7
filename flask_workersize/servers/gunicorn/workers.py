"""gunicorn's two kinds of worker, made to stop without losing a request.

They override what gunicorn does not document; tests/servers/test_canary_stopping.py lists it.
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import socket
import time
from contextlib import suppress
from typing import Any

from gunicorn.workers import gthread, sync
from gunicorn.workers.base import Worker

from ...runtime.polling import wait_readable
from ...runtime.threads import start_thread
from ...runtime.worker_record import WorkerRecord
from ..ending import GRACE_SECONDS, process_end
from ..stopping import (
    SETTLE_SECONDS,
    SILENCE_SECONDS,
    StopSignal,
    WatchedSocket,
    admit,
    hang_up_if_silent,
)
from .careful import CarefulWorker

_CUT_EVERY_SECONDS = 0.1

_LOOK_AGAIN_SECONDS = 0.02
"""How long a worker leaves connections to others before it looks at what they hold again."""

_PATIENCE_SECONDS = 1.0
"""How long it leaves them to a worker that holds as many and whose threads are not all busy: on a
busy machine that one may have to wait for a CPU."""

_CLOSES_KEPT = not hasattr(gthread, "STOP_KEEPALIVE_LINGER")
"""Whether this gunicorn, as 26 did, closes a connection right after it promised to keep it, where
its worker stops meanwhile."""


class GracefulWorker(Worker):
    """What both kinds of worker add to gunicorn's."""

    stop_signal: StopSignal
    row: WorkerRecord | None = None
    _asked_to_stop = False
    _in_a_hurry = False
    _alive = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_leaving = mmap.mmap(-1, 1)

    def init_process(self) -> None:
        """Watch for the stop of the server, then start as gunicorn's."""
        # Each with how long it may be silent during a stop.
        self._open: dict[Any, float] = {}
        start_thread("stop", self._hang_up_silent)
        self._pid = os.getpid()
        process_end.adopt(self.cfg.graceful_timeout, self._running)
        atexit.register(self._note_leaving)
        super().init_process()

    @property
    def alive(self) -> bool:
        """Whether this worker goes on; gunicorn says so when a signal or a limit ends it."""
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        self._alive = value
        if not value:
            process_end.begin()

    def _running(self) -> int:
        return self.row.running() if self.row is not None else 0

    def _note_leaving(self) -> None:
        """Note that this worker ends by itself, also if its time is over amid a request."""
        if self.row is not None and self._pid == os.getpid():
            self.row.leave()

    def init_signals(self) -> None:
        """Leave Ctrl-C to the master: it reaches the whole process group."""
        super().init_signals()
        # A handler, not SIG_IGN, which programs started by the app would inherit.
        signal.signal(signal.SIGINT, lambda signum, frame: None)
        signal.siginterrupt(signal.SIGINT, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Note that the stop was asked for by a signal, not by ``max_requests``."""
        self._asked_to_stop = True
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End at once, with whatever is queued."""
        self._in_a_hurry = True
        process_end.hurry(margin=GRACE_SECONDS)
        super().handle_quit(sig, frame)

    def _server_stops(self) -> bool:
        """Return whether the queue is to be served because the server stops.

        A service manager may signal all processes at once, so that the master is a moment behind.
        If it gets the signal after the last check here, it sees that this worker is leaving.
        """
        if self._in_a_hurry:
            return False
        is_recycled = self.row is not None and self.row.is_told_to_leave
        is_unsure = self._asked_to_stop and not is_recycled
        if self.stop_signal.wait(SETTLE_SECONDS if is_unsure else 0):
            return True
        self.is_leaving[0] = 1
        return self.stop_signal.is_sent()

    def _hang_up_silent(self) -> None:
        """Keep silent clients from holding a stop, in a thread: the main one waits for them."""
        self.stop_signal.wait()
        time.sleep(SILENCE_SECONDS)
        while True:
            for connection, patience in self._open.copy().items():
                # gthread's own connection changes its socket where TLS starts.
                hang_up_if_silent(getattr(connection, "sock", connection), patience)
            time.sleep(_CUT_EVERY_SECONDS)


class SyncWorker(GracefulWorker, CarefulWorker, sync.SyncWorker):
    """gunicorn's sync worker, which serves what is queued before it ends with the server."""

    def run(self) -> None:
        """Serve until stopped, then what is queued."""
        super().run()
        if self._server_stops():
            self._drain()

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
        patience = admit(client)
        # TLS takes the descriptor over; a copy can still be shut down.
        watched = client.dup() if self.cfg.is_ssl else WatchedSocket(client)
        self._open[watched] = patience
        try:
            super().handle(listener, client if self.cfg.is_ssl else watched, addr)
        finally:
            del self._open[watched]
            watched.close()


class ThreadWorker(GracefulWorker, CarefulWorker, gthread.ThreadWorker):
    """gunicorn's threaded worker, which serves what is queued before it ends with the server.

    It leaves connections that it has no thread for to workers that hold fewer. gunicorn's accepts
    all there are, so that one of five workers may serve every client and four none.
    """

    _stopped_at = 0.0
    _accepted_at = 0.0
    _accepting: bool
    pending_conns: Any

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """Stop accepting only after what is queued was accepted, if the server stops."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        if self.row is not None:
            self.row.take_no_more()
        if self._server_stops():
            self._drain()

    def accept(self, listener: Any) -> None:
        """Accept a connection."""
        self._accepted_at = time.monotonic()
        super().accept(listener)

    def _share_queue(self) -> None:
        """Leave a connection without a free thread to a worker that holds fewer and may take it."""
        held, can_accept = self._busy(), self.nr_conns < self.worker_connections
        if self.row is not None and can_accept:
            self.row.note_held(held)
            can_accept = held < self.cfg.threads or self._is_next(*self.row.others())
        elif self.row is not None:
            self.row.take_no_more()
        super().set_accept_enabled(can_accept)

    def _is_next(self, least: int | None, is_one_free: bool) -> bool:
        """Return whether one more belongs here, although every thread is busy.

        ``least`` is what the least loaded other worker holds, ``is_one_free`` whether it has just
        ended a request and holds less in a moment.
        """
        held, patience = self._busy(), _PATIENCE_SECONDS if is_one_free else _LOOK_AGAIN_SECONDS
        has_waited = time.monotonic() >= self._accepted_at + patience
        return least is None or held < least or (held == least and has_waited)

    def _drain(self) -> None:
        """Accept what is queued as threads become free, since other workers share the queue.

        Kept-alive clients are served meanwhile: one that was just answered sends its next request
        now, and the answer announces that the connection closes.
        """
        self._stopped_at = time.monotonic()
        until = self._stopped_at + SETTLE_SECONDS
        budget, accepted = self.stop_signal.budget(self.cfg.graceful_timeout), 0
        while True:
            self.notify()
            if self._busy() < self.cfg.threads:
                count = self._accept_one_each() if budget.allows(accepted) else 0
                accepted += count
                if count:
                    until = time.monotonic() + SETTLE_SECONDS
                elif time.monotonic() > until:
                    return
            super().wait_for_and_dispatch_events(timeout=0.02)

    def _accept_one_each(self) -> int:
        before = self.nr_conns
        for listener in self.sockets:
            self.accept(listener)
        return int(self.nr_conns - before)

    def _busy(self) -> int:
        return int(self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns))

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Wait for events; at a stop no longer than idle and silent connections may hold it."""
        if not self._stopped_at:
            if self.alive:
                self._share_queue()
            waits = timeout if self._accepting else _LOOK_AGAIN_SECONDS
            super().wait_for_and_dispatch_events(waits)
            return
        silence_ends = self._stopped_at + SILENCE_SECONDS
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, silence_ends)
        super().wait_for_and_dispatch_events(0.1 if self._busy() else 0)
        if not self._busy():
            # A request that was on its way has been taken by now: idle connections may go.
            for conn in self.keepalived_conns:
                conn.timeout = 0.0

    def enqueue_req(self, conn: Any) -> None:
        """Pass a connection to the threads; what a new one sends is let in before it waits."""
        if not hasattr(conn, "patience"):
            conn.patience = admit(conn.sock)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Serve one connection, known to the thread that hangs up on silent clients."""
        if not conn.initialized and not isinstance(conn.sock, WatchedSocket):
            conn.sock = WatchedSocket(conn.sock)
        self._open[conn] = conn.patience
        try:
            return super().handle(conn)
        finally:
            conn.patience = SILENCE_SECONDS
            self._open.pop(conn, None)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Close or keep a connection; gunicorn waits here for clients that do not hang up."""
        self._open[conn] = SILENCE_SECONDS
        was_alive = self.alive
        if _CLOSES_KEPT and not was_alive:
            self.alive = True
        try:
            super().finish_request(conn, fs)
        finally:
            self._open.pop(conn, None)
            if not was_alive:
                self.alive = False
