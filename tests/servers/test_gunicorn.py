"""serve-prod and gunicorn: its settings, whose word counts, and hooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plain import clear_environment
from tests.servers.serving import Server, Starter, await_that, refused_here, serve_prod

Config = dict[str, Any]


def settings_of(server: Server) -> dict[str, Any]:
    """Return gunicorn's settings, as the hook ``hooks.write_settings`` found them."""
    path = server.folder / "settings.json"
    await_that(path.exists, "settings.json")
    server.get("/")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def with_options(**options: Any) -> Config:
    return {"WORKERSIZE_GUNICORN_OPTIONS": {"when_ready": "hooks.write_settings"} | options}


def test_defaults_are_those_that_are_promised(start: Starter) -> None:
    server = start(serve_prod("--workers", "2", server="gunicorn"), with_options())
    settings = settings_of(server)
    promised = {
        "workers": 2,
        "threads": 1,
        "preload_app": True,
        "timeout": 120,
        "graceful_timeout": 30,
        "keepalive": 5,
        "accesslog": "-",
        "errorlog": "-",
        "control_socket_disable": True,
    }
    assert {name: settings[name] for name in promised} == promised


@pytest.mark.parametrize(
    ("threads", "options", "worker_class"),
    [
        ("1", {}, "sync"),
        ("2", {}, "gthread"),
        ("2", {"worker_class": "sync"}, "gthread"),
        ("1", {"worker_class": "gthread"}, "gthread"),
        ("1", {"worker_class": "gunicorn.workers.gthread.ThreadWorker"}, "gthread"),
    ],
)
def test_worker_class_follows_threads_and_the_report_says_it(
    start: Starter, threads: str, options: Config, worker_class: str
) -> None:
    """A sync worker answers in its main thread; a single thread may be one of gthread."""
    config = {"WORKERSIZE_GUNICORN_OPTIONS": options}
    server = start(serve_prod("--workers", "1", "--threads", threads, server="gunicorn"), config)
    in_main_thread = server.get("/").json()["thread"] == "MainThread"
    assert in_main_thread is (worker_class == "sync")
    assert server.get("/_health/capacity").json()["worker_class"] == worker_class


def test_app_is_loaded_once_for_all_workers(start: Starter) -> None:
    server = start(serve_prod("--workers", "3", server="gunicorn"))
    pids = {facts["pid"] for facts in server.gather(3)}
    assert len(pids) == 3
    assert (server.folder / "loaded.txt").read_text() == f"{server.pid}\n"
    assert server.pid not in pids


def test_access_log_is_on_stdout_and_error_log_on_stderr(start: Starter) -> None:
    server = start(serve_prod("--workers", "1", server="gunicorn"))
    server.get("/?who=access-log")
    await_that(lambda: '"GET /?who=access-log HTTP/1.1" 200' in server.stdout, "access log")
    assert "access-log" not in server.stderr
    assert "Starting gunicorn" in server.stderr
    assert "Starting gunicorn" not in server.stdout


def test_guides_advice_for_longer_timeouts_works(start: Starter) -> None:
    """The guide's troubleshooting says: add ``--timeout 240``."""
    command = serve_prod("--workers", "1", server="gunicorn")
    server = start(command, with_options(), GUNICORN_CMD_ARGS="--timeout 240")
    assert settings_of(server)["timeout"] == 240


def test_app_config_overrides_our_defaults_and_command_args_override_both(start: Starter) -> None:
    server = start(
        serve_prod("--workers", "1", server="gunicorn"),
        with_options(keepalive=7, max_requests=500, backlog=64, graceful_timeout=12),
        GUNICORN_CMD_ARGS="--keep-alive 9 --max-requests-jitter 5",
    )
    settings = settings_of(server)
    assert settings["keepalive"] == 9
    assert settings["max_requests"] == 500
    assert settings["max_requests_jitter"] == 5
    assert settings["backlog"] == 64
    assert settings["graceful_timeout"] == 12


