"""flask workersize plan: what was asked, found and concluded, here and on another machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from flask_workersize import Resources, SizingSettings, WorkerSizing, compute_plan, get_plan
from flask_workersize.app_state import get_state
from flask_workersize.sizing.plan import MB, SizingPlan
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.sources import GUNICORN_ARGS
from flask_workersize.sizing.what_if import memory_needed_mb, one_more, parse_memory

SECRET = "s3cr3t-7f3a"
FOLDER = "/sys/fs/cgroup/shop.slice"
CONTAINER = Resources(
    cpus=1.5,
    cpu_source="cgroup2:cpu.max",
    cpu_at=f"{FOLDER}/lms.service",
    memory_limit=512 * MB,
    memory_available=450 * MB,
    memory_source="cgroup2:memory.high",
    memory_at=FOLDER,
    notes=(f"unreadable: {FOLDER}/memory.max",),
)
LIMITS = ["cpu", "memory", "explicit", "min_workers", "max_workers"]


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (GUNICORN_ARGS, *(name for names in NAMES.values() for name in names.variables)):
        monkeypatch.delenv(name, raising=False)


def run(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    found: Resources = CONTAINER,
    **config: Any,
) -> Result:
    """Run the command for an app on a machine; keywords are config keys after ``WORKERSIZE_``."""
    app = Flask("lms")
    app.config.update({f"WORKERSIZE_{key}": value for key, value in config.items()})
    WorkerSizing(app)
    get_state(app).resources = found
    runner = app.test_cli_runner()
    return runner.invoke(args=["workersize", "plan", *arguments], env=dict(environ or {}))


def told(*arguments: str, **keywords: Any) -> dict[str, Any]:
    """Return what the command prints as JSON."""
    done = run(*arguments, "--json", **keywords)
    assert (done.exit_code, done.stderr) == (0, "")
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def rows(done: Result) -> dict[str, list[str]]:
    """Return the rows of the table by their name: the value, and where it came from."""
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    return {line[2:26].strip(): [line[27:41].strip(), line[42:].strip()] for line in lines}


def test_table_says_what_was_asked_found_and_concluded_and_where_from() -> None:
    done = run(
        "--server",
        "gunicorn",
        environ={"WORKER_MEMORY_MB": "150", "NOW_LMS_MEMORY_HEADROOM_PERCENT": "20"},
        MAX_WORKERS=8,
    )
    table = rows(done)
    assert table["wsgi_server"] == ["gunicorn", "--server"]
    assert table["workers"] == ["2", "calculated"]
    assert table["threads"] == ["1", "default"]
    assert table["worker_memory_mb"] == ["150 MB", "WORKER_MEMORY_MB"]
    assert table["memory_headroom_percent"] == ["20 %", "NOW_LMS_MEMORY_HEADROOM_PERCENT"]
    assert "min_workers" not in table
    assert table["max_workers"] == ["8", "app.config WORKERSIZE_MAX_WORKERS"]
    assert table["CPUs"] == ["1.5", f"cgroup2:cpu.max  {FOLDER}/lms.service/cpu.max"]
    assert table["memory limit"] == ["512 MB", f"cgroup2:memory.high  {FOLDER}/memory.high"]
    assert table["memory available"] == ["450 MB", "now"]
    assert table["CPU bound"] == ["4", "2 × 1.5 CPUs + 1"]
    assert table["memory bound"] == ["2", "450 MB available × 80 % / 150 MB a worker  <- binds"]
    assert table["limited by"] == ["memory", ""]
    assert table["estimated memory"] == ["300 MB", "2 × 150 MB"]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gunicorn: 2 workers × 1 thread (memory: ")
    assert "one more worker needs 563 MB available memory" in lines
    assert f"Note: unreadable: {FOLDER}/memory.max" in lines


def test_table_has_every_setting_and_of_the_token_only_that_it_is_set() -> None:
    done = run("--all", environ={"NOW_LMS_HEALTH_TOKEN": SECRET, "NOW_LMS_PRELOAD": "off"})
    table = rows(done)
    assert {*NAMES} - {"host", "port", "bind"} <= {*table}
    assert table["health_token"] == ["set", "NOW_LMS_HEALTH_TOKEN"]
    assert table["preload"] == ["off", "NOW_LMS_PRELOAD"]
    assert table["address"] == ["0.0.0.0:8080", "default"]
    assert rows(run("--all"))["health_token"] == ["none", "default"]
    assert SECRET not in done.output


def test_table_leaves_out_what_is_at_its_default_and_feeds_no_plan() -> None:
    table = rows(run(environ={"NOW_LMS_PRELOAD": "off"}, MAX_WORKERS=8))
    assert [name for name in (*NAMES, "address") if name in table] == [
        *["workers", "threads", "worker_memory_mb", "max_workers", "wsgi_server", "preload"],
        "address",
    ]
    assert set(told()["settings"]) == set(NAMES)


def test_each_block_has_its_title_in_this_order() -> None:
    lines = run().stdout.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["settings:", "found:", "bounds:"]


@pytest.mark.parametrize(
    ("limit", "arguments", "environ"),
    [
        ("cpu", ["--memory", "8G"], {}),
        ("memory", ["--memory", "512M"], {}),
        ("explicit", ["--workers", "3"], {}),
        ("min_workers", [], {"NOW_LMS_MIN_WORKERS": "3"}),
        ("max_workers", [], {"NOW_LMS_MAX_WORKERS": "1"}),
    ],
)
def test_bound_that_won_is_said(limit: str, arguments: list[str], environ: dict[str, str]) -> None:
    done = run("--server", "gunicorn", *arguments, environ=environ)
    table = rows(done)
    assert table["limited by"][0] == limit
    marked = [name for name, (_, why) in table.items() if "<- binds" in why]
    assert marked == {"cpu": ["CPU bound"], "memory": ["memory bound"]}.get(limit, [])


@pytest.mark.parametrize(
    ("source", "folder", "file"),
    [
        ("cgroup2:memory.max", FOLDER, f"{FOLDER}/memory.max"),
        ("cgroup1:memory.limit_in_bytes", FOLDER, f"{FOLDER}/memory.limit_in_bytes"),
        ("cgroup1:hierarchical_memory_limit", FOLDER, f"{FOLDER}/memory.stat"),
        ("host", None, None),
    ],
)
def test_file_that_a_limit_was_read_from_is_named(
    source: str, folder: str | None, file: str | None
) -> None:
    machine = replace(CONTAINER, memory_source=source, memory_at=folder)
    expected = source if file is None else f"{source}  {file}"
    assert rows(run(found=machine))["memory limit"][1] == expected


def test_json_says_the_same_as_plain_values() -> None:
    shown = told("--server", "gunicorn", "--threads", "2", environ={"THREADS": "3"})
    assert set(shown) == {"summary", "plan", "settings", "resources", "needed", "one_more"}
    asked = SizingSettings(wsgi_server="gunicorn", threads=2)
    plan = compute_plan(asked, CONTAINER).to_dict()
    assert {**shown["plan"], "sources": 0, "warnings": 0} == {**plan, "sources": 0, "warnings": 0}
    assert shown["plan"]["sources"]["threads"] == "--threads"
    assert shown["resources"] == {**vars(CONTAINER), "notes": list(CONTAINER.notes)}
    assert set(shown["settings"]) == set(NAMES)
    assert shown["settings"]["threads"] == {"value": 2, "source": "--threads"}
    assert shown["settings"]["port"] == {"value": 8080, "source": "default"}
    assert shown["one_more"] == {"what": "worker", "memory_available_mb": 800}


def test_json_and_table_begin_with_the_same_line() -> None:
    assert told("--workers", "2")["summary"] == run("--workers", "2").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "cpus", "memory_mb", "workers", "limit"),
    [
        (["--cpus", "0.5", "--memory", "512M"], 0.5, 512, 2, "cpu"),
        (["--cpus", "8", "--memory", "1.5G"], 8, 1536, 7, "memory"),
        (["--cpus", ".25", "--memory", "8g"], 0.25, 8192, 1, "cpu"),
        (["--cpus", "4", "--memory", "2Gi"], 4, 2048, 9, "cpu"),
        (["--cpus", "4", "--memory", "512 MiB"], 4, 512, 2, "memory"),
        (["--cpus", "4", "--memory", "2048kb"], 4, 2, 1, "memory"),
        (["--cpus", "64", "--memory", "1T"], 64, 1048576, 129, "cpu"),
        (["--cpus", "16"], 16, 450, 2, "memory"),
        (["--memory", "16G"], 1.5, 16384, 4, "cpu"),
        ([], 1.5, 450, 2, "memory"),
    ],
)
def test_plan_for_another_machine(
    arguments: list[str], cpus: float, memory_mb: int, workers: int, limit: str
) -> None:
    shown = told("--server", "gunicorn", *arguments)
    plan = shown["plan"]
    assert (plan["cpus"], plan["memory_available_mb"]) == (cpus, memory_mb)
    assert (plan["workers"], plan["limited_by"]) == (workers, limit)
    found = shown["resources"]
    if "--cpus" in arguments:
        assert (found["cpu_source"], found["cpu_at"]) == ("--cpus", None)
    if "--memory" in arguments:
        assert (found["memory_source"], found["memory_at"]) == ("--memory", None)
        assert found["memory_limit"] == found["memory_available"]


def test_figures_of_another_machine_are_told_as_such() -> None:
    table = rows(run("--cpus", "0.5", "--memory", "512M"))
    assert table["CPUs"] == ["0.5", "--cpus"]
    assert table["memory limit"] == ["512 MB", "--memory"]
    assert table["memory available"] == ["512 MB", "--memory"]


@pytest.mark.parametrize(
    ("arguments", "line", "needed"),
    [
        (["--workers", "12"], "12 workers need 2400 MB available memory", (12, 2400)),
        (["--workers", "1"], "1 worker needs 200 MB available memory", (1, 200)),
        (
            ["--workers", "12", "--worker-memory-mb", "333"],
            "12 workers need 3996 MB available memory",
            (12, 3996),
        ),
    ],
)
@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_memory_that_a_number_of_workers_needs_is_said(
    server: str, arguments: list[str], line: str, needed: tuple[int, int]
) -> None:
    """Under waitress too, the default, which has one worker: it is asked for gunicorn then."""
    (shown,) = (
        text
        for text in run("--server", server, *arguments).stdout.splitlines()
        if text.startswith(line)
    )
    assert (shown == line) == (server == "gunicorn")
    assert tuple(told("--server", server, *arguments)["needed"].values()) == needed


def test_memory_needed_is_more_by_the_headroom() -> None:
    environ = {"NOW_LMS_MEMORY_HEADROOM_PERCENT": "30"}
    done = run("--server", "gunicorn", "--workers", "12", environ=environ)
    assert "12 workers need 3429 MB available memory" in done.stdout


def test_plan_that_does_not_fit_says_what_it_needs() -> None:
    done = run("--server", "gunicorn", environ={"NOW_LMS_MIN_WORKERS": "9"})
    assert rows(done)["estimated memory"] == ["1800 MB", "9 × 200 MB: needs 1800 MB available"]
    assert done.stdout.count("Warning: NOW_LMS_MIN_WORKERS does not fit") == 1


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_token_is_never_shown(json_: list[str]) -> None:
    for done in (
        run(*json_, environ={"NOW_LMS_HEALTH_TOKEN": SECRET}),
        run(*json_, HEALTH_TOKEN=SECRET),
    ):
        assert done.exit_code == 0
        assert SECRET not in done.output
        assert "***" not in done.output
    assert told(environ={"NOW_LMS_HEALTH_TOKEN": SECRET})["settings"]["health_token"] == {
        "value": "set",
        "source": "NOW_LMS_HEALTH_TOKEN",
    }
    assert told()["settings"]["health_token"]["value"] is None


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        *(
            (["--cpus", value], "--cpus")
            for value in ("0", "-1", "0.0", "two", "", " ", "nan", "inf", "1e9", "5.", "½", "٢")
        ),
        *(
            (["--memory", value], "--memory")
            for value in ("512", "-1M", "M", "", "1.5.5G", "1e3M", "lots", "512Q", "5 1 2M", "٥M")
        ),
        (["--workers", "0"], "--workers"),
        (["--workers", "all"], "--workers"),
        (["--threads", "-3"], "--threads"),
        (["--worker-memory-mb", "0"], "--worker-memory-mb"),
        (["--server", "uwsgi"], "--server"),
    ],
)
def test_wrong_option_is_one_line_that_names_it_with_status_2(
    arguments: list[str], culprit: str
) -> None:
    if arguments[1] in ("", " ") and culprit not in ("--cpus", "--memory"):
        pytest.skip("an empty setting is not set")
    for json_ in ([], ["--json"]):
        check_error(run(*arguments, *json_), culprit)


@pytest.mark.parametrize(
    ("environ", "config", "culprit"),
    [
        ({"THREADS": f"x{SECRET}"}, {}, "THREADS"),
        ({"NOW_LMS_MIN_WORKERS": "3", "NOW_LMS_MAX_WORKERS": "2"}, {}, "NOW_LMS_MAX_WORKERS"),
        ({}, {"WORKER_MEMORY_MB": SECRET}, "WORKERSIZE_WORKER_MEMORY_MB"),
        ({}, {"WORKER": SECRET}, "WORKERSIZE_WORKERS"),
        ({}, {"HEALTH_URL": SECRET}, "WORKERSIZE_HEALTH_URL"),
    ],
)
def test_wrong_setting_is_one_line_that_names_it_with_status_2(
    environ: dict[str, str], config: dict[str, Any], culprit: str
) -> None:
    check_error(run(environ=environ, **config), culprit)


def check_error(done: Result, culprit: str) -> None:
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert culprit in line
    assert SECRET not in line


@pytest.mark.parametrize("arguments", [["--nonsense"], ["surplus"]])
def test_unknown_option_or_argument_is_refused_with_status_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_nothing_is_left_of_it_in_a_plan_for_another_machine() -> None:
    """The command asks; what the app is served under is another matter."""
    app = Flask("lms")
    WorkerSizing(app)
    before = get_plan(app)
    app.test_cli_runner().invoke(args=["workersize", "plan", "--cpus", "0.1", "--memory", "1M"])
    assert get_plan(app).cpus == before.cpus


# What it would take.

counts = st.integers(1, 40)
asked_for = st.builds(
    lambda server, threads, workers, memory, low, high, headroom: {
        "wsgi_server": server,
        "threads": threads,
        "workers": workers,
        "worker_memory_mb": memory,
        "min_workers": low,
        "max_workers": None if high is None else low + high,
        "memory_headroom_percent": headroom,
    },
    st.sampled_from(["gunicorn", "waitress"]),
    st.none() | counts,
    st.none() | st.none() | counts,
    st.integers(1, 600),
    st.just(1) | counts,
    st.none() | st.integers(0, 10),
    st.just(0) | st.integers(0, 99),
)
cpu_figures = st.integers(1, 64).map(float) | st.floats(0.01, 64)
memory_figures = st.integers(0, 64 * 1024 * MB) | st.integers(0, 4 * 1024 * MB)


def machine(cpus: float, memory: int) -> Resources:
    return replace(CONTAINER, cpus=cpus, memory_limit=memory, memory_available=memory)


def counted(plan: SizingPlan) -> int:
    return plan.threads if plan.server == "waitress" else plan.workers


def with_more(
    asked: Mapping[str, Any], plan: SizingPlan, needed: Mapping[str, Any], cpus: float, memory: int
) -> SizingPlan:
    """Plan again, with what ``needed`` names."""
    asked = dict(asked)
    if "setting" in needed:
        if plan.limited_by == "explicit":
            asked["threads" if plan.server == "waitress" else "workers"] = counted(plan) + 1
        else:
            asked["max_workers"] = plan.workers + 1
    better = machine(
        needed.get("cpus", cpus),
        needed["memory_available_mb"] * MB if "memory_available_mb" in needed else memory,
    )
    return compute_plan(SizingSettings(**asked), better)


@settings(deadline=None, max_examples=200)
@given(asked_for, cpu_figures, memory_figures)
@example(
    {"wsgi_server": "gunicorn", "max_workers": 5, "worker_memory_mb": 200}, 2.0, 8192 * MB
).via("as many as allowed, without being limited by it")
@example({"wsgi_server": "gunicorn", "min_workers": 5, "max_workers": 5}, 1.0, 512 * MB)
@example({"wsgi_server": "gunicorn", "threads": 8}, 0.5, 100 * MB)
def test_with_what_one_more_names_there_is_one_more_and_with_less_there_is_not(
    asked: dict[str, Any], cpus: float, memory: int
) -> None:
    chosen = SizingSettings(**asked)
    plan = compute_plan(chosen, machine(cpus, memory))
    needed = one_more(chosen, plan)
    assert needed.keys() <= {"what", "cpus", "memory_available_mb", "setting"}
    assert needed.keys() > {"what"}
    assert needed["what"] == ("thread" if plan.server == "waitress" else "worker")
    after = with_more(asked, plan, needed, cpus, memory)
    assert counted(after) == counted(plan) + 1
    if plan.limited_by == "explicit":
        assert after.fits or (plan.server == "waitress" and not plan.fits)
    for name, less in (("cpus", 1e-6), ("memory_available_mb", 1)):
        if name in needed:
            short = {**needed, name: float(needed[name]) - less}
            if name == "memory_available_mb":
                short[name] = int(short[name])
            again = with_more(asked, plan, short, cpus, memory)
            assert counted(again) <= counted(plan) or not again.fits
    if "setting" in needed:
        without = {name: value for name, value in needed.items() if name != "setting"}
        assert counted(with_more(asked, plan, without, cpus, memory)) == counted(plan)


@settings(deadline=None)
@given(counts, st.integers(1, 2000), st.integers(0, 99))
def test_workers_fit_into_the_memory_they_are_said_to_need_and_not_into_less(
    workers: int, worker_memory_mb: int, headroom: int
) -> None:
    chosen = SizingSettings(
        wsgi_server="gunicorn",
        workers=workers,
        worker_memory_mb=worker_memory_mb,
        memory_headroom_percent=headroom,
    )
    size = memory_needed_mb(chosen, workers, None, "gunicorn") * MB
    assert compute_plan(chosen, machine(1, size)).fits
    assert compute_plan(chosen, machine(1, size)).memory_bound >= workers
    assert not compute_plan(chosen, machine(1, size - MB)).fits


@pytest.mark.parametrize(
    ("asked", "cpus", "memory_mb", "limit", "needed"),
    [
        ({}, 2, 8192, "cpu", {"cpus": 2.5}),
        ({}, 2.4, 8192, "cpu", {"cpus": 2.5}),
        ({}, 8, 999, "memory", {"memory_available_mb": 1000}),
        ({}, 0.5, 512, "cpu", {"cpus": 1.0, "memory_available_mb": 600}),
        ({"threads": 4}, 4, 8192, "cpu", {"cpus": 5.5}),
        ({"memory_headroom_percent": 20}, 8, 512, "memory", {"memory_available_mb": 750}),
        ({"workers": 4}, 8, 800, "explicit", {"memory_available_mb": 1000, "setting": "W"}),
        ({"workers": 4}, 8, 8192, "explicit", {"setting": "W"}),
        ({"max_workers": 3}, 8, 8192, "max_workers", {"setting": "M"}),
        ({"max_workers": 5}, 2, 8192, "cpu", {"cpus": 2.5, "setting": "M"}),
        (
            {"min_workers": 5},
            1,
            512,
            "min_workers",
            {"cpus": 2.5, "memory_available_mb": 1200},
        ),
        (
            {"min_workers": 5, "max_workers": 5},
            1,
            8192,
            "min_workers",
            {"cpus": 2.5, "setting": "M"},
        ),
    ],
)
def test_one_more_by_each_bound(
    asked: dict[str, Any], cpus: float, memory_mb: int, limit: str, needed: dict[str, Any]
) -> None:
    names = {"M": "argument 'max_workers'", "W": "argument 'workers'"}
    chosen = SizingSettings(wsgi_server="gunicorn", **asked)
    plan = compute_plan(chosen, machine(cpus, memory_mb * MB))
    assert plan.limited_by == limit
    expected = {name: names.get(value, value) for name, value in needed.items()}
    assert one_more(chosen, plan) == {"what": "worker", **expected}


@settings(deadline=None)
@given(st.text(max_size=12) | st.from_regex(r"[0-9]{1,4}\.?[0-9]{0,2} ?[kKmMgGtTi]{0,2}[bB]?"))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    assume(not text.startswith("-"))
    done = run("--memory", text)
    if done.exit_code == 0:
        assert parse_memory(text) >= 0
    else:
        check_error(done, "--memory")


LONG = "[2001:db8:85a3::8a2e:370:7334]:8080,unix:/run/lms/a-socket-with-a-long-name.sock"


@pytest.mark.parametrize("bind", ["127.0.0.1:8080", "192.168.100.200:18080", LONG])
def test_columns_are_alike_however_long_an_address_is(bind: str) -> None:
    environ = {
        "NOW_LMS_BIND": bind,
        "NOW_LMS_TRUSTED_PROXY": "10.0.0.0/8,172.16.0.0/12,192.168.1.9",
    }
    text = run("--server", "gunicorn", environ=environ).stdout
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    sources = ("--server", "default", "NOW_LMS_", "cgroup2:", "now", "calculated", "2 × ")
    starts = {
        line.find(f" {source}") for line in lines for source in sources if f" {source}" in line
    }
    assert len(starts) == 1
    assert all(address in text for address in bind.split(","))
    assert "  trusted_proxy            10.0.0.0/8, 172.16.0.0/12, 192.168.1.9\n" in text


def as_flask(*arguments: str, **environ: str) -> Result:
    """Run the command as ``flask`` does, which gives each option a variable of its own."""
    app = Flask("lms")
    WorkerSizing(app)
    get_state(app).resources = CONTAINER
    group = FlaskGroup(create_app=lambda: app, add_default_commands=False)
    return app.test_cli_runner().invoke(group, arguments, env=environ)


@pytest.mark.parametrize(
    ("arguments", "variable", "value", "setting"),
    [
        (["serve-prod", "--dry-run"], "FLASK_SERVE_PROD_PORT", "9000", "address"),
        (["serve-prod", "--dry-run"], "FLASK_SERVE_PROD_WSGI_SERVER", "gunicorn", "wsgi_server"),
        (["workersize", "plan"], "FLASK_WORKERSIZE_PLAN_THREADS", "3", "threads"),
        (["workersize", "plan"], "FLASK_WORKERSIZE_PLAN_WSGI_SERVER", "gunicorn", "wsgi_server"),
    ],
)
def test_variable_that_flask_gives_to_an_option_is_shown_as_such(
    arguments: list[str], variable: str, value: str, setting: str
) -> None:
    done = as_flask(*arguments, **{variable: value})
    assert variable in rows(done)[setting][1]
    done = as_flask(*arguments, **{variable: "-1"})
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"Error: {variable} is ")


def test_option_wins_over_its_variable_and_is_shown_as_itself() -> None:
    done = as_flask("workersize", "plan", "--threads", "5", FLASK_WORKERSIZE_PLAN_THREADS="3")
    assert rows(done)["threads"] == ["5", "--threads"]
