"""How near memory is to its limit, and what the kernel has killed, in groups and without."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest

from flask_workersize.resources import HostFacts, detect_resources
from flask_workersize.resources.cgroups import Throttling
from flask_workersize.resources.gauge import MemoryGauge, MemoryState
from tests.resources.machines import GB, MB, ROOT, V1_UNLIMITED, FixtureFiles, v1, v2

TOTAL, AVAILABLE = 16 * GB, 12 * GB
HOST = MemoryState(TOTAL, TOTAL - AVAILABLE, False)


def gauge(texts: Mapping[str, str], unreadable: Collection[str] = ()) -> MemoryGauge:
    """Return the gauge of a machine with 16 GB, of which 12 GB are available."""
    return MemoryGauge(lambda: (TOTAL, AVAILABLE), FixtureFiles(texts, unreadable))


def group(limit: Any, used_mb: int, cache_mb: int = 0) -> dict[str, Any]:
    """Return the files of a group of version 2."""
    return {
        "memory.max": limit,
        "memory.current": used_mb * MB,
        "memory.stat": f"anon 1\ninactive_file {cache_mb * MB}\nactive_file 0\n",
    }


def v1_group(limit: int, used_mb: int, cache_mb: int = 0) -> dict[str, Any]:
    """Return the files of a group of version 1."""
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used_mb * MB,
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {cache_mb * MB}\n",
    }


# How near


def read(gauge: MemoryGauge) -> MemoryState:
    """Return the figures alone, without where they are from."""
    return replace(gauge.read(), at="", is_throttled=False)


def test_group_of_version_2_is_used_but_for_the_page_cache_that_goes_first() -> None:
    files = v2("/lms", {"/lms": group(512 * MB, 300, 40)})
    assert read(gauge(files)) == MemoryState(512 * MB, 260 * MB, True)


def test_group_of_version_1_likewise() -> None:
    files = v1("/lms", {"/lms": v1_group(512 * MB, 300, 40)})
    assert read(gauge(files)) == MemoryState(512 * MB, 260 * MB, True)


def test_limit_that_throttles_is_one_too() -> None:
    files = v2("/lms", {"/lms": group("max", 300) | {"memory.high": 400 * MB}})
    assert read(gauge(files)) == MemoryState(400 * MB, 300 * MB, True)


@pytest.mark.parametrize(
    ("outer_used", "expected"),
    [
        (900, MemoryState(GB, 900 * MB, True)),
        (700, MemoryState(400 * MB, 300 * MB, True)),
    ],
)
def test_of_several_groups_the_fullest_counts(outer_used: int, expected: MemoryState) -> None:
    """Not the one with the least limit: a neighbour may have filled the one above."""
    limits = {"/shop": group(GB, outer_used), "/shop/lms": group(400 * MB, 300)}
    assert read(gauge(v2("/shop/lms", limits))) == expected
    v1_limits = {"/shop": v1_group(GB, outer_used), "/shop/lms": v1_group(400 * MB, 300)}
    assert read(gauge(v1("/shop/lms", v1_limits))) == expected


def test_limit_of_a_group_above_that_is_not_to_be_seen_counts() -> None:
    """A container of version 1 sees its own group as the root, and knows the limit above."""
    own = v1_group(V1_UNLIMITED, 300)
    own["memory.stat"] = f"total_inactive_file {MB}\nhierarchical_memory_limit {512 * MB}\n"
    assert read(gauge(v1("/lms", {"/lms": own}))) == MemoryState(512 * MB, 299 * MB, True)


@pytest.mark.parametrize(
    "files",
    [
        v2("/lms", {"/lms": group("max", 300)}),
        v1("/lms", {"/lms": v1_group(V1_UNLIMITED, 300)}),
        v2("/lms", {"/lms": group(TOTAL, 300)}),
        v2("/lms", {"/lms": group(0, 300)}),
        v2("/lms", {"/lms": group("much", 300)}),
        v2("/lms", {}),
        {},
    ],
    ids=["v2 max", "v1 unlimited", "all there is", "none", "malformed", "no files", "nothing"],
)
def test_machine_is_the_limit_where_no_group_has_one(files: dict[str, str]) -> None:
    assert gauge(files).read() == HOST


def test_machine_is_the_limit_where_the_groups_cannot_be_read() -> None:
    files = v2("/lms", {"/lms": group(512 * MB, 300)})
    assert gauge(files, unreadable=[f"{ROOT}/lms/memory.max"]).read() == HOST


def test_machine_is_the_limit_on_other_systems() -> None:
    """They have none of the files."""
    assert gauge({}).read() == HOST
    assert gauge({}).oom_kills() is None


def test_usage_that_cannot_be_read_is_none() -> None:
    """As for a plan: such a limit is no reason to recycle anybody."""
    files = v2("/lms", {"/lms": {"memory.max": 512 * MB}})
    assert read(gauge(files)) == MemoryState(512 * MB, 0, True)


def test_cache_that_is_more_than_the_usage_leaves_none() -> None:
    """The two are not read at the same moment."""
    files = v2("/lms", {"/lms": group(512 * MB, 30, 40)})
    assert read(gauge(files)) == MemoryState(512 * MB, 0, True)


class Clock:
    """A clock that tests set.

    :param now: seconds
    """

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_limits_that_change_while_the_app_is_served_are_seen_within_a_second() -> None:
    files = FixtureFiles(v2("/lms", {"/lms": group(512 * MB, 300)}))
    clock = Clock()
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files, clock)
    assert read(made) == MemoryState(512 * MB, 300 * MB, True)
    files.texts[f"{ROOT}/lms/memory.max"] = f"{GB}\n"
    clock.now += 1
    assert read(made) == MemoryState(GB, 300 * MB, True)
    files.texts[f"{ROOT}/lms/memory.max"] = "max\n"
    clock.now += 1
    assert made.read() == HOST


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_usage_is_read_at_every_look(version: str) -> None:
    make, name = (v1, "memory.usage_in_bytes") if version == "v1" else (v2, "memory.current")
    make_group = v1_group if version == "v1" else group
    files = FixtureFiles(make("/lms", {"/lms": make_group(512 * MB, 300)}))
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files, Clock())
    assert made.read().used_bytes == 300 * MB
    for used_mb in (303, 310, 200):
        files.texts[f"{ROOT}{'/memory' if version == 'v1' else ''}/lms/{name}"] = str(used_mb * MB)
        assert made.read().used_bytes == used_mb * MB


def test_page_cache_that_fills_is_no_growth() -> None:
    """A file that is read would otherwise look like a leak until the next full look."""
    files = FixtureFiles(v2("/lms", {"/lms": group(512 * MB, 200, 40)}))
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files, Clock())
    assert made.read().used_bytes == 160 * MB
    files.texts.update(v2("/lms", {"/lms": group(512 * MB, 400, 240)}))
    assert made.read().used_bytes == 160 * MB


def test_page_cache_that_the_kernel_drops_near_the_limit_is_seen_at_once() -> None:
    """Usage stays where it is meanwhile."""
    files = FixtureFiles(v2("/lms", {"/lms": group(512 * MB, 511, 240)}))
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files, Clock())
    assert made.read().used_bytes == 271 * MB
    files.texts.update(v2("/lms", {"/lms": group(512 * MB, 511, 40)}))
    assert made.read().used_bytes == 471 * MB


def test_what_creeps_is_seen_before_it_is_a_hundredth_of_the_limit() -> None:
    files = FixtureFiles(v2("/lms", {"/lms": group(1000 * MB, 300)}))
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files, Clock())
    for used_mb in range(300, 400):
        files.texts.update(v2("/lms", {"/lms": group(1000 * MB, used_mb)}))
        assert used_mb * MB - made.read().used_bytes < 5 * MB


def test_look_that_sees_nothing_new_reads_one_file_of_each_group() -> None:
    """It looks twenty times a second: statistics cost the kernel several times as much."""
    groups = {"/shop": group(GB, 300), "/shop/lms": group(512 * MB, 300)}
    files = FixtureFiles(v2("/shop/lms", groups))
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files, Clock())
    made.read()
    files.opened.clear()
    made.read()
    names = [f"{ROOT}/shop/lms/memory.current", f"{ROOT}/shop/memory.current"]
    assert sorted(files.opened) == names


def test_machine_is_asked_anew_each_time() -> None:
    figures = iter([(TOTAL, AVAILABLE), (TOTAL, AVAILABLE), (TOTAL, GB)])
    made = MemoryGauge(lambda: next(figures), FixtureFiles({}))
    assert made.read() == HOST
    assert read(made) == MemoryState(TOTAL, TOTAL - GB, False)


def test_this_machine_can_be_read() -> None:
    state = MemoryGauge().read()
    assert 0 < state.used_bytes < state.limit_bytes


# memory.high, and memory.oom.group


def high_group(high_mb: int, **texts: str) -> dict[str, str]:
    files = group("max", 100) | {"memory.high": high_mb * MB, "memory.events": "low 0\nhigh 41\n"}
    return {**files, **texts}


def test_limit_that_throttles_is_told_with_what_it_did() -> None:
    pressure = "some avg10=83.20 avg60=1.00 avg300=0.00 total=1\nfull avg10=9.00 avg60=0 total=1\n"
    groups = {"/lms": high_group(200, **{"memory.pressure": pressure})}
    made = gauge(v2("/lms", groups))
    assert made.throttling() is None
    state = made.read()
    assert (state.is_throttled, state.at) == (True, f"{ROOT}/lms")
    assert made.throttling() == Throttling(200 * MB, 41, 83.2)


@pytest.mark.parametrize("text", ["", "some avg10=x", "full avg10=1.00"])
def test_pressure_that_is_not_known_counts_as_full(text: str) -> None:
    made = gauge(v2("/lms", {"/lms": high_group(200, **{"memory.pressure": text})}))
    made.read()
    assert made.throttling() == Throttling(200 * MB, 41, 100.0)


def test_group_without_such_a_limit_is_not_throttled() -> None:
    made = gauge(v2("/lms", {"/lms": group(512 * MB, 300)}))
    assert not made.read().is_throttled
    assert made.throttling() is None


def killed_together(files: Mapping[str, str]) -> tuple[bool, bool]:
    """Return what the guard is told, and what a plan is."""
    host = HostFacts(4, None, TOTAL, TOTAL, "linux")
    planned = detect_resources(host, FixtureFiles(files))
    return gauge(files).read().is_killed_together, planned.is_killed_together


@pytest.mark.parametrize(("text", "expected"), [("1\n", True), ("0\n", False), ("", False)])
@pytest.mark.parametrize("where", ["/shop", "/shop/lms"])
def test_group_whose_processes_are_killed_together(where: str, text: str, expected: bool) -> None:
    """From the own group up to the one whose limit it is, which counts, too."""
    groups = {"/shop": group(512 * MB, 300), "/shop/lms": group("max", 300)}
    groups[where]["memory.oom.group"] = text
    assert killed_together(v2("/shop/lms", groups)) == (expected, expected)


def test_group_above_the_one_whose_limit_it_is_is_not_killed() -> None:
    """The kernel looks no higher than where memory ran out."""
    groups = {"/shop": group(GB, 300), "/shop/lms": group(512 * MB, 300)}
    groups["/shop"]["memory.oom.group"] = "1\n"
    assert killed_together(v2("/shop/lms", groups)) == (False, False)
    groups["/shop"]["memory.current"] = 900 * MB
    guard, plan = killed_together(v2("/shop/lms", groups))
    assert (guard, plan) == (True, False), "its neighbours have filled it"


def test_group_is_killed_together_if_the_machine_is_the_limit() -> None:
    """The kernel looks at all groups then; and memory.high kills nobody."""
    groups = {
        "/shop": group("max", 300) | {"memory.oom.group": "1\n"},
        "/shop/lms": group("max", 9),
    }
    assert killed_together(v2("/shop/lms", groups))[1]
    groups["/shop/lms"] |= {"memory.high": 100 * MB}
    assert killed_together(v2("/shop/lms", groups))[1]


# What the kernel has killed


VMSTAT = {"/proc/vmstat": "nr_free_pages 4\noom_kill 42\n"}


def test_kills_of_version_2_are_those_of_the_group() -> None:
    events = "low 0\nhigh 3\nmax 90\noom 9\noom_kill 7\noom_group_kill 1\n"
    files = v2("/lms", {"/lms": group(512 * MB, 300) | {"memory.events": events}})
    assert gauge(files | VMSTAT).oom_kills() == 7


def test_kills_of_version_1_are_those_of_the_group() -> None:
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"
    files = v1("/lms", {"/lms": v1_group(512 * MB, 300) | {"memory.oom_control": control}})
    assert gauge(files | VMSTAT).oom_kills() == 7


def test_kills_are_those_of_the_own_group_and_not_of_one_above() -> None:
    """A neighbour may have been killed there."""
    limits = {
        "/shop": group(GB, 300) | {"memory.events": "oom_kill 99\n"},
        "/shop/lms": group("max", 300) | {"memory.events": "oom_kill 0\n"},
    }
    assert gauge(v2("/shop/lms", limits) | VMSTAT).oom_kills() == 0


@pytest.mark.parametrize(
    "files",
    [
        {},
        v2("/lms", {"/lms": group(512 * MB, 300)}),
        v1("/lms", {"/lms": v1_group(512 * MB, 300)}),
        # Linux 4.12 and older have no such line.
        v1("/lms", {"/lms": {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}}),
    ],
    ids=["no group", "v2", "v1", "old v1"],
)
def test_kills_are_those_of_the_machine_where_the_group_has_no_count(
    files: dict[str, str],
) -> None:
    assert gauge(files | VMSTAT).oom_kills() == 42
    assert gauge(files).oom_kills() is None


def test_count_that_cannot_be_read_is_that_of_the_machine() -> None:
    files = v2("/lms", {"/lms": group(512 * MB, 300) | {"memory.events": "oom_kill 7\n"}})
    assert gauge(files | VMSTAT, unreadable=[f"{ROOT}/lms/memory.events"]).oom_kills() == 42


def test_kills_are_those_of_the_first_group_above_that_counts_them() -> None:
    """A group without the controller is one; the machine's are also those of all others."""
    limits = {
        "": {"memory.events": "oom_kill 99\n"},
        "/shop": group(GB, 300) | {"memory.events": "oom_kill 5\n"},
        "/shop/lms": {"cgroup.procs": 1},
        "/shop/lms/web": {"cgroup.procs": 1},
    }
    assert gauge(v2("/shop/lms/web", limits) | VMSTAT).oom_kills() == 5


def test_kills_of_version_1_are_not_those_of_a_group_above() -> None:
    """It counts those of its own processes alone."""
    limits = {"/shop": v1_group(GB, 300) | {"memory.oom_control": "oom_kill 5\n"}}
    assert gauge(v1("/shop/lms", limits) | VMSTAT).oom_kills() == 42


def test_kills_are_counted_in_one_place() -> None:
    """A group that is gone for a moment would count as the kills of all others."""
    files = FixtureFiles(v2("/lms", {"/lms": {"memory.events": "oom_kill 7\n"}}) | VMSTAT)
    made = MemoryGauge(lambda: (TOTAL, AVAILABLE), files)
    assert made.oom_kills() == 7
    events = files.texts.pop(f"{ROOT}/lms/memory.events")
    assert made.oom_kills() is None
    files.texts[f"{ROOT}/lms/memory.events"] = events
    assert made.oom_kills() == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts them")
def test_this_machine_counts_them() -> None:
    count = MemoryGauge().oom_kills()
    assert count is not None
    assert count >= 0
