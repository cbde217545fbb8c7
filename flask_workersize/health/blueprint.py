"""The route ``/_health/capacity``, and the shortcut that answers it before the app is asked."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request
from pydantic import SecretStr

from ..errors import WorkerSizeConfigError
from .report import CapacityReport

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ReportMaker = Callable[[bool], CapacityReport]
"""Makes the report; the argument says whether to include what the token opens."""


class CapacityEndpoint:
    """Answers the report to anyone, and its details to who sends the token.

    :param make_report: makes the report, or raises :exc:`WorkerSizeConfigError`
    :param token: returns the token that opens the details; ``None`` opens them to nobody
    """

    def __init__(self, make_report: ReportMaker, token: Callable[[], SecretStr | None]) -> None:
        self._make_report = make_report
        self._token = token

    def answer(self, environ: Mapping[str, Any]) -> tuple[str, bytes]:
        """Return status line and JSON body."""
        try:
            report = self._make_report(self._is_authorized(environ))
        except WorkerSizeConfigError as error:
            body = json.dumps({"status": "fail", "error": error.message})
            return "500 Internal Server Error", body.encode()
        return "200 OK", report.to_json().encode()

    def _is_authorized(self, environ: Mapping[str, Any]) -> bool:
        token = self._token()
        scheme, _, sent = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if token is None or scheme.lower() != "bearer":
            return False
        # WSGI hands over the bytes of a header as latin-1.
        sent_bytes = sent.encode("latin-1", "replace").strip()
        token_bytes = token.get_secret_value().encode(errors="surrogateescape")
        return hmac.compare_digest(sent_bytes, token_bytes)


def capacity_blueprint(endpoint: CapacityEndpoint, url: str) -> Blueprint:
    """Return the blueprint that owns the route, for ``url_for`` and the list of routes."""
    blueprint = Blueprint("workersize", __name__)

    @blueprint.get(url)
    def capacity() -> Response:
        status, body = endpoint.answer(request.environ)
        return Response(body, status, dict(_headers(body)))

    return blueprint


class CapacityShortcut:
    """WSGI middleware that answers one path itself.

    No guard of the app stands between, such as a login redirect in ``before_request``, a redirect
    to HTTPS or ``TRUSTED_HOSTS``, and no session is opened.
    """

    def __init__(self, app: WSGIApplication, endpoint: CapacityEndpoint, url: str) -> None:
        self.app = app
        self._endpoint = endpoint
        # WSGI hands over the bytes of a path as latin-1.
        self._path = url.encode().decode("latin-1")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if environ.get("PATH_INFO") != self._path or environ["REQUEST_METHOD"] not in _METHODS:
            return self.app(environ, start_response)
        status, body = self._endpoint.answer(environ)
        start_response(status, _headers(body))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


_METHODS = ("GET", "HEAD")


def _headers(body: bytes) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
