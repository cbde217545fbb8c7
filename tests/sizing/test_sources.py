"""Who is asked first, what is skipped, and what is said of contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from flask_workersize import SizingSettings
from flask_workersize.servers.launch import gunicorn_args
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.sources import SettingSources
from tests.plain import SECRET, load, refused

GUNICORN = {"NOW_LMS_WSGI_SERVER": "gunicorn"}
Rung = tuple[str, dict[str, Any]]
"""Where a value is read from, and the layer that sets it, with ``{}`` for the value."""


def rung(source: str, layer: str, key: str, text: str = "{}") -> Rung:
    return source, {layer: {key: text}}


def options_rung(server: str, option: str) -> Rung:
    key = f"WORKERSIZE_{server.upper()}_OPTIONS"
    return f"app.config {key}[{option!r}]", {"config": {key: {option: "{}"}}}


WORKERS: list[Rung] = [
    rung("--workers", "options", "workers"),
    rung("NOW_LMS_WORKERS", "environ", "NOW_LMS_WORKERS"),
    rung("GUNICORN_CMD_ARGS --workers", "environ", "GUNICORN_CMD_ARGS", "--workers {}"),
    rung("WORKERS", "environ", "WORKERS"),
    rung("WEB_CONCURRENCY", "environ", "WEB_CONCURRENCY"),
    rung("app.config WORKERSIZE_WORKERS", "config", "WORKERSIZE_WORKERS"),
    options_rung("gunicorn", "workers"),
]
THREADS: list[Rung] = [
    rung("--threads", "options", "threads"),
    rung("NOW_LMS_THREADS", "environ", "NOW_LMS_THREADS"),
    rung("GUNICORN_CMD_ARGS --threads", "environ", "GUNICORN_CMD_ARGS", "--threads {}"),
    rung("THREADS", "environ", "THREADS"),
    rung("app.config WORKERSIZE_THREADS", "config", "WORKERSIZE_THREADS"),
    options_rung("gunicorn", "threads"),
]
TIMEOUT: list[Rung] = [
    rung("--timeout", "options", "timeout"),
    rung("NOW_LMS_TIMEOUT", "environ", "NOW_LMS_TIMEOUT"),
    rung("GUNICORN_CMD_ARGS --timeout", "environ", "GUNICORN_CMD_ARGS", "-t {}"),
    rung("app.config WORKERSIZE_TIMEOUT", "config", "WORKERSIZE_TIMEOUT"),
    options_rung("gunicorn", "timeout"),
]
GRACEFUL_TIMEOUT: list[Rung] = [
    rung("NOW_LMS_GRACEFUL_TIMEOUT", "environ", "NOW_LMS_GRACEFUL_TIMEOUT"),
    rung(
        "GUNICORN_CMD_ARGS --graceful-timeout",
        "environ",
        "GUNICORN_CMD_ARGS",
        "--graceful-timeout={}",
    ),
    rung("app.config WORKERSIZE_GRACEFUL_TIMEOUT", "config", "WORKERSIZE_GRACEFUL_TIMEOUT"),
    options_rung("gunicorn", "graceful_timeout"),
]
PORT: list[Rung] = [
    rung("--port", "options", "port"),
    rung("NOW_LMS_PORT", "environ", "NOW_LMS_PORT"),
    rung("LMS_PORT", "environ", "LMS_PORT"),
    rung("PORT", "environ", "PORT"),
    rung("app.config WORKERSIZE_PORT", "config", "WORKERSIZE_PORT"),
]
MEMORY: list[Rung] = [
    rung("--worker-memory-mb", "options", "worker_memory_mb"),
    rung("NOW_LMS_WORKER_MEMORY_MB", "environ", "NOW_LMS_WORKER_MEMORY_MB"),
    rung("WORKER_MEMORY_MB", "environ", "WORKER_MEMORY_MB"),
    rung("app.config WORKERSIZE_WORKER_MEMORY_MB", "config", "WORKERSIZE_WORKER_MEMORY_MB"),
]
HEALTH_PORT: list[Rung] = [
    rung("NOW_LMS_HEALTH_PORT", "environ", "NOW_LMS_HEALTH_PORT"),
    rung("app.config WORKERSIZE_HEALTH_PORT", "config", "WORKERSIZE_HEALTH_PORT"),
]
DRAIN: list[Rung] = [
    rung("NOW_LMS_DRAIN_SECONDS", "environ", "NOW_LMS_DRAIN_SECONDS"),
    rung("app.config WORKERSIZE_DRAIN_SECONDS", "config", "WORKERSIZE_DRAIN_SECONDS"),
]
WAITRESS_THREADS: list[Rung] = [
    rung("THREADS", "environ", "THREADS"),
    rung("app.config WORKERSIZE_THREADS", "config", "WORKERSIZE_THREADS"),
    options_rung("waitress", "threads"),
]
WAITRESS_TIMEOUT: list[Rung] = [
    rung("app.config WORKERSIZE_TIMEOUT", "config", "WORKERSIZE_TIMEOUT"),
    options_rung("waitress", "channel_timeout"),
]


def filled(layers: dict[str, Any], value: int) -> dict[str, Any]:
    """Put a value where ``{}`` is."""
    return {
        key: filled(item, value) if isinstance(item, dict) else item.format(value)
        for key, item in layers.items()
    }


def merged(layers: list[dict[str, Any]], **environ: str) -> dict[str, Any]:
    """Put layers together, also within the options of a server."""
    result: dict[str, Any] = {"environ": dict(environ), "config": {}, "options": {}}
    for layer in layers:
        for kind, items in layer.items():
            result[kind] |= items
    return result


def check_ladder(name: str, rungs: list[Rung], **environ: str) -> None:
    """With every rung set the first wins; without it the second, and so on."""
    filled_rungs = [filled(layer, number) for number, (_, layer) in enumerate(rungs, start=1)]
    for number, (source, _) in enumerate(rungs, start=1):
        settings = load(**merged(filled_rungs[number - 1 :], **environ))
        assert (getattr(settings, name), settings.source_of(name)) == (number, source)


@pytest.mark.parametrize(
    ("name", "rungs"),
    [
        ("workers", WORKERS),
        ("threads", THREADS),
        ("timeout", TIMEOUT),
        ("graceful_timeout", GRACEFUL_TIMEOUT),
        ("port", PORT),
        ("worker_memory_mb", MEMORY),
        ("health_port", HEALTH_PORT),
        ("drain_seconds", DRAIN),
    ],
)
def test_stronger_source_wins_under_gunicorn(name: str, rungs: list[Rung]) -> None:
    check_ladder(name, rungs, **GUNICORN)


@pytest.mark.parametrize("environ", [{}, {"WSGI_SERVER": "Waitress"}], ids=["default", "chosen"])
@pytest.mark.parametrize(
    ("name", "rungs"),
    [
        ("threads", WAITRESS_THREADS),
        ("timeout", WAITRESS_TIMEOUT),
        ("health_port", HEALTH_PORT),
        ("drain_seconds", DRAIN),
    ],
)
def test_stronger_source_wins_under_waitress(
    name: str, rungs: list[Rung], environ: dict[str, str]
) -> None:
    check_ladder(name, rungs, **environ)


@pytest.mark.parametrize("name", ["NOW_LMS_WORKERS", "WORKERS"])
def test_empty_name_falls_through_to_the_next(name: str) -> None:
    settings = load({name: " ", "WEB_CONCURRENCY": "3"})
    assert (settings.workers, settings.source_of("workers")) == (3, "WEB_CONCURRENCY")
    assert settings.warnings == ()


def test_auto_is_a_word_of_its_own_and_does_not_fall_through() -> None:
    settings = load({"NOW_LMS_WORKERS": "auto"}, config={"WORKERSIZE_WORKERS": 3})
    assert settings.workers is None


# Contradictions


def test_contradiction_is_one_warning_and_the_preferred_name_wins() -> None:
    settings = load({"NOW_LMS_WORKERS": "4", "WORKERS": "3", "WEB_CONCURRENCY": "2"})
    assert settings.workers == 4
    assert settings.warnings == (
        "NOW_LMS_WORKERS and WORKERS and WEB_CONCURRENCY are set to different values: "
        "NOW_LMS_WORKERS wins; unset the other.",
    )


def test_contradiction_shows_no_value() -> None:
    environ = {"NOW_LMS_WSGI_SERVER": "waitress", "WSGI_SERVER": SECRET}
    (warning,) = load(environ).warnings
    assert SECRET not in warning


@pytest.mark.parametrize(
    "environ",
    [
        {"NOW_LMS_WORKERS": "4", "WORKERS": " 4 "},
        {"NOW_LMS_WSGI_SERVER": "waitress", "WSGI_SERVER": "Waitress"},
        {"NOW_LMS_THREADS": "4", "THREADS": ""},
        {**GUNICORN, "NOW_LMS_BIND": "A:1,b:2", "GUNICORN_CMD_ARGS": "-b A:1 -b b:2"},
        {**GUNICORN, "NOW_LMS_PRELOAD": "on", "GUNICORN_CMD_ARGS": "--preload"},
        {**GUNICORN, "NOW_LMS_TIMEOUT": "60", "GUNICORN_CMD_ARGS": "--timeout 60"},
    ],
    ids="-".join,
)
def test_same_value_under_two_names_is_no_contradiction(environ: dict[str, str]) -> None:
    assert load(environ).warnings == ()


def test_contradiction_is_not_told_where_an_option_decides() -> None:
    environ = {"NOW_LMS_WORKERS": "4", "WORKERS": "3"}
    assert load(environ, options={"workers": "5"}).warnings == ()


def test_operator_overruling_the_developer_is_no_contradiction() -> None:
    assert load({"WORKERS": "4"}, config={"WORKERSIZE_WORKERS": 3}).warnings == ()


def test_command_args_that_are_overruled_are_told() -> None:
    environ = {**GUNICORN, "NOW_LMS_TIMEOUT": "60", "GUNICORN_CMD_ARGS": "--timeout 240"}
    settings = load(environ)
    assert settings.timeout == 60
    assert settings.warnings == (
        "NOW_LMS_TIMEOUT and GUNICORN_CMD_ARGS --timeout are set to different values: "
        "NOW_LMS_TIMEOUT wins; unset the other.",
    )


# Service links of Kubernetes


@pytest.mark.parametrize("variable", ["NOW_LMS_PORT", "LMS_PORT", "PORT"])
def test_service_link_is_skipped_with_one_warning(variable: str) -> None:
    settings = load({variable: "tcp://10.0.0.1:80"}, config={"WORKERSIZE_PORT": 5000})
    assert settings.port == 5000
    assert settings.warnings == (
        f"{variable} is skipped: it holds the address of a Kubernetes Service of that name. Set "
        "enableServiceLinks: false in the pod's spec.",
    )


def test_service_link_in_the_health_port_is_skipped_with_one_warning() -> None:
    """There may be a Service that is called "now-lms-health"."""
    settings = load({"NOW_LMS_HEALTH_PORT": "tcp://10.0.0.1:80"})
    assert settings.health_port is None
    assert settings.warnings == (
        "NOW_LMS_HEALTH_PORT is skipped: it holds the address of a Kubernetes Service of that "
        "name. Set enableServiceLinks: false in the pod's spec.",
    )


def test_health_port_of_the_config_holds_beside_a_service_link() -> None:
    environ = {"NOW_LMS_HEALTH_PORT": "tcp://10.0.0.1:80"}
    settings = load(environ, config={"WORKERSIZE_HEALTH_PORT": 8081})
    assert settings.health_port == 8081
    assert len(settings.warnings) == 1


def test_name_after_a_service_link_is_tried() -> None:
    settings = load({"NOW_LMS_PORT": "tcp://10.0.0.1:80", "LMS_PORT": "TCP://a", "PORT": "5000"})
    assert (settings.port, settings.source_of("port")) == (5000, "PORT")
    assert [warning.split()[0] for warning in settings.warnings] == ["NOW_LMS_PORT", "LMS_PORT"]


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_link_to_a_service_of_any_protocol_is_skipped(protocol: str) -> None:
    (warning,) = load({"LMS_PORT": f"{protocol}://10.0.0.1:53"}).warnings
    assert warning.startswith("LMS_PORT is skipped: it holds the address of a Kubernetes Service")
    assert "enableServiceLinks: false" in warning


def test_service_links_alone_leave_the_default() -> None:
    assert load({"PORT": "tcp://10.0.0.1:80"}).port == 8080


@pytest.mark.parametrize("value", ["http://a", "tcp"])
@pytest.mark.parametrize("name", ["PORT", "NOW_LMS_HEALTH_PORT"])
def test_other_addresses_in_a_port_are_refused(name: str, value: str) -> None:
    assert refused({name: value}).startswith(f"{name} is not a whole number")


def test_address_typed_as_the_port_option_is_refused() -> None:
    line = refused(options={"port": f"tcp://{SECRET}"})
    assert line.startswith("--port is not a whole number")


# GUNICORN_CMD_ARGS


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("-w 7", "workers", 7),
        ("-w7", "workers", 7),
        ("--workers=7", "workers", 7),
        ("--workers 7 -w 8", "workers", 8),
        ("--threads 2", "threads", 2),
        ("-t 240", "timeout", 240),
        ("--timeout '240'", "timeout", 240),
        ("--graceful-timeout 5", "graceful_timeout", 5),
        ("-b a:1 --bind b:2", "bind", ("a:1", "b:2")),
        ("--log-level debug --timeout 240 --reload", "timeout", 240),
        ("--preload", "preload", True),
        ("--thread 2", "threads", 2),
        ("--graceful 5", "graceful_timeout", 5),
        ("--workers auto", "workers", None),
    ],
)
def test_command_args_are_read_as_gunicorn_reads_them(text: str, name: str, value: Any) -> None:
    settings = load({**GUNICORN, "GUNICORN_CMD_ARGS": text})
    assert getattr(settings, name) == value
    assert settings.source_of(name).startswith("GUNICORN_CMD_ARGS --")


@pytest.mark.parametrize("server", ["waitress", ""])
def test_command_args_are_nothing_to_waitress(server: str) -> None:
    settings = load({"WSGI_SERVER": server, "GUNICORN_CMD_ARGS": f"--workers {SECRET} '"})
    assert set(settings.sources) <= {"wsgi_server"}


def test_command_args_switch_preloading_on_where_the_config_has_it_off() -> None:
    environ = {**GUNICORN, "GUNICORN_CMD_ARGS": "--preload"}
    assert load(environ, config={"WORKERSIZE_PRELOAD": False}).preload is True


@pytest.mark.parametrize(
    "text",
    [
        f"--bind '{SECRET}",
        f"--bind {SECRET}\\",
        "--workers",
        f"--threads --log-level={SECRET}",
        f"--preload={SECRET}",
        f"--preload='{SECRET}\n: {SECRET}'",
        f"--work {SECRET}",
    ],
)
def test_command_args_that_cannot_be_read_are_refused(text: str) -> None:
    line = refused({**GUNICORN, "GUNICORN_CMD_ARGS": text})
    assert line.startswith("GUNICORN_CMD_ARGS cannot be read: ")


def test_option_in_command_args_that_may_be_a_secret_is_not_shown() -> None:
    line = refused({**GUNICORN, "GUNICORN_CMD_ARGS": f"--{SECRET}"})
    assert line == "GUNICORN_CMD_ARGS has an option, which gunicorn does not know."


@pytest.mark.parametrize(
    ("environ", "calls"),
    [
        ({**GUNICORN, "GUNICORN_CMD_ARGS": " -w 3 --reload"}, ["-w 3 --reload"]),
        ({**GUNICORN, "GUNICORN_CMD_ARGS": " "}, []),
        ({"GUNICORN_CMD_ARGS": "-w 3"}, []),
    ],
)
def test_command_args_are_parsed_once_and_only_for_gunicorn(
    environ: dict[str, str], calls: list[str]
) -> None:
    parsed: list[str] = []

    def parse(text: str) -> dict[str, Any]:
        parsed.append(text)
        return {"workers": "3", "reload": True}

    settings = SizingSettings.load(environ=environ, gunicorn_args=parse)
    assert parsed == calls
    assert settings.gunicorn_args == ({"workers": "3", "reload": True} if calls else {})
    assert settings.workers == (3 if calls else None)


def test_command_args_that_nothing_can_parse_are_warned_of() -> None:
    environ = {**GUNICORN, "GUNICORN_CMD_ARGS": "-w 3"}
    assert SizingSettings.load(environ=environ).warnings == (
        "GUNICORN_CMD_ARGS is only read for an app: use get_plan().",
    )


def test_refused_value_in_command_args_names_the_flag() -> None:
    line = refused({**GUNICORN, "GUNICORN_CMD_ARGS": f"-w {SECRET}"})
    assert line.startswith("GUNICORN_CMD_ARGS --workers is not a whole number")


# Options of a server in the config


@pytest.mark.parametrize(
    ("server", "option", "name", "value"),
    [
        ("gunicorn", "bind", "bind", "127.0.0.1:9000"),
        ("gunicorn", "preload_app", "preload", False),
        ("waitress", "host", "host", "127.0.0.1"),
        ("waitress", "port", "port", 9000),
    ],
)
def test_options_of_a_server_feed_the_settings(
    server: str, option: str, name: str, value: Any
) -> None:
    key = f"WORKERSIZE_{server.upper()}_OPTIONS"
    settings = load({"WSGI_SERVER": server}, config={key: {option: value}})
    assert getattr(settings, name) == ((value,) if name == "bind" else value)
    assert settings.source_of(name) == f"app.config {key}[{option!r}]"


def test_options_of_the_other_server_are_left_alone() -> None:
    config = {"WORKERSIZE_GUNICORN_OPTIONS": {"threads": 4, "timeout": 5}}
    assert load({"WSGI_SERVER": "waitress"}, config=config).threads is None


def test_refused_option_of_a_server_is_named() -> None:
    config = {"WORKERSIZE_WAITRESS_OPTIONS": {"threads": SECRET}}
    line = refused(config=config)
    assert line.startswith("app.config WORKERSIZE_WAITRESS_OPTIONS['threads'] is not a whole")


@pytest.mark.parametrize("value", [SECRET, [SECRET], {1: SECRET}, 5])
@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_options_that_are_no_mapping_are_refused(server: str, value: Any) -> None:
    key = f"WORKERSIZE_{server.upper()}_OPTIONS"
    line = refused({"WSGI_SERVER": server}, config={key: value})
    assert line.startswith(f"app.config {key} is not a dictionary of {server} options")


# Where to listen


@pytest.mark.parametrize(
    ("name", "value", "address"),
    [("port", "5000", "0.0.0.0:5000"), ("host", "127.0.0.1", "127.0.0.1:8080")],
)
def test_option_for_port_or_host_wins_over_the_bind_variable(
    name: str, value: str, address: str
) -> None:
    settings = load({"NOW_LMS_BIND": "unix:/run/lms.sock"}, options={name: value})
    assert settings.addresses == (address,)
    assert settings.warnings == (f"NOW_LMS_BIND is not used: --{name} takes precedence.",)


@pytest.mark.parametrize(
    ("environ", "config"),
    [
        ({"NOW_LMS_PORT": "5000"}, {"WORKERSIZE_BIND": "a:1"}),
        ({"PORT": "5000"}, {"WORKERSIZE_BIND": "a:1"}),
        ({**GUNICORN, "NOW_LMS_PORT": "5000", "GUNICORN_CMD_ARGS": "-b a:1"}, {}),
    ],
)
def test_port_from_a_stronger_source_wins_over_bind(
    environ: dict[str, str], config: dict[str, Any]
) -> None:
    settings = load(environ, config=config)
    assert settings.addresses == ("0.0.0.0:5000",)
    assert len(settings.warnings) == 1


@pytest.mark.parametrize(
    ("environ", "options"),
    [
        ({"NOW_LMS_BIND": "a:1", "NOW_LMS_PORT": "5000"}, {}),
        ({"NOW_LMS_BIND": "a:1", "PORT": "5000"}, {}),
        ({}, {"bind": ("a:1",), "port": "5000"}),
        ({**GUNICORN, "GUNICORN_CMD_ARGS": "-b a:1", "PORT": "5000"}, {}),
    ],
)
def test_bind_wins_over_a_port_that_is_no_stronger(
    environ: dict[str, str], options: dict[str, Any]
) -> None:
    settings = load(environ, options=options)
    assert settings.addresses == ("a:1",)
    assert settings.warnings == ()


def resolved_last(**environ: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return settings and warnings where gunicorn itself applies its variable, over ours."""
    options = {"wsgi_server": "gunicorn"}
    found = SettingSources(
        NAMES, environ, {}, options, "option {name}", gunicorn_args, args_win=True
    ).resolve()
    return found, found["warnings"]


