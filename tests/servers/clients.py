"""Clients that hold their connection in the hand: silent, slow, many at once."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.servers.serving import DEADLINE_SECONDS, Answer, Server, ask

APPS_STOP = Path(__file__).parent / "apps_stop"
SLOW = "slow:create_app"
PATH = {"PYTHONPATH": f"{APPS_STOP}:{Path(__file__).parent / 'apps'}"}
"""The environment in which a server finds the apps of these tests."""

SERVER_ARGS = {
    "waitress": ["--wsgi-server", "waitress", "--threads", "4"],
    "sync": ["--wsgi-server", "gunicorn", "--workers", "4"],
    "gthread-2x2": ["--wsgi-server", "gunicorn", "--workers", "2", "--threads", "2"],
    "gthread-1x4": ["--wsgi-server", "gunicorn", "--workers", "1", "--threads", "4"],
}
"""Four slots each."""


class Clients:
    """Opens connections, and closes them all."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __call__(self, server: Server, url: str | None = None) -> socket.socket:
        """Return a connected socket to the first, or to another, address of a server."""
        return self._stack.enter_context(connect_socket(url or server.urls[0], server.folder))


def connect_socket(url: str, folder: Path, timeout: float = DEADLINE_SECONDS) -> socket.socket:
    """Return a connected socket; ``unix:PATH`` is a url too, its path relative to the folder."""
    if url.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        try:
            sock.connect(str(folder / url.removeprefix("unix:")))
        except OSError:
            sock.close()
            raise
        return sock
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout)


def send(sock: socket.socket, path: str, close: bool = True) -> None:
    """Send a whole GET request."""
    connection = "Connection: close\r\n" if close else ""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n{connection}\r\n".encode())


def receive(sock: socket.socket) -> Answer:
    """Read a whole response."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return Answer(response.status, response.headers, response.read())


def is_over(sock: socket.socket) -> bool:
    """Return whether the server ended the connection without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def is_turned_away(url: str, folder: Path) -> bool:
    """Return whether a new connection is refused, or not taken by anybody."""
    try:
        connect_socket(url, folder, 0.4).close()
    except OSError:
        return True
    return False


@dataclass
class Load:
    """What happened to the clients of a load."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    turned_away: int = 0

    def client(self, connect: Callable[[], http.client.HTTPConnection], keep: bool) -> None:
        """Ask until a new connection is turned away, or a request is lost."""
        until = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < until:
            connection = connect()
            try:
                connection.connect()
            except OSError:
                connection.close()
                self.turned_away += 1
                return
            try:
                while True:
                    headers = [] if keep else [("Connection", "close")]
                    answer = ask(connection, "/", headers=headers)
                    assert answer.status == 200
                    self.answered += 1
                    if not keep or answer.headers["Connection"] == "close":
                        break
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.lost.append(repr(error))
                return
            finally:
                connection.close()


@contextmanager
def load(server: Server, kinds: list[bool]) -> Iterator[Load]:
    """Put one client a kind (whether it keeps its connection) on a server until it turns away."""
    result = Load()
    threads = [
        threading.Thread(target=result.client, args=(server.connect, keep)) for keep in kinds
    ]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        for thread in threads:
            thread.join()


class Outcome:
    """What happened to the requests of a load."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed: list[str] = []

    def __str__(self) -> str:
        return f"{len(self.failed)} of {self.answered + len(self.failed):,}"


@contextmanager
def at_once(client: Callable[[threading.Event], None], clients: int) -> Iterator[None]:
    """Run so many clients until the end of the block, which sets their event."""
    over = threading.Event()
    threads = [threading.Thread(target=client, args=(over,)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
