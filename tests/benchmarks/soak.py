"""Twenty minutes in which everything happens: what is left over, and whether the report is right.

``python -m tests.benchmarks.soak`` serves an app that leaks in a real control group, under a steady
load. Again and again a worker is killed, or the monitor, or the limit changes, or the server is
told to reload. Then the load ends, the first limit is set again, and the state is compared with
that of the beginning. It needs root, for the group. The exit status is 1 where something did not
hold.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil

from tests.benchmarks.bench_memory import limited, oom_kills
from tests.resources.machines import MB
from tests.resources.real_groups import RealGroup
from tests.servers.clients import PATH
from tests.servers.serving import Server, ask, await_that, serve_prod, starter

FIRST_LIMIT_MB = 512
LIMITS_MB = (256, 384, 512, 640, 768)
WORKERS = 4
MOST_WORKERS = 6
WORKER_MEMORY_MB = 105
"""Such that there are 4 workers in the first limit, fewer in a smaller and more in a larger one."""

CLIENTS = 6
PAUSE_SECONDS = 0.02
PATHS = ("/", "/leak?mb=0.5")
EVENTS = {"a worker killed": 6, "the monitor killed": 1, "another limit": 3, "a reload": 2}
"""What happens, and how often in 12 times."""

SETTLE_SECONDS = 60
QUIET_SECONDS = 10
MOST_GROWTH_MB = 10
TOKEN = "a token of the tests"
BEARER = [("Authorization", f"Bearer {TOKEN}")]
ON = {
    **PATH,
    "NOW_LMS_HEALTH_PORT": "0",
    "NOW_LMS_HEALTH_TOKEN": TOKEN,
    "NOW_LMS_WORKER_MEMORY_MB": str(WORKER_MEMORY_MB),
    "NOW_LMS_MAX_WORKERS": str(MOST_WORKERS),
}


class Load:
    """Clients that ask again and again, each on a connection of its own, until it ends.

    :param server: whom they ask
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        self.answered = 0
        self.failed: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def once(self, path: str) -> None:
        """Send one request."""
        connection = self._server.connect()
        try:
            assert ask(connection, path).status == 200
        except (OSError, http.client.HTTPException, AssertionError) as error:
            with self._lock:
                self.failed[type(error).__name__] += 1
        else:
            with self._lock:
                self.answered += 1
        finally:
            connection.close()

    def _ask(self, number: int) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            self.once(PATHS[number % len(PATHS)])
            number += 1


def report(server: Server) -> dict[str, Any]:
    """Return the report; a monitor that was just killed answers when it has a successor."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            told: dict[str, Any] = server.live_report(BEARER)
            return told
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@dataclass
class State:
    """What could leak.

    :param processes: of the group: the master, the monitor, the workers
    :param zombies: that nobody has waited for
    :param descriptors: open files of master, monitor and of the worker that has most
    :param shared_mb: shared memory of the group
    :param own_mb: memory of master and monitor that is their own
    """

    processes: int
    zombies: int
    descriptors: dict[str, int]
    shared_mb: float
    private_mb: dict[str, float]

    @classmethod
    def of(cls, server: Server, group: RealGroup) -> State:
        """Look, when nobody else asks anything."""
        told = report(server)
        # The connection of that very question closes first.
        time.sleep(1)
        pids = {"master": server.pid, "monitor": int(told["pid"])}
        workers = [_descriptors(row["pid"]) for row in told["processes"]]
        members = [psutil.Process(pid) for pid in _members(group)]
        dead = [member for member in members if member.status() == psutil.STATUS_ZOMBIE]
        stat = (group.memory / "memory.stat").read_text()
        shared = re.search(r"^(?:total_)?shmem (\d+)$", stat, re.M)
        return cls(
            len(members) - len(dead),
            len(dead),
            {
                **{name: _descriptors(pid) for name, pid in pids.items()},
                "worker": max(workers, default=0),
            },
            int(shared[1]) / MB if shared else 0.0,
            {name: psutil.Process(p).memory_full_info().uss / MB for name, p in pids.items()},
        )

    def __str__(self) -> str:
        files = ", ".join(f"{name} {count}" for name, count in self.descriptors.items())
        own = ", ".join(f"{name} {size:.0f}" for name, size in self.private_mb.items())
        return (
            f"{self.processes} processes, {self.zombies} zombies; descriptors: {files}; "
            f"shared {self.shared_mb:.1f} MB; own MB: {own}"
        )


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _members(group: RealGroup) -> list[int]:
    return [int(pid) for pid in (group.memory / "cgroup.procs").read_text().split()]


@dataclass
class Trouble:
    """Makes things happen.

    :param server: to whom
    :param group: its control group
    :param chance: what decides
    """

    server: Server
    group: RealGroup
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)

    def make(self) -> None:
        """Let one thing happen."""
        what = self.chance.choices(list(EVENTS), list(EVENTS.values()))[0]
        if what == "a reload":
            self.server.signal(signal.SIGHUP)
        elif what == "another limit":
            if not self.limit(self.chance.choice(LIMITS_MB)):
                what = "a limit refused by the kernel"
        else:
            told = report(self.server)
            rows = [row["pid"] for row in told["processes"] if row["pid"]]
            pid = told["pid"] if what == "the monitor killed" else self.chance.choice(rows or [0])
            if not self._kill(int(pid)):
                return
        self.done[what] += 1

    def limit(self, size_mb: int) -> bool:
        """Set the limit; version 1 refuses one that is below what is used."""
        try:
            self.group.limit_memory(size_mb)
        except OSError:
            return False
        return True

    def _kill(self, pid: int) -> bool:
        """Kill a process of the server; what the report names may have ended meanwhile."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid) if pid else None
            if process and process.ppid() == self.server.pid:
                process.kill()
                return True
        return False


