"""Schedulers, threads and connections that a fork leaves behind or shares."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import psutil
import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask
from flask_apscheduler import APScheduler
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, NullPool, create_engine, event

from flask_workersize.doctor.engines import connected_before_fork
from flask_workersize.doctor.finding import Finding
from flask_workersize.doctor.fork_probe import fork_probe
from flask_workersize.doctor.schedulers import running_schedulers
from flask_workersize.doctor.threads import threads_before_fork
from flask_workersize.runtime.fork import worker_forked
from flask_workersize.runtime.inherited import origin
from tests.doctor.cases import case, levels, sized
from tests.servers.serving import await_that

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
pytestmark = needs_fork


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    """Return a scheduler with a job, not started."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(print, "interval", hours=1)
    yield scheduler
    if scheduler.running:
        scheduler.shutdown()


def test_scheduler_that_runs_before_the_fork_stays_in_the_launcher(
    scheduler: BackgroundScheduler,
) -> None:
    scheduler.start()
    (finding,) = running_schedulers(case(sized()))
    assert finding.level == "breaks"
    assert "only in the launcher" in finding.what


def test_scheduler_runs_in_each_worker_without_preload(scheduler: BackgroundScheduler) -> None:
    scheduler.start()
    (finding,) = running_schedulers(case(sized(), preload=False))
    assert finding.level == "breaks"
    assert "4 workers run each job 4 times" in finding.what


@pytest.mark.parametrize("runs_before", [True, False])
def test_scheduler_that_each_worker_starts_runs_in_each(
    scheduler: BackgroundScheduler, runs_before: bool
) -> None:
    app = sized()

    def start(_: Flask) -> None:
        BackgroundScheduler().start()

    if runs_before:
        scheduler.start()
    with worker_forked.connected_to(start, sender=app):
        (finding,) = running_schedulers(case(app))
    assert "runs in each worker" in finding.what


@pytest.mark.parametrize("preload", [True, False])
def test_scheduler_that_nobody_starts_is_no_finding(
    scheduler: BackgroundScheduler, preload: bool
) -> None:
    assert scheduler.get_jobs() != []
    assert levels(running_schedulers, case(sized(), preload)) == []


def test_scheduler_without_a_job_repeats_nothing() -> None:
    scheduler = BackgroundScheduler()
    scheduler.start()
    try:
        assert levels(running_schedulers, case(sized(), preload=False)) == []
        assert levels(running_schedulers, case(sized())) == ["breaks"]
    finally:
        scheduler.shutdown()


def test_flask_apscheduler_is_found_once_it_is_started() -> None:
    app = sized(JOBS=[{"id": "a", "func": "os:getpid", "trigger": "interval", "hours": 1}])
    scheduler = APScheduler(app=app)
    assert levels(running_schedulers, case(app)) == []
    scheduler.start()
    try:
        assert levels(running_schedulers, case(app)) == ["breaks"]
        assert levels(running_schedulers, case(app, preload=False)) == ["breaks"]
    finally:
        scheduler.shutdown()


def test_threads_of_a_scheduler_are_not_told_twice(scheduler: BackgroundScheduler) -> None:
    ran = threading.Event()
    scheduler.add_job(ran.set)
    scheduler.start()
    assert ran.wait(10)
    told = told_of_threads(sized())
    assert "apscheduler" not in told
    assert "concurrent.futures.thread" not in told


