"""What happens when something around the server fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from tests.servers.clients import PATH, SERVER_ARGS, SLOW, Clients, receive, send
from tests.servers.serving import Server, Starter, await_that, serve_prod

THREADED = ["sync", "gthread-2x2"]


def start_slow(start: Starter, kind: str, **environ: str) -> Server:
    return start(serve_prod(*SERVER_ARGS[kind], app=SLOW), None, **PATH, **environ)


def hold(server: Server, client: socket.socket, name: str) -> None:
    """Have a request running."""
    send(client, f"/hold?name={name}")
    path = server.folder / f"{name}.here"
    await_that(lambda: path.exists() and path.read_text() != "", f"{name} runs")


@pytest.mark.parametrize("slots", THREADED)
def test_worker_that_is_killed_is_replaced_and_the_others_go_on(
    start: Starter, connect: Clients, slots: str
) -> None:
    """Only the requests that ran in it are lost; the exit status stays 0."""
    server = start_slow(start, slots)
    server.wait_for_line("Booting worker", count=4 if slots == "sync" else 2)
    lost, running = connect(server), connect(server)
    hold(server, lost, "lost")
    hold(server, running, "running")
    victim = int((server.folder / "lost.here").read_text())
    started = len(server.booted_pids)
    psutil.Process(victim).kill()
    server.wait_for_line(f"Worker \\(pid:{victim}\\) was sent SIGKILL! Perhaps out of memory?")
    server.wait_for_line("Booting worker", count=started + 1)
    assert is_cut(lost)
    (server.folder / "running.go").touch()
    if (server.folder / "running.here").read_text() != str(victim):
        assert receive(running).status == 200
    assert server.get("/").json()["pid"] != victim
    assert server.stop() == 0


def is_cut(client: socket.socket) -> bool:
    """Return whether a connection was ended; what it received otherwise stays to be read."""
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except ConnectionError:
        return True


def test_sync_worker_that_exceeds_the_timeout_is_ended_and_replaced(
    start: Starter, connect: Clients
) -> None:
    server = start_slow(start, "sync", NOW_LMS_TIMEOUT="2")
    server.wait_for_line("Booting worker", count=4)
    late = connect(server)
    send(late, "/sleep?seconds=25&name=late")
    server.wait_for_line("WORKER TIMEOUT")
    server.wait_for_line("Booting worker", count=5)
    assert is_cut(late) or receive(late).status == 500
    assert server.get("/").status == 200
    assert server.stop() == 0


@pytest.mark.parametrize("slots", ["waitress", "gthread-1x4"])
def test_threaded_request_is_not_ended_by_the_timeout(
    start: Starter, connect: Clients, slots: str
) -> None:
    """A thread cannot be ended; gunicorn watches the worker's loop, waitress idle connections."""
    server = start_slow(start, slots, NOW_LMS_TIMEOUT="2")
    late = connect(server)
    send(late, "/sleep?seconds=4&name=late")
    assert receive(late).status == 200
    assert "WORKER TIMEOUT" not in server.stderr
    assert server.stop() == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_for_logs_is_no_reason_not_to_serve_or_to_lose(
    start: Starter, connect: Clients, either: str
) -> None:
    """Nothing can be logged, everything is answered, and the exit status is 0."""
    port = free_port()
    command = serve_prod(*SERVER_ARGS[either], "--port", str(port), app=SLOW)
    shell = ["sh", "-c", 'exec "$@" >/dev/full 2>/dev/full', "sh", *command]
    server = start.launch(shell, None, **PATH)
    url = f"http://127.0.0.1:{port}"
    await_that(lambda: is_listening(port), "listening")
    for _ in range(5):
        assert server.get("/", url=url).status == 200
    running = connect(server, url)
    hold(server, running, "running")
    server.process.terminate()
    (server.folder / "running.go").touch()
    assert receive(running).status == 200
    assert server.wait() == 0


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def read_only(command: list[str], *writable: str) -> list[str]:
    """Return a command line that runs under a file system where only some folders are writable."""
    keep = " && ".join(f"mount --bind {folder} {folder}" for folder in writable) or "true"
    script = f'{keep} && mount -o remount,bind,ro / && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