class Checks:
    """What is to hold, and what did."""

    def __init__(self) -> None:
        self.broken = 0

    def __call__(self, holds: bool, what: str, figures: object) -> None:
        """Print whether something held."""
        self.broken += not holds
        print(f"  {'held  ' if holds else 'BROKEN'} {what}: {figures}", flush=True)


def await_settled(server: Server, is_settled: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the report as soon as it is as hoped for, or after a while as it is."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        told = report(server)
        if is_settled(told) or time.monotonic() > deadline:
            return told
        time.sleep(0.5)


def _is_calm(told: dict[str, Any]) -> bool:
    rows = told["processes"]
    is_quiet = told["busy"] == 0 and all(row["ready"] for row in rows)
    return bool(is_quiet and len(rows) == told["workers_wanted"])


def check(
    server: Server, group: RealGroup, first: State, load: Load, trouble: Trouble
) -> Checks:  # fmt: skip
    """Compare the end with the beginning."""
    holds = Checks()
    planned = report(server)["workers"]
    told = await_settled(server, lambda told: _is_calm(told) and told["workers_wanted"] == planned)
    last = State.of(server, group)
    print(f"at the end: {last}")
    failed, kernel = sum(load.failed.values()), oom_kills(group)
    killed = trouble.done["a worker killed"] + kernel
    alive, wanted = told["workers_alive"], told["workers_wanted"]
    holds(alive == wanted, "workers alive are those wanted", f"{alive} of {wanted}")
    holds(wanted == planned, "wanted are those planned for this limit", f"{wanted}, {planned}")
    holds(told["busy"] == 0, "nothing runs", f"busy {told['busy']}")
    # One that is killed may have answered and not yet counted it.
    low, high = load.answered - killed, load.answered + failed
    holds(
        low <= told["served"] <= high,
        "served is what clients saw",
        f"{told['served']}, clients saw {load.answered} answers and {failed} failures",
    )
    holds(
        failed <= killed,
        "no more requests failed than workers were killed",
        f"{failed} of {killed} {dict(load.failed)}",
    )
    holds(
        told["crashed"] <= killed, "kills in the report", f"{told['crashed']}, there were {killed}"
    )
    holds(told["oom_kills"] == kernel, "OOM kills", f"{told['oom_kills']}, the kernel's {kernel}")
    holds(
        last.processes == wanted + 2 and not last.zombies,
        "master, monitor, workers, and no other process",
        f"{last.processes} and {last.zombies} zombies",
    )
    for name, before in first.descriptors.items():
        now = last.descriptors[name]
        # The monitor has one more of each worker that there was when it was started.
        spare = MOST_WORKERS - WORKERS if name == "monitor" else 0
        holds(now <= before + spare, f"descriptors of the {name}", f"{before}, then {now}")
    shared = f"{first.shared_mb:.2f}, then {last.shared_mb:.2f} MB"
    holds(last.shared_mb <= first.shared_mb + 0.5, "shared memory of the group", shared)
    for name, size in first.private_mb.items():
        now_mb = last.private_mb[name]
        growth = f"{size:.1f}, then {now_mb:.1f} MB"
        holds(now_mb - size <= MOST_GROWTH_MB, f"own memory of the {name}", growth)
    holds(server.stop() == 0, "exit status", server.process.returncode)
    left = _members(group)
    holds(not left, "nothing is left after the stop", f"{len(left)} processes")
    return holds


def soak(minutes: float, seed: int) -> int:
    """Run, print what held, and return how much did not."""
    chance = random.Random(seed)
    print(f"seed {seed}, {minutes:g} minutes")
    with (
        tempfile.TemporaryDirectory() as folder,
        starter(Path(folder)) as start,
        limited(start, FIRST_LIMIT_MB) as group,
    ):
        command = serve_prod(server="gunicorn", app="leaky:create_app")
        server = start(group.command(command), None, **ON).await_ready()
        load = Load(server)
        for _ in range(10 * WORKERS):
            load.once("/none")
        # One that was started later has inherited more of the master's.
        server.monitor.kill()
        first = State.of(server, group)
        print(f"at the start: {report(server)['workers']} workers; {first}", flush=True)
        trouble, begun, said = Trouble(server, group, chance), time.monotonic(), 0
        with load:
            while (passed := time.monotonic() - begun) < minutes * 60:
                time.sleep(chance.uniform(1, 4))
                trouble.make()
                if passed // 60 > said:
                    said += 1
                    print(f"minute {said}: {load.answered} answered, {dict(trouble.done)}")
                    sys.stdout.flush()
        # New workers need less than is in use now. Each is measured before the limit changes.
        server.signal(signal.SIGHUP)
        for size_mb in (max(LIMITS_MB), FIRST_LIMIT_MB):
            await_that(partial(trouble.limit, size_mb), f"{size_mb} MB", SETTLE_SECONDS)
            time.sleep(QUIET_SECONDS)
        print(f"done: {dict(trouble.done)}; {report(server)['recycled']} recycled")
        broken = check(server, group, first, load, trouble).broken
        if broken:
            print("the last lines of the server:", *_last_lines(server), sep="\n    ")
        return broken


def _last_lines(server: Server) -> Sequence[str]:
    lines = server.stderr.splitlines()
    return [item for item in lines if "memory" in item or "Warning" in item][-30:]


def main() -> None:
    """Soak, and exit with 1 where something did not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20, help="default: 20")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10_000), help="to repeat a run"
    )
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("control groups can be made by root only")
    sys.exit(1 if soak(args.minutes, args.seed) else 0)


if __name__ == "__main__":
    main()
