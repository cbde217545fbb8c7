"""``user`` and ``group`` of gunicorn hold for everything that parses a request."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers.clients import PATH, SLOW
from tests.servers.serving import Server, Starter, await_that, serve_prod

NOBODY = pwd.getpwnam("nobody")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may change the user"
)


def others_may_read(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


@pytest.fixture(params=[("1", "on"), ("2", "on"), ("1", "off")], ids=["sync", "gthread", "loads"])
def server(start: Starter, request: pytest.FixtureRequest) -> Server:
    """Start a server on a unix socket whose workers are nobody's."""
    threads, preload = request.param
    if preload == "off" and not others_may_read(Path(sys.base_prefix)):
        pytest.skip(f"nobody may not read {sys.base_prefix}, so its worker can load no app")
    options: dict[str, Any] = {"user": "nobody", "group": NOBODY.pw_gid, "umask": 0o027}
    # The folders of pytest are root's alone.
    for folder in (start.folder, *start.folder.parents):
        if stat.S_IMODE(folder.stat().st_mode) == 0o700:
            folder.chmod(0o711)
    start.folder.chmod(0o777)
    command = serve_prod(
        "--workers", "2", "--threads", threads, "--bind", "unix:nobody.sock", server="gunicorn",
        app=SLOW,
    )  # fmt: skip
    config = {"WORKERSIZE_GUNICORN_OPTIONS": options}
    server = start(command, config, NOW_LMS_PRELOAD=preload, **PATH)
    server.wait_for_line("Booting worker", count=2)
    assert server.get("/").status == 200
    return server


def test_every_process_but_the_master_is_the_users(server: Server) -> None:
    """The master parses no request: it needs its rights to open logs and addresses."""
    facts = server.get("/").json()
    assert (facts["uid"], facts["gid"]) == (NOBODY.pw_uid, NOBODY.pw_gid)
    others = [member for member in server.members() if member.pid != server.pid]
    monitor = server.monitor
    assert {other.pid for other in others} == {monitor.pid, *server.booted_pids}
    assert len(others) == 3
    # A worker says that it boots while it is still root; it parses nothing before it is not.
    await_that(lambda: all(other.uids().real for other in others), "processes of the user")
    for member in others:
        assert set(member.uids()) == {NOBODY.pw_uid}
        assert set(member.gids()) == {NOBODY.pw_gid}
    assert psutil.Process(server.pid).uids().real == 0


def test_worker_that_replaces_another_is_the_users_too(server: Server) -> None:
    psutil.Process(server.booted_pids[0]).kill()
    server.wait_for_line("Booting worker", count=3)
    assert server.get("/").json()["uid"] == NOBODY.pw_uid
    assert server.stop() == 0


def test_file_of_the_socket_is_the_users_and_is_removed(server: Server) -> None:
    path = server.folder / "nobody.sock"
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert stat.S_IMODE(found.st_mode) == 0o750
    assert server.stop() == 0
    assert not path.exists()
