"""NOW LMS itself, from PyPI, served by five lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.benchmarks.bench_memory import oom_kills
from tests.resources.real_groups import RealGroup, group_or_skip

pytestmark = pytest.mark.now_lms

REQUIREMENT = "now_lms==2.0.4"
ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
WRAPPER = """\
from now_lms import init_app, lms_app
from flask_workersize import WorkerSizing, serve
WorkerSizing(lms_app)
if __name__ == "__main__" and init_app():
    serve(lms_app)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that has NOW LMS and this project, no more."""
    folder = tmp_path_factory.mktemp("now_lms") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=environment())
    python = folder / "bin" / "python"
    found = pip_install(python, REQUIREMENT)
    if found.returncode:
        pytest.skip(f"{REQUIREMENT} cannot be installed: {found.stderr.strip()[-200:]}")
    # Both together: NOW LMS pins its dependencies, and the project has to do with those.
    both = pip_install(python, REQUIREMENT, str(ROOT))
    assert both.returncode == 0, both.stderr
    return python


def pip_install(python: Path, *requirements: str) -> subprocess.CompletedProcess[str]:
    """Install into an environment; the caller looks at the status."""
    command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
    return subprocess.run(command, check=False, env=environment(), capture_output=True, text=True)


def environment() -> dict[str, str]:
    """Return the environment without what is meant for the Python that runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@contextmanager
def served(
    python: Path, folder: Path, group: RealGroup | None = None, /, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start the wrapper on a fresh database; yield its URL and process once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wrapper = folder / "run_lms.py"
    wrapper.write_text(WRAPPER)
    env = {
        **lms_environment(folder),
        "NOW_LMS_HOST": "127.0.0.1",
        "NOW_LMS_PORT": str(port),
        **settings,
    }
    command = [str(python), str(wrapper)]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            group.command(command) if group else command,
            cwd=folder,
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                get(f"{url}/health")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"NOW LMS does not answer:\n{log.read_text()}")
                time.sleep(0.1)
        yield url, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def lms_environment(folder: Path) -> dict[str, str]:
    """Return the environment of NOW LMS with its data in a folder.

    Nothing is inherited: CI or PYTEST_VERSION would put NOW LMS into its testing mode.
    """
    return {
        "PATH": os.defpath,
        "HOME": str(folder),
        "SECRET_KEY": "a secret of this test, 32 characters or more",
        "DATABASE_URL": f"sqlite:///{folder / 'lms.db'}",
        "NOW_LMS_DATA_DIR": str(folder / "static"),
    }


def get(url: str) -> tuple[int, bytes]:
    """Return status and body; a redirect is followed, an error raises."""
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.status, response.read()


@pytest.mark.parametrize(
    ("server", "settings", "plan"),
    [
        ("waitress", {}, {"workers": 1, "worker_class": None}),
        ("gunicorn", {"NOW_LMS_WORKERS": "2"}, {"workers": 2, "worker_class": "sync"}),
        (
            "gunicorn",
            {"NOW_LMS_WORKERS": "1", "NOW_LMS_THREADS": "4"},
            {"workers": 1, "threads": 4, "worker_class": "gthread"},
        ),
    ],
)
def test_five_lines_serve_now_lms(
    python: Path, tmp_path: Path, server: str, settings: dict[str, str], plan: dict[str, object]
) -> None:
    """Pages, capacity and a clean end, on each server."""
    with served(python, tmp_path, NOW_LMS_WSGI_SERVER=server, **settings) as (url, process):
        status, page = get(f"{url}/")
        assert status == 200
        assert b"NOW" in page

        report = json.loads(get(f"{url}/_health/capacity")[1])
        assert report["serving"] is True
        assert {"server": server, **plan}.items() <= report.items()

        # The sign-in page opens a session, which is a write to the database.
        urls = [f"{url}/", f"{url}/user/login"] * 4
        with ThreadPoolExecutor(len(urls)) as clients:
            assert [status for status, _ in clients.map(get, urls)] == [200] * len(urls)

        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"SECRET_KEY": "a secret of this test, 32 characters or more"}, 0),
        ({"NOW_LMS_PRELOAD": "off"}, 0),
        # Its testing mode makes a key at each start.
        ({"CI": "1"}, 1),
    ],
)
def test_doctor_finds_nothing_in_now_lms(
    python: Path, tmp_path: Path, settings: dict[str, str], status: int
) -> None:
    """The doctor raises no false alarm, and knows a true one."""
    (tmp_path / "run_lms.py").write_text(WRAPPER)
    env = {
        "PATH": os.defpath,
        "HOME": str(tmp_path),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'lms.db'}",
        "NOW_LMS_DATA_DIR": str(tmp_path / "static"),
        **settings,
    }
    command = [str(python), "-m", "flask", "--app", "run_lms:lms_app", "workersize", "doctor"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    *findings, last = [line for line in done.stdout.splitlines() if " now_lms - " not in line]
    assert [finding.partition(":")[0] for finding in findings] == ["Breaks"] * status
    assert last.startswith("With more than one" if status else "No multi-worker problems")


def test_measured_now_lms_has_as_many_workers_in_512_mb_as_two_cpus_allow(
    python: Path, tmp_path: Path
) -> None:
    """Five, where the guide's 200 MB a worker give two, and nothing is killed under load."""
    profile = tmp_path / "profile.json"
    gunicorn = {"NOW_LMS_WSGI_SERVER": "gunicorn"}
    with group_or_skip() as group:
        group.limit_memory(512)
        group.limit_cpus(2)
        with served(python, tmp_path, group, **gunicorn) as (url, process):
            guided = json.loads(get(f"{url}/_health/capacity")[1])
            process.terminate()
            assert process.wait(60) == 0
        measured = subprocess.run(
            group.command(
                [
                    str(python), "-m", "flask", "--app", "run_lms:lms_app",
                    "workersize", "measure", "--path", "/", "--path", "/user/login",
                ]
            ),
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**lms_environment(tmp_path), **gunicorn, "NOW_LMS_SIZING_PROFILE": str(profile)},
        )  # fmt: skip
        assert measured.returncode == 0, measured.stdout + measured.stderr
        settings = {**gunicorn, "NOW_LMS_SIZING_PROFILE": str(profile)}
        with served(python, tmp_path, group, **settings) as (url, process):
            planned = json.loads(get(f"{url}/_health/capacity")[1])
            urls = [f"{url}/", f"{url}/user/login"] * 200
            with ThreadPoolExecutor(16) as clients:
                assert [status for status, _ in clients.map(get, urls)] == [200] * len(urls)
            process.terminate()
            assert process.wait(60) == 0
        assert (guided["workers"], planned["workers"]) == (2, 5), (guided, planned)
        assert oom_kills(group) == 0
