"""What a rule for workers and threads costs: its throughput against that of the best shape.

``python -m tests.benchmarks.bench_regret`` serves four apps of known cost under control groups of
256, 512 and 1024 MB and 1 and 2 CPUs, in every sensible shape: workers × threads. The best one is
the oracle. What rules of thumb choose, what ``flask workersize measure`` proposes in that very
group, and what a server with ``NOW_LMS_SIZING=adaptive`` finds there by itself, is compared with
it. It prints a table; ``--write FILE`` writes a shorter one as CSV for the docs, and ``--plot
FILE`` plots it as SVG. It needs root, for the groups, and ``wrk``.

``--oracles FILE`` takes the best shapes from such a CSV instead of searching for them, serves them
again, and compares the adaptive server with them alone.

The adaptive server starts from the guide's default, without a profile. It gets the load for 20 s,
and then the same that is measured of the others. It is near enough if its throughput is at least
0.95 of the oracle's less the spread of the oracle's own runs, and if its p99 is at most 1.25 times
the longest p99 of the oracle's runs.

A shape that used less than a smaller limit where memory was ample is not run again under it. The
load is 64 clients. Who has two CPUs shares them with ``wrk`` where the machine has no more.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import psutil

from tests.benchmarks.bench_memory import (
    await_answer,
    free_port,
    limited,
    load,
    oom_kills,
    require_wrk_and_root,
    write_csv,
)
from tests.plain import MB
from tests.resources.real_groups import RealGroup
from tests.servers.clients import PATH
from tests.servers.serving import (
    Server,
    Starter,
    await_that,
    clean_environ,
    flask,
    serve_prod,
    starter,
)

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
WORKERS = (1, 2, 3, 5)
THREADS = (1, 8, 16, 32, 64)
MOST_SLOTS = 128
TIGHT = 0.85
"""Share of a smaller limit up to which a run counts for it, too."""

REPEATS = 3
"""Runs of what each rule chooses: the first is one of those that found the oracle."""

CLOSE_REPEATS = 5
"""Runs of the oracle and of the measured plan, which are compared closely."""

WARM_SECONDS = 1
NEAR = 0.95
"""What is to be reached of the oracle's throughput, beyond its own noise."""

LATE = 1.25
"""Times the longest p99 of the oracle's runs that the p99 of an adaptive server may have."""

FINDS_SECONDS = 20
"""For how long the adaptive server has the load before it is measured."""

