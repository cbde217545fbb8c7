"""What a plan from a measured profile says of memory, against what the kernel counts.

``python -m tests.benchmarks.bench_estimate`` measures six real apps with ``flask workersize
measure`` and serves each with gunicorn (sync and gthread) and waitress, in a control group of its
own. It prints a table. The judge is what the kernel cannot drop without slowing the app: anonymous
and shared memory, pages of files that are mapped, and the kernel's own.

The kernel charges a page of a file to the group that reads it first, so it matters whose files
these are. Every app is measured and judged with copies of its files that are the group's ("own", as
in the first container of an image), and with copies of its packages alone ("packages", as for the
service of a machine that has Python already). ``--files machine`` has no copies: other groups have
paid for all files, and the judge sees none of them. With ``--rounds`` the most of several runs
counts: what an app loads with its first requests may depend on how many come at once.

It needs root, and installs the apps from PyPI; ``--venvs FOLDER`` keeps them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from flask_workersize.sizing.profile import SizingProfile
from flask_workersize.sizing.validators import ServerName
from tests.benchmarks.bench_memory import free_port
from tests.resources.own_files import OwnFiles, mapped_files
from tests.resources.real_groups import RealGroup, real_group
from tests.servers.test_now_lms import REQUIREMENT, ROOT, environment, pip_install

CLIENTS = 16
REQUESTS = 800
READY_SECONDS = 60
SETTLE_SECONDS = 1
WITHIN, WITHIN_MB = 0.10, 10
"""What an estimate may be off: the larger of the two."""

SHAPES: dict[str, tuple[ServerName, int, int]] = {
    "sync 4": ("gunicorn", 4, 1),
    "gthread 2x8": ("gunicorn", 2, 8),
    "waitress 8": ("waitress", 1, 8),
}
"""Server, workers, threads."""

FILES: dict[str, Callable[[str], bool]] = {
    "own": lambda name: True,
    "packages": lambda name: "/site-packages/" in name,
    "machine": lambda name: False,
}
"""Which files the group has copies of, by their names."""

SIZED = "\nfrom flask_workersize import WorkerSizing\nWorkerSizing(app)\n"


@dataclass(frozen=True)
class App:
    """An app, and how it is made.

    :param requirement: what is installed from PyPI; ``None`` for the example app
    :param text: a module that has it as ``app``
    :param path: what is requested of it
    :param environ: variables that it needs
    """

    requirement: str | None
    text: str
    path: str = "/"
    environ: dict[str, str] = field(default_factory=dict)


IHATEMONEY = """\
import os
settings = os.path.abspath("ihatemoney.cfg")
with open(settings, "w") as file:
    file.write("SQLALCHEMY_DATABASE_URI = 'sqlite:///" + os.path.abspath("i.db") + "'\\n")
    file.write("SECRET_KEY = 'of the benchmark'\\n")
os.environ["IHATEMONEY_SETTINGS_FILE_PATH"] = settings
from ihatemoney.run import create_app
app = create_app()
"""

SQLITE_WEB = """\
import sqlite3
from sqlite_web.sqlite_web import app, initialize_app
with sqlite3.connect("served.db") as made:
    made.execute("CREATE TABLE IF NOT EXISTS courses (name TEXT)")
