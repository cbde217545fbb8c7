"""The report as metrics for Prometheus; needs the extra "metrics"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..sizing.plan import MB
from .report import CapacityReport

_GAUGES = {
    "workers_planned": ("workers", "Worker processes that are planned."),
    "threads_per_worker": ("threads", "Threads of a worker."),
    "cpus": ("cpus", "CPUs that were available at planning time."),
    "workers": ("workers_alive", "Worker processes that run."),
    "slots": ("slots", "Requests that can run at once."),
    "slots_busy": ("busy", "Requests that run."),
    "utilization_ratio": ("utilization", "Share of the slots that are busy, 0 to 1."),
    "requests_queued": ("queued", "Connections and requests that wait for a free slot."),
    "workers_wanted": ("workers_wanted", "Worker processes that there should be now."),
    "draining": ("draining", "1 while the server is about to stop, else 0."),
}
_MB_GAUGES = {
    "worker_memory_planned_bytes": ("worker_memory_mb", "Memory a worker is taken to need."),
    "memory_limit_bytes": ("memory_limit_mb", "The memory limit that is nearest."),
    "memory_used_bytes": ("memory_used_mb", "What counts towards it; page cache does not."),
    "memory_available_planned_bytes": (
        "memory_available_mb",
        "Memory that was available at planning time.",
    ),
}
_COUNTERS = {
    "requests": ("served", "Requests served."),
    "busy_seconds": ("busy_seconds", "Time that threads have spent on requests."),
    "cpu_seconds": ("cpu_seconds", "Time that threads have computed for requests."),
    "worker_restarts": ("restarts", "Workers that ended and were replaced."),
    "workers_recycled": ("recycled", "Workers that the memory guard has recycled."),
    "oom_kills": ("oom_kills", "Processes that the kernel has killed for want of memory."),
    "worker_crashes": ("crashed", "Workers that were killed, or crashed."),
}
_PREFIX = "workersize_"


class _ReportCollector(Collector):
    def __init__(self, report: CapacityReport) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        report = self._report
        yield InfoMetricFamily(
            f"{_PREFIX}plan",
            "How the server is sized.",
            {
                "server": report.server,
                "worker_class": report.worker_class or "",
                "limited_by": report.limited_by,
            },
        )
        yield from self._families(_GAUGES, GaugeMetricFamily)
        yield from self._families(_MB_GAUGES, GaugeMetricFamily, MB)
        yield from self._families(_COUNTERS, CounterMetricFamily)

    def _families(
        self,
        names: dict[str, tuple[str, str]],
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        unit: int = 1,
    ) -> Iterator[Metric]:
        for name, (field, text) in names.items():
            value = getattr(self._report, field)
            if value is not None:
                yield family(f"{_PREFIX}{name}", text, value=float(value) * unit)


def render(report: CapacityReport, accept: str) -> tuple[bytes, str]:
    """Return the metrics of a report and their content type.

    :param report: the report, with its live figures
    :param accept: which of Prometheus' formats the client takes, as its ``Accept`` header says
    """
    registry = CollectorRegistry()
    registry.register(_ReportCollector(report))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # It compares the version that is asked for with numbers, whatever it is.
        encode, content_type = choose_encoder("")
    return encode(registry), content_type
