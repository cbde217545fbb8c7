"""What a rule for workers and threads costs: its throughput against that of the best shape.

``python -m tests.benchmarks.bench_regret`` serves four apps of known cost under control groups of
256, 512 and 1024 MB and 1 and 2 CPUs, in every sensible shape: workers × threads. The best one is
the oracle. What rules of thumb choose, and what ``flask workersize measure`` proposes in that very
group, is compared with it. It prints a table; ``--write FILE`` writes it as CSV for the docs and
``--plot FILE`` as SVG. It needs root, for the groups, and ``wrk``.

A shape that used less than a smaller limit where memory was ample is not run again under it. The
load is 64 clients. Who has two CPUs shares them with ``wrk`` where the machine has no more.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.benchmarks.bench_memory import await_answer, free_port, limited, oom_kills, read_wrk
from tests.plain import MB
from tests.resources.real_groups import RealGroup
from tests.servers.clients import PATH
from tests.servers.serving import Starter, await_that, clean_environ, flask, serve_prod, starter

CLIENTS = 64
APP = "costly:create_app"
APPS = {
    "cpu": "10 ms of CPU time",
    "wait": "50 ms of waiting",
    "both": "5 ms of CPU time, 45 ms of waiting",
    "memory": "40 MB a worker; 5 ms of CPU time, 5 ms of waiting",
}
LIMITS_MB = (1024, 512, 256)
CPUS = (1, 2)
WORKERS = (1, 2, 3, 4, 5)
THREADS = (1, 2, 4, 8, 16, 32, 64)
MOST_SLOTS = 128
TIGHT = 0.85
"""Share of a smaller limit up to which a run counts for it, too."""

REPEATS = 3
_SETTLE_SECONDS = 0.5
LATE_SECONDS = 30

Shape = tuple[int, int]
"""Workers and threads."""


@dataclass(frozen=True)
class Place:
    """Where an app is served.

    :param app: what is asked for
    :param cpus: quota
    :param limit_mb: limit on memory
    """

    app: str
    cpus: int
    limit_mb: int


@dataclass
class Runs:
    """What happened to one shape in one place.

    :param rates: answers a second, run by run
    :param p99_ms: the time within which 99 of 100 were answered, run by run
    :param failed: requests that failed
    :param kills: processes that the kernel killed for want of memory
    :param used_mb: the most memory that the group has used
    """

    rates: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    failed: int = 0
    kills: int = 0
    used_mb: float = 0.0

    @property
    def rate(self) -> float:
        """The median of the runs; 0 where something was killed."""
        return statistics.median(self.rates) if self.rates and not self.kills else 0.0

    @property
    def late(self) -> float:
        """The median of the p99."""
        return statistics.median(self.p99_ms) if self.p99_ms else 0.0


class Bench:
    """Serves, asks, and remembers.

    :param start: starts servers
    :param folder: where files may be put
    :param seconds: of load in each run
    """

    def __init__(self, start: Starter, folder: Path, seconds: float) -> None:
        self._start = start
        self._folder = folder
        self._seconds = seconds
        self.runs: dict[tuple[Place, Shape], Runs] = {}
        self.said: dict[Place, str] = {}

    def run(self, place: Place, shape: Shape) -> Runs:
        """Serve once more in this shape, and return all runs of it."""
        runs = self.runs.setdefault((place, shape), Runs())
        port = free_port()
        command = serve_prod(
            "--workers", str(shape[0]), "--threads", str(shape[1]),
            "--bind", f"127.0.0.1:{port}", server="gunicorn", app=APP,
        )  # fmt: skip
        with limited(self._start, place.limit_mb) as group:
            group.limit_cpus(place.cpus)
            server = self._start.launch(group.command(command), None, **self._environ("off"))
            try:
                await_answer(server, port)
            except RuntimeError:
                runs.kills += max(1, oom_kills(group))
                return runs
            # Kept connections stay where they are: all workers are to be there first.
            launcher = psutil.Process(server.pid)
            await_that(lambda: len(launcher.children()) > shape[0], "all workers are there")
            time.sleep(_SETTLE_SECONDS)
            told = self._load(port, place.app)
            runs.rates.append(told[0])
            runs.p99_ms.append(told[1])
            runs.failed += int(told[2])
            runs.kills += oom_kills(group)
            runs.used_mb = max(runs.used_mb, _most_used(group))
            server.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(LATE_SECONDS)
        return runs

    def once(self, place: Place, shape: Shape) -> Runs:
        """Return the runs of a shape, made now if there is none that counts here."""
        if (found := self.runs.get((place, shape))) is not None:
            return found
        for limit_mb in sorted(LIMITS_MB, reverse=True):
            other = self.runs.get((Place(place.app, place.cpus, limit_mb), shape))
            ample = other and not other.kills and other.used_mb <= TIGHT * place.limit_mb
            if other is not None and ample and limit_mb > place.limit_mb:
                self.runs[place, shape] = other
                return other
        return self.run(place, shape)

    def measured(self, place: Place, profile: str = "") -> Shape:
        """Return the shape that ``flask workersize measure`` proposes in this place."""
        instance = self._folder / f"{place.app}-{place.cpus}-{place.limit_mb}"
        instance.mkdir(exist_ok=True)
        env = self.env_file(instance)
        command = flask(
            "workersize", "measure", "--path", f"/{place.app}", "--write", str(env), app=APP
        )
        with limited(self._start, place.limit_mb) as group:
            group.limit_cpus(place.cpus)
            environ = {**self._environ(str(instance)), "NOW_LMS_WSGI_SERVER": "gunicorn"}
            done = subprocess.run(
                group.command(command), check=False, capture_output=True, text=True,
                cwd=instance, env=clean_environ(environ), timeout=300,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"measure failed in {place}: {done.stdout}{done.stderr}")
            self.said[place] = done.stdout
        return _shape_of(env.read_text())

    def env_file(self, instance: Path) -> Path:
        """Return where the proposal is written."""
        return instance / ".env"

    def _environ(self, instance: str) -> dict[str, str]:
        path = f"{PATH['PYTHONPATH']}:{Path(__file__).parents[2]}"
        folder = self._folder / "none" if instance == "off" else Path(instance)
        return {"PYTHONPATH": path, "COSTLY_INSTANCE": str(folder)}

    def _load(self, port: int, app: str) -> tuple[float, float, int]:
        command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{self._seconds:g}s", "--latency"]
        command += ["--timeout", f"{LATE_SECONDS}s", f"http://127.0.0.1:{port}/{app}"]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=self._seconds + 60
        )
        told = read_wrk(done.stdout)
        return told.rate, told.p99_ms, told.failed


def _most_used(group: RealGroup) -> float:
    name = "memory.peak" if group.is_v2 else "memory.max_usage_in_bytes"
    return int((group.memory / name).read_text()) / MB


def _shape_of(env: str) -> Shape:
    found = dict(re.findall(r"^NOW_LMS_(WORKERS|THREADS)='?(\d+)'?$", env, re.M))
    return int(found["WORKERS"]), int(found["THREADS"])


def shapes() -> Iterator[Shape]:
    """Yield every shape that is tried."""
    for workers in WORKERS:
        for threads in THREADS:
            if workers * threads <= MOST_SLOTS:
                yield workers, threads


def rules(place: Place, host_cpus: int) -> dict[str, Shape]:
    """Return what rules of thumb choose in a place."""
    by_cpu = 2 * place.cpus + 1
    return {
        "guide": (max(1, min(by_cpu, (place.limit_mb - 45) // 200)), 1),
        "gunicorn's default": (1, 1),
        "2n + 1, host's CPUs": (2 * host_cpus + 1, 1),
        "Heroku's": (max(1, min(by_cpu, place.limit_mb // 256)), 1),
    }


def explore(bench: Bench, apps: Sequence[str], cpus: Sequence[int], limits: Sequence[int]) -> None:
    """Print what every shape gives: for looking, not for the docs."""
    for app in apps:
        for count in cpus:
            for limit in limits:
                place = Place(app, count, limit)
                print(place)
                for shape in shapes():
                    r = bench.once(place, shape)
                    print(
                        f"  {shape[0]} × {shape[1]:<3} {r.rate:7.1f}/s p99 {r.late:6.0f} ms "
                        f"{r.used_mb:5.0f} MB kills {r.kills} failed {r.failed}",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--apps", nargs="+", choices=APPS, default=list(APPS))
    parser.add_argument("--cpus", nargs="+", type=int, default=list(CPUS))
    parser.add_argument("--limits", nargs="+", type=int, default=list(LIMITS_MB))
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        explore(Bench(start, Path(folder), args.seconds), args.apps, args.cpus, args.limits)


if __name__ == "__main__":
    main()