def can_mount_read_only() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    command = read_only(["sh", "-c", "! touch /read-only-test 2>/dev/null"])
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


UPLOAD_BYTES = 1024 * 1024
"""More than waitress keeps in memory, and than a form is parsed in."""


@pytest.mark.skipif(not can_mount_read_only(), reason="this user may not mount read-only")
def test_read_only_file_system_is_enough(start: Starter, either: str) -> None:
    """As in a container with ``--read-only``, which has /dev/shm: heartbeats and uploads go there.

    waitress reset uploads above 512 KiB, and under gunicorn such a form got status 500.
    """
    command = read_only(serve_prod(*SERVER_ARGS[either], app=SLOW))
    server = start(command, None, PYTHONDONTWRITEBYTECODE="1", **PATH)
    assert server.get("/").status == 200
    connection = server.connect()
    headers = {"Content-Type": "multipart/form-data; boundary=end"}
    connection.request("POST", "/form", form(b"x" * UPLOAD_BYTES), headers)
    assert json.load(connection.getresponse()) == {"received": UPLOAD_BYTES}
    connection.close()
    assert len(re.findall("large uploads go to /dev/shm", server.stderr)) == 1
    assert "Traceback" not in server.stderr
    assert server.stop() == 0


def form(content: bytes) -> bytes:
    """Return a form that uploads one file, with ``end`` as its boundary."""
    head = b'--end\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return head + content + b"\r\n--end--\r\n"


@pytest.mark.skipif(not can_mount_read_only(), reason="this user may not mount read-only")
@pytest.mark.parametrize(
    ("kind", "preload", "purpose"),
    [
        ("sync", "on", "heartbeats"),
        ("sync", "off", "heartbeats"),
        ("waitress", "on", "uploads above 512 KiB"),
    ],
)
def test_no_folder_for_temporary_files_is_one_line(
    start: Starter, kind: str, preload: str, purpose: str
) -> None:
    """Where /dev/shm is not writable either; nothing is started, and nothing listens."""
    script = 'mount -o ro -t tmpfs none /dev/shm && mount -o remount,bind,ro / && exec "$@"'
    command = serve_prod(*SERVER_ARGS[kind], app=SLOW)
    done = start.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        None,
        PYTHONDONTWRITEBYTECODE="1",
        NOW_LMS_PRELOAD=preload,
        **PATH,
    )
    assert f"needs a writable folder for {purpose}" in done.assert_one_line_error(1)


@pytest.mark.parametrize(
    ("args", "culprit", "preload"),
    [
        ("--certfile /nonexistent.pem --keyfile /n", "/nonexistent.pem", "on"),
        ("--certfile /nonexistent.pem --keyfile /n", "/nonexistent.pem", "off"),
        ("--log-config /nonexistent.ini", "/nonexistent.ini", "on"),
        ("--access-logfile /nonexistent/e.log", "/nonexistent/e.log", "off"),
        ("--error-logfile /nonexistent/e.log", "/nonexistent/e.log", "on"),
        ("--pid /nonexistent/p.pid", "/nonexistent", "off"),
        ("--worker-tmp-dir /nonexistent", "heartbeats", "on"),
        ("--worker-tmp-dir /nonexistent", "heartbeats", "off"),
        ("-e FOO", "raw_env", "on"),
        ("--logger-class nosuch.Logger", "nosuch.Logger", "off"),
    ],
)
def test_option_that_gunicorn_refuses_at_its_start_is_one_line(
    start: Starter, args: str, culprit: str, preload: str
) -> None:
    """Before it stand at most the line of the plan and gunicorn's own, which were right then."""
    done = start.run(
        serve_prod("--workers", "1", server="gunicorn"),
        GUNICORN_CMD_ARGS=args,
        NOW_LMS_PRELOAD=preload,
    )
    assert "Traceback" not in done.stdout + done.stderr
    *before, line = done.stderr.splitlines()
    assert re.fullmatch(r"Error: (?!Error).*[^ .:]\.", line), line
    assert culprit in line
    assert done.status in (1, 2)
    for other in before:
        assert other.startswith("gunicorn: 1 worker") or "Starting gunicorn" in other
