"""What is decided about memory: each question in its turn, and what never happens whatever is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.monitor.guard import (
    CALM_SECONDS,
    LONGEST_CALM_SECONDS,
    PACE_SECONDS,
    SLOW_PACE_SECONDS,
    STUBBORN_SECONDS,
    decide,
    decide_alone,
)
from flask_workersize.monitor.observation import (
    HORIZON_SECONDS,
    LEAST_GAIN,
    NOTHING,
    Action,
    Done,
    Kind,
    Observation,
    Rules,
)
from flask_workersize.resources.gauge import MemoryState
from flask_workersize.resources.holders import Holders
from flask_workersize.runtime.snapshot import WorkerMemory, WorkerStats
from tests.health.snapshots import row
from tests.monitor.observations import LIMIT_MB, RULES, done, seen, worker
from tests.plain import MB, untimed

LONG_AGO = -1000.0
KINDS = list(Kind)


def kind_of(observed: Observation, rules: Rules = RULES) -> Kind:
    return decide(observed, rules).kind


# Memory that is not short


def test_nothing_is_done_while_there_is_memory() -> None:
    assert decide(seen(worker(1), worker(2), used=699), RULES) == NOTHING


def test_nothing_is_done_of_workers_that_have_grown_while_there_is_memory() -> None:
    assert decide(seen(worker(1, 400, warm=50), worker(2), used=699), RULES) == NOTHING


@pytest.mark.parametrize("workers", [[], [worker(1, ready=False)], [worker(1, leaving=True)]])
def test_nothing_is_done_while_nobody_is_ready(workers: list[WorkerStats]) -> None:
    assert decide(seen(*workers, used=990, oom_kill_at=0.0), RULES) == NOTHING


# A leak


def test_worker_that_has_grown_most_is_recycled_not_the_largest() -> None:
    workers = [worker(1, 200, warm=190), worker(2, 150, warm=90), worker(3, 120, warm=80)]
    assert decide(seen(*workers, used=750), RULES) == Action(Kind.RECYCLE, workers[1], "grew 60 MB")


def test_share_from_which_memory_is_short_is_the_operators() -> None:
    observed = seen(worker(1), worker(2, 200, warm=100), used=500)
    assert kind_of(observed, Rules(recycle_share=0.5)) is Kind.RECYCLE
    assert kind_of(observed, Rules(recycle_share=0.51)) is Kind.NOTHING


def test_memory_that_will_be_gone_shortly_is_short_already() -> None:
    fast = 0.5 * LIMIT_MB * MB / HORIZON_SECONDS
    workers = [worker(1), worker(2, 200, warm=100)]
    assert kind_of(seen(*workers, used=400, growth_bytes=fast)) is Kind.RECYCLE
    assert kind_of(seen(*workers, used=399, growth_bytes=fast)) is Kind.NOTHING
    assert kind_of(seen(*workers, used=699, growth_bytes=-fast)) is Kind.NOTHING


@pytest.mark.parametrize(("grown", "kind"), [(20, Kind.RECYCLE), (19, Kind.NOTHING)])
def test_growth_that_is_noise_is_not_worth_a_worker(grown: int, kind: Kind) -> None:
    assert LEAST_GAIN * LIMIT_MB == 20
    observed = seen(worker(1, 100 + grown, warm=100), worker(2, 100, warm=100), used=750)
    assert kind_of(observed) is kind


def test_worker_that_is_not_warm_has_not_grown() -> None:
    """What it takes for its first requests its successor would take again."""
    assert worker(1, 300).grown_bytes == 0
    assert kind_of(seen(worker(1, 150), worker(2, 100, warm=100), used=750)) is Kind.NOTHING


def test_worker_that_has_shrunk_since_it_was_warm_has_not_grown() -> None:
    assert worker(1, 50, warm=60).grown_bytes == 0


def test_worker_that_is_leaving_or_not_ready_is_not_recycled() -> None:
    """Before it does anything, and long after something was begun that did not end."""
    gone = [worker(1, 400, warm=100, leaving=True), worker(2, 300, warm=100, ready=False)]
    workers = [*gone, worker(3, 200, warm=100), worker(4, 100, warm=100)]
    action = decide(seen(*workers, used=900), RULES)
    assert (action.kind, action.worker) == (Kind.RECYCLE, workers[2])


@pytest.mark.parametrize(
    ("now", "since", "ago", "kind"),
    [
        (100, STUBBORN_SECONDS + 1, SLOW_PACE_SECONDS - 1, Kind.WARN),
        (100, STUBBORN_SECONDS - 1, SLOW_PACE_SECONDS - 1, Kind.RECYCLE),
        (100, STUBBORN_SECONDS + 1, SLOW_PACE_SECONDS + 1, Kind.RECYCLE),
    ],
    ids=["in vain", "not for long", "after a while"],
)
def test_recycling_that_does_not_help_goes_on_slowly_and_is_warned_of(
    now: float, since: float, ago: float, kind: Kind
) -> None:
    """What else is in the group, such as a cache on a RAM disk, is not the workers'."""
    workers = [worker(1, 130, warm=100), worker(2, 120, warm=100)]
    action = decide(
        seen(
            *workers,
            used=800,
            now=now,
            since=now - since,
            recent=(done(Kind.RECYCLE, now - ago),),
        ),
        RULES,
    )
    assert action.kind is kind
    if kind is Kind.WARN:
        assert action.reason == "Recycling did not help: something else uses the memory"


