"""What is answered on the paths of the report, whichever server asks."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import WorkerSizeConfigError
from ..runtime.meter import SLOT_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from pydantic import SecretStr

    from .report import CapacityReport

METRICS_SUFFIX = "/metrics"
"""What stands behind the path of the report where Prometheus asks."""

METHODS = ("GET", "HEAD")


class ReportMaker(Protocol):
    """Makes the report."""

    def __call__(self, *, details: bool, live: bool, asking: int | None) -> CapacityReport:
        """Make the report.

        :param details: whether to tell what only the token opens
        :param live: whether to tell what is happening now
        :param asking: the slot of the request that asks, which does not count as busy
        :raises WorkerSizeConfigError: if the settings are not valid
        """


@dataclass(frozen=True)
class Answer:
    """A response, before a framework or a server has it.

    :param status: the status line
    :param body: the body
    :param content_type: its type
    :param more: further headers
    """

    status: str
    body: bytes
    content_type: str = "application/json"
    more: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_json(cls, status: str, told: Mapping[str, Any], *more: tuple[str, str]) -> Answer:
        """Make an answer in JSON, with further headers."""
        return cls(status, json.dumps(told).encode(), more=more)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All its headers; it may not be stored."""
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            *self.more,
        ]

    def send(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a WSGI request."""
        start_response(self.status, self.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


class CapacityEndpoint:
    """Answers the report to anyone, and its details to who sends the token.

    :param make_report: makes the report
    :param token: returns the token that opens the details; ``None`` opens them to nobody
    :param is_inside: whether only the operator's own reach this port: live figures and metrics
        are then open without the token
    """

    def __init__(
        self,
        make_report: ReportMaker,
        token: Callable[[], SecretStr | None],
        is_inside: bool = False,
    ) -> None:
        self._make_report = make_report
        self._token = token
        self._is_inside = is_inside

    def report(self, environ: Mapping[str, Any]) -> Answer:
        """Answer with the report."""
        details = self._is_authorized(environ)
        try:
            report = self._make_report(
                details=details, live=details or self._is_inside, asking=environ.get(SLOT_KEY)
            )
        except WorkerSizeConfigError as error:
            told = {"status": "fail", "error": error.message}
            return Answer.of_json("500 Internal Server Error", told)
        return Answer("200 OK", report.to_json().encode())

    def metrics(self, environ: Mapping[str, Any]) -> Answer:
        """Answer with the same figures for Prometheus."""
        if not self._is_inside and not self._is_authorized(environ):
            challenge = (("WWW-Authenticate", "Bearer"),)
            return Answer("401 Unauthorized", _NO_TOKEN, _TEXT, challenge)
        try:
            from .metrics import render
        except ImportError:
            return Answer("501 Not Implemented", _NO_CLIENT, _TEXT)
        try:
            report = self._make_report(details=False, live=True, asking=environ.get(SLOT_KEY))
        except WorkerSizeConfigError as error:
            return Answer("500 Internal Server Error", f"{error.message}\n".encode(), _TEXT)
        body, content_type = render(report, environ.get("HTTP_ACCEPT", ""))
        return Answer("200 OK", body, content_type)

    def _is_authorized(self, environ: Mapping[str, Any]) -> bool:
        token = self._token()
        scheme, _, sent = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if token is None or scheme.lower() != "bearer":
            return False
        # WSGI hands over the bytes of a header as latin-1.
        sent_bytes = sent.encode("latin-1", "replace").strip()
        token_bytes = token.get_secret_value().encode(errors="surrogateescape")
        return hmac.compare_digest(sent_bytes, token_bytes)


_TEXT = "text/plain; charset=utf-8"
_NO_TOKEN = (
    b"Metrics on this port need the token: send 'Authorization: Bearer ...' with the value of "
    b"NOW_LMS_HEALTH_TOKEN, or ask the health port.\n"
)
_NO_CLIENT = (
    b"prometheus_client is not installed where the app runs: pip install "
    b"'flask-workersize[metrics]', then restart.\n"
)
