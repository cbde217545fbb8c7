"""The route ``/_health/capacity``, and the shortcut that answers it before the app is asked."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Blueprint, request

from ..runtime.layer import Layer
from .endpoint import METHODS, METRICS_SUFFIX, CapacityEndpoint


def capacity_blueprint(endpoint: CapacityEndpoint, url: str) -> Blueprint:
    """Return the blueprint that owns the routes, for ``url_for`` and the list of routes."""
    blueprint = Blueprint("workersize", __name__)
    blueprint.add_url_rule(url, "capacity", lambda: endpoint.report(request.environ))
    metrics = url + METRICS_SUFFIX
    blueprint.add_url_rule(metrics, "metrics", lambda: endpoint.metrics(request.environ))
    return blueprint


class CapacityShortcut(Layer):
    """WSGI middleware that answers the paths of the report itself.

    No guard of the app stands between, such as a login redirect in ``before_request``, a redirect
    to HTTPS or ``TRUSTED_HOSTS``, and no session is opened.
    """

    __slots__ = ("_answers",)

    def __init__(self, app: WSGIApplication, endpoint: CapacityEndpoint, url: str) -> None:
        super().__init__(app)
        # WSGI hands over the bytes of a path as latin-1.
        path = url.encode().decode("latin-1")
        self._answers = {path: endpoint.report, path + METRICS_SUFFIX: endpoint.metrics}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer = self._answers.get(environ.get("PATH_INFO", ""))
        if answer is None or environ["REQUEST_METHOD"] not in METHODS:
            return self.app(environ, start_response)
        return answer(environ)(environ, start_response)