def test_fast_leak_that_keeps_memory_short_is_recycled_as_fast() -> None:
    """It would help to recycle all at once."""
    workers = [worker(1, 160, warm=100), worker(2, 160, warm=100)]
    recent = (done(Kind.RECYCLE, 99.9),)
    observed = seen(*workers, used=800, now=100.0, since=0.0, recent=recent)
    assert kind_of(observed) is Kind.RECYCLE


# The last worker


def test_last_worker_gets_a_successor_first() -> None:
    last = worker(1, 400, warm=100)
    assert decide(seen(last, used=750), RULES) == Action(Kind.REPLACE, last, "grew 300 MB")


def test_last_worker_that_is_ready_gets_one_though_others_start() -> None:
    workers = [worker(1, 400, warm=100), worker(2, ready=False), worker(3, leaving=True)]
    assert kind_of(seen(*workers, used=750)) is Kind.REPLACE


@pytest.mark.parametrize(("fresh", "kind"), [(70, Kind.REPLACE), (71, Kind.WARN)])
def test_last_worker_gets_none_where_both_would_not_fit(fresh: int, kind: Kind) -> None:
    observed = seen(worker(1, 700, warm=100, first=fresh), used=900)
    action = decide(observed, RULES)
    assert action.kind is kind
    if kind is Kind.WARN:
        assert action.reason == "A worker grew 600 MB; no memory left to start its replacement"


@pytest.mark.parametrize("used", [10, 750, 999])
def test_last_worker_goes_once_its_successor_is_ready(used: int) -> None:
    """However much memory there is by now."""
    begun = done(Kind.REPLACE, 9.99)
    old, new = worker(1, 400, warm=100), worker(2)
    observed = seen(old, new, used=used, recent=(begun,), planned=1, wanted=2)
    assert decide(observed, RULES) == Action(Kind.FINISH, None, "its successor is ready")


@pytest.mark.parametrize("since", [9.99, LONG_AGO])
@pytest.mark.parametrize("successor", [[], [worker(2, ready=False)]])
def test_last_worker_stays_until_then_and_gets_no_second_successor(
    successor: list[WorkerStats], since: float
) -> None:
    """However long it takes: an app may need a minute to load."""
    begun = done(Kind.REPLACE, since)
    old = worker(1, 400, warm=100)
    observed = seen(old, *successor, used=750, recent=(begun,), planned=1, wanted=2)
    assert kind_of(observed) in (Kind.NOTHING, Kind.WARN)


def test_successor_that_does_not_come_is_warned_of() -> None:
    begun = done(Kind.REPLACE, LONG_AGO)
    old = worker(1, 400, warm=100)
    observed = seen(old, worker(2, ready=False), used=750, recent=(begun,), planned=1, wanted=2)
    assert decide(observed, RULES) == Action(Kind.WARN, old, "The replacement worker is not ready")


# One thing at a time