def test_variable_that_gunicorn_applies_last_wins_over_ours() -> None:
    found, warnings = resolved_last(
        GUNICORN_CMD_ARGS="-b a:1 -w 3 --preload",
        NOW_LMS_WORKERS="2",
        NOW_LMS_PRELOAD="off",
        WORKERS="3",
    )
    assert (found["bind"], found["workers"], found["preload"]) == (["a:1"], "3", True)
    assert found["sources"]["workers"] == "GUNICORN_CMD_ARGS --workers"
    assert warnings == (
        "GUNICORN_CMD_ARGS --workers and NOW_LMS_WORKERS are set to different values: "
        "GUNICORN_CMD_ARGS --workers wins; unset the other.",
        "GUNICORN_CMD_ARGS --preload and NOW_LMS_PRELOAD are set to different values: "
        "GUNICORN_CMD_ARGS --preload wins; unset the other.",
    )


@pytest.mark.parametrize("name", ["port", "host"])
def test_address_that_is_not_used_because_gunicorn_has_another_is_said(name: str) -> None:
    variable = f"NOW_LMS_{name.upper()}"
    found, warnings = resolved_last(GUNICORN_CMD_ARGS="-b a:1", **{variable: "9"})
    assert found["bind"] == ["a:1"]
    assert warnings == (f"{variable} is not used: GUNICORN_CMD_ARGS --bind takes precedence.",)


def test_port_of_the_platform_beside_an_address_for_gunicorn_is_no_contradiction() -> None:
    assert resolved_last(GUNICORN_CMD_ARGS="-b a:1", PORT="9")[1] == ()
