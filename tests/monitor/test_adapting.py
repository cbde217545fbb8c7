"""Workers and slots that follow the load: what the rule finds in a small world, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from flask_workersize.monitor.adapting import (
    PACE_SECONDS,
    AdaptingRules,
    Alone,
    Mean,
    Move,
    Sample,
    State,
    adapt,
)
from tests.monitor.adapting_world import APPS, App, Place, World, best
from tests.plain import MB

# A world that fails is read as it is: to look for a smaller one takes minutes.
worlds = settings(deadline=None, max_examples=20, phases=[Phase.reuse, Phase.generate])

RULES = AdaptingRules(cpus=2, most_workers=5, most_slots=64)

WAITING = Sample(
    now=0,
    seconds=1,
    workers=4,
    wanted=4,
    slots=1,
    done=80,
    cpu_seconds=0.4,
    busy=4,
    waited_seconds=0.7,
    cpu_of_group=0.2,
    cpu_of_processes=(0.1,) * 4,
    alone=Alone(80, 0.4, 3.6),
    memory_free_bytes=300 * MB,
    worker_need_bytes=40 * MB,
    thread_need_bytes=0.1 * MB,
    guard_acts=False,
)
"""Four workers of one slot, with requests that compute for 5 ms and wait for 45."""

FULL = replace(
    WAITING, slots=16, busy=64, cpu_of_group=1.0, cpu_of_processes=(0.5,) * 4, alone=Alone()
)


def moves_of(
    sample: Sample, rules: AdaptingRules = RULES, seconds: int = 5, state: State | None = None
) -> list[Move]:
    """Return the moves where nobody obeys."""
    state, moves = state or State(), []
    for now in range(1, seconds + 1):
        state, move = adapt(rules, state, replace(sample, now=now))
        moves += [move] if move else []
    return moves


def first(sample: Sample, rules: AdaptingRules = RULES) -> Move | None:
    return next(iter(moves_of(sample, rules)), None)


# What it finds.


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("app", APPS)
def test_best_shape_is_found_within_20_seconds_of_the_guess(app: str, cpus: int) -> None:
    for limit in (256, 1024):
        place = Place(app, cpus, limit)
        world = place.world(place.guess, 1).adapting(24)
        rate, p99 = world.throughput(20)
        top = best(Place(app, cpus, 1024), seconds=1.5)
        assert rate >= 0.95 * top.rate, world.moves
        assert p99 <= 1.25 * top.p99, world.moves
        assert world.peak <= limit


@pytest.mark.parametrize("limit", [256, 1024])
def test_pure_computing_ends_at_one_slot(limit: int) -> None:
    place = Place("cpu", 2, limit)
    for seed in (1, 2):
        assert place.world(place.guess, 1, seed).adapting(20).slots == 1
    # From many it takes longer: each step is judged, and soon there is one a minute.
    assert place.world(place.guess, 16).adapting(600).slots == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_mix_is_followed_within_15_seconds(seed: int) -> None:
    place = Place("cpu", 2, 1024)
    world = place.world(place.guess, 1, seed).adapting(20)
    for name in ("wait", "both", "cpu", "both"):
        world.app = APPS[name]
        world.adapting(15)
        since = world.now
        world.adapting(4)
        rate, _ = world.throughput(since)
        bound = min(2 / world.app.compute, 64 / (world.app.compute + world.app.wait))
        assert rate >= 0.9 * bound, (name, world.moves)
        world.adapting(11)


@pytest.mark.parametrize("slots", [1, 8])
def test_steady_load_moves_little(slots: int) -> None:
    """Requests of a tenth of a second, near the end of the CPUs, where one slot is the question."""
    app = App(0.069, 0.050)
    world = World(app, 1, 3, slots, clients=16, rules=AdaptingRules(1, 3, 64)).adapting(900)
    assert len(world.moves) <= 15
    late = [at for at, move in world.moves if at > 60 and "before)" not in move.reason]
    assert all(after - before >= PACE_SECONDS for before, after in pairwise(late))


def test_idle_server_is_left_alone() -> None:
    world = World(App(0.01, 0.05), 2, 4, 1, rate=5, rules=RULES)
    assert world.adapting(60).moves == []


def test_open_load_gets_slots_until_nothing_waits() -> None:
    world = World(App(0.005, 0.2), 2, 2, 1, rate=60, limit=200, rules=RULES).adapting(20)
    world.adapting(10)
    assert world.throughput(20)[1] < 0.4


# What never happens.


@st.composite
def any_world(draw: st.DrawFn) -> World:
    """Return a server that fits to begin with."""
    cpus = draw(st.sampled_from([0.5, 1, 2, 4]))
    app = App(
        compute=draw(st.floats(0.005, 0.1)),
        wait=draw(st.floats(0, 0.3)),
        worker=draw(st.floats(5, 60)),
        thread=draw(st.floats(0, 2)),
        burst=draw(st.sampled_from([0, 0, 5])),
        leak=draw(st.sampled_from([0, 0, 0.05])),
    )
    workers, slots = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    most = draw(st.integers(workers, 9))
    needed = 45 + workers * (app.worker + slots * (app.thread + app.burst)) + 20
    rules = AdaptingRules(
        cpus,
        most,
        draw(st.integers(slots, 64)),
        follows_workers=draw(st.booleans()),
        follows_slots=draw(st.booleans()),
        may_exceed_core=draw(st.booleans()),
    )
    return World(
        app,
        cpus,
        workers,
        slots,
        clients=draw(st.integers(1, 48)),
        rate=draw(st.sampled_from([0, 0, 20])),
        seed=draw(st.integers(0, 1000)),
        limit=needed / 0.7 * draw(st.floats(1, 3)),
        rules=rules,
        tells_waits=draw(st.booleans()),
        contention=draw(st.sampled_from([0, 0.03])),
    )


@worlds
@given(any_world(), any_world())
def test_bounds_are_kept_and_memory_does(world: World, other: World) -> None:
    """The world itself holds each move to its bounds, and to what may follow."""
    world.adapting(12)
    world.app = replace(other.app, worker=world.app.worker, burst=world.app.burst)
    world.adapting(8)
    assert world.peak <= world.limit


def test_guard_that_acts_is_left_to_act() -> None:
    assert first(WAITING) is not None
    assert moves_of(replace(WAITING, guard_acts=True)) == []


def test_same_samples_make_the_same_moves() -> None:
    one, other = (Place("both", 2, 512).world(2, 1, seed=7).adapting(15) for _ in range(2))
    assert one.moves
    assert (one.moves, one.state) == (other.moves, other.state)


# Single steps.


def test_slots_go_to_what_the_app_needs() -> None:
    """2 CPUs × (1 + 45 / 5) × 2 to spare, in five workers that there can be."""
    move = first(WAITING)
    assert move is not None
    assert (move.workers, move.slots) == (4, 8)
    assert "20% of the CPUs in use; the app waits 9.0 times as long" in move.reason


def test_time_at_a_proxy_and_slots_that_are_all_busy_count_as_waiting() -> None:
    """Behind a balancer nothing waits here."""
    half = replace(WAITING, busy=2, waited_seconds=None)
    assert first(half) is None
    assert first(replace(half, waited_seconds=0.004)) is None
    assert first(replace(half, waited_seconds=0.1)) is not None
    assert first(replace(half, busy=4)) is not None


def test_without_an_estimate_slots_double() -> None:
    move = first(replace(WAITING, slots=3, busy=12, alone=Alone()))
    assert move is not None
    assert move.slots == 6


def test_requests_of_another_app_tell_nothing() -> None:
    """Those that ran alone took four times the CPU time."""
    move = first(replace(WAITING, slots=3, busy=12, alone=Alone(80, 1.6, 3.2)))
    assert move is not None
    assert move.slots == 6


def test_step_is_as_large_as_memory_allows() -> None:
    large = replace(WAITING, worker_need_bytes=400 * MB, thread_need_bytes=30 * MB)
    move = first(large)
    assert move is not None
    assert (move.workers, move.slots) == (4, 3)
    assert first(replace(large, memory_free_bytes=100 * MB)) is None


@pytest.mark.parametrize(
    ("rules", "shape"),
    [
        (replace(RULES, follows_slots=False), (5, 1)),
        (replace(RULES, follows_workers=False), (4, 10)),
        (replace(RULES, most_slots=5), (4, 5)),
        (replace(RULES, follows_workers=False, follows_slots=False), None),
        (replace(RULES, follows_slots=False, most_workers=4), None),
    ],
)
def test_what_the_operator_has_set_is_kept(
    rules: AdaptingRules, shape: tuple[int, int] | None
) -> None:
    move = first(WAITING, rules)
    assert (move and (move.workers, move.slots)) == shape


def test_worker_that_was_not_measured_has_no_other_beside_it() -> None:
    rules = replace(RULES, follows_slots=False)
    assert first(WAITING, rules) is not None
    assert first(replace(WAITING, worker_need_bytes=None), rules) is None
    assert first(replace(WAITING, wanted=5), rules) is None


ONE = replace(
    WAITING,
    workers=1,
    wanted=1,
    slots=8,
    busy=8,
    cpu_of_group=0.5,
    cpu_of_processes=(1.0,),
    alone=Alone(),
)
"""One worker that uses one of two cores."""


def test_worker_that_uses_one_core_is_full() -> None:
    move = first(ONE)
    assert move is not None
    assert (move.workers, move.slots) == (2, 8)
    assert first(replace(ONE, worker_need_bytes=400 * MB)) == Move(
        1, 4, "too many slots, 50% of the CPUs in use"
    )


def test_worker_may_have_more_than_one_core() -> None:
    alone = replace(RULES, follows_workers=False, may_exceed_core=True)
    move = first(ONE, alone)
    assert move is not None
    assert move.slots == 16
    seen = first(replace(ONE, cpu_of_processes=(1.4,)), replace(RULES, follows_workers=False))
    assert seen is not None
    assert seen.slots == 16


def test_full_cpus_need_no_more_slots() -> None:
    """A quota that is used up, and nobody knows what the app needs: half as many are tried."""
    move = first(FULL)
    assert move is not None
    assert (move.workers, move.slots) == (4, 8)


def obeyed(before: Sample, after: Sample) -> list[Move]:
    """Return the first move, and those after it, where the sample is another one then."""
    state, found, now = State(), list[Move](), 0.0
    seen = before
    for _ in range(12):
        now += 1
        state, move = adapt(RULES, state, replace(seen, now=now))
        if move:
            found.append(move)
            seen = replace(after, slots=move.slots) if len(found) == 1 else before
    return found


def test_step_that_brought_nothing_is_taken_back_and_not_made_again() -> None:
    moves = obeyed(WAITING, replace(WAITING, busy=32))
    assert [move.slots for move in moves][:2] == [8, 1]
    assert moves[1].reason == "more slots did not help (80 requests/s, 80 before)"
    assert all(move.slots == 1 for move in moves[1:])


def test_step_that_brought_something_stays() -> None:
    after = replace(WAITING, done=350, cpu_seconds=1.75, busy=32, cpu_of_group=0.9, alone=Alone())
    assert [move.slots for move in obeyed(WAITING, replace(after, waited_seconds=0.0))][:1] == [8]
    assert 1 not in [move.slots for move in obeyed(WAITING, after)]


def test_slots_that_are_missed_come_back() -> None:
    less = replace(FULL, done=60, cpu_seconds=0.3, cpu_of_group=0.75)
    moves = obeyed(FULL, less)
    assert [move.slots for move in moves][:2] == [8, 16]
    assert moves[1].reason == "fewer slots made it slower (60 requests/s, 80 before)"


def test_steady_load_has_one_move_a_minute_unless_its_requests_become_others() -> None:
    """Those of before the last move took twice the CPU time."""
    state = State(changed_at=-100, moved_at=-10, load=Mean.of([WAITING]))
    assert moves_of(WAITING, state=state) == []
    others = replace(state, load=Mean.of([replace(WAITING, cpu_seconds=0.8)]))
    assert moves_of(WAITING, state=others) != []
    assert moves_of(WAITING, state=replace(state, moved_at=-PACE_SECONDS)) != []


def test_step_that_turns_back_another_is_not_soon_made_again() -> None:
    for kept_up, is_blocked in ((None, False), (True, False), (False, True)):
        state, move = State(kept_up=kept_up), None
        for now in (1, 2):
            state, move = adapt(RULES, state, replace(WAITING, now=now))
        assert move is not None
        assert (state.up.until > 2) is is_blocked