@pytest.mark.parametrize(
    "workers",
    [
        [worker(1, leaving=True), worker(2, 400, warm=1), worker(3)],
        [worker(1, ready=False), worker(2, 400, warm=1), worker(3)],
        [worker(2, 400, warm=1), worker(3)],
        [worker(1), worker(2, 400, warm=1), worker(3), worker(4)],
    ],
    ids=["leaving", "starting", "missing", "too many"],
)
@pytest.mark.parametrize("kind", [Kind.RECYCLE, Kind.FEWER, Kind.MORE, Kind.FINISH])
def test_nothing_is_begun_while_something_is_under_way(
    workers: list[WorkerStats], kind: Kind
) -> None:
    """It is given up where it takes longer than a worker may."""
    recent = (done(kind, 9.0),)
    observed = seen(*workers, used=950, recent=recent, planned=3, wanted=3, now=10.0)
    assert decide(observed, RULES) == NOTHING
    later = seen(*workers, used=950, recent=recent, planned=3, wanted=3, now=40.0)
    assert kind_of(later) is Kind.RECYCLE


def test_warning_is_nothing_that_is_under_way() -> None:
    recent = (done(Kind.WARN, 10.0),)
    workers = [worker(1, 400, warm=1), worker(2)]
    assert kind_of(seen(*workers, used=950, recent=recent, wanted=3)) is Kind.RECYCLE


def test_next_action_waits_for_its_time() -> None:
    workers = [worker(1, 400, warm=1), worker(2)]
    for ago, kind in [(PACE_SECONDS - 0.001, Kind.NOTHING), (PACE_SECONDS + 0.001, Kind.RECYCLE)]:
        assert kind_of(seen(*workers, used=950, recent=(done(Kind.FEWER, 10.0 - ago),))) is kind


# A plan that is too large


def test_app_that_needs_too_much_to_begin_with_gets_fewer_workers() -> None:
    workers = [worker(1, 310, warm=300), worker(2, 290, warm=290), worker(3, 200)]
    assert decide(seen(*workers, used=900), RULES) == Action(
        Kind.FEWER,
        None,
        "Recycling won't help: a worker needs 300 MB. The plan is too large",
    )


def test_app_that_will_need_too_much_once_all_are_warm_gets_fewer_before() -> None:
    """100 MB are shared: three of 270 MB are 910 MB."""
    workers = [worker(1, 270, warm=270), worker(2, 200), worker(3, 150)]
    assert kind_of(seen(*workers, used=720)) is Kind.FEWER
    workers = [worker(1, 260, warm=260), worker(2, 200), worker(3, 160)]
    assert kind_of(seen(*workers, used=720)) is Kind.NOTHING


def test_app_that_just_fits_is_left_alone() -> None:
    workers = [worker(1, 280, warm=280), worker(2, 280, warm=280), worker(3, 280, warm=280)]
    assert kind_of(seen(*workers, used=890)) is Kind.NOTHING


def test_last_worker_that_is_too_large_is_warned_of() -> None:
    action = decide(seen(worker(1, 850, warm=850), used=900), RULES)
    assert action.kind is Kind.WARN
    assert "The plan is too large" in action.reason


def test_worker_is_not_let_go_where_only_one_that_starts_would_stay() -> None:
    """A master lets the oldest go."""
    workers = [worker(1, 850, warm=850), worker(3, 1, ready=False)]
    assert kind_of(seen(*workers, used=950, wanted=2)) is Kind.WARN
    workers = [worker(1, 450, warm=450), worker(2, 400, warm=400), worker(3, 1, ready=False)]
    assert kind_of(seen(*workers, used=950, wanted=3)) is Kind.FEWER


# The kernel was faster


def test_kill_by_the_kernel_means_one_worker_fewer() -> None:
    observed = seen(worker(1), worker(2), oom_kill_at=9.0, used=100)
    assert decide(observed, RULES) == Action(
        Kind.FEWER,
        None,
        "A worker was OOM-killed: the plan is too large for its peaks",
    )


@pytest.mark.parametrize("kind", [Kind.FEWER, Kind.FINISH, Kind.MORE])
def test_kill_is_answered_once(kind: Kind) -> None:
    """Also by the end of a stand-in, which may be what was killed; growing back forgets it."""
    assert Action(kind).answers_kill
    young = worker(2)._replace(lived_seconds=0.5)
    again = seen(worker(1), young, oom_kill_at=9.5, recent=(done(kind, 9.0),))
    assert kind_of(again) is Kind.FEWER


