"""NOW_LMS_TRUSTED_PROXY has one meaning for both servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flask import Flask, current_app
from werkzeug.local import LocalProxy
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_workersize import SizingSettings, WorkerSizing
from flask_workersize.servers.proxy import ignored_by_waitress
from flask_workersize.servers.waitress.options import waitress_options
from tests.plain import new_app, plan
from tests.servers.serving import Headers, Server, Starter, serve_prod

CLIENT = "203.0.113.9"
BY_PROXY = [("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "https")]
LIES = [
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Port", "4443"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Forwarded-By", "evil.example"),
    ("X-Forwarded-Ssl", "on"),
    ("X-Forwarded-Protocol", "ssl"),
    ("Forwarded", f"for={CLIENT};proto=https;host=evil.example"),
]
UNIX_PEERS = {"gunicorn": "", "waitress": "localhost"}

TRUSTING = {
    "address": ("127.0.0.1:0", "127.0.0.1"),
    "network": ("127.0.0.1:0", "10.0.0.1, 127.0.0.0/8"),
    "everyone": ("127.0.0.1:0", "*"),
    "unix": ("unix:trusted.sock", "192.0.2.1"),
}

CASES: list[tuple[Headers, str | None, str]] = [
    ([], None, "http"),
    (BY_PROXY, CLIENT, "https"),
    ([("X-Forwarded-For", CLIENT)], CLIENT, "http"),
    ([("X-Forwarded-Proto", "https")], None, "https"),
    ([("X-Forwarded-Proto", "http")], None, "http"),
    ([("X-Forwarded-For", f"198.51.100.7, {CLIENT}")], CLIENT, "http"),
    ([("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-For", CLIENT)], CLIENT, "http"),
    ([("X-Forwarded-For", "2001:db8::9")], "2001:db8::9", "http"),
    (LIES, None, "http"),
    ([*BY_PROXY, *LIES], CLIENT, "https"),
    ([("X-Forwarded-Proto", "http"), ("X-Forwarded-Ssl", "on")], None, "http"),
]
"""Headers, and what is believed of them: the client and the scheme."""


def serve(start: Starter, name: str, bind: str, trusted: str | None) -> Server:
    environ = {} if trusted is None else {"NOW_LMS_TRUSTED_PROXY": trusted}
    return start(serve_prod("--workers", "1", "--bind", bind, server=name), None, **environ)


def facts(server: Server, headers: Headers) -> Any:
    return server.get("/", [("Host", "lms.example"), *headers]).json()


@pytest.mark.parametrize("place", TRUSTING)
def test_trusted_peer_is_believed_for_client_and_scheme_alone(
    start: Starter, name: str, place: str
) -> None:
    bind, trusted = TRUSTING[place]
    server = serve(start, name, bind, trusted)
    peer = UNIX_PEERS[name] if bind.startswith("unix:") else "127.0.0.1"
    believed = {"HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO"}
    for headers, client, scheme in CASES:
        seen = facts(server, headers)
        assert seen["remote_addr"] == (peer if client is None else client), headers
        assert seen["scheme"] == scheme, headers
        assert seen["host"] == "lms.example", headers
        assert seen["script_root"] == "", headers
        assert set(seen["proxy_headers"]) <= believed, headers


def test_peer_that_is_not_trusted_is_not_believed(start: Starter, name: str) -> None:
    server = serve(start, name, "127.0.0.1:0", "192.0.2.0/24")
    for headers in ([], BY_PROXY, LIES, [*BY_PROXY, *LIES]):
        seen = facts(server, headers)
        assert seen["remote_addr"] == "127.0.0.1", headers
        assert seen["scheme"] == "http", headers
        assert seen["host"] == "lms.example", headers
        assert seen["script_root"] == "", headers
        assert seen["proxy_headers"] == [], headers


@pytest.mark.parametrize(
    ("server", "bind", "peer", "scheme", "passed_on"),
    [
        ("gunicorn", "127.0.0.1:0", "127.0.0.1", "https", True),
        ("gunicorn", "unix:trusted.sock", "", "https", True),
        ("waitress", "127.0.0.1:0", "127.0.0.1", "http", False),
        ("waitress", "unix:trusted.sock", "localhost", "http", False),
    ],
)
def test_without_the_setting_each_server_keeps_its_own_manners(
    *, start: Starter, server: str, bind: str, peer: str, scheme: str, passed_on: bool
) -> None:
    """What each does is documented: gunicorn believes X-Forwarded-Proto of a local peer."""
    seen = facts(serve(start, server, bind, None), BY_PROXY)
    assert seen["remote_addr"] == peer
    assert seen["scheme"] == scheme
    assert ("HTTP_X_FORWARDED_FOR" in seen["proxy_headers"]) is passed_on


# What is said to gunicorn, where waitress serves


class Slotted:
    """Middleware that keeps the app below under a name of its own."""

    __slots__ = ("__dict__", "below")

    def __init__(self, below: Any) -> None:
        self.inner = below

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.inner(environ, start_response)

    def serve(self, environ: Any, start_response: Any) -> Any:
        return self.inner(environ, start_response)


def closing_over(app: Any) -> Any:
    def call(*args: Any) -> Any:
        return app(*args)

    return call


def calling(app: Any, environ: Any, start_response: Any) -> Any:
    return app(environ, start_response)


CHAINS: dict[str, Callable[[Any], Any]] = {
    "outermost": ProxyFix,
    "below another": lambda app: Slotted(ProxyFix(app)),
    "below a function": lambda app: closing_over(ProxyFix(app)),
    "below a method": lambda app: Slotted(ProxyFix(app)).serve,
    "below a partial": lambda app: partial(calling, ProxyFix(app)),
    "below three": lambda app: closing_over(Slotted(closing_over(ProxyFix(app)))),
}


def warning(
    app: Flask | None = None,
    environ: dict[str, str] | None = None,
    trusted: str | None = None,
    **options: Any,
) -> str | None:
    settings = SizingSettings(wsgi_server="waitress", trusted_proxy=trusted)
    known = waitress_options({"WORKERSIZE_WAITRESS_OPTIONS": options}, settings, plan({}))
    return ignored_by_waitress(app or new_app(), settings, known, environ or {})


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("is_first", [False, True])
def test_proxy_fix_is_found_wherever_it_stands(chain: str, is_first: bool) -> None:
    app = new_app()
    if not is_first:
        WorkerSizing(app)
    app.wsgi_app = CHAINS[chain](app.wsgi_app)  # type: ignore[method-assign]
    if is_first:
        WorkerSizing(app)
    line = warning(app)
    assert line is not None
    assert "-Host despite ProxyFix in the app. Set NOW_LMS_TRUSTED_PROXY" in line
    assert warning(app, trusted="10.0.0.1") is None
    assert warning(app, trusted_proxy="10.0.0.1", trusted_proxy_headers="x-forwarded-for") is None
    assert warning(app, clear_untrusted_proxy_headers=False) is None


def test_what_a_platform_says_to_gunicorn_is_one_warning() -> None:
    app = new_app()
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    environ = {"FORWARDED_ALLOW_IPS": "*", "GUNICORN_CMD_ARGS": "--threads 2"}
    assert warning(app, environ) == (
        "waitress removes X-Forwarded-For, -Proto and -Host despite ProxyFix in the app and "
        "FORWARDED_ALLOW_IPS. Set NOW_LMS_TRUSTED_PROXY to the proxy's address, or "
        "NOW_LMS_WSGI_SERVER=gunicorn. waitress ignores GUNICORN_CMD_ARGS. Set "
        "NOW_LMS_WSGI_SERVER=gunicorn, or unset it."
    )
    line = warning(app, environ, trusted="*")
    assert line is not None
    assert line.startswith("waitress ignores GUNICORN_CMD_ARGS.")


def test_nothing_to_ignore_is_no_warning() -> None:
    app = new_app()
    WorkerSizing(app)
    app.wsgi_app = Slotted(closing_over(app.wsgi_app))  # type: ignore[method-assign]
    assert warning(app, {"FORWARDED_ALLOW_IPS": " ", "GUNICORN_CMD_ARGS": ""}) is None


def test_middleware_that_refuses_to_be_looked_at_is_no_obstacle() -> None:
    class Proud:
        def __init__(self, below: Any) -> None:
            self.below = below
            self.itself = self
            self.app: Any = LocalProxy(dict)

        def __call__(self, environ: Any, start_response: Any) -> Any:
            return self.below(environ, start_response)

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("not outside of a request")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("nothing is like me")

        __hash__ = None  # type: ignore[assignment]

    app = new_app()
    app.wsgi_app = Proud(current_app)  # type: ignore[method-assign]
    assert warning(app) is None
    app.wsgi_app = Proud(ProxyFix(app.wsgi_app))  # type: ignore[method-assign]
    assert warning(app) is not None


def test_served_by_waitress_the_warning_is_logged_and_by_gunicorn_it_is_not(
    start: Starter, name: str
) -> None:
    environ = {"FORWARDED_ALLOW_IPS": "*", "GUNICORN_CMD_ARGS": "--max-requests 1000"}
    server = start(serve_prod("--threads", "2", server=name), None, **environ)
    server.get("/")
    lines = [line for line in server.stderr.splitlines() if "FORWARDED_ALLOW_IPS" in line]
    assert len(lines) == (name == "waitress")
    assert server.stop() == 0
