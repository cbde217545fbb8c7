"""The process beside the server: how it begins, what it gives up, when it ends, who outlives it."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress

import pytest

from flask_workersize.log import logger
from flask_workersize.monitor import process as monitor_module
from flask_workersize.monitor.loop import Look, MonitorLoop, Task
from flask_workersize.monitor.process import Monitor, Port
from flask_workersize.resources.processes import may_set_nice, start_time
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import Snapshot, State
from flask_workersize.servers.listeners import open_listeners
from tests.children import Children, Pipe, await_end, is_gone, kill, status_of
from tests.runtime.workers import await_ready, forks, serving_worker
from tests.seccomp import CAN_FORBID, forbid
from tests.servers.serving import await_that

PROMISE = 3600.0
"""Seconds for which nothing happens, whatever the machine has to do."""


class Open:
    """A port that is open in the monitor, and says when it is closed.

    :param pipe: where it says so
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def close(self) -> None:
        self._pipe.tell("closed")


class Nothing(Task):
    """A task that does nothing."""

    interval = 0.01


class Failing(Nothing):
    """Fails.

    :param error: how
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def run(self, now: float, look: Look) -> None:
        raise self._error


class Ticking(Nothing):
    """Says that it goes round.

    :param pipe: where it says so
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def run(self, now: float, look: Look) -> None:
        self._pipe.tell("turn")


class Hanging(Ticking):
    """Never comes back."""

    def run(self, now: float, look: Look) -> None:
        self._pipe.tell("hangs")
        time.sleep(PROMISE)


class Telling(Task):
    """A duty that says where and when it is done.

    :param pipe: where it says so
    """

    interval = 0.01

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def run(self, now: float, look: Look) -> None:
        self._pipe.tell(f"{os.getpid()} looks")

    def end(self, snapshot: Snapshot) -> None:
        self._pipe.tell(f"{os.getpid()} ends")


class Probe(Port):
    """A port.

    :param open_port: opens its listeners
    :param serve: what the monitor does with them
    :param is_held: whether the master holds them, too
    """

    def __init__(
        self,
        open_port: Callable[[], Sequence[socket.socket]] = tuple,
        serve: Callable[[], AbstractContextManager[object]] = ExitStack,
        is_held: bool = True,
    ) -> None:
        self._open_port = open_port
        self._serve = serve
        self.is_held = is_held

    def open(self) -> Sequence[socket.socket]:
        return self._open_port()

    def serve(self, listeners: Sequence[socket.socket]) -> AbstractContextManager[object]:
        return self._serve()


