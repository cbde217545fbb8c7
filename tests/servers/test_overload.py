"""What waits too long: told, turned away if a bound is set, and not computed for nobody."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flask_workersize.runtime.polling import wait_readable
from flask_workersize.servers.stopping import since_last_data
from tests.servers.clients import PATH, SLOW, Clients, receive, send
from tests.servers.serving import (
    CONF,
    DEADLINE_SECONDS,
    Answer,
    Server,
    Starter,
    await_that,
    gunicorn,
    serve_prod,
)

KINDS = {
    "waitress": serve_prod("--threads", "1", server="waitress", app=SLOW),
    "sync": serve_prod("--workers", "1", server="gunicorn", app=SLOW),
    "gthread": serve_prod("--threads", "2", "--workers", "1", server="gunicorn", app=SLOW),
}
BUSY = b"The server is busy. Try again in a moment.\n"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Run the test on each server and kind of worker, with as few slots as it can have."""
    chosen: str = request.param
    return chosen


def serve(start: Starter, kind: str, **environ: str) -> Server:
    return start(KINDS[kind], None, **PATH, NOW_LMS_HEALTH_PORT="0", **environ).await_ready()


class Held:
    """Requests that hold every slot of a server, until they are let go."""

    def __init__(self, server: Server, connect: Clients, kind: str) -> None:
        self._folder = server.folder
        self.count = 2 if kind == "gthread" else 1
        self._connect, self._server = connect, server
        self.socks = list(map(self._hold, range(self.count)))

    def _hold(self, number: int) -> socket.socket:
        """Hold a slot; on a busy machine it may take longer than the bound until one is free."""
        for end in ("go", "here"):
            (self._folder / f"{number}.{end}").unlink(missing_ok=True)
        here = self._folder / f"{number}.here"
        while True:
            sock = self._connect(self._server)
            send(sock, f"/hold?name={number}")
            while not wait_readable([sock], 0.01):
                if here.exists():
                    return sock
            sock.close()

    def _files(self, end: str) -> list[Path]:
        return [self._folder / f"{number}.{end}" for number in range(self.count)]

    def let_go(self) -> list[Answer]:
        """Let them go, and return their answers."""
        for path in self._files("go"):
            path.touch()
        answers = [receive(sock) for sock in self.socks]
        for sock in self.socks:
            sock.close()
        for path in self._files("here"):
            path.unlink()
        return answers


