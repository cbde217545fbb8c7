"""A small project that uses every public name; mypy --strict is the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, assert_type

from blinker import NamedSignal
from flask import Flask

from flask_workersize import (
    CapacityReport,
    HostFacts,
    Resources,
    SizingPlan,
    SizingSettings,
    WorkerSizeConfigError,
    WorkerSizing,
    calculate_optimal_workers,
    compute_plan,
    detect_resources,
    get_plan,
    get_worker_config_from_env,
    serve,
    worker_forked,
)

ServerName = Literal["gunicorn", "waitress"]


class Serve(Protocol):
    """The signature of serve()."""

    def __call__(self, app: Flask, server: ServerName | None = None) -> None: ...


class FixtureFiles:
    """Files of a project's own, for detect_resources()."""

    def read_text(self, path: str) -> str:
        raise FileNotFoundError(path)

    def is_dir(self, path: str) -> bool:
        return False


def create_app() -> Flask:
    app = Flask(__name__)
    WorkerSizing(app)
    return app


def create_app_later(sizing: WorkerSizing) -> Flask:
    app = Flask(__name__)
    sizing.init_app(app)
    return app


def factories() -> None:
    assert_type(WorkerSizing(), WorkerSizing)
    assert_type(create_app_later(WorkerSizing()), Flask)


def read_plan(app: Flask) -> str:
    assert_type(get_plan(), SizingPlan)
    try:
        plan = get_plan(app)
    except WorkerSizeConfigError as error:
        assert_type(error.message, str)
        assert_type(error.exit_code, int)
        raise
    assert_type(plan, SizingPlan)
    assert_type(plan.server, ServerName)
    assert_type(plan.workers, int)
    assert_type(plan.threads, int)
    assert_type(plan.worker_class, Literal["sync", "gthread"] | None)
    assert_type(plan.concurrency, int)
    assert_type(plan.worker_memory_mb, int)
    assert_type(plan.estimated_memory_mb, int)
    assert_type(plan.memory_available_mb, int)
    assert_type(plan.cpus, float)
    assert_type(plan.cpu_bound, int)
    assert_type(plan.memory_bound, int)
    assert_type(plan.limited_by, Literal["cpu", "memory", "explicit", "min_workers", "max_workers"])
    assert_type(plan.sources, Mapping[str, str])
    assert_type(plan.warnings, tuple[str, ...])
    assert_type(plan.to_dict(), dict[str, Any])
    return str(plan)


def plan_for_another_machine() -> SizingPlan:
    host = HostFacts(
        cpus=4, affinity=None, memory_total=8 << 30, memory_available=4 << 30, platform="linux"
    )
    assert_type(detect_resources(), Resources)
    resources = detect_resources(host=host, files=FixtureFiles())
    assert_type(resources, Resources)
    assert_type(resources.cpus, float)
    assert_type(resources.cpu_source, str)
    assert_type(resources.cpu_at, str | None)
    assert_type(resources.memory_limit, int)
    assert_type(resources.memory_available, int)
    assert_type(resources.memory_source, str)
    assert_type(resources.memory_at, str | None)
    assert_type(resources.notes, tuple[str, ...])
    settings = SizingSettings(threads=4)
    assert_type(settings.workers, int | None)
    assert_type(settings.wsgi_server, ServerName)
    assert_type(compute_plan(settings, resources), SizingPlan)
    return compute_plan(settings, resources, server="gunicorn")


def report(plan: SizingPlan) -> str:
    capacity = CapacityReport.of(plan, serving=False)
    assert_type(capacity, CapacityReport)
    assert_type(capacity.status, Literal["pass", "warn"])
    assert_type(capacity.serving, bool)
    assert_type(capacity.workers, int)
    assert_type(capacity.utilization, float | None)
    assert_type(capacity.workers_alive, int | None)
    return assert_type(capacity.to_json(), str)


def drop_in() -> None:
    assert_type(calculate_optimal_workers(), int)
    assert_type(
        calculate_optimal_workers(worker_memory_mb=150, min_workers=2, max_workers=8, threads=2),
        int,
    )
    assert_type(get_worker_config_from_env(), tuple[int, int])


def renew_connections(app: Flask) -> None:
    app.logger.info("renewed")


def listen(app: Flask) -> None:
    assert_type(worker_forked, NamedSignal)
    worker_forked.connect(renew_connections, sender=app)


def run() -> None:
    run_server: Serve = serve
    run_server(create_app(), server="waitress")