initialize_app(["served.db"])
"""

DTALE = """\
from dtale.app import build_app
app = build_app("", reaper_on=False)
"""

NOW_LMS = "from now_lms import init_app, lms_app as app\ninit_app()\n"
SECRET = "a secret of this benchmark, 32 characters or more"

APPS = {
    "example_app": App(None, "from example_app import create_app\napp = create_app()\n"),
    "NOW LMS": App(
        REQUIREMENT,
        NOW_LMS + SIZED,
        environ={"SECRET_KEY": SECRET, "DATABASE_URL": "sqlite:///{folder}/lms.db"},
    ),
    "ihatemoney": App("ihatemoney==7.2.1", IHATEMONEY + SIZED),
    "sqlite-web": App("sqlite-web==0.8.2", SQLITE_WEB + SIZED, "/courses/"),
    "moto (S3)": App(
        "moto[server]==5.2.5",
        "from moto.server import create_backend_app\napp = create_backend_app('s3')\n" + SIZED,
    ),
    "D-Tale": App("dtale==3.22.0", DTALE + SIZED, "/dtale/popup/upload"),
}


class Bench:
    """Installs, measures and serves one app.

    :param app: the app
    :param python: the interpreter that has it
    :param folder: where it may write
    """

    def __init__(self, app: App, python: Path, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._flask = [str(python), "-m", "flask", "--app", "served:app"]
        self._environ = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "NOW_LMS_DATA_DIR": str(folder / "data"),
            "EXAMPLE_DATABASE_URI": f"sqlite:///{folder}/example.sqlite3",
            **{name: text.format(folder=folder) for name, text in app.environ.items()},
        }
        (folder / "served.py").write_text(app.text)
        self._files: list[str] = []
        self._count = 0
        with real_group() as group, self._served(group.command, "sync 4") as url:
            _get(url)
            self._files = mapped_files(_members(group))

    def measure(self, files: str) -> SizingProfile:
        """Measure it in a group of its own."""
        path = self._folder / "profile.json"
        with self._group(files) as (_, inside):
            command = [*self._flask, "workersize", "measure", "--path", self._app.path]
            environ = self._environ | {"NOW_LMS_SIZING_PROFILE": str(path)}
            done = subprocess.run(
                inside(command), cwd=self._folder, env=environ, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return SizingProfile.load(path)

    def judge(self, shape: str, files: str) -> float:
        """Serve it in a group of its own, and return what it needs there, in MB."""
        with self._group(files) as (group, inside), self._served(inside, shape) as url:
            with ThreadPoolExecutor(CLIENTS) as clients:
                list(clients.map(_get, [url] * REQUESTS))
            time.sleep(SETTLE_SECONDS)
            return group.needed_mb

    @contextlib.contextmanager
    def _group(
        self, files: str
    ) -> Iterator[tuple[RealGroup, Callable[[Sequence[str]], list[str]]]]:
        """Yield a group, and what makes a command line that runs in it."""
        with real_group() as group:
            self._count += 1
            copies = self._folder / f"copies-{self._count}"
            copies.mkdir()
            yield group, OwnFiles(group, copies, list(filter(FILES[files], self._files))).command

    @contextlib.contextmanager
    def _served(self, inside: Callable[[Sequence[str]], list[str]], shape: str) -> Iterator[str]:
        """Serve it, and yield the address of its page."""
        server, workers, threads = SHAPES[shape]
        port = free_port()
        args = ["--wsgi-server", server, "--threads", str(threads), "--bind", f"127.0.0.1:{port}"]
        if server == "gunicorn":
            args += ["--workers", str(workers)]
        environ = self._environ | {"NOW_LMS_SIZING_PROFILE": "off"}
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(
                inside([*self._flask, "serve-prod", *args]), cwd=self._folder, env=environ,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}{self._app.path}"
        try:
            deadline = time.monotonic() + READY_SECONDS
            # Nothing is requested yet: as while measuring, the first requests come all at once.
            while not _is_open(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit((self._folder / "log").read_text())
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        body: bytes = response.read()
        return body


def _members(group: RealGroup) -> list[int]:
    return [int(pid) for pid in (group.memory / "cgroup.procs").read_text().split()]


def install(name: str, app: App, venvs: Path) -> Path:
    """Return an interpreter that has an app and this project as it is now."""
    venv = venvs / "".join(char for char in name if char.isalnum())
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, env=environment())
    wanted = [app.requirement] if app.requirement else ["flask-sqlalchemy"]
    for requirements in ([*wanted, str(ROOT)], ["--force-reinstall", "--no-deps", str(ROOT)]):
        found = pip_install(python, *requirements)
        if found.returncode:
            sys.exit(f"{name} cannot be installed: {found.stderr}")
    return python


def is_within(told_mb: float, judged_mb: float) -> bool:
    """Return whether an estimate is as good as it has to be."""
    return abs(told_mb - judged_mb) <= max(WITHIN * judged_mb, WITHIN_MB)


def compare(name: str, bench: Bench, files: Sequence[str], rounds: int) -> Iterator[bool]:
    """Print the rows of an app; yield for each whether it is near enough."""
    for whose in files:
        profile = bench.measure(whose)
        for shape, (server, workers, threads) in SHAPES.items():
            costs = profile.costs_for(server)
            told_mb = costs.shared_mb + workers * costs.private_mb(threads)
            judged_mb = max(bench.judge(shape, whose) for _ in range(rounds))
            off_mb = told_mb - judged_mb
            cells = [name, shape, whose, f"{told_mb}", f"{judged_mb:.1f}"]
            cells += [f"{off_mb:+.1f}", f"{off_mb / judged_mb:+.0%}"]
            print(line([*cells, "" if is_within(told_mb, judged_mb) else "off"]), flush=True)
            yield is_within(told_mb, judged_mb)


def line(cells: Sequence[str]) -> str:
    """Return a row of the table."""
    widths = (12, 12, 8, 8, 9, 7, 6, 3)
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))


def main() -> None:
    """Measure, judge, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_estimate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--apps", nargs="+", choices=APPS, default=list(APPS))
    parser.add_argument("--files", nargs="+", choices=FILES, default=["own", "packages"])
    parser.add_argument("--rounds", type=int, default=1, help="runs of each row (default: 1)")
    parser.add_argument("--venvs", type=Path, metavar="FOLDER", help="where apps are installed")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("control groups can be made by root only")
    print(line(["app", "server", "files", "estimate", "judge, MB", "off, MB", "off", ""]))
    near: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(args.apps):
            python = install(name, APPS[name], (args.venvs or Path(folder)).absolute())
            place = Path(folder) / f"app-{number}"
            place.mkdir()
            if name == "example_app":
                (place / name).symlink_to(ROOT / name)
            near += compare(name, Bench(APPS[name], python, place), args.files, args.rounds)
    print(f"{sum(near)} of {len(near)} are within {WITHIN:.0%} or {WITHIN_MB} MB")


if __name__ == "__main__":
    main()
