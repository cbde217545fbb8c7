"""``flask serve-prod --dry-run`` and ``--help``: all is said, nothing is started."""

from __future__ import annotations

import pytest
from click.testing import Result

from flask_workersize import WorkerSizing, compute_plan, get_plan
from flask_workersize.app_state import prepare
from flask_workersize.cli.format import explain
from flask_workersize.runtime.deployment import current
from flask_workersize.servers.launch import check_options
from tests.plain import SECRET, clear_environment, load, new_app, resources


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody launched this process, and no variable is set."""
    clear_environment(monkeypatch)
    monkeypatch.setattr(current, "deployment", None)


def invoke(*args: str) -> Result:
    app = new_app()
    WorkerSizing(app)
    return app.test_cli_runner().invoke(args=["serve-prod", *args])


def rows(text: str) -> dict[str, list[str]]:
    """Return the words of each row after its name."""
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    return {name: words for name, *words in lines}


ENVIRON = {
    "WSGI_SERVER": "gunicorn",
    "NOW_LMS_WORKER_MEMORY_MB": "150",
    "NOW_LMS_MEMORY_HEADROOM_PERCENT": "20",
    "PORT": "5000",
}


def explained(show_all: bool = False) -> list[str]:
    """Return the lines about a plan in which several things are set."""
    settings, machine = load(ENVIRON), resources(cpus=2.5, memory_mb=512)
    return explain(settings, machine, compute_plan(settings, machine), show_all).splitlines()


def test_explanation_leaves_out_what_nobody_set_and_no_plan_needs() -> None:
    assert explained()[1:9] == [
        "settings:",
        "  workers                  2              calculated",
        "  threads                  1              default",
        "  worker_memory_mb         150 MB         NOW_LMS_WORKER_MEMORY_MB",
        "  memory_headroom_percent  20 %           NOW_LMS_MEMORY_HEADROOM_PERCENT",
        "  wsgi_server              gunicorn       WSGI_SERVER",
        "  address                  0.0.0.0:5000   default, PORT",
        "found:",
    ]


def test_explanation_of_all_says_every_value_and_its_source() -> None:
    lines = explained(show_all=True)
    assert {*explained()} < {*lines}
    assert lines == [
        "gunicorn: 2 workers × 1 thread (memory: 512 MB available × 80 % / 150 MB a worker; "
        "CPU bound 6), about 300 MB",
        "settings:",
        "  workers                  2              calculated",
        "  threads                  1              default",
        "  worker_memory_mb         150 MB         NOW_LMS_WORKER_MEMORY_MB",
        "  min_workers              1              default",
        "  max_workers              none           default",
        "  memory_headroom_percent  20 %           NOW_LMS_MEMORY_HEADROOM_PERCENT",
        "  wsgi_server              gunicorn       WSGI_SERVER",
        "  timeout                  120 s          default",
        "  graceful_timeout         30 s           default",
        "  preload                  on             default",
        "  trusted_proxy            none           default",
        "  health_token             none           default",
        "  health_port              none           default",
        "  health_host              none           default",
        "  drain_seconds            0 s            default",
        "  memory_guard             on             default",
        "  memory_recycle_percent   70 %           default",
        "  worker_memory_max_mb     none           default",
        "  sizing_profile           none           default",
        "  queue_seconds            none           default",
        "  sizing                   guide          default",
        "  address                  0.0.0.0:5000   default, PORT",
        "found:",
        "  CPUs                     2.5            host",
        "  memory limit             65536 MB       host",
        "  memory available         512 MB         now",
        "bounds:",
        "  CPU bound                6              2 × 2.5 CPUs + 1",
        "  memory bound             2              512 MB available × 80 % / 150 MB a worker  "
        "<- binds",
        "  limited by               memory",
        "  estimated memory         300 MB         2 × 150 MB",
        "one more worker needs 563 MB available memory",
    ]


def test_explanation_ends_with_warnings_and_notes() -> None:
    settings = load({"NOW_LMS_THREADS": "4", "THREADS": "3"})
    machine = resources(memory_mb=100)
    plan = compute_plan(settings, machine, "gunicorn")
    first, second, third = explain(settings, machine, plan).splitlines()[-3:]
    assert first.startswith("Warning: NOW_LMS_THREADS and THREADS are set to different values")
    assert second.startswith("Warning: not even one worker fits")
    assert third.startswith("Note: 200 MB is above 80%")


def test_explanation_names_what_sets_the_address() -> None:
    settings = load({"NOW_LMS_BIND": "unix:/run/a,127.0.0.1:80"})
    plan = compute_plan(settings, resources())
    shown = explain(settings, resources(), plan)
    assert "unix:/run/a, 127.0.0.1:80 NOW_LMS_BIND" in shown


def test_explanation_tells_of_the_health_port() -> None:
    environ = {
        "NOW_LMS_HEALTH_PORT": "8081",
        "NOW_LMS_HEALTH_HOST": "127.0.0.1",
        "NOW_LMS_DRAIN_SECONDS": "5",
    }
    settings = load(environ)
    shown = rows(explain(settings, resources(), compute_plan(settings, resources())))
    assert shown["health_port"] == ["8081", "NOW_LMS_HEALTH_PORT"]
    assert shown["health_host"] == ["127.0.0.1", "NOW_LMS_HEALTH_HOST"]
    assert shown["drain_seconds"] == ["5", "s", "NOW_LMS_DRAIN_SECONDS"]


def test_options_are_taken_and_named_as_sources() -> None:
    result = invoke(
        *["--dry-run", "--wsgi-server", "gunicorn", "--host", "127.0.0.1", "--port", "5000"],
        *["--workers", "3", "--threads", "2", "--worker-memory-mb", "100", "--timeout", "60"],
    )
    assert result.exit_code == 0
    assert result.output.startswith("gunicorn: 3 workers × 2 threads (--workers; ")
    shown = rows(result.output)
    assert shown["workers"] == ["3", "--workers"]
    assert shown["threads"] == ["2", "--threads"]
    assert shown["worker_memory_mb"] == ["100", "MB", "--worker-memory-mb"]
    assert shown["address"] == ["127.0.0.1:5000", "--host,", "--port"]


@pytest.mark.parametrize(
    ("threads", "asked", "worker_class"),
    [("1", None, "sync"), ("1", "gthread", "gthread"), ("2", None, "gthread")],
)
def test_plan_has_the_worker_class_that_the_server_will_have(
    threads: str, asked: str | None, worker_class: str
) -> None:
    app = new_app(GUNICORN_OPTIONS={"worker_class": asked} if asked else {})
    WorkerSizing(app)
    settings, plan = prepare(app, {"wsgi_server": "gunicorn", "threads": threads})
    assert check_options(app, settings, plan)[0].worker_class == worker_class


def test_all_shows_the_defaults_too() -> None:
    assert "timeout" not in rows(invoke("--dry-run").output)
    assert rows(invoke("--dry-run", "--all").output)["timeout"] == ["120", "s", "default"]


def test_bind_may_be_repeated() -> None:
    result = invoke("--dry-run", "--bind", "127.0.0.1:1", "--bind", "unix:/run/a")
    assert rows(result.output)["address"] == ["127.0.0.1:1,", "unix:/run/a", "--bind"]


def test_dry_run_without_options_is_the_plan_of_the_app() -> None:
    app = new_app()
    WorkerSizing(app)
    result = app.test_cli_runner().invoke(args=["serve-prod", "--dry-run"])
    assert result.output.splitlines()[0] == str(get_plan(app))


def test_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOW_LMS_HEALTH_TOKEN", SECRET)
    assert SECRET not in invoke("--dry-run").output


@pytest.mark.parametrize(
    "option",
    ["--wsgi-server", "--port", "--workers", "--threads", "--worker-memory-mb", "--timeout"],
)
def test_wrong_option_is_one_line_that_names_it_and_2(option: str) -> None:
    result = invoke(option, SECRET)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {option} is not a ")
    assert SECRET not in line


def test_unknown_option_is_2() -> None:
    assert invoke("--wrokers", "3").exit_code == 2


def test_help_names_every_option_and_the_formula() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for option in (
        *["--wsgi-server [waitress|gunicorn]", "--host", "--port", "--bind", "--workers"],
        *["--threads", "--worker-memory-mb", "--timeout", "--dry-run", "--all"],
    ):
        assert option in result.output
    formula = "min(2 × CPUs + 1, available memory / memory of a worker)"
    assert formula in " ".join(result.output.split())
