"""Run an app under waitress.

Everything that is not a documented interface of waitress is in this module;
tests/servers/test_canary_stopping.py names it.
"""

from __future__ import annotations

import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from wsgiref.types import WSGIApplication

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server

from ...errors import WorkerSizeConfigError
from ...log import say, say_if_read
from ...monitor.scaling import Scaler
from ...runtime.deployment import Deployment
from ...runtime.meter import Meter
from ...runtime.polling import hung_up, wait_readable
from ...runtime.scoreboard import Scoreboard
from ...runtime.snapshot import State
from ...sizing.settings import SizingSettings
from .. import systemd
from ..app_import import LoadApp
from ..crowd import Quiet, quiet_waitress, watch_accept
from ..ending import STUCK_SECONDS, process_end
from ..health_port import HealthPort, make_monitor
from ..listeners import announce, close_listeners, open_listeners, remove_socket_file, url_of
from ..overload import OverloadGate
from ..proxy import note_kept_connections
from ..silence import HEADER_SECONDS, established_at, has_spoken
from ..stopping import SETTLE_SECONDS, admit, block_new_connections
from ..temporary import open_temporary, use_shared_memory
from .arrival import Task, TimedParser, WaitressArrival, announce_close
from .options import WHERE

OUT_OF_MEMORY_STATUS = 75
"""Exit status of a server that ended before the kernel would have ended it (sysexits.h,
"EX_TEMPFAIL": try again)."""

_NO_DESCRIPTOR = (
    "out of file descriptors: new connections wait. Raise the limit on open files (ulimit -n, "
    "LimitNOFILE=)."
)
_GONE_LOOK_SECONDS = 0.25
"""How often waiting clients are checked for closed connections."""

_HUP = "HUP ignored: waitress has one process and cannot load new code. Restart the service."


def run(load: LoadApp, deployment: Deployment, board: Scoreboard, options: dict[str, Any]) -> None:
    """Serve until SIGTERM or Ctrl-C, then until what was accepted is answered."""
    settings = deployment.settings
    quiet_waitress()
    use_shared_memory()
    # Without one waitress would reset larger uploads.
    open_temporary("waitress", "uploads above 512 KiB").close()
    # A second Ctrl-C may come while the monitor ends.
    with ExitStack() as signals, ExitStack() as stack:
        port = HealthPort(deployment, board)
        monitor = make_monitor(deployment, board, port, Scaler)
        stack.callback(monitor.stop)
        monitor.start()
        inherited = systemd.take_inherited()
        listeners = inherited or open_listeners(settings.addresses)
        stack.callback(close_listeners, listeners, remove=not inherited)
        server = _Server(load(), listeners, options, board, settings)
        _handle_signals(server, signals)
        deployment.announce()
        port.announce()
        announce("Serving", [url_of(listener) for listener in listeners])
        note_kept_connections(settings, options["channel_timeout"], "NOW_LMS_TIMEOUT")
        server.run(monitor.keep)
        if board.is_exit_asked:
            process_end.status = OUT_OF_MEMORY_STATUS
        # What systemd has passed on stays open there: the next server takes its queue.
        server.stop(drains=not inherited)
    if board.is_exit_asked:
        raise SystemExit(OUT_OF_MEMORY_STATUS)


def _handle_signals(server: _Server, stack: ExitStack) -> None:
    """Let the server handle its signals until the stack is unwound, also those the app blocked."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if sys.platform != "win32":
        numbers.append(signal.SIGHUP)
    for number in numbers:
        stack.callback(signal.signal, number, signal.signal(number, server.handle_signal))
    if sys.platform != "win32":
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)


class _Channel(HTTPChannel):
    """A connection; its next response announces that it will be closed once the server stops.

    So it does at the limit of connections, while others wait.
    """

    server: Any
    task_class = Task
    parser_class = TimedParser
    is_gone = False
    """Whether its client has closed it, or its half of it, while its request waited."""

    def __init__(self, server: Any, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self._patience = admit(sock)
        self._begun_at = established_at(sock)
        super().__init__(server, sock, *args, **kwargs)

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self._begun_at = time.monotonic()
        return super().received(data)

    def owes_header(self) -> bool:
        """Return whether a header is due that could be here by now: also a new client's first."""
        if self.requests or time.monotonic() < self._begun_at + HEADER_SECONDS:
            return False
        is_new = self.last_activity == self.creation_time
        is_owed = is_new if self.request is None else not self.request.headers_finished
        return is_owed and self.socket is not None and has_spoken(self.socket) is None

    def service(self) -> None:
        owner: _Server = self.server.owner
        owner.note_queue()
        if owner.stopped_at or owner.is_crowded():
            self.announce_close()
        super().service()

    def announce_close(self) -> None:
        for request in self.requests:
            announce_close(request)

    def is_busy(self) -> bool:
        """Return whether the stop has to wait for this connection.

        It does for a request that is queued or running and for output that is not sent, and a
        short while for a client that has sent nothing yet, or half a request.
        """
        if self.requests or self.total_outbufs_len or self.close_when_flushed:
            return True
        is_new = self.last_activity == self.creation_time
        silent_since = max(self.server.owner.stopped_at, self.last_activity)
        waits = is_new or self.request is not None
        return bool(waits and time.time() < silent_since + self._patience)


