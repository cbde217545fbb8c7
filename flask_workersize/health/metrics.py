"""The report as metrics for Prometheus; needs the extra "metrics"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..runtime.figures import FIGURES
from ..runtime.queue_times import BOUNDS_SECONDS, QueueTotals
from ..sizing.plan import MB
from .report import CapacityReport

_PLANNED = {
    "workers": "workers_planned",
    "threads": "threads_per_worker",
    "cpus": "cpus",
    "worker_memory_mb": "worker_memory_planned_bytes",
    "memory_available_mb": "memory_available_planned_bytes",
}
"""What the figures of the plan are called as metrics."""

_PREFIX = "workersize_"


class _ReportCollector(Collector):
    def __init__(self, report: CapacityReport) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        report = self._report
        names = ("server", "worker_class", "limited_by")
        labels = {name: getattr(report, name) or "" for name in names}
        yield InfoMetricFamily(f"{_PREFIX}plan", "How the server is sized.", labels)
        for field, metric in _PLANNED.items():
            yield from self._family(GaugeMetricFamily, field, metric)
        for field, figure in FIGURES.items():
            kind = CounterMetricFamily if figure.is_counter else GaugeMetricFamily
            if figure.metric is not None:
                yield from self._family(kind, field, figure.metric)
        if report.queue_totals is not None:
            yield _histogram(report.queue_totals)

    def _family(
        self, kind: type[GaugeMetricFamily | CounterMetricFamily], field: str, metric: str
    ) -> Iterator[Metric]:
        value = getattr(self._report, field)
        if value is not None:
            text = CapacityReport.model_fields[field].description or ""
            unit = MB if field.endswith("_mb") else 1
            text = text[0].upper() + text[1:].replace(", in MB", "") + "."
            yield kind(f"{_PREFIX}{metric}", text, value=float(value) * unit)


def _histogram(totals: QueueTotals) -> Metric:
    bounds = [*map(str, BOUNDS_SECONDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(map(float, totals.parts)), strict=True))
    name, text = f"{_PREFIX}queue_seconds", "Time that requests waited before the app began."
    return HistogramMetricFamily(name, text, buckets, sum_value=totals.sum_ns / 1e9)


def render(report: CapacityReport, accept: str) -> tuple[bytes, str]:
    """Return the metrics of a report and their content type."""
    registry = CollectorRegistry()
    registry.register(_ReportCollector(report))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # It compares the version that is asked for with numbers, whatever it is.
        encode, content_type = choose_encoder("")
    return encode(registry), content_type
