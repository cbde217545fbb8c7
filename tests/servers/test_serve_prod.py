"""flask serve-prod on both servers: what it says, and that it does what it says."""

from __future__ import annotations

import re
import signal
import socket

import pytest

from tests.plain import clear_environment
from tests.servers.serving import Starter, flask, refused_here, serve_prod

SHAPES = {"gunicorn": "2 workers × 3 threads", "waitress": "3 threads in one process"}
FIGURES = r"CPU bound \d+, memory bound \d+: \d+ MB available / 250 MB a worker"
ARGUMENTS = ["--workers", "2", "--threads", "3", "--worker-memory-mb", "250", "--timeout", "77"]
ENVIRON = {
    "NOW_LMS_WORKERS": "2",
    "NOW_LMS_THREADS": "3",
    "NOW_LMS_WORKER_MEMORY_MB": "250",
    "NOW_LMS_TIMEOUT": "77",
}
LEGACY = {"WORKERS": "2", "THREADS": "3", "WORKER_MEMORY_MB": "250"}
OTHER = {"NOW_LMS_WORKERS": "4", "NOW_LMS_THREADS": "5", "NOW_LMS_WORKER_MEMORY_MB": "300"}


@pytest.mark.parametrize(
    ("arguments", "environ", "sources"),
    [
        (ARGUMENTS, OTHER, {"gunicorn": "--workers", "waitress": "--threads"}),
        ([], ENVIRON, {"gunicorn": "NOW_LMS_WORKERS", "waitress": "NOW_LMS_THREADS"}),
        ([], LEGACY, {"gunicorn": "WORKERS", "waitress": "THREADS"}),
    ],
    ids=["options", "environment", "legacy"],
)
def test_words_of_the_operator_reach_the_server_and_its_one_start_line(
    start: Starter,
    name: str,
    arguments: list[str],
    environ: dict[str, str],
    sources: dict[str, str],
) -> None:
    server = start(serve_prod(*arguments, server=name), **environ)
    plan = server.get().json()["plan"]
    estimate = {"gunicorn": 500, "waitress": 250}[name]
    line = re.escape(f"{name}: {SHAPES[name]} ({sources[name]}; ") + FIGURES
    found = [text for text in server.stderr.splitlines() if text.startswith(f"{name}: ")]
    assert len(found) == 1
    assert re.fullmatch(line + re.escape(f"), about {estimate} MB"), found[0])
    assert plan["workers"] == {"gunicorn": 2, "waitress": 1}[name]
    assert plan["threads"] == 3
    if name == "gunicorn":
        server.wait_for_line("Booting worker", count=2)
        assert server.stop() == 0
        assert len(server.booted_pids) == 2
    else:
        threads = [t for t in server.get().json()["threads"] if t.startswith("waitress")]
        assert len(threads) == 3


def test_calculated_size_is_the_size_that_runs(start: Starter, name: str) -> None:
    """As many requests as the plan promises run at the same moment, and it was not asked for."""
    server = start(serve_prod(server=name))
    plan = server.get().json()["plan"]
    assert plan["limited_by"] in ("cpu", "memory")
    assert f"2 × {plan['cpus']:g} CPUs + 1" in server.stderr or "memory: " in server.stderr
    seen = server.gather(plan["concurrency"])
    slots = {(facts["pid"], facts["thread"]) for facts in seen}
    assert len(slots) == plan["concurrency"] > 1
    assert len({facts["pid"] for facts in seen}) == plan["workers"]


@pytest.mark.parametrize("threads", [1, 4])
def test_that_many_threads_of_a_worker_run_at_once(start: Starter, name: str, threads: int) -> None:
    server = start(serve_prod("--workers", "1", "--threads", str(threads), server=name))
    seen = server.gather(threads)
    assert len({facts["pid"] for facts in seen}) == 1
    assert len({facts["thread"] for facts in seen}) == threads


def test_waitress_is_the_default(start: Starter) -> None:
    server = start(serve_prod())
    assert server.get().headers["Server"] == "waitress"