def waits(server: Server) -> dict[str, float]:
    """Return the histogram of queue times: how many waited up to so long, and their sum."""
    text = server.probe("/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["workersize_queue_seconds"].samples
    return {s.labels.get("le", s.name.rpartition("_")[2]): s.value for s in samples}


def figures(server: Server, *names: str) -> tuple[Any, ...]:
    told = server.live_report()
    return tuple(told[name] for name in names)


# How long a request has waited


@pytest.mark.parametrize("keeps", [False, True], ids=["new", "kept"])
def test_time_in_the_queue_is_told_for_each_request(
    start: Starter, connect: Clients, kind: str, keeps: bool
) -> None:
    if keeps and kind == "sync":
        pytest.skip("gunicorn's sync worker keeps no connection")
    server = serve(start, kind)
    kept = connect(server) if keeps else None
    if kept:
        send(kept, "/", close=False)
        assert receive(kept).status == 200
    before = waits(server)
    held = Held(server, connect, kind)
    waiting = kept or connect(server)
    send(waiting, "/")
    begun = time.monotonic()
    time.sleep(0.6)
    waited = time.monotonic() - begun
    held.let_go()
    assert receive(waiting).status == 200
    after = waits(server)
    assert after["count"] - before["count"] == held.count + 1
    # The others have waited, too, for as long as the machine is slow.
    assert waited - 0.02 <= after["sum"] - before["sum"] < waited + DEADLINE_SECONDS


def test_kernel_tells_the_time_since_the_last_data() -> None:
    """As precise as its clock: before and after the connection is accepted."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        client.sendall(b"GET")
        sent = time.monotonic()
        time.sleep(0.3)
        server = stack.enter_context(listener.accept()[0])
        found, seconds = since_last_data(server), time.monotonic() - sent
        assert found == pytest.approx(seconds, abs=0.05)
        client.sendall(b" / HTTP/1.1")
        sent = time.monotonic()
        time.sleep(0.1)
        found, seconds = since_last_data(server), time.monotonic() - sent
        assert found == pytest.approx(seconds, abs=0.05)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert since_last_data(one) is None


def test_waits_of_the_last_minute_are_in_the_report(start: Starter, connect: Clients) -> None:
    server = serve(start, "gthread")
    assert figures(server, "queue_mean_seconds", "queue_most_seconds") == (None, None)
    held = Held(server, connect, "gthread")
    waiting = connect(server)
    send(waiting, "/")
    time.sleep(0.5)
    held.let_go()
    receive(waiting)
    await_that(lambda: (figures(server, "queue_most_seconds")[0] or 0) >= 0.5, "it is told")
    mean, most = figures(server, "queue_mean_seconds", "queue_most_seconds")
    assert most < 5
    assert most / 4 < mean < most


def test_nobody_can_tell_on_a_unix_socket_but_the_proxy(start: Starter) -> None:
    server = start(
        serve_prod("--workers", "1", "--bind", "unix:lms.sock", server="gunicorn", app=SLOW),
        None,
        **PATH,
        NOW_LMS_HEALTH_HOST="127.0.0.1",
        NOW_LMS_HEALTH_PORT="0",
        NOW_LMS_TRUSTED_PROXY="192.0.2.1",
        NOW_LMS_QUEUE_SECONDS="1",
    ).await_ready()
    assert server.get("/").status == 200
    assert waits(server)["count"] == 0
    stamp = [("X-Request-Start", f"t={time.time() - 5:.3f}")]
    # It may be the clock of another machine: all are late by that.
    assert server.get("/", stamp).status == 200
    assert waits(server)["10.0"] == 1
    assert server.get("/", [("X-Request-Start", f"{time.time():.6f}")]).status == 200
    stamp = [("X-Request-Start", f"{(time.time() - 5) * 1000:.0f}")]
    assert server.get("/", stamp).status == 503
    assert figures(server, "shed", "abandoned", "served") == (1, 0, 3)


@pytest.mark.parametrize("name", ["waitress", "gunicorn"])
def test_time_stamp_is_believed_of_a_trusted_proxy_alone(start: Starter, name: str) -> None:
    for trusted, count in (("127.0.0.1", 1), ("192.0.2.1", 0)):
        server = start(
            serve_prod("--workers", "1", server=name, app=SLOW),
            None,
            **PATH,
            NOW_LMS_HEALTH_PORT="0",
            NOW_LMS_TRUSTED_PROXY=trusted,
            NOW_LMS_QUEUE_SECONDS="0.5",
        )
        server.await_ready()
        # Told, but no reason to turn it away: the kernel knows better.
        stamp = [("X-Request-Start", f"t={time.time() - 20:.3f}")]
        assert server.get("/", stamp).status == 200
        assert server.get("/", [("X-Request-Start", "tomorrow")]).status == 200
        found = waits(server)
        assert (found["30.0"] - found["10.0"], found["count"]) == (count, 2)


# Nothing is computed for a client that has gone


def test_request_of_a_client_that_has_gone_is_not_computed(
    start: Starter, connect: Clients, kind: str, tmp_path: Path
) -> None:
    server = serve(start, kind)
    held = Held(server, connect, kind)
    gone, half_closed, waiting = (connect(server) for _ in range(3))
    send(gone, "/sleep?name=gone&seconds=0")
    send(half_closed, "/sleep?name=half&seconds=0")
    send(waiting, "/")
    time.sleep(0.7)
    gone.close()
    half_closed.shutdown(socket.SHUT_WR)
    held.let_go()
    assert receive(waiting).status == 200
    answer = receive(half_closed)
    assert (answer.status, answer.body) == (503, BUSY)
    await_that(lambda: figures(server, "abandoned") == (2,), "both are counted")
    await_that(lambda: figures(server, "shed", "busy", "queued") == (0, 0, 0), "all is over")
    assert not (tmp_path / "gone.here").exists()
    assert not (tmp_path / "half.here").exists()
    assert "Traceback" not in server.stderr


def test_client_that_half_closes_is_served_as_ever_without_a_queue(
    start: Starter, connect: Clients, kind: str
) -> None:
    server = serve(start, kind, NOW_LMS_QUEUE_SECONDS="0.2")
    sock = connect(server)
    send(sock, "/")
    sock.shutdown(socket.SHUT_WR)
    assert receive(sock).status == 200


def test_every_client_is_taken_at_its_word_at_a_stop(
    start: Starter, connect: Clients, kind: str
) -> None:
    server = serve(start, kind)
    held = Held(server, connect, kind)
    half_closed = connect(server)
    send(half_closed, "/")
    half_closed.shutdown(socket.SHUT_WR)
    time.sleep(0.6)
    threading.Timer(0.3, held.let_go).start()
    assert server.stop() == 0
    assert receive(half_closed).status == 200


# A bound on the queue


def test_request_that_has_waited_too_long_is_turned_away(
    start: Starter, connect: Clients, kind: str
) -> None:
    server = serve(start, kind, NOW_LMS_QUEUE_SECONDS="0.2")
    held = Held(server, connect, kind)
    (shed_before,) = figures(server, "shed")
    socks = [connect(server) for _ in range(4)]
    for sock, close in zip(socks, (True, False, False, True), strict=True):
        send(sock, "/", close)
    told = connect(server)
    send(told, "/_health/capacity")
    time.sleep(0.4)
    assert [answer.status for answer in held.let_go()] == [200] * held.count
    for sock in socks:
        answer = receive(sock)
        assert (answer.status, answer.body) == (503, BUSY)
        assert answer.headers["Connection"].lower() == "close"
        assert answer.headers["Retry-After"] in {"1", "2", "3"}
        assert sock.recv(1) == b""
    # Whoever asks for the report waits, but gets it.
    assert receive(told).status == 200
    await_that(lambda: figures(server, "abandoned", "queued") == (0, 0), "all is over")
    assert figures(server, "shed", "served") == (shed_before + 4, held.count + 1)
    assert server.probe("/ready").status == 200
    assert server.get("/").status == 200


def test_nothing_is_turned_away_while_threads_are_free_after_the_start(
    start: Starter, connect: Clients
) -> None:
    """The first request of a worker keeps the next ones waiting only if memory may be too short."""
    server = serve(start, "gthread", NOW_LMS_QUEUE_SECONDS="0.5")
    socks = [connect(server), connect(server)]
    for number, sock in enumerate(socks):
        send(sock, f"/sleep?name={number}&seconds=0.9")
    assert [receive(sock).status for sock in socks] == [200, 200]


def test_direct_gunicorn_turns_away_and_keeps_the_connection(
    start: Starter, connect: Clients
) -> None:
    server = start(
        gunicorn("-c", CONF, "--threads", "2", "--workers", "1", app=f"{SLOW}()"),
        None,
        **PATH,
        NOW_LMS_HEALTH_PORT="0",
        NOW_LMS_QUEUE_SECONDS="0.2",
    ).await_ready()
    held = Held(server, connect, "gthread")
    waiting = connect(server)
    send(waiting, "/", close=False)
    time.sleep(0.4)
    held.let_go()
    assert receive(waiting).status == 503
    send(waiting, "/", close=False)
    assert receive(waiting).status == 200


def test_head_is_turned_away_without_a_body(start: Starter, connect: Clients) -> None:
    server = serve(start, "sync", NOW_LMS_QUEUE_SECONDS="0.2")
    held = Held(server, connect, "sync")
    waiting = connect(server)
    waiting.sendall(b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n")
    time.sleep(0.4)
    held.let_go()
    head = b"".join(iter(lambda: waiting.recv(4096), b""))
    assert head.startswith(b"HTTP/1.1 503 ")
    assert head.endswith(b"\r\n\r\n")
