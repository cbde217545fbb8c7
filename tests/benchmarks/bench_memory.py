"""What a limit on memory costs: the same load in real control groups, ours against its peers.

``python -m tests.benchmarks.bench_memory`` prints a table; ``--write FILE`` writes it as CSV for
the docs. It needs root, for the groups, and ``wrk``. Granian and uWSGI are no dependencies of this
project: without a folder that has them, their rows say so. To make one::

    python -m venv FOLDER && FOLDER/bin/pip install granian uwsgi .
    python -m tests.benchmarks.bench_memory --peers FOLDER

Every server has 5 workers that run one request each, writes its access log, and closes a
connection after its answer. Failed is what ``wrk`` counts: connections refused or reset, answers
that are no 2xx, and those later than 10 seconds. A client that is refused tries again at once, so
that a server which turns clients away has many.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.resources.real_groups import RealGroup, real_group
from tests.servers.clients import PATH
from tests.servers.serving import Server, Starter, gunicorn, serve_prod, starter

ROOT = Path(__file__).parents[2]
WORKERS = 5
CLIENTS = 8
LATE_SECONDS = 10
READY_SECONDS = 30
APP = "leaky:create_app"
OURS = "serve-prod"
BARE = {"BARE": "1"}

APPS = {
    "leak": "steady leak of 0.5 MB a request",
    "burst": "60 MB for a second, once in 50 requests",
    "shared": "slow growth of the shared part, to 60 MB",
    "honest": "60 MB a worker, too large for 256 MB",
    "none": "no leak",
}

MOST_RSS_MB = {256: 60, 512: 110}
"""Resident memory at which Granian and uWSGI are to replace a worker: what an operator who knows
the app would give each of five."""


def program_of(name: str, peers: Path | None) -> str:
    """Return the path of a peer's program.

    :param peers: a virtual environment that may have it; ``None`` for none
    :raises FileNotFoundError: if it is not there
    """
    found = peers and shutil.which(name, path=str(peers / "bin"))
    if not found:
        raise FileNotFoundError(f"{name} is not installed")
    return str(Path(found).absolute())


@dataclass(frozen=True)
class Where:
    """What a command line depends on.

    :param port: the port to listen on, of 127.0.0.1
    :param limit_mb: the limit on memory
    :param peers: a virtual environment that may have Granian and uWSGI; ``None`` for none
    """

    port: int
    limit_mb: int
    peers: Path | None

    @property
    def address(self) -> str:
        """The address to listen on."""
        return f"127.0.0.1:{self.port}"

    @property
    def most_rss_mb(self) -> int:
        """Resident memory above which a worker is to be replaced."""
        return MOST_RSS_MB.get(self.limit_mb, self.limit_mb // WORKERS)

    def program(self, name: str) -> str:
        """Return the path of a peer's program.

        :raises FileNotFoundError: if it is not there
        """
        return program_of(name, self.peers)


def _ours(where: Where) -> list[str]:
    return serve_prod(
        "--workers", str(WORKERS), "--bind", where.address, server="gunicorn", app=APP
    )  # fmt: skip


def _plain(*args: str) -> Callable[[Where], list[str]]:
    """Return the command line of gunicorn alone."""
    alone = ["--preload", "--no-control-socket", "--access-logfile", "-"]

    def command(where: Where) -> list[str]:
        return gunicorn(
            "--bind", where.address, "-w", str(WORKERS), *alone, *args, app=f"{APP}()"
        )  # fmt: skip

    return command


def _granian(where: Where) -> list[str]:
    return [
        where.program("granian"), "--interface", "wsgi", "--factory", "--host", "127.0.0.1",
        "--port", str(where.port), "--workers", str(WORKERS), "--blocking-threads", "1",
        "--workers-max-rss", str(where.most_rss_mb), "--rss-sample-interval", "1",
        "--respawn-failed-workers", "--no-ws", "--no-http1-keep-alive", "--access-log", APP,
    ]  # fmt: skip


def _uwsgi(where: Where) -> list[str]:
    program = where.program("uwsgi")
    return [
        program, "--home", str(Path(program).parents[1]), "--http-socket", where.address,
        "--master", "--processes", str(WORKERS), "--module", f"{APP}()", "--need-app",
        "--die-on-term", "--add-header", "Connection: close",
        "--reload-on-rss", str(where.most_rss_mb), "--min-worker-lifetime", "0",
    ]  # fmt: skip


COMMANDS: dict[str, Callable[[Where], list[str]]] = {
    OURS: _ours,
    "gunicorn": _plain(),
    "gunicorn --max-requests 20": _plain("--max-requests", "20"),
    "gunicorn --max-requests 60": _plain("--max-requests", "60"),
    "gunicorn --max-requests 200": _plain("--max-requests", "200"),
    "Granian --workers-max-rss": _granian,
    "uWSGI --reload-on-rss": _uwsgi,
}


@dataclass(frozen=True)
class Told:
    """What ``wrk`` says.

    :param answered: requests that were answered
    :param failed: those that were not, or with no 2xx, or late
    :param rate: answers a second
    :param p99_ms: the time within which 99 of 100 were answered
    """

    answered: int
    failed: int
    rate: float
    p99_ms: float


_TO_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def read_wrk(text: str) -> Told:
    """Read what ``wrk --latency`` has printed.

    :raises ValueError: if that is something else
    """
    done = re.search(r"^\s+(\d+) requests in ", text, re.M)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    late = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.M)
    if not (done and rate and late):
        raise ValueError(f"not what wrk prints:\n{text}")
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    failed = sum(map(int, errors.groups())) if errors else 0
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed += int(other[1]) if other else 0
    return Told(int(done[1]), failed, float(rate[1]), float(late[1]) * _TO_MS[late[2]])


def load(
    port: int, app: str, seconds: float, clients: int = CLIENTS, late: int = LATE_SECONDS
) -> Told:
    """Put the load on a server.

    :param port: where it answers, on 127.0.0.1
    :param app: the path that is asked for
    :param seconds: for how long
    :param clients: connections at once
    :param late: seconds after which an answer is too late
    """
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--latency"]
    command += ["--timeout", f"{late}s", f"http://127.0.0.1:{port}/{app}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    return read_wrk(done.stdout)


def oom_kills(group: RealGroup) -> int:
    """Return how many processes the kernel has killed in a group for want of memory."""
    name = "memory.events" if group.is_v2 else "memory.oom_control"
    found = re.search(r"^oom_kill (\d+)$", (group.memory / name).read_text(), re.M)
    if not found:
        raise ValueError(f"{name} of this kernel does not count")
    return int(found[1])


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def await_answer(server: Server, port: int) -> None:
    """Wait until a server answers.

    :raises RuntimeError: if it does not
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError):
            if server.get("/none", url=f"http://127.0.0.1:{port}").status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no answer:\n{server.stdout}\n{server.stderr}")


