"""Run an app under waitress.

Everything that is not a documented interface of waitress is in this module;
tests/servers/test_canary.py names it.
"""

from __future__ import annotations

import logging
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server

from ...errors import WorkerSizeConfigError
from ...log import say
from ...monitor.process import Monitor
from ...monitor.scaling import NullScaler
from ...runtime.deployment import Deployment
from ...runtime.meter import Meter
from ...runtime.scoreboard import Scoreboard
from ...runtime.snapshot import State
from ...sizing.sources import options_key
from .. import systemd
from ..health_port import HealthPort, make_monitor
from ..listeners import close_listeners, open_listeners, remove_socket_file, url_of
from ..proxy import trusting
from ..stopping import SETTLE_SECONDS, SILENCE_SECONDS, block_new_connections

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from flask import Flask

HUP_NOTE = "HUP is ignored: waitress has one process and cannot load new code. Restart the service."


OUT_OF_MEMORY_STATUS = 75
"""Exit status of a server that ended before the kernel would have ended it (sysexits.h,
"EX_TEMPFAIL": try again)."""


def run(app: Flask, deployment: Deployment, board: Scoreboard, options: Mapping[str, Any]) -> None:
    """Serve until SIGTERM or Ctrl-C, then until what was accepted is answered.

    :param app: the app
    :param deployment: what was decided
    :param options: waitress' adjustments, checked
    :raises WorkerSizeConfigError: if an option of waitress is not valid
    :raises WorkerSizeStartError: if an address cannot be had
    :raises SystemExit: 75, where the memory guard has asked for it
    """
    settings = deployment.settings
    inherited = systemd.take_inherited()
    listeners: list[socket.socket] = []
    port = HealthPort(deployment)
    monitor = make_monitor(deployment, board, port, NullScaler)
    monitor.start()
    try:
        listeners = inherited or open_listeners(settings.addresses)
        server = _Server(trusting(app, settings), listeners, options, board)
        deployment.announce()
        port.announce()
        say(logging.INFO, f"Serving on {', '.join(map(url_of, listeners))}")
        with server.obeying_signals(settings.drain_seconds):
            server.run(monitor)
            # What systemd has handed over stays open there: the next server takes its queue.
            server.stop(settings.graceful_timeout, drain=not inherited)
    finally:
        monitor.stop()
        port.close()
        close_listeners(listeners, remove=not inherited)
    if board.is_exit_asked:
        raise SystemExit(OUT_OF_MEMORY_STATUS)