def test_command_args_feed_the_plan_above_legacy_names(start: Starter) -> None:
    server = start(
        serve_prod(server="gunicorn"),
        with_options(),
        GUNICORN_CMD_ARGS="--workers=3 --threads 2 -t 240 -b unix:args.sock",
        WORKERS="7",
        THREADS="7",
        WEB_CONCURRENCY="7",
    )
    assert server.urls == ["unix:args.sock"]
    settings = settings_of(server)
    assert [settings[name] for name in ("workers", "threads", "timeout")] == [3, 2, 240]
    report = server.get("/").json()
    assert [report["plan"][name] for name in ("workers", "threads")] == [3, 2]
    assert report["plan"]["sources"]["workers"] == "GUNICORN_CMD_ARGS --workers"
    assert "gunicorn: 3 workers × 2 threads (GUNICORN_CMD_ARGS --workers; " in server.stderr


def test_command_args_feed_the_plan_below_preferred_names(start: Starter) -> None:
    server = start(
        serve_prod(server="gunicorn"),
        with_options(),
        GUNICORN_CMD_ARGS="--workers 3 --threads 2 --timeout 240 --bind unix:args.sock",
        NOW_LMS_WORKERS="2",
        NOW_LMS_THREADS="1",
        NOW_LMS_TIMEOUT="99",
        NOW_LMS_BIND="127.0.0.1:0",
    )
    assert server.urls[0].startswith("http://127.0.0.1:")
    settings = settings_of(server)
    assert [settings[name] for name in ("workers", "threads", "timeout")] == [2, 1, 99]
    plan = server.get("/").json()["plan"]
    assert [plan[name] for name in ("workers", "threads")] == [2, 1]


def test_options_of_app_config_feed_the_plan_as_the_weakest_word(start: Starter) -> None:
    server = start(
        serve_prod(server="gunicorn"),
        with_options(workers=4, threads=3, timeout=50) | {"WORKERSIZE_WORKERS": 2},
    )
    settings = settings_of(server)
    assert [settings[name] for name in ("workers", "threads", "timeout")] == [2, 3, 50]
    plan = server.get("/").json()["plan"]
    assert [plan[name] for name in ("workers", "threads")] == [2, 3]


@pytest.mark.parametrize(
    ("config", "args", "culprits"),
    [
        ({"wokers": 3}, "", ["WORKERSIZE_GUNICORN_OPTIONS", "wokers"]),
        ({"keepalive": "long"}, "", ["WORKERSIZE_GUNICORN_OPTIONS", "keepalive"]),
        ({"worker_class": "gevent"}, "", ["WORKERSIZE_GUNICORN_OPTIONS", "other than sync or"]),
        ({"post_fork": "no_such_module.hook"}, "", ["WORKERSIZE_GUNICORN_OPTIONS", "post_fork"]),
        ({"daemon": True}, "", ["WORKERSIZE_GUNICORN_OPTIONS", "daemon"]),
        ({}, "--wokers 3", ["GUNICORN_CMD_ARGS", "--wokers"]),
        ({}, "--keep-alive long", ["GUNICORN_CMD_ARGS", "--keep-alive"]),
        ({}, "--keep-alive", ["GUNICORN_CMD_ARGS", "--keep-alive"]),
        ({}, "--workers", ["GUNICORN_CMD_ARGS", "--workers"]),
        ({}, "--workers three", ["GUNICORN_CMD_ARGS", "--workers"]),
        ({}, "--work 3", ["GUNICORN_CMD_ARGS"]),
        ({}, "--timeout '240", ["GUNICORN_CMD_ARGS", "quotation"]),
        ({}, "-k gevent", ["GUNICORN_CMD_ARGS", "other than sync or gthread"]),
        ({}, "--config other.py", ["GUNICORN_CMD_ARGS", "config"]),
        ({}, "--reuse-port", ["GUNICORN_CMD_ARGS", "reuse_port"]),
        ({}, "-h", ["GUNICORN_CMD_ARGS", "-h, --help, "]),
        ({}, "--workers 2 --help", ["GUNICORN_CMD_ARGS", "-h, --help, "]),
        ({}, "-v", ["GUNICORN_CMD_ARGS", "-v or --version"]),
        ({}, "--version", ["GUNICORN_CMD_ARGS", "-v or --version"]),
        ({}, "--vers", ["GUNICORN_CMD_ARGS", "-v or --version"]),
        ({}, "-Rh", ["GUNICORN_CMD_ARGS", "-h, --help, "]),
        ({}, "other:app", ["GUNICORN_CMD_ARGS", "a word"]),
        ({}, "--workers 2 other:app", ["GUNICORN_CMD_ARGS", "a word"]),
    ],
)
def test_option_that_cannot_be_used_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, config: Config, args: str, culprits: list[str]
) -> None:
    """A start refuses the same: test_serve_prod.py."""
    clear_environment(monkeypatch)
    options = {"WORKERSIZE_GUNICORN_OPTIONS": config}
    done = refused_here(["--wsgi-server", "gunicorn"], options, GUNICORN_CMD_ARGS=args)
    line = done.assert_one_line_error(2)
    for culprit in culprits:
        assert culprit in line


