"""The health port: a small WSGI app that needs no worker, and tells live from ready."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from werkzeug.wrappers import Response

from ..runtime.snapshot import GuardState, Snapshot, State, WorkerStats
from ..sizing.settings import DEFAULT_HEALTH_URL
from .endpoint import METHODS, METRICS_SUFFIX, CapacityEndpoint, respond

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@dataclass(frozen=True)
class ProbeRules:
    """When a server counts as live and as ready.

    :param timeout_seconds: how long a worker may make no progress; 0 is for ever
    :param saturated_seconds: how long every slot may be busy before the server is not ready;
        ``None`` is for ever
    """

    timeout_seconds: float
    saturated_seconds: float | None = None

    def is_stuck(self, row: WorkerStats) -> bool:
        """Return whether a worker makes no progress.

        One that has a free slot is stuck if its main loop is silent; one that has none, if each of
        its requests has run for longer than the timeout.
        """
        if not self.timeout_seconds:
            return False
        if row.is_ready and row.busy >= row.slots:
            return min(row.running_seconds) > self.timeout_seconds
        return row.silent_seconds > self.timeout_seconds

    def not_live(self, snapshot: Snapshot) -> str | None:
        """Return why a server has to be started again; ``None`` if it is live."""
        if not snapshot.workers:
            return "no worker runs" if snapshot.state is State.SERVING else None
        if all(map(self.is_stuck, snapshot.workers)):
            return "no worker makes progress"
        return None

    def not_ready(self, snapshot: Snapshot, saturated_seconds: float) -> str | None:
        """Return why a server should get no new requests; ``None`` if it is ready.

        :param snapshot: the scoreboard
        :param saturated_seconds: for how long every slot has been busy
        """
        if snapshot.state is not State.SERVING:
            return snapshot.state.name.lower()
        if not snapshot.ready:
            return "no worker is ready"
        if snapshot.guard is GuardState.CRITICAL:
            return "memory"
        if self.saturated_seconds is not None and saturated_seconds > self.saturated_seconds:
            return "saturated"
        return self.not_live(snapshot)


class ProbeApp:
    """Answers ``/live``, ``/ready``, the report and its metrics.

    :param endpoint: answers the report and its metrics
    :param look: returns the scoreboard
    :param saturated_seconds: returns for how long every slot has been busy
    :param rules: when a server is live and ready
    """

    def __init__(
        self,
        endpoint: CapacityEndpoint,
        look: Callable[[], Snapshot],
        saturated_seconds: Callable[[], float],
        rules: ProbeRules,
    ) -> None:
        self._look = look
        self._saturated_seconds = saturated_seconds
        self._rules = rules
        self._answers: dict[str, Callable[[WSGIEnvironment], Response]] = {
            "/live": self._live,
            "/ready": self._ready,
            "/metrics": endpoint.metrics,
            DEFAULT_HEALTH_URL: endpoint.report,
            DEFAULT_HEALTH_URL + METRICS_SUFFIX: endpoint.metrics,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer = self._answers.get(environ.get("PATH_INFO", ""))
        if answer is None:
            told = respond(json.dumps({"paths": list(self._answers)}), 404)
        elif environ["REQUEST_METHOD"] not in METHODS:
            told = respond(json.dumps({"methods": METHODS}), 405, Allow=", ".join(METHODS))
        else:
            told = answer(environ)
        return told(environ, start_response)

    def _live(self, environ: WSGIEnvironment) -> Response:
        return self._verdict(snapshot := self._look(), self._rules.not_live(snapshot))

    def _ready(self, environ: WSGIEnvironment) -> Response:
        snapshot = self._look()
        return self._verdict(snapshot, self._rules.not_ready(snapshot, self._saturated_seconds()))

    def _verdict(self, snapshot: Snapshot, reason: str | None) -> Response:
        told = {
            "status": "fail" if reason else "pass",
            "reason": reason,
            "workers_alive": len(snapshot.workers),
            "workers_ready": len(snapshot.ready),
            "workers_stuck": sum(map(self._rules.is_stuck, snapshot.workers)),
        }
        return respond(json.dumps(told), 503 if reason else 200)
