"""Waiting for files works for each number that a descriptor can have, and for any time."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from flask_workersize.runtime.polling import hung_up, wait_readable
from tests.children import Children, status_of

BEYOND_SELECT = 1024


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_what_can_be_read_is_returned_as_it_was_given(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    assert wait_readable([ours, theirs], 0) == []
    ours.sendall(b"x")
    assert wait_readable([ours, theirs], None) == [theirs]
    assert wait_readable([theirs.fileno()], 0) == [theirs.fileno()]


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells")
def test_connection_that_its_other_end_has_closed_or_half_closed_is_hung_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Also if there is still something to read."""
    ours, theirs = pair
    ours.sendall(b"x")
    assert hung_up([ours, theirs]) == []
    ours.shutdown(socket.SHUT_WR)
    assert hung_up([ours, theirs]) == [theirs]
    ours.close()
    assert hung_up([ours, theirs]) == [theirs]


def test_nobody_is_known_to_have_hung_up_where_the_system_does_not_tell(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "POLLRDHUP", raising=False)
    pair[0].close()
    assert hung_up(pair) == []


def test_end_of_the_other_side_counts_too() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    assert wait_readable([reader], None) == [reader]
    os.close(reader)


def test_time_may_be_longer_than_the_system_can_count(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    ours.sendall(b"x")
    assert wait_readable([theirs], 10 * 365 * 24 * 3600) == [theirs]


def test_system_without_poll_is_served_by_select(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "poll")
    ours, theirs = pair
    assert wait_readable([ours, theirs], 0) == []
    ours.sendall(b"x")
    assert wait_readable([ours, theirs], None) == [theirs]


def test_number_may_be_higher_than_select_takes(
    children: Children, pair: tuple[socket.socket, socket.socket]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= BEYOND_SELECT:
        pytest.skip("this process may not open so many files")
    ours, theirs = pair

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, BEYOND_SELECT + 1), hard))
        os.dup2(theirs.fileno(), BEYOND_SELECT)
        with closing(socket.socket(fileno=BEYOND_SELECT)) as high:
            assert wait_readable([high], 0) == []
            ours.sendall(b"x")
            assert wait_readable([high], None) == [high]

    assert status_of(children(work)) == 0
