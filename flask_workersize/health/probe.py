"""The health port: a small WSGI app that needs no worker, and separates live from ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.wrappers import Response

from ..runtime.snapshot import GuardState, Snapshot, State, WorkerStats
from ..sizing.settings import DEFAULT_HEALTH_URL
from .endpoint import METHODS, Answer, CapacityEndpoint, respond_json


@dataclass(frozen=True)
class ProbeRules:
    """When a server counts as live and as ready.

    A worker may make no progress for ``timeout_seconds``; 0 for no limit.
    """

    timeout_seconds: float

    def is_stuck(self, row: WorkerStats) -> bool:
        """Return whether a worker makes no progress.

        One that runs fewer requests than it has slots is stuck if its main loop is silent; one that
        runs as many, if each of them has run for longer than the timeout.
        """
        if not self.timeout_seconds:
            return False
        if row.is_ready and len(row.running_seconds) >= row.slots:
            return min(row.running_seconds) > self.timeout_seconds
        return row.silent_seconds > self.timeout_seconds

    def not_live(self, snapshot: Snapshot) -> str | None:
        """Return why a server has to be restarted; ``None`` if it is live."""
        if not snapshot.workers:
            return "no worker runs" if snapshot.state is State.SERVING else None
        if all(map(self.is_stuck, snapshot.workers)):
            return "no worker makes progress"
        return None

    def not_ready(self, snapshot: Snapshot) -> str | None:
        """Return why a server should get no new requests; ``None`` if it is ready."""
        if snapshot.state is not State.SERVING:
            return snapshot.state.name.lower()
        if not snapshot.ready:
            return "no worker is ready"
        if snapshot.guard is GuardState.CRITICAL:
            return "memory"
        return self.not_live(snapshot)


class ProbeApp:
    """Answers ``/live``, ``/ready``, the report and its metrics."""

    def __init__(
        self, endpoint: CapacityEndpoint, read: Callable[[], Snapshot], rules: ProbeRules
    ) -> None:
        self._read = read
        self._rules = rules
        self._answers: dict[str, Answer] = {
            "/live": lambda environ: self._verdict(rules.not_live),
            "/ready": lambda environ: self._verdict(rules.not_ready),
            "/metrics": endpoint.metrics,
            **endpoint.answers(DEFAULT_HEALTH_URL),
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer = self._answers.get(environ.get("PATH_INFO", ""))
        if answer is None:
            told = respond_json({"paths": list(self._answers)}, 404)
        elif environ["REQUEST_METHOD"] not in METHODS:
            told = respond_json({"methods": METHODS}, 405, Allow=", ".join(METHODS))
        else:
            told = answer(environ)
        return told(environ, start_response)

    def _verdict(self, rule: Callable[[Snapshot], str | None]) -> Response:
        snapshot = self._read()
        reason = rule(snapshot)
        told = {
            "status": "fail" if reason else "pass",
            "reason": reason,
            "workers_alive": len(snapshot.workers),
            "workers_ready": len(snapshot.ready),
            "workers_stuck": sum(map(self._rules.is_stuck, snapshot.workers)),
        }
        return respond_json(told, 503 if reason else 200)
