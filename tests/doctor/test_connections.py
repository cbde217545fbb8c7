"""Connections that are open after loading the app, and Flask-SocketIO."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from flask_workersize.doctor.connections import shared_by_workers
from flask_workersize.doctor.finding import Finding
from flask_workersize.doctor.socketio import needs_one_worker
from flask_workersize.runtime.fork import worker_forked
from flask_workersize.runtime.inherited import connections
from tests.children import Children, Pipe
from tests.doctor.cases import case, levels, sized

pytestmark = pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="lists /dev/fd")


class Peer:
    """A listener in another process, and connections to it."""

    def __init__(self, family: int, address: str, children: Children) -> None:
        self._stack = ExitStack()
        self._family = family
        with Pipe() as pipe, socket.socket(family) as listener:
            listener.bind(address if family == socket.AF_UNIX else (address, 0))
            listener.listen()
            self.address = listener.getsockname()
            # It holds the other ends until it is killed.
            children(lambda: [*iter(listener.accept, None)])
            del pipe
        if family == socket.AF_UNIX:
            self.name = str(self.address)
        else:
            host, port = self.address[:2]
            self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def connect(self) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(self._family))
        sock.connect(self.address)
        return sock

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=lambda one: one.name)
def peer(request: pytest.FixtureRequest, tmp_path: Path, children: Children) -> Iterator[Peer]:
    """Return a peer of each family."""
    addresses = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
    try:
        peer = Peer(request.param, addresses.get(request.param, f"{tmp_path}/s"), children)
    except OSError as error:
        pytest.skip(f"no {request.param.name} here: {error}")
    yield peer
    peer.close()


def found(app: Flask, preload: bool = True) -> list[Finding]:
    """Return what is found beside sockets that the test's own process has."""
    return [each for each in shared_by_workers(case(app, preload)) if each.level != "unseen"]


def test_connection_that_is_open_before_the_fork_is_shared(peer: Peer) -> None:
    peer.connect()
    (finding,) = found(sized())
    assert levels(shared_by_workers, case(sized())) == ["breaks"]
    assert f'"{peer.name}"' in finding.what
    assert "worker_forked" in finding.remedy
    assert found(sized(), preload=False) == []


def test_connection_that_a_worker_replaces_or_closes_is_no_finding(peer: Peer) -> None:
    app, first = sized(), peer.connect()

    def close(_: Flask) -> None:
        first.close()

    def replace(_: Flask) -> None:
        peer.connect()

    for receiver in (close, replace):
        with worker_forked.connected_to(receiver, sender=app):
            assert found(app) == []


def test_standard_streams_and_pairs_with_both_ends_here_are_no_connections(
    peer: Peer, children: Children
) -> None:
    before = connections()
    with ExitStack() as stack:
        for end in socket.socketpair():
            stack.enter_context(end)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        stack.enter_context(listener.accept()[0])
        assert connections() == before
        # As a service manager starts a server.
        stream, kept = peer.connect(), os.dup(0)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 0)
        os.dup2(stream.fileno(), 0)
        stack.callback(os.close, os.dup(0))
        assert connections() == before


def test_pair_whose_other_end_is_in_another_process_is_a_connection(children: Children) -> None:
    before = connections()
    here, there = socket.socketpair()
    with here, there, Pipe() as pipe:

        def serve() -> None:
            here.close()
            pipe.tell("here")
            there.recv(1)

        children(serve)
        assert pipe.hear() == "here"
        there.close()
        (name,) = connections().keys() - before.keys()
        assert name[0] == here.fileno()


def test_idle_connections_of_sqlalchemy_are_no_finding_here(peer: Peer) -> None:
    """Those of Flask-SQLAlchemy are renewed, and others have a finding of their own."""

    class Driver(sqlite3.Connection):
        """A connection to a database, with a socket as those to a server have."""

        def __init__(self) -> None:
            super().__init__(":memory:")
            self._sock = peer.connect()

        def close(self) -> None:
            self._sock.close()
            super().close()

    options = {"creator": Driver, "poolclass": QueuePool}
    app = sized(SQLALCHEMY_DATABASE_URI="sqlite://", SQLALCHEMY_ENGINE_OPTIONS=options)
    database = SQLAlchemy(app)
    own = create_engine("sqlite://", creator=Driver, poolclass=QueuePool)
    with app.app_context():
        for engine in (database.engine, own):
            engine.pool.connect().close()
        assert len(found(app)) == 0


def test_socket_io_needs_one_worker() -> None:
    app = sized()
    assert list(needs_one_worker(case(app))) == []
    app.extensions["socketio"] = object()
    (finding,) = needs_one_worker(case(app))
    assert levels(needs_one_worker, case(app)) == ["breaks"]
    assert "polling" in finding.what
    assert "websockets" in finding.what
