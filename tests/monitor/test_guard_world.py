"""The memory guard in a small world: what its decisions come to over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from flask_workersize.monitor.guard import (
    CALM_SECONDS,
    LONGEST_CALM_SECONDS,
    PACE_SECONDS,
    WARM_REQUESTS,
)
from flask_workersize.monitor.observation import TIGHT_SHARE, Kind, Rules
from flask_workersize.resources.holders import NO_HOLDERS, Holders
from tests.monitor.world import App, World
from tests.plain import MB

# A world that fails is read as it is: to look for a smaller one takes minutes.
worlds = settings(deadline=None, max_examples=10, phases=[Phase.reuse, Phase.generate])


def check(world: World) -> None:
    """Hold a world without kills to what has to be so in every one."""
    assert world.crashed == 0
    assert world.least_ready >= 1
    check_pace(world)
    check_plan(world)


def check_pace(world: World) -> None:
    done = [past for past in world.done if past.action.kind is not Kind.WARN]
    for before, after in pairwise(done):
        if after.action.kind is not Kind.FINISH:
            assert after.at - before.at >= PACE_SECONDS


def check_plan(world: World) -> None:
    """There is one more than planned only while a last worker is replaced."""
    assert world.most <= world.planned + (Kind.REPLACE in world.kinds())
    replacing = [kind for kind in world.kinds() if kind in (Kind.REPLACE, Kind.FINISH)]
    assert replacing[::2] == [Kind.REPLACE] * len(replacing[::2])
    assert replacing[1::2] == [Kind.FINISH] * len(replacing[1::2])


@st.composite
def leaking(draw: st.DrawFn) -> World:
    """Return a server that leaks, with room for what comes while one worker is replaced."""
    planned = draw(st.integers(1, 5))
    fresh = draw(st.integers(5, 60))
    app = App(fresh, fresh + draw(st.integers(0, 60)), leak=draw(st.floats(0.05, 1)))
    rate = draw(st.floats(10, 200))
    boot, leave = draw(st.floats(0.02, 1)), draw(st.floats(0, 1))
    obey = draw(st.floats(0.01, 0.3))
    while_one_goes = app.leak * rate * (boot + leave + 2 * obey + 0.3)
    warm = app.own(WARM_REQUESTS) + app.leak * rate * 0.1
    least = 60 + (planned + 1) * warm + 2 * while_one_goes
    return World(
        app, planned, least / 0.6 * draw(st.floats(1, 2)), rate, boot, leave, obey_seconds=obey
    )


@worlds
@given(leaking())
def test_leak_is_recycled_kills_nobody_and_costs_no_worker(world: World) -> None:
    world.run(60)
    check(world)
    kinds = set(world.kinds())
    assert kinds <= ({Kind.REPLACE, Kind.FINISH} if world.planned == 1 else {Kind.RECYCLE})
    assert world.fewer == 0
    leaked = world.app.leak * world.requests_per_second * 60
    assert bool(kinds) or leaked < world.limit


def test_leak_of_half_a_megabyte_a_request_is_recycled_for_as_long_as_it_lasts() -> None:
    world = World(App(leak=0.5), 4, 400).run(60)
    check(world)
    assert len(world.times(Kind.RECYCLE)) > 20
    assert max(world.times(Kind.RECYCLE)) > 55


def test_leak_that_keeps_memory_short_for_minutes_is_recycled_as_fast_as_it_takes() -> None:
    world = World(App(10, 15, leak=0.5), 8, 512, requests_per_second=200, boot_seconds=0.5).run(120)
    check(world)
    times = world.times(Kind.RECYCLE)
    assert all(after - before < 2 for before, after in pairwise(times))


def test_single_worker_is_replaced_again_and_again_and_there_are_never_more_than_two() -> None:
    world = World(App(leak=0.5), 1, 300, requests_per_second=30).run(60)
    check(world)
    assert world.most == 2
    assert len(world.times(Kind.FINISH)) > 3
    assert world.surge in (0, 1)


def test_app_that_takes_longer_to_load_than_any_patience_gets_one_stand_in_all_the_same() -> None:
    """It is there in the end, and takes over."""
    world = World(
        App(leak=0.02), 1, 400, requests_per_second=40, boot_seconds=80, look_seconds=0.25
    )
    world.rules = Rules(patience_seconds=35)
    world.run(400)
    check(world)
    assert world.most == 2
    assert Kind.FINISH in world.kinds()


@st.composite
def too_large(draw: st.DrawFn) -> World:
    """Return an honest server of which only some workers fit; it warms up slowly."""
    planned = draw(st.integers(2, 6))
    fits = draw(st.integers(1, planned - 1))
    warm = draw(st.integers(60, 200))
    # 90 % of the limit are above what fits, and below what one more needs.
    between = 60 + (fits + draw(st.floats(0.2, 0.8))) * warm
    app = App(warm * fits / planned * draw(st.floats(0.3, 0.8)), warm)
    return World(app, planned, between / 0.9, planned * draw(st.floats(0.5, 2)))


@worlds
@given(too_large())
def test_honest_app_that_is_too_large_gets_as_many_workers_as_fit_and_is_not_recycled(
    world: World,
) -> None:
    """Nor does it go to and fro between two numbers."""
    world.run(120)
    check(world)
    assert set(world.kinds()) == {Kind.FEWER}
    fits = int((0.9 * world.limit - 60) / world.app.warm)
    assert world.wanted == len(world.processes) == max(fits, 1)
    assert all("The plan is too large" in past.action.reason for past in world.done)


def test_honest_app_of_which_not_even_one_fits_is_warned_of_and_goes_on() -> None:
    world = World(App(60, 240), 3, 320, requests_per_second=3).run(60)
    check(world)
    assert world.wanted == 1
    assert world.done[-1].action.kind is Kind.WARN
    assert len(world.serving) == 1


@worlds
@given(st.integers(1, 6), st.floats(0.3, 0.69), st.floats(1, 300))
def test_app_that_fits_is_left_alone(planned: int, share: float, rate: float) -> None:
    """Whatever its first requests take."""
    world = World(App(20, 50), planned, (60 + planned * 50) / share, rate).run(30)
    assert world.done == []


@worlds
@given(st.integers(2, 6), st.floats(3, 40), st.floats(0.1, 1))
def test_number_grows_back_to_the_plan_step_by_step_and_not_beyond(
    planned: int, lasts: float, boot: float
) -> None:
    """Something else in the group takes memory for a while, and gives it back."""

    def squeezed(world: World) -> float:
        return 750 if 5 < world.now < 5 + lasts else 60

    app = App(100 / planned, 200 / planned)
    world = World(app, planned, 1000, boot_seconds=boot, look_seconds=0.1, shared=squeezed)
    world.run(20 + lasts + (CALM_SECONDS + 1) * planned)
    check(world)
    assert world.wanted == len(world.processes) == planned
    assert len(world.times(Kind.MORE)) == len(world.times(Kind.FEWER)) > 0
    assert Kind.RECYCLE not in world.kinds()
    steps = world.times(Kind.MORE)
    assert all(after - before >= CALM_SECONDS for before, after in pairwise(steps))
    assert steps[0] >= 5 + lasts + CALM_SECONDS - world.look_seconds


def test_each_growing_back_that_fails_doubles_the_wait_for_the_next() -> None:
    """Memory is short as soon as all are there, for a reason that cannot be seen before."""

    def squeezed(world: World) -> float:
        return 900 if len(world.processes) == world.planned else 60

    world = World(App(10, 20), 3, 1000, look_seconds=0.25, obey_seconds=0.25, shared=squeezed)
    world.run(2000)
    check(world)
    waits = [
        after.at - before.at
        for before, after in pairwise(world.done)
        if after.action.kind is Kind.MORE
    ]
    assert len(waits) == 7
    for times, wait in enumerate(waits):
        patience = min(CALM_SECONDS * 2**times, LONGEST_CALM_SECONDS)
        assert patience <= wait <= patience + 3
    assert world.wanted == 2


@worlds
@given(st.integers(1, 5), st.lists(st.floats(0.5, 20), min_size=1, max_size=5))
def test_each_kill_by_the_kernel_means_one_worker_fewer_but_for_the_last(
    planned: int, pauses: list[float]
) -> None:
    """A request takes more at once than there is: nobody is fast enough for that."""
    world = World(App(20, 40), planned, 1000)
    for times, pause in enumerate(pauses, start=1):
        world.run(pause + 1)
        before = world.wanted
        world.serving[-1].burst = 2000
        world.run(1)
        assert world.crashed == times
        assert world.wanted == max(before - 1, 1)


@pytest.mark.parametrize("at_once", [2, 3])
def test_kills_one_right_after_the_other_leave_a_worker_that_is_ready(at_once: int) -> None:
    """Though each is answered whatever is under way, and a master lets the oldest go."""
    world = World(App(20, 40), at_once + 1, 1000, boot_seconds=1, leave_seconds=1)
    world.run(1)
    for _ in range(at_once):
        world.serving[-1].burst = 2000
        world.run(0.25)
    assert world.crashed == at_once
    world.run(5)
    assert 1 <= world.wanted == len(world.serving) <= 2


def test_burst_of_which_few_fit_at_once_gets_as_many_workers_as_fit() -> None:
    """60 MB for a second, once in fifty requests: 256 MB are enough for two or three at once.

    A burst shows while it lasts: only those that begin at the same moment as the first can be too
    many.
    """
    app, killed = App(5, 7, burst=60), 0
    for seed in range(40):
        world = World(app, 5, 256, 300, shared=lambda world: 35)
        world.chance = Random(seed)
        world.run(60)
        assert world.crashed <= 1, seed
        killed += world.crashed
        assert world.wanted in (2, 3)
        assert world.kinds().count(Kind.MORE) <= 1
    assert killed <= 1


@st.composite
def large_from_the_first_request_on(draw: st.DrawFn) -> World:
    """Return a server of which only some workers fit once each has served one request."""
    planned = draw(st.integers(2, 8))
    fits = draw(st.integers(1, planned - 1))
    app = App(7, 7, first=draw(st.floats(20, 100)))
    # All fit before they have served, and one more than fits does not fit afterwards.
    limit = 35 + planned * 7 + (fits + draw(st.floats(0.3, 0.9))) * app.first
    by_plan = draw(st.floats(limit / planned, limit))
    rate, boot = draw(st.floats(10, 300)), draw(st.floats(0.05, 1))
    return World(
        app, planned, limit / 0.9, rate, boot, shared=lambda world: 35, needed_by_plan=by_plan
    )


@worlds
@given(large_from_the_first_request_on())
def test_first_requests_of_which_not_all_fit_kill_nobody(world: World) -> None:
    """Though all workers are ready, and clients wait for each."""
    world.run(60)
    check(world)
    assert set(world.kinds()) == {Kind.FEWER}
    each = world.app.own(1)
    assert 35 + len(world.processes) * each <= world.limit
    # One more would not stay below the share from which workers are removed.
    assert 35 + (world.wanted + 1) * each > 0.7 * world.limit


def test_first_requests_that_wait_for_nothing_are_killed() -> None:
    """Which is what the world above is about."""
    app = App(7, 7, first=60)
    world = World(app, 5, 256, 300, shared=lambda world: 35).run(10)
    assert world.crashed > 0


def test_first_requests_of_which_all_fit_wait_for_nothing_that_can_be_seen() -> None:
    world = World(App(7, 7, first=60), 5, 600, 300, shared=lambda w: 35, needed_by_plan=200)
    world.run(10)
    assert world.done == []
    assert all(one.served for one in world.processes)
    refused = [one.refused_since for one in world.processes]
    assert max(since or 0 for since in refused) <= 1


def test_burst_that_fits_costs_no_worker() -> None:
    world = World(App(5, 7, burst=60), 5, 600, 300, shared=lambda world: 35).run(60)
    assert world.crashed == world.fewer == 0


HOLDERS: dict[str, Callable[[int], Holders]] = {
    "tmpfs": lambda size: Holders(shmem_bytes=size),
    "child": lambda size: Holders(started_bytes=size),
    "neighbour": lambda size: Holders(others_bytes=size),
    "launcher": lambda size: Holders(launcher_bytes=size),
}


def growing(
    what: str, begin: float, most: float, mb_per_second: float
) -> Callable[[World], Holders]:
    """Return something that takes more and more memory from a time on, in MB."""

    def held(world: World) -> Holders:
        size = min(max(world.now - begin, 0) * mb_per_second, most)
        return HOLDERS[what](int(size * MB))

    return held


@pytest.mark.parametrize("what", HOLDERS)
@worlds
@given(st.integers(1, 5), st.floats(180, 400), st.floats(1, 100), st.floats(0.75, 1.2))
def test_what_no_worker_holds_costs_no_worker(
    what: str, planned: int, limit: float, speed: float, share: float
) -> None:
    """Workers of some MB, in a group that something else fills; also above its limit.

    Then the kernel kills, workers too; but fewer of them would be killed just as well.
    """
    app = App(5, 7)
    free = limit - 60 - planned * app.warm
    world = World(app, planned, limit, held=growing(what, 3, free * share, speed)).run(60)
    assert world.fewer == 0
    assert world.wanted == planned
    reasons = {past.action.reason for past in world.done}
    assert all("Not held by the workers, but by" in reason for reason in reasons)
    assert all(str(world.held(world)).partition(":")[0] in reason for reason in reasons)


@pytest.mark.parametrize("what", HOLDERS)
def test_leak_is_recycled_whatever_else_holds_memory(what: str) -> None:
    held = growing(what, 0, 500, 100)
    world = World(App(20, 40, leak=0.2), 4, 1000, held=held).run(120)
    check(world)
    assert set(world.kinds()) == {Kind.RECYCLE}


def test_child_that_comes_and_goes_changes_nothing() -> None:
    """Nor does the number of workers go to and fro."""

    def child(world: World) -> Holders:
        size = 200 if world.now % 6 < 3 else 0
        return replace(NO_HOLDERS, started_bytes=size * MB, started_name="ffmpeg")

    world = World(App(5, 7), 4, 300, held=child).run(60)
    assert world.kinds() == []
    assert world.crashed == 0


@pytest.mark.parametrize("others", [300, 750, 900])
@pytest.mark.parametrize("planned", [1, 3])
def test_leak_on_a_machine_that_others_fill_is_recycled_before_its_end(
    others: int, planned: int
) -> None:
    """Workers of 20 MB that leak, on a machine of 1000 MB."""
    app = App(10, 20, leak=0.05)
    free = 1000 - others - planned * app.warm
    world = World(
        app, planned, 1000, 10, look_seconds=0.25, shared=lambda world: others, is_group=False
    )
    seconds = 4 * free / (0.05 * 10)
    while world.now < seconds:
        world.run(1)
        assert world.used < 1000
    assert set(world.kinds()) <= {Kind.RECYCLE, Kind.REPLACE, Kind.FINISH}
    assert world.kinds()


def test_leak_beside_huge_pages_is_recycled() -> None:
    """48 GB of 64 GB are others'."""
    world = World(
        App(100, 200, leak=1), 9, 65536, 9, look_seconds=1, shared=lambda w: 48000, is_group=False
    )
    for _ in range(40):
        world.run(100)
        assert world.used < 65536
    assert Kind.RECYCLE in world.kinds()