def test_server_can_be_chosen_by_the_environment(start: Starter) -> None:
    server = start(serve_prod("--workers", "1"), WSGI_SERVER="GUNICORN")
    assert server.get().headers["Server"] == "gunicorn"


def test_sigterm_ends_everything_with_status_0(start: Starter, name: str) -> None:
    server = start(serve_prod("--workers", "2", server=name))
    server.get().json()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.members() == []
    assert "Traceback" not in server.stdout + server.stderr


def test_each_warning_is_said_once_on_one_line(start: Starter, name: str) -> None:
    """The plan's own warnings, and that debug mode was left on."""
    server = start(
        serve_prod(server=name),
        NOW_LMS_WORKERS="2",
        NOW_LMS_WORKER_MEMORY_MB="10000000",
        WORKER_MEMORY_MB="300",
        LMS_PORT="tcp://10.0.0.1:80",
        FLASK_DEBUG="1",
    )
    warnings = server.get().json()["plan"]["warnings"]
    for part in ("NOW_LMS_WORKER_MEMORY_MB and WORKER_MEMORY_MB", "enableServiceLinks", "fit"):
        assert len([warning for warning in warnings if part in warning]) == 1, part
    said = [line for line in server.stderr.splitlines() if line.startswith("Warning: ")]
    debug = [line for line in said if "debug mode is on" in line]
    assert len(debug) == 1
    assert [line for line in said if line not in debug] == [f"Warning: {w}" for w in warnings]
    server.stop()
    for warning in warnings:
        assert server.stderr.count(warning) == 1


@pytest.mark.parametrize(
    ("server", "arguments", "environ", "count"),
    [
        ("waitress", ["--workers", "2"], {}, 1),
        ("waitress", [], {"NOW_LMS_WORKERS": "2"}, 0),
        ("gunicorn", ["--workers", "2"], {}, 0),
    ],
)
def test_option_for_workers_has_no_effect_under_waitress_and_one_line_says_so(
    start: Starter, server: str, arguments: list[str], environ: dict[str, str], count: int
) -> None:
    """A variable is set for both servers; an option is typed for this one."""
    started = start(serve_prod(*arguments, server=server), **environ)
    assert started.get().status == 200
    said = [line for line in started.stderr.splitlines() if "has no effect" in line]
    assert said == count * [
        "Warning: --workers has no effect: waitress has one process. Set --threads, or use "
        "gunicorn."
    ]


def test_no_word_of_debug_mode_when_it_is_off(start: Starter, name: str) -> None:
    server = start(serve_prod("--workers", "1", server=name))
    server.get().json()
    assert "debug" not in server.stderr


def test_debug_option_of_flask_is_warned_of_too(start: Starter) -> None:
    command = serve_prod()
    command.insert(command.index("serve-prod"), "--debug")
    assert start(command).stderr.count("debug mode is on") == 1


def test_start_of_waitress_says_the_plan_and_the_address_and_nothing_else(start: Starter) -> None:
    server = start(serve_prod("--threads", "2"))
    plan, address = server.stderr.splitlines()
    assert plan.startswith("waitress: 2 threads in one process (--threads; ")
    assert address == f"Serving on {server.urls[0]}"
    assert server.stdout == ""


def test_waitress_serves_instead_of_gunicorn_on_windows_with_a_warning(start: Starter) -> None:
    """Under its plan, with the report on the app's port, and until it is told to stop."""
    server = start(serve_prod(server="gunicorn", app="on_windows:create_app"))
    assert server.get().headers["Server"] == "waitress"
    assert server.get("/_health/capacity").json()["server"] == "waitress"
    assert [member.pid for member in server.members()] == [server.pid]
    said = [line for line in server.stderr.splitlines() if "Windows" in line]
    assert said == [
        "Warning: --wsgi-server: gunicorn does not run on Windows, using waitress instead."
    ]
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_health_port_has_no_effect_on_windows_and_a_warning_says_so(start: Starter) -> None:
    command = serve_prod(server="waitress", app="on_windows:create_app")
    server = start(command, NOW_LMS_HEALTH_PORT="0")
    (line,) = (line for line in server.stderr.splitlines() if "Windows" in line)
    assert "NOW_LMS_HEALTH_PORT" in line
    assert "Health port on" not in server.stderr
    assert server.get().status == 200


