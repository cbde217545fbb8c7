"""The health port's server, and the monitor that it runs in."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server
from waitress.trigger import trigger

from ..app_state import WorkerSizingState
from ..health.endpoint import CapacityEndpoint
from ..health.probe import ProbeApp, ProbeRules
from ..log import logger, say
from ..monitor.process import Monitor, Port
from ..monitor.tasks import MakeScaler, make_loop
from ..runtime.deployment import Deployment
from ..runtime.scoreboard import Scoreboard
from ..runtime.threads import start_thread
from .crowd import Quiet, connection_limit, watch_accept
from .listeners import announce, open_listeners, url_of

_OPTIONS: dict[str, Any] = {
    "threads": 2,
    # waitress stops accepting at its limit, and a probe would wait: ours closes the oldest.
    "connection_limit": sys.maxsize,
    # A probe is one short request: reject clients that send more.
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1024,
    "log_socket_errors": False,
    "ident": None,
}


LIFE_SECONDS = 10.0
"""How long a connection lives, whatever it sends or reads: a probe is one short request."""

_FULL_SHARE = 0.9
"""Share of the connection limit above which the oldest connections are closed."""


class _Channel(HTTPChannel):
    """A connection with its opening time, closed after its response."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.opened_at = time.monotonic()

    def service(self) -> None:
        # A client that keeps it would lose the request that is under way when its life is over.
        for request in self.requests:
            headers: Any = request.headers
            headers["CONNECTION"] = "close"
        super().service()


class ProbeServer:
    """waitress over the health port, in a thread of the monitor."""

    def __init__(self, app: ProbeApp, listeners: Sequence[socket.socket]) -> None:
        self._map: Any = {}
        self._trigger = trigger(self._map)
        self._urls = ", ".join(map(url_of, listeners))
        self._server = create_server(app, map=self._map, sockets=listeners, **_OPTIONS)
        for server in [item for item in self._map.values() if isinstance(item, BaseWSGIServer)]:
            server.channel_class = _Channel
            watch_accept(server, self._note_full)
        self._most = int(connection_limit(descriptors_each=1) * _FULL_SHARE)
        self._lacks_descriptor = False
        self._quiet = Quiet()
        self._thread = start_thread("probe", self._run)
        if self._thread is None:
            raise RuntimeError("can't start new thread")

    def _run(self) -> None:
        """Serve; a monitor that cannot answer any more ends, to be replaced."""
        try:
            while self._map:
                wasyncore.loop(timeout=1, use_poll=True, map=self._map, count=1)
                self._hang_up()
        except Exception:
            logger.exception("The health port failed.")
            os._exit(1)

    def _hang_up(self) -> None:
        """Close connections that are too old, and the oldest of too many."""
        # They are in the order in which they were accepted.
        channels = [item for item in self._map.values() if isinstance(item, _Channel)]
        too_many = max(len(channels) - self._most, self._lacks_descriptor)
        too_old = time.monotonic() - LIFE_SECONDS
        self._lacks_descriptor = False
        if too_many > 0 and self._quiet.allows("full"):
            line = f"too many open connections ({len(channels)}), closing the oldest"
            say(logging.WARNING, f"health port {self._urls}: {line}.")
        for number, channel in enumerate(channels):
            if number >= too_many and channel.opened_at > too_old:
                break
            # Not when it can be written to, as waitress does: the client may never read.
            channel.handle_close()

    def _note_full(self, server: Any) -> None:
        self._lacks_descriptor = True
        # If none of them is ours, another part of the process has to close one.
        time.sleep(0.01)

    def close(self) -> None:
        """Close the port and every connection, in the thread that serves them."""
        self._server.task_dispatcher.shutdown(timeout=1)
        self._trigger.pull_trigger(partial(wasyncore.close_all, self._map))
        if self._thread is not None:
            self._thread.join(1)


class HealthPort(Port):
    """The health port of a deployment: where it is, how it is opened, and what answers there."""

    def __init__(self, deployment: Deployment, board: Scoreboard, is_held: bool = True) -> None:
        self._deployment = deployment
        self._board = board
        self.is_held = is_held
        settings = deployment.settings
        address = settings.health_address
        self._addresses = [address] if address else []
        follows = settings.sizing_profile == "learn" or settings.sizing == "adaptive"
        if sys.platform == "win32" and (address or follows):
            say(logging.WARNING, _NO_MONITOR)
            self._addresses = []
        elif address and "GUNICORN_PID" in os.environ:
            # gunicorn's own USR2 starts a second master beside the first, which has the port.
            say(logging.WARNING, "the first gunicorn master keeps the health port until it ends.")
            self._addresses = []

    def open(self) -> list[socket.socket]:
        """Open the listeners; a free port that was found once is opened again the next time."""
        listeners = open_listeners(self._addresses, advice=_ADVICE)
        self._addresses = [url_of(listener).removeprefix("http://") for listener in listeners]
        if listeners:
            # Once, before the fork, it needs less memory than in the monitor.
            with suppress(ImportError):
                from ..health import metrics  # noqa: F401
        return listeners

    def serve(self, listeners: Sequence[socket.socket]) -> AbstractContextManager[object]:
        """Answer probes, in a thread of the monitor."""
        if not listeners:
            return nullcontext()
        # It would be read as the app's: this process has no other waitress.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        deployment, board = self._deployment, self._board
        settings = deployment.settings
        state = WorkerSizingState(deployment.resources, settings, deployment.plan)
        state.deployment, state.board, state.serving = deployment, board, True
        endpoint = CapacityEndpoint(state.report, state.token, is_inside=True)
        app = ProbeApp(endpoint, board.read, ProbeRules(settings.timeout))
        return closing(ProbeServer(app, listeners))

    def announce(self) -> None:
        """Log its address, and whether it is open to all."""
        hosts = {address.rpartition(":")[0] for address in self._addresses}
        note = " (open to all; NOW_LMS_HEALTH_HOST limits it)" if hosts & _EVERYWHERE else ""
        announce("Health port", [f"http://{address}" for address in self._addresses], note)


_EVERYWHERE = {"0.0.0.0", "[::]", "[::ffff:0.0.0.0]"}
"""Hosts that stand for every interface."""

_ADVICE = "choose another with NOW_LMS_HEALTH_PORT or NOW_LMS_HEALTH_HOST."
_NO_MONITOR = (
    "Windows cannot fork the monitor: NOW_LMS_HEALTH_PORT, the memory guard, "
    "NOW_LMS_SIZING=adaptive and NOW_LMS_SIZING_PROFILE=learn have no effect."
)


def make_monitor(
    deployment: Deployment,
    board: Scoreboard,
    port: HealthPort,
    make_scaler: MakeScaler,
    settle: Callable[[], None] = lambda: None,
) -> Monitor:
    """Make the monitor of a deployment; it is not started yet."""
    return Monitor(
        board,
        partial(make_loop, deployment, board, make_scaler, os.getpid()),
        port,
        settle,
    )
