"""``NOW_LMS_PRELOAD=off``, reloading by HUP, and what serve-prod does not do."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.servers.clients import PATH
from tests.servers.serving import (
    APPS,
    CONF,
    Server,
    Starter,
    await_that,
    gunicorn,
    script,
    serve_prod,
)

TOKEN = "the-token-of-this-test"
MODULE = """
import os
from pathlib import Path
from flask import Flask
from flask_workersize import WorkerSizing, get_plan

with Path("loaded.txt").open("a") as file:
    file.write(f"{os.getpid()}\\n")
app = Flask(__name__)
app.config.update(
    WORKERSIZE_HOST="127.0.0.1",
    WORKERSIZE_PORT=0,
    WORKERSIZE_HEALTH_TOKEN="the-token-of-this-test",
    WORKERSIZE_GUNICORN_OPTIONS={"keepalive": 7, "post_fork": "named_hooks.post_fork"},
)
WorkerSizing(app)
app.add_url_rule(
    "/", view_func=lambda: {"pid": os.getpid(), "version": "one", "plan": get_plan().to_dict()}
)
"""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")


def start_changing(start: Starter, preload: str, *args: str, **environ: str) -> Server:
    """Start an app that the test can edit, with two workers, and wait for both."""
    (start.folder / "changing.py").write_text(MODULE)
    command = serve_prod("--workers", "2", *args, server="gunicorn", app="changing")
    server = start(command, None, NOW_LMS_PRELOAD=preload, **PATH, **environ)
    server.wait_for_line("Booting worker", count=2)
    return server


def edit(server: Server, old: str, new: str) -> None:
    path = server.folder / "changing.py"
    path.write_text(path.read_text().replace(old, new))


def hang_up(server: Server) -> None:
    """Send HUP, and wait until new workers have replaced the old ones."""
    old = server.booted_pids
    server.signal(signal.SIGHUP)
    server.wait_for_line("Booting worker", count=len(old) + 2)
    await_that(lambda: not any(map(psutil.pid_exists, old)), "the old workers are gone")


def loaded(server: Server) -> list[int]:
    return [int(line) for line in (server.folder / "loaded.txt").read_text().split()]


def ask_both(server: Server) -> list[dict[str, object]]:
    """Return what each of two workers says."""
    seen: dict[int, dict[str, object]] = {}

    def both() -> bool:
        facts = server.get("/").json()
        seen[facts["pid"]] = facts
        return len(seen) == 2

    await_that(both, "both workers answer")
    return list(seen.values())


def test_without_preload_each_worker_loads_the_app_itself(start: Starter) -> None:
    """The launcher loads it once, to find the command, and makes way for a fresh process."""
    server = start_changing(start, "off")
    await_that(lambda: len(loaded(server)) == 3, "three loads")
    assert loaded(server)[0] == server.pid
    assert sorted(loaded(server)[1:]) == sorted(server.booted_pids)
    assert sorted(map(int, (server.folder / "hook.txt").read_text().split())) == sorted(
        server.booted_pids
    )
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_without_preload_hup_loads_new_code_under_the_same_plan(start: Starter) -> None:
    server = start_changing(start, "off", LMS_PORT="tcp://10.0.0.1:80")
    first = ask_both(server)
    edit(server, '"one"', '"number two"')
    hang_up(server)
    second = ask_both(server)
    assert {facts["version"] for facts in first} == {"one"}
    assert {facts["version"] for facts in second} == {"number two"}
    for facts in (*first, *second):
        assert facts["plan"] == first[0]["plan"]
    assert server.get("/_health/capacity").json()["workers"] == 2
    assert server.stderr.count("enableServiceLinks") == 1
    assert server.stderr.count("gunicorn: 2 workers") == 1
    assert "HUP starts new workers" not in server.stderr
    assert server.stop() == 0


def test_with_preload_hup_says_in_one_line_that_it_loads_no_new_code(start: Starter) -> None:
    server = start_changing(start, "on")
    edit(server, '"one"', '"number two"')
    hang_up(server)
    assert {facts["version"] for facts in ask_both(server)} == {"one"}
    lines = [line for line in server.stderr.splitlines() if "NOW_LMS_PRELOAD" in line]
    assert len(lines) == 1
    assert "To load new code, restart" in lines[0]
    assert loaded(server) == [server.pid]
    assert server.stop() == 0


def test_secrets_are_neither_in_the_environment_nor_in_the_arguments(start: Starter) -> None:
    """They are handed to the fresh process all the same: the token opens the details."""
    server = start_changing(start, "off")
    for member in server.members():
        for name in ("environ", "cmdline"):
            assert TOKEN.encode() not in Path(f"/proc/{member.pid}/{name}").read_bytes()
    assert TOKEN not in server.stderr
    opened = server.get("/_health/capacity", [("Authorization", f"Bearer {TOKEN}")]).json()
    assert opened.keys() > server.get("/_health/capacity").json().keys()


def test_usr2_is_refused_with_one_line_and_starts_no_second_master(start: Starter) -> None:
    server = start_changing(start, "on")
    before = {member.pid for member in server.members()}
    server.signal(signal.SIGUSR2)
    server.wait_for_line("USR2 ignored")
    workers = before - {server.pid, server.monitor.pid}
    assert {facts["pid"] for facts in ask_both(server)} == workers
    assert {member.pid for member in server.members()} == before
    assert len(re.findall("USR2 ignored", server.stderr)) == 1
    assert server.stop() == 0


def test_hup_does_not_end_waitress_and_one_line_says_what_does(start: Starter) -> None:
    server = start(serve_prod(server="waitress"))
    server.signal(signal.SIGHUP)
    server.wait_for_line("HUP ignored")
    assert server.get().status == 200
    assert server.stop() == 0


@pytest.mark.parametrize("preload", ["on", "off"])
def test_gunicorn_conf_in_the_folder_is_not_read_and_one_line_says_so(
    start: Starter, preload: str
) -> None:
    (start.folder / "gunicorn.conf.py").write_text("open('was-read', 'w')\nworkers = 5\n")
    server = start_changing(start, preload)
    lines = [line for line in server.stderr.splitlines() if "gunicorn.conf.py" in line]
    assert len(lines) == 1
    assert "WORKERSIZE_GUNICORN_OPTIONS" in lines[0]
    assert not (server.folder / "was-read").exists()
    assert len(server.booted_pids) == 2


def test_object_that_cannot_be_handed_over_is_refused_in_one_line(start: Starter) -> None:
    command = serve_prod(server="gunicorn", app="hooked:create_app")
    line = start.run(command, None, NOW_LMS_PRELOAD="off").assert_one_line_error(2)
    assert "WORKERSIZE_GUNICORN_OPTIONS" in line
    assert "module.name" in line


def test_serve_of_a_loaded_app_is_refused_in_one_line(start: Starter) -> None:
    done = start.run(script(APPS / "run_app.py", "gunicorn"), None, NOW_LMS_PRELOAD="off")
    line = done.assert_one_line_error(2)
    assert "NOW_LMS_PRELOAD" in line
    assert "flask --app" in line


def test_preload_does_not_concern_waitress(start: Starter) -> None:
    server = start(serve_prod(server="waitress"), None, NOW_LMS_PRELOAD="off")
    assert server.get("/").json()["pid"] == server.pid


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{busy}", "it is in use"),
        ("192.0.2.1:0", "this machine has no such address"),
        ("unix:nowhere/lms.sock", "No such file or directory"),
    ],
)
def test_start_without_preload_that_fails_is_one_line(
    start: Starter, address: str, reason: str
) -> None:
    """The fresh process says it as the command does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = address.format(busy=listener.getsockname()[1])
        command = serve_prod("--bind", address, server="gunicorn")
        line = start.run(command, None, NOW_LMS_PRELOAD="off").assert_one_line_error(1)
    assert f"Cannot listen on {address}: {reason}" in line