@pytest.mark.parametrize("name", ["NOW_LMS_SIZING=adaptive", "NOW_LMS_SIZING_PROFILE=learn"])
def test_what_needs_the_monitor_has_no_effect_on_windows(start: Starter, name: str) -> None:
    command = serve_prod(server="waitress", app="on_windows:create_app")
    server = start(command, None, **dict([name.split("=")]))
    (line,) = (line for line in server.stderr.splitlines() if "cannot fork" in line)
    assert name in line
    assert server.get().status == 200


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_lines_go_through_the_logging_of_the_app_and_are_seen_in_any_case(
    start: Starter, name: str, level: str
) -> None:
    """Each line is there once, logged where the app's logging takes it, else plain."""
    server = start(
        serve_prod("--workers", "1", server=name, app="logged:create_app"),
        FACTS_LOG_LEVEL=level,
        LMS_PORT="tcp://10.0.0.1:80",
    )
    lines = server.stderr.splitlines()
    plan = [line for line in lines if re.search(f"{name}: \\d", line)]
    warning = [line for line in lines if "LMS_PORT is skipped" in line]
    assert len(plan) == len(warning) == 1
    assert plan[0].startswith("LOG INFO " if level == "INFO" else name)
    assert warning[0].startswith("LOG WARNING ")


def test_dotenv_file_is_read_and_the_environment_wins(start: Starter, name: str) -> None:
    """Flask's command loads it; a file of the folder is not the operator's last word."""
    pytest.importorskip("dotenv", reason="Flask reads .env with python-dotenv")
    (start.folder / ".env").write_text("NOW_LMS_THREADS=3\nWORKER_MEMORY_MB=150\n")
    server = start(serve_prod("--workers", "1", server=name), WORKER_MEMORY_MB="250")
    plan = server.get().json()["plan"]
    assert (plan["threads"], plan["worker_memory_mb"]) == (3, 250)
    assert plan["sources"]["threads"] == "NOW_LMS_THREADS"


