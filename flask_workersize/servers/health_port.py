"""The health port's server, and the monitor that it runs in."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.server import create_server
from waitress.trigger import trigger

from ..app_state import report_of
from ..health.endpoint import CapacityEndpoint
from ..health.probe import ProbeApp, ProbeRules
from ..log import logger, say
from ..monitor.process import Monitor
from ..monitor.tasks import MakeScaler, make_loop
from ..runtime.deployment import Deployment
from ..runtime.scoreboard import Scoreboard
from .listeners import close_listeners, open_listeners, url_of

_OPTIONS: dict[str, Any] = {
    "threads": 2,
    # A probe is one short request: a client that takes longer, or sends more, is none.
    "channel_timeout": 10,
    "cleanup_interval": 2,
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1024,
    "asyncore_use_poll": True,
    "log_socket_errors": False,
    "ident": None,
}
_MOST_CONNECTIONS = 1000
"""100 silent ones need a few hundred KB."""


class ProbeServer:
    """waitress over the health port, in a thread of the monitor."""

    def __init__(self, app: ProbeApp, listeners: list[socket.socket]) -> None:
        self._map: Any = {}
        self._trigger = trigger(self._map)
        self._server = create_server(
            app,
            map=self._map,
            sockets=listeners,
            connection_limit=_MOST_CONNECTIONS,
            **_OPTIONS,
        )
        self._thread = threading.Thread(target=self._run, name="workersize-probe", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Serve; a monitor that cannot answer any more makes room for the next one."""
        try:
            self._server.run()
        except Exception:
            logger.exception("The health port failed.")
            os._exit(1)

    def close(self) -> None:
        """Close the port and every connection, in the thread that serves them."""
        self._server.task_dispatcher.shutdown(timeout=1)
        self._trigger.pull_trigger(partial(wasyncore.close_all, self._map))
        self._thread.join(1)


class HealthPort:
    """The listeners of the health port: the master keeps them for a monitor that takes over."""

    def __init__(self, deployment: Deployment) -> None:
        address = deployment.settings.health_address
        if address and "GUNICORN_PID" in os.environ:
            # gunicorn's own USR2 starts a second master beside the first, which has the port.
            say(logging.WARNING, "the health port stays with the first master until that ends.")
            address = None
        self.listeners = open_listeners([address], advice=_ADVICE) if address else []
        if address:
            # Once, before the fork, it needs less memory than in the monitor.
            with suppress(ImportError):
                from ..health import metrics  # noqa: F401

    def close(self) -> None:
        """Close it, in a process that is not the monitor."""
        close_listeners(self.listeners)

    def announce(self) -> None:
        """Log where it is."""
        if self.listeners:
            say(logging.INFO, f"Health port on {', '.join(map(url_of, self.listeners))}")


_ADVICE = "choose another one with NOW_LMS_HEALTH_PORT or NOW_LMS_HEALTH_HOST."


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
        partial(_open_probe, deployment, board, port),
        settle,
        kept=port.listeners,
    )


def _open_probe(
    deployment: Deployment, board: Scoreboard, port: HealthPort
) -> AbstractContextManager[object]:
    if not port.listeners:
        return ExitStack()
    # It would be read as the app's: this process has no other waitress.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    settings = deployment.settings
    endpoint = CapacityEndpoint(
        partial(report_of, deployment, board), lambda: settings.health_token, is_inside=True
    )
    app = ProbeApp(endpoint, board.read, ProbeRules(settings.timeout))
    return closing(ProbeServer(app, port.listeners))
