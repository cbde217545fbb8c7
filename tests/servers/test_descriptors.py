"""A process that holds more files than select(2) can watch serves and stops as any other."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

import pytest

from tests.servers.clients import PATH, SERVER_ARGS, SLOW, Clients, receive, send
from tests.servers.serving import CONF, Starter, await_that, gunicorn, serve_prod

NEEDED = 8192
"""1,200 files at the load, and as many for each of four requests that one process runs."""

FILES = {"SLOW_FILES": "1", "NOW_LMS_HEALTH_PORT": "0", **PATH}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters listeners as Linux can")


@pytest.fixture(autouse=True)
def _may_open_many() -> Iterator[None]:
    """Let the servers open so many files, if the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < NEEDED:
        pytest.skip("this user may not open so many files")
    if soft == resource.RLIM_INFINITY or soft >= NEEDED:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (NEEDED, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_app_that_holds_many_files_loses_no_request(
    start: Starter, connect: Clients, kind: str
) -> None:
    """It opens them when it is loaded, so that the listeners get high numbers, and in requests."""
    server = start(serve_prod(*SERVER_ARGS[kind], app=SLOW), None, **FILES).await_ready()
    clients = [connect(server) for _ in range(8)]
    for number, client in enumerate(clients):
        send(client, f"/hold?name={number}")
    await_that(lambda: len(list(server.folder.glob("*.here"))) == 4, "four requests running")
    server.process.terminate()
    for number in range(8):
        (server.folder / f"{number}.go").touch()
    assert [receive(client).status for client in clients] == [200] * 8
    assert server.wait() == 0
    assert "Traceback" not in server.stderr
    if kind != "waitress":
        assert len(server.booted_pids) == int(SERVER_ARGS[kind][3]), "no worker had to be replaced"


@pytest.mark.parametrize(
    ("threads", "preload", "count"), [(1, "on", 1), (1, "off", 0), (2, "on", 0)]
)
def test_gunicorn_itself_is_warned_of_once_where_its_workers_would_crash(
    start: Starter, threads: int, preload: str, count: int
) -> None:
    """Its sync workers wait by select(2), for listeners that were opened after the app's files."""
    size = ("--workers", "2", "--threads", str(threads))
    server = start.launch(
        gunicorn("-c", CONF, *size, app=f"{SLOW}()"), None, NOW_LMS_PRELOAD=preload, **FILES
    )
    server.wait_until_listening()
    server.wait_for_line("Booting worker", count=4 if count else 2)
    if not count:
        assert server.await_ready().get("/").status == 200
    lines = [line for line in server.stderr.splitlines() if "descriptors above 1,023" in line]
    assert len(lines) == count
    assert ("filedescriptor out of range in select" in server.stderr) == bool(count)
