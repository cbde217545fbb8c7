"""What a server does with more requests than it can serve: ours against its peers.

``python -m tests.benchmarks.bench_overload`` prints a table. ``--write FILE`` writes it as CSV for
the docs: rows that were measured now replace those of the file, the others stay. ``--plot FILE``
draws the whole file as SVG. Granian and uWSGI are no dependencies of this project: without a
folder that has them, their rows say so. To make one::

    python -m venv FOLDER && FOLDER/bin/pip install granian uwsgi .
    python -m tests.benchmarks.bench_overload --peers FOLDER

Every server has 2 slots, and a request waits for 50 ms: at most 40 a second. New clients come at
a multiple of that, whatever became of those before, and give up after their patience. Those count
that come in the second half of the flood, and not so late that they may outlast it. In time is
status 200 within the patience; the others got something else, or nothing. Recovery is counted from
when the last client has its answer or has given up until a single request is answered as when
idle. A server is as it comes, with its own default for the backlog.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from tests.benchmarks.bench_memory import (
    BARE,
    ROOT,
    await_answer,
    free_port,
    program_of,
    write_csv,
)
from tests.benchmarks.open_loop import OK, RECOVERY_SECONDS, Flood
from tests.servers.clients import PATH
from tests.servers.serving import Starter, gunicorn, serve_prod, starter

APP = "costly:create_app"
SLOTS = 2
CAPACITY = SLOTS / 0.050
"""Requests a second, as many as the app can answer."""
TIMES = (0.8, 1.5, 3.0, 10.0)
PATIENCE_SECONDS = (1.0, 5.0)
BOUND = {"NOW_LMS_QUEUE_SECONDS": "0.5"}
OPEN_FILES = 8192
LATE_SECONDS = 0.1
"""Clients later than this are worth a note: the machine was too busy to be one of clients, too."""

AIMS = {3.0: 0.92, 10.0: 0.85}
AIM_OF_WAITRESS = 0.80
AIM_RECOVERY_SECONDS = 0.5

Command = Callable[[str, Path | None], list[str]]
"""The command line of a server, from its address and the virtual environment of the peers."""


def _gunicorn(*args: str) -> Command:
    return lambda address, _: gunicorn(
        "--bind", address, "--no-control-socket", *args, app=f"{APP}()"
    )  # fmt: skip


def _waitress(address: str, _: Path | None) -> list[str]:
    options = ["--listen", address, "--threads", str(SLOTS)]
    return [sys.executable, "-m", "waitress", *options, "--call", APP]


def _uwsgi(address: str, peers: Path | None) -> list[str]:
    program = program_of("uwsgi", peers)
    return [
        program, "--home", str(Path(program).parents[1]), "--http-socket", address,
        "--master", "--processes", str(SLOTS), "--module", f"{APP}()", "--need-app",
    ]  # fmt: skip


def _granian(address: str, peers: Path | None) -> list[str]:
    host, _, port = address.rpartition(":")
    return [
        program_of("granian", peers), "--interface", "wsgi", "--factory", "--host", host,
        "--port", port, "--workers", str(SLOTS), "--blocking-threads", "1", APP,
    ]  # fmt: skip


def _ours(server: str, *args: str) -> Command:
    return lambda address, _: serve_prod("--bind", address, *args, server=server, app=APP)


OURS = {
    "serve-prod sync": _ours("gunicorn", "--workers", "2", "--threads", "1"),
    "serve-prod gthread": _ours("gunicorn", "--workers", "1", "--threads", "2"),
    "serve-prod waitress": _ours("waitress", "--threads", "2"),
}
COMMANDS: dict[str, Command] = {
    "gunicorn sync": _gunicorn("-w", "2"),
    "gunicorn gthread": _gunicorn("-w", "1", "--threads", "2"),
    "waitress": _waitress,
    "uWSGI": _uwsgi,
    "Granian": _granian,
    **{f"{name}, no bound": command for name, command in OURS.items()},
    **OURS,
}


def environ_of(server: str) -> Mapping[str, str]:
    """Return the variables of a server: only ours has the extension, and a bound if it is to."""
    path = {"PYTHONPATH": f"{PATH['PYTHONPATH']}:{ROOT}"}
    if not server.startswith("serve-prod"):
        return path | BARE
    return path | BOUND if server in OURS else path


@dataclass
class Row:
    """What became of the clients of one server at one rate, in all its runs.

    :param server: the server
    :param patience: seconds after which a client gives up
    :param times: how many times the capacity was offered
    :param seconds: for how long clients came that count, in each run
    :param note: why there are no figures, or what is to be said of them
    """

    server: str
    patience: float
    times: float
    seconds: float
    floods: list[Flood] = field(default_factory=list)
    note: str = ""

    @property
    def answered(self) -> list[float]:
        """Seconds that those took that were answered in time, in their order."""
        return sorted(
            took for flood in self.floods for what, took in flood.outcomes if what == OK
        )  # fmt: skip

    @property
    def others(self) -> list[tuple[str, float]]:
        """What all others got, and after how many seconds."""
        return [
            (what, took) for flood in self.floods for what, took in flood.outcomes if what != OK
        ]

    @property
    def recovery(self) -> float | None:
        """Seconds until the server was back, the most of the runs; ``None`` if it was not."""
        found = [flood.recovery for flood in self.floods if flood.recovery is not None]
        return max(found) if len(found) == len(self.floods) else None

    def a_second(self, count: int) -> float:
        """Return a count of clients, of all runs, as a rate."""
        return count / self.seconds / len(self.floods)

    @property
    def share(self) -> float:
        """Answers in time, as a share of the capacity."""
        return self.a_second(len(self.answered)) / CAPACITY

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells this row of the table from others."""
        return self.server, f"{self.patience:g}", f"{self.times:g}"

    def cells(self) -> list[str]:
        """Return the row as text."""
        if not self.floods:
            return [*self.key, *[""] * (len(HEADER) - 4), self.note]
        answered, others = self.answered, self.others
        got = Counter(what for what, _ in others)
        took = sorted(took for _, took in others)
        return [
            *self.key,
            f"{self.a_second(len(answered) + len(others)):.0f}",
            f"{self.a_second(len(answered)):.1f}",
            *(_quantile(answered, share, 1000, 0) for share in (0.5, 0.99)),
            ", ".join(f"{what} {self.a_second(count):.1f}" for what, count in got.most_common()),
            *(_quantile(took, share, 1, 2) for share in (0.5, 1)),
            f"> {RECOVERY_SECONDS}" if self.recovery is None else f"{self.recovery:.2f}",
            self.note,
        ]


