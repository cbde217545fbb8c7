"""Fetch reports from servers, all at once, with a time limit for each."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    RemoteDisconnected,
)
from typing import Any, cast

from .target import Target
from .values import Answer, plain

ANSWER_SECONDS = 3.0
"""How long a server may take to answer in full."""

_MOST_BYTES = 1024 * 1024
"""A report of 1,000 workers is about half as long."""

_MARGIN_SECONDS = 0.5
"""Extra time: the system's name lookup has a limit of its own."""


class Poller:
    """Fetches reports from the same servers repeatedly, each in its own thread."""

    def __init__(self, targets: Sequence[Target], token: str | None) -> None:
        self._targets = targets
        self._headers = {"Accept": b"application/json", "Connection": b"close"}
        if token is not None:
            sent = f"Bearer {token}".encode(errors="surrogateescape")
            self._headers["Authorization"] = sent
        self._answers = [Answer(target.url, None, "no answer yet") for target in targets]
        self._threads: dict[int, threading.Thread] = {}
        self._started: dict[int, float] = {}

    def poll(self, seconds: float = ANSWER_SECONDS + _MARGIN_SECONDS) -> list[Answer]:
        """Return the latest answer of each server, in their order.

        :param seconds: how long to wait; a server that may still answer after that keeps its last
            answer
        """
        until = time.monotonic() + seconds
        for number in range(len(self._targets)):
            if number not in self._threads or not self._threads[number].is_alive():
                thread = threading.Thread(target=self._note, args=(number,), daemon=True)
                self._threads[number], self._started[number] = thread, time.monotonic()
                thread.start()
        for number, thread in self._threads.items():
            thread.join(max(0.0, until - time.monotonic()))
            age = time.monotonic() - self._started[number]
            if thread.is_alive() and age > ANSWER_SECONDS + _MARGIN_SECONDS / 2:
                self._answers[number] = Answer(self._targets[number].url, None, _TOO_SLOW)
        return list(self._answers)

    def _note(self, number: int) -> None:
        self._answers[number] = _answer(self._targets[number], self._headers)


_TOO_SLOW = f"no answer within {ANSWER_SECONDS:g} s"


def _answer(target: Target, headers: Mapping[str, bytes]) -> Answer:
    """Return a server's answer, or why there is none."""
    try:
        return _read(target, headers)
    except TimeoutError:
        problem = _TOO_SLOW
    except ssl.SSLCertVerificationError as error:
        problem = f"no answer (certificate not accepted: {error.verify_message})"
    except ssl.SSLError as error:
        problem = f"no answer (TLS: {error.reason or 'failed'}; perhaps not an https port)"
    except (socket.gaierror, UnicodeError):
        problem = "no answer (host name not found)"
    except RemoteDisconnected:
        problem = "no answer (connection closed)"
    except OSError as error:
        problem = f"no answer ({(error.strerror or 'connection failed').lower()})"
    except (HTTPException, ValueError):
        problem = "no answer (not an HTTP server)"
    return Answer(target.url, None, plain(problem))


def _read(target: Target, headers: Mapping[str, bytes]) -> Answer:
    until = time.monotonic() + ANSWER_SECONDS
    with closing(_Unix(target) if target.scheme == "unix" else _connection(target)) as connection:
        connection.connect()
        sock = connection.sock
        _limit(sock, until)
        connection.request("GET", target.path, headers=dict(headers))
        # HTTPResponse only calls makefile() on its socket.
        response = HTTPResponse(cast(Any, _Timed(sock, until)), method="GET")
        with closing(response):
            response.begin()
            body = response.read(_MOST_BYTES + 1)
    return _judged(target.url, response.status, response.headers.get("Location"), body)


def _connection(target: Target) -> HTTPConnection:
    """Return a connection. http.client uses no proxy and follows no redirect with the token."""
    kind = HTTPSConnection if target.scheme == "https" else HTTPConnection
    # Without a port, http.client would take the end of an IPv6 address for one.
    port = kind.default_port if target.port is None else target.port
    return kind(target.host, port, timeout=ANSWER_SECONDS)


class _Unix(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, target: Target) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._place = target.host

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_SECONDS)
        self.sock.connect(self._place)


class _Timed(io.RawIOBase):
    """Reads from a socket until a deadline, so that a slow trickle counts as too slow."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file for reading the response."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        _limit(self._sock, self._until)
        return self._sock.recv_into(buffer)


def _limit(sock: socket.socket, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def _judged(url: str, status: int, location: str | None, body: bytes) -> Answer:
    """Return the report in an answer, or what is wrong with it."""
    report = _parsed(body)
    problem = ""
    if 300 <= status < 400:
        problem = f"answered {status}, a redirect: use its target as the URL"
        problem += f" ({location})" if location else ""
    elif status in (401, 403):
        problem = f"answered {status}: NOW_LMS_HEALTH_TOKEN is missing or differs from the server's"
    elif isinstance(report.get("error"), str):
        problem = f"answered {status}: {report['error']}"
    elif status != 200:
        problem = f"answered {status}: no report at this path; add the right path to the URL"
    elif len(body) > _MOST_BYTES:
        problem = "answered more than 1 MB, which is not a report"
    elif "workers" not in report:
        problem = "the answer is not a capacity report; check port and path"
    return Answer(url, None if problem else report, plain(problem))


def _parsed(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
