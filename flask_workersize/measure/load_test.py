"""serve-prod and clients on one machine, to measure what an app costs."""

from __future__ import annotations

import http.client
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
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import IO, Any

from ..errors import WorkerSizeStartError
from ..health.report import CapacityReport, WorkerReport
from ..monitor.learning import Totals, TrafficMeter, shared_memory
from ..runtime.snapshot import WorkerMemory
from ..sizing.plan import MB
from ..sizing.validators import YEAR_SECONDS

START_SECONDS = 120.0
"""How long the app may take to start: the default of ``NOW_LMS_TIMEOUT``."""

ANSWER_SECONDS = 60.0
"""How long an answer may take."""

SUCCESS = range(200, 300)

_HOST = "127.0.0.1"


@dataclass
class Answers:
    """How often each status came, by path (0 for no answer), and targets of redirects."""

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    moved_to: dict[str, str] = field(default_factory=dict)

    def note(self, path: str, status: int, location: str | None = None) -> None:
        """Count an answer."""
        self.counts[path, status] += 1
        if location:
            self.moved_to[path] = location

    @property
    def good(self) -> int:
        """Answers that are a success."""
        return sum(n for (_, status), n in self.counts.items() if status in SUCCESS)


class LoadTest:
    """serve-prod and clients, which request ``paths`` in turn."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ports: tuple[int, int],
        token: str,
        paths: Sequence[str],
    ) -> None:
        self._process = process
        self._port, self._health_port = ports
        self._token = token
        self._paths = cycle(paths)
        self.answers = Answers()

    def send(self, count: int, clients: int, done: Callable[[int], object]) -> None:
        """Send requests, so many at once, and wait for their answers; ``done`` counts them."""
        pool = ThreadPoolExecutor(clients)
        try:
            for _ in pool.map(self._request, islice(self._paths, count)):
                done(1)
        finally:
            # Ctrl-C does not wait for those that were not sent yet.
            pool.shutdown(cancel_futures=True)

    def observe(self, meter: TrafficMeter) -> None:
        """Show the meter what the server counts and holds, once its memory was sampled."""
        # The monitor may take some seconds to sample the memory of all workers.
        deadline = time.monotonic() + 5
        while True:
            report, now = self._report(), time.monotonic()
            ready = [item for item in report.processes or () if item.ready]
            if now > deadline or all(item.memory_served == item.served for item in ready):
                break
            time.sleep(0.02)
        pids = [item.pid for item in ready]
        if shared := shared_memory(self._process.pid, report.pid or 0, pids):
            meter.note_shared(shared)
        times = (report.busy_seconds, report.cpu_seconds, report.cpu_wait_seconds)
        totals = Totals(report.served or 0, *(round((seconds or 0) * 1e9) for seconds in times))
        meter.observe(now, totals, {item.pid: _memory(item) for item in ready})

    def _request(self, path: str) -> None:
        try:
            answer, _ = _get(self._port, path, {"User-Agent": "flask-workersize"})
        except (OSError, http.client.HTTPException):
            self.answers.note(path, 0)
        else:
            self.answers.note(path, answer.status, answer.headers.get("Location"))

    def _report(self) -> CapacityReport:
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            body = _get(self._health_port, "/_health/capacity", headers)[1]
            return CapacityReport.model_validate_json(body)
        except (OSError, http.client.HTTPException, ValueError):
            raise WorkerSizeStartError(
                "The server exited during the measurement; a request may have caused it."
            ) from None


def _memory(item: WorkerReport) -> WorkerMemory:
    """Return the ledger of a worker, as its report shows it."""
    sizes = (item.rss_mb, item.pss_mb, item.uss_mb, item.first_mb, item.warm_mb, item.peak_mb)
    rss, pss, uss, first, warm, peak = (None if mb is None else round(mb * MB) for mb in sizes)
    return WorkerMemory(rss or 0, pss, uss or 0, first, warm, peak or 0, item.memory_served or 0)


@contextmanager
def load_test(
    command: Sequence[str], workers: int, threads: int, paths: Sequence[str]
) -> Iterator[LoadTest]:
    """Serve the app as in production, on a free port of the loopback interface."""
    port, health_port = _free_ports()
    token = secrets.token_hex()
    shape = ["--wsgi-server", "gunicorn", "--workers", str(workers), "--threads", str(threads)]
    with tempfile.TemporaryFile() as output, _ended_by_signals():
        process = subprocess.Popen(
            [*command, "serve-prod", *shape, "--bind", f"{_HOST}:{port}"],
            env=_environ(health_port, token),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the measuring, which then ends the server.
            start_new_session=True,
        )
        try:
            _await_ready(process, health_port, output)
            yield LoadTest(process, (port, health_port), token, paths)
        finally:
            _stop(process)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Stop the server if a signal ends this process."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    # Ignored signals, such as HUP under nohup, stay ignored.
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
    return kept | {
        "NOW_LMS_HEALTH_PORT": str(health_port),
        "NOW_LMS_HEALTH_HOST": _HOST,
        "NOW_LMS_HEALTH_TOKEN": token,
        "NOW_LMS_SIZING_PROFILE": "off",
        # Measure growth, so do not recycle workers.
        "NOW_LMS_MEMORY_GUARD": "off",
        "NOW_LMS_DRAIN_SECONDS": "0",
        # Its clients want all answers, however long they wait.
        "NOW_LMS_QUEUE_SECONDS": str(YEAR_SECONDS),
        # Every request was answered by then; only threads of the app may go on.
        "NOW_LMS_GRACEFUL_TIMEOUT": "2",
    }


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind((_HOST, 0))
        second.bind((_HOST, 0))
        return first.getsockname()[1], second.getsockname()[1]


def _get(port: int, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection(_HOST, port, timeout=ANSWER_SECONDS)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()


def _await_ready(process: subprocess.Popen[bytes], health_port: int, output: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            if _get(health_port, "/ready", {})[0].status == 200:
                return
        time.sleep(0.05)
    problem = f"is not ready after {START_SECONDS:g} s"
    if process.poll() is not None:
        problem = f"does not start: {_last_error(output)}"
    raise WorkerSizeStartError(f"The app {problem}. Start it with flask serve-prod to see why.")


def _last_error(output: IO[bytes]) -> str:
    """Return a server's last error line."""
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    if errors:
        return errors[-1].removesuffix(".")
    # The app's output may contain a secret: use only the kind of error in its last line.
    kind = re.match(r"\s*([\w.]+(?:Error|Exception))\b", lines[-1]) if lines else None
    return f"it exited with {kind[1]}" if kind else "it exited without an error message"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        # The default grace, and some more.
        process.wait(40)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def flask_command(import_path: str | None) -> list[str]:
    """Return the command line of ``flask`` for an app, up to the name of a command."""
    chosen = ["--app", import_path] if import_path else []
    return [sys.executable, "-m", "flask", *chosen]
