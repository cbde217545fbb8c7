"""A worker without a master ends, whatever holds it."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from flask_workersize.servers.gunicorn import orphan
from tests.children import Children, Pipe, is_gone, kill
from tests.servers.serving import await_that

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks for the size of a pipe")


def test_worker_ends_although_it_ignores_that_and_nobody_reads_its_log(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LOOK_SECONDS", "TURN_SECONDS", "ORPHAN_SECONDS"):
        monkeypatch.setattr(orphan, name, 0.05)
    unread, full = os.pipe()
    os.write(full, b"x" * fcntl.fcntl(full, fcntl.F_GETPIPE_SZ))

    def master() -> None:
        pid = os.getpid()
        if not os.fork():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            logging.getLogger().handlers.clear()
            sys.stderr = os.fdopen(full, "w")
            orphan.watch_master(SimpleNamespace(ppid=pid, pid=os.getpid(), alive=True))
            pipe.tell(str(os.getpid()))
        time.sleep(60)

    with Pipe() as pipe:
        killed = children(master)
        worker = int(pipe.hear())
        kill(killed)
        await_that(lambda: is_gone(worker), "ended")
    os.close(unread)
    os.close(full)