@contextmanager
def limited(start: Starter, limit_mb: int) -> Iterator[RealGroup]:
    """Yield a group with a limit; what is in it afterwards is ended first."""
    with real_group() as group:
        group.limit_memory(limit_mb)
        try:
            yield group
        finally:
            start.close()
            start.servers.clear()
            # A worker may have left the process group of its server.
            for pid in map(int, (group.memory / "cgroup.procs").read_text().split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@dataclass
class Row:
    """What happened to one server under one load, in all its runs.

    :param limit_mb: the limit on memory
    :param app: what was asked for
    :param server: the server
    :param kills: processes that the OOM killer killed
    :param note: why there are no figures, or what is to be said of them
    """

    limit_mb: int
    app: str
    server: str
    crashed: int = 0
    told: list[Told] = field(default_factory=list)
    note: str = ""

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(told.failed for told in self.told)

    @property
    def rate(self) -> float:
        """Answers a second, the median of the runs."""
        return statistics.median(told.rate for told in self.told) if self.told else 0.0

    @property
    def p99_ms(self) -> float:
        """The time within which 99 of 100 were answered, the median of the runs."""
        return statistics.median(told.p99_ms for told in self.told) if self.told else 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was killed and nothing failed."""
        return bool(self.told) and not self.crashed and not self.failed

    def cells(self) -> list[str]:
        """Return the row as text."""
        figures = [str(self.crashed), str(self.failed), f"{self.rate:.0f}", f"{self.p99_ms:.0f}"]
        shown = figures if self.told else [""] * len(figures)
        return [str(self.limit_mb), self.app, self.server, *shown, self.note]


HEADER = [
    "Limit, MB", "App", "Server", "OOM kills", "Failed", "Requests/s", "p99, ms", "Note",
]  # fmt: skip
_WIDTHS = (9, 7, 28, 9, 8, 10, 8, 0)


def line(cells: Iterable[str]) -> str:
    """Return cells as a line of the table."""
    aligned = (
        f"{cell:<{width}}" if number in (1, 2, 7) else f"{cell:>{width}}"
        for number, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    return " ".join(aligned).rstrip()


def run(start: Starter, row: Row, peers: Path | None, seconds: float) -> None:
    """Start a server in a group of its own, put the load on it, and write down what happened."""
    where = Where(free_port(), row.limit_mb, peers)
    try:
        command = COMMANDS[row.server](where)
    except FileNotFoundError as error:
        row.note = str(error)
        return
    path = {"PYTHONPATH": f"{PATH['PYTHONPATH']}:{ROOT}"}
    bare = {} if row.server == OURS else BARE
    with limited(start, row.limit_mb) as group:
        server = start.launch(group.command(command), None, **path, **bare)
        try:
            await_answer(server, where.port)
            row.told.append(load(where.port, row.app, seconds))
        except RuntimeError as error:
            row.note = "does not start"
            print(f"{row.server}: {error}", file=sys.stderr)
        row.crashed += oom_kills(group)
        if (status := server.process.poll()) is not None:
            ended = "was killed" if status == -signal.SIGKILL else f"ended by itself ({status})"
            row.note = row.note or f"the server {ended}"
            return
        server.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(LATE_SECONDS)


def verdict(rows: Sequence[Row]) -> str:
    """Return how we did against the fastest peer that had no kills and no failures."""
    ours = next((row for row in rows if row.server == OURS), None)
    peers = [row for row in rows if row.server != OURS]
    if ours is None or not ours.told or not peers:
        return ""
    held = "held" if ours.is_clean else "NOT HELD"
    told = [f"0 kills and 0 failures: {held}"]
    plain = next((row for row in peers if row.server == "gunicorn" and row.is_clean), None)
    if plain:
        told.append(f"{ours.rate / plain.rate:.2f} of gunicorn")
    best = max((row for row in peers if row.is_clean), key=lambda row: row.rate, default=None)
    if best is None:
        told.append("no peer without kills and failures")
    elif best is not plain:
        told.append(f"{ours.rate / best.rate:.2f} of the best peer without, {best.server}")
    return f"{'':>9} {rows[0].app:<7} {'; '.join(told)}"


def measure(args: argparse.Namespace) -> list[Row]:
    """Run what was chosen, and print each table of one limit and one app when it is done."""
    rows: list[Row] = []
    print(line(HEADER))
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        for limit_mb in args.limits:
            for app in args.apps:
                these = [Row(limit_mb, app, server) for server in args.servers]
                for number in range(args.rounds):
                    # Who is first has a machine that has just rested.
                    turn = number % len(these)
                    for row in these[turn:] + these[:turn]:
                        run(start, row, args.peers, args.seconds)
                print("\n".join(line(row.cells()) for row in these))
                if told := verdict(these):
                    print(told)
                sys.stdout.flush()
                rows += these
    return rows


def write_csv(lines: Iterable[Iterable[str]], path: Path) -> None:
    """Write a table for the docs; the first line is its header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def require_wrk_and_root() -> None:
    """End here where the machine lacks what is needed."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not on this machine (Debian: apt-get install wrk)")
    if os.geteuid() != 0:
        sys.exit("control groups can be made by root only")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="apps: " + "; ".join(f"{name}, {what}" for name, what in APPS.items()),
    )
    add = parser.add_argument
    add("--limits", nargs="+", type=int, default=[256, 512], metavar="MB")
    add("--apps", nargs="+", choices=APPS, default=list(APPS))
    add("--servers", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    add("--seconds", type=float, default=12, help="of load in each run (default: 12)")
    add("--rounds", type=int, default=1, help="runs of each row, in turn (default: 1)")
    add("--peers", type=Path, metavar="FOLDER", help="a venv with granian, uwsgi and this project")
    add("--write", type=Path, metavar="FILE", help="write the table as CSV")
    return parser.parse_args(given)


def main() -> None:
    """Measure, print the table, and write it where that was asked for."""
    args = arguments()
    require_wrk_and_root()
    rows = measure(args)
    if args.write:
        write_csv([HEADER, *(row.cells() for row in rows)], args.write)


if __name__ == "__main__":
    main()