@pytest.mark.parametrize("value", ["", " ", "auto", "many"])
def test_web_concurrency_that_is_no_number_does_not_break_gunicorn(
    start: Starter, value: str
) -> None:
    """Left alone, it makes ``import gunicorn.config`` fail."""
    command = serve_prod("--worker-memory-mb", "1", server="gunicorn")
    if value == "many":
        line = start.run(command, WEB_CONCURRENCY=value).assert_one_line_error(2)
        assert "WEB_CONCURRENCY" in line
        return
    server = start(command, WEB_CONCURRENCY=value)
    assert server.get("/").json()["plan"]["limited_by"] == "cpu"


def test_web_concurrency_that_is_a_number_counts(start: Starter) -> None:
    server = start(serve_prod(server="gunicorn"), WEB_CONCURRENCY=" 2 ")
    assert "gunicorn: 2 workers × 1 thread (WEB_CONCURRENCY; " in server.stderr
    assert len({facts["pid"] for facts in server.gather(2)}) == 2


@pytest.mark.parametrize("app", ["hooked:create_app", "hooked:create_app_with_named_hook"])
def test_hook_of_the_user_runs_after_ours_in_every_worker(start: Starter, app: str) -> None:
    """The engine is disposed of, and signals are sent, before the user's post_fork."""
    server = start(serve_prod("--workers", "2", server="gunicorn", app=app))
    server.wait_for_line("Booting worker", count=2)
    server.get("/")
    path = Path(server.folder / "order.txt")
    await_that(lambda: path.exists() and path.read_text().count("\n") >= 4, "four lines")
    lines = [line.split() for line in path.read_text().splitlines()]
    assert len(lines) == 4
    for pid in server.booted_pids:
        mine = [words[1:] for words in lines if words[0] == str(pid)]
        assert mine == [["signal", "pool-of-launcher=False"], ["hook", "pool-of-launcher=False"]]


def test_other_hooks_of_the_user_run_too(start: Starter) -> None:
    server = start(serve_prod("--workers", "1", server="gunicorn", app="hooked:create_app"))
    server.get("/")
    assert server.stop() == 0
    assert (server.folder / "exited.txt").read_text() == f"{server.pid}\n"


@pytest.mark.parametrize("threads", ["1", "2"])
def test_worker_that_is_told_to_end_while_it_boots_does_so(start: Starter, threads: str) -> None:
    """Its signal was lost, and a stop right after the start took the whole graceful timeout."""
    size = ["--workers", "1", "--threads", threads]
    server = start(serve_prod(*size, server="gunicorn", app="signalled:create_app"))
    path = server.folder / "terminated.txt"
    await_that(lambda: path.exists() and path.read_text() != "", "terminated.txt")
    server.wait_for_line(rf"Worker exiting \(pid: {path.read_text()}\)", seconds=10)
    assert server.get("/").json()["pid"] != int(path.read_text())