class _Channel(HTTPChannel):
    """A connection; once the server stops, its next response says that it will be closed."""

    server: Any

    def __init__(self, server: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(server, *args, **kwargs)
        server.accepted += 1

    def service(self) -> None:
        self.server.note_queue()
        if self.server.stopping:
            self.say_close()
        super().service()

    def say_close(self) -> None:
        for request in self.requests:
            headers: Any = request.headers
            headers["CONNECTION"] = "close"

    def is_busy(self, stopped_at: float) -> bool:
        """Return whether the stop has to wait for this connection.

        It does for a request that is queued or running and for output that is not sent, and a
        short while for a client that has sent nothing yet, or half a request.
        """
        if self.requests or self.total_outbufs_len or self.close_when_flushed:
            return True
        is_new = self.last_activity == self.creation_time
        silent_since = max(stopped_at, self.last_activity)
        waits = is_new or self.request is not None
        return bool(waits and time.time() < silent_since + SILENCE_SECONDS)


class _Server:
    """waitress' loop, which ends when it is asked to, and can go on until all is answered."""

    def __init__(
        self,
        wsgi: WSGIApplication,
        listeners: list[socket.socket],
        options: Mapping[str, Any],
        board: Scoreboard,
    ) -> None:
        self._map: dict[int, Any] = {}
        self._board = board
        row = board.allocate(1)
        assert row is not None
        self._row = row
        row.enter()
        metered = Meter(wsgi, row, hands_files_over=True)
        try:
            created = create_server(metered, map=self._map, sockets=listeners, **options)
        except ValueError as error:
            raise WorkerSizeConfigError(
                f"waitress refuses these settings: {error} Correct the addresses, or app.config "
                f"{options_key('waitress')}."
            ) from None
        self._threads = created.task_dispatcher
        self._use_poll = created.adj.asyncore_use_poll
        self._sockets = listeners
        self._servers: list[Any] = [
            item for item in self._map.values() if isinstance(item, BaseWSGIServer)
        ]
        for server in self._servers:
            server.channel_class = _Channel
            server.stopping = False
            server.accepted = 0
            server.note_queue = self._note_queue
        self._asked = 0
        self._drain_seconds = 0
        self._drain_until: float | None = None
        board.set_listeners(listeners)

    @contextmanager
    def obeying_signals(self, drain_seconds: int) -> Iterator[None]:
        """Take the signals that are the server's, and give them back at the end.

        :param drain_seconds: for how long to go on serving after SIGTERM
        """
        self._drain_seconds = drain_seconds
        handlers: dict[int, Any] = {signal.SIGTERM: self._ask, signal.SIGINT: self._ask}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = lambda signum, frame: say(logging.WARNING, HUP_NOTE)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, monitor: Monitor) -> None:
        """Serve until SIGTERM or Ctrl-C, and keep the monitor."""
        systemd.notify("READY=1")
        self._row.set_ready()
        self._board.state = State.SERVING
        while not self._asked:
            monitor.keep()
            if self._drain_until is None:
                self._turn(1.0)
                continue
            if self._board.state is State.SERVING:
                self._board.state = State.DRAINING
                systemd.notify("STOPPING=1")
                say(logging.INFO, f"Draining for {self._drain_seconds} s")
            left = self._drain_until - time.monotonic()
            if left <= 0:
                return
            self._turn(min(1.0, left))

    def _ask(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGTERM and self._drain_seconds and self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_seconds
        elif not self._asked:
            self._asked = 1
        elif signum == signal.SIGINT:
            # A second SIGTERM changes nothing, but a person who does not want to wait does.
            self._asked = 2
        self._servers[0].pull_trigger()

    def _note_queue(self) -> None:
        """Write down how many requests wait for a thread; whoever has looked last is right."""
        self._board.task_queue = len(self._threads.queue)

    def _turn(self, seconds: float) -> None:
        self._row.beat()
        self._note_queue()
        wasyncore.loop(timeout=seconds, use_poll=self._use_poll, map=self._map, count=1)

    def stop(self, graceful_timeout: float, drain: bool) -> None:
        """Serve what was accepted, and what the kernel has queued, then end.

        :param graceful_timeout: seconds this may take
        :param drain: whether to serve what is queued; not where the next server takes the queue
        """
        self._board.state = State.STOPPING
        systemd.notify("STOPPING=1")
        stopped_at = time.time()
        deadline = stopped_at + graceful_timeout
        for server in self._servers:
            server.stopping = True
        for channel in self._channels():
            channel.say_close()
        if drain:
            for listener in self._sockets:
                remove_socket_file(listener)
            self._drain(block_new_connections(self._sockets), deadline)
        for server in self._servers:
            wasyncore.dispatcher.close(server)
        while self._may_go_on(deadline) and self._is_busy(stopped_at):
            self._turn(0.1)
        # What still runs gets no more time; the threads that are idle end at once.
        left = 0 if self._asked > 1 else deadline - time.time()
        self._threads.shutdown(timeout=1 if left > 1 else 0)

    def _may_go_on(self, deadline: float) -> bool:
        return self._asked < 2 and time.time() < deadline

    def _drain(self, at_most: int, deadline: float) -> None:
        """Accept what is queued, and what is about to be; the threads serve meanwhile."""
        stopped_at = time.time()
        start = self._accepted()
        while self._may_go_on(deadline) and self._accepted() - start < at_most:
            if time.time() > stopped_at + SETTLE_SECONDS and not self._is_queued():
                return
            if any(server.in_connection_overflow for server in self._servers):
                self._close_idle(stopped_at)
            self._turn(0.05)

    def _is_queued(self) -> bool:
        return bool(select.select(self._sockets, [], [], 0)[0])

    def _close_idle(self, stopped_at: float) -> None:
        """Make room for who waits at the limit of connections."""
        for channel in self._channels():
            if not channel.is_busy(stopped_at):
                channel.will_close = True

    def _accepted(self) -> int:
        return sum(server.accepted for server in self._servers)

    def _channels(self) -> list[_Channel]:
        return [channel for server in self._servers for channel in server.active_channels.values()]

    def _is_busy(self, stopped_at: float) -> bool:
        if any(channel.is_busy(stopped_at) for channel in self._channels()):
            return True
        # A request that was on its way on an idle connection is taken along.
        self._turn(0)
        return any(channel.is_busy(stopped_at) for channel in self._channels())
