"""A trial: the app served for real in its own processes, asked by clients, watched from outside."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

from ..errors import WorkerSizeStartError
from ..resources.processes import cpu_seconds, peak_resident_memory, process_memory
from ..sizing.plan import MB

START_SECONDS = 120.0
"""How long the app may take to start: the default of ``NOW_LMS_TIMEOUT``."""

ANSWER_SECONDS = 60.0
"""How long an answer may take."""

STOP_SECONDS = 40.0
"""How long the server may take to stop: the default grace, and some more."""

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class WorkerState:
    """A worker at one moment.

    :param pid: its process
    :param served: requests that it has served
    :param busy_seconds: time that its threads have spent on them
    :param cpu_seconds: time that they have computed for them
    :param process_seconds: CPU time of the whole process
    :param own_mb: memory of its own, in MB
    :param peak_mb: the most memory of its own that it has had so far, in MB
    """

    pid: int
    served: int
    busy_seconds: float
    cpu_seconds: float
    process_seconds: float
    private_mb: float
    peak_mb: float


@dataclass
class Answers:
    """What was answered.

    :param statuses: how often each status came, by path
    :param failed: requests without an answer, by path
    :param moved_to: where a redirect led, by path
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    moved_to: dict[str, str] = field(default_factory=dict)

    def note(self, path: str, status: int, location: str | None) -> None:
        """Count an answer."""
        self.statuses.setdefault(path, Counter())[status] += 1
        if location:
            self.moved_to[path] = location

    @property
    def good(self) -> int:
        """Answers that are what was asked for."""
        return sum(map(self.good_of, self.statuses))

    def good_of(self, path: str) -> int:
        """Return how many answers of a path are what was asked for."""
        counts = self.statuses.get(path, Counter())
        return sum(count for status, count in counts.items() if 200 <= status < 300)

    @property
    def useless(self) -> list[str]:
        """The paths that never gave what was asked for."""
        return [path for path in {**self.statuses, **self.failed} if not self.good_of(path)]


