"""``flask workersize fleet``: parse a load and print the replicas that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import get_args

from ..errors import WorkerSizeConfigError
from ..export.intent import MOST_REPLICAS, size_of
from ..sizing.container import container_plan
from ..sizing.fleet import CPU_SHARE, Balancer, Fleet, Instance, Load, count_fleet
from ..sizing.plan import SizingPlan, counted
from ..sizing.queueing import MOST_LOAD
from ..sizing.settings import SizingSettings

_INSTANCE = re.compile(r"(?P<size>[^:@\s]+)(:(?P<cpus>[^:@]+))?(@(?P<price>[^:@]+))?")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_HEADER = ("instance", "slots", "least connections", "random", "CPU", "replicas", "binds", "cost")


def fleet_lines(  # noqa: PLR0913
    settings: SizingSettings,
    plan: SizingPlan,
    held_bytes: int,
    *,
    rps: str,
    service_ms: str | None,
    wait_ms: str,
    balancer: str,
    instances: Sequence[str],
    spare: str,
) -> list[str]:
    """Return the lines about the replicas that a load needs; the options are as typed.

    :param settings: the settings here, with the profile if there is one
    :param plan: the plan here, if no instance is named
    :param held_bytes: memory of this process with the app loaded, in bytes
    :raises WorkerSizeConfigError: if an option is not valid
    """
    load = _load(settings, rps, service_ms, wait_ms)
    chosen = _balancer(balancer)
    more = int(_number("--spare", spare, MOST_REPLICAS, whole=True))
    sizes = [_instance(item, settings, held_bytes) for item in instances]
    sizes = sizes or [Instance("this machine", plan)]
    fleets = [count_fleet(load, size, more) for size in sizes]
    return [
        f"{load.rps:.10g} requests/s × {1000 * load.service_seconds:g} ms = {load.busy:.10g} "
        f"concurrent requests on average; 95 % wait at most {1000 * load.wait_seconds:g} ms "
        "for a slot.",
        *_table(fleets, chosen),
        *_notes(load, chosen, more),
    ]


def _load(settings: SizingSettings, rps: str, service_ms: str | None, wait_ms: str) -> Load:
    costs = settings.profile.costs_for(settings.wsgi_server) if settings.profile else None
    if service_ms is not None:
        service = _number("--service-ms", service_ms, 3_600_000) / 1000
    elif costs is not None:
        service = (costs.cpu_ms + costs.wait_ms) / 1000
    else:
        raise WorkerSizeConfigError(
            "The time of a request is unknown: run flask workersize measure, or set --service-ms, "
            "such as --service-ms 120."
        )
    cpu = None if costs is None else costs.cpu_ms / 1000
    rate, wait = _number("--rps", rps, 10_000_000), _number("--p95-wait-ms", wait_ms, 3_600_000)
    load = Load(rate, service, cpu, wait / 1000)
    if not 0 < load.busy <= MOST_LOAD:
        raise WorkerSizeConfigError(
            "--rps times the time of a request must be above 0, and at most "
            f"{MOST_LOAD:,} concurrent requests."
        )
    return load


def _number(option: str, text: str, most: int, whole: bool = False) -> float:
    is_number = re.fullmatch(r"[0-9]{1,9}", text) if whole else _NUMBER.fullmatch(text)
    if is_number and float(text) <= most:
        return float(text)
    kind = "a whole number" if whole else "a number"
    raise WorkerSizeConfigError(f"{option} is not {kind} from 0 to {most:,}.")


def _balancer(text: str) -> Balancer:
    known: tuple[Balancer, ...] = get_args(Balancer)
    for choice in known:
        if text == choice:
            return choice
    raise WorkerSizeConfigError(f"--balancer must be one of {', '.join(known)}.")


def _instance(text: str, settings: SizingSettings, held_bytes: int) -> Instance:
    match = _INSTANCE.fullmatch(text)
    price = match["price"] if match else None
    if match is None or (price is not None and not _NUMBER.fullmatch(price)):
        raise WorkerSizeConfigError(
            "--instance is not MEMORY, MEMORY:CPUS or MEMORY:CPUS@PRICE, such as 512M:0.5@7."
        )
    try:
        size = size_of(settings, held_bytes, match["size"], match["cpus"])
    except WorkerSizeConfigError as error:
        said = error.message.replace("--memory is", "MEMORY is").replace("--cpus is", "CPUS is")
        raise WorkerSizeConfigError(f"--instance: {said}") from None
    plan = container_plan(settings, size.memory_mb, size.cpus, size.loaded_mb)
    if not plan.fits:
        raise WorkerSizeConfigError(
            f"--instance: no worker fits into {size.memory_mb} MB: the loaded app takes "
            f"{size.loaded_mb} MB. Use one with more memory."
        )
    return Instance(text, plan, None if price is None else Decimal(price))


def _table(fleets: Sequence[Fleet], balancer: Balancer) -> Iterable[str]:
    costs = [cost for fleet in fleets if (cost := fleet.cost(balancer)) is not None]
    cheapest = min(costs, default=None)
    rows = [_HEADER, *(_row(fleet, balancer, cheapest) for fleet in fleets)]
    used = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in used]
    for row in zip(*used, strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(fleet: Fleet, balancer: Balancer, cheapest: Decimal | None) -> tuple[str, ...]:
    plan, cost = fleet.instance.plan, fleet.cost(balancer)
    shape = f"{plan.concurrency} ({plan.workers} × {plan.threads})"
    mark = "  <- cheapest" if cost is not None and cost == cheapest else ""
    return (
        fleet.instance.label,
        shape,
        str(fleet.pooled),
        str(fleet.split),
        str(fleet.for_cpu or ""),
        str(fleet.replicas(balancer)),
        fleet.binds(balancer),
        "" if cost is None else f"{cost.normalize():f}{mark}",
    )


def _notes(load: Load, balancer: Balancer, spare: int) -> Iterable[str]:
    how = {
        "leastconn": "least connections, with one queue, in the balancer (maxconn)",
        "random": "random choice, as by a Kubernetes Service: one queue per replica",
        "roundrobin": "round robin: an upper bound, that of random choice",
    }
    extra = f"; {counted(spare, 'replica')} to spare included" if spare else ""
    yield f"replicas: for {how[balancer]}{extra}."
    if load.cpu_seconds is None:
        yield "Note: the CPU time of a request is unknown: run flask workersize measure."
    else:
        yield f"CPU: {1000 * load.cpu_seconds:g} ms per request, at {CPU_SHARE:.0%} of the CPUs."
