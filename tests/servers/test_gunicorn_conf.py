"""gunicorn -c python:flask_workersize.gunicorn_conf: the same size for who starts gunicorn."""

from __future__ import annotations

import re
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.servers.serving import (
    APPS,
    CONF,
    FACTS,
    Server,
    Starter,
    await_that,
    gunicorn,
    serve_prod,
)

DRIFTING = "drifting:create_app"


def conf(*args: str, app: str = f"{FACTS}()") -> list[str]:
    return gunicorn("-c", CONF, *args, app=app)


@pytest.fixture(params=["on", "off"])
def preload(request: pytest.FixtureRequest) -> str:
    """Run the test with the app loaded once, and in every worker."""
    chosen: str = request.param
    return chosen


def the_plan(server: Server, workers: int) -> dict[str, Any]:
    """Return the one plan that every worker reports."""
    seen = server.gather(workers)
    assert len({facts["pid"] for facts in seen}) == workers
    assert all(facts["serving"] for facts in seen)
    plan: dict[str, Any] = seen[0]["plan"]
    assert all(facts["plan"] == plan for facts in seen)
    assert {facts["memory_at_creation"] for facts in seen} == {plan["memory_available_mb"]}
    return plan


def warnings(server: Server) -> list[str]:
    marks = ("Warning: ", "[WARNING]")
    return [line for line in server.stderr.splitlines() if any(mark in line for mark in marks)]


def test_every_worker_reports_the_plan_of_the_launcher(start: Starter, preload: str) -> None:
    """Although each of them, asked now, would find another amount of memory."""
    server = start(conf(app=f"{DRIFTING}()"), NOW_LMS_PRELOAD=preload)
    server.wait_for_line("Booting worker")
    workers = server.get("/").json()["plan"]["workers"]
    plan = the_plan(server, workers)
    assert re.search(rf"[;:] {plan['memory_available_mb']} MB available", server.stderr)
    assert server.stop() == 0
    assert len(server.booted_pids) == workers


def test_every_worker_of_serve_prod_reports_the_plan_of_the_launcher(start: Starter) -> None:
    server = start(serve_prod("--workers", "3", server="gunicorn", app=DRIFTING))
    assert the_plan(server, 3)["memory_available_mb"] == 300 + server.pid % 97


def test_numbers_are_those_of_serve_prod(start: Starter, preload: str) -> None:
    environ = {"NOW_LMS_WORKER_MEMORY_MB": "1", "NOW_LMS_MAX_WORKERS": "2"}
    ours = start(serve_prod(server="gunicorn"), **environ)
    direct = start(conf(), NOW_LMS_PRELOAD=preload, **environ)
    names = ("server", "workers", "threads", "worker_class", "limited_by", "estimated_memory_mb")
    plans = [the_plan(server, 2) for server in (ours, direct)]
    assert [plans[0][name] for name in names] == [plans[1][name] for name in names]
    assert plans[0]["sources"] == plans[1]["sources"]


def test_app_is_loaded_once_or_in_every_worker(start: Starter, preload: str) -> None:
    server = start(conf(), NOW_LMS_PRELOAD=preload, NOW_LMS_WORKERS="2")
    workers = {facts["pid"] for facts in server.gather(2)}
    loaded = [int(pid) for pid in (server.folder / "loaded.txt").read_text().split()]
    assert sorted(loaded) == ([server.pid] if preload == "on" else sorted(workers))


def test_app_config_that_asks_for_another_size_gives_one_warning(
    start: Starter, preload: str
) -> None:
    server = start(
        conf(), {"WORKERSIZE_WORKERS": 5}, NOW_LMS_PRELOAD=preload, NOW_LMS_MAX_WORKERS="2"
    )
    assert the_plan(server, 2)["workers"] == 2
    (warning,) = warnings(server)
    assert "app.config of 'facts' asks for 5 × 1" in warning
    assert "but 2 × 1 from the environment wins" in warning
    server.signal(signal.SIGHUP)
    server.wait_for_line("Booting worker", count=4)
    server.wait_for_line("Worker exiting", count=2)
    assert the_plan(server, 2)["workers"] == 2
    later = warnings(server)
    later.remove(warning)
    # That a reload does not load the app again is another matter.
    assert ["HUP starts new workers" in line for line in later] == [True] * (preload == "on")