MEASURED = "measured"
ADAPTIVE = "adaptive"
_SETTLE_SECONDS = 0.5
_REST_SECONDS = 1.5
LATE_SECONDS = 30
LAUNCHER_MB = 45
"""What the launcher of these small apps holds when it plans."""

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
    :param kills: processes that the OOM killer killed
    :param used_mb: the most memory that the group has used
    """

    rates: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    failed: int = 0
    crashed: int = 0
    used_mb: float = 0.0

    @property
    def rate(self) -> float:
        """The median of the runs; 0 where something was killed."""
        return statistics.median(self.rates) if self.rates and not self.crashed else 0.0

    @property
    def spread(self) -> float:
        """How far the rates are apart, as a share of their median."""
        return (max(self.rates) - min(self.rates)) / self.rate if self.rate else 0.0

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

    def __init__(self, start: Starter, folder: Path, seconds: int) -> None:
        self._start = start
        self._folder = folder
        self._seconds = seconds
        self.runs: dict[tuple[Place, Shape], Runs] = {}
        self.said: dict[Place, str] = {}

    def run(self, place: Place, shape: Shape, runs: Runs | None = None) -> Runs:
        """Serve once more in this shape, and return all runs of it."""
        runs = self.runs.setdefault((place, shape), Runs() if runs is None else runs)
        fixed = ("--workers", str(shape[0]), "--threads", str(shape[1]))

        def warm_up(server: Server, port: int) -> None:
            # Kept connections stay where they are: all workers are to be there first.
            launcher = psutil.Process(server.pid)
            await_that(lambda: len(launcher.children()) > shape[0], "all workers are there")
            time.sleep(_SETTLE_SECONDS)
            # What is queued of the first load would be served before the second.
            slots = min(CLIENTS, shape[0] * shape[1])
            load(port, place.app, WARM_SECONDS, slots, LATE_SECONDS)

        self._serve(place, fixed, {}, warm_up, runs)
        return runs

    def adaptive(self, place: Place, runs: Runs) -> Shape:
        """Serve with a size that follows the load, note what it reaches, and return its shape."""

        def find(_: Server, port: int) -> None:
            time.sleep(_SETTLE_SECONDS)
            load(port, place.app, FINDS_SECONDS, CLIENTS, LATE_SECONDS)
            # What is queued of it would be served before what is measured.
            time.sleep(_REST_SECONDS)

        server = self._serve(place, (), {"NOW_LMS_SIZING": ADAPTIVE}, find, runs)
        moves = re.findall(r"size: .*", server.stderr)
        self.said[place] = "\n".join([self.said.get(place, ""), *moves])
        found = re.search(r"gunicorn: (\d+) workers? × (\d+) thread", server.stderr)
        reached = re.match(r"size: \S+ × \S+ to (\d+) × (\d+)", moves[-1]) if moves else found
        return (int(reached[1]), int(reached[2])) if reached else (1, 1)

    def _serve(
        self,
        place: Place,
        options: Sequence[str],
        environ: Mapping[str, str],
        warm_up: Callable[[Server, int], None],
        runs: Runs,
    ) -> Server:
        port = free_port()
        address = ("--bind", f"127.0.0.1:{port}")
        command = serve_prod(*options, *address, server="gunicorn", app=APP)
        environ = {**self.environ("off"), **environ}
        with limited(self._start, place.limit_mb) as group:
            group.limit_cpus(place.cpus)
            server = self._start.launch(group.command(command), None, **environ)
            try:
                await_answer(server, port)
            except RuntimeError:
                runs.crashed += max(1, oom_kills(group))
                return server
            warm_up(server, port)
            told = load(port, place.app, self._seconds, CLIENTS, LATE_SECONDS)
            runs.rates.append(told.rate)
            runs.p99_ms.append(told.p99_ms)
            runs.failed += told.failed
            runs.crashed += oom_kills(group)
            runs.used_mb = max(runs.used_mb, _most_used(group))
            server.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(LATE_SECONDS)
        return server

    def once(self, place: Place, shape: Shape) -> Runs:
        """Return the runs of a shape, made now if there is none that counts here."""
        if (found := self.runs.get((place, shape))) is not None:
            return found
        for limit_mb in sorted(LIMITS_MB, reverse=True):
            other = self.runs.get((Place(place.app, place.cpus, limit_mb), shape))
            ample = other and not other.crashed and other.used_mb <= TIGHT * place.limit_mb
            if other is not None and ample and limit_mb > place.limit_mb:
                # Its own from here on: what happens in one place is told of that place alone.
                return self.runs.setdefault((place, shape), deepcopy(other))
        return self.run(place, shape)

    def measured(self, place: Place) -> Shape:
        """Return the shape that ``flask workersize measure`` proposes in this place."""
        instance = self._folder / f"{place.app}-{place.cpus}-{place.limit_mb}"
        instance.mkdir(exist_ok=True)
        env = self.env_file(instance)
        command = flask(
            "workersize", "measure", "--path", f"/{place.app}", "--write", str(env), app=APP
        )
        with limited(self._start, place.limit_mb) as group:
            group.limit_cpus(place.cpus)
            environ = {**self.environ(str(instance)), "NOW_LMS_WSGI_SERVER": "gunicorn"}
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

    def environ(self, instance: str) -> dict[str, str]:
        """Return the environment of a server; ``instance`` is its folder, or "off" for none."""
        path = f"{PATH['PYTHONPATH']}:{Path(__file__).parents[2]}"
        folder = self._folder / "none" if instance == "off" else Path(instance)
        return {"PYTHONPATH": path, "COSTLY_INSTANCE": str(folder)}


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
    """Return what rules of thumb choose in a place.

    The guide's default has 200 MB for a worker, of what is left when the launcher is there;
    Heroku's formula has 256 MB, of all.
    """
    by_cpu = 2 * place.cpus + 1
    return {
        "the guide's default": (max(1, min(by_cpu, (place.limit_mb - LAUNCHER_MB) // 200)), 1),
        "gunicorn's default": (1, 1),
        "2n + 1, host's CPUs": (2 * host_cpus + 1, 1),
        "Heroku's formula": (max(1, min(by_cpu, place.limit_mb // 256)), 1),
    }


@dataclass(frozen=True)
class Row:
    """What a rule chose in a place, and what became of it.

    :param place: where
    :param rule: the rule; the oracle is one, too
    :param shape: workers and threads
    :param runs: what happened
    :param share: its throughput as a share of the oracle's
    :param noise: how far the oracle's own runs are apart, as a share of its throughput
    :param late_ms: the longest p99 of the oracle's runs
    """

    place: Place
    rule: str
    shape: Shape
    runs: Runs
    share: float
    noise: float
    late_ms: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough to the oracle, and nothing was killed."""
        is_late = self.rule == ADAPTIVE and self.runs.late > LATE * self.late_ms
        return self.share >= NEAR - self.noise and not self.runs.crashed and not is_late

    def cells(self) -> list[str]:
        """Return the row as text."""
        place, runs = self.place, self.runs
        return [
            place.app,
            str(place.cpus),
            str(place.limit_mb),
            self.rule,
            _text(self.shape),
            f"{runs.rate:.0f}",
            f"{self.share:.2f}",
            f"{runs.spread:.2f}",
            f"{runs.late:.0f}",
            f"{runs.used_mb:.0f}",
            str(runs.crashed),
        ]