def test_kill_of_one_that_was_too_many_already_is_no_news() -> None:
    """Three were there, two are wanted, and the kernel was faster than the third in leaving."""
    recent = (done(Kind.FEWER, 9.0),)
    observed = seen(worker(1), worker(2), oom_kill_at=9.5, recent=recent, wanted=2, planned=3)
    assert decide(observed, RULES) == Action(Kind.NOTHING, is_answer=True)


def test_kill_removes_all_that_do_not_fit_at_the_peak_that_was_seen() -> None:
    """100 MB are shared: of 250 MB each three fit into 900 MB."""
    workers = [worker(age, 20) for age in range(1, 6)]
    action = decide(seen(*workers, oom_kill_at=9.0, used=200, peak=250), RULES)
    assert (action.kind, action.count) == (Kind.FEWER, 2)


# All at their peak


def bursting(*own: int, needs: int, **others: Any) -> Observation:
    """Return workers of which the last has needed more for a while."""
    *rest, last = (worker(age, size, warm=size) for age, size in enumerate(own, start=1))
    assert last.memory is not None
    memory = last.memory._replace(most_needed_bytes=needs * MB)
    return seen(*rest, last._replace(memory=memory), **others)


def test_workers_that_do_not_fit_at_their_peak_are_removed_at_once_while_there_is_memory() -> None:
    """100 MB are shared: five of 350 MB are 1850 MB, and 3 of them 1150."""
    action = decide(bursting(20, 20, 20, 20, 20, needs=350, used=200), RULES)
    assert action == Action(
        Kind.FEWER,
        None,
        "The plan is too large: 5 workers at a peak of 350 MB need 1850 MB",
        3,
    )


def test_workers_that_fit_at_their_peak_stay() -> None:
    assert decide(bursting(20, 20, 20, needs=300, used=160), RULES) == NOTHING


def test_peaks_of_a_machine_are_not_counted() -> None:
    """Nobody knows what others will have by then."""
    assert decide(bursting(20, 20, 20, needs=500, used=160, group=False), RULES) == NOTHING


def test_peaks_do_not_count_what_somebody_else_holds() -> None:
    held = Holders(others_bytes=700 * MB)
    action = decide(bursting(20, 20, 20, needs=100, used=860, holders=held), RULES)
    assert action.kind is Kind.WARN
    assert action.reason.startswith("Not held by the workers, but by other processes")


def test_workers_that_do_not_fit_are_removed_while_others_leave() -> None:
    """What was seen of the peak first may have been a part of it."""
    recent = (done(Kind.FEWER, 9.9),)
    action = decide(bursting(20, 20, 20, 20, needs=350, used=180, recent=recent, wanted=3), RULES)
    assert (action.kind, action.count) == (Kind.FEWER, 1)


@pytest.mark.parametrize("kind", [Kind.RECYCLE, Kind.MORE])
def test_kill_is_answered_whatever_is_under_way(kind: Kind) -> None:
    """The kernel does not wait."""
    workers = [worker(1), worker(2), worker(3, ready=False)]
    recent = (done(kind, 9.0),)
    assert kind_of(seen(*workers, oom_kill_at=9.5, recent=recent)) is Kind.FEWER


def test_kill_is_not_answered_while_that_would_leave_nobody_ready() -> None:
    assert kind_of(seen(worker(1), oom_kill_at=9.0)) is Kind.NOTHING
    starting = [worker(1), worker(2, ready=False)]
    assert kind_of(seen(*starting, oom_kill_at=9.0)) is Kind.NOTHING
    going = [worker(1), worker(2), worker(3, ready=False)]
    assert kind_of(seen(*going, oom_kill_at=9.0, wanted=2)) is Kind.NOTHING


def test_kill_beside_a_stand_in_ends_with_the_planned_number() -> None:
    recent = (done(Kind.REPLACE, 8.0),)
    observed = seen(worker(1), worker(2), oom_kill_at=9.0, recent=recent, planned=1, wanted=2)
    assert kind_of(observed) is Kind.FINISH


# Growing back


def growing(now: float, used: int = 300, peak: int = 150, **others: Any) -> Observation:
    """Return two workers of 100 MB where three are planned, free of want since the beginning."""
    values = {"planned": 3, "wanted": 2, "since": 0.0, "needed_bytes": peak * MB, **others}
    return seen(worker(1), worker(2), used=used, now=now, **values)