class Monitors:
    """Starts monitors, and kills them at the end."""

    def __init__(self) -> None:
        self._started: list[Monitor] = []

    def __call__(
        self,
        board: Scoreboard,
        task: Task | None = None,
        port: Port | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> Monitor:
        tasks = [] if task is None else [task]
        monitor = Monitor(board, lambda: MonitorLoop(board, tasks), port or Port(), settle)
        self._started.append(monitor)
        monitor.start()
        return monitor

    def close(self) -> None:
        for monitor in self._started:
            if monitor.pid is not None:
                kill(monitor.pid)
            monitor.stop()


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    monitors = Monitors()
    yield monitors
    monitors.close()


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Let the collector see again what the start of a monitor keeps from it."""
    yield
    gc.unfreeze()


@pytest.fixture
def board() -> Scoreboard:
    """Return the table of a deployment that serves."""
    board = Scoreboard(2, 1)
    board.state = State.SERVING
    return board


def pid_of(monitor: Monitor) -> int:
    assert monitor.pid is not None
    return monitor.pid


# Its end


@forks
def test_monitor_ends_when_the_table_says_that_the_server_has_stopped(
    board: Scoreboard, monitors: Monitors
) -> None:
    with Pipe() as pipe:
        monitor = monitors(board, Ticking(pipe), Probe(serve=lambda: closing(Open(pipe))))
        pipe.hear_only()
        assert pipe.hear() == "turn"
        board.state = State.STOPPED
        said = [*pipe]
    assert said[-1] == "closed"
    assert status_of(pid_of(monitor)) == 0


@forks
@pytest.mark.parametrize("state", [State.STARTING, State.SERVING, State.DRAINING, State.STOPPING])
def test_monitor_goes_on_until_then(board: Scoreboard, monitors: Monitors, state: State) -> None:
    """It is asked while the server drains and stops."""
    with Pipe() as pipe:
        monitor = monitors(board, Ticking(pipe))
        pipe.hear()
        board.state = state
        for _ in range(5):
            pipe.hear()
        assert not is_gone(pid_of(monitor))


@forks
def test_stop_ends_the_monitor_and_says_that_the_server_has_stopped(
    board: Scoreboard, monitors: Monitors
) -> None:
    monitor = monitors(board)
    pid = pid_of(monitor)
    monitor.stop()
    assert board.state is State.STOPPED
    assert monitor.pid is None
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
    monitor.stop()


@forks
def test_monitor_that_hangs_is_killed_at_the_stop(board: Scoreboard, monitors: Monitors) -> None:
    with Pipe() as pipe:
        monitor = monitors(board, Hanging(pipe))
        pipe.hear()
    pid = pid_of(monitor)
    monitor.stop()
    assert is_gone(pid)


@forks
def test_stop_of_a_monitor_that_has_died_is_quiet(board: Scoreboard, monitors: Monitors) -> None:
    monitor = monitors(board)
    os.kill(pid_of(monitor), signal.SIGKILL)
    monitor.stop()
    assert monitor.pid is None


@forks
def test_stop_of_a_monitor_that_somebody_else_has_waited_for_is_quiet(
    board: Scoreboard, monitors: Monitors
) -> None:
    """Gunicorn's master waits for any child."""
    monitor = monitors(board)
    os.kill(pid_of(monitor), signal.SIGKILL)
    status_of(pid_of(monitor))
    monitor.stop()
    assert monitor.pid is None


@forks
def test_stop_and_keep_in_a_process_that_is_not_the_master_do_nothing(
    board: Scoreboard, monitors: Monitors, children: Children
) -> None:
    """A worker inherits the monitor's handle, and may leave through the master's frames."""
    monitor = monitors(board)

    def leave() -> None:
        monitor.keep()
        monitor.stop()

    assert status_of(children(leave)) == 0
    assert board.state is State.SERVING
    assert not is_gone(pid_of(monitor))


@forks
def test_worker_does_not_start_another_monitor(
    board: Scoreboard, monitors: Monitors, children: Children
) -> None:
    monitor = monitors(board)
    pid = pid_of(monitor)
    os.kill(pid, signal.SIGKILL)
    await_end(pid)

    def keep() -> None:
        monitor.keep()
        assert monitor.pid == pid

    assert status_of(children(keep)) == 0


@forks
@pytest.mark.parametrize("where", ["settle", "open_probe", "task"])
@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), SystemExit(3), SystemExit(4), KeyboardInterrupt()], ids=repr
)
def test_monitor_that_fails_ends_with_1(
    board: Scoreboard, monitors: Monitors, where: str, error: BaseException
) -> None:
    """A status of 3 or 4 would stop gunicorn, which takes it for a worker that cannot boot."""

    def fail() -> None:
        raise error

    def open_probe() -> AbstractContextManager[object]:
        if where == "open_probe":
            fail()
        return ExitStack()

    settle = fail if where == "settle" else lambda: None
    monitor = monitors(
        board, Failing(error) if where == "task" else None, Probe(serve=open_probe), settle
    )
    assert status_of(pid_of(monitor)) == 1


