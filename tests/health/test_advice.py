"""What the report says is to be done: right in direction, in plain words, and often nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.health.advice import LONG_SECONDS, next_steps
from flask_workersize.health.measured import MeasuredReport
from flask_workersize.runtime.deployment import Deployment
from flask_workersize.runtime.history import Past, Sample, Stretch
from flask_workersize.runtime.snapshot import GuardState, Snapshot, State, TrafficStats
from flask_workersize.sizing.adaptive import adaptive_bounds
from flask_workersize.sizing.plan import compute_plan
from tests.health.snapshots import live, row
from tests.plain import MB, load, resources

NANOSECONDS = 1_000_000_000
MINUTE = 60 * NANOSECONDS
UNKNOWN = Past()


def deployed(cpus: float = 2, memory_mb: float = 8192, /, **environ: str) -> Deployment:
    """Return a deployment of gunicorn, unless told otherwise, on a machine of that size."""
    settings = load({"WSGI_SERVER": "gunicorn", **environ})
    machine = resources(cpus, memory_mb)
    plan = compute_plan(settings, machine)
    return Deployment(settings, machine, plan, bounds=adaptive_bounds(settings, plan))


def serving(deployment: Deployment, **others: Any) -> Snapshot:
    """Return what its workers do now: nothing."""
    plan = deployment.plan
    rows = [row(slots=plan.threads) for _ in range(plan.workers)]
    bounds = deployment.bounds
    most = bounds.workers.most * bounds.threads.most if bounds else plan.concurrency
    values = {"slots_most": most, "wanted": plan.workers, "guard": GuardState.OK, **others}
    return live(*rows, queued=0, **values)


def minute(
    deployment: Deployment, busy: float = 0.2, cpu: float = 0.1, waited: int = 0, **counted: int
) -> Stretch:
    """Return a minute of 600 requests.

    :param busy: share of the slots that were busy
    :param cpu: share of that time that was computed
    :param waited: how many had waited
    """
    slots = deployment.plan.concurrency
    values = {
        "at_ns": MINUTE,
        "slot_ns": slots * MINUTE,
        "occupied_ns": int(busy * slots * MINUTE),
        "busy_ns": int(busy * slots * MINUTE),
        "cpu_ns": int(cpu * busy * slots * MINUTE),
        "served": 600,
        "queued": 600,
        "waited": waited,
    }
    return Stretch(1.8e9, Sample(**{**values, **counted}))


def lasting(*minutes: Stretch) -> Past:
    """Return an hour of these minutes."""
    summed = Sample(*map(sum, zip(*(one.counted for one in minutes), strict=True)))
    return Past(minutes, Stretch(1.8e9, summed))


def hour(deployment: Deployment, crowded: int = 9, **figures: Any) -> Past:
    """Return an hour in which requests waited in so many minutes, the last ones of it."""
    quiet = [minute(deployment)] * (60 - crowded)
    return lasting(*quiet, *[minute(deployment, **{"busy": 1, "waited": 200, **figures})] * crowded)


def steps(deployment: Deployment, past: Past = UNKNOWN, /, **now: Any) -> list[str]:
    return next_steps(deployment, serving(deployment, **now), past)


# Nothing to do


@pytest.mark.parametrize(
    "environ", [{}, {"NOW_LMS_SIZING": "adaptive"}, {"WSGI_SERVER": "waitress"}, {"WORKERS": "2"}]
)
def test_server_that_is_idle_or_well_used_needs_nothing(environ: dict[str, str]) -> None:
    deployment = deployed(**environ)
    assert steps(deployment) == []
    assert steps(deployment, lasting(minute(deployment, busy=0))) == []
    assert steps(deployment, lasting(*[minute(deployment, busy=0.9, cpu=1)] * 60)) == []


def test_server_that_has_just_begun_or_stops_needs_nothing() -> None:
    deployment = deployed()
    assert steps(deployment, Past(minutes=())) == []
    assert steps(deployment, hour(deployment), state=State.DRAINING) == []


def test_single_request_that_waited_is_no_reason_to_do_anything() -> None:
    deployment = deployed()
    assert steps(deployment, hour(deployment, crowded=60, busy=0.3, waited=2)) == []


def test_minute_long_ago_is_no_reason_either() -> None:
    deployment = deployed()
    quiet = minute(deployment)
    crowded = minute(deployment, busy=1, waited=200)
    assert steps(deployment, lasting(crowded, *[quiet] * 59)) == []
    assert steps(deployment, lasting(*[quiet] * 59, crowded)) != []


# Requests wait


def test_if_the_cpus_are_full_only_more_of_them_help() -> None:
    deployment = deployed(2)
    assert steps(deployment, hour(deployment, cpu=0.4)) == [
        "requests waited in 15 % of the last hour with the CPUs full: add a replica, or CPUs"
    ]


def test_if_others_use_the_cpus_they_are_full_too() -> None:
    deployment = deployed(2)
    delay = {"cpu_wait_ns": 2 * MINUTE}
    (step,) = steps(deployment, hour(deployment, cpu=0.1, **delay))
    assert "with the CPUs full" in step


def test_if_cpu_is_left_threads_help() -> None:
    """Of 5 workers × 100 ms, 20 computing, on 2 CPUs: 2 / 0.2 = 10 slots, and twice that."""
    deployment = deployed(2)
    assert steps(deployment, hour(deployment, cpu=0.2)) == [
        "requests waited in 15 % of the last hour while CPU was left: set NOW_LMS_THREADS=4, or "
        "NOW_LMS_SIZING=adaptive"
    ]


def test_what_was_measured_says_what_to_set() -> None:
    deployment = deployed(2)
    traffic = TrafficStats(5000, 2_000_000, 98_000_000, 40 * MB, 30 * MB)
    measured = MeasuredReport.of(traffic, deployment)
    (step,) = next_steps(
        deployment, serving(deployment), hour(deployment, cpu=0.02), measured=measured
    )
    lines = [line for line in measured.advice if "PROFILE" not in line]
    assert lines == ["NOW_LMS_WORKERS=4", "NOW_LMS_THREADS=50"]
    assert f"while CPU was left: set {' and '.join(lines)}, or NOW_LMS_SIZING=adaptive" in step


def test_if_there_are_as_many_threads_as_help_a_replica_does() -> None:
    deployment = deployed(2, WORKERS="2", THREADS="64")
    (step,) = steps(deployment, hour(deployment, cpu=0.001))
    assert step.endswith("while CPU was left: add a replica")


def test_one_process_of_waitress_computes_on_one_cpu() -> None:
    deployment = deployed(4, WSGI_SERVER="waitress")
    (step,) = steps(deployment, hour(deployment, cpu=0.12))
    assert "one CPU full" in step
    assert "NOW_LMS_WSGI_SERVER=gunicorn" in step
    (step,) = steps(deployment, hour(deployment, cpu=0.01))
    assert "set NOW_LMS_THREADS=" in step


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({"WORKERS": "2"}, "2 workers computing all the time on 8 CPUs: set NOW_LMS_WORKERS=8"),
        ({"THREADS": "9"}, "1 worker computing all the time on 8 CPUs: set NOW_LMS_WORKERS=8"),
        ({"NOW_LMS_MAX_WORKERS": "3"}, "set NOW_LMS_WORKERS=8, or add a replica"),
    ],
)
def test_workers_that_compute_all_the_time_on_many_cpus_are_too_few(
    environ: dict[str, str], remedy: str
) -> None:
    deployment = deployed(8, **environ)
    (step,) = steps(deployment, hour(deployment, cpu=1))
    assert remedy in step


def test_if_memory_bounds_the_workers_memory_helps_or_to_measure() -> None:
    deployment = deployed(8, 600)
    assert deployment.plan.limited_by == "memory"
    (step,) = steps(deployment, hour(deployment, cpu=1))
    assert step.endswith(
        "with 3 workers computing all the time, and no memory for more: give it more memory, or "
        "flask workersize measure to see what a worker needs"
    )


def test_size_that_follows_the_load_does_so() -> None:
    deployment = deployed(2, NOW_LMS_SIZING="adaptive")
    past = hour(deployment, cpu=0.1)
    (step,) = steps(deployment, past)
    assert step.endswith(
        "in 15 % of the last hour: the size follows the load, there is nothing to do yet"
    )
    (step,) = steps(deployment, past, slots_most=5)
    assert step.endswith("the size is at its upper bound: add a replica")
    (step,) = steps(deployment, hour(deployment, cpu=1))
    assert step.endswith("with the CPUs full: add a replica, or CPUs")


@pytest.mark.parametrize(("workers", "cpu"), [(9, 0.1), (2, 0.5)])
def test_size_that_has_not_followed_for_long_is_told_of(workers: int, cpu: float) -> None:
    """With CPU left, and with two workers of four CPUs that compute all the time."""
    deployment = deployed(4, NOW_LMS_SIZING="adaptive")
    seen = replace(serving(deployment), workers=tuple(row() for _ in range(workers)))
    past = hour(deployment, crowded=10, cpu=cpu)
    (step,) = next_steps(deployment, seen, past)
    assert step.endswith(
        "in 10 minutes the size has not followed: give it more memory, or add a replica"
    )
    # Once it has followed nobody waits.
    (step,) = next_steps(deployment, seen, lasting(*(past.minutes or ()), minute(deployment)))
    assert step.endswith("there is nothing to do yet")


def test_cpus_were_not_full_when_there_were_fewer_slots() -> None:
    """5 slots that compute a twentieth use a quarter of a CPU; 320 of them would use all."""
    deployment = deployed(2, NOW_LMS_SIZING="adaptive")
    grown = replace(serving(deployment), workers=tuple(row(slots=64) for _ in range(5)))
    (step,) = next_steps(deployment, grown, hour(deployment, cpu=0.05))
    assert "CPUs full" not in step
    assert step.endswith("the size is at its upper bound: add a replica")


def test_requests_that_were_turned_away_are_counted() -> None:
    deployment = deployed(NOW_LMS_QUEUE_SECONDS="0.5")
    (step,) = steps(deployment, hour(deployment, cpu=1, refused=31, shed=30))
    assert step.startswith("270 requests were turned away in the last hour with the CPUs full: ")
    (step,) = steps(deployment, hour(deployment, crowded=1, cpu=0.01, refused=1, shed=1))
    assert step.startswith("1 request was turned away in the last hour while CPU was left: ")
    (step,) = steps(deployment, hour(deployment, cpu=1, refused=2))
    assert step.startswith("18 requests were abandoned by waiting clients in the last hour ")


def test_if_nobody_can_tell_how_long_requests_wait_busy_slots_count() -> None:
    deployment = deployed()
    (step,) = steps(deployment, hour(deployment, cpu=0.01, waited=0, queued=0))
    assert step.startswith("all slots were busy in 15 % of the last hour while CPU was left: ")
    assert steps(deployment, hour(deployment, busy=0.9, waited=0, queued=0)) == []


@pytest.mark.parametrize(
    ("minutes", "span"), [(1, "minute"), (7, "7 minutes"), (57, "57 minutes"), (60, "hour")]
)
def test_time_is_that_which_was_watched(minutes: int, span: str) -> None:
    deployment = deployed()
    past = lasting(*[minute(deployment, busy=1, cpu=1, waited=99)] * minutes)
    (step,) = steps(deployment, past)
    assert f"100 % of the last {span} with" in step


# Memory


def test_kills_come_first_and_the_number_is_that_of_the_log() -> None:
    deployment = deployed()
    first, second = steps(
        deployment, hour(deployment, cpu=1, oom_kills=1, crashed=1), workers_advised=3
    )
    assert first == (
        "9 processes were OOM-killed in the last hour: set NOW_LMS_WORKERS=3, or give it more "
        "memory"
    )
    assert "add a replica" in second


@pytest.mark.parametrize(
    ("environ", "now", "remedy"),
    [
        ({}, {}, "set fewer workers, or give it more memory"),
        ({}, {"guard": GuardState.OFF}, "set NOW_LMS_MEMORY_GUARD=on, or give it more memory"),
        ({"WORKERS": "1"}, {}, "give it more memory"),
        ({"WSGI_SERVER": "waitress"}, {"workers_advised": 1}, "give it more memory"),
    ],
)
def test_remedy_of_a_kill(environ: dict[str, str], now: dict[str, Any], remedy: str) -> None:
    deployment = deployed(**environ)
    past = lasting(minute(deployment, oom_kills=1, crashed=1))
    assert steps(deployment, past, **now) == [
        f"1 process was OOM-killed in the last minute: {remedy}"
    ]


@pytest.mark.parametrize("guard", [GuardState.WARN, GuardState.CRITICAL])
def test_memory_that_is_short_for_good_needs_more(guard: GuardState) -> None:
    used = {"memory_limit_bytes": 512 * MB, "memory_used_bytes": 490 * MB}
    assert steps(deployed(), guard=guard, workers_advised=2, **used) == [
        "memory is short, 490 of 512 MB in use, and recycling workers does not help: set "
        "NOW_LMS_WORKERS=2, or give it more memory"
    ]


def test_workers_that_the_guard_has_removed_are_missing() -> None:
    assert steps(deployed(), guard=GuardState.REDUCED, workers_advised=2) == [
        "memory is too small for the plan, so workers were removed: set NOW_LMS_WORKERS=2, or give "
        "it more memory"
    ]


def test_memory_that_is_nearly_full_needs_a_guard() -> None:
    used = {"memory_limit_bytes": 512 * MB, "memory_used_bytes": 470 * MB}
    (step,) = steps(deployed(), guard=GuardState.OFF, **used)
    assert step.startswith("memory is short, 470 of 512 MB in use: set NOW_LMS_MEMORY_GUARD=on")
    assert steps(deployed(), guard=GuardState.OK, **used) == []
    assert steps(deployed(), guard=GuardState.OFF) == []


def test_app_that_leaks_is_named_if_each_worker_was_recycled() -> None:
    deployment = deployed()
    assert steps(deployment, lasting(minute(deployment, recycled=5))) == []
    (step,) = steps(deployment, lasting(*[minute(deployment, recycled=1)] * 6))
    assert step.startswith("6 workers were recycled in the last 6 minutes because they had grown")


def test_plan_that_does_not_fit_is_named() -> None:
    assert steps(deployed(2, 512, WORKERS="9")) == [
        "the plan needs 1800 MB, and 512 MB were available: set fewer workers, or give it more "
        "memory"
    ]
    (step,) = steps(deployed(2, 100))
    assert step.endswith("100 MB were available: give it more memory")


# Workers


def test_request_that_runs_for_long_is_named() -> None:
    deployment = deployed()
    now = live(row((40.2, 1.0)), row((0.5,)), guard=GuardState.OK)
    assert next_steps(deployment, now, Past()) == [
        "a request has been running for 40 s: find what it waits for, or move it to a background "
        "job"
    ]
    now = live(row((40.2, 31.0)), row((65.5,)), guard=GuardState.OK)
    assert next_steps(deployment, now, Past()) == [
        "3 requests have been running for more than 30 s, the longest for 66 s: find what they "
        "wait for, or move them to a background job"
    ]
    assert steps(deployment) == []


def test_workers_that_crashed_are_counted_without_those_that_the_kernel_killed() -> None:
    deployment = deployed()
    past = lasting(minute(deployment, crashed=3, oom_kills=1))
    assert steps(deployment, past)[1:] == [
        "2 workers crashed or got killed in the last minute: see the log for the reason"
    ]


# Whatever happens


COUNTS = st.integers(0, 10**6)
TIMES = st.integers(0, 200 * MINUTE)
SAMPLES = st.builds(
    Sample,
    at_ns=st.integers(NANOSECONDS, 10 * MINUTE),
    slot_ns=TIMES,
    occupied_ns=TIMES,
    busy_ns=TIMES,
    cpu_ns=TIMES,
    cpu_wait_ns=TIMES,
    served=COUNTS,
    refused=COUNTS,
    shed=COUNTS,
    queued=COUNTS,
    queue_ns=TIMES,
    waited=COUNTS,
    crashed=st.integers(0, 9),
    oom_kills=st.integers(0, 9),
    recycled=st.integers(0, 9),
)
ENVIRONMENTS = st.sampled_from(
    [
        {},
        {"WSGI_SERVER": "waitress"},
        {"WORKERS": "1"},
        {"WORKERS": "9", "THREADS": "4"},
        {"NOW_LMS_SIZING": "adaptive"},
        {"NOW_LMS_SIZING": "adaptive", "WSGI_SERVER": "waitress"},
        {"NOW_LMS_MEMORY_GUARD": "off"},
    ]
)


@given(
    environ=ENVIRONMENTS,
    cpus=st.sampled_from([0.5, 1, 2, 16]),
    memory_mb=st.sampled_from([100, 700, 8192]),
    samples=st.lists(SAMPLES, max_size=4),
    running=st.lists(st.floats(0, 1e5), max_size=3),
    guard=st.sampled_from(GuardState),
    advised=st.integers(0, 3),
    traffic=st.none()
    | st.builds(
        TrafficStats,
        st.integers(1, 9999),
        st.integers(0, 10**9),
        st.integers(0, 10**10),
        st.integers(0, 10**9),
        st.integers(1, 10**9),
    ),
    alive=st.booleans(),
)
def test_steps_are_plain_lines_and_point_one_way(
    *,
    environ: dict[str, str],
    cpus: float,
    memory_mb: float,
    samples: list[Sample],
    running: list[float],
    guard: GuardState,
    advised: int,
    traffic: TrafficStats | None,
    alive: bool,
) -> None:
    deployment = deployed(cpus, memory_mb, **environ)
    rows = [row(tuple(running))] if alive else []
    now = replace(live(*rows, guard=guard), workers_advised=advised)
    measured = MeasuredReport.of(traffic, deployment) if traffic else None
    past = lasting(*[Stretch(1.8e9, sample) for sample in samples]) if samples else Past()
    found = next_steps(deployment, now, past, measured)
    assert len(set(found)) == len(found)
    for step in found:
        assert step.isprintable()
        assert re.match(r"[a-z0-9]", step)
        assert not step.endswith(".")
        assert "/" not in step
        # More slots and more CPU are never asked for at once.
        assert not ("NOW_LMS_THREADS" in step and "full" in step)
    is_long = any(seconds > LONG_SECONDS for seconds in running) and alive
    assert any("background job" in step for step in found) is is_long
    assert any("OOM-killed" in step for step in found) is any(item.oom_kills for item in samples)