def test_one_more_is_had_after_memory_was_free_for_a_while() -> None:
    assert decide(growing(CALM_SECONDS - 0.1), RULES) == NOTHING
    assert decide(growing(CALM_SECONDS), RULES) == Action(Kind.MORE, None, "there is room again")


@pytest.mark.parametrize("kind", [Kind.FEWER, Kind.MORE])
def test_while_begins_with_the_last_change(kind: Kind) -> None:
    recent = (done(kind, 5.0),)
    assert kind_of(growing(5 + CALM_SECONDS - 0.1, recent=recent)) is Kind.NOTHING
    assert kind_of(growing(5 + CALM_SECONDS, recent=recent)) is Kind.MORE


def test_while_begins_when_memory_became_free() -> None:
    assert kind_of(growing(20, since=10.1)) is Kind.NOTHING
    assert kind_of(growing(20, since=10.0)) is Kind.MORE
    assert kind_of(growing(3600, used=700)) is Kind.NOTHING


def test_while_begins_when_the_kernel_killed_the_only_worker() -> None:
    """There was nothing to be done about it."""
    for now, kind in [(14.9, Kind.NOTHING), (15, Kind.MORE)]:
        observed = seen(
            worker(1), used=300, now=now, planned=2, wanted=1, since=0.0, oom_kill_at=5.0
        )
        assert kind_of(observed) is kind


@pytest.mark.parametrize("wanted", [3, 4])
def test_plan_is_never_exceeded(wanted: int) -> None:
    workers = [worker(age) for age in range(wanted)]
    observed = seen(*workers, planned=3, wanted=wanted, now=3600, since=0.0, used=100)
    assert decide(observed, RULES) == NOTHING


@pytest.mark.parametrize(("peak", "kind"), [(266, Kind.MORE), (267, Kind.NOTHING)])
def test_one_more_is_had_only_where_all_have_room_at_their_most(peak: int, kind: Kind) -> None:
    """100 MB are shared, and 900 MB of 1000 MB may be used."""
    assert kind_of(growing(3600, peak=peak)) is kind


def test_each_time_that_it_was_too_early_the_while_is_twice_as_long() -> None:
    recent: tuple[Done, ...] = (done(Kind.FEWER, 0.0),)
    at = 0.0
    for times in range(12):
        patience = min(CALM_SECONDS * 2**times, LONGEST_CALM_SECONDS)
        assert kind_of(growing(at + patience - 0.1, recent=recent)) is Kind.NOTHING
        assert kind_of(growing(at + patience, recent=recent)) is Kind.MORE
        at += patience
        recent = (*recent, done(Kind.MORE, at), done(Kind.RECYCLE, at), done(Kind.FEWER, at))
    assert patience == LONGEST_CALM_SECONDS == 3600


def test_growing_back_that_succeeded_does_not_lengthen_it() -> None:
    changes = [Kind.FEWER, Kind.FEWER, Kind.MORE, Kind.MORE]
    recent = tuple(done(kind, float(at)) for at, kind in enumerate(changes))
    assert kind_of(growing(3 + CALM_SECONDS, recent=recent)) is Kind.MORE


# The bound of a single worker


BOUND = Rules(worker_max_bytes=200 * MB)


def test_worker_above_its_bound_is_recycled_though_there_is_memory() -> None:
    workers = [worker(1, 100), worker(2, 201)]
    assert decide(seen(*workers, used=310), BOUND) == Action(
        Kind.RECYCLE, workers[1], "has 201 MB, above its limit of 200 MB"
    )
    assert decide(seen(worker(1, 100), worker(2, 200), used=310), BOUND) == NOTHING


def test_last_worker_above_its_bound_gets_a_successor_first() -> None:
    assert kind_of(seen(worker(1, 201), used=300), BOUND) is Kind.REPLACE


def test_bound_holds_without_a_control_group_too() -> None:
    """It says how much is too much for one, whoever else uses the machine."""
    assert kind_of(seen(worker(1, 201), worker(2), used=300, group=False), BOUND) is Kind.RECYCLE


# No control group