class _Server:
    """waitress' loop, a turn at a time, until all is answered."""

    def __init__(
        self,
        wsgi: WSGIApplication,
        listeners: list[socket.socket],
        options: Mapping[str, Any],
        board: Scoreboard,
        settings: SizingSettings,
    ) -> None:
        self._map: dict[int, Any] = {}
        self._board = board
        self._listeners = listeners
        self._settings = settings
        self._serves_until = self._deadline = math.inf
        self._watchdog = systemd.Watchdog(board, settings.timeout)
        self._keep_monitor: Callable[[], None] = lambda: None
        self._paused: list[Any] = []
        self._quiet = Quiet()
        self.stopped_at = 0.0
        self._look_for_gone_at = 0.0
        self._has_gone = False
        self._has_hup = self._is_woken = False
        row = board.allocate(1)
        assert row is not None
        self._row = row
        row.enter()
        gate = OverloadGate(WaitressArrival(), settings, board)
        metered = Meter(wsgi, row, hands_files_over=True, gate=gate)
        try:
            created = create_server(metered, map=self._map, sockets=listeners, **options)
        except ValueError as error:
            raise WorkerSizeConfigError(
                f"waitress refuses these addresses or {WHERE}: {error}"
            ) from None
        self._threads = created.task_dispatcher
        self._thread_count = options["threads"]
        self._use_poll = created.adj.asyncore_use_poll
        self._servers: list[Any] = [
            item for item in self._map.values() if isinstance(item, BaseWSGIServer)
        ]
        for server in self._servers:
            server.channel_class = _Channel
            server.owner = self
            watch_accept(server, self._pause)
        board.set_listeners(listeners)

    def note_queue(self) -> None:
        """Record how many requests wait for a thread; the latest writer is right.

        Those whose client has gone count no more.
        """
        queue: Any = self._threads.queue
        count = len(queue)
        if self._has_gone:
            with self._threads.lock:
                count = sum(not channel.is_gone for channel in queue)
        self._board.task_queue = count

    def _look_for_gone(self) -> None:
        now = time.monotonic()
        if now < self._look_for_gone_at:
            return
        self._look_for_gone_at = now + _GONE_LOOK_SECONDS
        queue: Any = self._threads.queue
        with self._threads.lock:
            waiting = {channel.socket: channel for channel in queue}
        for connection in hung_up(waiting):
            waiting[connection].is_gone = True
        self._has_gone = any(channel.is_gone for channel in waiting.values())

    def handle_signal(self, signum: int, frame: Any) -> None:
        """Note what a signal requests: to drain, to stop, to stop at once.

        It logs nothing: it may have interrupted another line, or stand behind a reader that has
        stopped reading.
        """
        drain_seconds = self._settings.drain_seconds
        if signum not in (signal.SIGTERM, signal.SIGINT):
            self._has_hup = True
        elif signum == signal.SIGTERM and drain_seconds and self._serves_until == math.inf:
            self._serves_until = time.monotonic() + drain_seconds
        elif self._serves_until:
            self._serves_until = 0.0
        elif signum == signal.SIGINT:
            # A second SIGTERM changes nothing, but a person who does not want to wait does.
            self._deadline = 0.0
        if not self.stopped_at and self._serves_until < math.inf:
            left = max(0.0, self._serves_until - time.monotonic())
            self._bound_end(left + self._settings.graceful_timeout)
        elif not self._deadline:
            process_end.hurry(margin=STUCK_SECONDS)
        if not self._is_woken:
            # Once a turn: a pipe that is never emptied would block this one day.
            self._is_woken = True
            self._servers[0].pull_trigger()

    def _bound_end(self, seconds: float) -> None:
        process_end.start(seconds, margin=STUCK_SECONDS)

    def run(self, keep_monitor: Callable[[], None]) -> None:
        """Serve until a signal ends it."""
        self._keep_monitor = keep_monitor
        systemd.notify("READY=1")
        self._row.set_ready()
        self._board.state = State.SERVING
        while (left := self._serves_until - time.monotonic()) > 0:
            if left < math.inf and self._board.state is State.SERVING:
                self._board.state = State.DRAINING
                systemd.notify("STOPPING=1")
                say_if_read(logging.INFO, f"Draining for {self._settings.drain_seconds} s")
            self._turn(min(1.0, left))

    def _turn(self, seconds: float) -> None:
        self._keep_monitor()
        if self._board.threads != self._thread_count:
            self._thread_count = self._board.threads
            self._threads.set_thread_count(self._thread_count)
        self._row.beat()
        self._watchdog.beat()
        self._look_for_gone()
        self.note_queue()
        self._is_woken = False
        if self._has_hup:
            self._has_hup = False
            say_if_read(logging.WARNING, _HUP)
        paused, self._paused = self._paused, []
        seconds = min(seconds, self._watchdog.turn_seconds)
        wasyncore.loop(timeout=seconds, use_poll=self._use_poll, map=self._map, count=1)
        for server in paused:
            server.accepting = True
        self._hang_up_late()
        for channel in self._channels():
            if channel.will_close:
                # waitress waits until it can write once more, but the client may never read.
                channel.handle_close()

    def is_crowded(self) -> bool:
        """Return whether clients wait at the limit of connections."""
        is_full = any(server.in_connection_overflow for server in self._servers)
        return is_full and bool(wait_readable(self._listeners, 0))

    def _hang_up_late(self) -> None:
        """At the limit of connections, close those that keep others out without a request."""
        if not self.stopped_at and self.is_crowded():
            for channel in self._channels():
                channel.will_close |= channel.owes_header()

    def _pause(self, server: Any) -> None:
        """Accept nothing for a turn: no descriptor is left, so trying at once would not help."""
        server.accepting = False
        self._paused.append(server)
        if self._quiet.allows(_NO_DESCRIPTOR):
            say(logging.WARNING, _NO_DESCRIPTOR)

    def stop(self, drains: bool) -> None:
        """Serve what was accepted and, if it is ours, what the kernel has queued; then end."""
        self._board.state = State.STOPPING
        systemd.notify("STOPPING=1")
        self.stopped_at = time.time()
        graceful_timeout = self._settings.graceful_timeout
        if self._deadline:
            self._bound_end(graceful_timeout)
        self._deadline = min(self._deadline, self.stopped_at + graceful_timeout)
        for channel in self._channels():
            channel.announce_close()
        if drains:
            for listener in self._listeners:
                remove_socket_file(listener)
            # Under load a queue that can still grow may never be empty.
            share = 1 if block_new_connections(self._listeners) else 0.5
            self._accept_queued(self.stopped_at + share * graceful_timeout)
        for server in self._servers:
            wasyncore.dispatcher.close(server)
        while time.time() < self._deadline and self._is_busy():
            self._turn(0.1)
        # What still runs gets no more time; the threads that are idle end at once.
        self._threads.shutdown(timeout=1 if time.time() < self._deadline else 0)

    def _accept_queued(self, until: float) -> None:
        """Accept what is queued, and what is about to be, while the threads serve."""
        while time.time() < min(until, self._deadline):
            is_queued = wait_readable(self._listeners, 0)
            if time.time() > self.stopped_at + SETTLE_SECONDS and not is_queued:
                return
            if any(server.in_connection_overflow for server in self._servers):
                # Make room for those that wait at the limit of connections.
                for channel in self._channels():
                    channel.will_close |= not channel.is_busy()
            self._turn(0.05)

    def _channels(self) -> list[_Channel]:
        return [channel for server in self._servers for channel in server.active_channels.values()]

    def _is_busy(self) -> bool:
        if any(channel.is_busy() for channel in self._channels()):
            return True
        # A request that was on its way on an idle connection is taken along.
        self._turn(0)
        return any(channel.is_busy() for channel in self._channels())
