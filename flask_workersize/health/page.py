"""The report as a page for people, and the two files it needs; nothing comes from elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, Template
from werkzeug.wrappers import Response

from .view import view

REFRESH_SECONDS = 4
"""How often a page without script asks for itself."""

SAFE = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""What a browser is told to refuse."""

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def respond_page(body: str, status: int, environ: Mapping[str, Any]) -> Response:
    """Return the page of a report.

    :param body: the report in JSON, or what is answered in its place
    :param status: the status of that
    :param environ: the request
    """
    # WSGI passes the bytes of a path as latin-1.
    path = environ.get("PATH_INFO", "").encode("latin-1", "replace")
    page = _template().render(
        parts=view(json.loads(body), int(time.time())),
        # From the page's own address, wherever the app is mounted, and behind whichever proxy.
        base="./" + quote(path.rpartition(b"/")[2]),
        refresh_seconds=REFRESH_SECONDS,
    )
    headers = {"Cache-Control": "no-store", **SAFE}
    return Response(page, status, headers, content_type="text/html; charset=utf-8")


def respond_file(name: str, environ: Mapping[str, Any]) -> Response:
    """Return the style or the script: "page.css" or "page.js".

    A browser keeps it and asks whether it is still the same.
    """
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    content_type = _TYPES[name.rpartition(".")[2]]
    answer = Response(_read(f"static/{name}"), 200, headers, content_type=content_type)
    answer.add_etag()
    return answer.make_conditional(dict(environ))


@cache
def _read(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("page.html").decode())