HEADER = [
    "App", "CPUs", "Limit, MB", "Rule", "Workers × threads", "Requests/s", "Of the oracle",
    "Spread", "p99, ms", "Used, MB", "OOM kills",
]  # fmt: skip
_WIDTHS = (7, 4, 9, 20, 17, 10, 13, 6, 8, 8, 9)


def line(cells: Iterable[str]) -> str:
    """Return cells as a line of the table."""
    return " ".join(
        f"{cell:<{width}}" if number in (0, 3) else f"{cell:>{width}}"
        for number, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )


def _text(shape: Shape) -> str:
    return f"{shape[0]} × {shape[1]}"


def adapted(bench: Bench, place: Place, best: Shape) -> list[Row]:
    """Compare an adaptive server with the best shape of a place, in turns."""
    runs, shape = Runs(), best
    for number in range(CLOSE_REPEATS):
        bench.run(place, best)
        if number < REPEATS:
            shape = bench.adaptive(place, runs)
    oracle = bench.once(place, best)
    return [
        row(place, "oracle", best, oracle, oracle),
        row(place, ADAPTIVE, shape, runs, oracle),
    ]


def row(place: Place, rule: str, shape: Shape, runs: Runs, oracle: Runs) -> Row:
    """Return the row of a rule."""
    share = runs.rate / oracle.rate if oracle.rate else 0.0
    return Row(place, rule, shape, runs, share, oracle.spread, max(oracle.p99_ms, default=0.0))


