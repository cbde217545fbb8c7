"""What the operator may set, what is refused and how, and what each line says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import ValidationError

from flask_workersize import SizingSettings, WorkerSizeConfigError
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.validators import YEAR_SECONDS
from tests.plain import SECRET, clear_environment, load, new_app, refused

VARIABLES = {
    "workers": ["NOW_LMS_WORKERS", "WORKERS", "WEB_CONCURRENCY"],
    "threads": ["NOW_LMS_THREADS", "THREADS"],
    "worker_memory_mb": ["NOW_LMS_WORKER_MEMORY_MB", "WORKER_MEMORY_MB"],
    "min_workers": ["NOW_LMS_MIN_WORKERS"],
    "max_workers": ["NOW_LMS_MAX_WORKERS"],
    "memory_headroom_percent": ["NOW_LMS_MEMORY_HEADROOM_PERCENT"],
    "wsgi_server": ["NOW_LMS_WSGI_SERVER", "WSGI_SERVER"],
    "host": ["NOW_LMS_HOST"],
    "port": ["NOW_LMS_PORT", "LMS_PORT", "PORT"],
    "timeout": ["NOW_LMS_TIMEOUT"],
    "graceful_timeout": ["NOW_LMS_GRACEFUL_TIMEOUT"],
    "bind": ["NOW_LMS_BIND"],
    "preload": ["NOW_LMS_PRELOAD"],
    "trusted_proxy": ["NOW_LMS_TRUSTED_PROXY"],
    "health_token": ["NOW_LMS_HEALTH_TOKEN"],
    "health_port": ["NOW_LMS_HEALTH_PORT"],
    "health_host": ["NOW_LMS_HEALTH_HOST"],
    "drain_seconds": ["NOW_LMS_DRAIN_SECONDS"],
    "memory_guard": ["NOW_LMS_MEMORY_GUARD"],
    "memory_recycle_percent": ["NOW_LMS_MEMORY_RECYCLE_PERCENT"],
    "worker_memory_max_mb": ["NOW_LMS_WORKER_MEMORY_MAX_MB"],
    "sizing_profile": ["NOW_LMS_SIZING_PROFILE"],
    "queue_seconds": ["NOW_LMS_QUEUE_SECONDS"],
    "sizing": ["NOW_LMS_SIZING"],
}
DEFAULTS = {
    "workers": None,
    "threads": None,
    "worker_memory_mb": 200,
    "min_workers": 1,
    "max_workers": None,
    "memory_headroom_percent": 0,
    "wsgi_server": "waitress",
    "host": "0.0.0.0",
    "port": 8080,
    "timeout": 120,
    "graceful_timeout": 30,
    "bind": None,
    "preload": True,
    "trusted_proxy": None,
    "health_token": None,
    "health_port": None,
    "health_host": None,
    "drain_seconds": 0,
    "memory_guard": "on",
    "memory_recycle_percent": 70,
    "worker_memory_max_mb": None,
    "sizing_profile": None,
    "queue_seconds": None,
    "sizing": "guide",
}
NUMBERS = [
    "workers",
    "threads",
    "worker_memory_mb",
    "min_workers",
    "max_workers",
    "memory_headroom_percent",
    "port",
    "timeout",
    "graceful_timeout",
    "health_port",
    "drain_seconds",
    "memory_recycle_percent",
    "worker_memory_max_mb",
]
SETTING_AND_VARIABLE = [(name, variable) for name, names in VARIABLES.items() for variable in names]
NUMBER_VARIABLES = [variable for name in NUMBERS for variable in VARIABLES[name]]


# The table


def test_variables_are_those_of_the_table_preferred_first() -> None:
    assert {name: list(names.variables) for name, names in NAMES.items()} == VARIABLES


def test_nothing_set_gives_the_defaults() -> None:
    settings = load()
    assert settings.model_dump() == DEFAULTS
    assert settings.sources == {}
    assert settings.warnings == ()
    assert settings.source_of("threads") == "default"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("workers", " 4 ", 4),
        ("workers", "+4", 4),
        ("workers", "04", 4),
        ("workers", "auto", None),
        ("workers", " Auto ", None),
        ("threads", "auto", None),
        ("threads", "\t8\n", 8),
        ("worker_memory_mb", "1", 1),
        ("memory_headroom_percent", "99", 99),
        ("wsgi_server", " Gunicorn ", "gunicorn"),
        ("wsgi_server", "WAITRESS", "waitress"),
        ("host", " ::1 ", "::1"),
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("timeout", "0", 0),
        ("graceful_timeout", "0", 0),
        ("preload", "off", False),
        ("preload", "0", False),
        ("preload", "On", True),
        ("preload", "yes", True),
        ("bind", "127.0.0.1:80, [::1]:80", ("127.0.0.1:80", "[::1]:80")),
        ("bind", "unix:/run/lms.sock,", ("unix:/run/lms.sock",)),
        ("trusted_proxy", "127.0.0.1, 10.0.0.0/8", ("127.0.0.1", "10.0.0.0/8")),
        ("trusted_proxy", "*", ("*",)),
        ("health_port", "0", 0),
        ("health_port", " 8081 ", 8081),
        ("health_port", "65535", 65535),
        ("health_host", " ::1 ", "::1"),
        ("drain_seconds", "0", 0),
        ("drain_seconds", str(YEAR_SECONDS), YEAR_SECONDS),
        ("memory_guard", " Exit ", "exit"),
        ("memory_guard", "OFF", "off"),
        ("memory_guard", "1", "on"),
        ("memory_guard", "false", "off"),
        ("memory_recycle_percent", "1", 1),
        ("memory_recycle_percent", "89", 89),
        ("worker_memory_max_mb", "300", 300),
        ("sizing_profile", " OFF ", "off"),
        ("queue_seconds", "0.5", 0.5),
        ("queue_seconds", " 2 ", 2),
        ("queue_seconds", ".25", 0.25),
        ("queue_seconds", str(YEAR_SECONDS), YEAR_SECONDS),
        ("sizing", " Adaptive ", "adaptive"),
        ("sizing_profile", "0", "off"),
        ("sizing_profile", "Learn", "learn"),
    ],
)
def test_text_of_a_variable_becomes_the_value(name: str, text: str, value: Any) -> None:
    settings = load({VARIABLES[name][0]: text})
    assert getattr(settings, name) == value
    assert settings.source_of(name) == VARIABLES[name][0]


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
@pytest.mark.parametrize(("name", "variable"), SETTING_AND_VARIABLE)
def test_empty_is_not_set(name: str, variable: str, empty: str) -> None:
    settings = load({variable: empty})
    assert getattr(settings, name) == DEFAULTS[name]
    assert settings.source_of(name) == "default"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().workers = 4


# What is refused


@pytest.mark.parametrize("text", [SECRET, "1e3", "0x1", "1,5", "inf", "nan", "5.", "٤", "1 2"])
def test_what_is_no_number_is_refused(text: str) -> None:
    line = refused({"NOW_LMS_QUEUE_SECONDS": text})
    assert line.startswith("NOW_LMS_QUEUE_SECONDS is not a number (")
    assert text not in line


@pytest.mark.parametrize("text", ["0", "0.0", "-0.5"])
def test_bound_that_would_turn_everybody_away_is_refused(text: str) -> None:
    line = refused({"NOW_LMS_QUEUE_SECONDS": text})
    assert line.startswith("NOW_LMS_QUEUE_SECONDS is too small (")


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        ({"THREADS": "4"}, "THREADS sets the size"),
        (
            {"WSGI_SERVER": "gunicorn", "WORKERS": "2", "NOW_LMS_THREADS": "4"},
            "WORKERS and NOW_LMS_THREADS set the size",
        ),
    ],
)
def test_adaptive_size_of_which_nothing_is_left_to_find_is_refused(
    environ: dict[str, str], what: str
) -> None:
    assert refused({"NOW_LMS_SIZING": "adaptive", **environ}) == (
        f"NOW_LMS_SIZING=adaptive has no effect: {what}. Unset one of them."
    )


@pytest.mark.parametrize("text", [SECRET, "4.0", "4,5", "1e3", "0x10", "4 4", "1_000", "²", "٤"])
@pytest.mark.parametrize("variable", NUMBER_VARIABLES)
def test_what_is_no_whole_number_is_refused(variable: str, text: str) -> None:
    line = refused({variable: text})
    assert line.startswith(f"{variable} is not a whole number (")
    assert text not in line


@pytest.mark.parametrize("text", ["-918273", "-1"])
@pytest.mark.parametrize("variable", NUMBER_VARIABLES)
def test_negative_is_refused(variable: str, text: str) -> None:
    line = refused({variable: text})
    assert line.startswith(f"{variable} is too small (")
    assert text not in line


@pytest.mark.parametrize(
    "name",
    [
        "workers",
        "threads",
        "worker_memory_mb",
        "min_workers",
        "max_workers",
        "memory_recycle_percent",
        "worker_memory_max_mb",
    ],
)
def test_zero_is_refused_where_it_would_serve_nothing(name: str) -> None:
    for variable in VARIABLES[name]:
        assert refused({variable: "0"}).startswith(f"{variable} is too small (")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("NOW_LMS_PORT", "65536"),
        ("LMS_PORT", "918273"),
        ("PORT", "918273"),
        ("NOW_LMS_MEMORY_HEADROOM_PERCENT", "100"),
        ("NOW_LMS_WORKERS", "10001"),
        ("WEB_CONCURRENCY", "918273"),
        ("NOW_LMS_THREADS", "10001"),
        ("NOW_LMS_TIMEOUT", str(YEAR_SECONDS + 1)),
        ("NOW_LMS_GRACEFUL_TIMEOUT", str(YEAR_SECONDS + 1)),
        ("NOW_LMS_HEALTH_PORT", "65536"),
        ("NOW_LMS_DRAIN_SECONDS", str(YEAR_SECONDS + 1)),
        ("NOW_LMS_MEMORY_RECYCLE_PERCENT", "918273"),
    ],
)
def test_above_the_range_is_refused(variable: str, text: str) -> None:
    line = refused({variable: text})
    assert re.match(rf"{variable} is too large, at most \d+ \(", line)
    assert text not in line


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("NOW_LMS_WSGI_SERVER", "is not a known value"),
        ("WSGI_SERVER", "is not a known value"),
        ("NOW_LMS_PRELOAD", 'is neither "on" nor "off"'),
        ("NOW_LMS_MEMORY_GUARD", "is not a known value"),
        ("NOW_LMS_WORKER_MEMORY_MAX_MB", "is not a whole number"),
        ("NOW_LMS_TRUSTED_PROXY", "is not a list of IP addresses or networks"),
    ],
)
def test_unknown_word_is_refused(variable: str, problem: str) -> None:
    assert refused({variable: SECRET}).startswith(f"{variable} {problem} (")


@pytest.mark.parametrize(
    "address",
    [
        f"{SECRET}:http",
        f"{SECRET} :80",
        f"http://{SECRET}",
        f"{SECRET}:70000",
        "::1",
        "a:1:2",
        "9182",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    line = refused({"NOW_LMS_BIND": f"127.0.0.1:80,{address}"})
    assert line.startswith("NOW_LMS_BIND is not a list of addresses (")
    assert address not in line


@pytest.mark.parametrize("host", [f"{SECRET}\nb", f"{SECRET} b", f"{SECRET}/b"])
@pytest.mark.parametrize("name", ["HOST", "HEALTH_HOST"])
def test_host_that_no_address_can_be_is_refused(name: str, host: str) -> None:
    assert refused({f"NOW_LMS_{name}": host}).startswith(f"NOW_LMS_{name} is not an address (")
    line = refused(config={f"WORKERSIZE_{name}": host})
    assert line.startswith(f"app.config WORKERSIZE_{name} is not an address (")


def test_variable_that_is_almost_a_setting_is_warned_of() -> None:
    settings = load({"NOW_LMS_WORKER": SECRET, "NOW_LMS_DATA_DIR": "/srv", "NOW_LMS_LANG": "es"})
    assert settings.warnings == ("NOW_LMS_WORKER is not a setting: did you mean NOW_LMS_WORKERS?",)


def test_line_says_the_rule() -> None:
    assert refused({"THREADS": "all"}) == (
        'THREADS is not a whole number (threads per worker, at least 1, or "auto").'
    )


@pytest.mark.parametrize(
    ("environ", "config", "named"),
    [
        ({"NOW_LMS_MIN_WORKERS": "5", "NOW_LMS_MAX_WORKERS": "3"}, {}, "NOW_LMS_MAX_WORKERS"),
        ({"NOW_LMS_MIN_WORKERS": "5"}, {"WORKERSIZE_MAX_WORKERS": 3}, "WORKERSIZE_MAX_WORKERS"),
    ],
)
def test_minimum_above_maximum_is_refused(
    environ: dict[str, str], config: dict[str, Any], named: str
) -> None:
    line = refused(environ, config=config)
    assert line.startswith("NOW_LMS_MIN_WORKERS is above ")
    assert named in line


def test_minimum_may_be_the_maximum() -> None:
    assert load({"NOW_LMS_MIN_WORKERS": "3", "NOW_LMS_MAX_WORKERS": "3"}).min_workers == 3


@pytest.mark.parametrize(
    "environ",
    [
        {"NOW_LMS_HEALTH_PORT": "8080"},
        {"NOW_LMS_HEALTH_PORT": "5000", "NOW_LMS_PORT": "5000"},
        {"NOW_LMS_HEALTH_PORT": "5000", "PORT": "5000", "NOW_LMS_HEALTH_HOST": "127.0.0.1"},
        {"NOW_LMS_HEALTH_PORT": "5000", "NOW_LMS_BIND": "[::1]:5000"},
        {"NOW_LMS_HEALTH_PORT": "5000", "NOW_LMS_BIND": "127.0.0.1:05000"},
        {"NOW_LMS_HEALTH_PORT": "5000", "NOW_LMS_BIND": ":5000"},
        {"NOW_LMS_HEALTH_PORT": "5000", "NOW_LMS_BIND": "127.0.0.1", "LMS_PORT": "5000"},
        {"NOW_LMS_HEALTH_PORT": "5000", "NOW_LMS_BIND": "unix:/run/a,127.0.0.1:1,10.0.0.1:5000"},
    ],
    ids=str,
)
def test_health_port_that_is_a_port_of_the_app_is_refused(environ: dict[str, str]) -> None:
    """On another address too: a probe that reaches the app would wait for a worker again."""
    assert refused(environ) == (
        "NOW_LMS_HEALTH_PORT is already the app's port: choose another one."
    )


def test_health_port_of_the_config_that_is_a_port_of_the_app_is_named() -> None:
    line = refused({"PORT": "5000"}, config={"WORKERSIZE_HEALTH_PORT": 5000})
    assert line.startswith("app.config WORKERSIZE_HEALTH_PORT is already the app's port")


@pytest.mark.parametrize(
    "environ",
    [
        {"NOW_LMS_HEALTH_PORT": "0", "PORT": "0"},
        {"NOW_LMS_HEALTH_PORT": "8081"},
        {"NOW_LMS_HEALTH_PORT": "8080", "PORT": "18080"},
        {"NOW_LMS_HEALTH_PORT": "8080", "NOW_LMS_BIND": "127.0.0.1:80"},
        {"NOW_LMS_HEALTH_PORT": "8080", "NOW_LMS_BIND": "unix:8080"},
        {"NOW_LMS_HEALTH_PORT": "8080", "NOW_LMS_BIND": "unix:/run/a:8080"},
    ],
    ids=str,
)
def test_health_port_may_be_any_other_port(environ: dict[str, str]) -> None:
    assert load(environ).health_port == int(environ["NOW_LMS_HEALTH_PORT"])


@pytest.mark.parametrize("text", ["25%", "25 MB", "%"])
def test_bound_of_a_worker_is_in_megabytes(text: str) -> None:
    line = refused({"NOW_LMS_WORKER_MEMORY_MAX_MB": text})
    assert line.startswith("NOW_LMS_WORKER_MEMORY_MAX_MB is not a whole number (private memory ")


@pytest.mark.parametrize(
    ("value", "guard"), [(True, "on"), (False, "off"), ("Exit", "exit"), ("no", "off")]
)
def test_guard_may_be_a_switch_of_the_config(value: Any, guard: str) -> None:
    assert load(config={"WORKERSIZE_MEMORY_GUARD": value}).memory_guard == guard


def test_recycling_that_would_begin_when_memory_is_critical_is_refused() -> None:
    assert refused({"NOW_LMS_MEMORY_RECYCLE_PERCENT": "90"}) == (
        "NOW_LMS_MEMORY_RECYCLE_PERCENT is too large, at most 89 (share of the memory limit above "
        "which workers are recycled, 1 to 89 %)."
    )


def test_refused_legacy_variable_is_named_not_the_preferred_one() -> None:
    assert refused({"WEB_CONCURRENCY": SECRET}).startswith("WEB_CONCURRENCY is not")


def test_refused_option_is_named_as_it_is_typed() -> None:
    line = refused(options={"worker_memory_mb": SECRET})
    assert line.startswith("--worker-memory-mb is not a whole number (")


def test_refused_argument_is_named_as_the_caller_wants() -> None:
    line = refused(options={"wsgi_server": SECRET}, option_source="serve({name}=...)")
    assert line.startswith("serve(wsgi_server=...) is not a known value (")


def test_error_is_a_usage_error_and_a_value_error() -> None:
    with pytest.raises(WorkerSizeConfigError) as caught:
        load({"THREADS": "all"})
    assert isinstance(caught.value, click.UsageError)
    assert isinstance(caught.value, ValueError)


def test_error_keeps_no_other_error_that_would_show_the_value() -> None:
    with pytest.raises(WorkerSizeConfigError) as caught:
        load({"THREADS": SECRET})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# Config of the app


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in NUMBERS for value in (SECRET, True, 4.0, [4], {"a": 4}, b"4")],
        ("host", 127),
        ("health_host", 127),
        ("health_host", [SECRET]),
        ("wsgi_server", ["gunicorn"]),
        ("wsgi_server", 1),
        ("preload", SECRET),
        ("preload", 0.5),
        ("preload", []),
        ("bind", 8080),
        ("bind", [8080]),
        ("bind", {SECRET: 1}),
        ("trusted_proxy", True),
        ("trusted_proxy", [SECRET]),
        ("health_token", 918273),
        ("health_token", [SECRET]),
        ("memory_guard", 918273),
        ("memory_guard", ["on"]),
        ("memory_guard", {SECRET: 1}),
        ("worker_memory_max_mb", ["25%"]),
        ("sizing_profile", 918273),
        ("sizing_profile", True),
        ("sizing_profile", [SECRET]),
    ],
)
def test_config_value_of_another_kind_is_refused(name: str, value: Any) -> None:
    key = f"WORKERSIZE_{name.upper()}"
    line = refused(config={key: value})
    assert line.startswith(f"app.config {key} is ")
    assert "918273" not in line


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("WORKERS", "4", 4),
        ("WORKERS", 4, 4),
        ("THREADS", "auto", None),
        ("PRELOAD", False, False),
        ("PRELOAD", "off", False),
        ("BIND", ["127.0.0.1:80", "unix:/run/a"], ("127.0.0.1:80", "unix:/run/a")),
        ("TRUSTED_PROXY", ("10.0.0.1", "10.0.0.2,10.0.0.3"), ("10.0.0.1", "10.0.0.2", "10.0.0.3")),
    ],
)
def test_config_takes_texts_and_plain_values(key: str, value: Any, expected: Any) -> None:
    settings = load(config={f"WORKERSIZE_{key}": value})
    assert getattr(settings, key.lower()) == expected
    assert settings.source_of(key.lower()) == f"app.config WORKERSIZE_{key}"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_config_value_that_is_empty_is_not_set(value: str | None) -> None:
    assert load(config={"WORKERSIZE_THREADS": value}).source_of("threads") == "default"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("WORKERSIZE_THREAD", "WORKERSIZE_THREADS"),
        ("WORKERSIZE_HEALTHURL", "WORKERSIZE_HEALTH_URL"),
        ("WORKERSIZE_GUNICORN_OPTION", "WORKERSIZE_GUNICORN_OPTIONS"),
        ("WORKERSIZE_\nWORKERS", "WORKERSIZE_WORKERS"),
    ],
)
def test_unknown_config_key_is_refused_and_the_nearest_suggested(key: str, nearest: str) -> None:
    line = refused(config={key: SECRET})
    assert f"unknown key {key!r}: did you mean {nearest!r}?" in line


def test_config_keys_of_others_are_left_alone() -> None:
    assert load(config={"SECRET_KEY": SECRET, "THREADS": "all", "WORKERSIZE": 1}).sources == {}


def test_from_prefixed_env_gives_mixed_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flask turns what is JSON into values and leaves the rest a text."""
    texts = {
        "WORKERS": "4",
        "THREADS": "04",
        "PRELOAD": "false",
        "BIND": '["127.0.0.1:80"]',
        "HEALTH_TOKEN": SECRET,
        "MAX_WORKERS": "null",
        "GUNICORN_OPTIONS__timeout": "240",
        "WSGI_SERVER": "gunicorn",
    }
    for name, text in texts.items():
        monkeypatch.setenv(f"FLASK_WORKERSIZE_{name}", text)
    app = new_app()
    app.config.from_prefixed_env()
    settings = load(config=app.config)
    shown = settings.model_dump(include={"workers", "threads", "preload", "bind", "timeout"})
    assert shown == {
        "workers": 4,
        "threads": 4,
        "preload": False,
        "bind": ("127.0.0.1:80",),
        "timeout": 240,
    }


