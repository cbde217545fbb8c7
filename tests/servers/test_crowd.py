"""More clients than there is room for."""

from __future__ import annotations

import logging
import os

import pytest

from flask_workersize.servers.crowd import MOST_CONNECTIONS, Quiet, connection_limit, quiet_waitress
from tests.children import Children, status_of
from tests.runtime.workers import forks


@forks
@pytest.mark.parametrize("files", [0, 30])
def test_connection_limit_follows_the_descriptors_that_are_free(
    children: Children, files: int
) -> None:
    resource = pytest.importorskip("resource")

    def check() -> None:
        used = len(os.listdir("/dev/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, used + 100))
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(files)]
        limit = connection_limit(descriptors_each=1)
        assert 100 - files - 30 < limit < 100 - files
        assert connection_limit(descriptors_each=3) == limit // 3
        opened += [os.open(os.devnull, os.O_RDONLY) for _ in range(95 - files)]
        assert connection_limit(descriptors_each=1) > 1

    assert status_of(children(check)) == 0
    assert connection_limit(descriptors_each=1) <= MOST_CONNECTIONS


def test_line_that_clients_cause_is_logged_once_and_every_other_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet_waitress()
    quiet_waitress()
    waitress, queue = logging.getLogger("waitress"), logging.getLogger("waitress.queue")
    for depth in range(100):
        waitress.warning("server accept() threw an exception", exc_info=True)
        waitress.warning("total open connections reached the connection limit, and so on")
        queue.warning("Task queue depth is %d", depth)
        waitress.error("Exception while serving /broken")
    assert caplog.messages.count("Exception while serving /broken") == 100
    assert len(caplog.messages) == 103


def test_line_is_allowed_again_after_a_while() -> None:
    now = [0.0]
    quiet = Quiet(lambda: now[0])
    assert [quiet.allows("full"), quiet.allows("full"), quiet.allows("other")] == [
        True,
        False,
        True,
    ]
    now[0] = 61.0
    assert quiet.allows("full")
