"""serve-prod and waitress: its adjustments, and many idle connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest

from flask_workersize import Resources, SizingSettings, compute_plan
from flask_workersize.servers.waitress.options import waitress_options
from tests.plain import clear_environment
from tests.servers.clients import PATH, SLOW, Clients, send
from tests.servers.serving import Server, Starter, await_that, refused_here, serve_prod

IDLE_CONNECTIONS = 150
RESOURCES = Resources(
    cpus=4.0,
    cpu_source="host",
    cpu_at=None,
    memory_limit=2 << 30,
    memory_available=2 << 30,
    memory_source="host",
    memory_at=None,
)


def adjustments(server: Server, *names: str) -> dict[str, Any]:
    """Return what the running waitress was really given."""
    query = "&".join(f"name={name}" for name in names)
    found: dict[str, Any] = server.get(f"/adjustments?{query}").json()
    return found


@contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    """Hold open connections that have been accepted, and say nothing on them."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = server.connect()
            connection.connect()
            stack.callback(connection.close)
        yield


def test_defaults_are_those_that_are_promised(start: Starter) -> None:
    server = start(serve_prod("--threads", "3"))
    promised = {
        "threads": 3,
        "channel_timeout": 120,
        "asyncore_use_poll": True,
        "backlog": 2048,
    }
    assert adjustments(server, *promised) == promised


@pytest.mark.parametrize(("timeout", "channel_timeout"), [("77", 77), ("0", 365 * 24 * 3600)])
def test_timeout_ends_idle_connections_and_0_never_does(
    start: Starter, timeout: str, channel_timeout: int
) -> None:
    server = start(serve_prod("--timeout", timeout))
    assert adjustments(server, "channel_timeout") == {"channel_timeout": channel_timeout}


def test_many_idle_connections_do_not_keep_a_new_request_waiting(start: Starter) -> None:
    """Waitress' own limit of 100 would look like a hang."""
    server = start(serve_prod("--threads", "2"))
    with idle_connections(server, IDLE_CONNECTIONS):
        assert server.get("/").json()["plan"]["threads"] == 2
    assert "connection limit" not in server.stderr


def test_options_of_app_config_reach_waitress(start: Starter) -> None:
    """With a limit of its own waitress says when it is reached, which shows what the limit is."""
    options = {"connection_limit": 20, "ident": "lms", "channel_request_lookahead": 3}
    server = start(serve_prod(), {"WORKERSIZE_WAITRESS_OPTIONS": options})
    assert server.get("/").headers["Server"] == "lms"
    assert adjustments(server, *options) == options
    with idle_connections(server, 30):
        server.wait_for_line("connections reached the connection limit")


def test_option_that_a_plan_is_made_from_feeds_the_plan_as_the_weakest_word(
    start: Starter,
) -> None:
    options = {"threads": 6, "channel_timeout": 50}
    server = start(serve_prod(), {"WORKERSIZE_WAITRESS_OPTIONS": options})
    assert adjustments(server, *options) == options
    plan = server.get("/").json()["plan"]
    assert (plan["threads"], plan["limited_by"]) == (6, "explicit")
    assert "WORKERSIZE_WAITRESS_OPTIONS" in plan["sources"]["threads"]
    stronger = start(serve_prod(), {"WORKERSIZE_WAITRESS_OPTIONS": options}, NOW_LMS_THREADS="2")
    assert adjustments(stronger, "threads") == {"threads": 2}
    assert stronger.get("/").json()["plan"]["threads"] == 2


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"thread": 3}, "'thread'"),
        ({"cleanup_interval": "often"}, "'cleanup_interval'"),
        ({"connection_limit": 0}, "'connection_limit'"),
        ({"connection_limit": "0"}, "'connection_limit'"),
        ({"connection_limit": -1}, "'connection_limit'"),
        ({"listen": "127.0.0.1:1"}, "'listen'"),
        ({"unix_socket": "lms.sock"}, "'unix_socket'"),
        ({"trusted_proxy_headers": "x-forwarded-for"}, "trusted_proxy"),
        ([1], "not a dictionary"),
    ],
)
def test_option_that_cannot_be_used_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, options: Any, culprit: str
) -> None:
    clear_environment(monkeypatch)
    done = refused_here([], {"WORKERSIZE_WAITRESS_OPTIONS": options})
    line = done.assert_one_line_error(2)
    assert culprit in line
    assert "WORKERSIZE_WAITRESS_OPTIONS" in line


def test_command_args_of_gunicorn_do_not_concern_waitress(start: Starter) -> None:
    server = start(serve_prod(), GUNICORN_CMD_ARGS="--threads 9 --no-such-option")
    assert server.get("/").json()["plan"]["limited_by"] != "explicit"


@pytest.mark.parametrize(("proxy", "clears"), [(None, True), ("127.0.0.1", False)])
def test_proxy_headers_are_left_to_our_middleware_only_where_a_proxy_is_set(
    proxy: str | None, clears: bool
) -> None:
    settings = SizingSettings(wsgi_server="waitress", trusted_proxy=proxy)
    options = waitress_options({}, settings, compute_plan(settings, RESOURCES))
    assert options["clear_untrusted_proxy_headers"] is clears
    assert options["threads"] == 9
    assert options["connection_limit"] >= 100


def test_client_that_never_reads_its_response_loses_its_connection(
    start: Starter, connect: Clients
) -> None:
    """Else as many as there are places would silence the server for good."""
    options = {"cleanup_interval": 1}
    config = {"WORKERSIZE_WAITRESS_OPTIONS": options}
    command = serve_prod(server="waitress", app=SLOW)
    server = start(command, config, NOW_LMS_TIMEOUT="1", **PATH)
    port = int(server.urls[0].rpartition(":")[2])

    def open_connections() -> int:
        process = psutil.Process(server.pid)
        found = getattr(process, "net_connections", None) or process.connections
        return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in found())

    client = connect(server)
    send(client, "/file")
    await_that((server.folder / "big.bin").exists, "a response under way")
    await_that(lambda: open_connections() == 0, "the connection is closed")
    assert server.get().status == 200