def test_neighbours_that_use_up_the_machine_cost_no_worker() -> None:
    workers = [worker(1, 149, warm=100), worker(2, 150, warm=100)]
    assert decide(seen(*workers, used=800, group=False), RULES) == NOTHING


def test_neighbours_are_warned_of_shortly_before_the_end() -> None:
    """As long as no worker has grown by more than noise: a tenth of what the others leave."""
    workers = [worker(1, 110, warm=100), worker(2, 111, warm=100)]
    assert decide(seen(*workers, used=900, group=False), RULES) == Action(
        Kind.WARN,
        None,
        "Other processes use it: these workers grew 21 MB",
    )


def test_worker_that_has_grown_is_recycled_near_the_end_however_much_others_hold() -> None:
    workers = [worker(1, 149, warm=100), worker(2, 150, warm=100)]
    action = decide(seen(*workers, used=900, group=False), RULES)
    assert (action.kind, action.worker) == (Kind.RECYCLE, workers[1])


def test_machine_that_fills_up_fast_costs_no_worker_that_has_not_grown() -> None:
    """Though the plan would be too large for a group of that size."""
    workers = [worker(1, 305, warm=305), worker(2, 95)]
    fast = 0.3 * LIMIT_MB * MB / HORIZON_SECONDS
    assert kind_of(seen(*workers, used=690, growth_bytes=fast)) is Kind.FEWER
    assert kind_of(seen(*workers, used=690, growth_bytes=fast, group=False)) is Kind.NOTHING


def test_growth_of_our_own_that_explains_it_is_recycled_on_a_machine_too() -> None:
    workers = [worker(1, 150, warm=100), worker(2, 150, warm=100)]
    assert kind_of(seen(*workers, used=800, group=False)) is Kind.RECYCLE


# One process


def alone(used: int, own: int = 500, warm: int | None = 100, group: bool = True) -> Observation:
    return seen(worker(1, own, warm=warm), used=used, group=group)


@pytest.mark.parametrize(
    ("used", "kind"), [(699, Kind.NOTHING), (700, Kind.WARN), (899, Kind.WARN), (900, Kind.EXIT)]
)
def test_server_of_one_process_is_warned_of_and_then_to_end(used: int, kind: Kind) -> None:
    assert decide_alone(alone(used), RULES).kind is kind


def test_server_of_one_process_says_how_much_it_holds() -> None:
    assert decide_alone(alone(950), RULES).reason == "This server holds 500 MB"


def test_server_of_one_process_does_not_end_for_a_neighbour() -> None:
    assert decide_alone(alone(899, own=250, group=False), RULES) == NOTHING
    assert decide_alone(alone(950, own=110, group=False), RULES) == Action(
        Kind.WARN,
        None,
        "Other processes use it: this server grew 10 MB",
    )
    assert decide_alone(alone(950, own=250, group=False), RULES).kind is Kind.EXIT
    assert decide_alone(alone(950, own=350, group=False), RULES).kind is Kind.EXIT
    assert decide_alone(alone(950, warm=None, group=False), RULES).kind is Kind.WARN


def test_server_of_one_process_does_not_end_for_a_neighbour_in_its_group() -> None:
    """Though it has grown a little: after a new start memory would be as short."""
    held = Holders(others_bytes=800 * MB, other_name="ffmpeg")
    action = decide_alone(replace(alone(950, own=130), holders=held), RULES)
    reason = "Not held by this server, but by other processes (such as ffmpeg): 800 MB"
    assert action == Action(Kind.WARN, None, reason)


def test_server_of_one_process_that_leaks_beside_a_neighbour_ends() -> None:
    held = Holders(others_bytes=500 * MB, other_name="ffmpeg")
    assert decide_alone(replace(alone(950, own=430), holders=held), RULES).kind is Kind.EXIT


def test_server_of_one_process_that_is_not_there_yet_is_not_judged() -> None:
    assert decide_alone(seen(used=999), RULES) == NOTHING


def test_server_of_one_process_that_was_not_measured_is_not_judged() -> None:
    """It would be said to hold 0 MB."""
    blank = worker(1)._replace(memory=None)
    assert decide_alone(seen(blank, used=999), RULES) == NOTHING


# Whatever is the case


sizes = st.integers(0, LIMIT_MB)
moments = st.floats(0, 100)