@pytest.mark.parametrize("text", ["true", "True", "4.0", "[4]"])
def test_from_prefixed_env_is_held_to_the_same_rules(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FLASK_WORKERSIZE_THREADS", text)
    app = new_app()
    app.config.from_prefixed_env()
    assert "WORKERSIZE_THREADS is not a whole number" in refused(config=app.config)


# The secret


def test_token_is_never_shown() -> None:
    settings = load({"NOW_LMS_HEALTH_TOKEN": SECRET, "NOW_LMS_TIMEOUT": "60"})
    token = settings.health_token
    assert token is not None
    assert token.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.sources)):
        assert SECRET not in shown


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_token_is_not_set(empty: str) -> None:
    assert load({"NOW_LMS_HEALTH_TOKEN": empty}).health_token is None


# Read from this process


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


@pytest.mark.usefixtures("clean")
class TestThisProcess:
    """``SizingSettings()`` and ``load()`` read ``os.environ``."""

    def test_both_read_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THREADS", "3")
        for settings in (SizingSettings(), SizingSettings.load()):
            assert settings.threads == 3
            assert settings.source_of("threads") == "THREADS"

    def test_value_by_name_wins_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NOW_LMS_THREADS", "3")
        settings = SizingSettings(threads=5)
        assert settings.threads == 5
        assert settings.source_of("threads") == "argument 'threads'"

    @pytest.mark.parametrize("empty", [None, ""])
    def test_empty_value_by_name_is_not_set(
        self, monkeypatch: pytest.MonkeyPatch, empty: str | None
    ) -> None:
        monkeypatch.setenv("THREADS", "3")
        assert SizingSettings(threads=empty).threads == 3

    def test_refused_value_by_name_is_named(self) -> None:
        with pytest.raises(WorkerSizeConfigError, match=r"^argument 'threads' is not a whole") as e:
            SizingSettings(threads=SECRET)
        assert SECRET not in str(e.value)

    def test_refused_variable_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WEB_CONCURRENCY", SECRET)
        with pytest.raises(WorkerSizeConfigError, match=r"^WEB_CONCURRENCY is not a whole") as e:
            SizingSettings()
        assert SECRET not in str(e.value)

    def test_unknown_name_is_refused_and_the_nearest_suggested(self) -> None:
        with pytest.raises(WorkerSizeConfigError, match="'thread': did you mean 'threads'"):
            SizingSettings(thread=4)

    def test_bare_name_of_a_setting_is_no_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("TIMEOUT", "timeout", "HOST", "host", "BIND", "PRELOAD", "SOURCES"):
            monkeypatch.setenv(name, SECRET)
        assert SizingSettings().model_dump() == DEFAULTS

    def test_settings_read_no_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in (".env", ".flaskenv"):
            (tmp_path / name).write_text("THREADS=9\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        assert SizingSettings().threads is None


# Where to listen, and on which platform


@pytest.mark.parametrize(
    ("environ", "addresses"),
    [
        ({}, ("0.0.0.0:8080",)),
        ({"NOW_LMS_HOST": "127.0.0.1", "PORT": "5000"}, ("127.0.0.1:5000",)),
        ({"NOW_LMS_HOST": "::1"}, ("[::1]:8080",)),
        ({"NOW_LMS_BIND": "localhost:1,[::]:2"}, ("localhost:1", "[::]:2")),
        ({"NOW_LMS_BIND": "unix:/run/a.sock,127.0.0.1"}, ("unix:/run/a.sock", "127.0.0.1:8080")),
        ({"NOW_LMS_BIND": "[::1]", "PORT": "5000"}, ("[::1]:5000",)),
        ({"NOW_LMS_BIND": ":9000"}, (":9000",)),
    ],
)
def test_addresses_are_bind_or_else_host_and_port(
    environ: dict[str, str], addresses: tuple[str, ...]
) -> None:
    assert load(environ).addresses == addresses


@pytest.mark.parametrize("environ", [{}, {"NOW_LMS_HEALTH_HOST": "127.0.0.1"}], ids=str)
def test_there_is_no_health_port_unless_it_is_asked_for(environ: dict[str, str]) -> None:
    assert load(environ).health_address is None


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "0.0.0.0:8081"),
        ({"NOW_LMS_HOST": "127.0.0.1"}, "127.0.0.1:8081"),
        ({"NOW_LMS_HOST": "::1"}, "[::1]:8081"),
        ({"NOW_LMS_BIND": "localhost:1,10.0.0.1:2"}, "localhost:8081"),
        ({"NOW_LMS_BIND": "[::1]:1"}, "[::1]:8081"),
        ({"NOW_LMS_BIND": "[fe80::1%eth0]:1"}, "[fe80::1%eth0]:8081"),
        ({"NOW_LMS_BIND": "10.0.0.1"}, "10.0.0.1:8081"),
        ({"NOW_LMS_BIND": ":9000"}, ":8081"),
        ({"NOW_LMS_BIND": "unix:/run/a.sock"}, "127.0.0.1:8081"),
        ({"NOW_LMS_BIND": "unix:/run/a:b.sock,10.0.0.1:1"}, "10.0.0.1:8081"),
        ({"NOW_LMS_HEALTH_HOST": "10.0.0.9"}, "10.0.0.9:8081"),
        ({"NOW_LMS_HEALTH_HOST": "10.0.0.9", "NOW_LMS_BIND": "[::1]:1"}, "10.0.0.9:8081"),
        ({"NOW_LMS_HEALTH_HOST": "10.0.0.9", "NOW_LMS_BIND": "unix:/run/a"}, "10.0.0.9:8081"),
        ({"NOW_LMS_HEALTH_HOST": "::"}, "[::]:8081"),
        ({"NOW_LMS_HEALTH_HOST": "[::1]"}, "[::1]:8081"),
    ],
)
def test_health_port_is_where_the_app_is_unless_it_has_a_host_of_its_own(
    environ: dict[str, str], address: str
) -> None:
    assert load({**environ, "NOW_LMS_HEALTH_PORT": "8081"}).health_address == address


