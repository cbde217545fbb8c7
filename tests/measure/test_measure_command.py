"""flask workersize measure: real servers, real requests; and what is said where there are none."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from flask.cli import FlaskGroup

from flask_workersize import WorkerSizing
from flask_workersize.errors import WorkerSizeConfigError
from flask_workersize.measure import format
from flask_workersize.measure.load_test import Answers
from flask_workersize.measure.measurement import check
from flask_workersize.sizing.profile import Estimate, SizingProfile
from flask_workersize.sizing.profile_location import FILE_NAME
from tests.plain import clear_environment, new_app
from tests.servers.clients import PATH
from tests.servers.serving import Finished, Starter, await_that, flask, starter
from tests.sizing.profiles import figure, profile

APP = "costly:create_app"
FEW = ["--requests", "60", "--concurrency", "4"]
GUNICORN = {"NOW_LMS_WSGI_SERVER": "gunicorn"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Run commands in a folder of the test's own."""
    with starter(tmp_path) as start:
        yield start


def measure(start: Starter, folder: Path, *args: str, app: str = APP, **environ: str) -> Finished:
    """Run the command with an instance folder of the test's own."""
    env = {**PATH, "COSTLY_INSTANCE": str(folder / "instance"), **environ}
    return start.run(flask("workersize", "measure", *args, app=app), None, **env)


def saved(folder: Path) -> SizingProfile:
    """Return the profile that was written."""
    return SizingProfile.load(folder / "instance" / FILE_NAME)


def test_app_that_waits_is_measured_and_gets_threads(start: Starter, tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text("MINE=1\nNOW_LMS_THREADS=1\n")
    done = measure(start, tmp_path, "--path", "/both", "--write", str(env), *FEW, **GUNICORN)
    assert done.status == 0, done.stderr
    made = saved(tmp_path)
    assert (made.app, made.made_by, made.preload) == ("costly", "measure", True)
    assert made.requests == 60 + 60 + 50
    assert made.wait_ms.value > made.cpu_ms.value > 0
    figures = [value for _, value in made if isinstance(value, Estimate)]
    assert len(figures) == 9
    for item in figures:
        assert item.low <= item.value <= item.high
    # Of so few requests a worker may have had too few to tell.
    assert made.growth_mb.low <= made.growth_mb.high
    assert 0 < made.boot_mb.value <= made.peak_mb.value < made.shared_mb.value
    assert made.alone_mb is not None
    assert made.peak_mb.value < made.alone_mb.value < made.shared_mb.value
    found = re.search(r"^  NOW_LMS_WORKERS=(\d+)\n  NOW_LMS_THREADS=(\d+)$", done.stdout, re.M)
    assert found
    assert int(found[2]) > 1
    assert env.read_text() == (
        f"MINE=1\nNOW_LMS_THREADS={found[2]}\nNOW_LMS_WSGI_SERVER=gunicorn\n"
        f"NOW_LMS_WORKERS={found[1]}\n"
    )
    told = re.findall(r"^  ([a-zA-Z, ]+?)  +-?[\d.]+ \(-?[\d.]+ to [\d.]+\)", done.stdout, re.M)
    assert len(told) == 9
    for name in ("shared memory", "own memory at its peak", "CPU time", "waiting time", "growth"):
        assert name in told
    assert "Plan with this profile: gunicorn: " in done.stdout
    assert "Measuring" in done.stderr
    (server,) = start.servers
    assert server.members() == []


def test_memory_of_a_request_is_in_the_peak_and_not_in_the_start(
    start: Starter, tmp_path: Path
) -> None:
    """Each process keeps 40 MB from its first request on."""
    assert measure(start, tmp_path, "--path", "/memory", *FEW).status == 0
    made = saved(tmp_path)
    assert made.boot_mb.value < 40 < made.warm_mb.value <= made.peak_mb.value
    assert made.peak_mb.value < 60


def test_app_that_leaks_is_told_a_bound(start: Starter, tmp_path: Path) -> None:
    """Its thread, which is no daemon, holds neither the command nor the servers that it starts."""
    file = tmp_path / "profile.json"
    environ = {"NOW_LMS_SIZING_PROFILE": str(file), "LEAKY_THREAD": "1"}
    done = measure(start, tmp_path, "--path", "/leak", *FEW, app="leaky:create_app", **environ)
    made = SizingProfile.load(file)
    assert made.grows
    assert made.growth_mb.value == pytest.approx(500, rel=0.2)
    assert made.growth_mb.low > 400
    assert re.search(r"perhaps from a leak\. .* NOW_LMS_WORKER_MEMORY_MAX_MB=\d+", done.stdout)


def test_measured_number_is_what_a_plan_has_from_then_on(start: Starter, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "profile.json"
    environ = {"NOW_LMS_SIZING_PROFILE": str(file), "COSTLY_INSTANCE": str(tmp_path)}
    assert measure(start, tmp_path, "--path", "/none", *FEW, **environ).status == 0
    plan = start.run(
        flask("workersize", "plan", "--json", app=APP), None, **PATH, **environ, **GUNICORN
    )
    told = json.loads(plan.stdout)["plan"]
    made = SizingProfile.load(file)
    assert told["worker_memory_mb"] == made.costs_for("gunicorn").private_mb(1)
    assert told["shared_memory_mb"] == made.costs_for("gunicorn").shared_mb
    assert told["sources"]["worker_memory_mb"] == "measured"


def test_one_client_alone_needs_one_load_test(start: Starter, tmp_path: Path) -> None:
    """Whatever is in the place of the profile, it is replaced."""
    (tmp_path / "instance").mkdir()
    os.mkfifo(tmp_path / "instance" / FILE_NAME)
    done = measure(start, tmp_path, "--path", "/none", "--requests", "40", "--concurrency", "1")
    assert done.status == 0, done.stderr
    assert saved(tmp_path).requests == 40 + 50
    assert saved(tmp_path).thread_mb.value == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/closed", "/closed answered 302. A login is required: choose open paths"),
        ("/fails", "/fails answered 500. The app fails: see its log under flask serve-prod"),
        ("/dies", "/dies answered nothing. The server closes the connection"),
    ],
)
def test_path_without_a_page_is_one_line(
    start: Starter, tmp_path: Path, path: str, expected: str
) -> None:
    done = measure(start, tmp_path, "--path", path, *FEW)
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert line.startswith(f"Error: Nothing to measure: {expected}")
    assert "Traceback" not in done.stderr + done.stdout
    assert done.status == 2
    assert not (tmp_path / "instance").exists()