@pytest.mark.parametrize(
    "config", [{}, {"WORKERSIZE_WORKERS": 2}, {"WORKERSIZE_TIMEOUT": 60}], ids=str
)
def test_app_config_that_asks_for_the_same_size_gives_none(
    start: Starter, preload: str, config: dict[str, int]
) -> None:
    server = start(conf(), config, NOW_LMS_PRELOAD=preload, NOW_LMS_MAX_WORKERS="2")
    the_plan(server, 2)
    assert warnings(server) == []


def test_command_line_is_followed(start: Starter, preload: str) -> None:
    server = start(conf("-w", "3"), NOW_LMS_PRELOAD=preload, NOW_LMS_WORKERS="2")
    plan = the_plan(server, 3)
    assert (plan["workers"], plan["limited_by"]) == (3, "explicit")
    assert plan["sources"]["workers"] == "gunicorn setting workers"
    assert server.stderr.count("gunicorn: 3 workers × 1 thread (gunicorn setting workers; ") == 1
    assert server.stop() == 0
    assert len(server.booted_pids) == 3


def test_app_config_is_held_against_what_the_command_line_says(
    start: Starter, preload: str
) -> None:
    """Asking for what the command line says is no contradiction."""
    config = {"WORKERSIZE_WORKERS": 3}
    server = start(conf("-w", "3"), config, NOW_LMS_PRELOAD=preload, NOW_LMS_MAX_WORKERS="2")
    assert the_plan(server, 3)["workers"] == 3
    assert warnings(server) == []


def test_threads_of_the_command_line_leave_the_number_of_workers_true(
    start: Starter, preload: str
) -> None:
    """Our file has set the workers before: the report says how many there really are."""
    server = start(conf("--threads", "2"), NOW_LMS_PRELOAD=preload, NOW_LMS_MAX_WORKERS="3")
    plan = server.get("/").json()["plan"]
    assert (plan["threads"], plan["worker_class"]) == (2, "gthread")
    server.wait_for_line("Booting worker", count=plan["workers"])
    assert server.stop() == 0
    assert len(server.booted_pids) == plan["workers"]


def test_stop_that_reaches_a_worker_before_any_hook_is_not_lost(start: Starter) -> None:
    server = start(conf("-w", "1", "--logger-class", "stopped_early.EarlyStop"))
    server.wait_for_line("Booting worker", count=2)
    assert server.get("/").json()["pid"] == server.booted_pids[1]
    assert server.stop() == 0


def test_other_words_of_the_command_line_leave_the_size_calculated(
    start: Starter, preload: str
) -> None:
    server = start(conf("--timeout", "240", "--keep-alive", "9"), NOW_LMS_PRELOAD=preload)
    plan = server.get("/").json()["plan"]
    assert plan["limited_by"] in ("cpu", "memory")
    assert plan["sources"]["workers"] == "calculated"


def test_command_args_are_followed(start: Starter) -> None:
    server = start(conf(), GUNICORN_CMD_ARGS="--workers 2 --threads 3", WORKERS="4")
    plan = server.get("/").json()["plan"]
    assert [plan[name] for name in ("workers", "threads")] == [2, 3]
    server.wait_for_line("Booting worker", count=2)
    assert len(server.booted_pids) == 2


@pytest.mark.parametrize("worker_class", ["gthread", "gunicorn.workers.gthread.ThreadWorker"])
def test_single_thread_may_run_in_gthread(start: Starter, worker_class: str) -> None:
    server = start(conf("-k", worker_class), NOW_LMS_WORKERS="1")
    assert server.get("/_health/capacity").json()["worker_class"] == "gthread"


def test_hup_keeps_the_plan(start: Starter, preload: str) -> None:
    server = start(conf("-w", "2", app=f"{DRIFTING}()"), NOW_LMS_PRELOAD=preload)
    before = the_plan(server, 2)
    server.signal(signal.SIGHUP)
    server.wait_for_line("Booting worker", count=4)
    server.wait_for_line("Worker exiting", count=2)
    assert the_plan(server, 2) == before
    assert {facts["pid"] for facts in server.gather(2)} == set(server.booted_pids[2:])


