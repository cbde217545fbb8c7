"""Ask servers for their reports: all at the same time, and each within its time."""

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
"""A report of 1,000 workers has about half of it."""

_MARGIN_SECONDS = 0.5
"""A name server is asked by the system, which has its own time limit: what takes longer than this
is left behind."""


class Asker:
    """Asks the same servers again and again, each in a thread of its own."""

    def __init__(self, targets: Sequence[Target], token: str | None) -> None:
        self._targets = targets
        self._headers = {"Accept": b"application/json", "Connection": b"close"}
        if token is not None:
            sent = f"Bearer {token}".encode(errors="surrogateescape")
            self._headers["Authorization"] = sent
        self._threads: dict[int, threading.Thread] = {}
        self._answers: dict[int, Answer] = {}

    def ask(self) -> list[Answer]:
        """Return what each server answers, in their order."""
        for number in range(len(self._targets)):
            old = self._threads.get(number)
            if old is None or not old.is_alive():
                self._answers.pop(number, None)
                thread = threading.Thread(target=self._note, args=(number,), daemon=True)
                self._threads[number] = thread
                thread.start()
        until = time.monotonic() + ANSWER_SECONDS + _MARGIN_SECONDS
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))
        return [
            self._answers.get(number) or Answer(target.url, None, _TOO_SLOW)
            for number, target in enumerate(self._targets)
        ]

    def _note(self, number: int) -> None:
        self._answers[number] = _answer(self._targets[number], self._headers)


_TOO_SLOW = f"no answer within {ANSWER_SECONDS:g} s"


def _answer(target: Target, headers: Mapping[str, bytes]) -> Answer:
    """Return what a server answers, or why it does not."""
    try:
        return _read(target, headers)
    except TimeoutError:
        problem = _TOO_SLOW
    except ssl.SSLCertVerificationError as error:
        problem = f"no answer (certificate not accepted: {error.verify_message})"
    except ssl.SSLError as error:
        problem = f"no answer (TLS: {error.reason or 'failed'}; does it speak https?)"
    except (socket.gaierror, UnicodeError):
        problem = "no answer (host name not found)"
    except RemoteDisconnected:
        problem = "no answer (connection closed)"
    except OSError as error:
        problem = f"no answer ({(error.strerror or 'connection failed').lower()})"
    except (HTTPException, ValueError):
        problem = "no answer (what is there speaks no HTTP)"
    return Answer(target.url, None, plain(problem))


def _read(target: Target, headers: Mapping[str, bytes]) -> Answer:
    until = time.monotonic() + ANSWER_SECONDS
    with closing(_Unix(target) if target.scheme == "unix" else _connection(target)) as connection:
        connection.connect()
        sock = connection.sock
        _limit(sock, until)
        connection.request("GET", target.path, headers=dict(headers))
        # It asks its socket for nothing but a file.
        response = HTTPResponse(cast(Any, _Timed(sock, until)), method="GET")
        with closing(response):
            response.begin()
            body = response.read(_MOST_BYTES + 1)
    return _judged(target.url, response.status, response.headers.get("Location"), body)


def _connection(target: Target) -> HTTPConnection:
    """Return a connection; it knows no proxy and follows no redirect, as the token is for one."""
    kind = HTTPSConnection if target.scheme == "https" else HTTPConnection
    # Without a port it would look for one in an address of IPv6.
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
    """What a socket sends, until a moment: a server that sends a byte a second is too slow."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file that a response is read from."""
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
        problem = f"answered {status}, a redirect: name the address that it leads to"
        problem += f" ({location})" if location else ""
    elif status in (401, 403):
        problem = f"answered {status}: NOW_LMS_HEALTH_TOKEN is missing, or is not the server's"
    elif isinstance(report.get("error"), str):
        problem = f"answered {status}: {report['error']}"
    elif status != 200:
        problem = f"answered {status}: no report at this path; add the right one to the address"
    elif len(body) > _MOST_BYTES:
        problem = "answered more than 1 MB: this is no report"
    elif "workers" not in report:
        problem = "answered something else than a report: check port and path"
    return Answer(url, None if problem else report, plain(problem))


def _parsed(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
