"""What the machine gives, from plain figures and from this machine."""

from __future__ import annotations

import dataclasses
import sys

import psutil
import pytest

from flask_workersize import HostFacts, Resources, detect_resources
from tests.plain import MB


def host(
    cpus: int = 8, affinity: int | None = None, total: int = 4096, available: int = 1024
) -> HostFacts:
    return HostFacts(cpus, affinity, total * MB, available * MB, "linux")


class NoFiles:
    """A machine without control groups."""

    def read_text(self, path: str) -> str:
        raise FileNotFoundError(path)

    def is_dir(self, path: str) -> bool:
        return False


def test_host_gives_all_it_has() -> None:
    assert detect_resources(host(), NoFiles()) == Resources(
        cpus=8.0,
        cpu_source="host",
        cpu_at=None,
        memory_limit=4096 * MB,
        memory_available=1024 * MB,
        memory_source="host",
        memory_at=None,
        notes=(),
    )


@pytest.mark.parametrize(
    ("affinity", "cpus", "source"),
    [(None, 8, "host"), (8, 8, "host"), (3, 3, "affinity"), (1, 1, "affinity"), (16, 8, "host")],
)
def test_affinity_counts_where_it_is_fewer(affinity: int | None, cpus: int, source: str) -> None:
    found = detect_resources(host(affinity=affinity), NoFiles())
    assert (found.cpus, found.cpu_source) == (cpus, source)


def test_available_memory_is_at_most_all_of_it() -> None:
    found = detect_resources(host(total=512, available=1024), NoFiles())
    assert found.memory_available == found.memory_limit == 512 * MB


def test_resources_and_host_facts_are_frozen() -> None:
    for frozen in (host(), detect_resources(host(), NoFiles())):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.cpus = 1  # type: ignore[misc]


def test_figures_of_this_machine_are_those_of_the_system() -> None:
    facts = HostFacts.read()
    assert facts.cpus == psutil.cpu_count()
    assert facts.memory_total == psutil.virtual_memory().total
    assert 0 < facts.memory_available <= facts.memory_total
    assert facts.platform == sys.platform


@pytest.mark.parametrize("error", [PermissionError(13, "no /proc"), psutil.AccessDenied()])
def test_memory_is_known_where_psutil_may_not_read_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    total = psutil.virtual_memory().total

    def refuse() -> None:
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    facts = HostFacts.read()
    assert facts.memory_total == pytest.approx(total, rel=0.01)
    assert 0 < facts.memory_available <= facts.memory_total


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="this system has none")
def test_affinity_of_this_process_is_read() -> None:
    process = psutil.Process()
    before = process.cpu_affinity()
    process.cpu_affinity(before[:1])
    try:
        assert HostFacts.read().affinity == 1
    finally:
        process.cpu_affinity(before)
    assert HostFacts.read().affinity == len(before)


def test_without_arguments_this_machine_is_looked_at() -> None:
    found = detect_resources()
    assert 0 < found.cpus <= (psutil.cpu_count() or 1)
    assert 0 < found.memory_available <= found.memory_limit
