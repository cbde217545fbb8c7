"""gunicorn's threaded worker, made to stop and to share without losing a request.

It overrides what gunicorn does not document; tests/servers/test_canary_stopping.py lists it.
"""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from concurrent import futures
from functools import partial
from itertools import takewhile
from typing import Any

from gunicorn.workers import gthread

from ...runtime.polling import hung_up, wait_readable
from ..silence import HEADER_SECONDS, has_spoken
from ..stopping import (
    SETTLE_SECONDS,
    SILENCE_SECONDS,
    WatchedSocket,
    admit,
)
from .careful import CarefulWorker
from .graceful_worker import OFTEN_SECONDS, GracefulWorker

_LOOK_AGAIN_SECONDS = 0.02
"""How long a worker leaves connections to others before it checks again what they hold."""

_PATIENCE_SECONDS = 1.0
"""How long it leaves them to a worker that holds as many and whose threads are not all busy: on a
busy machine that one may have to wait for a CPU."""

_CLOSES_KEPT = not hasattr(gthread, "STOP_KEEPALIVE_LINGER")
"""Whether this gunicorn, as 26 did, closes a connection right after it promised to keep it, if
its worker stops in between."""


class ThreadWorker(GracefulWorker, CarefulWorker, gthread.ThreadWorker):
    """gunicorn's threaded worker, which serves what is queued before it ends with the server.

    It leaves connections that it has no thread for to workers that hold fewer. gunicorn's own
    accepts all there are, so that one of five workers may serve every client and four none.

    Connections with data queue for a thread, new ones as well as kept ones: the first with data
    is served first. Those without data hold no thread.

    With ``shares_queue`` no connection is kept while requests wait: a client that connects again
    is at the end of the kernel's queue, and whichever worker has a free thread takes the first.
    Not so with TLS, where each would begin with a handshake, and how long it waited is not known.
    """

    most_threads: int | None = None
    shares_queue = False
    _stopped_at = 0.0
    _ends_at = 0.0
    _accepted_at = 0.0
    _accepted = 0
    _gone = 0
    _expected = 0
    _look_for_gone_at = 0.0
    _running = 0
    _takes_more = True
    _accepting: bool
    pending_conns: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shares_queue = self.shares_queue and not self.cfg.is_ssl
        self._ready: deque[Any] = deque()
        self._dispatching = threading.Lock()

    @property
    def slots(self) -> int:
        """How many requests may run at once; the pool has room for more threads."""
        return self.cfg.threads if self.row is None else self.row.threads

    @property
    def max_keepalived(self) -> int:
        """How many connections are kept; gunicorn reads it when it begins a response."""
        return -1 if self.shares_queue and self._are_others_waiting() else self._most_kept

    @max_keepalived.setter
    def max_keepalived(self, most: int) -> None:
        self._most_kept = most

    def get_thread_pool(self) -> futures.ThreadPoolExecutor:
        """Return a pool with room for as many threads as there may ever be."""
        return futures.ThreadPoolExecutor(self.most_threads or self.cfg.threads)

    def run(self) -> None:
        """Serve until stopped."""
        goodbyes = self.goodbyes
        self.poller.register(goodbyes, selectors.EVENT_READ, lambda item: goodbyes.turn())
        super().run()
        self._say_goodbye()

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """Stop accepting only after what is queued was accepted, if the server stops."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        self._ends_at = time.monotonic()
        self._note_held(takes_more=False)
        if self._server_stops():
            self._drain()

    def accept(self, listener: Any) -> None:
        """Accept a connection."""
        self._accepted_at = time.monotonic()
        super().accept(listener)

    def _share_queue(self) -> None:
        """Leave a connection without a free thread to a worker that holds fewer and may take it."""
        can_accept = self.nr_conns < self.worker_connections
        if not can_accept:
            self._make_room()
        self._note_held(can_accept)
        if self.row is not None:
            has_free = self._claimed() < self.slots
            # Nobody waits for a thread that is only claimed: clients may be silent.
            may_take = not self.shares_queue or self._busy() < self.slots
            can_accept &= has_free or (may_take and self._is_next(*self.row.others()))
        super().set_accept_enabled(can_accept)

    def _note_held(self, takes_more: bool) -> None:
        """Record what this worker holds, and which of it no client waits for any more.

        That is so if the client has closed the connection. One that has closed only its half of it
        counts as gone, too: there is no difference to be seen.
        """
        now = time.monotonic()
        # The latest are last.
        latest = takewhile(
            lambda conn: conn.accepted_at > now - SILENCE_SECONDS, reversed(self.pending_conns)
        )
        self._expected = sum(1 for _ in latest)
        if not self._ready:
            self._gone = 0
        elif now >= self._look_for_gone_at:
            self._gone = len(hung_up([conn.sock for conn in self._ready.copy()]))
            self._look_for_gone_at = now + OFTEN_SECONDS
        with self._dispatching:
            self._takes_more = takes_more
            self._write_held()

    def _write_held(self) -> None:
        """Record it in whichever thread something has changed, but one at a time."""
        held = self._busy() - min(self._gone, len(self._ready))
        if self.row is not None and self._takes_more:
            self.row.note_held(held, self._claimed() - self._busy())
        elif self.row is not None:
            self.row.take_no_more(held)

    def _claimed(self) -> int:
        """Return what this worker holds, with those just accepted: most send a request at once.

        They claim no more threads than are free, or silent clients would keep others out.
        """
        busy = self._busy()
        return max(busy, min(busy + self._expected, self.slots))

    def _make_room(self) -> None:
        """At the limit of connections, give those that have sent nothing yet less time."""
        if self.pending_conns and wait_readable(self.sockets, 0):
            for conn in self.pending_conns:
                conn.timeout = min(conn.timeout, conn.accepted_at + HEADER_SECONDS)

    def _are_others_waiting(self) -> bool:
        is_full = self._running >= self.slots
        return is_full and (bool(self._ready) or super()._are_others_waiting())

    def _is_next(self, least: int | None, is_one_free: bool) -> bool:
        """Return whether one more belongs here, although every thread is busy, or claimed.

        ``least`` is what the least loaded other worker holds, ``is_one_free`` whether it has just
        ended a request and holds less in a moment.
        """
        held, patience = self._claimed(), _PATIENCE_SECONDS if is_one_free else _LOOK_AGAIN_SECONDS
        has_waited = time.monotonic() >= self._accepted_at + patience
        # No one waits for a thread that is only claimed, here as there.
        may_share = has_waited or self._busy() < self.slots
        return least is None or held < least or (held == least and may_share)

    def _drain(self) -> None:
        """Accept what is queued as threads become free, since other workers share the queue.

        Kept-alive clients are served, too: one that was just answered sends its next request
        now, and the answer announces that the connection closes.
        """
        self._stopped_at = time.monotonic()
        until = self._stopped_at + SETTLE_SECONDS
        budget, accepted = self.stop_signal.budget(self.cfg.graceful_timeout), 0
        while True:
            self.notify()
            self._note_held(takes_more=False)
            count = 0
            if self._busy() < self.slots:
                count = self._accept_one_each() if budget.allows(accepted) else 0
                accepted += count
                if count:
                    until = time.monotonic() + SETTLE_SECONDS
                elif time.monotonic() > until:
                    return
            super().wait_for_and_dispatch_events(timeout=0 if count else 0.02)

    def _accept_one_each(self) -> int:
        before = self._accepted
        for listener in self.sockets:
            self.accept(listener)
        return self._accepted - before

    def _busy(self) -> int:
        """Return how many connections occupy a thread, or wait for one."""
        return self._running + len(self._ready)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Wait for events; at a stop no longer than idle and silent connections may hold it."""
        if self.goodbyes:
            self.goodbyes.turn()
        if self._ends_at:
            self._hurry_silent()
        if not self._stopped_at:
            if self.alive:
                if self._ready:
                    # There may be more slots than before.
                    with self._dispatching:
                        self._dispatch()
                self._share_queue()
            waits = timeout if self._accepting else _LOOK_AGAIN_SECONDS
            super().wait_for_and_dispatch_events(waits)
            return
        self._note_held(takes_more=False)
        super().wait_for_and_dispatch_events(0.1 if self._busy() or self.pending_conns else 0)
        if not self._busy():
            # A request that was on its way has been taken by now: idle connections may go.
            for conn in self.keepalived_conns:
                conn.timeout = 0.0

    def _hurry_silent(self) -> None:
        """Before the end, wait for those that have sent nothing yet no longer than a stop does."""
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, max(conn.accepted_at, self._ends_at) + conn.patience)
        # gunicorn checks only the first.
        self.pending_conns = deque(sorted(self.pending_conns, key=lambda conn: conn.timeout))

    def enqueue_req(self, conn: Any) -> None:
        """Queue a connection for a thread; a new one once it has sent something."""
        now = time.monotonic()
        if not hasattr(conn, "patience"):
            self._accepted += 1
            conn.patience, conn.accepted_at = admit(conn.sock), now
            has_something = has_spoken(conn.sock)
            if has_something is None:
                self._await_first(conn)
                return
            if not has_something:
                self._forget(conn)
                return
        conn.data_ready = True
        conn.ready_at = now
        self._ready.append(conn)
        with self._dispatching:
            self._dispatch()

    def _await_first(self, conn: Any) -> None:
        """Wait for the first byte, as long as gunicorn does, but never in a thread."""
        silence = gthread.DEFAULT_WORKER_DATA_TIMEOUT + self.cfg.keepalive
        conn.timeout = conn.accepted_at + silence
        self.pending_conns.append(conn)
        on_readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, on_readable)

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """Queue a connection with its first data; its client may also be gone."""
        if has_spoken(client) is False:
            self.pending_conns.remove(conn)
            self.poller.unregister(client)
            self._forget(conn)
        else:
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Queue a kept connection with new data; most clients close it one day."""
        if has_spoken(client) is False:
            self.keepalived_conns.remove(conn)
            self.poller.unregister(client)
            self._forget(conn)
        else:
            super().on_client_socket_readable(conn, client)

    def _forget(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()

    def _dispatch(self) -> None:
        """Pass connections to the pool, as many as may run."""
        while self._ready and self._running < self.slots:
            self._running += 1
            super().enqueue_req(self._ready.popleft())

    def handle(self, conn: Any) -> Any:
        """Serve one connection, known to the thread that hangs up on silent clients."""
        try:
            if not conn.initialized and not isinstance(conn.sock, WatchedSocket):
                conn.sock = WatchedSocket(conn.sock)
            self._open[conn] = conn.patience
            # It could have sent what it owes while it waited; not so with TLS, which begins now.
            since = time.monotonic() if self.cfg.is_ssl else conn.ready_at
            self._due[conn] = since + HEADER_SECONDS
            return super().handle(conn)
        finally:
            conn.patience = SILENCE_SECONDS
            self._open.pop(conn, None)
            self._due.pop(conn, None)
            with self._dispatching:
                self._running -= 1
                # Not in the main thread, which may be busy: this one is free at once.
                self._dispatch()
                self._write_held()

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request, whose header is there."""
        self._due.pop(conn, None)
        return super().handle_request(req, conn)

    def handle_http2(self, conn: Any) -> Any:
        """Serve a connection of HTTP/2, which has its own way to wait."""
        self._due.pop(conn, None)
        return super().handle_http2(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Close or keep a connection."""
        if conn.sock.fileno() < 0:
            # Its thread has closed it: gunicorn would count that twice.
            self.nr_conns -= 1
            return
        was_alive = self.alive
        if _CLOSES_KEPT and not was_alive:
            self.alive = True
        try:
            super().finish_request(conn, fs)
        finally:
            if not was_alive:
                self.alive = False