@forks
def test_monitor_ends_past_the_exit_handlers_of_the_master(
    board: Scoreboard, monitors: Monitors
) -> None:
    """What the launcher has to clean up, such as an app context, is the launcher's."""
    with Pipe() as pipe:
        try:
            monitor = monitors(board, Failing(SystemExit(0)))
        finally:
            pipe.tell(str(os.getpid()))
        assert pipe.hear() == str(os.getpid())
        assert status_of(pid_of(monitor)) == 1
        pipe.hear_only()
        with pytest.raises(EOFError):
            pipe.hear()


# Started again


def restarted(monitor: Monitor) -> Callable[[], bool]:
    """Return whether another process is the monitor by now, after it was looked at."""
    before = pid_of(monitor)

    def is_another() -> bool:
        monitor.keep()
        return pid_of(monitor) != before

    return is_another


@forks
def test_monitor_that_is_killed_is_started_again_with_one_line(
    board: Scoreboard, monitors: Monitors, caplog: pytest.LogCaptureFixture
) -> None:
    with Pipe() as pipe:
        monitor = monitors(board, Ticking(pipe))
        first = pid_of(monitor)
        os.kill(first, signal.SIGKILL)
        await_that(restarted(monitor), "another monitor")
        assert is_gone(first)
        assert not is_gone(pid_of(monitor))
        assert caplog.messages == ["monitor died (SIGKILL); restarting."]
        assert [event.text for event in board.events.read()] == [
            "monitor died (SIGKILL); restarting"
        ]
        monitor.stop()


