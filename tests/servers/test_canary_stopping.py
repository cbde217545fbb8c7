"""What the stop uses of gunicorn, waitress and Python that they do not promise, by its name.

A failure here says what a new version has changed, and who of us relies on it.
"""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server

pytest.importorskip("fcntl", reason="gunicorn does not run on this system")

from gunicorn import systemd, util
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.errors import HaltServer
from gunicorn.workers import base, gthread, sync

PROCESS = "servers/gunicorn/arbiter.py and workers.py"


def parameters(thing: Any) -> list[str]:
    return list(inspect.signature(thing).parameters)


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (Arbiter, "stop", ["self", "graceful"]),
        (Arbiter, "spawn_worker", ["self"]),
        (Arbiter, "reap_workers", ["self"]),
        (Arbiter, "wait_for_signals", ["self", "timeout"]),
        (Arbiter, "kill_workers", ["self", "sig"]),
        (Arbiter, "halt", ["self", "reason", "exit_status"]),
        (Arbiter, "signal", ["self", "sig", "frame"]),
        (Arbiter, "handle_int", ["self"]),
        (Arbiter, "handle_hup", ["self"]),
        (Arbiter, "handle_usr2", ["self"]),
        (base.Worker, "init_process", ["self"]),
        (base.Worker, "init_signals", ["self"]),
        (base.Worker, "handle_exit", ["self", "sig", "frame"]),
        (base.Worker, "handle_quit", ["self", "sig", "frame"]),
        (base.Worker, "notify", ["self"]),
        (sync.SyncWorker, "run", ["self"]),
        (sync.SyncWorker, "accept", ["self", "listener"]),
        (sync.SyncWorker, "wait", ["self", "timeout"]),
        (sync.SyncWorker, "handle", ["self", "listener", "client", "addr"]),
        (sync.SyncWorker, "handle_request", ["self", "listener", "req", "client", "addr"]),
        (gthread.ThreadWorker, "run", ["self"]),
        (gthread.ThreadWorker, "enqueue_req", ["self", "conn"]),
        (gthread.ThreadWorker, "on_client_socket_readable", ["self", "conn", "client"]),
        (gthread.ThreadWorker, "on_pending_socket_readable", ["self", "conn", "client"]),
        (gthread.ThreadWorker, "handle_request", ["self", "req", "conn"]),
        (gthread.ThreadWorker, "handle_http2", ["self", "conn"]),
        (gthread.ThreadWorker, "accept", ["self", "listener"]),
        (gthread.ThreadWorker, "set_accept_enabled", ["self", "enabled"]),
        (gthread.ThreadWorker, "wait_for_and_dispatch_events", ["self", "timeout"]),
        (gthread.ThreadWorker, "finish_request", ["self", "conn", "fs"]),
        (gthread.ThreadWorker, "handle", ["self", "conn"]),
    ],
)
def test_gunicorn_has_every_method_that_we_override_or_call(
    owner: type, name: str, expected: list[str]
) -> None:
    assert hasattr(owner, name), f"gunicorn's {owner.__name__}.{name} is gone: {PROCESS}"
    assert parameters(getattr(owner, name)) == expected, (
        f"gunicorn's {owner.__name__}.{name} takes other arguments: {PROCESS}"
    )


def test_gunicorns_master_has_the_attributes_that_we_read() -> None:
    assert Arbiter.LISTENERS == [], f"Arbiter.LISTENERS: {PROCESS} reads each listener's .sock"
    assert Arbiter.WORKERS == {}, f"Arbiter.WORKERS: {PROCESS} asks which of them are leaving"
    assert issubclass(HaltServer, BaseException), f"gunicorn.errors.HaltServer: {PROCESS}"
    assert parameters(systemd.listen_fds) == ["unset_environment"]


def test_gunicorns_threaded_worker_has_the_attributes_that_we_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        config = Config()
        conn = gthread.TConn(config, ours, "", "")
        assert conn.sock is ours, f"TConn.sock: {PROCESS} replaces it by one that is watched"
        assert conn.initialized is False, f"TConn.initialized: {PROCESS}"
        assert conn.data_ready is False, f"TConn.data_ready: {PROCESS} says when it need not wait"
        conn.set_timeout()
        assert conn.timeout is not None
        assert abs(conn.timeout - time.monotonic() - config.keepalive) < 60, (
            f"TConn.timeout is no moment of time.monotonic() any more: {PROCESS}"
        )
    unused: Any = None
    worker: Any = gthread.ThreadWorker(1, 1, [], unused, 1, config, unused)
    worker.tmp.close()
    assert isinstance(worker.pending_conns, deque), f"ThreadWorker.pending_conns: {PROCESS}"
    assert isinstance(worker.keepalived_conns, deque), f"ThreadWorker.keepalived_conns: {PROCESS}"
    assert worker.nr_conns == 0, f"ThreadWorker.nr_conns: {PROCESS}"
    assert hasattr(worker, "poller"), f"ThreadWorker.poller: {PROCESS}"
    assert worker.worker_connections > 0, f"ThreadWorker.worker_connections: {PROCESS}"
    assert gthread.DEFAULT_WORKER_DATA_TIMEOUT > 0
    keeps = inspect.getsource(gthread.ThreadWorker.handle_request)
    assert "len(self.keepalived_conns) >= self.max_keepalived" in keeps, (
        f"ThreadWorker.max_keepalived: {PROCESS} decides there whether a connection is kept"
    )