def test_dry_run_prints_plan_and_sources_and_starts_nothing(start: Starter, name: str) -> None:
    """A port in use does not matter, because nothing is opened."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = start.run(
            serve_prod("--dry-run", "--port", str(port), server=name),
            NOW_LMS_THREADS="3",
            WORKER_MEMORY_MB="150",
        )
    assert (done.status, done.stderr) == (0, "")
    assert start.servers[0].members() == []
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{name}: ")
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows["threads"].split() == ["threads", "3", "NOW_LMS_THREADS"]
    assert rows["worker_memory_mb"].split() == ["worker_memory_mb", "150", "MB", "WORKER_MEMORY_MB"]
    assert "memory_headroom_percent" not in rows
    assert rows["CPUs"].split()[2].startswith(("host", "affinity", "cgroup"))
    for row in ("workers", "memory limit", "memory available", "CPU bound", "memory bound"):
        assert f"  {row} " in done.stdout
    assert f"127.0.0.1:{port}" in rows["address"]
    assert "--port" in rows["address"]


def test_dry_run_shows_the_warnings_of_the_plan(start: Starter, name: str) -> None:
    done = start.run(serve_prod("--dry-run", server=name), WORKER_MEMORY_MB="10000000")
    assert done.status == 0
    assert done.stdout.count("Warning: not even one worker fits: 1 × 10000000 MB") == 1


def test_help_reads_well_even_where_the_settings_are_wrong(start: Starter) -> None:
    done = start.run(serve_prod("--help"), THREADS="all")
    assert (done.status, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for phrase in (
        "Serve the app in production, sized for this machine.",
        "min(2 × CPUs + 1, available memory / memory of a worker)",
        "NOW_LMS_WORKERS for --workers; an option wins over it.",
        "--wsgi-server [waitress|gunicorn] Server to run. [default: waitress]",
        "--host ADDRESS Address to listen on. [default: 0.0.0.0]",
        "--port NUMBER Port to listen on. [default: 8080]",
        "--bind ADDRESS HOST:PORT, [IPV6]:PORT or unix:PATH",
        "--workers NUMBER Worker processes. [default: calculated]",
        "--threads NUMBER Threads per worker. [default: 1 for gunicorn, calculated for waitress]",
        "--worker-memory-mb MB Memory per worker, in MB. [default: 200]",
        "--timeout SECONDS",
        "--dry-run Print the plan and its reasons, without starting.",
    ):
        assert phrase in text, phrase


@pytest.mark.parametrize(
    ("arguments", "config", "environ", "culprit"),
    [
        (["--workers", "0"], {}, {}, "--workers"),
        (["--threads", "many"], {}, {}, "--threads"),
        (["--port", "65536"], {}, {}, "--port"),
        (["--wsgi-server", "uwsgi"], {}, {}, "--wsgi-server"),
        (["--bind", "unix:"], {}, {}, "--bind"),
        ([], {}, {"THREADS": "all"}, "THREADS"),
        ([], {}, {"NOW_LMS_WORKER_MEMORY_MB": "0"}, "NOW_LMS_WORKER_MEMORY_MB"),
        ([], {}, {"NOW_LMS_TRUSTED_PROXY": "proxy"}, "NOW_LMS_TRUSTED_PROXY"),
        ([], {"WORKERSIZE_TIMEOUT": "soon"}, {}, "WORKERSIZE_TIMEOUT"),
        ([], {"WORKERSIZE_WORKER": 3}, {}, "WORKERSIZE_WORKERS"),
        ([], {"WORKERSIZE_HEALTH_URL": "here"}, {}, "WORKERSIZE_HEALTH_URL"),
    ],
)
def test_wrong_setting_is_one_line_that_names_it_with_status_2(
    *,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    config: dict[str, object],
    environ: dict[str, str],
    culprit: str,
) -> None:
    clear_environment(monkeypatch)
    assert culprit in refused_here(arguments, config, **environ).assert_one_line_error(2)


def test_wrong_setting_is_refused_by_a_start(start: Starter, name: str) -> None:
    done = start.run(serve_prod(server=name), NOW_LMS_MIN_WORKERS="none")
    assert "NOW_LMS_MIN_WORKERS" in done.assert_one_line_error(2)


def test_wrong_setting_is_shown_by_a_dry_run_too(start: Starter, name: str) -> None:
    done = start.run(serve_prod("--dry-run", server=name), NOW_LMS_MIN_WORKERS="none")
    assert "NOW_LMS_MIN_WORKERS" in done.assert_one_line_error(2)


def test_wrong_setting_leaves_other_commands_alone(start: Starter) -> None:
    done = start.run(flask("routes"), THREADS="all")
    assert done.status == 0
    assert "/_health/capacity" in done.stdout


@pytest.mark.parametrize(
    ("server", "options", "args", "culprit"),
    [
        ("gunicorn", {}, "--bogus", "GUNICORN_CMD_ARGS has '--bogus'"),
        ("gunicorn", {}, "-k gevent", "GUNICORN_CMD_ARGS sets a worker class"),
        ("gunicorn", {"bogus": 1}, "", "WORKERSIZE_GUNICORN_OPTIONS has 'bogus'"),
        ("waitress", {"bogus": 1}, "", "WORKERSIZE_WAITRESS_OPTIONS has 'bogus'"),
    ],
)
def test_dry_run_refuses_what_the_start_refuses_with_the_same_line(
    start: Starter, server: str, options: dict[str, int], args: str, culprit: str
) -> None:
    config = {f"WORKERSIZE_{server.upper()}_OPTIONS": options}
    line, dry = (
        start.run(
            serve_prod(*option, server=server), config, GUNICORN_CMD_ARGS=args
        ).assert_one_line_error(2)
        for option in ([], ["--dry-run"])
    )
    assert culprit in line
    assert dry == line