def test_memory_high_lets_all_that_are_too_many_go_at_once() -> None:
    """Above it the kernel puts everybody to sleep: there is no time for one after the other."""
    world = World(App(20, 100), 6, 500, requests_per_second=12, is_throttled=True)
    while not world.kinds():
        world.run(0.05)
    (first,) = (past for past in world.done if past.action.kind is Kind.FEWER)
    assert first.action.count > 1
    world.run(60)
    assert set(world.kinds()) == {Kind.FEWER}
    assert world.used < TIGHT_SHARE * world.limit
    assert world.wanted == len(world.serving) == 3


def test_group_that_is_killed_together_keeps_more_room() -> None:
    world = World(App(20, 100), 6, 800, requests_per_second=12, is_killed_together=True).run(60)
    assert set(world.kinds()) == {Kind.FEWER}
    assert world.used < TIGHT_SHARE * world.limit


def test_neighbours_on_the_same_machine_cost_no_worker() -> None:
    """They use more and more, till nothing is left."""
    world = World(App(20, 40), 4, 1000, shared=lambda world: 60 + 20 * world.now, is_group=False)
    world.run(45)
    assert {past.action.kind for past in world.done} == {Kind.WARN}
    assert len(world.serving) == 4


def test_leak_on_a_machine_without_control_groups_is_recycled() -> None:
    world = World(App(20, 40, leak=0.5), 4, 1000, is_group=False).run(60)
    check(world)
    assert set(world.kinds()) == {Kind.RECYCLE}
    assert world.used < 1000


@worlds
@given(st.integers(1, 4), st.integers(100, 300))
def test_worker_with_a_bound_never_has_much_more(planned: int, bound: int) -> None:
    """But for what comes while it ends."""
    rules = Rules(worker_max_bytes=bound * 1024 * 1024)
    world = World(App(20, 40, leak=0.5), planned, 100_000, rules=rules)
    for _ in range(40):
        world.run(1)
        assert all(world.own(one) <= bound + 0.5 * 100 for one in world.processes)
    check(world)
    assert world.done
