"""The health port's server, and the monitor that it runs in."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.server import create_server
from waitress.trigger import trigger

from ..app_state import WorkerSizingState
from ..health.endpoint import CapacityEndpoint
from ..health.probe import ProbeApp, ProbeRules
from ..log import logger, say
from ..monitor.process import Monitor
from ..monitor.tasks import MakeScaler, make_loop
from ..runtime.deployment import Deployment
from ..runtime.scoreboard import Scoreboard
from ..sizing.settings import SizingSettings
from .listeners import open_listeners

_OPTIONS: dict[str, Any] = {
    "threads": 2,
    # 100 silent ones need a few hundred KB.
    "connection_limit": 1000,
    # A probe is one short request: a client that takes longer, or sends more, is none.
    "channel_timeout": 10,
    "cleanup_interval": 2,
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1024,
    "asyncore_use_poll": True,
    "log_socket_errors": False,
    "ident": None,
}


class ProbeServer:
    """waitress over the health port, in a thread of the monitor."""

    def __init__(self, app: ProbeApp, listeners: Sequence[socket.socket]) -> None:
        self._map: Any = {}
        self._trigger = trigger(self._map)
        self._server = create_server(app, map=self._map, sockets=listeners, **_OPTIONS)
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


def open_health_port(settings: SizingSettings) -> list[socket.socket]:
    """Open the health port: the master keeps its listeners for a monitor that takes over."""
    address = settings.health_address
    if sys.platform == "win32" and (address or settings.sizing_profile == "learn"):
        say(logging.WARNING, _NO_MONITOR)
        return []
    if not address:
        return []
    if "GUNICORN_PID" in os.environ:
        # gunicorn's own USR2 starts a second master beside the first, which has the port.
        say(logging.WARNING, "the health port stays with the first master until that ends.")
        return []
    # Once, before the fork, it needs less memory than in the monitor.
    with suppress(ImportError):
        from ..health import metrics  # noqa: F401
    return open_listeners([address], advice=_ADVICE)


_ADVICE = "choose another one with NOW_LMS_HEALTH_PORT or NOW_LMS_HEALTH_HOST."
_NO_MONITOR = (
    "Windows cannot fork the monitor: NOW_LMS_HEALTH_PORT, the memory guard and "
    "NOW_LMS_SIZING_PROFILE=learn have no effect."
)


def make_monitor(
    deployment: Deployment,
    board: Scoreboard,
    port: Sequence[socket.socket],
    make_scaler: MakeScaler,
    settle: Callable[[], None] = lambda: None,
) -> Monitor:
    """Make the monitor of a deployment; it is not started yet."""
    return Monitor(
        board,
        partial(make_loop, deployment, board, make_scaler, os.getpid()),
        partial(_open_probe, deployment, board, port),
        settle,
        kept=port,
    )


def _open_probe(
    deployment: Deployment, board: Scoreboard, port: Sequence[socket.socket]
) -> AbstractContextManager[object]:
    if not port:
        return ExitStack()
    # It would be read as the app's: this process has no other waitress.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    settings, plan = deployment.settings, deployment.plan
    state = WorkerSizingState(deployment.resources, settings, plan)
    state.deployment, state.board, state.serving = deployment, board, True
    endpoint = CapacityEndpoint(state.report, state.token, is_inside=True)
    app = ProbeApp(endpoint, board.read, ProbeRules(settings.timeout))
    return closing(ProbeServer(app, port))