class Mailer:
    """Something that runs in a thread until it is stopped."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def work(self, *_: Any) -> None:
        self._stopped.wait(60)

    def start(self, _: Flask | None = None) -> None:
        threading.Thread(target=self.work, name="mailer", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()


@pytest.fixture
def mailer() -> Iterator[Mailer]:
    """Return a mailer, and stop it."""
    mailer = Mailer()
    yield mailer
    mailer.stop()


ORIGIN = f"{__name__}.Mailer.work"


def told_of_threads(app: Flask, preload: bool = True) -> str:
    """Return the finding about threads; it may name threads of the tests, too."""
    return " ".join(f"{each.level}: {each}" for each in threads_before_fork(case(app, preload)))


def test_thread_that_runs_before_the_fork_is_missing_in_workers(mailer: Mailer) -> None:
    mailer.start()
    told = told_of_threads(sized())
    assert told.startswith("breaks: ")
    assert f'"mailer in {ORIGIN}"' in told
    assert "worker_forked" in told


def test_thread_is_multiplied_without_preload(mailer: Mailer) -> None:
    mailer.start()
    told = told_of_threads(sized(), preload=False)
    assert told.startswith("multiplies: ")
    assert f'"mailer in {ORIGIN}"' in told


def test_thread_that_is_started_again_in_each_worker_is_no_finding(mailer: Mailer) -> None:
    """As the docs show it: the app loses nothing."""
    app = sized()
    mailer.start()
    with worker_forked.connected_to(mailer.start, sender=app):
        assert ORIGIN not in told_of_threads(app)


def test_thread_that_ends_in_a_moment_is_no_finding() -> None:
    threading.Thread(target=time.sleep, args=(0.05,), name="in passing").start()
    assert "in passing" not in told_of_threads(sized())


def test_name_of_a_thread_does_not_break_the_line(mailer: Mailer) -> None:
    threading.Thread(target=mailer.work, name="two\nlines", daemon=True).start()
    assert "two?lines" in told_of_threads(sized())


class OwnThread(threading.Thread):
    """A thread that runs a method of its own."""

    def run(self) -> None:
        """Do nothing."""


def test_origin_says_what_a_thread_runs(mailer: Mailer) -> None:
    assert origin(threading.Thread(target=mailer.work)) == ORIGIN
    assert origin(threading.Timer(1, mailer.work)) == ORIGIN
    assert origin(OwnThread()) == f"{__name__}.OwnThread"
    assert origin(threading.Thread(target=methodcaller("close"))) == "operator.methodcaller"
    assert origin(threading.Thread(target=partial(mailer.work, 1))) == ORIGIN


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Return an engine that is not Flask-SQLAlchemy's, with a connection in its pool."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    with engine.connect():
        pass
    yield engine
    engine.dispose()


def of_connections(app: Flask, preload: bool = True) -> list[Finding]:
    return list(connected_before_fork(case(app, preload)))


@pytest.mark.usefixtures("engine")
def test_connection_that_is_open_before_the_fork_is_shared() -> None:
    (finding,) = of_connections(sized())
    assert finding.level == "breaks"
    assert "1 connection (sqlite) open" in finding.what
    assert "engine.dispose(close=False)" in finding.remedy
    assert "own.db" not in str(finding)


@pytest.mark.usefixtures("engine")
def test_connection_is_each_worker_s_own_without_preload() -> None:
    assert of_connections(sized(), preload=False) == []


def test_connection_that_is_dropped_in_each_worker_is_no_finding(engine: Engine) -> None:
    app = sized()

    def renew(_: Flask) -> None:
        engine.dispose(close=False)

    with worker_forked.connected_to(renew, sender=app):
        assert of_connections(app) == []
    assert len(of_connections(app)) == 1


def test_engine_that_looks_at_connections_as_it_hands_them_out_is_no_finding(
    engine: Engine,
) -> None:
    """SQLAlchemy's other remedy compares the process id at each checkout."""
    event.listen(engine, "checkout", lambda *_: None)
    assert of_connections(sized()) == []


def test_engine_without_open_connections_is_no_finding(tmp_path: Path, engine: Engine) -> None:
    engine.dispose()
    others = [create_engine(f"sqlite:///{tmp_path / 'a.db'}", poolclass=NullPool)]
    with others[0].connect():
        assert of_connections(sized()) == []


def test_connections_of_flask_sqlalchemy_are_no_finding(tmp_path: Path) -> None:
    app = sized(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'lms.db'}")
    database = SQLAlchemy(app)
    with app.app_context():
        with database.engine.connect():
            pass
        assert database.engine.pool.checkedin() == 1  # type: ignore[attr-defined]
        assert of_connections(app) == []
        database.engine.dispose()


def hang(_: Flask) -> None:
    time.sleep(60)


def fail(_: Flask) -> None:
    raise RuntimeError


@pytest.mark.parametrize("receiver", [hang, fail])
def test_worker_that_does_not_get_ready_is_given_up(receiver: Callable[[Flask], None]) -> None:
    app = sized()
    with worker_forked.connected_to(receiver, sender=app):
        assert fork_probe(app, [], seconds=0.5) is None


@pytest.mark.usefixtures("engine")
def test_where_no_worker_gets_ready_it_is_not_known_what_breaks(mailer: Mailer) -> None:
    app = sized()
    mailer.start()
    with worker_forked.connected_to(fail, sender=app):
        (finding,) = of_connections(app)
        assert finding.level == "unseen"
        assert "No test worker became ready" in finding.what
        assert told_of_threads(app).startswith("unseen: ")


def test_process_that_a_worker_starts_neither_delays_the_answer_nor_is_left_behind(
    tmp_path: Path,
) -> None:
    """It inherits the pipe of the answer."""
    app = sized()

    def start(_: Flask) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "pid").write_text(str(child))

    begun = time.monotonic()
    with worker_forked.connected_to(start, sender=app):
        assert fork_probe(app, [], seconds=30) is not None
    assert time.monotonic() < begun + 25
    pid = int((tmp_path / "pid").read_text())
    ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    await_that(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() in ended, "it is gone"
    )
