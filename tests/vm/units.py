"""Under a real systemd, as units are run: another user, hardened, watched, restarted under load.

Not collected here: ``tests/vm/test_machine.py`` runs it in a machine of its own.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.servers.clients import APPS_STOP, load
from tests.servers.serving import ask, await_that

RUN = Path("/run/systemd/system")
PORT, HEALTH_PORT = 8080, 8081
SLOWLY = 90
"""Seconds; Python is about ten times slower in this machine."""

HARDENED = """
DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectProc=invisible
ProcSubset=pid
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallFilter=@system-service
SystemCallFilter=~@resources @privileged
SystemCallArchitectures=native
CapabilityBoundingSet=
UMask=0077
"""
USER = "User=daemon\n"

KINDS = {
    "sync": "--wsgi-server gunicorn --workers 3",
    "gthread": "--wsgi-server gunicorn --workers 2 --threads 2",
    "waitress": "--wsgi-server waitress --threads 4",
}


def systemctl(*args: str) -> str:
    """Run systemctl, and return what it prints."""
    done = subprocess.run(["systemctl", *args], capture_output=True, text=True, check=False)
    return done.stdout.strip() + done.stderr.strip()


class Unit:
    """A service of serve-prod."""

    name = "lms.service"

    def __init__(self, args: str, service: str, app: str, has_socket: bool) -> None:
        app_name = f"{app}:create_app"
        requires = "Requires=lms.socket\n" if has_socket else ""
        self.write(
            self.name,
            f"""[Unit]
{requires}
[Service]
Type=notify
NotifyAccess=main
WorkingDirectory={APPS_STOP}
Environment=NOW_LMS_HEALTH_PORT={HEALTH_PORT} NOW_LMS_HEALTH_HOST=127.0.0.1
Environment=PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={Path(__file__).parents[2]}
ExecStart={sys.executable} -m flask --app {app_name} serve-prod {args} --port {PORT}
Restart=on-failure
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=60
{service}
""",
        )
        if has_socket:
            self.write("lms.socket", f"[Socket]\nListenStream=127.0.0.1:{PORT}\n")
        systemctl("daemon-reload")
        assert systemctl("start", self.name) == "", self.log()
        await_that(self.is_ready, "ready", SLOWLY)

    @staticmethod
    def write(name: str, text: str) -> None:
        RUN.mkdir(exist_ok=True)
        (RUN / name).write_text(text)

    def show(self, name: str) -> str:
        return systemctl("show", "-P", name, self.name)

    def log(self) -> str:
        run = f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}"
        command = ["journalctl", "-q", run, "-o", "cat", "--no-pager"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def connect(self, port: int = PORT) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=SLOWLY)

    def probe(self, path: str) -> int:
        with suppress(OSError):
            return ask(self.connect(HEALTH_PORT), path).status
        return 0

    def is_ready(self) -> bool:
        return self.probe("/ready") == 200

    def is_live(self) -> bool:
        return self.probe("/live") == 200


@pytest.fixture
def unit(request: pytest.FixtureRequest) -> Iterator[Callable[..., Unit]]:
    """Start a unit, and remove it afterwards."""
    systemctl("stop", "lms.service", "lms.socket")
    made: list[Unit] = []

    def start(kind: str, service: str, app: str = "slow", has_socket: bool = False) -> Unit:
        made.append(Unit(KINDS[kind], service, app, has_socket))
        return made[-1]

    yield start
    for item in made:
        print(item.log())
    systemctl("stop", "lms.service", "lms.socket")
    systemctl("reset-failed")
    for file in RUN.glob("lms.*"):
        file.unlink()


@pytest.mark.parametrize("service", [USER, HARDENED], ids=["User=", "hardened"])
@pytest.mark.parametrize("kind", KINDS)
def test_stop_under_load_loses_nothing(unit: Callable[..., Unit], kind: str, service: str) -> None:
    server = unit(kind, service)
    assert server.show("MainPID") != "0"
    assert Path(f"/proc/{server.show('MainPID')}").stat().st_uid != 0
    with load(server, [False, True] * 4) as clients:  # type: ignore[arg-type]
        await_that(lambda: clients.answered >= 40, "load", SLOWLY)
        assert systemctl("stop", server.name) == ""
    assert clients.lost == []
    assert clients.turned_away == 8
    assert (server.show("Result"), server.show("ExecMainStatus")) == ("success", "0")


def test_restart_with_a_socket_of_systemd_turns_nobody_away(unit: Callable[..., Unit]) -> None:
    server = unit("sync", HARDENED, has_socket=True)
    answered, is_over = [0] * 4, threading.Event()

    def client(number: int) -> None:
        while not is_over.is_set():
            connection = server.connect()
            assert ask(connection, "/").status == 200
            connection.close()
            answered[number] += 1

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        await_that(lambda: sum(answered) >= 20, "load", SLOWLY)
        assert systemctl("restart", server.name) == ""
        before = sum(answered)
        await_that(lambda: sum(answered) > before + 20, "the next server answers", SLOWLY)
        is_over.set()
    assert [future.exception() for future in clients] == [None] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_hardened_unit_is_watched_and_guarded(unit: Callable[..., Unit], kind: str) -> None:
    """Its monitor lives, although it may not raise its priority, and its limit is found."""
    server = unit(kind, f"{HARDENED}\nMemoryMax=600M\n")
    assert server.is_live()
    report = ask(server.connect(HEALTH_PORT), "/ready").json()
    assert report["status"] == "pass", report
    log = server.log()
    assert "monitor" not in log, log
    assert re.search(r"\b[45]\d\d MB available", log), log


@pytest.mark.parametrize("kind", ["sync", "waitress"])
def test_watchdog_leaves_a_healthy_server_and_restarts_one_that_hangs(
    unit: Callable[..., Unit], kind: str
) -> None:
    server = unit(kind, f"{USER}WatchdogSec=8\n")
    pid = server.show("MainPID")
    before = server.show("WatchdogTimestampMonotonic")
    await_that(lambda: server.show("WatchdogTimestampMonotonic") != before, "WATCHDOG=1", SLOWLY)
    subprocess.run(["sleep", "20"], check=True)
    assert (server.show("MainPID"), server.show("NRestarts")) == (pid, "0")
    os.kill(int(pid), 19)
    await_that(lambda: server.show("NRestarts") == "1", "the watchdog restarts it", SLOWLY)