@st.composite
def workers_of(draw: st.DrawFn) -> list[WorkerStats]:
    """Workers of any size, most of them ready."""
    often = st.sampled_from([True, True, True, False])
    rarely = st.sampled_from([False, False, False, True])
    return [
        worker(
            age,
            draw(sizes),
            warm=draw(sizes | st.none()),
            first=draw(sizes),
            ready=draw(often),
            leaving=draw(rarely),
        )
        for age in draw(st.lists(st.integers(1, 20), max_size=6, unique=True))
    ]


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Anything that may be seen, at any time after anything was done."""
    workers = draw(workers_of())
    past = sorted(draw(st.lists(st.tuples(moments, st.sampled_from(KINDS)), max_size=6)))
    planned = draw(st.integers(1, 6))
    return seen(
        *workers,
        used=draw(st.integers(0, int(1.1 * LIMIT_MB))),
        group=draw(st.booleans()),
        planned=planned,
        wanted=draw(st.integers(1, planned + 1) | st.just(max(len(workers), 1))),
        peak=draw(sizes),
        oom_kill_at=draw(moments | st.none()),
        recent=tuple(done(kind, at) for at, kind in past),
        since=draw(moments),
        growth_bytes=draw(st.floats(-1e9, 1e9)),
        now=(past[-1][0] if past else 0) + draw(st.floats(0, 1) | st.floats(0, 100)),
    )


rules_of = st.builds(
    Rules,
    recycle_share=st.floats(0.01, 0.9),
    worker_max_bytes=st.none() | sizes.map(lambda size: size * MB),
    patience_seconds=st.floats(5, 60),
)
FEWER_READY = (Kind.RECYCLE, Kind.FEWER, Kind.FINISH)


def acted_before(observed: Observation) -> list[Done]:
    return [observed.history.last] if observed.history.last else []


def is_answer_to_a_kill(action: Action) -> bool:
    return action.reason.startswith("A worker was OOM-killed")


def is_for_peaks(action: Action) -> bool:
    return action.reason.startswith("The plan is too large: ")


def staying(observed: Observation, action: Action) -> list[WorkerStats]:
    """Return who stays, as a master obeys: it lets the oldest go until there are as many."""
    if action.kind is Kind.RECYCLE:
        return [one for one in observed.workers if one is not action.worker]
    by_age = sorted(observed.workers, key=lambda one: one.age)
    return by_age[max(len(by_age) - max(observed.wanted - action.count, 1), 0) :]


@untimed
@given(observations(), rules_of)
def test_one_that_is_ready_always_stays(observed: Observation, rules: Rules) -> None:
    action = decide(observed, rules)
    if action.kind in FEWER_READY:
        assert any(one.is_ready and not one.is_leaving for one in staying(observed, action))


@untimed
@given(observations(), rules_of)
def test_there_are_never_two_at_once(observed: Observation, rules: Rules) -> None:
    past = acted_before(observed)
    action = decide(observed, rules)
    is_settled = len(observed.workers) == observed.wanted and all(
        one.is_ready and not one.is_leaving for one in observed.workers
    )
    is_recent = past and observed.now <= past[-1].at + rules.patience_seconds
    if is_recent and not is_settled and not (is_answer_to_a_kill(action) or is_for_peaks(action)):
        assert action.kind is Kind.NOTHING


@untimed
@given(observations(), rules_of)
def test_pace_is_never_exceeded(observed: Observation, rules: Rules) -> None:
    """But by the kernel, and by the end of a stand-in, which frees memory."""
    past = acted_before(observed)
    action = decide(observed, rules)
    if past and observed.now < past[-1].at + PACE_SECONDS and not is_answer_to_a_kill(action):
        assert action.kind in (Kind.NOTHING, Kind.FINISH, Kind.WARN)


@untimed
@given(observations(), rules_of)
def test_plan_is_never_exceeded_but_by_one_stand_in(observed: Observation, rules: Rules) -> None:
    past = acted_before(observed)
    action = decide(observed, rules)
    if action.kind is Kind.MORE:
        assert observed.wanted < observed.planned
    if action.kind is Kind.REPLACE:
        assert len(observed.ready) == 1
        assert not past or past[-1].action.kind is not Kind.REPLACE
    if action.kind is Kind.FINISH:
        assert past[-1].action.kind is Kind.REPLACE


@untimed
@given(observations(), rules_of)
def test_on_a_machine_nothing_is_done_before_its_end_that_our_share_does_not_explain(
    observed: Observation, rules: Rules
) -> None:
    grown = sum(one.grown_bytes for one in observed.ready)
    excess = observed.used_bytes - rules.recycle_share * observed.limit_bytes
    action = decide(observed, rules)
    is_near = observed.memory.is_group or observed.used_bytes >= observed.critical_bytes
    if not is_near and rules.worker_max_bytes is None and grown < max(excess, 1):
        if is_answer_to_a_kill(action):
            return
        assert action.kind in (Kind.NOTHING, Kind.WARN, Kind.MORE, Kind.FINISH)


@untimed
@given(observations(), rules_of)
def test_worker_that_is_meant_is_there_and_every_action_has_a_reason(
    observed: Observation, rules: Rules
) -> None:
    with_others, by_itself = decide(observed, rules), decide_alone(observed, rules)
    assert with_others.kind is not Kind.EXIT
    assert by_itself.kind in (Kind.NOTHING, Kind.WARN, Kind.EXIT)
    for action in (with_others, by_itself):
        assert action.worker is None or action.worker in observed.workers
        assert bool(action.reason) is (action.kind is not Kind.NOTHING)
        assert not action.reason.endswith(".")
        needs_one = action.kind in (Kind.RECYCLE, Kind.REPLACE, Kind.EXIT)
        assert action.worker is not None or not needs_one


# What else holds memory


def test_what_processes_share_is_no_more_than_there_is() -> None:
    """Forked processes share pages, which count for each: the workers are short all the same."""
    workers = [worker(age, 280, warm=280) for age in (1, 2, 3)]
    held = Holders(others_bytes=2300 * MB)
    action = decide(seen(*workers, used=960, holders=held), RULES)
    assert action.kind is Kind.FEWER
    assert str(Holders(others_bytes=300 * MB, shmem_bytes=100 * MB).within(200 * MB)) == (
        "other processes: 150 MB, tmpfs and shared memory: 50 MB"
    )


@pytest.mark.parametrize("percent", [70, 85])
def test_share_to_recycle_from_does_not_put_a_tight_group_to_sleep(percent: int) -> None:
    workers = [worker(age, 250, warm=250) for age in (1, 2, 3)]
    memory = MemoryState(LIMIT_MB * MB, 820 * MB, True, is_throttled=True)
    action = decide(seen(*workers, memory=memory), Rules(recycle_share=percent / 100))
    assert action.kind is Kind.FEWER


def test_workers_whose_sizes_are_not_known_go_one_at_a_time() -> None:
    """Of processes that have changed their user only root knows what is private."""
    unknown = WorkerMemory(60 * MB, None, 0)
    workers = [row(age=age, memory=unknown, is_ready=True) for age in range(1, 9)]
    memory = MemoryState(LIMIT_MB * MB, 810 * MB, True, is_throttled=True)
    action = decide(seen(*workers, memory=memory), RULES)
    assert (action.kind, action.count) == (Kind.FEWER, 1)
    assert "0 MB" not in action.reason


def test_kill_beside_others_is_answered_if_fewer_fit() -> None:
    workers = [worker(age, 50) for age in (1, 2, 3, 4)]
    held = Holders(shmem_bytes=450 * MB)
    observed = seen(*workers, used=660, peak=170, oom_kill_at=9.0, holders=held)
    action = decide(observed, RULES)
    assert (action.kind, action.count) == (Kind.FEWER, 2)
    small = seen(
        *workers, used=960, peak=60, oom_kill_at=9.0, holders=Holders(shmem_bytes=760 * MB)
    )
    assert decide(small, RULES).kind is Kind.WARN


def test_server_of_one_process_in_a_tight_group_is_warned_of_in_time() -> None:
    """Where it would end at 80 %, a share of 85 % to warn from is too late."""
    memory = MemoryState(LIMIT_MB * MB, 820 * MB, True, is_throttled=True)
    rules = Rules(recycle_share=0.85)
    assert decide_alone(seen(worker(1, 700, warm=690), memory=memory), rules).kind is Kind.WARN
    assert decide_alone(seen(worker(1, 700, warm=500), memory=memory), rules).kind is Kind.EXIT