def test_health_port_0_takes_a_free_one() -> None:
    assert load({"NOW_LMS_HEALTH_PORT": "0"}).health_address == "0.0.0.0:0"


def test_gunicorn_becomes_waitress_on_windows_with_a_warning() -> None:
    settings = load({"WSGI_SERVER": "gunicorn"})
    on_windows = settings.for_platform("win32")
    assert on_windows.wsgi_server == "waitress"
    assert on_windows.warnings == (
        "WSGI_SERVER: gunicorn does not run on Windows, using waitress instead.",
    )
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("server", "platform"), [("gunicorn", "linux"), ("gunicorn", "darwin"), ("waitress", "win32")]
)
def test_platform_changes_nothing_else(server: str, platform: str) -> None:
    settings = load({"WSGI_SERVER": server})
    assert settings.for_platform(platform) is settings


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NOW_LMS_WORKERS", "4"),
        ("THREADS", "auto"),
        ("PORT", "8080"),
        ("NOW_LMS_HOST", "127.0.0.1"),
        ("NOW_LMS_HEALTH_HOST", "::"),
        ("NOW_LMS_BIND", "127.0.0.1:80"),
        ("NOW_LMS_BIND", "unix:/run/lms.sock"),
        ("NOW_LMS_BIND", "localhost"),
        ("NOW_LMS_PRELOAD", "on"),
        ("NOW_LMS_WSGI_SERVER", "gunicorn"),
        ("NOW_LMS_MEMORY_GUARD", "off"),
        ("NOW_LMS_TRUSTED_PROXY", "127.0.0.1"),
        ("NOW_LMS_SIZING_PROFILE", "/run/profile.json"),
    ],
)
def test_quotes_that_are_a_part_of_a_value_are_named_as_the_cause(
    variable: str, value: str, quote: str
) -> None:
    """``docker --env-file`` keeps them, a shell and .env do not."""
    line = refused({variable: f"{quote}{value}{quote}"})
    assert line.startswith(f"{variable} ")
    assert line.endswith("(docker --env-file keeps them): remove them.")
    assert "quotes" not in refused({variable: f"{quote}\n{SECRET}"})


def test_quotes_around_the_arguments_of_gunicorn_are_named_as_the_cause() -> None:
    server = {"NOW_LMS_WSGI_SERVER": "gunicorn"}
    line = refused({**server, "GUNICORN_CMD_ARGS": '"--workers 2 --threads 4"'})
    assert line.startswith("GUNICORN_CMD_ARGS ")
    assert "docker --env-file" in line
    # Each word may have quotes of its own.
    found = load({**server, "GUNICORN_CMD_ARGS": '"--workers=2" "--threads=4"'})
    assert (found.workers, found.threads) == (2, 4)


def test_quotes_around_a_token_are_warned_of() -> None:
    """No request would have the right one."""
    (warning,) = load({"NOW_LMS_HEALTH_TOKEN": f'"{SECRET}"'}).warnings
    assert warning.startswith("NOW_LMS_HEALTH_TOKEN is in quotes. ")
    assert SECRET not in warning
    assert load({"NOW_LMS_HEALTH_TOKEN": f'"{SECRET}'}).warnings == ()
