"""Plans from a profile: (available - headroom - shared) / own memory, bounded by CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize import SizingPlan, SizingSettings
from flask_workersize.app_state import WorkerSizingState
from flask_workersize.cli.format import as_json, explain
from flask_workersize.sizing.plan import compute_plan
from flask_workersize.sizing.validators import ServerName
from flask_workersize.sizing.what_if import memory_needed_mb, one_more
from tests.plain import MB, load, resources, untimed
from tests.sizing.profiles import figure, profile

HEADROOM = "NOW_LMS_MEMORY_HEADROOM_PERCENT"


def measured(environ: dict[str, str] | None = None, **others: Any) -> SizingSettings:
    """Return settings with a profile: 60 MB once, 30 MB a worker, 2 MB a thread more.

    Nothing is left alone, where the environment does not say so.
    """
    return load({HEADROOM: "0", **(environ or {})}).measured_by(profile(**others))


def plan(
    settings: SizingSettings, cpus: float, memory_mb: int, server: ServerName = "gunicorn"
) -> SizingPlan:
    """Return the plan on a machine."""
    return compute_plan(settings, resources(cpus, memory_mb), server)


@pytest.mark.parametrize(
    ("environ", "cpus", "memory_mb", "workers", "limited_by"),
    [
        ({}, 2, 512, 5, "cpu"),
        ({}, 2, 210, 5, "cpu"),
        ({}, 2, 209, 4, "memory"),
        ({}, 8, 512, 15, "memory"),
        ({HEADROOM: "50"}, 8, 512, 6, "memory"),
        ({}, 2, 89, 1, "memory"),
        ({}, 2, 60, 1, "memory"),
        ({"NOW_LMS_WORKERS": "9"}, 2, 512, 9, "explicit"),
        ({"NOW_LMS_MAX_WORKERS": "3"}, 2, 512, 3, "max_workers"),
        ({"NOW_LMS_MIN_WORKERS": "7"}, 2, 512, 7, "min_workers"),
    ],
)
def test_workers_are_what_is_left_divided_by_their_own_memory(
    environ: dict[str, str], cpus: float, memory_mb: int, workers: int, limited_by: str
) -> None:
    made = plan(measured(environ), cpus, memory_mb)
    assert (made.workers, made.limited_by) == (workers, limited_by)
    assert made.estimated_memory_mb == 60 + workers * 30
    assert (made.worker_memory_mb, made.shared_memory_mb) == (30, 60)
    assert made.sources["worker_memory_mb"] == "measured"


@pytest.mark.parametrize(("memory_mb", "workers"), [(512, 9), (1000, 21), (129, 1), (128, 1)])
def test_three_tenths_are_left_alone_where_nothing_is_said(memory_mb: int, workers: int) -> None:
    """A measured number leaves nothing by itself; above 70 % the memory guard would act."""
    settings = load().measured_by(profile())
    made = plan(settings, 16, memory_mb)
    assert made.workers == workers
    assert made.sources["memory_headroom_percent"] == "default with a profile"
    assert made.fits is (memory_mb >= 129)
    assert settings.measured_by(profile()).memory_headroom_percent == 30


@pytest.mark.parametrize(
    ("threads", "memory_mb", "workers"),
    [(2, 512, 2), (4, 512, 1), (1, 512, 5), (2, 160, 2), (2, 123, 1)],
)
def test_threads_divide_what_cpus_bound_and_share_the_memory_of_their_worker(
    threads: int, memory_mb: int, workers: int
) -> None:
    """2 × 2 CPUs + 1 = 5 by CPU, as in the guide; a worker of two threads has 32 MB."""
    made = plan(measured({"NOW_LMS_THREADS": str(threads)}), 2, memory_mb)
    assert made.workers == workers
    assert made.worker_memory_mb == 30 + (threads - 1) * 2


def test_waitress_has_one_process_with_all_its_threads() -> None:
    made = plan(measured(), 2, 512, "waitress")
    assert (made.workers, made.threads) == (1, 5)
    assert made.estimated_memory_mb == 60 + 30 + 4 * 2


def test_waitress_needs_once_what_was_measured_for_one_process() -> None:
    """It has no launcher beside it; gunicorn has."""
    settings = measured(alone_mb=figure(47.5))
    made = plan(settings, 2, 512, "waitress")
    assert made.shared_memory_mb == 48
    assert made.estimated_memory_mb == 48 + 30 + 4 * 2
    assert plan(settings, 2, 85, "waitress").threads == 4
    assert plan(settings, 2, 512).estimated_memory_mb == 60 + 5 * 30
    assert memory_needed_mb(settings, 1, 5, "waitress") == 86
    assert memory_needed_mb(settings, 5, 1, "gunicorn") == 210


@pytest.mark.parametrize(
    ("memory_mb", "threads", "limited_by"),
    [(89, 1, "memory"), (90, 1, "memory"), (92, 2, "memory"), (97, 4, "memory"), (98, 5, "cpu")],
)
def test_waitress_has_the_threads_that_fit_into_its_process(
    memory_mb: int, threads: int, limited_by: str
) -> None:
    """They share its memory: one more needs 2 MB, and not 30."""
    made = plan(measured(), 2, memory_mb, "waitress")
    assert (made.threads, made.limited_by) == (threads, limited_by)
    assert made.fits is (memory_mb >= 90)


def test_waitress_says_what_its_process_needs() -> None:
    settings, machine = measured(), resources(2, 94)
    made = compute_plan(settings, machine, "waitress")
    assert str(made) == (
        "waitress: 3 threads in one process (memory: 1 + (94 MB available - 60 MB shared - 30 MB) "
        "/ 2 MB a thread, measured; CPU bound 5), about 94 MB"
    )
    told = explain(settings, machine, made)
    formula = "1 + (94 MB available - 60 MB shared - 30 MB) / 2 MB a thread, measured"
    assert f"{formula}  <- binds" in told


def test_start_line_has_the_headroom_among_its_numbers() -> None:
    settings = load().measured_by(profile())
    assert str(plan(settings, 8, 512)) == (
        "gunicorn: 9 workers × 1 thread (memory: (512 MB available × 70 % - 60 MB shared) / 30 MB "
        "a worker, measured; CPU bound 17), about 330 MB"
    )
    guided = plan(load({HEADROOM: "20"}), 8, 1024)
    assert "(memory: 1024 MB available × 80 % / 200 MB a worker; " in str(guided)
    assert guided.workers == 4


def test_start_line_has_the_numbers_and_says_that_they_were_measured() -> None:
    assert str(plan(measured(), 8, 512)) == (
        "gunicorn: 15 workers × 1 thread (memory: (512 MB available - 60 MB shared) / 30 MB a "
        "worker, measured; CPU bound 17), about 510 MB"
    )


def test_explanation_has_the_formula_with_its_numbers() -> None:
    environ = {"NOW_LMS_THREADS": "2", HEADROOM: "10"}
    settings, machine = measured(environ), resources(2, 512)
    told = explain(settings, machine, compute_plan(settings, machine, "gunicorn"))
    assert "worker_memory_mb         32 MB          measured" in told
    assert (
        "24             (512 MB available × 90 % - 60 MB shared) / 32 MB a worker × 2 threads, "
        "measured" in told
    )
    assert "60 MB shared + 2 × 32 MB" in told


def test_plan_that_does_not_fit_says_so_with_the_breakdown() -> None:
    made = plan(measured({"NOW_LMS_WORKERS": "20"}), 2, 512)
    (warning,) = made.warnings
    assert "60 MB shared + 20 × 30 MB = 660 MB, as measured, 512 MB available" in warning
    (warning,) = plan(measured(), 2, 70).warnings
    assert warning == (
        "not even one worker fits: 60 MB shared + 1 × 30 MB = 90 MB, as measured, 70 MB available; "
        "add memory."
    )


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_threads_that_do_not_fit_are_named(server: ServerName) -> None:
    environ = {"NOW_LMS_WORKERS": "1", "THREADS": "64"}
    (warning,) = plan(measured(environ), 2, 200, server).warnings
    assert warning.startswith(
        "one worker with its threads does not fit: 60 MB shared + 1 × 156 MB = 216 MB, as measured,"
        " 200 MB available; add memory, or lower THREADS"
    )


def test_no_note_advises_less_headroom_than_there_is() -> None:
    settings = load({"NOW_LMS_WORKERS": "12"}).measured_by(profile())
    made = plan(settings, 2, 512)
    assert "512 MB available, 30 % of it kept free" in made.warnings[0]
    assert made.notes == ()
    assert len(plan(measured({"NOW_LMS_WORKERS": "12"}), 2, 512).notes) == 1


@pytest.mark.parametrize(
    ("environ", "server", "needed"),
    [
        ({}, "waitress", {"workers": 1, "memory_available_mb": 98}),
        ({"NOW_LMS_THREADS": "3"}, "waitress", {"workers": 1, "memory_available_mb": 94}),
        ({"NOW_LMS_THREADS": "2"}, "gunicorn", {"workers": 2, "memory_available_mb": 124}),
        ({"NOW_LMS_WORKERS": "4"}, "waitress", {"workers": 4, "memory_available_mb": 180}),
    ],
)
def test_json_says_what_the_plan_beside_it_needs(
    environ: dict[str, str], server: ServerName, needed: dict[str, int]
) -> None:
    settings, machine = measured(environ), resources(2, 512)
    made = compute_plan(settings, machine, server)
    assert json.loads(as_json(settings, machine, made))["needed"] == needed


def test_fractions_of_a_megabyte_are_rounded_up() -> None:
    made = plan(measured(shared_mb=figure(60.1)), 2, 512)
    assert made.shared_memory_mb == 61
    assert (
        plan(measured({"NOW_LMS_THREADS": "2"}, thread_mb=figure(0.2)), 2, 512).worker_memory_mb
        == 31
    )


machines = st.tuples(st.sampled_from([0.1, 0.5, 1, 2, 4, 16]), st.integers(1, 4096))
sizes = st.floats(0, 300).map(lambda number: round(number, 3))


@given(
    machine=machines,
    shared=sizes,
    own=sizes.filter(bool),
    thread=sizes,
    threads=st.integers(1, 16),
    headroom=st.integers(0, 99),
)
@untimed
def test_what_is_planned_fits_or_is_one_worker(
    *,
    machine: tuple[float, int],
    shared: float,
    own: float,
    thread: float,
    threads: int,
    headroom: int,
) -> None:
    environ = {
        "NOW_LMS_THREADS": str(threads),
        HEADROOM: str(headroom),
    }
    sizes = {"shared_mb": shared, "peak_mb": own, "thread_mb": thread}
    settings = measured(environ, **{name: figure(size) for name, size in sizes.items()})
    made = plan(settings, *machine)
    assert made.fits or made.workers == 1
    assert made.workers <= max(1, made.cpu_bound // threads)
    assert made.estimated_memory_mb >= shared + made.workers * (own + (threads - 1) * thread)
    if made.limited_by == "memory" and made.workers * threads < made.cpu_bound - threads:
        more = memory_needed_mb(settings, made.workers + 1, None, "gunicorn")
        assert more > made.memory_available_mb


@given(machine=machines, thread=sizes)
@untimed
def test_one_thread_more_needs_what_is_said_and_not_a_megabyte_less(
    machine: tuple[float, int], thread: float
) -> None:
    settings = measured(thread_mb=figure(thread))
    made = plan(settings, *machine, "waitress")
    assert made.fits or made.threads == 1
    needed = one_more(settings, made)
    cpus = float(needed.get("cpus", machine[0]))
    memory_mb = int(needed.get("memory_available_mb", machine[1]))
    assert plan(settings, cpus, memory_mb, "waitress").threads > made.threads
    if "memory_available_mb" in needed:
        assert plan(settings, cpus, memory_mb - 1, "waitress").threads <= made.threads


@given(machine=machines, threads=st.integers(1, 8))
@untimed
def test_one_worker_more_needs_what_is_said_and_not_a_megabyte_less(
    machine: tuple[float, int], threads: int
) -> None:
    settings = measured({"NOW_LMS_THREADS": str(threads)})
    made = plan(settings, *machine)
    needed = one_more(settings, made)
    cpus = float(needed.get("cpus", machine[0]))
    memory_mb = int(needed.get("memory_available_mb", machine[1]))
    assert plan(settings, cpus, memory_mb).workers == made.workers + 1
    if "memory_available_mb" in needed:
        assert plan(settings, cpus, memory_mb - 1).workers <= made.workers


@pytest.mark.parametrize(("peak", "thread", "threads"), [(0.3, 0, 48), (1e9, 0, 0), (1, 2, 3)])
def test_threads_fill_what_is_left_beside_the_process(
    peak: float, thread: float, threads: int
) -> None:
    made = profile(peak_mb=figure(peak), thread_mb=figure(thread), shared_mb=figure(0))
    assert made.costs_for("waitress").threads_within(5) == threads


def test_what_the_launcher_holds_already_is_not_taken_off_twice() -> None:
    """It was not available any more when the machine was looked at; at most what is shared."""
    found = resources(8, 100, memory_limit=160 * MB)
    state = WorkerSizingState(found, held_bytes=47 * MB)
    assert state.resources_for(load()) == found
    assert state.resources_for(measured()).memory_available == 147 * MB
    assert compute_plan(measured(), state.resources_for(measured()), "gunicorn").workers == 2
    state.held_bytes = 500 * MB
    assert state.resources_for(measured()).memory_available == 160 * MB
    assert state.resources_for(measured(shared_mb=figure(10))).memory_available == 110 * MB


def test_without_a_profile_everything_is_the_guide_s() -> None:
    made = compute_plan(load(), resources(4, 1024), "gunicorn")
    assert (made.workers, made.worker_memory_mb, made.shared_memory_mb) == (5, 200, 0)
    assert made.estimated_memory_mb == 1000