class LoadTest:
    """A server that runs for a trial.

    :param process: the launcher
    :param port: where the app answers
    :param health_port: where the monitor answers
    :param token: opens the details of the report
    :param paths: what is asked for, in turn
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        health_port: int,
        token: str,
        paths: Sequence[str],
    ) -> None:
        self._process = process
        self._port = port
        self._health_port = health_port
        self._token = token
        self._paths = paths
        self._asked = 0
        self.answers = Answers()

    def workers(self) -> list[WorkerState]:
        """Look at every worker."""
        told = self._report()
        return [state for row in told["processes"] if (state := _look(row)) is not None]

    def shared_mb(self) -> float:
        """Return the memory that is needed once, in MB: the master's, and the monitor's own.

        What workers share they share with the master, so its resident memory has it. Summed
        proportional shares would be less where another Python on the machine uses the same files.
        """
        master = process_memory(self._process.pid)
        monitor = process_memory(int(self._report()["pid"]))
        rss = master.rss_bytes if master else 0
        own = (monitor.uss_bytes or 0) if monitor else 0
        return (rss + own) / MB

    def ask(self, count: int, clients: int, done: Callable[[int], object]) -> None:
        """Send requests, and wait for their answers.

        :param count: how many
        :param clients: how many at once
        :param done: called with the number of answers that have come since
        """
        paths = [self._paths[(self._asked + n) % len(self._paths)] for n in range(count)]
        self._asked += count
        if clients == 1:
            for path in paths:
                self._ask(path)
                done(1)
            return
        with ThreadPoolExecutor(clients) as pool:
            for _ in pool.map(self._ask, paths):
                done(1)

    def _ask(self, path: str) -> None:
        try:
            answer, _ = _get(self._port, path, {"User-Agent": "flask-workersize"})
        except (OSError, http.client.HTTPException):
            self.answers.failed[path] += 1
        else:
            self.answers.note(path, answer.status, answer.headers.get("Location"))

    def _report(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"}
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                told: dict[str, Any] = json.loads(
                    _get(self._health_port, "/_health/capacity", headers)[1]
                )
                return told
            except (OSError, http.client.HTTPException, ValueError):
                # Not if the monitor was started again meanwhile.
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise WorkerSizeStartError(
                        "The server ended while it was measured: a request may have ended it. "
                        "Try other paths with --path."
                    ) from None
                time.sleep(0.1)


@contextmanager
def load_test(
    command: Sequence[str], workers: int, threads: int, paths: Sequence[str]
) -> Iterator[LoadTest]:
    """Serve the app as in production, on a free port of the loopback interface.

    :param command: the command line of ``flask``, up to the name of a command
    :param workers: worker processes
    :param threads: threads a worker
    :param paths: what is to be asked for
    :raises WorkerSizeStartError: if it does not start
    """
    port, health_port = _free_ports()
    token = secrets.token_hex()
    asked = ["--wsgi-server", "gunicorn", "--workers", str(workers), "--threads", str(threads)]
    with tempfile.TemporaryFile() as said, _ended_by_signals():
        process = subprocess.Popen(
            [*command, "serve-prod", *asked, "--bind", f"{_HOST}:{port}"],
            env=_environ(health_port, token),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            # Ctrl-C is for the measuring, which then ends the server.
            start_new_session=True,
        )
        try:
            _await_ready(process, health_port, said)
            yield LoadTest(process, port, health_port, token, paths)
        finally:
            _stop(process)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals that end this process leave no server behind."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    # What is ignored, as the hang-up is under nohup, stays so.
    numbers = (signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environ(health_port: int, token: str) -> dict[str, str]:
    foreign = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {
        **kept,
        "NOW_LMS_HEALTH_PORT": str(health_port),
        "NOW_LMS_HEALTH_HOST": _HOST,
        "NOW_LMS_HEALTH_TOKEN": token,
        "NOW_LMS_SIZING_PROFILE": "off",
        # Who grows is to be seen, not to be recycled.
        "NOW_LMS_MEMORY_GUARD": "off",
        "NOW_LMS_DRAIN_SECONDS": "0",
    }


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind((_HOST, 0))
        second.bind((_HOST, 0))
        return first.getsockname()[1], second.getsockname()[1]


def _get(port: int, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(_HOST, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def _await_ready(process: subprocess.Popen[bytes], health_port: int, said: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            if _get(health_port, "/ready", {})[0].status == 200:
                return
        time.sleep(0.05)
    if process.poll() is None:
        raise WorkerSizeStartError(
            f"The app is not ready after {START_SECONDS:g} s. Start it with flask serve-prod and "
            "see what it waits for."
        )
    raise WorkerSizeStartError(f"The app does not start: {_last_words(said)}")


def _last_words(said: IO[bytes]) -> str:
    """Return what a server says last: the line of its error."""
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines()]
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    if errors:
        return errors[-1]
    # What the app says may hold a secret: of its last line only the kind of error.
    kind = re.match(r"[\w.]+(?:Error|Exception)\b", lines[-1]) if lines else None
    told = f"it ended with {kind[0]}" if kind else "it ended without a word"
    return f"{told}. Start it with flask serve-prod and see what it says."


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _look(row: dict[str, Any]) -> WorkerState | None:
    memory = process_memory(row["pid"]) if row["pid"] else None
    if memory is None:
        return None
    rss, own = memory.rss_bytes, memory.uss_bytes
    # Where the system does not tell what is its own, all of it may be.
    own = rss if own is None else own
    most = peak_resident_memory(row["pid"]) or rss
    return WorkerState(
        row["pid"],
        row["served"],
        row["busy_seconds"],
        row["cpu_seconds"],
        cpu_seconds(row["pid"]),
        own / MB,
        (own + max(most - rss, 0)) / MB,
    )


def flask_command(import_path: str | None) -> list[str]:
    """Return the command line of ``flask`` for an app, up to the name of a command.

    :param import_path: what ``--app`` or ``FLASK_APP`` says; ``None`` looks for app.py and wsgi.py
    """
    chosen = ["--app", import_path] if import_path else []
    return [sys.executable, "-m", "flask", *chosen]
