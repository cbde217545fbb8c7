"""The report as metrics, read back with Prometheus' own parser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_text

from flask_workersize import CapacityReport
from flask_workersize.health.endpoint import CapacityEndpoint
from flask_workersize.health.metrics import render
from flask_workersize.runtime.queue_times import QueueTotals
from flask_workersize.runtime.snapshot import Snapshot, State
from tests.health.snapshots import live, row
from tests.plain import MB, plan, untimed

Read = Callable[[str], Iterable[Metric]]

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends."""

FORMATS = [
    ("", read_text, "text/plain; version=0.0.4"),
    ("*/*", read_text, "text/plain; version=0.0.4"),
    ("text/plain;version=0.0.4", read_text, "text/plain; version=0.0.4"),
    (OPENMETRICS, read_openmetrics, "application/openmetrics-text; version=1.0.0"),
    (PROMETHEUS, read_openmetrics, "application/openmetrics-text; version=1.0.0"),
]
PLAN = plan({"THREADS": "2"}, memory_mb=1024)
LIVE = live(
    row((1.0,)),
    row((2.0, 3.0), served=5),
    queued=7,
    wanted=3,
    memory_limit_bytes=512 * MB,
    memory_used_bytes=300 * MB,
    recycled=6,
    oom_kills=1,
    queue_totals=QueueTotals((3, *[0] * 5, 1, *[0] * 5, 1), 31_500_000_000, 2, 1),
)


def report(live: Snapshot | None = LIVE) -> CapacityReport:
    return CapacityReport.of(PLAN, serving=True, now=live)


def families(read: Read, accept: str, of: CapacityReport) -> dict[str, Metric]:
    """Return what a parser reads, by the name of the family."""
    body, _ = render(of, accept)
    return {family.name: family for family in read(body.decode())}


def values(read: Read, accept: str, of: CapacityReport) -> dict[str, float]:
    """Return the figures, by the name of the sample, but the plan."""
    return {
        sample.name: sample.value
        for name, family in families(read, accept, of).items()
        for sample in family.samples
        if not name.startswith("workersize_plan") and "le" not in sample.labels
    }


@pytest.mark.parametrize(("accept", "read", "content_type"), FORMATS)
def test_figures_of_the_report_are_read_back(accept: str, read: Read, content_type: str) -> None:
    assert render(report(), accept)[1].startswith(content_type)
    assert values(read, accept, report()) == {
        "workersize_workers_planned": 2,
        "workersize_threads_per_worker": 2,
        "workersize_cpus": 4,
        "workersize_worker_memory_planned_bytes": 200 * MB,
        "workersize_memory_available_planned_bytes": 1024 * MB,
        "workersize_workers": 2,
        "workersize_slots": 4,
        "workersize_slots_busy": 3,
        "workersize_utilization_ratio": 0.75,
        "workersize_requests_queued": 7,
        "workersize_draining": 0,
        "workersize_workers_wanted": 3,
        "workersize_memory_limit_bytes": 512 * MB,
        "workersize_memory_used_bytes": 300 * MB,
        "workersize_requests_total": 1234,
        "workersize_busy_seconds_total": 56.5,
        "workersize_cpu_seconds_total": 12.25,
        "workersize_worker_restarts_total": 3,
        "workersize_worker_crashes_total": 1,
        "workersize_workers_recycled_total": 6,
        "workersize_oom_kills_total": 1,
        "workersize_requests_shed_total": 2,
        "workersize_requests_abandoned_total": 1,
        "workersize_queue_seconds_count": 5,
        "workersize_queue_seconds_sum": 31.5,
    }


@pytest.mark.parametrize(("accept", "read"), [("", read_text), (OPENMETRICS, read_openmetrics)])
def test_queue_times_are_a_histogram(accept: str, read: Read) -> None:
    samples = families(read, accept, report())["workersize_queue_seconds"].samples
    found = {float(s.labels["le"]): s.value for s in samples if "le" in s.labels}
    assert found == {
        **dict.fromkeys((0.005, 0.01, 0.025, 0.05, 0.1, 0.25), 3),
        **dict.fromkeys((0.5, 1.0, 2.5, 5.0, 10.0, 30.0), 4),
        float("inf"): 5,
    }


