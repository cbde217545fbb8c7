"""The drop-in for ``now_lms.worker_config``, beside that module's formula written down here."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize import calculate_optimal_workers, get_worker_config_from_env
from tests.plain import MB, SECRET, VARIABLES, clear_environment, untimed

Machine = Callable[..., None]


def original(
    *,
    cpus: int | None,
    available: int | None,
    memory_mb: int,
    low: int,
    high: int | None,
    threads: int,
) -> int:
    """Say what now_lms.worker_config (NOW LMS 2.0.4) calculates; no memory where it fails."""
    optimal = (cpus or 1) * 2 + 1
    if available is not None and memory_mb != 0:
        optimal = min(optimal, int(available / (1024 * 1024) / memory_mb))
    if threads > 1:
        optimal = max(low, optimal // threads)
    optimal = max(low, optimal)
    return optimal if high is None else min(optimal, high)


def set_machine(
    monkeypatch: pytest.MonkeyPatch, cpus: int | None, available: int | Exception
) -> None:
    """Replace the two figures that the module reads."""

    def virtual_memory() -> SimpleNamespace:
        if isinstance(available, Exception):
            raise available
        return SimpleNamespace(available=available)

    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Give the machine 4 CPUs and 1024 MB, or what the test says."""
    clear_environment(monkeypatch)

    def change(cpus: int | None = 4, available: int | Exception = 1024 * MB) -> None:
        set_machine(monkeypatch, cpus, available)

    change()
    return change


whole = st.integers(-300, 300)


@untimed
@given(
    cpus=st.none() | st.integers(1, 512),
    available=st.none() | st.integers(0, 1 << 44),
    memory_mb=whole | st.integers(1, 5000),
    low=whole,
    high=st.none() | whole,
    threads=whole,
)
def test_calculates_what_now_lms_does(
    cpus: int | None, available: int | None, memory_mb: int, **bounds: Any
) -> None:
    expected = original(cpus=cpus, available=available, memory_mb=memory_mb, **bounds)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_machine(monkeypatch, cpus, OSError() if available is None else available)
        found = calculate_optimal_workers(
            memory_mb, bounds["low"], bounds["high"], bounds["threads"]
        )
    assert found == expected


def test_signature_is_that_of_now_lms() -> None:
    signature = inspect.signature(calculate_optimal_workers)
    assert {name: item.default for name, item in signature.parameters.items()} == {
        "worker_memory_mb": 200,
        "min_workers": 1,
        "max_workers": None,
        "threads": 1,
    }
    assert not inspect.signature(get_worker_config_from_env).parameters


def test_example_of_the_guide(machine: Machine) -> None:
    """The guide, "Programmatic Configuration"."""
    machine(cpus=8, available=4096 * MB)
    workers = calculate_optimal_workers(
        worker_memory_mb=250, min_workers=2, max_workers=8, threads=2
    )
    assert workers == 8


@pytest.mark.parametrize("error", [OSError(SECRET), AttributeError(SECRET), RuntimeError(SECRET)])
def test_memory_that_cannot_be_read_leaves_the_cpu_bound(
    machine: Machine, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    machine(available=error)
    assert calculate_optimal_workers() == 9
    assert caplog.messages == [f"Calculating without memory: {type(error).__name__}."]


@pytest.mark.usefixtures("machine")
def test_maximum_wins_over_minimum() -> None:
    assert calculate_optimal_workers(min_workers=7, max_workers=3) == 3


@pytest.mark.usefixtures("machine")
class TestEnvironment:
    """``get_worker_config_from_env`` on 4 CPUs with 1024 MB."""

    @pytest.mark.parametrize(
        ("environ", "config"),
        [
            ({}, (5, 1)),
            ({"NOW_LMS_WORKERS": "3"}, (3, 1)),
            ({"WORKERS": "3"}, (3, 1)),
            ({"WEB_CONCURRENCY": "3"}, (3, 1)),
            ({"NOW_LMS_WORKERS": "5", "WORKERS": "3"}, (5, 1)),
            ({"NOW_LMS_WORKERS": "", "WORKERS": "3"}, (3, 1)),
            ({"NOW_LMS_THREADS": "4"}, (1, 4)),
            ({"THREADS": "2"}, (2, 2)),
            ({"NOW_LMS_THREADS": "0"}, (5, 1)),
            ({"THREADS": "-3"}, (5, 1)),
            ({"WORKERS": "2", "THREADS": " 4 "}, (2, 4)),
            ({"WORKER_MEMORY_MB": "500"}, (2, 1)),
            ({"NOW_LMS_WORKER_MEMORY_MB": "0"}, (9, 1)),
            ({"WORKERS": "auto", "THREADS": "AUTO"}, (5, 1)),
        ],
        ids=str,
    )
    def test_workers_and_threads(
        self,
        monkeypatch: pytest.MonkeyPatch,
        environ: dict[str, str],
        config: tuple[int, int],
    ) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert get_worker_config_from_env() == config

    @pytest.mark.parametrize(
        "name", ["NOW_LMS_WORKERS", "WORKERS", "NOW_LMS_THREADS", "THREADS", "WORKER_MEMORY_MB"]
    )
    def test_what_is_no_number_is_ignored_with_one_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        monkeypatch.setenv(name, SECRET)
        assert get_worker_config_from_env() == (5, 1)
        assert caplog.record_tuples == [
            ("flask_workersize", logging.WARNING, f"Ignoring {name}: not a whole number.")
        ]

    @pytest.mark.parametrize("value", ["0", "-3"])
    def test_workers_that_would_serve_nothing_are_ignored_with_one_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
    ) -> None:
        monkeypatch.setenv("WORKERS", value)
        assert get_worker_config_from_env() == (5, 1)
        assert len(caplog.messages) == 1

    def test_good_values_are_not_warned_of(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("THREADS", "auto")
        get_worker_config_from_env()
        assert caplog.messages == []


variable_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)


@untimed
@given(st.dictionaries(st.sampled_from(VARIABLES), variable_text))
def test_no_environment_raises(environ: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clear_environment(monkeypatch)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        workers, threads = get_worker_config_from_env()
    assert workers >= 1
    assert threads >= 1