def test_some_pages_that_fail_are_told_and_the_others_measured(
    start: Starter, tmp_path: Path
) -> None:
    done = measure(start, tmp_path, "--path", "/none", "--path", "/sometimes", *FEW)
    assert done.status == 0, done.stderr
    assert re.search(r"^Warning: /sometimes answered: \d+ × 500\.", done.stdout, re.M)
    assert saved(tmp_path).requests < 145


def test_path_that_never_answers_is_refused_though_another_does(
    start: Starter, tmp_path: Path
) -> None:
    """A typing error would be measured, and replace a good profile."""
    done = measure(start, tmp_path, "--path", "/none", "--path", "/nome", *FEW)
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert line.startswith("Error: Nothing to measure: /nome answered 404. No such page")
    assert done.status == 2
    assert not (tmp_path / "instance").exists()


def test_server_that_does_not_start_is_one_line(start: Starter, tmp_path: Path) -> None:
    done = measure(start, tmp_path, *FEW, GUNICORN_CMD_ARGS="--worker-class nonsense")
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert line.startswith("Error: The app does not start: ")
    assert "worker" in line
    assert done.status == 1


def test_workers_that_end_after_a_few_requests_are_one_line(start: Starter, tmp_path: Path) -> None:
    environ = {"GUNICORN_CMD_ARGS": "--max-requests 2"}
    done = measure(start, tmp_path, "--path", "/none", *FEW, **environ)
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert "unset max_requests while measuring" in line
    assert "Traceback" not in done.stderr
    assert done.status == 2


@pytest.fixture
def hang_up() -> Iterator[Callable[[Any], object]]:
    """Return what sets how processes that are started take a hang-up."""
    numbers = (signal.SIGHUP, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    # A shell lets its background jobs ignore Ctrl-C, which they pass on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "under_nohup"),
    [
        (signal.SIGTERM, False),
        (signal.SIGHUP, False),
        (signal.SIGINT, False),
        (signal.SIGHUP, True),
    ],
)
def test_measuring_that_is_ended_leaves_no_server(
    *,
    start: Starter,
    tmp_path: Path,
    hang_up: Callable[[Any], object],
    number: signal.Signals,
    under_nohup: bool,
) -> None:
    hang_up(signal.SIG_IGN if under_nohup else signal.SIG_DFL)
    env = {**PATH, "COSTLY_INSTANCE": str(tmp_path / "instance")}
    command = flask("workersize", "measure", "--path", "/both", "--requests", "5000", app=APP)
    server = start.launch(command, None, **env)
    process = psutil.Process(server.pid)
    # The launcher of the load test, its monitor and its workers.
    await_that(lambda: len(process.children(recursive=True)) == 4, "the load test runs")
    members = process.children(recursive=True)
    server.signal(number)
    if under_nohup:
        time.sleep(0.5)
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
    server.wait()
    assert [member for member in members if member.is_running()] == []
    assert not (tmp_path / "instance").exists()