def _quantile(ordered: Sequence[float], share: float, unit: float, digits: int) -> str:
    """Return a quantile as text, in a unit of which a second has so many; of nothing, none."""
    if not ordered:
        return ""
    return f"{ordered[int(share * (len(ordered) - 1))] * unit:.{digits}f}"


HEADER = [
    "Server", "Patience, s", "× capacity", "Offered/s", "In time/s", "p50, ms", "p99, ms",
    "The others got, /s", "median, s", "most, s", "Recovery, s", "Note",
]  # fmt: skip
_WIDTHS = (29, 11, 10, 9, 9, 7, 7, 30, 9, 7, 11, 0)
_LEFT = (0, 7, 11)

Key = tuple[str, ...]
Table = dict[Key, list[str]]
"""The cells of each row, by server, patience and times."""


def line(cells: Iterable[str]) -> str:
    """Return cells as a line of the table."""
    aligned = (
        f"{cell:<{width}}" if number in _LEFT else f"{cell:>{width}}"
        for number, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    return " ".join(aligned).rstrip()


def run(start: Starter, row: Row, peers: Path | None) -> None:
    """Start a server, flood it, and write down what came of it."""
    port = free_port()
    try:
        command = COMMANDS[row.server](f"127.0.0.1:{port}", peers)
    except FileNotFoundError as error:
        row.note = str(error)
        return
    try:
        await_answer(start.launch(command, None, **environ_of(row.server)), port)
        row.floods.append(flood(port, row))
        if (late := row.floods[-1].late) > LATE_SECONDS:
            row.note = f"clients up to {late:.2f} s late"
    except (RuntimeError, subprocess.CalledProcessError) as error:
        row.note = "does not start, or not answer"
        print(f"{row.server}: {error}", file=sys.stderr)
    finally:
        # What is left in its queue would be served for a minute: it is killed.
        start.close()
        start.servers.clear()


def flood(port: int, row: Row) -> Flood:
    """Flood a server from a process of its own."""
    seconds = 2 * (row.seconds + row.patience)
    figures = (port, row.times * CAPACITY, seconds, row.patience)
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.open_loop", *map(str, figures)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds + row.patience + 3 * RECOVERY_SECONDS,
    )
    return Flood(**json.loads(done.stdout))


def verdict(rows: Iterable[Row]) -> Iterator[str]:
    """Yield how each of ours that has a bound did against the aims."""
    for row in rows:
        if row.server not in OURS or not row.floods:
            continue
        aim = AIMS.get(row.times, 0.0)
        if aim and row.server.endswith("waitress"):
            aim = min(aim, AIM_OF_WAITRESS) if row.times == max(AIMS) else aim
        bad = sorted({what for what, _ in row.others} - {"503", "timeout"})
        told = [f"{row.share:.2f} of the capacity"]
        told += [f"aim {aim:.2f}"] if aim else []
        told += [f"others: {', '.join(bad)}"] if bad else []
        held = row.share >= aim and not bad
        held = held and row.recovery is not None and row.recovery <= AIM_RECOVERY_SECONDS
        yield f"  {row.server}: {'; '.join(told)}: {'held' if held else 'NOT HELD'}"


