"""Fixtures for tests that start real servers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.servers.clients import Clients
from tests.servers.serving import Server, Starter, starter

SERVERS = ["gunicorn", "waitress"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start servers in a folder of the test's own."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(params=SERVERS)
def name(request: pytest.FixtureRequest) -> str:
    """Run the test on each of the two servers."""
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["waitress", "sync", "gthread-2x2"])
def kind(request: pytest.FixtureRequest) -> str:
    """Run the test on each server and kind of worker, once."""
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["waitress", "gthread-2x2"])
def either(request: pytest.FixtureRequest) -> str:
    """Run the test on each server, where gunicorn's kinds of worker do not differ."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def connect() -> Iterator[Clients]:
    """Open connections, which are closed at the end."""
    with Clients() as clients:
        yield clients


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers of a failed test said."""
    report = yield
    if report.failed:
        for server in dict.fromkeys(_servers(item)):
            command = " ".join(server.command)
            report.sections.append((f"stderr of {command}", server.stderr))
            report.sections.append((f"stdout of {command}", server.stdout))
    return report


def _servers(item: pytest.Item) -> Iterator[Server]:
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Server):
            yield value
        elif isinstance(value, Starter):
            yield from value.servers
