"""How long each server keeps an idle connection, which a balancer has to know."""

from __future__ import annotations

import time

from tests.servers.clients import PATH, SERVER_ARGS, SLOW, Clients, is_over, receive, send
from tests.servers.serving import CONF, Server, Starter, gunicorn, serve_prod

NOTE = "Idle connections close after"
PROXY = {"NOW_LMS_TRUSTED_PROXY": "127.0.0.1"}


def start_behind_proxy(start: Starter, kind: str, args: str = "") -> Server:
    command = serve_prod(*SERVER_ARGS[kind], app=SLOW)
    return start(command, None, GUNICORN_CMD_ARGS=args, **PATH, **PROXY)


def test_sync_worker_keeps_no_connection(start: Starter, connect: Clients) -> None:
    server = start_behind_proxy(start, "sync")
    client = connect(server)
    send(client, "/", close=False)
    assert receive(client).headers["Connection"] == "close"
    assert is_over(client)
    assert NOTE not in server.stderr


def test_threaded_worker_keeps_a_connection_for_so_long(start: Starter, connect: Clients) -> None:
    server = start_behind_proxy(start, "gthread-2x2", "--keep-alive 1")
    server.wait_for_line(f"{NOTE} 1 s. If your proxy keeps them longer")
    client = connect(server)
    send(client, "/", close=False)
    assert receive(client).headers["Connection"] == "keep-alive"
    assert is_over(client)
    assert server.stderr.count(NOTE) == 1


def test_recipe_keeps_a_connection(start: Starter, connect: Clients) -> None:
    """Gunicorn closes it after 5 seconds if nobody asks for more."""
    servers = [
        start_behind_proxy(start, kind, "--keep-alive 75") for kind in ("gthread-1x4", "waitress")
    ]
    clients = [connect(server) for server in servers]
    for pause in (6, 0):
        for client in clients:
            send(client, "/", close=False)
            assert receive(client).headers["Connection"] != "close"
        time.sleep(pause)
    for server in servers:
        assert NOTE not in server.stderr
        # An idle connection holds no stop.
        assert server.stop() == 0


def test_note_stands_wherever_a_proxy_is_trusted(start: Starter) -> None:
    """With gunicorn started directly, too, and with a short timeout of waitress."""
    direct = start(gunicorn("-c", CONF, "--threads", "2"), None, NOW_LMS_WORKERS="1", **PROXY)
    direct.wait_for_line(f"{NOTE} 5 s. .* raise gunicorn's --keep-alive above that")
    short = start(serve_prod("--timeout", "30"), None, **PROXY)
    short.wait_for_line(f"{NOTE} 30 s. .* raise NOW_LMS_TIMEOUT above that")
    alone = start(serve_prod("--timeout", "30"))
    assert alone.get("/").status == 200
    assert NOTE not in alone.stderr