def measure(args: argparse.Namespace) -> None:
    """Run what was chosen; print and write each row when it is done."""
    print(line(HEADER))
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        for patience in args.patience:
            for times in args.times:
                these = [Row(name, patience, times, args.seconds / 2) for name in args.servers]
                for number in range(args.rounds):
                    # Who is first has a machine that has just rested.
                    turn = number % len(these)
                    for row in these[turn:] + these[:turn]:
                        run(start, row, args.peers)
                        if number == args.rounds - 1:
                            print(line(row.cells()), flush=True)
                            if args.write:
                                merge(row, args.write)
                for told in verdict(these):
                    print(told, flush=True)


def read_table(path: Path) -> Table:
    """Read a table that was written before: what it has of servers that are still known."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {tuple(cells[:3]): cells for cells in rows if cells[0] in COMMANDS}


def merge(row: Row, path: Path) -> None:
    """Write a row into the table of the docs, in the place of one with the same key."""
    table = {**read_table(path), row.key: row.cells()}
    servers = list(COMMANDS)
    ordered = sorted(
        table.values(),
        key=lambda cells: (float(cells[1]), float(cells[2]), servers.index(cells[0])),
    )
    write_csv([HEADER, *ordered], path)


_COLOURS = ("#a8cbef", "#5a9bdc", "#1f68b3", "#0b3566")
"""Of the times of the capacity, the fewest first."""


def plot(table: Table) -> str:
    """Return the answers in time as SVG: a panel for each patience, a group for each server."""
    patience = sorted({float(key[1]) for key in table})
    times = sorted({float(key[2]) for key in table})
    colours = dict(zip(times, _COLOURS, strict=False))
    servers = [name for name in COMMANDS if any(key[0] == name for key in table)]
    bar, gap, left, scale, between = 7, 9, 165, 230, 45
    group = bar * len(times) + gap
    width = left + max((scale + between) * len(patience), 120 * len(times))
    height = group * len(servers) + 70
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Answers in time a second, of 40 that the server can give</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (offered, colour) in enumerate(colours.items()):
        x = left + number * 120
        out.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{x + 14}" y="17">{offered:g} × the capacity</text>')
    top = 58
    for number, name in enumerate(servers):
        y = top + number * group + (group - gap) / 2 + 4
        out.append(f'<text x="{left - 8}" y="{y:g}" text-anchor="end">{escape(name)}</text>')
    for panel, seconds in enumerate(patience):
        x = left + panel * (scale + between)
        out.append(f'<text x="{x}" y="36">clients give up after {seconds:g} s</text>')
        for rate in range(0, int(CAPACITY) + 1, 10):
            mark = x + scale * rate / CAPACITY
            out.append(
                f'<line x1="{mark:g}" y1="{top - 4}" x2="{mark:g}" y2="{height - 8}" '
                f'stroke="#dddddd"/><text x="{mark:g}" y="{top - 8}" '
                f'text-anchor="middle">{rate}</text>'
            )
        for row, name in enumerate(servers):
            for number, offered in enumerate(times):
                cells = table.get((name, f"{seconds:g}", f"{offered:g}"))
                if cells is None or not cells[4]:
                    continue
                # A bar of nothing would look like one that was not measured.
                length = max(1.0, scale * float(cells[4]) / CAPACITY)
                out.append(
                    f'<rect x="{x}" y="{top + row * group + number * bar}" width="{length:.1f}" '
                    f'height="{bar - 1}" fill="{colours[offered]}"/>'
                )
    return "\n".join([*out, "</svg>"]) + "\n"


def allow_open_files() -> None:
    """Raise the limit of open files, of this process and of those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--servers", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    add("--times", nargs="+", type=float, default=list(TIMES), help="of the capacity, 40 a second")
    add("--patience", nargs="+", type=float, default=list(PATIENCE_SECONDS), metavar="SECONDS")
    add(
        "--seconds",
        type=float,
        default=10,
        help="of flood in each run, half of which counts; twice "
        "the patience comes on top (default: 10)",
    )
    add(
        "--rounds", type=int, default=1, help="runs of each row, in turn; 0 only draws (default: 1)"
    )
    add("--peers", type=Path, metavar="FOLDER", help="a venv with granian, uwsgi and this project")
    add("--write", type=Path, metavar="FILE", help="write the rows into a table, as CSV")
    add("--plot", type=Path, metavar="FILE", help="draw all of the table of --write, as SVG")
    args = parser.parse_args(given)
    if args.plot and not args.write:
        parser.error("--plot draws the table of --write: name both")
    return args


def main() -> None:
    """Measure, print the table, and write and draw it where that was asked for."""
    args = arguments()
    allow_open_files()
    measure(args)
    if args.plot:
        args.plot.write_text(plot(read_table(args.write)), encoding="utf-8")


if __name__ == "__main__":
    main()
