"""The guide's formula, its bounds, and what a plan says of itself."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize import SizingPlan, compute_plan
from flask_workersize.sizing.validators import ServerName
from tests.plain import MB, load, plan, resources, untimed

# The bounds


@pytest.mark.parametrize(
    ("cpus", "bound"),
    [
        (1, 3),
        (4, 9),
        (64, 129),
        (0.5, 2),
        (0.49999999999999994, 1),  # 2 × it + 1 is 2.0 in floating point
        (0.01, 1),
        (0.25, 1),
        (1.5, 4),
        (1.4999999999999998, 3),
        (2.25, 5),
    ],
)
def test_cpu_bound_is_exact(cpus: float, bound: int) -> None:
    assert bound == math.floor(2 * Fraction(cpus) + 1)
    assert plan(cpus=cpus).cpu_bound == bound


@pytest.mark.parametrize(
    ("memory_mb", "bound"), [(1024, 5), (1000, 5), (999.999, 4), (200, 1), (199, 0), (0, 0)]
)
def test_memory_bound_is_whole_workers(memory_mb: float, bound: int) -> None:
    assert plan(memory_mb=memory_mb).memory_bound == bound


@pytest.mark.parametrize(
    ("percent", "workers"), [("0", 10), ("1", 9), ("20", 8), ("25", 7), ("50", 5), ("99", 1)]
)
def test_headroom_is_taken_off_before_dividing(percent: str, workers: int) -> None:
    environ = {"NOW_LMS_MEMORY_HEADROOM_PERCENT": percent}
    assert plan(environ, cpus=64, memory_mb=2000).workers == workers


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
@pytest.mark.parametrize(
    ("cpus", "memory_mb", "limited_by"),
    [(4, 1800, "cpu"), (4, 1799, "memory"), (4, 1801, "cpu"), (0.1, 100, "memory")],
)
def test_a_tie_is_by_cpu_and_below_one_worker_is_by_memory(
    server: ServerName, cpus: float, memory_mb: float, limited_by: str
) -> None:
    assert plan(cpus=cpus, memory_mb=memory_mb, server=server).limited_by == limited_by


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_below_one_worker_one_is_started_with_a_warning(server: ServerName) -> None:
    small = plan(memory_mb=100, server=server)
    assert (small.workers, small.threads, small.memory_bound) == (1, 1, 0)
    assert small.limited_by == "memory"
    assert not small.fits
    assert small.warnings == (
        "not even one worker fits: 1 × 200 MB = 200 MB, 100 MB available; add memory, or "
        "set NOW_LMS_WORKER_MEMORY_MB to the real need of a worker.",
    )


# What the operator sets


@pytest.mark.parametrize(
    ("environ", "workers", "limited_by"),
    [
        ({"MIN": "12"}, 12, "min_workers"),
        ({"MIN": "9"}, 9, "cpu"),
        ({"MAX": "3"}, 3, "max_workers"),
        ({"MAX": "9"}, 9, "cpu"),
        ({"MIN": "2", "MAX": "2"}, 2, "max_workers"),
        ({"MIN": "12", "MAX": "12"}, 12, "min_workers"),
    ],
)
def test_minimum_and_maximum_bound_calculated_workers(
    environ: dict[str, str], workers: int, limited_by: str
) -> None:
    bounded = plan({f"NOW_LMS_{name}_WORKERS": value for name, value in environ.items()})
    assert (bounded.workers, bounded.limited_by) == (workers, limited_by)


def test_minimum_counts_after_the_division_by_threads() -> None:
    environ = {"NOW_LMS_MIN_WORKERS": "3", "NOW_LMS_THREADS": "4"}
    bounded = plan(environ)
    assert (bounded.workers, bounded.limited_by) == (3, "min_workers")


def test_minimum_and_maximum_leave_explicit_workers_and_waitress_alone() -> None:
    environ = {"NOW_LMS_MIN_WORKERS": "3", "NOW_LMS_MAX_WORKERS": "4"}
    assert plan({**environ, "WORKERS": "8"}).workers == 8
    assert plan({**environ, "WORKERS": "1"}).workers == 1
    assert plan(environ, server="waitress").threads == 9


def test_explicit_is_the_count_that_the_server_uses() -> None:
    assert plan({"WORKERS": "3"}).limited_by == "explicit"
    assert plan({"WORKERS": "3"}, server="waitress").limited_by == "cpu"
    assert plan({"THREADS": "3"}).limited_by == "cpu"
    assert plan({"THREADS": "3"}, server="waitress").limited_by == "explicit"


@pytest.mark.parametrize(
    ("threads", "worker_class", "workers"), [("1", "sync", 9), ("2", "gthread", 4)]
)
def test_worker_class_follows_the_threads(threads: str, worker_class: str, workers: int) -> None:
    gunicorn = plan({"THREADS": threads})
    assert (gunicorn.worker_class, gunicorn.workers) == (worker_class, workers)
    assert plan({"THREADS": threads}, server="waitress").worker_class is None


def test_server_is_that_of_the_settings_unless_another_is_named() -> None:
    settings = load({"WSGI_SERVER": "gunicorn"})
    assert compute_plan(settings, resources()).server == "gunicorn"
    assert compute_plan(settings, resources(), "waitress").server == "waitress"
    assert compute_plan(load(), resources()).server == "waitress"


# Warnings and notes


def test_explicit_workers_that_do_not_fit_are_warned_of_with_the_sum() -> None:
    tight = plan({"WORKERS": "9"}, memory_mb=512)
    assert tight.workers == 9
    assert not tight.fits
    assert tight.warnings == (
        "WORKERS does not fit: 9 × 200 MB = 1800 MB, 512 MB available; lower it, or use threads, "
        "which share memory.",
    )


def test_minimum_that_does_not_fit_is_warned_of_by_its_name() -> None:
    tight = plan({"NOW_LMS_MIN_WORKERS": "3"}, memory_mb=512)
    (warning,) = tight.warnings
    assert warning.startswith("NOW_LMS_MIN_WORKERS does not fit: 3 × 200 MB = 600 MB, 512 MB")


def test_warning_says_what_the_headroom_leaves_alone() -> None:
    environ = {"WORKERS": "4", "NOW_LMS_MEMORY_HEADROOM_PERCENT": "25"}
    (warning,) = plan(environ, memory_mb=1000).warnings
    assert "4 × 200 MB = 800 MB, 1000 MB available, 25 % of it kept free" in warning


def test_what_fits_to_the_last_byte_is_not_warned_of() -> None:
    assert plan({"WORKERS": "9"}, memory_mb=1800).warnings == ()
    assert plan({"WORKERS": "9"}, memory_mb=1800 - 1 / MB).warnings != ()


def test_warnings_of_the_settings_come_first() -> None:
    environ = {"NOW_LMS_WORKERS": "9", "WORKERS": "3"}
    first, second = plan(environ, memory_mb=512).warnings
    assert "different values" in first
    assert "does not fit" in second


def test_warning_of_the_settings_is_no_misfit() -> None:
    assert plan({"NOW_LMS_WORKERS": "2", "WORKERS": "3"}).fits


def test_above_80_percent_is_a_note_that_quotes_the_guide_and_names_the_setting() -> None:
    full = plan(memory_mb=1024)
    assert full.warnings == ()
    assert full.notes == (
        '1000 MB is above 80% of the 1024 MB available; the guide advises "Leave 20-30% for OS and '
        'other processes": set NOW_LMS_MEMORY_HEADROOM_PERCENT=20.',
    )


@pytest.mark.parametrize(("memory_mb", "notes"), [(1000, 0), (1000 - 1 / MB, 1)])
def test_80_percent_itself_carries_no_note(memory_mb: float, notes: int) -> None:
    assert len(plan({"WORKERS": "4"}, memory_mb=memory_mb).notes) == notes


# What a plan says of itself


def test_sources_say_where_every_value_came_from() -> None:
    environ = {"NOW_LMS_WORKER_MEMORY_MB": "100", "THREADS": "2"}
    assert plan(environ).sources == {
        "workers": "calculated",
        "threads": "THREADS",
        "worker_memory_mb": "NOW_LMS_WORKER_MEMORY_MB",
        "min_workers": "default",
        "max_workers": "default",
        "memory_headroom_percent": "default",
        "cpus": "host",
        "memory_available_mb": "host",
    }


@pytest.mark.parametrize(
    ("environ", "server", "workers", "threads"),
    [
        ({}, "gunicorn", "calculated", "default"),
        ({}, "waitress", "waitress: one process", "calculated"),
        ({"WORKERS": "3"}, "gunicorn", "WORKERS", "default"),
        ({"WORKERS": "3"}, "waitress", "waitress: one process", "calculated"),
        ({"WORKERS": "auto", "THREADS": "auto"}, "gunicorn", "calculated", "default"),
        ({"NOW_LMS_THREADS": "3"}, "waitress", "waitress: one process", "NOW_LMS_THREADS"),
    ],
)
def test_sources_of_the_two_counts(
    environ: dict[str, str], server: ServerName, workers: str, threads: str
) -> None:
    sources = plan(environ, server=server).sources
    assert (sources["workers"], sources["threads"]) == (workers, threads)


def test_sources_of_the_machine_are_those_of_the_detection() -> None:
    machine = resources(cpu_source="affinity", memory_source="cgroup2:memory.max")
    sources = compute_plan(load(), machine).sources
    assert (sources["cpus"], sources["memory_available_mb"]) == ("affinity", "cgroup2:memory.max")


@pytest.mark.parametrize(
    ("environ", "server", "memory_mb", "line"),
    [
        (
            {},
            "gunicorn",
            1024,
            "gunicorn: 5 workers × 1 thread (memory: 1024 MB available / 200 MB a worker; CPU "
            "bound 9), about 1000 MB",
        ),
        (
            {"THREADS": "8"},
            "gunicorn",
            8192,
            "gunicorn: 1 worker × 8 threads (CPU: 2 × 4 CPUs + 1 = 9; 8192 MB available / 200 MB a "
            "worker), about 200 MB",
        ),
        (
            {},
            "waitress",
            8192,
            "waitress: 9 threads in one process (CPU: 2 × 4 CPUs + 1 = 9; 8192 MB available / 200 "
            "MB a worker), about 200 MB",
        ),
        (
            {"WORKERS": "2"},
            "gunicorn",
            1024,
            "gunicorn: 2 workers × 1 thread (WORKERS; CPU bound 9, memory bound 5: 1024 MB "
            "available / 200 MB a worker), about 400 MB",
        ),
        (
            {"THREADS": "1"},
            "waitress",
            1024,
            "waitress: 1 thread in one process (THREADS; CPU bound 9, memory bound 5: 1024 MB "
            "available / 200 MB a worker), about 200 MB",
        ),
        (
            {"NOW_LMS_MAX_WORKERS": "2"},
            "gunicorn",
            1024,
            "gunicorn: 2 workers × 1 thread (NOW_LMS_MAX_WORKERS; CPU bound 9, memory bound 5: "
            "1024 MB available / 200 MB a worker), about 400 MB",
        ),
    ],
)
def test_one_line_says_what_was_chosen_and_why(
    environ: dict[str, str], server: ServerName, memory_mb: float, line: str
) -> None:
    assert str(plan(environ, memory_mb=memory_mb, server=server)) == line


def test_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().workers = 99  # type: ignore[misc]


def test_plan_as_a_dict_is_json_and_complete() -> None:
    tight = plan({"WORKERS": "9"}, memory_mb=512)
    plain = tight.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {field.name for field in dataclasses.fields(SizingPlan)}
    assert plain["warnings"] == list(tight.warnings)


def test_changing_the_dict_does_not_change_the_plan() -> None:
    made = plan()
    made.to_dict()["sources"]["workers"] = "changed"
    assert made.sources["workers"] == "calculated"


# What holds for every machine and every setting

SERVERS: list[ServerName] = ["gunicorn", "waitress"]
counts = st.integers(1, 200)
settings_values = st.fixed_dictionaries(
    {},
    optional={
        "WORKERS": counts.map(str),
        "THREADS": counts.map(str),
        "WORKER_MEMORY_MB": st.integers(1, 4096).map(str),
        "NOW_LMS_MIN_WORKERS": st.integers(1, 20).map(str),
        "NOW_LMS_MAX_WORKERS": st.integers(20, 40).map(str),
        "NOW_LMS_MEMORY_HEADROOM_PERCENT": st.integers(0, 99).map(str),
    },
)
servers = st.sampled_from(SERVERS)
cpu_counts = st.floats(0.01, 256) | st.integers(1, 256).map(float)
bytes_of_memory = st.integers(0, 1 << 38) | st.integers(0, 2048).map(lambda mb: mb * MB)


def make(environ: dict[str, str], cpus: float, memory: int, server: ServerName) -> SizingPlan:
    return compute_plan(load(environ), resources(cpus, memory_available=memory), server)


@untimed
@given(settings_values, cpu_counts, bytes_of_memory, servers)
def test_plan_agrees_with_itself(
    environ: dict[str, str], cpus: float, memory: int, server: ServerName
) -> None:
    made = make(environ, cpus, memory, server)
    assert made.workers >= 1
    assert made.threads >= 1
    assert made.concurrency == made.workers * made.threads
    assert made.estimated_memory_mb == made.workers * made.worker_memory_mb
    assert made.fits == (not made.warnings)
    assert made == make(environ, cpus, memory, server)


@untimed
@given(settings_values, cpu_counts, bytes_of_memory, bytes_of_memory, servers)
def test_more_memory_never_gives_less(
    environ: dict[str, str], cpus: float, memory: int, more: int, server: ServerName
) -> None:
    before, after = (make(environ, cpus, size, server) for size in (memory, memory + more))
    assert after.concurrency >= before.concurrency
    assert after.fits >= before.fits


@untimed
@given(settings_values, cpu_counts, cpu_counts, bytes_of_memory, servers)
def test_more_cpus_never_give_less(
    environ: dict[str, str], cpus: float, more: float, memory: int, server: ServerName
) -> None:
    before, after = (make(environ, count, memory, server) for count in (cpus, cpus + more))
    assert after.concurrency >= before.concurrency


@untimed
@given(settings_values, cpu_counts, bytes_of_memory, servers)
def test_calculated_plan_fits_unless_one_worker_does_not(
    environ: dict[str, str], cpus: float, memory: int, server: ServerName
) -> None:
    made = make(environ, cpus, memory, server)
    if made.limited_by in ("cpu", "memory", "max_workers") and made.memory_bound >= 1:
        assert made.fits


@untimed
@given(settings_values, counts, counts, cpu_counts, bytes_of_memory)
def test_explicit_always_wins(
    environ: dict[str, str], workers: int, threads: int, cpus: float, memory: int
) -> None:
    environ |= {"NOW_LMS_WORKERS": str(workers), "NOW_LMS_THREADS": str(threads)}
    gunicorn = make(environ, cpus, memory, "gunicorn")
    assert (gunicorn.workers, gunicorn.threads) == (workers, threads)
    assert make(environ, cpus, memory, "waitress").threads == threads


@untimed
@given(settings_values, cpu_counts, bytes_of_memory)
def test_gunicorn_is_the_formula_of_the_guide(
    environ: dict[str, str], cpus: float, memory: int
) -> None:
    """The formula once more, in fractions, which have no rounding of their own."""
    given_values: dict[str, Any] = {name: int(value) for name, value in environ.items()}
    left = Fraction(100 - given_values.get("NOW_LMS_MEMORY_HEADROOM_PERCENT", 0), 100)
    by_cpu = math.floor(2 * Fraction(cpus) + 1)
    by_memory = math.floor(memory * left / MB / given_values.get("WORKER_MEMORY_MB", 200))
    workers = max(1, min(by_cpu, by_memory) // given_values.get("THREADS", 1))
    workers = max(workers, given_values.get("NOW_LMS_MIN_WORKERS", 1))
    workers = min(workers, given_values.get("NOW_LMS_MAX_WORKERS", workers))
    workers = given_values.get("WORKERS", workers)
    assert make(environ, cpus, memory, "gunicorn").workers == workers


# What a control group does


@pytest.mark.parametrize(("limit_mb", "warns"), [(799, True), (1600, False)])
def test_limit_that_throttles_is_warned_of_unless_it_is_far_above(
    limit_mb: int, warns: bool
) -> None:
    """Four workers of 200 MB."""
    found = resources(
        memory_mb=700, memory_limit=limit_mb * MB, memory_source="cgroup2:memory.high"
    )
    planned = compute_plan(load({"NOW_LMS_WORKERS": "4"}), found, "gunicorn")
    lines = [line for line in planned.warnings if line.startswith("memory.high is")]
    expected = (
        "memory.high is 799 MB for a plan of 800 MB: above it the kernel puts every process to "
        "sleep. Use memory.max (MemoryMax=) alone, or NOW_LMS_MEMORY_HEADROOM_PERCENT=50."
    )
    assert lines == ([expected] if warns else [])


def test_group_that_is_killed_together_is_warned_of() -> None:
    planned = compute_plan(load(), resources(is_killed_together=True), "gunicorn")
    assert planned.warnings == (
        "memory.oom.group is set: one OOM kill takes down all processes. Set "
        "OOMPolicy=continue in the unit, or singleProcessOOMKill for Kubernetes.",
    )