def compare(bench: Bench, place: Place) -> list[Row]:
    """Try every shape in a place, and what each rule chooses there, more than once."""
    tried = {shape: bench.once(place, shape) for shape in shapes()}
    best = max(tried, key=lambda shape: tried[shape].rate)
    chosen = {
        "oracle": best,
        MEASURED: bench.measured(place),
        **rules(place, os.cpu_count() or 1),
    }
    for number in range(1, CLOSE_REPEATS):
        close = (best, chosen[MEASURED])
        for shape in dict.fromkeys(close if number >= REPEATS else chosen.values()):
            runs = bench.once(place, shape)
            if len(runs.rates) <= number and not runs.crashed:
                bench.run(place, shape, runs)
    # Of many shapes the best has also had luck: what it reaches again is the measure.
    oracle = bench.once(place, best)
    rows = [
        row(place, rule, shape, bench.once(place, shape), oracle) for rule, shape in chosen.items()
    ]
    runs = Runs()
    found = [bench.adaptive(place, runs) for _ in range(REPEATS)]
    return [*rows, row(place, ADAPTIVE, found[-1], runs, oracle)]


def oracles(file: Path) -> dict[Place, Shape]:
    """Return the best shapes that were found before, from a CSV that ``--write`` has written."""
    with file.open(encoding="utf-8", newline="") as lines:
        return {
            Place(item["App"], int(item["CPUs"]), int(item["Limit, MB"])): _shape(item["Oracle"])
            for item in csv.DictReader(lines)
        }


def _shape(text: str) -> Shape:
    workers, threads = text.split(" × ")
    return int(workers), int(threads)


SUMMARY = [
    "App", "CPUs", "Limit, MB", "Oracle", "Requests/s", "Spread", "p99, ms", "Measured",
    "Of the oracle", "p99, ms", "Adaptive", "Of the oracle", "p99, ms",
]  # fmt: skip


