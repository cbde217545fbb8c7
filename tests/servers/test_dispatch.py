"""A threaded worker serves who is ready first, new or kept, and never more than it has slots."""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("fcntl", reason="gunicorn does not run on this system")

from gunicorn.config import Config
from gunicorn.workers import gthread

from flask_workersize.servers.gunicorn.thread_worker import ThreadWorker
from tests.servers.clients import PATH, SERVER_ARGS, SLOW, Clients, receive, send
from tests.servers.serving import Server, Starter, await_that, serve_prod

SIZE = ["--wsgi-server", "gunicorn", "--workers", "1", "--threads", "2"]
HEALTH_PORT = {"NOW_LMS_HEALTH_PORT": "0"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what waits")


def start_slow(start: Starter, *args: str) -> Server:
    return start(serve_prod(*args, app=SLOW), None, **PATH, **HEALTH_PORT).await_ready()


def keep(server: Server, connect: Clients) -> socket.socket:
    """Return a connection that was answered and kept."""
    client = connect(server)
    send(client, "/", close=False)
    assert receive(client).headers["Connection"] != "close"
    return client


def here(server: Server) -> set[str]:
    return {path.stem for path in server.folder.glob("*.here")}


def await_queued(server: Server, count: int) -> None:
    await_that(lambda: server.live_report()["queued"] == count, f"{count} wait")


def go(server: Server, name: str) -> None:
    Path(server.folder, f"{name}.go").touch()


def test_first_ready_is_first_served_and_no_more_run_than_there_are_slots(
    start: Starter, connect: Clients
) -> None:
    """Gunicorn's own passes kept connections to its threads past everybody who waits."""
    server = start_slow(start, *SIZE)
    names = ["kept-0", "new-0", "kept-1", "new-1", "new-2", "kept-2"]
    clients = {name: keep(server, connect) for name in names if name.startswith("kept")}
    for number, name in enumerate(names):
        client = clients.setdefault(name, connect(server))
        send(client, f"/hold?name={name}", close=False)
        if number < 2:
            await_that(lambda name=name: name in here(server), f"{name} runs")  # type: ignore[misc]
        else:
            await_queued(server, number - 1)
    report = server.live_report()
    assert (report["busy"], report["slots"]) == (2, 2)
    for number, name in enumerate(names):
        assert here(server) == set(names[: number + 2])
        go(server, name)
        assert receive(clients[name]).status == 200
        follows = set(names[: number + 3])
        await_that(lambda follows=follows: here(server) == follows, f"{name} is followed")  # type: ignore[misc]
    await_that(lambda: server.live_report()["busy"] == 0, "all is served")


@pytest.mark.parametrize("slots", ["waitress", "sync", "gthread-1x4"])
def test_who_has_closed_does_not_wait(start: Starter, connect: Clients, slots: str) -> None:
    """4 run, 6 wait; 2 of them close, and 1 resets its connection."""
    server = start_slow(start, *SERVER_ARGS[slots])
    kept = [] if slots == "sync" else [keep(server, connect)]
    for number in range(4):
        send(connect(server), f"/hold?name={number}")
    await_that(lambda: len(here(server)) == 4, "4 run")
    waiting = [connect(server) for _ in range(6)]
    for client in waiting:
        send(client, "/")
    await_queued(server, 6)
    for client in (*waiting[:2], *kept):
        client.close()
    reset(waiting[2])
    await_queued(server, 3)
    for number in range(4):
        go(server, str(number))
    assert [receive(client).status for client in waiting[3:]] == [200] * 3
    await_queued(server, 0)


def reset(client: socket.socket) -> None:
    """Close a connection as one does that does not want to wait for the other side."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.fixture
def worker() -> Iterator[Any]:
    """Make a worker with two slots, in this process: nothing turns its loop."""
    config, unused = Config(), cast("Any", None)
    config.set("threads", 2)
    worker: Any = ThreadWorker(1, 1, [], unused, 1, config, unused)
    worker.tmp.close()
    worker._open, worker._due = {}, {}
    worker.method_queue.init()
    yield worker
    worker.method_queue.close()


class Pool(ThreadPoolExecutor):
    """A pool that notes in which order it gets connections."""

    def __init__(self) -> None:
        super().__init__(8)
        self.order: list[int] = []

    def submit(self, call: Any, conn: Any) -> Any:  # type: ignore[override]
        self.order.append(conn.number)
        return super().submit(call, conn)


def test_pool_with_more_threads_than_slots_runs_as_many_as_there_are_slots(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them first; each that ends makes room for the next, whatever the loop does."""
    running: list[int] = []
    counts: list[int] = []
    goes_on = threading.Event()

    def serve(worker: Any, conn: Any) -> bool:
        running.append(conn.number)
        counts.append(len(running))
        goes_on.wait(10)
        running.remove(conn.number)
        return False

    monkeypatch.setattr(gthread.ThreadWorker, "handle", serve)
    with ExitStack() as stack:
        worker.tpool = pool = stack.enter_context(Pool())
        for number in range(20):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            theirs.sendall(b"GET")
            conn: Any = gthread.TConn(worker.cfg, ours, "", "")
            conn.number = number
            worker.enqueue_req(conn)
            # It has got a watched one by then.
            stack.callback(lambda conn: conn.sock.close(), conn)
        await_that(lambda: len(running) == 2, "two run")
        assert (pool.order, worker._busy()) == ([0, 1], 20)
        goes_on.set()
        await_that(lambda: not worker._busy(), "all are served")
        assert pool.order == list(range(20))
        assert max(counts) == 2


def test_connection_that_its_thread_has_closed_is_counted_once(worker: Any) -> None:
    """As after a response that breaks off: else a stop would not wait for as many requests."""
    ours, theirs = socket.socketpair()
    with theirs:
        worker.nr_conns = 3
        conn = gthread.TConn(worker.cfg, ours, "", "")
        ours.close()
        done: Future[bool] = Future()
        done.set_result(False)
        worker.finish_request(conn, done)
    assert worker.nr_conns == 2


@pytest.mark.parametrize("waits", ["here", "in the kernel"])
def test_no_connection_is_kept_while_requests_wait_if_the_queue_is_shared(
    worker: Any, waits: str
) -> None:
    """Which worker holds a connection would decide how long its client waits."""
    keeps = worker.cfg.worker_connections - worker.cfg.threads
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        worker.sockets = [listener]
        worker.shares_queue = True
        assert worker.max_keepalived == keeps
        if waits == "here":
            worker._ready.append(object())
        else:
            stack.enter_context(socket.create_connection(listener.getsockname()))
        # As long as a thread is free, nobody waits.
        worker._running = worker.slots - 1
        assert worker.max_keepalived == keeps
        worker._running = worker.slots
        assert worker.max_keepalived == -1
        # gthread's own way otherwise.
        worker.shares_queue = False
        assert worker.max_keepalived == keeps


@pytest.mark.parametrize("certificate", [None, "cert.pem"])
def test_queue_is_not_shared_with_tls(
    monkeypatch: pytest.MonkeyPatch, certificate: str | None
) -> None:
    """The time that a connection's first request waited is not known: none would be turned away."""
    monkeypatch.setattr(ThreadWorker, "shares_queue", True)
    config, unused = Config(), cast("Any", None)
    config.set("certfile", certificate)
    worker: Any = ThreadWorker(1, 1, [], unused, 1, config, unused)
    worker.tmp.close()
    assert worker.shares_queue is (certificate is None)


class Row:
    """A row of a worker that has no others beside it."""

    threads = 2

    def others(self) -> tuple[int | None, bool]:
        return None, False

    def note_held(self, *counts: int) -> None:
        """Note nothing."""


@pytest.mark.parametrize("shares_queue", [True, False])
def test_silent_clients_keep_nobody_out_of_free_threads(worker: Any, shares_queue: bool) -> None:
    """A browser connects in advance; whoever asks meanwhile must not wait in the kernel."""
    worker.row, worker.shares_queue, worker.alive = Row(), shares_queue, True
    worker.poller = selectors.DefaultSelector()
    with worker.poller, ExitStack() as stack:
        for _ in range(4):
            ours, _theirs = map(stack.enter_context, socket.socketpair())
            worker.enqueue_req(gthread.TConn(worker.cfg, ours, "", ""))
        assert (len(worker.pending_conns), worker._busy()) == (4, 0)
        worker._share_queue()
        assert worker._accepting
        # What has a thread is another matter: the queue of the kernel is the one that is shared.
        worker._running = 2
        worker._accepted_at = 0.0
        worker._share_queue()
        assert worker._accepting is not shares_queue
