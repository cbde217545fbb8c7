"""How long a request has waited, whether its client is still there, and what follows from it.

What only one server knows is in :class:`Arrival`; the rule is
:func:`flask_workersize.runtime.admission.judge`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Protocol
from wsgiref.types import StartResponse, WSGIEnvironment

from ..app_state import is_report_path
from ..runtime.admission import GONE_SECONDS, ProxyClock, Verdict, judge, proxy_seconds
from ..runtime.polling import hung_up
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import State
from ..sizing.settings import SizingSettings
from .proxy import Trust

_JUDGED_KEY = "flask_workersize.waited"


def has_hung_up(connection: socket.socket) -> bool:
    """Return whether the client has closed its side of a connection, as far as that is known."""
    return connection.fileno() < 0 or bool(hung_up([connection]))


class Arrival(Protocol):
    """What a server knows of a request that is about to begin."""

    def waited(self, environ: WSGIEnvironment, /) -> float | None:
        """Return how many seconds it has been ready; ``None`` if not known."""

    def connection(self, environ: WSGIEnvironment) -> socket.socket:
        """Return its connection."""

    def announce_close(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        """Make the response announce that the connection will be closed, and close it then."""


class OverloadGate:
    """Decides, for the meter, whether a request is computed.

    ``patience`` is how many seconds a request may have waited before anything is checked.
    """

    waited: Callable[[WSGIEnvironment], float | None]

    def __init__(self, arrival: Arrival, settings: SizingSettings, board: Scoreboard) -> None:
        self.announce_close = arrival.announce_close
        self.waited = arrival.waited
        self._arrival = arrival
        self._bound = settings.queue_seconds
        self._board = board
        self.patience = min(GONE_SECONDS, self._bound or GONE_SECONDS)
        if settings.trusted_proxy:
            self._trusts = Trust(settings.trusted_proxy)
            self._clock = ProxyClock()
            self.waited = self._waited_with_proxy

    def _waited_with_proxy(self, environ: WSGIEnvironment) -> float | None:
        """Return how long a request has waited, including the proxy's queue if it reports that."""
        waited = self._arrival.waited(environ)
        header = environ.get("HTTP_X_REQUEST_START")
        if header is None or not self._trusts(environ.get("REMOTE_ADDR", "")):
            return waited
        proxied = proxy_seconds(header, time.time())
        if proxied is None:
            return waited
        if waited is None:
            environ[_JUDGED_KEY] = self._clock.excess(proxied, time.monotonic())
            return proxied
        environ[_JUDGED_KEY] = waited
        return max(waited, proxied)

    def judge(self, waited: float, environ: WSGIEnvironment) -> Verdict:
        """Return what to do with a request that has waited."""
        if is_report_path(environ.get("PATH_INFO", "")):
            return Verdict.SERVE
        return judge(
            # If the kernel knows the time, the proxy's is reported, but not used to decide.
            environ.get(_JUDGED_KEY, waited),
            self._bound,
            lambda: has_hung_up(self._arrival.connection(environ)),
            self._board.state >= State.STOPPING,
        )
