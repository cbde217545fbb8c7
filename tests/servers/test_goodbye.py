"""A connection is closed when its client has closed it, or has had enough time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

pytest.importorskip("fcntl", reason="gunicorn does not run on this system")

from flask_workersize.servers.gunicorn import goodbye
from flask_workersize.servers.gunicorn.goodbye import Goodbyes
from tests.servers.clients import is_over
from tests.servers.serving import await_that

ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
MUCH = b"x" * 8 * 1024 * 1024


class Pairs:
    """Makes connections, the client's side first."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def __call__(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(self._listener.getsockname(), 10)
        accepted, _ = self._listener.accept()
        return self._stack.enter_context(client), self._stack.enter_context(accepted)


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield Pairs(stack)


@pytest.fixture(params=["owner", "thread"])
def goodbyes(request: pytest.FixtureRequest) -> Iterator[Goodbyes]:
    """Return one that its owner turns, and one that has a thread."""
    goodbyes = Goodbyes(has_thread=request.param == "thread")
    yield goodbyes
    goodbyes.finish(0)


def await_all_closed(goodbyes: Goodbyes) -> None:
    def look() -> bool:
        goodbyes.turn()
        return not goodbyes

    await_that(look, "all are closed")


def test_client_reads_the_answer_while_it_still_sends(goodbyes: Goodbyes, pairs: Pairs) -> None:
    client, accepted = pairs()
    client.setblocking(False)
    accepted.sendall(ANSWER)
    goodbyes.take(accepted)
    sent = 0
    while sent < len(MUCH):
        goodbyes.turn(0.01)
        try:
            sent += client.send(MUCH[sent : sent + 65536])
        except BlockingIOError:
            continue
    client.settimeout(10)
    assert client.recv(1000) == ANSWER
    assert is_over(client)
    assert len(goodbyes) == 1
    client.close()
    await_all_closed(goodbyes)


def test_client_that_has_closed_is_not_waited_for(pairs: Pairs) -> None:
    goodbyes = Goodbyes()
    client, accepted = pairs()
    client.close()
    goodbyes.take(accepted)
    assert not goodbyes
    assert accepted.fileno() == -1
    goodbyes.take(accepted)
    assert not goodbyes


def test_connection_that_the_app_closes_meanwhile_is_left_alone(
    goodbyes: Goodbyes, pairs: Pairs
) -> None:
    """As a thread of a websocket library does; the worker must not fail."""

    class ClosedMeanwhile(socket.socket):
        def shutdown(self, how: int) -> None:
            super().shutdown(how)
            self.close()

    client, accepted = pairs()
    goodbyes.take(ClosedMeanwhile(fileno=accepted.detach()))
    assert not goodbyes
    assert is_over(client)


def test_quiet_client_is_given_up_and_one_that_sends_for_ever_too(
    goodbyes: Goodbyes, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goodbye, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(goodbye, "MOST_SECONDS", 1.0)
    (_, quiet), (client, accepted) = pairs(), pairs()
    begun = time.monotonic()
    goodbyes.take(quiet)
    goodbyes.take(accepted)
    left = {}
    while goodbyes:
        left[len(goodbyes)] = time.monotonic() - begun
        client.send(b"x")
        time.sleep(0.02)
        goodbyes.turn()
    assert 0.2 < left[2] < 0.9
    assert left[1] > 0.9


def test_oldest_goes_for_one_too_many(
    goodbyes: Goodbyes, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goodbye, "MOST_CONNECTIONS", 2)
    clients = []
    for _ in range(3):
        client, accepted = pairs()
        clients.append(client)
        goodbyes.take(accepted)
    assert len(goodbyes) == 2
    for client in clients:
        client.send(b"x")
    time.sleep(0.05)
    goodbyes.turn()
    # What is closed answers with a reset.
    with pytest.raises(ConnectionError):
        clients[0].send(b"x")
    for client in clients[1:]:
        client.send(b"x")


def test_end_waits_for_clients_for_a_while(goodbyes: Goodbyes, pairs: Pairs) -> None:
    (client, accepted), (_, quiet) = pairs(), pairs()
    for connection in (accepted, quiet):
        goodbyes.take(connection)
    client.close()
    begun = time.monotonic()
    goodbyes.finish(0.3)
    assert not goodbyes
    assert time.monotonic() - begun >= 0.3
    goodbyes.finish(10)
    assert time.monotonic() - begun < 5
