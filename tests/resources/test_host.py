"""What the machine gives, from plain figures and from this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flask_workersize import HostFacts, Resources, detect_resources
from flask_workersize.resources import host as host_module
from flask_workersize.resources.host import CpuTimes, StolenShare, page_cache
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


HARDENED = """
mount -t proc -o subset=pid proc /proc || exit 77
exec "$0" -c '
from flask_workersize import HostFacts, detect_resources
from flask_workersize.resources.gauge import MemoryGauge
facts, state = HostFacts.read(), MemoryGauge().read()
print(facts.memory_total, facts.memory_available, state.limit_bytes - state.used_bytes)
print(*detect_resources().notes, sep="\\n")
'
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_memory_is_known_where_the_unit_hides_it() -> None:
    """``ProcSubset=pid``: what holds pages of files is available, as it is elsewhere."""
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    enter = ["unshare", *user, "--mount", "--pid", "--fork"]
    run = [*enter, "sh", "-c", HARDENED, sys.executable]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("this machine does not allow a /proc of one's own")
    figures, *notes = done.stdout.splitlines()
    total, available, left = map(int, figures.split())
    memory = psutil.virtual_memory()
    assert total == pytest.approx(memory.total, rel=0.01)
    if page_cache() > memory.total // 20:
        assert available > memory.free + page_cache() / 2
    assert available <= total
    assert left <= total
    assert [note for note in notes if "/proc/meminfo" in note] == [
        "approximate: /proc/meminfo cannot be read; counting free memory and page cache as "
        "available"
    ]


def test_page_cache_is_that_of_all_nodes(tmp_path: Path) -> None:
    assert page_cache(tmp_path) == 0
    for name, figure in (("node0", "1024"), ("node1", "many")):
        (tmp_path / name).mkdir()
        lines = f"Node 0 Active(anon): 7 kB\nNode 0 Active(file): {figure} kB\n"
        lines += "Node 0 Inactive(file):     512 kB\nNode 0 FilePages: 9999 kB\n"
        (tmp_path / name / "meminfo").write_text(lines)
    (tmp_path / "node2").mkdir()
    assert page_cache(tmp_path) == (1024 + 512 + 512) * 1024


def test_page_cache_counts_where_psutil_knows_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError(2, "No such file", "/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(host_module, "page_cache", lambda: 10**18)
    facts = HostFacts.read()
    assert facts.memory_available == facts.memory_total
    assert "/proc/meminfo" in facts.notes[0]
    assert detect_resources(facts, NoFiles()).notes == facts.notes


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


def test_stolen_time_is_a_share_of_what_was_computed() -> None:
    moments = [CpuTimes(), CpuTimes(10, 5, 0), CpuTimes(14, 9, 1), CpuTimes(14, 10, 1)]
    share = StolenShare(iter(moments).__next__)
    assert [share.read() for _ in range(3)] == [0, 0.25, 0]


def test_hidden_proc_steals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> None:
        raise FileNotFoundError

    monkeypatch.setattr("psutil.cpu_times", hidden)
    assert CpuTimes.read() == CpuTimes()