@pytest.mark.parametrize(
    ("environ", "culprit"),
    [
        ({"NOW_LMS_THREADS": "0"}, "NOW_LMS_THREADS"),
        ({"NOW_LMS_PRELOAD": "perhaps"}, "NOW_LMS_PRELOAD"),
        ({"WORKER_MEMORY_MB": "much"}, "WORKER_MEMORY_MB"),
    ],
)
def test_wrong_setting_is_one_line_with_status_2(
    start: Starter, environ: dict[str, str], culprit: str
) -> None:
    assert culprit in start.run(conf(), **environ).assert_one_line_error(2)


def test_worker_class_that_the_plan_does_not_know_is_refused(start: Starter) -> None:
    done = start.run(conf("-k", "hooks.OwnWorker"))
    errors = [line for line in done.stderr.splitlines() if "[INFO]" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("Error: ")
    assert "other than sync or gthread" in errors[0]
    assert done.status == 2


def test_addresses_come_from_the_environment(start: Starter) -> None:
    command = [sys.executable, "-m", "gunicorn", "-c", CONF, f"{FACTS}()"]
    server = start(command, NOW_LMS_BIND="127.0.0.1:0,unix:conf.sock", NOW_LMS_WORKERS="1")
    assert len(server.urls) == 2
    for url in server.urls:
        assert server.get("/", url=url).json()["serving"] is True
    assert server.stop() == 0
    assert not (server.folder / "conf.sock").exists()


def test_trusted_proxy_is_believed(start: Starter, preload: str) -> None:
    headers = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https")]
    lies = [("X-Forwarded-Ssl", "on"), ("X-Forwarded-Host", "evil.example")]
    environ = {"NOW_LMS_PRELOAD": preload, "NOW_LMS_WORKERS": "1"}
    trusting = start(conf(), NOW_LMS_TRUSTED_PROXY="127.0.0.1", **environ)
    seen = trusting.get("/", [*headers, *lies]).json()
    assert (seen["remote_addr"], seen["scheme"]) == ("203.0.113.9", "https")
    assert "evil" not in seen["host"]
    assert trusting.get("/", lies).json()["scheme"] == "http"
    wary = start(conf(), NOW_LMS_TRUSTED_PROXY="192.0.2.1", **environ)
    seen = wary.get("/", [*headers, *lies]).json()
    assert (seen["remote_addr"], seen["scheme"]) == ("127.0.0.1", "http")


def test_token_of_app_config_opens_the_details(start: Starter, preload: str) -> None:
    """The plan is the launcher's; what else the app has set stays."""
    config = {"WORKERSIZE_HEALTH_TOKEN": "from-config"}
    server = start(conf(), config, NOW_LMS_PRELOAD=preload, NOW_LMS_WORKERS="1")
    headers = [("Authorization", "Bearer from-config")]
    for _ in range(2):
        assert server.get("/_health/capacity", headers).json().get("pid") == server.booted_pids[0]


def test_connections_of_the_launcher_do_not_reach_workers(start: Starter) -> None:
    server = start(conf(app="hooked:create_app()"), NOW_LMS_WORKERS="2")
    server.wait_for_line("Booting worker", count=2)
    server.get("/")
    order = server.folder / "order.txt"
    await_that(lambda: len(order.read_text().splitlines()) == 2, "each worker has its own")
    assert server.stop() == 0
    assert sorted(order.read_text().splitlines()) == sorted(
        f"{pid} signal pool-of-launcher=False" for pid in server.booted_pids
    )


def test_hooks_of_the_users_own_run_after_ours_also_after_a_reload(start: Starter) -> None:
    """Whatever they are: functions, objects, one that fails, and an on_reload without ours."""
    server = start(
        gunicorn("-c", str(APPS / "own_conf.py")), NOW_LMS_WORKERS="2", NOW_LMS_HEALTH_PORT="0"
    )
    before = the_plan(server.await_ready(), 2)
    server.signal(signal.SIGHUP)
    server.wait_for_line("Booting worker", count=4)
    server.wait_for_line("Worker exiting", count=2)
    assert the_plan(server, 2) == before
    await_that(lambda: server.probe("/ready").json()["workers_ready"] == 2, "both are counted")
    assert server.live_report()["restarts"] == 2
    assert server.stop() == 0
    noted = Counter((server.folder / "hooks.txt").read_text().splitlines())
    assert noted == {
        "nworkers_changed 2 None": 1,
        "nworkers_changed 2 2": 1,
        "when_ready": 1,
        "on_reload": 1,
        "pre_fork": 4,
        "post_fork": 4,
        "post_worker_init 9 True": 4,
        "worker_exit": 4,
        "child_exit": 4,
        "on_exit": 1,
    }


def test_on_starting_that_does_not_call_ours_is_one_line(start: Starter) -> None:
    """Also in a file that replaces every other hook of ours."""
    done = start.run(gunicorn("-c", str(APPS / "own_starting.py")), NOW_LMS_WORKERS="2")
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert "'on_starting' that does not call" in line
    assert done.status == 1
    assert "Traceback" not in done.stderr


def test_hook_with_the_wrong_arguments_gets_gunicorns_own_error(start: Starter) -> None:
    file = start.folder / "wrong_conf.py"
    file.write_text(
        "from flask_workersize.gunicorn_conf import *\npre_fork = lambda server: None\n"
    )
    done = start.run(gunicorn("-c", str(file)))
    assert "Value must have an arity of: 2" in done.stderr
    assert done.status == 1


def test_what_gunicorn_applies_last_is_what_is_said(start: Starter) -> None:
    """GUNICORN_CMD_ARGS wins over our variables here, unlike under serve-prod."""
    server = start(
        [sys.executable, "-m", "gunicorn", "-c", CONF, f"{FACTS}()"],
        GUNICORN_CMD_ARGS="--bind 127.0.0.1:0 --workers 2 --timeout 60",
        NOW_LMS_PORT="9",
        NOW_LMS_WORKERS="1",
        NOW_LMS_TIMEOUT="50",
        NOW_LMS_HEALTH_PORT="0",
    )
    plan = the_plan(server, 2)
    assert plan["sources"]["workers"] == "GUNICORN_CMD_ARGS --workers"
    assert [line.partition("[WARNING] ")[2] for line in warnings(server)] == [
        "GUNICORN_CMD_ARGS --workers and NOW_LMS_WORKERS are set to different values: "
        "GUNICORN_CMD_ARGS --workers wins; unset the other.",
        "GUNICORN_CMD_ARGS --timeout and NOW_LMS_TIMEOUT are set to different values: "
        "GUNICORN_CMD_ARGS --timeout wins; unset the other.",
        "NOW_LMS_PORT is not used: GUNICORN_CMD_ARGS --bind takes precedence.",
    ]
    # Its host is that of the address that gunicorn really has.
    assert server.health_url.startswith("http://127.0.0.1:")


def test_lines_are_seen_where_the_app_has_disabled_loggers(start: Starter) -> None:
    """Gunicorn's own lines vanish, ours reach standard error."""
    server = start.launch(
        conf("--reload", app="relogged:create_app()"),
        NOW_LMS_WORKERS="1",
        NOW_LMS_HEALTH_PORT="0",
        LMS_PORT="tcp://10.0.0.1:80",
    )
    server.wait_for_line("Health port on")
    server.await_ready()
    lines = server.stderr.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["gunicorn:", "Warning:", "Health", "Warning:"]
    assert "LMS_PORT is skipped" in lines[1]
    assert "To load new code, set NOW_LMS_PRELOAD=off." in lines[3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("launcher", ["conf", "serve-prod"])
def test_one_start_makes_shared_memory_once(start: Starter, launcher: str) -> None:
    """A plan that follows the command line makes no second table."""
    command = conf("--threads", "2") if launcher == "conf" else serve_prod(server="gunicorn")
    server = start(command, NOW_LMS_WORKERS="2", NOW_LMS_HEALTH_PORT="0").await_ready()
    tables = []
    for line in Path(f"/proc/{server.pid}/maps").read_text().splitlines():
        begin, _, end = line.partition(" ")[0].partition("-")
        # Single flags take a page each.
        if "/dev/zero (deleted)" in line and int(end, 16) - int(begin, 16) > resource.getpagesize():
            tables.append(line)
    assert len(tables) == 1