def summary(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line for each place: the oracle, what was measured, and the shares of the rules."""
    others = [rule for rule in _COLOURS if rule not in ("oracle", MEASURED, ADAPTIVE)]
    yield [*SUMMARY, *others]
    for place in dict.fromkeys(row.place for row in rows):
        of = {row.rule: row for row in rows if row.place == place}
        oracle = of["oracle"]
        yield [
            *[place.app, str(place.cpus), str(place.limit_mb)],
            _text(oracle.shape),
            f"{oracle.runs.rate:.0f}",
            f"{oracle.noise:.2f}",
            f"{oracle.runs.late:.0f}",
            *[
                cell
                for rule in (MEASURED, ADAPTIVE)
                for cell in (_text(of[rule].shape), _share(of[rule]), f"{of[rule].runs.late:.0f}")
            ],
            *(_share(of[rule]) for rule in others),
        ]


def found(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line for each place: the oracle, and what the adaptive server found."""
    yield [*SUMMARY[:7], *SUMMARY[-3:]]
    for place in dict.fromkeys(row.place for row in rows):
        of = {row.rule: row for row in rows if row.place == place}
        oracle, adaptive = of["oracle"], of[ADAPTIVE]
        yield [
            *[place.app, str(place.cpus), str(place.limit_mb)],
            _text(oracle.shape),
            f"{oracle.runs.rate:.0f}",
            f"{oracle.noise:.2f}",
            f"{oracle.runs.late:.0f}",
            *(_text(adaptive.shape), _share(adaptive), f"{adaptive.runs.late:.0f}"),
        ]


def _share(row: Row) -> str:
    return "killed" if row.runs.crashed else f"{row.share:.2f}"


_COLOURS = {
    "oracle": "#999999",
    MEASURED: "#1a7f37",
    ADAPTIVE: "#0b7285",
    "the guide's default": "#b35900",
    "gunicorn's default": "#8250df",
    "2n + 1, host's CPUs": "#0969da",
    "Heroku's formula": "#cf222e",
}


def plot(rows: Sequence[Row]) -> str:
    """Return the shares as SVG: a row of bars for each place."""
    places = list(dict.fromkeys(row.place for row in rows))
    rules_ = [rule for rule in _COLOURS if rule != "oracle"]
    bar, gap, left, scale = 7, 10, 190, 480
    height = (bar * len(rules_) + gap) * len(places) + 60
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + scale + 60} {height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Throughput of each rule, as a share of the best shape</title>",
        f'<rect width="{left + scale + 60}" height="{height}" fill="#ffffff"/>',
    ]
    for number, rule in enumerate(rules_):
        x = 10 + number * 145
        out.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{_COLOURS[rule]}"/>')
        out.append(f'<text x="{x + 14}" y="17">{escape(rule)}</text>')
    top = 40.0
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mark = left + scale * share
        out.append(
            f'<line x1="{mark}" y1="{top}" x2="{mark}" y2="{height - 10}" stroke="#dddddd"/>'
            f'<text x="{mark}" y="{top - 4}" text-anchor="middle">{share:.0%}</text>'
        )
    y = float(top + gap / 2)
    for place in places:
        name = f"{place.app}, {place.cpus} CPU{'s' * (place.cpus > 1)}, {place.limit_mb} MB"
        middle = y + bar * len(rules_) / 2 + 4
        out.append(f'<text x="{left - 8}" y="{middle}" text-anchor="end">{name}</text>')
        for rule in rules_:
            share = next(row.share for row in rows if row.place == place and row.rule == rule)
            width = max(1.0, scale * min(share, 1.08))
            out.append(
                f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{bar - 1}" '
                f'fill="{_COLOURS[rule]}"/>'
            )
            y += bar
        y += gap
    return "\n".join([*out, "</svg>"]) + "\n"


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """Yield where the measured plan misses, and how far each rule is from the oracle."""
    present = {row.rule for row in rows}
    for rule in [rule for rule in _COLOURS if rule in present]:
        these = [row for row in rows if row.rule == rule]
        shares = [row.share for row in these]
        killed = sum(row.runs.crashed for row in these)
        yield (
            f"{rule:<20} of the oracle: least {min(shares):.2f}, median "
            f"{statistics.median(shares):.2f}; OOM kills {killed}"
        )
    for rule in [rule for rule in (MEASURED, ADAPTIVE) if rule in present]:
        missed = [row for row in rows if row.rule == rule and not row.holds]
        yield f"{rule} misses in {len(missed)} of {len({row.place for row in rows})} places"
        for row in missed:
            yield (
                f"  {row.place}: {row.share:.2f}, noise {row.noise:.2f}, kills {row.runs.crashed}, "
                f"p99 {row.runs.late:.0f} ms, the oracle's at most {row.late_ms:.0f}"
            )


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_regret",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="apps: " + "; ".join(f"{name}, {what}" for name, what in APPS.items()),
    )
    add = parser.add_argument
    add("--apps", nargs="+", choices=APPS, default=list(APPS))
    add("--cpus", nargs="+", type=int, default=list(CPUS))
    add("--limits", nargs="+", type=int, default=list(LIMITS_MB), metavar="MB")
    add("--seconds", type=int, default=2, help="of load in each run (default: 2)")
    add("--oracles", type=Path, metavar="FILE", help="best shapes, as --write has written them")
    add("--write", type=Path, metavar="FILE", help="write a shorter table as CSV")
    add("--plot", type=Path, metavar="FILE", help="write the plot as SVG")
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, and write it where that was asked for."""
    args = arguments()
    require_wrk_and_root()
    rows: list[Row] = []
    known = oracles(args.oracles) if args.oracles else {}
    print(line(HEADER))
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        bench = Bench(start, Path(folder), args.seconds)
        for app in args.apps:
            for cpus in args.cpus:
                for limit_mb in sorted(args.limits, reverse=True):
                    place = Place(app, cpus, limit_mb)
                    these = adapted(bench, place, known[place]) if known else compare(bench, place)
                    print("\n".join(line(row.cells()) for row in these), flush=True)
                    rows += these
        said = bench.said
    print("\n".join(verdict(rows)))
    for place, text in said.items():
        print(f"{place}:\n{text}")
    if args.write:
        write_csv(list(found(rows) if known else summary(rows)), args.write)
    if args.plot and not known:
        args.plot.write_text(plot(rows), encoding="utf-8")
    if any(row.rule in (MEASURED, ADAPTIVE) and not row.holds for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
