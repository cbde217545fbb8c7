"""What we use of gunicorn, waitress and Python that they do not promise, each by its name.

A failure here says what a new version has changed, and who of us relies on it.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waitress.adjustments import Adjustments
from waitress.server import create_server

from flask_workersize import SizingSettings, compute_plan, detect_resources
from flask_workersize.sizing.settings import NAMES
from tests.servers.serving import clean_environ

pytest.importorskip("fcntl", reason="gunicorn does not run on this system")

from gunicorn import sock, util
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from flask_workersize.servers.gunicorn.options import _NOT_HERE, gunicorn_options
from flask_workersize.servers.waitress.options import waitress_options

SETTINGS = SizingSettings(trusted_proxy="127.0.0.1")
GUNICORN_PLAN = compute_plan(SETTINGS, detect_resources(), "gunicorn")
WAITRESS_PLAN = compute_plan(SETTINGS, detect_resources(), "waitress")
GUNICORN_SETTINGS = sorted(
    {*gunicorn_options({}, SETTINGS, GUNICORN_PLAN), *_NOT_HERE, "post_fork", "backlog"}
    | {names.server_option["gunicorn"] for names in NAMES.values() if names.gunicorn_flags}
)
ADJUSTMENTS = sorted(
    {*waitress_options({}, SETTINGS, WAITRESS_PLAN), "listen", "sockets", "unix_socket"}
    | {
        names.server_option["waitress"]
        for names in NAMES.values()
        if names.server_option.get("waitress")
    }
)


LOG: Any = logging.getLogger("canary")
leaves_a_socket_to_the_collector = pytest.mark.filterwarnings("ignore::ResourceWarning")


def nothing(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise AssertionError("not called")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize("setting", GUNICORN_SETTINGS)
def test_gunicorn_has_every_setting_that_we_set_refuse_or_read(setting: str) -> None:
    assert setting in Config().settings, (
        f"gunicorn.config.Config().settings has no {setting!r} any more: servers/gunicorn/run.py"
    )


def test_gunicorn_takes_every_value_that_we_set() -> None:
    scratch = Config()
    for name, value in gunicorn_options({}, SETTINGS, GUNICORN_PLAN).items():
        scratch.set(name, value)
        setting = scratch.settings[name]
        assert setting.get() == value or value == "", (
            f"Config().settings[{name!r}].get() is not what was set: servers/gunicorn/run.py"
        )


def test_gunicorns_config_refuses_a_wrong_value_when_it_is_set() -> None:
    with pytest.raises((TypeError, ValueError)):
        Config().set("keepalive", "long")


def test_gunicorns_parser_knows_the_flags_that_feed_the_plan() -> None:
    """GUNICORN_CMD_ARGS is read by Config().parser(), which leaves None where nothing is said."""
    parser = Config(prog="GUNICORN_CMD_ARGS").parser()
    assert isinstance(parser, argparse.ArgumentParser), "Config().parser() is no ArgumentParser"
    said = vars(parser.parse_known_args([])[0])
    assert [name for name, value in said.items() if value is not None] == ["args"], (
        "Config().parser() gives defaults: parse_command_args would take them for the user's word"
    )
    for name, names in NAMES.items():
        for flag in names.gunicorn_flags:
            value = [] if name == "preload" else ["7"]
            said = vars(parser.parse_known_args([flag, *value])[0])
            changed = {name for name, value in said.items() if value} - {"args"}
            assert changed == {names.server_option["gunicorn"]}, (
                f"gunicorn's {flag} sets {changed}: gunicorn_flags in settings.py"
            )


def test_gunicorns_parser_calls_error_which_we_replace() -> None:
    parser = Config().parser()
    said: list[str] = []

    def refuse(message: str) -> Any:
        said.append(message)
        raise KeyError(message)

    parser.error = refuse  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        parser.parse_known_args(["--keep-alive", "long"])
    assert said[0].startswith("argument --keep-alive: invalid int value: "), (
        "argparse words its errors otherwise: _refuse_args cuts at the second colon, which keeps "
        "the value unsaid"
    )


@pytest.mark.parametrize(
    ("asked", "threads", "name"),
    [("sync", 1, "sync"), ("sync", 2, "gthread"), ("gthread", 1, "gthread")],
)
def test_gunicorn_names_the_worker_class_that_it_will_use(
    asked: str, threads: int, name: str
) -> None:
    config = Config()
    config.set("worker_class", asked)
    config.set("threads", threads)
    assert config.worker_class_str == name, "Config.worker_class_str: gunicorn_conf._follow"


def test_gunicorns_worker_classes_are_where_they_were() -> None:
    for uri, expected in (
        ("gunicorn.workers.sync.SyncWorker", SyncWorker),
        ("gunicorn.workers.gthread.ThreadWorker", ThreadWorker),
    ):
        assert util.load_class(uri) is expected, f"{uri} moved: _WORKER_CLASSES"


@leaves_a_socket_to_the_collector
def test_gunicorn_takes_listeners_by_descriptor(listener: socket.socket) -> None:
    assert util.parse_address("fd://7") == 7, "gunicorn.util.parse_address: fd:// binds"
    config = Config()
    config.set("bind", [f"fd://{listener.fileno()}"])
    address = listener.getsockname()
    listener.detach()
    (taken,) = sock.create_sockets(config, LOG)
    try:
        assert taken.sock.getsockname() == address, "fd:// does not take over the listener"
        assert str(taken) == f"http://127.0.0.1:{address[1]}", "the line 'Listening at'"
    finally:
        taken.sock.close()


@leaves_a_socket_to_the_collector
def test_gunicorn_removes_the_file_of_a_socket_that_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "canary.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    config = Config()
    config.set("bind", [f"fd://{listener.detach()}"])
    taken: Any = sock.create_sockets(config, LOG)
    sock.close_sockets(taken)
    assert not path.exists(), "gunicorn leaves the socket's file behind"


def test_gunicorn_reads_its_configuration_by_load_config() -> None:
    read: list[str] = []
    app: Any = object.__new__(BaseApplication)
    app.usage = app.prog = None
    app.load_config = lambda: read.append("again")
    app.reload()
    assert read == ["again"], "BaseApplication.reload: gunicorn_conf._chain_at_reloads"


def test_gunicorns_master_handles_hup_by_a_method() -> None:
    assert signal.SIGHUP in Arbiter.SIGNALS, "Arbiter.SIGNALS: hooks.is_master"
    handler: Any = object.__new__(Arbiter).signal
    assert isinstance(handler.__self__, Arbiter), "Arbiter.signal: hooks.is_master"


def test_gunicorns_worker_keeps_age_and_wsgi() -> None:
    """post_worker_init wraps worker.wsgi; the first worker has the age 1."""
    app: Any = SimpleNamespace(wsgi=lambda: nothing)
    worker = Worker(1, 0, [], app, 1, Config(), LOG)
    try:
        assert worker.age == 1, "Worker.age: gunicorn_conf.post_fork"
        worker.load_wsgi()
        assert worker.wsgi is nothing, "Worker.load_wsgi does not set worker.wsgi"
    finally:
        worker.tmp.close()


def test_gunicorns_worker_knows_its_master_and_whether_it_goes_on() -> None:
    app: Any = SimpleNamespace()
    worker: Any = Worker(1, 4711, [], app, 1, Config(), LOG)
    try:
        assert worker.ppid == 4711, "Worker.ppid: servers/gunicorn/orphan.py"
        assert worker.alive is True, "Worker.alive: servers/gunicorn/orphan.py"
        worker.handle_exit(15, None)
        assert worker.alive is False, "Worker.alive stays after SIGTERM: orphan.py logs twice"
    finally:
        worker.tmp.close()


def test_gunicorn_asks_for_the_forwarded_allow_ips_of_a_tcp_peer_only() -> None:
    """A peer on a unix socket is always trusted, so the scheme headers have to be switched off."""
    assert Config().settings["secure_scheme_headers"].get(), (
        "gunicorn has no secure_scheme_headers by default any more"
    )


@pytest.mark.parametrize("value", ["", "auto"])
def test_gunicorn_still_cannot_be_imported_under_such_a_web_concurrency(value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import gunicorn.config"],
        check=False,
        env=clean_environ({"WEB_CONCURRENCY": value}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0, (
        "gunicorn now copes with it: _without_broken_web_concurrency may go once this version is "
        "the oldest that is supported"
    )
    assert "ValueError" in done.stderr


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_waitress_has_every_adjustment_that_we_set_or_refuse(name: str) -> None:
    known = dict(Adjustments._params)  # type: ignore[attr-defined]
    assert name in known, f"waitress' Adjustments._params has no {name!r}: servers/waitress/run.py"
    assert callable(known[name]), "Adjustments._params no longer pairs a name with its cast"


def test_waitress_takes_our_listeners(listener: socket.socket) -> None:
    server: Any = create_server(nothing, sockets=[listener], threads=1)
    try:
        assert server.socket is listener, "create_server(sockets=...) opens a socket of its own"
        assert int(server.effective_port) == listener.getsockname()[1]
        assert callable(server.run)
    finally:
        server.task_dispatcher.shutdown()
        server.close()


def test_waitress_takes_several_of_our_listeners(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server: Any = create_server(nothing, sockets=[listener, other], threads=1)
        try:
            ports = [int(port) for _, port in server.effective_listen]
            assert ports == [listener.getsockname()[1], other.getsockname()[1]]
        finally:
            server.close()


def test_waitress_refuses_a_mix_of_families_with_a_value_error(
    listener: socket.socket, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "canary.sock"))
        with pytest.raises(ValueError, match=r"^Internet and UNIX sockets may not be mixed\.$"):
            create_server(nothing, sockets=[listener, other])


def test_python_runs_exit_handlers_on_demand() -> None:
    assert callable(getattr(atexit, "_run_exitfuncs", None)), (
        "atexit._run_exitfuncs is gone: ProcessEnd runs exit handlers with it"
    )