@forks
def test_monitor_that_lives_is_left_alone(
    board: Scoreboard, monitors: Monitors, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = monitors(board)
    pid = pid_of(monitor)
    for _ in range(5):
        monitor.keep()
    assert pid_of(monitor) == pid
    assert caplog.messages == []


@forks
def test_monitor_that_dies_at_each_start_is_not_started_again_at_once(
    board: Scoreboard, monitors: Monitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is; else a fault in it would keep the master busy, and fill the log."""
    monkeypatch.setattr(monitor_module, "_AGAIN_SECONDS", PROMISE)
    monitor = monitors(board, Failing(RuntimeError("broken")))
    await_end(pid_of(monitor))
    await_that(restarted(monitor), "another monitor")
    second = pid_of(monitor)
    await_end(second)
    for _ in range(5):
        monitor.keep()
    assert pid_of(monitor) == second
    monkeypatch.setattr(monitor_module, "_AGAIN_SECONDS", 0.0)
    await_that(restarted(monitor), "another monitor, after a while")


@forks
def test_monitor_that_somebody_else_has_waited_for_is_started_again(
    board: Scoreboard, monitors: Monitors
) -> None:
    """Gunicorn's master waits for any child, and then calls its hook."""
    monitor = monitors(board)
    os.kill(pid_of(monitor), signal.SIGKILL)
    status_of(pid_of(monitor))
    await_that(restarted(monitor), "another monitor")
    assert not is_gone(pid_of(monitor))


def opened() -> tuple[list[socket.socket], Callable[[], bool]]:
    """Return a list with a listener, and whether its port is open."""
    listeners = [socket.create_server(("127.0.0.1", 0))]
    address = listeners[0].getsockname()

    def is_open() -> bool:
        try:
            socket.create_connection(address, 10).close()
        except ConnectionRefusedError:
            return False
        return True

    return listeners, is_open


@forks
def test_port_is_open_between_two_monitors_and_closed_while_none_is_to_come(
    board: Scoreboard, monitors: Monitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody serves would leave a probe waiting; what is refused is known at once."""
    monkeypatch.setattr(monitor_module, "_AGAIN_SECONDS", PROMISE)
    first, is_open = opened()
    addresses = [first[0].getsockname()]

    def open_port() -> list[socket.socket]:
        return [first.pop()] if first else [socket.create_server(addresses[0])]

    monitor = monitors(board, Failing(RuntimeError("broken")), Probe(open_port))
    await_end(pid_of(monitor))
    assert is_open()
    await_that(restarted(monitor), "another monitor")
    await_end(pid_of(monitor))
    monitor.keep()
    assert not is_open()
    monkeypatch.setattr(monitor_module, "_AGAIN_SECONDS", 0.0)
    await_that(restarted(monitor), "another monitor, after a while")
    assert is_open()
    monitor.stop()
    assert not is_open()


@forks
def test_port_of_a_master_that_does_not_see_the_death_is_closed_with_the_monitor(
    board: Scoreboard, monitors: Monitors
) -> None:
    listeners, is_open = opened()
    monitor = monitors(board, port=Probe(lambda: listeners, is_held=False))
    assert is_open()
    os.kill(pid_of(monitor), signal.SIGKILL)
    await_end(pid_of(monitor))
    assert not is_open()


@forks
def test_port_that_another_has_taken_meanwhile_is_one_line_and_tried_again_later(
    board: Scoreboard, monitors: Monitors, caplog: pytest.LogCaptureFixture
) -> None:
    ports: list[Callable[[], list[socket.socket]]] = [list, lambda: open_listeners([address])]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        monitor = monitors(board, port=Probe(lambda: ports.pop(0)()))  # noqa: PLW0108 - each time the next
        os.kill(pid_of(monitor), signal.SIGKILL)
        await_end(pid_of(monitor))
        for _ in range(5):
            monitor.keep()
    died, reason = caplog.messages
    assert died == "monitor died (SIGKILL); restarting."
    assert reason.startswith("cannot start the monitor, will retry: ")
    assert address in reason


@forks
@pytest.mark.skipif(not CAN_FORBID, reason="no filter of system calls is known for this system")
def test_monitor_lives_under_a_filter_that_kills_for_a_higher_priority(
    board: Scoreboard, children: Children
) -> None:
    """Only the first one, of root, may be killed for it; the line says by what."""
    lines: list[str] = []
    logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]

    def be_master() -> None:
        forbid("setpriority")
        with Pipe() as pipe:
            monitor = Monitor(board, lambda: MonitorLoop(board, [Ticking(pipe)]), Port())
            monitor.start()
            if may_set_nice(-10):
                await_end(pid_of(monitor))
                await_that(restarted(monitor), "another monitor")
                hint = "sent by a filter such as SystemCallFilter="
                assert lines == [f"monitor died (SIGSYS, {hint}); restarting."]
            for _ in range(3):
                assert pipe.hear() == "turn"
            monitor.keep()
            assert len(lines) <= 1
            monitor.stop()

    try:
        assert status_of(children(be_master)) == 0
    finally:
        logger.removeHandler(handler)


@forks
@pytest.mark.parametrize("kind", ["as we are", "with the limit", "as nobody"])
def test_priority_is_raised_where_the_system_lets_it_be_and_not_tried_elsewhere(
    children: Children, kind: str
) -> None:
    """Root in a container often lacks the right, too: the user's number says nothing."""

    def check() -> None:
        if kind == "with the limit":
            with suppress(AttributeError, ValueError):
                resource.setrlimit(resource.RLIMIT_NICE, (30, 30))
        if kind != "as we are" and os.geteuid() == 0:
            os.setuid(65534)
        expected = may_set_nice(-10)
        try:
            os.nice(-10)
        except OSError:
            assert not expected
        else:
            assert expected

    resource = pytest.importorskip("resource")
    assert status_of(children(check)) == 0


@forks
def test_monitor_is_not_started_again_after_the_stop(board: Scoreboard, monitors: Monitors) -> None:
    monitor = monitors(board)
    monitor.stop()
    monitor.keep()
    assert monitor.pid is None


# What is not for it


@forks
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
    ],
)
def test_signal_to_the_whole_group_does_not_end_the_monitor(
    board: Scoreboard, monitors: Monitors, number: int
) -> None:
    """It is needed until the master has ended."""
    with Pipe() as pipe:
        monitor = monitors(board, Ticking(pipe))
        pipe.hear_only()
        pipe.hear()
        os.kill(pid_of(monitor), number)
        for _ in range(5):
            assert pipe.hear() == "turn"
        assert not is_gone(pid_of(monitor))


@forks
def test_handlers_of_the_master_are_not_called_in_the_monitor(
    board: Scoreboard, monitors: Monitors
) -> None:
    """Nor does a signal that comes while it starts get lost for the master."""
    with Pipe() as called:
        before = signal.signal(signal.SIGUSR1, lambda signum, frame: called.tell(str(os.getpid())))
        try:
            with Pipe() as pipe:
                monitor = monitors(board, Ticking(pipe))
                os.kill(pid_of(monitor), signal.SIGUSR1)
                pipe.hear()
                os.kill(pid_of(monitor), signal.SIGUSR1)
                pipe.hear()
                os.kill(os.getpid(), signal.SIGUSR1)
                assert called.hear() == str(os.getpid())
                monitor.stop()
        finally:
            signal.signal(signal.SIGUSR1, before)
        called.hear_only()
        with pytest.raises(EOFError):
            called.hear()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@forks
def test_what_is_to_be_given_up_is_given_up_before_anybody_is_answered(
    board: Scoreboard, monitors: Monitors
) -> None:
    with Pipe() as pipe:

        def open_probe() -> AbstractContextManager[object]:
            pipe.tell("opened")
            return ExitStack()

        monitors(board, Ticking(pipe), Probe(serve=open_probe), settle=lambda: pipe.tell("settled"))
        assert [pipe.hear() for _ in range(3)] == ["settled", "opened", "turn"]


@forks
def test_monitor_keeps_the_sockets_that_it_needs_and_gives_up_those_of_the_app(
    board: Scoreboard, monitors: Monitors
) -> None:
    """Listeners and connections: an app that closes them would not be rid of them."""
    ours, theirs = socket.socketpair()
    with (
        Pipe() as pipe,
        socket.create_server(("127.0.0.1", 0)) as kept,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        ours,
    ):

        def open_probe() -> AbstractContextManager[object]:
            items = {"listener": listener, "datagrams": datagrams, "pair": theirs}
            modes = {name: os.fstat(item.fileno()).st_mode for name, item in items.items()}
            pipe.tell(json.dumps({name: stat.S_ISSOCK(mode) for name, mode in modes.items()}))
            return ExitStack()

        monitors(board, port=Probe(lambda: [kept.dup()], open_probe, is_held=False))
        assert json.loads(pipe.hear()) == {
            "listener": False,
            "datagrams": True,
            "pair": False,
        }
        theirs.close()
        ours.settimeout(10)
        assert ours.recv(1) == b""
        addresses = [item.getsockname() for item in (listener, kept)]
        for item in (listener, kept):
            item.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(addresses[0], 10)
        socket.create_connection(addresses[1], 10).close()


@forks
def test_what_is_given_up_stays_a_descriptor_that_leads_nowhere(
    board: Scoreboard, monitors: Monitors
) -> None:
    """Who in the monitor still knows its number reaches nothing, and no other file."""
    with Pipe() as pipe, socket.create_server(("127.0.0.1", 0)) as listener:

        def open_probe() -> AbstractContextManager[object]:
            opened = os.open(os.devnull, os.O_RDWR)
            pipe.tell(str(opened != listener.fileno()))
            pipe.tell(str(os.write(listener.fileno(), b"lost")))
            return ExitStack()

        monitors(board, port=Probe(serve=open_probe))
        assert (pipe.hear(), pipe.hear()) == ("True", "4")


# Workers that have lost their master


def deploy(
    board: Scoreboard,
    workers: list[Callable[[], None]],
    told: Pipe,
    tasks: Iterable[Task] = (),
) -> None:
    """Be a master with a monitor and workers, until a signal ends it."""
    monitor = Monitor(board, lambda: MonitorLoop(board, tasks), Port())
    monitor.start()
    told.tell(str(monitor.pid))
    with Children() as children:
        for work in workers:
            children(work)
        while True:
            signal.pause()


@forks
def test_workers_of_a_master_that_was_killed_are_ended_and_the_monitor_ends(
    board: Scoreboard, children: Children
) -> None:
    """Also one that does not obey: it would hold the port against the next server."""
    workers = [serving_worker(board, 1), serving_worker(board, 2, obeys=False)]
    with Pipe() as told:
        master = children(lambda: deploy(board, workers, told))
        monitor = int(told.hear())
    await_ready(board, 2)
    pids = [row.pid for row in board.read().workers]
    os.kill(master, signal.SIGKILL)
    status_of(master)
    await_that(lambda: all(map(is_gone, [*pids, monitor])), "workers and monitor are gone")


@forks
def test_process_that_has_the_id_of_a_worker_by_now_is_left_alone(
    board: Scoreboard, children: Children
) -> None:
    """A row may outlive its worker for a moment, and an id may be used again."""
    bystander = children(serving_worker(board, 1))
    await_ready(board, 1)
    (word,) = (n for n, cell in enumerate(board.cells) if cell == start_time(bystander))
    board.cells[word] -= 1
    with Pipe() as told:
        master = children(lambda: deploy(board, [], told))
        monitor = int(told.hear())
    os.kill(master, signal.SIGKILL)
    status_of(master)
    await_that(lambda: is_gone(monitor), "the monitor is gone")
    assert not is_gone(bystander)


@forks
def test_master_that_is_killed_after_it_has_stopped_leaves_nothing_to_end(
    board: Scoreboard, children: Children
) -> None:
    bystander = children(serving_worker(board, 1))
    await_ready(board, 1)
    with Pipe() as told:
        master = children(lambda: deploy(board, [], told))
        monitor = int(told.hear())
    board.state = State.STOPPED
    os.kill(master, signal.SIGKILL)
    status_of(master)
    await_that(lambda: is_gone(monitor), "the monitor is gone")
    assert not is_gone(bystander)


# What it is there for


@forks
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_duties_of_the_monitor_are_done_in_it_and_ended_at_its_end(
    board: Scoreboard, children: Children, how: str
) -> None:
    """Whether the server has stopped, or the master was killed."""
    with Pipe() as told, Pipe() as pipe:
        master = children(lambda: deploy(board, [], told, [Telling(pipe)]))
        monitor = told.hear()
        pipe.hear_only()
        assert pipe.hear() == f"{monitor} looks"
        board.state = State.STOPPED if how == "stop" else State.SERVING
        if how == "kill":
            os.kill(master, signal.SIGKILL)
            status_of(master)
        await_that(lambda: is_gone(int(monitor)), "the monitor is gone")
        if how == "stop":
            os.kill(master, signal.SIGKILL)
        said = [*pipe]
    assert said[-1] == f"{monitor} ends"
    assert said.count(f"{monitor} ends") == 1


@forks
def test_monitor_goes_before_computing_workers_where_it_may(
    board: Scoreboard, monitors: Monitors
) -> None:
    with Pipe() as pipe:
        monitor = monitors(board, Ticking(pipe))
        pipe.hear()
        priority = os.getpriority(os.PRIO_PROCESS, pid_of(monitor))
        assert priority <= os.getpriority(os.PRIO_PROCESS, 0)


# A system that cannot fork


def test_there_is_no_monitor_where_a_system_cannot_fork(
    board: Scoreboard, monitors: Monitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "fork")
    monitor = monitors(board, Failing(AssertionError("there is none")))
    monitor.keep()
    assert monitor.pid is None
    monitor.stop()
    assert board.state is State.STOPPED
