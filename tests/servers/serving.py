"""Start real servers on loopback, ask them, stop them."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
from flask import Flask

from flask_workersize import WorkerSizing
from flask_workersize.sizing.settings import NAMES

APPS = Path(__file__).parent / "apps"
DEADLINE_SECONDS = 30
FACTS = "facts:create_app"
CONF = "python:flask_workersize.gunicorn_conf"

_LISTENING = re.compile(r"(?:Serving on|Listening at:|Running on) (\S.*?)(?: \(\d+\))?$", re.M)
_FOREIGN = {variable for names in NAMES.values() for variable in names.variables} | {
    "FORWARDED_ALLOW_IPS",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "SERVER_SOFTWARE",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
}
_FOREIGN_PREFIXES = ("NOW_LMS_", "FLASK_", "GUNICORN_", "WERKZEUG_", "FACTS_")

Environ = Mapping[str, str]
Headers = Sequence[tuple[str, str]]


def flask(*args: str, app: str = FACTS) -> list[str]:
    """Return the command line of ``flask --app APP ...``."""
    return [sys.executable, "-m", "flask", "--app", app, *args]


def serve_prod(*args: str, server: str | None = None, app: str = FACTS) -> list[str]:
    """Return the command line of ``flask serve-prod``; the test apps bind 127.0.0.1, port 0."""
    chosen = ["--wsgi-server", server] if server else []
    return flask("serve-prod", *chosen, *args, app=app)


def gunicorn(*args: str, app: str = f"{FACTS}()") -> list[str]:
    """Return the command line of ``gunicorn``, on loopback; ``-c`` is left to the caller."""
    return [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *args, app]


def script(path: Path, *args: str) -> list[str]:
    """Return the command line of a run.py."""
    return [sys.executable, str(path), *args]


def without_net_admin(command: list[str]) -> list[str]:
    """Return a command line that may attach no filter, as in most containers."""
    return ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *command]


def as_nobody(command: list[str]) -> list[str]:
    """Return a command line of another user, who may do nothing but read this Python."""
    reads = "-all,+dac_read_search"
    user = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    capabilities = [f"--bounding-set={reads}", f"--inh-caps={reads}", f"--ambient-caps={reads}"]
    return ["setpriv", *user, *capabilities, *command]


def clean_environ(environ: Environ, config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return this process' environment without what a server would obey, and the test's words.

    :param environ: what the test sets
    :param config: values for ``app.config`` of the test apps
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
    }
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(APPS), kept.get("PYTHONPATH")]))
    if config is not None:
        kept["FACTS_CONFIG"] = json.dumps(config)
    return {**kept, **environ}


def await_that(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a condition holds.

    :raises AssertionError: after the deadline
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """Return the body, read as JSON."""
        assert self.status == 200, f"{self.status}: {self.body[:500]!r}"
        return json.loads(self.body)


@dataclass(frozen=True)
class Finished:
    """A command that came to its end."""

    status: int
    stdout: str
    stderr: str

    def assert_one_line_error(self, status: int) -> str:
        """Assert that a person reads one clear line and nothing else, and return it."""
        assert "Traceback" not in self.stdout + self.stderr
        assert self.stdout == ""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("Error: "), lines[0]
        assert self.status == status, lines[0]
        return lines[0]


def refused_here(args: Sequence[str], config: Mapping[str, Any], **environ: str) -> Finished:
    """Let a new app refuse ``flask serve-prod`` in this process: nothing is started.

    :param args: options of the command
    :param config: values for ``app.config``
    """
    app = Flask("lms")
    app.config.update(config)
    WorkerSizing(app)
    done = app.test_cli_runner().invoke(args=["serve-prod", "--dry-run", *args], env=environ)
    return Finished(done.exit_code, done.stdout, done.stderr)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(url: str, timeout: float = DEADLINE_SECONDS) -> http.client.HTTPConnection:
    """Return a connection, not yet open; ``unix:PATH`` is a url too."""
    if url.startswith("unix:"):
        return UnixConnection(url.removeprefix("unix:"), timeout)
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)


def ask(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", headers: Headers = ()
) -> Answer:
    """Send one request on a connection; a header may be given twice, and Host in place of ours."""
    given = {name.lower() for name, _ in headers}
    connection.putrequest(method, path, skip_host="host" in given)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


class Server:
    """A server under test, in a process group of its own.

    :param command: the command line
    :param folder: where it runs, and where what it says is kept
    :param environ: the whole environment
    """

    def __init__(self, command: Sequence[str], folder: Path, environ: Environ) -> None:
        self.command = command
        self.folder = folder
        number = len(list(folder.glob("server-*.err")))
        self._stdout = folder / f"server-{number}.out"
        self._stderr = folder / f"server-{number}.err"
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The launcher, which is also the process group."""
        return self.process.pid

    @property
    def stdout(self) -> str:
        """What it said on standard output so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """What it said on standard error so far."""
        return self._stderr.read_text()

    @property
    def urls(self) -> list[str]:
        """The addresses it says it listens on; empty before."""
        match = _LISTENING.search(self.stderr)
        return re.split(r",\s*", match[1]) if match else []

    @property
    def health_url(self) -> str:
        """The first address of its health port."""
        match = re.search(r"Health port on (http[^\s,]+)", self.stderr)
        assert match, self.stderr
        return match[1]

    def probe(self, path: str, headers: Headers = ()) -> Answer:
        """Ask the health port."""
        return self.get(path, headers, url=self.health_url)

    def live_report(self, headers: Headers = ()) -> Any:
        """Return the report of the health port."""
        return self.probe("/_health/capacity", headers).json()

    def await_ready(self) -> Self:
        """Wait until the health port says that it is ready, with every worker."""
        planned = self.live_report()["workers"]
        ready = f'"workers_ready":{planned},'.encode()
        await_that(lambda: ready in self.probe("/ready").body, "ready")
        await_that(lambda: self.probe("/ready").status == 200, "ready")
        return self

    @property
    def monitor(self) -> psutil.Process:
        """The process that watches: the launcher's child that is no worker."""
        workers = self.booted_pids
        (found,) = (
            child for child in psutil.Process(self.pid).children() if child.pid not in workers
        )
        return found

    @property
    def booted_pids(self) -> list[int]:
        """Every gunicorn worker that was started, the earliest first."""
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.stderr)]

    def wait_until_listening(self) -> Self:
        """Wait for the line that names the addresses; from there on connections are kept."""
        await_that(lambda: bool(self.urls) or self.process.poll() is not None, "listening")
        assert self.urls, f"exit {self.process.poll()} instead of listening:\n{self.stderr}"
        return self

    def wait_for_line(
        self, pattern: str, count: int = 1, seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Wait until standard error has a pattern as often as asked."""
        await_that(
            lambda: len(re.findall(pattern, self.stderr)) >= count, f"{count} × {pattern}", seconds
        )

    def connect(self, url: str | None = None) -> http.client.HTTPConnection:
        """Return a connection to the first, or to another, of its addresses."""
        url = url or self.urls[0]
        if url.startswith("unix:"):
            url = f"unix:{self.folder / url.removeprefix('unix:')}"
        return connect(url)

    def get(
        self, path: str = "/", headers: Headers = (), method: str = "GET", url: str | None = None
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = self.connect(url)
        try:
            return ask(connection, path, method, headers)
        finally:
            connection.close()

    def gather(self, count: int) -> list[Any]:
        """Return what ``count`` requests saw that all ran at the same moment.

        Each holds its slot until the last one has come, so fewer slots never answer them.
        """
        place = f"gathering-{time.monotonic_ns()}"
        with ThreadPoolExecutor(count) as pool:
            paths = [f"/gather?count={count}&place={place}"] * count
            return [answer.json() for answer in pool.map(self.get, paths)]

    def signal(self, number: int) -> None:
        """Send a signal to the launcher alone, as a service manager does."""
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole group, as a terminal does at Ctrl-C."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        """Wait for the launcher's end, and return its exit status."""
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def members(self) -> list[psutil.Process]:
        """Return the processes of the group that are alive, the launcher included."""
        return list(_group(self.pid))

    def close(self) -> None:
        """End whatever of the group is left."""
        for member in self.members():
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(DEADLINE_SECONDS)


def _group(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process


class Starter:
    """Starts servers in one folder, and ends them all.

    :param folder: the working directory of each server
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []

    def __call__(
        self, command: Sequence[str], config: Mapping[str, Any] | None = None, /, **environ: str
    ) -> Server:
        """Start a server, and wait until it listens.

        :param command: the command line
        :param config: values for ``app.config`` of the test apps
        :param environ: variables of the environment
        """
        return self.launch(command, config, **environ).wait_until_listening()

    def launch(
        self, command: Sequence[str], config: Mapping[str, Any] | None = None, /, **environ: str
    ) -> Server:
        """Start a command in the background, and wait for nothing."""
        server = Server(command, self.folder, clean_environ(environ, config))
        self.servers.append(server)
        return server

    def run(
        self, command: Sequence[str], config: Mapping[str, Any] | None = None, /, **environ: str
    ) -> Finished:
        """Run a command to its end."""
        server = self.launch(command, config, **environ)
        return Finished(server.wait(), server.stdout, server.stderr)

    def close(self) -> None:
        """End what is left of every server."""
        for server in self.servers:
            server.close()


@contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    """Yield a :class:`Starter`, and end its servers in any case."""
    start = Starter(folder)
    try:
        yield start
    finally:
        start.close()
