"""NOW_LMS_TRUSTED_PROXY has one meaning for both servers."""

from __future__ import annotations

from typing import Any

import pytest

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
    believed = {"HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_PROTOCOL"}
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
        assert set(seen["proxy_headers"]) <= {"HTTP_X_FORWARDED_PROTOCOL"}, headers


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
