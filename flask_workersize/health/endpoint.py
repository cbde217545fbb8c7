"""The answers on the paths of the report, on the app's port and on the health port."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import SecretStr
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from ..errors import WorkerSizeConfigError
from ..runtime.meter import SLOT_KEY
from .report import CapacityReport

METRICS_SUFFIX = "/metrics"
"""Suffix of the report's path for Prometheus."""

FILES = ("page.css", "page.js")
"""What the page for people loads, behind the path of the report."""

METHODS = ("GET", "HEAD")


Answer = Callable[[Mapping[str, Any]], Response]
"""Answers a request on one path."""

ReportMaker = Callable[[bool, bool, int | None], CapacityReport]
"""Makes the report, with details, with live figures, for the request in a slot."""


def respond(
    body: str | bytes,
    status: int = 200,
    content_type: str = "application/json",
    **headers: str,
) -> Response:
    """Return a response that may not be stored."""
    headers = {"Cache-Control": "no-store", **headers}
    return Response(body, status, headers, content_type=content_type)


def respond_json(told: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """Return a response in JSON, written as the report is."""
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return respond(body, status, **headers)


def wants_page(environ: Mapping[str, Any]) -> bool:
    """Return whether the client is a browser: it prefers HTML to everything else."""
    accepted = parse_accept_header(environ.get("HTTP_ACCEPT"), MIMEAccept)
    return accepted.best_match(["application/json", "text/html"]) == "text/html"


class CapacityEndpoint:
    """Answers the report to anyone, and its details to requests with the token."""

    def __init__(
        self,
        make_report: ReportMaker,
        token: Callable[[], SecretStr | None],
        is_inside: bool = False,
    ) -> None:
        self._make_report = make_report
        self._token = token
        self._is_inside = is_inside

    def report(self, environ: Mapping[str, Any]) -> Response:
        """Answer with the report: as a page if a browser asks, else in JSON."""
        told = self._report(environ)
        if wants_page(environ):
            from .page import respond_page

            told = respond_page(told.get_data(as_text=True), told.status_code, environ)
        told.vary.add("Accept")
        return told

    def file(self, name: str, environ: Mapping[str, Any]) -> Response:
        """Answer with one of ``FILES``, which are the same for everyone."""
        from .page import respond_file

        return respond_file(name, environ)

    def answers(self, url: str) -> dict[str, Answer]:
        """Return what is answered on each path.

        :param url: the path of the report
        """
        pages = {f"{url}/{name}": partial(self.file, name) for name in FILES}
        return {url: self.report, url + METRICS_SUFFIX: self.metrics, **pages}

    def _report(self, environ: Mapping[str, Any]) -> Response:
        details = self._is_authorized(environ)
        live = details or self._is_inside
        try:
            report = self._make_report(details, live, environ.get(SLOT_KEY))
        except WorkerSizeConfigError as error:
            return respond_json({"status": "fail", "error": error.message}, 500)
        return respond(report.to_json())

    def metrics(self, environ: Mapping[str, Any]) -> Response:
        """Answer with the same figures for Prometheus."""
        if not self._is_inside and not self._is_authorized(environ):
            return respond(_NO_TOKEN, 401, _TEXT, **{"WWW-Authenticate": "Bearer"})
        try:
            from .metrics import render
        except ImportError:
            return respond(_NO_CLIENT, 501, _TEXT)
        try:
            report = self._make_report(False, True, environ.get(SLOT_KEY))
        except WorkerSizeConfigError as error:
            return respond(f"{error.message}\n", 500, _TEXT)
        body, content_type = render(report, environ.get("HTTP_ACCEPT", ""))
        return respond(body, 200, content_type)

    def _is_authorized(self, environ: Mapping[str, Any]) -> bool:
        token = self._token()
        scheme, _, sent = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if token is None or scheme.lower() != "bearer":
            return False
        # WSGI passes the bytes of a header as latin-1.
        sent_bytes = sent.encode("latin-1", "replace").strip()
        token_bytes = token.get_secret_value().encode(errors="surrogateescape")
        return hmac.compare_digest(sent_bytes, token_bytes)


_TEXT = "text/plain; charset=utf-8"
_NO_TOKEN = "Send NOW_LMS_HEALTH_TOKEN as 'Authorization: Bearer ...', or use the health port.\n"
_NO_CLIENT = "prometheus_client is missing: pip install 'flask-workersize[metrics]' and restart.\n"
