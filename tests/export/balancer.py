"""A real HAProxy with the exported file, three replicas behind it, and a load before it."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.servers.clients import Outcome, at_once
from tests.servers.serving import await_that

WITHOUT_RETRIES = {
    "option redispatch 1": "no option redispatch",
    "retries 3": "retries 0",
    "retry-on conn-failure empty-response": "retry-on none",
}
"""What is replaced in the exported file, so that each request is sent once."""


def free_port() -> int:
    """Return a port that nothing listens on at any address."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


class HAProxy:
    """HAProxy in a folder of its own, which is made.

    :param folder: where its files are
    :param text: its configuration
    :param port: where that listens
    """

    def __init__(self, program: str, folder: Path, text: str, port: int) -> None:
        self.port = port
        folder.mkdir()
        (folder / "haproxy.cfg").write_text(text)
        # A second file, so that the first is the exported one.
        self._socket = folder / "admin"
        (folder / "admin.cfg").write_text(f"global\n    stats socket {self._socket} mode 600\n")
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, "-db", "-f", "haproxy.cfg", "-f", "admin.cfg"],
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
        )

    def up(self) -> int:
        """Return how many servers it sends requests to; 0 before it answers."""
        with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(5)
            client.connect(str(self._socket))
            client.sendall(b"show servers state\n")
            rows = [line.split() for line in client.makefile().read().splitlines()]
            return sum(len(row) > 5 and row[0].isdigit() and row[5] == "2" for row in rows)
        return 0

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def changed(text: str, changes: Mapping[str, str]) -> str:
    """Replace lines, each of which has to be there."""
    for old, new in changes.items():
        assert re.search(rf"^ *{re.escape(old)}\b", text, re.M), old
        text = text.replace(old, new)
    return text


@contextmanager
def load(port: int, clients: int) -> Iterator[Outcome]:
    """Send GET requests to a port of 127.0.0.1, one after the other from each client."""
    outcome, lock = Outcome(), threading.Lock()

    def client(over: threading.Event) -> None:
        while not over.is_set():
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                try:
                    while not over.is_set():
                        connection.request("GET", "/")
                        response = connection.getresponse()
                        response.read()
                        if response.status != 200:
                            raise ValueError(response.status)
                        with lock:
                            outcome.answered += 1
                except (OSError, http.client.HTTPException, ValueError) as error:
                    with lock:
                        outcome.failed.append(repr(error))
                    time.sleep(0.05)

    with at_once(client, clients):
        await_that(lambda: outcome.answered > 5 * clients, "a load")
        yield outcome
