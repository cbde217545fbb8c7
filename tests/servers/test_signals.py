"""Signals reach a server whatever its app has done to them, and whoever reads its log."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.servers.clients import PATH
from tests.servers.serving import (
    CONF,
    DEADLINE_SECONDS,
    Starter,
    ask,
    await_that,
    clean_environ,
    connect,
    gunicorn,
    serve_prod,
)

SILENCED = "silenced:create_app"
THREADS = ["--threads", "2"]
HURRIED = {"HURRIED": "1", "NOW_LMS_GRACEFUL_TIMEOUT": "1"}
HUPS = 300
SOON_SECONDS = 20
"""Far less than the graceful timeout, far more than a stop takes on a busy machine."""


@contextmanager
def piped(
    folder: Path, *args: str, **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a server with a pipe as its standard error; yield it and its address."""
    process = subprocess.Popen(
        serve_prod(*args, app=SILENCED),
        cwd=folder,
        env=clean_environ({**PATH, **environ}),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process, read_until(process, rb"(?:Serving on|Listening at:) (\S+)")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_until(process: subprocess.Popen[bytes], pattern: bytes) -> str:
    """Read standard error until a pattern stands there; return its group."""
    assert process.stderr is not None
    read, deadline = b"", time.monotonic() + DEADLINE_SECONDS
    while not (match := re.search(pattern + rb"\s", read)):
        assert time.monotonic() < deadline, read
        if select.select([process.stderr], [], [], 1)[0]:
            chunk = os.read(process.stderr.fileno(), 65536)
            assert chunk, read
            read += chunk
    return match[1].decode()


def is_group(number: int) -> bool:
    """Return whether any process of a group is there."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def answer(url: str, path: str) -> int:
    """Return the status of the answer to one request."""
    connection = connect(url, SOON_SECONDS)
    try:
        return ask(connection, path).status
    finally:
        connection.close()


@pytest.mark.parametrize("logged", ["", "1"], ids=["unconfigured", "logging"])
def test_hups_and_a_stop_under_a_log_that_nobody_reads(tmp_path: Path, logged: str) -> None:
    """HUPs end nothing and hold nothing, and the stop behind them begins at once."""
    with piped(tmp_path, *THREADS, LOGGED=logged) as (process, url):
        assert answer(url, "/fill") == 200
        for _ in range(HUPS):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.001)
        assert answer(url, "/") == 200
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_SECONDS) == 0


def test_requests_that_wait_for_the_reader_do_not_hold_the_stop(tmp_path: Path) -> None:
    """The graceful timeout is a bound, whatever the loop itself would log."""
    with ExitStack() as stack, piped(tmp_path, *THREADS, LOGGED="1", **HURRIED) as (process, url):
        assert answer(url, "/fill") == 200
        for _ in range(4):
            connection = stack.enter_context(closing(connect(url)))
            connection.request("GET", "/log")
            # The loop itself may log the others, and wait for the reader, too.
            await_that((tmp_path / "log.here").exists, "the first request")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_SECONDS) == 0


def test_full_log_does_not_hold_gunicorns_stop(tmp_path: Path) -> None:
    """It logs the signal before it stops, and each worker logs its end."""
    with piped(tmp_path, "--wsgi-server", "gunicorn", "--workers", "1", **HURRIED) as (
        process,
        url,
    ):
        assert answer(url, "/fill") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_SECONDS) == 0
        await_that(lambda: not is_group(process.pid), "the end of its worker and its monitor")


def test_threads_of_ours_take_no_signal_that_the_app_waits_for(start: Starter) -> None:
    """It blocks it when a worker loads it, and a thread that does not would end the worker."""
    environ = {**PATH, "WAITS": "1", "NOW_LMS_PRELOAD": "off"}
    server = start(gunicorn("-c", CONF, "--workers", "1", app=f"{SILENCED}()"), **environ)
    pid = server.get("/").json()["pid"]
    os.kill(pid, signal.SIGUSR2)
    await_that((server.folder / "usr2.here").exists, "the signal")
    assert server.get("/").json()["pid"] == pid


def test_blocked_signals_are_heard_and_hup_is_logged(start: Starter) -> None:
    server = start(serve_prod(*THREADS, app=SILENCED), **PATH, BLOCKED="1")
    server.signal(signal.SIGHUP)
    server.wait_for_line("HUP ignored")
    server.signal(signal.SIGTERM)
    assert server.process.wait(SOON_SECONDS) == 0