def test_figures_are_shown_also_where_they_cannot_be_kept(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "instance").write_text("no folder")
    done = measure(start, tmp_path, "--path", "/none", *FEW)
    assert "  CPU time " in done.stdout
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert line.startswith("Error: Cannot write the profile to ")
    assert "NOW_LMS_SIZING_PROFILE" in line
    assert done.status == 1


def test_number_that_is_set_stays_and_that_is_said(start: Starter, tmp_path: Path) -> None:
    """What is proposed is written all the same."""
    env = tmp_path / ".env"
    args = ["--path", "/none", "--write", str(env), *FEW]
    done = measure(start, tmp_path, *args, NOW_LMS_WORKER_MEMORY_MB="150", **GUNICORN)
    assert done.status == 0
    assert "NOW_LMS_WORKERS=" in env.read_text()
    assert "Note: NOW_LMS_WORKER_MEMORY_MB overrides the profile; unset it" in done.stdout


@pytest.mark.parametrize(
    ("status", "location", "expected"),
    [
        (302, "/login?next=/", "A login is required"),
        (401, None, "A login is required"),
        (403, None, "A login is required"),
        (404, None, "No such page"),
        (500, None, "The app fails"),
        (301, "https://127.0.0.1:8080/", "redirects to https"),
        (302, "http://127.0.0.1:8080/start?a=1", "redirects to http://127.0.0.1:8080/start:"),
        (400, None, "does not trust the host"),
        (405, None, "The app refuses the request"),
        (410, None, "No such page"),
        (429, None, "has a rate limit"),
    ],
)
def test_reason_is_told_from_the_status(status: int, location: str | None, expected: str) -> None:
    answers = Answers()
    answers.note("/", status, location)
    with pytest.raises(WorkerSizeConfigError) as caught:
        check(answers)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("each_mb", "environ", "system", "is_named"),
    [
        (9.6, {}, "glibc", True),
        (9.6, {"MALLOC_ARENA_MAX": "2"}, "glibc", False),
        (9.6, {}, "", False),
        (1.9, {}, "glibc", False),
    ],
)
def test_threads_that_need_much_are_a_note_that_names_the_heaps_of_glibc(
    *,
    monkeypatch: pytest.MonkeyPatch,
    each_mb: float,
    environ: dict[str, str],
    system: str,
    is_named: bool,
) -> None:
    """Unless they are bounded already, or the system has no glibc."""
    monkeypatch.setattr(platform, "libc_ver", lambda: (system, ""))
    told = list(format.arenas(profile(thread_mb=figure(each_mb)), environ))
    line = (
        "each thread needs 10 MB: glibc may keep a heap for each. Set MALLOC_ARENA_MAX=2 for the "
        "server and measure again."
    )
    assert told == [line] * is_named


# Bad input, before anything is started


def invoke(monkeypatch: pytest.MonkeyPatch, *args: str, loaded: bool = True) -> Any:
    """Run the command in this process, with an app or with its name."""
    clear_environment(monkeypatch)
    app = new_app()
    WorkerSizing(app)
    group = FlaskGroup(create_app=(lambda: app) if loaded else None)
    return CliRunner().invoke(group, ["workersize", "measure", *args])


def test_app_that_was_handed_over_cannot_be_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke(monkeypatch)
    assert done.exit_code == 2
    assert "use flask --app ... workersize measure" in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--path", "courses"], "--path is not a path"),
        (["--path", "//elsewhere.example/"], "--path is not a path"),
        (["--path", "/a b"], "--path is not a path"),
        (["--path", "/a\r\nX: y"], "--path is not a path"),
        (["--requests", "0"], "--requests is not a whole number from 1 to 1,000,000"),
        (["--requests", "many"], "--requests is not a whole number"),
        (["--concurrency", "257"], "--concurrency is not a whole number from 1 to 256"),
    ],
)
def test_option_that_cannot_be_is_one_line(
    start: Starter, tmp_path: Path, args: list[str], expected: str
) -> None:
    done = measure(start, tmp_path, *args)
    line = done.assert_one_line_error(2)
    assert line.startswith(f"Error: {expected}")
