"""The parts of a stop, one by one: how connections are blocked, the shared signal, silence."""

from __future__ import annotations

import ctypes
import math
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from flask_workersize.servers import stopping
from flask_workersize.servers.stopping import (
    LATE_SILENCE_SECONDS,
    SILENCE_SECONDS,
    AcceptBudget,
    StopSignal,
    WatchedSocket,
    admit,
    block_new_connections,
    connections_to_accept,
    hang_up_if_silent,
    silent_seconds,
)
from tests.servers.serving import await_that

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_LOCK_FILTER = 44

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters listeners as Linux can")


@pytest.fixture(params=["127.0.0.1", "::1", "dual"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Listen on loopback, on both families, and on one socket for both."""
    is_dual = request.param == "dual"
    address = "::" if is_dual else request.param
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, dualstack_ipv6=is_dual) as listener:
        yield listener


@pytest.fixture(params=["filter", "least TTL"])
def blockable(request: pytest.FixtureRequest, listener: socket.socket) -> socket.socket:
    """Return a listener that takes our filter, and one that does not."""
    if request.param == "least TTL":
        refuse_filter(listener)
    return listener


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a client and the server's side of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        yield client, accepted


def addresses(listener: socket.socket) -> list[str]:
    """Return where clients find a listener."""
    host = listener.getsockname()[0]
    return ["127.0.0.1", "::1"] if host == "::" else [host]


def connect(listener: socket.socket, timeout: float = 5, host: str | None = None) -> socket.socket:
    name = listener.getsockname()
    return socket.create_connection((host or addresses(listener)[0], name[1]), timeout)


def refuse_filter(listener: socket.socket) -> None:
    """Lock a filter that lets everything in, so that ours is refused, as without CAP_NET_ADMIN."""
    step = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)
    buffer = ctypes.create_string_buffer(step)
    program = struct.pack("HL", 1, ctypes.addressof(buffer))
    # Without the privilege nothing has to be done to be refused.
    with suppress(PermissionError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        listener.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def refuse_all(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel refuse the least TTL too, as systems do that do not know it."""
    refuse_filter(listener)
    monkeypatch.setattr(stopping, "_IP_MINTTL", 9999)


def test_what_is_queued_enters_and_nothing_new(blockable: socket.socket) -> None:
    with connect(blockable) as early:
        assert block_new_connections([blockable])
        for host in addresses(blockable):
            with pytest.raises(TimeoutError):
                connect(blockable, 0.3, host)
        accepted, _ = blockable.accept()
        with accepted:
            assert admit(accepted) == SILENCE_SECONDS
            early.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert early.recv(100) == b"answer"
    assert not select.select([blockable], [], [], 0)[0]


def unblock(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    stopping._set_least_ttl(listener, 0)


def test_client_that_was_kept_away_meets_the_next_server(blockable: socket.socket) -> None:
    """Its kernel asks again after a second: dropping is kinder than refusing."""
    listener = blockable
    block_new_connections([listener])
    arrived = threading.Event()

    def knock() -> None:
        connect(listener, 10).close()
        arrived.set()

    thread = threading.Thread(target=knock)
    thread.start()
    assert not arrived.wait(0.2)
    unblock(listener)
    assert arrived.wait(10)
    thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_handshake_under_way_is_let_in_and_given_time(host: str) -> None:
    """It inherits the least TTL; what it sends is dropped until :func:`admit`, then sent again.

    The kernel defers the end of a handshake until there is data: so it is under way for sure.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        refuse_filter(listener)
        with connect(listener) as client:
            assert not select.select([listener], [], [], 0)[0]
            assert block_new_connections([listener])
            client.sendall(b"begin")
            assert select.select([listener], [], [], 5)[0]
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(10)
                client.sendall(b", end")
                assert accepted.recv(5) == b"begin"
                assert not select.select([accepted], [], [], 0.1)[0]
                assert admit(accepted) == LATE_SILENCE_SECONDS
                assert accepted.recv(100) == b", end"
                assert admit(accepted) == SILENCE_SECONDS


def known(*listeners: socket.socket) -> list[tuple[int, int]]:
    return [(int(item.family), os.fstat(item.fileno()).st_ino) for item in listeners]


def test_what_waits_is_the_budget_if_nothing_can_be_blocked(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [connect(listener) for _ in range(3)]
    refuse_all(listener, monkeypatch)
    assert not block_new_connections([listener])
    assert connections_to_accept([listener], known(listener)) == 3
    for client in clients:
        client.close()
        listener.accept()[0].close()
    assert connections_to_accept([listener], known(listener)) == 0


def test_budget_has_an_end_where_nobody_knows_how_many_wait(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_all(listener, monkeypatch)
    assert 0 < connections_to_accept([listener], None) < math.inf


def test_system_that_does_not_know_the_option_serves_all_the_same(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sandbox such as gVisor asking for it fails, at each connection."""
    refuse_all(listener, monkeypatch)
    with connect(listener):
        accepted, _ = listener.accept()
        with accepted:
            assert admit(accepted) == SILENCE_SECONDS


def test_option_that_is_accepted_without_an_effect_blocks_nothing(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As IP_TOS, which keeps other bits than it was given."""
    refuse_filter(listener)
    monkeypatch.setattr(stopping, "_IP_MINTTL", socket.IP_TOS)
    assert not block_new_connections([listener])


def test_budget_has_no_end_where_the_queue_cannot_grow(blockable: socket.socket) -> None:
    assert connections_to_accept([blockable], known(blockable)) == math.inf


def test_unix_sockets_need_no_filter_as_their_file_is_removed() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        assert block_new_connections([listener])


def test_queues_can_grow_as_long_as_one_can(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are blocked all the same."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert block_new_connections([listener, other])
    unblock(listener)
    refuse_all(listener, monkeypatch)
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


def test_silent_client_is_hung_up_on_and_a_speaking_one_is_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = pair
    with WatchedSocket(accepted) as watched:
        client.sendall(b"half")
        assert watched.recv(4) == b"half"
        hang_up_if_silent(watched, 0.2)
        received: list[bytes] = []
        waiting = threading.Thread(target=lambda: received.append(watched.recv(1)))
        waiting.start()
        deadline = time.monotonic() + 10
        while waiting.is_alive() and time.monotonic() < deadline:
            hang_up_if_silent(watched, 0.2)
            time.sleep(0.02)
        waiting.join()
        assert received == [b""]
        watched.sendall(b"the answer goes on")
        assert client.recv(100) == b"the answer goes on"
    hang_up_if_silent(watched, 0.2)