@pytest.mark.parametrize(("accept", "read"), [("", read_text), (OPENMETRICS, read_openmetrics)])
def test_kind_and_meaning_of_each_metric_are_said(accept: str, read: Read) -> None:
    found = families(read, accept, report())
    kinds = {name.removesuffix("_total"): family.type for name, family in found.items()}
    counters = {name for name, kind in kinds.items() if kind == "counter"}
    assert counters == {
        "workersize_requests",
        "workersize_busy_seconds",
        "workersize_cpu_seconds",
        "workersize_worker_restarts",
        "workersize_worker_crashes",
        "workersize_workers_recycled",
        "workersize_oom_kills",
        "workersize_requests_shed",
        "workersize_requests_abandoned",
    }
    assert set(kinds.values()) <= {"counter", "gauge", "histogram", "info"}
    assert all(family.documentation.endswith(".") for family in found.values())


@pytest.mark.parametrize(("accept", "read"), [("", read_text), (OPENMETRICS, read_openmetrics)])
def test_plan_is_an_info_metric(accept: str, read: Read) -> None:
    body = render(report(), accept)[0].decode()
    (sample,) = (
        sample
        for family in read(body)
        for sample in family.samples
        if sample.name == "workersize_plan_info"
    )
    assert sample.value == 1
    assert sample.labels == {
        "server": "gunicorn",
        "worker_class": "gthread",
        "limited_by": "memory",
    }


def test_plan_of_waitress_has_no_worker_class() -> None:
    made = CapacityReport.of(plan(server="waitress"), serving=True, now=LIVE)
    assert b'worker_class=""' in render(made, "")[0]


@pytest.mark.parametrize(("accept", "read"), [("", read_text), (OPENMETRICS, read_openmetrics)])
def test_queue_that_the_system_does_not_tell_is_absent(accept: str, read: Read) -> None:
    """An alert on it must not take "unknown" for 0."""
    found = values(read, accept, report(live(row(), queued=None)))
    assert "workersize_requests_queued" not in found
    assert found["workersize_slots"] == 2


def test_queue_that_is_empty_is_0() -> None:
    assert values(read_text, "", report(live(row(), queued=0)))["workersize_requests_queued"] == 0


def test_plan_alone_is_told_where_nothing_is_served() -> None:
    assert set(values(read_text, "", report(None))) == {
        "workersize_workers_planned",
        "workersize_threads_per_worker",
        "workersize_cpus",
        "workersize_worker_memory_planned_bytes",
        "workersize_memory_available_planned_bytes",
    }


@pytest.mark.parametrize(
    ("state", "draining"), [(State.SERVING, 0), (State.DRAINING, 1), (State.STOPPING, 1)]
)
def test_draining_is_0_or_1(state: State, draining: int) -> None:
    found = values(read_text, "", report(live(row(), state=state)))
    assert found["workersize_draining"] == draining


def test_large_counters_keep_every_request() -> None:
    found = values(read_text, "", report(live(row(), served=2**53)))
    assert found["workersize_requests_total"] == 2**53


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=new",
        "text/plain;version=",
        "text/plain;version=x.y",
        ";;;,,,",
        "application/openmetrics-text;version=1.0.0;escaping=none",
    ],
)
def test_accept_header_that_makes_no_sense_gets_text(accept: str) -> None:
    body, content_type = render(report(), accept)
    assert b"workersize_requests_total 1234.0" in body
    assert content_type.startswith(("text/plain", "application/openmetrics-text"))


types = st.sampled_from(["text/plain", "application/openmetrics-text", "*/*", ""])
headers = st.lists(
    st.tuples(types, st.sampled_from(["version", "escaping", "q", ""]), st.text(max_size=8)).map(
        lambda parts: f"{parts[0]};{parts[1]}={parts[2]}"
    ),
    max_size=4,
).map(",".join)


@untimed
@given(headers | st.text(max_size=30))
def test_any_accept_header_is_answered(accept: str) -> None:
    body, _ = render(report(), accept)
    assert b"workersize_requests_total 1234.0" in body


def test_without_prometheus_client_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of the port goes on working."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "flask_workersize.health.metrics")

    def make(details: bool, live: bool, asking: int | None) -> CapacityReport:
        return report()

    endpoint = CapacityEndpoint(make, lambda: None, is_inside=True)
    answer = endpoint.metrics({})
    assert answer.status == "501 NOT IMPLEMENTED"
    (line,) = answer.data.decode().splitlines()
    assert "pip install 'flask-workersize[metrics]'" in line
    assert answer.content_type.startswith("text/plain")
    assert endpoint.report({}).status == "200 OK"
