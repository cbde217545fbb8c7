"""How many connections wait in the kernel, asked by who does not hold the listener."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flask_workersize.resources.backlog import Listener, awaited_connections, queued_connections
from flask_workersize.runtime.scoreboard import Scoreboard
from tests.children import Children, status_of
from tests.servers.serving import await_that

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

KINDS = ["127.0.0.1", "::1", "unix"]


def listen(kind: str, folder: Path) -> socket.socket:
    """Listen on loopback or on a file."""
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "listener.sock"))
        listener.listen(100)
        return listener
    family = socket.AF_INET6 if ":" in kind else socket.AF_INET
    return socket.create_server((kind, 0), family=family, backlog=100)


def name_of(listener: socket.socket) -> Listener:
    return int(listener.family), os.fstat(listener.fileno()).st_ino


class Queue:
    """Fills the queue of a listener, and empties it."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def connect(self, listener: socket.socket, count: int) -> list[socket.socket]:
        clients = []
        for _ in range(count):
            client = self._stack.enter_context(socket.socket(listener.family))
            client.settimeout(10)
            client.connect(listener.getsockname())
            clients.append(client)
        return clients

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue()
    yield queue
    queue.close()


def await_queued(listeners: list[Listener], count: int) -> None:
    await_that(lambda: queued_connections(listeners) == count, f"{count} in the queue")


@pytest.fixture(params=KINDS)
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Listen on each kind of address."""
    with listen(request.param, tmp_path) as listener:
        yield listener


def test_connections_that_wait_are_counted_and_those_accepted_are_not(
    listener: socket.socket, queue: Queue
) -> None:
    names = [name_of(listener)]
    assert queued_connections(names) == 0
    queue.connect(listener, 3)
    await_queued(names, 3)
    accepted, _ = listener.accept()
    with accepted:
        await_queued(names, 2)


def test_queues_of_several_listeners_are_added_up(tmp_path: Path, queue: Queue) -> None:
    with ExitStack() as stack:
        listeners = [stack.enter_context(listen(kind, tmp_path)) for kind in KINDS]
        for number, listener in enumerate(listeners):
            queue.connect(listener, number + 1)
        await_queued([name_of(listener) for listener in listeners], 6)


def test_process_that_does_not_hold_the_listener_is_told(
    listener: socket.socket, queue: Queue, children: Children
) -> None:
    """From the scoreboard, as the monitor asks."""
    board = Scoreboard(1, 1)
    board.set_listeners([listener])
    queue.connect(listener, 2)
    await_queued([name_of(listener)], 2)

    def look() -> None:
        listener.close()
        assert queued_connections(board.listeners) == 2

    assert status_of(children(look)) == 0


def test_queue_of_a_listener_that_is_closed_is_not_known(listener: socket.socket) -> None:
    name = name_of(listener)
    listener.close()
    assert queued_connections([name]) is None


def test_queue_is_not_known_where_one_listener_of_several_is_not(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert queued_connections([name_of(listener), (socket.AF_INET, 1)]) is None
        assert queued_connections([name_of(listener), name_of(other)]) == 0


@pytest.mark.parametrize("listeners", [None, []])
def test_queue_of_no_listener_is_not_known(listeners: list[Listener] | None) -> None:
    assert queued_connections(listeners) is None


@pytest.mark.parametrize(
    "listener", [(0, 1), (255, 1), (socket.AF_UNIX, 1), (socket.AF_UNIX, 0), (socket.AF_INET, 0)]
)
def test_what_is_no_listener_is_not_known(listener: Listener) -> None:
    assert queued_connections([listener]) is None


def test_other_systems_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert queued_connections([name_of(listener)]) is None


def await_awaited(listeners: list[Listener], count: int) -> None:
    await_that(lambda: awaited_connections(listeners) == count, f"{count} clients wait")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_client_that_has_closed_or_reset_its_connection_does_not_wait(
    address: str, queue: Queue
) -> None:
    """Until it is accepted, the kernel counts it; another address of the same port is another's."""
    with listen(address, Path()) as listener, ExitStack() as stack:
        names = [name_of(listener)]
        if address == "127.0.0.1":
            port = listener.getsockname()[1]
            other = stack.enter_context(socket.create_server(("127.0.0.2", port)))
            queue.connect(other, 3)
        clients = queue.connect(listener, 5)
        accepted = stack.enter_context(listener.accept()[0])
        await_awaited(names, 4)
        clients[1].close()
        clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients[2].close()
        clients[3].sendall(b"x")
        await_awaited(names, 2)
        assert queued_connections(names) == 4
        clients[4].shutdown(socket.SHUT_WR)
        await_awaited(names, 1)
        accepted.close()
        assert awaited_connections([*names, (socket.AF_INET, 1)]) is None


def test_of_a_unix_socket_all_are_counted(tmp_path: Path, queue: Queue) -> None:
    with listen("unix", tmp_path) as listener:
        for client in queue.connect(listener, 2):
            client.close()
        queue.connect(listener, 1)
        assert awaited_connections([name_of(listener)]) == 3