@pytest.mark.parametrize("module", [sync, gthread])
def test_gunicorn_closes_connections_by_the_name_that_we_replace(module: ModuleType) -> None:
    where = "servers/gunicorn/goodbye.py stands in for util.close_graceful"
    assert parameters(util.close_graceful) == ["sock", "timeout", "max_drain"], where
    assert "util.close_graceful(" in inspect.getsource(module), where


def nothing(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("204 No Content", [])
    return []


@pytest.fixture
def served() -> Iterator[SimpleNamespace]:
    """Create waitress' server as we do, with a connection that it has accepted."""
    table: dict[int, Any] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server: Any = create_server(nothing, map=table, sockets=[listener], threads=1)
        with socket.create_connection(listener.getsockname()) as client:
            until = time.monotonic() + 10
            while not server.active_channels and time.monotonic() < until:
                wasyncore.loop(timeout=0.1, use_poll=True, map=table, count=1)
            (channel,) = server.active_channels.values()
            yield SimpleNamespace(server=server, table=table, client=client, channel=channel)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(table)


def test_waitress_keeps_everything_in_the_map_that_it_is_given(served: SimpleNamespace) -> None:
    found = [item for item in served.table.values() if isinstance(item, BaseWSGIServer)]
    assert found == [served.server], "create_server(map=...): servers/waitress/run.py"
    assert served.channel in served.table.values()


def test_waitress_makes_connections_by_the_channel_class_of_its_server(
    served: SimpleNamespace,
) -> None:
    assert BaseWSGIServer.channel_class is HTTPChannel, "_Channel of servers/waitress/run.py"
    assert type(served.channel) is HTTPChannel


def test_waitress_loop_takes_one_turn(served: SimpleNamespace) -> None:
    served.server.pull_trigger()
    wasyncore.loop(timeout=30, use_poll=True, map=served.table, count=1)
    assert parameters(wasyncore.loop) == ["timeout", "use_poll", "map", "count"]


def test_waitress_channel_says_what_is_going_on(served: SimpleNamespace) -> None:
    """Each name is read by _Channel.is_busy or announce_close."""
    channel = served.channel
    assert channel.last_activity == channel.creation_time, "HTTPChannel.creation_time"
    assert (channel.requests, channel.request) == ([], None), "HTTPChannel.requests, .request"
    assert channel.total_outbufs_len == 0, "HTTPChannel.total_outbufs_len"
    assert channel.close_when_flushed is False, "HTTPChannel.close_when_flushed"
    assert channel.will_close is False, "HTTPChannel.will_close"
    assert parameters(channel.received) == ["data"], "HTTPChannel.received"
    served.client.sendall(b"GET / HTTP/1.1\r\nHo")
    until = time.monotonic() + 10
    while channel.request is None and time.monotonic() < until:
        wasyncore.loop(timeout=0.1, use_poll=True, map=served.table, count=1)
    assert channel.request is not None, "HTTPChannel.request is not set by half a request"
    assert channel.last_activity > channel.creation_time, "HTTPChannel.last_activity"
    assert channel.request.headers == {}, "HTTPRequestParser.headers is no dict"
    assert channel.request.headers_finished is False, "HTTPRequestParser.headers_finished"


def test_waitress_server_has_the_attributes_that_we_use(served: SimpleNamespace) -> None:
    server = served.server
    assert server.in_connection_overflow is False, "BaseWSGIServer.in_connection_overflow"
    assert server.accepting is True, "dispatcher.accepting: a pause of accepting sets it"
    assert parameters(server.accept) == [], "dispatcher.accept: servers/crowd.py watches it"
    assert parameters(served.channel.handle_close) == [], "HTTPChannel.handle_close"
    assert isinstance(server.adj.asyncore_use_poll, bool), "BaseWSGIServer.adj"
    with server.task_dispatcher.lock:
        assert list(server.task_dispatcher.queue) == [], "ThreadedTaskDispatcher.queue, .lock"
    assert parameters(server.task_dispatcher.shutdown) == ["cancel_pending", "timeout"]
    assert callable(wasyncore.dispatcher.close), "wasyncore.dispatcher.close"


def test_python_waits_for_threads_on_demand() -> None:
    assert callable(getattr(threading, "_shutdown", None)), (
        "threading._shutdown is gone: ProcessEnd waits for the app's threads with it"
    )


def test_python_waits_for_threads_by_the_name_that_we_replace() -> None:
    code = "import threading; threading._shutdown = lambda: print('ours')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ours\n", "Python's end does not call threading._shutdown any more"