def test_more_than_a_pipe_takes_is_handed_over(start: Starter) -> None:
    """A pipe that nobody reads yet takes 64 kB, and the launcher would wait for ever."""
    big = MODULE.replace('"keepalive": 7', '"raw_env": ["BIG=" + 200_000 * "x"]')
    assert big != MODULE
    (start.folder / "changing.py").write_text(big)
    server = start(serve_prod(server="gunicorn", app="changing"), NOW_LMS_PRELOAD="off", **PATH)
    assert server.get("/").status == 200
    assert server.stop() == 0


BROKEN = "raise RuntimeError('it does not load')\n"


@pytest.mark.parametrize(("server", "preload"), [("waitress", "on"), ("gunicorn", "off")])
def test_app_that_fails_to_import_at_the_start_ends_the_command_with_its_traceback(
    start: Starter, server: str, preload: str
) -> None:
    (start.folder / "changing.py").write_text(BROKEN)
    command = serve_prod(server=server, app="changing")
    done = start.run(command, None, NOW_LMS_PRELOAD=preload, **PATH)
    assert done.status != 0
    assert "it does not load" in done.stderr


def test_app_that_fails_to_import_after_hup_ends_the_server_with_status_3(start: Starter) -> None:
    """Gunicorn takes it for a worker that will never boot; a service manager starts it anew."""
    server = start_changing(start, "off")
    (server.folder / "changing.py").write_text(BROKEN)
    server.signal(signal.SIGHUP)
    assert server.wait() == 3
    assert "it does not load" in server.stderr
    assert "Worker failed to boot" in server.stderr
    await_that(lambda: server.members() == [], "all are gone")


@contextmanager
def listening() -> Iterator[str]:
    """Listen, and return the port; nothing is accepted."""
    with socket.create_server(("127.0.0.1", 0)) as peer:
        yield str(peer.getsockname()[1])


def lines_of_left_overs(server: Server) -> list[str]:
    return [
        line for line in server.await_ready().stderr.splitlines() if "not survive a fork" in line
    ]


@pytest.mark.parametrize("launcher", ["serve-prod", "gunicorn_conf"])
def test_threads_and_connections_that_preloading_left_are_one_warning(
    start: Starter, launcher: str
) -> None:
    command = (
        serve_prod(server="gunicorn", app="left_over:create_app")
        if launcher == "serve-prod"
        else gunicorn("-c", CONF, app="left_over:create_app()")
    )
    environ = {"NOW_LMS_WORKERS": "2", "NOW_LMS_HEALTH_PORT": "0"}
    with listening() as port:
        server = start(command, None, LEFT_OVER_PORT=port, **environ)
        (line,) = lines_of_left_overs(server)
    assert 'no worker has the threads "mailer in threading.Event.wait"' in line
    assert f'share the connections to "127.0.0.1:{port}" and' in line
    assert "NOW_LMS_PRELOAD=off" in line


@pytest.mark.parametrize(
    ("app", "preload"), [("left_over:create_app(True)", "on"), ("left_over:create_app", "off")]
)
def test_what_each_worker_has_of_its_own_is_no_warning(
    start: Starter, app: str, preload: str
) -> None:
    environ = {"NOW_LMS_WORKERS": "2", "NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_PRELOAD": preload}
    with listening() as port:
        server = start(serve_prod(server="gunicorn", app=app), None, LEFT_OVER_PORT=port, **environ)
        assert lines_of_left_overs(server) == []
