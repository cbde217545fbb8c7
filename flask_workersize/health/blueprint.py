"""The route ``/_health/capacity``, and the shortcut that answers it before the app does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Blueprint, request
from werkzeug.wrappers import Response

from ..runtime.layer import Layer
from .endpoint import METHODS, Answer, CapacityEndpoint


def capacity_blueprint(endpoint: CapacityEndpoint, url: str) -> Blueprint:
    """Return the blueprint that owns the routes, for ``url_for`` and the list of routes."""
    blueprint = Blueprint("workersize", __name__)
    for path, answer in endpoint.answers(url).items():
        name = path.removeprefix(url).strip("/") or "capacity"
        blueprint.add_url_rule(path, name.replace(".", "_"), _route(answer))
    return blueprint


def _route(answer: Answer) -> Callable[[], Response]:
    return lambda: answer(request.environ)


class CapacityShortcut(Layer):
    """WSGI middleware that answers the paths of the report itself.

    No guard of the app stands between, such as a login redirect in ``before_request``, a redirect
    to HTTPS or ``TRUSTED_HOSTS``, and no session is opened.
    """

    __slots__ = ("_answers",)

    def __init__(self, app: WSGIApplication, endpoint: CapacityEndpoint, url: str) -> None:
        super().__init__(app)
        # WSGI passes the bytes of a path as latin-1.
        self._answers = endpoint.answers(url.encode().decode("latin-1"))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer = self._answers.get(environ.get("PATH_INFO", ""))
        if answer is None or environ["REQUEST_METHOD"] not in METHODS:
            return self.app(environ, start_response)
        return answer(environ)(environ, start_response)
