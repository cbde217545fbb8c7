"""What holds on any machine, be its files what they are."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_workersize import HostFacts, Resources, detect_resources
from tests.resources.machines import ROOT, FixtureFiles
from tests.resources.strategies import (
    LIMIT_FILES,
    Machine,
    garbage,
    garbage_files,
    hosts,
    limit_texts,
    machines,
    unreadables,
)

thorough = settings(deadline=None, max_examples=100)
SOURCES = {
    "host",
    "affinity",
    "cgroup2:cpu.max",
    "cgroup1:cpu.cfs_quota_us",
    "cgroup2:memory.max",
    "cgroup2:memory.high",
    "cgroup1:memory.limit_in_bytes",
    "cgroup1:hierarchical_memory_limit",
}


def detect(machine: Machine) -> Resources:
    return detect_resources(machine.host, FixtureFiles(machine.files))


def check(host: HostFacts, found: Resources) -> None:
    """Hold an answer to what every answer has to be."""
    assert 0 < found.cpus <= host.cpus
    assert host.affinity is None or found.cpus <= host.affinity
    assert 0 <= found.memory_limit <= host.memory_total
    assert 0 <= found.memory_available <= min(found.memory_limit, host.memory_available)
    assert {found.cpu_source, found.memory_source} <= SOURCES
    assert (found.cpu_at is None) == (found.cpu_source in ("host", "affinity"))
    assert (found.memory_at is None) == (found.memory_source == "host")
    for note in found.notes:
        assert note.partition(": ")[0] in ("unreadable", "malformed", "approximate")
        assert len(note.splitlines()) == 1
        note.encode()
    assert len(found.notes) == len(set(found.notes))


@thorough
@given(hosts, garbage_files, unreadables)
def test_any_text_in_any_file_gives_an_answer_within_the_bounds_of_the_host(
    host: HostFacts, files: dict[str, str], unreadable: set[str]
) -> None:
    check(host, detect_resources(host, FixtureFiles(files, unreadable)))


@pytest.mark.parametrize("is_v2", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("name", LIMIT_FILES)
@settings(deadline=None, max_examples=30)
@given(text=limit_texts)
def test_any_text_in_one_file_of_a_good_machine(name: str, is_v2: bool, text: str) -> None:
    """One at a time, so that no other fault hides what comes of it."""
    machine = Machine((), 0, is_v2, is_v2)
    files = {
        "/proc/self/cgroup": "0::/a\n" if is_v2 else "2:memory:/a\n1:cpu:/a\n",
        "/proc/self/mountinfo": f"1 1 0:1 / {ROOT} rw - cgroup2 cgroup2 rw\n"
        if is_v2
        else f"1 1 0:1 / {ROOT} rw - cgroup cgroup rw,memory,cpu\n",
        f"{ROOT}/a/memory.max": "1000",
        f"{ROOT}/a/memory.limit_in_bytes": "1000",
        f"{ROOT}/a/cpu.cfs_quota_us": "150000",
        f"{ROOT}/a/cpu.cfs_period_us": "100000",
        f"{ROOT}/a/{name}": text,
    }
    check(machine.host, detect_resources(machine.host, FixtureFiles(files)))


@thorough
@given(machines(), garbage, st.booleans())
def test_any_list_of_groups_or_mounts(machine: Machine, text: str, is_mounts: bool) -> None:
    files = machine.files
    files["/proc/self/mountinfo" if is_mounts else "/proc/self/cgroup"] += text
    check(machine.host, detect_resources(machine.host, FixtureFiles(files)))


@thorough
@given(machines())
def test_machine_as_it_exists_gives_exactly_its_tightest_limits(machine: Machine) -> None:
    """Worked out here from the groups, not from files."""
    found, host = detect(machine), machine.host
    check(host, found)
    known = machine.visible if machine.memory_is_v2 else machine.groups
    zeros = {group.max for group in known} | {group.high for group in known if machine.memory_is_v2}
    assert all(note.endswith(" is 0: no memory is left") for note in found.notes)
    assert bool(found.notes) == (0 in zeros)
    cpus = [Fraction(host.cpus), Fraction(host.affinity or host.cpus)]
    cpus += [Fraction(*group.quota) for group in machine.visible if group.quota]
    assert found.cpus == float(min(cpus))
    limits, free = [host.memory_total], [host.memory_available, host.memory_total]
    for depth, group in enumerate(machine.visible, machine.hidden):
        usage, cache = machine.usage(depth)
        for limit in (group.max, group.high if machine.memory_is_v2 else None):
            if limit is not None and limit < host.memory_total:
                limits.append(limit)
                free.append(max(limit - (usage - cache), 0))
    hidden = [group.max for group in machine.groups[: machine.hidden] if group.max is not None]
    if not machine.memory_is_v2:  # memory.stat repeats what is not mounted
        limits += hidden
    assert found.memory_limit == min(limits)
    if machine.memory_is_v2 or not hidden:
        assert found.memory_available == min(free)
    else:
        assert found.memory_available <= min(free)


@thorough
@given(machines(), st.data())
def test_tightening_a_limit_never_gives_more(machine: Machine, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(machine.groups) - 1))
    group = machine.groups[index]
    name = data.draw(st.sampled_from(["max", "high", "quota"]))
    if name == "quota":
        quota, period = group.quota or (10_000_000, 1_000)
        tighter: object = (data.draw(st.integers(1_000, quota)), period)
    else:
        before = getattr(group, name)
        tighter = data.draw(st.integers(0, machine.host.memory_total if before is None else before))
    check_never_more(detect(machine), detect(machine.with_group(index, **{name: tighter})))


@thorough
@given(machines(), st.data())
def test_raising_usage_never_gives_more(machine: Machine, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(machine.groups) - 1))
    group = machine.groups[index]
    usage = group.usage + data.draw(st.integers(0, 2**40))
    cache = data.draw(st.integers(0, group.cache))
    before, after = (
        detect(machine),
        detect(machine.with_group(index, usage=usage, cache=cache)),
    )
    check_never_more(before, after)
    assert (after.memory_limit, after.cpus) == (before.memory_limit, before.cpus)


@thorough
@given(machines(), st.data())
def test_fewer_cpus_or_less_free_memory_of_the_host_never_give_more(
    machine: Machine, data: st.DataObject
) -> None:
    host = machine.host
    smaller = HostFacts(
        data.draw(st.integers(1, host.cpus)),
        data.draw(st.integers(1, host.affinity or host.cpus)),
        host.memory_total,
        data.draw(st.integers(0, host.memory_available)),
        "linux",
    )
    after = detect_resources(smaller, FixtureFiles(machine.files))
    check_never_more(detect(machine), after)


def check_never_more(before: Resources, after: Resources) -> None:
    assert after.cpus <= before.cpus
    assert after.memory_limit <= before.memory_limit
    assert after.memory_available <= before.memory_available
