"""The parts of a stop, one by one: the filter, the signal that workers share, silence."""

from __future__ import annotations

import math
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from flask_workersize.servers import stopping
from flask_workersize.servers.stopping import (
    AcceptBudget,
    StopSignal,
    WatchedSocket,
    block_new_connections,
    connections_to_accept,
    hang_up_if_silent,
    silent_seconds,
)
from tests.servers.serving import await_that

SO_DETACH_FILTER = 27
SO_LOCK_FILTER = 44

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters listeners as Linux can")


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Listen on loopback, on both families."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listener:
        yield listener


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a client and the server's side of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        yield client, accepted


def connect(listener: socket.socket, timeout: float = 5) -> socket.socket:
    name = listener.getsockname()
    return socket.create_connection((name[0], name[1]), timeout)


def test_filter_lets_in_what_is_queued_and_nothing_new(listener: socket.socket) -> None:
    with connect(listener) as early:
        assert block_new_connections([listener])
        with pytest.raises(TimeoutError):
            connect(listener, 0.3)
        accepted, _ = listener.accept()
        with accepted:
            early.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert early.recv(100) == b"answer"
    assert not select.select([listener], [], [], 0)[0]


def test_client_that_was_kept_away_meets_the_next_server(listener: socket.socket) -> None:
    """Its kernel asks again after a second: dropping is kinder than refusing."""
    block_new_connections([listener])
    arrived = threading.Event()

    def knock() -> None:
        connect(listener, 10).close()
        arrived.set()

    thread = threading.Thread(target=knock)
    thread.start()
    assert not arrived.wait(0.2)
    listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    assert arrived.wait(10)
    thread.join()


def lock(listener: socket.socket) -> None:
    """Lock the filter of a listener, as a sandbox may: it refuses ours."""
    block_new_connections([listener])
    listener.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def known(*listeners: socket.socket) -> list[tuple[int, int]]:
    return [(int(item.family), os.fstat(item.fileno()).st_ino) for item in listeners]


def test_what_waits_is_the_budget_where_no_filter_can_be_attached(
    listener: socket.socket,
) -> None:
    clients = [connect(listener) for _ in range(3)]
    lock(listener)
    assert not block_new_connections([listener])
    assert connections_to_accept([listener], known(listener)) == 3
    for client in clients:
        client.close()
        listener.accept()[0].close()
    assert connections_to_accept([listener], known(listener)) == 0


def test_budget_has_an_end_where_nobody_knows_how_many_wait(listener: socket.socket) -> None:
    lock(listener)
    assert 0 < connections_to_accept([listener], None) < math.inf


def test_budget_has_no_end_where_the_queue_cannot_grow(listener: socket.socket) -> None:
    assert connections_to_accept([listener], known(listener)) == math.inf


def test_unix_sockets_need_no_filter_as_their_file_is_removed() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        assert block_new_connections([listener])


def test_queues_can_grow_as_long_as_one_can(listener: socket.socket) -> None:
    """The others are blocked all the same."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert block_new_connections([listener, other])
    lock(listener)
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert not block_new_connections([listener, other])
        with pytest.raises(TimeoutError):
            connect(other, 0.3)


def test_stop_signal_reaches_processes_that_were_forked_before() -> None:
    signal = StopSignal()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in another process
        try:
            signal.wait(10)
            budget = signal.budget(60)
            found = (signal.is_sent(), budget.allows(1), budget.allows(2))
            os.write(tell, b"%d%d%d" % found)
        finally:
            os._exit(0)
    assert not signal.is_sent()
    assert not signal.wait(0)
    signal.send(2)
    assert signal.is_sent()
    os.waitpid(child, 0)
    assert os.read(told, 10) == b"110"
    os.close(told)
    os.close(tell)


@pytest.mark.parametrize("connections", [0, 3])
def test_accepting_ends_when_the_budget_is_spent(connections: int) -> None:
    budget = AcceptBudget(connections, 60)
    assert [budget.allows(n) for n in range(5)] == [n < connections for n in range(5)]


def test_accepting_from_a_queue_that_can_grow_ends_with_the_time_for_it() -> None:
    assert not AcceptBudget(1000, 0).allows(0)


def test_accepting_from_a_queue_that_cannot_grow_does_not_end() -> None:
    assert AcceptBudget(math.inf, 0).allows(1_000_000)


def test_time_since_the_last_packet_grows(pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    client.sendall(b"x")
    accepted.recv(1)
    await_that(lambda: silent_seconds(accepted) >= 0.3, "silence")
    client.sendall(b"x")
    await_that(lambda: silent_seconds(accepted) < 0.3, "speech")


def test_client_is_silent_only_while_somebody_waits_for_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = pair
    with WatchedSocket(accepted) as watched:
        await_that(lambda: silent_seconds(watched) > 0.1, "the first byte is waited for")
        client.sendall(b"x")
        assert watched.recv(1) == b"x"
        time.sleep(0.1)
        assert silent_seconds(watched) == 0
        waiting = threading.Thread(target=watched.recv, args=(1,))
        waiting.start()
        await_that(lambda: silent_seconds(watched) > 0.1, "the next byte is waited for")
        client.sendall(b"x")
        waiting.join()
        assert silent_seconds(watched) == 0
        client.sendall(b"x")
        watched.shutdown(socket.SHUT_WR)
        await_that(lambda: silent_seconds(watched) > 0.1, "the goodbye is waited for")


def test_silent_client_is_hung_up_on_and_a_speaking_one_is_not(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, accepted = pair
    monkeypatch.setattr(stopping, "SILENCE_SECONDS", 0.2)
    with WatchedSocket(accepted) as watched:
        client.sendall(b"half")
        assert watched.recv(4) == b"half"
        hang_up_if_silent(watched)
        received: list[bytes] = []
        waiting = threading.Thread(target=lambda: received.append(watched.recv(1)))
        waiting.start()
        deadline = time.monotonic() + 10
        while waiting.is_alive() and time.monotonic() < deadline:
            hang_up_if_silent(watched)
            time.sleep(0.02)
        waiting.join()
        assert received == [b""]
        watched.sendall(b"the answer goes on")
        assert client.recv(100) == b"the answer goes on"
    hang_up_if_silent(watched)
