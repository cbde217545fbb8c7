"""What all engines have in common: a process with limits and variables, and a stop."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from ...errors import WorkerSizeConfigError
from ...resources import Resources
from ...sizing.adaptive import AdaptiveBounds, adaptive_bounds
from ...sizing.container import loaded_mb, worker_mb
from ...sizing.plan import MB, SizingPlan, compute_plan
from ...sizing.settings import NAMES, SizingSettings
from ...sizing.sources import GUNICORN_ARGS, ArgsParser
from .value import Amount, Place, Value, whole

VARIABLES = {variable: name for name, names in NAMES.items() for variable in names.variables}
"""The setting of each variable."""

_OTHERS = re.compile(
    r"(^|/)(postgres|postgis|redis|valkey|mysql|mariadb|mongo|memcached|rabbitmq|nginx|haproxy|"
    r"traefik|caddy|envoy|prometheus|grafana)\w*(-\w+)*([:@]|$)"
)
_ENDLESS_MB = 1 << 40
_SLACK_MB = 16
"""By how much the memory of a loaded app differs from one start to the next, in MB."""


@dataclass(frozen=True)
class Facts:
    """What is known of the app beside its manifests.

    :param settings: the settings here, with the profile if there is one
    :param config: the config of the app, which goes where it goes
    :param held_bytes: memory that the loaded app holds, in bytes; 0 if that is not known
    :param pool: connections that one worker can open; ``None`` if that is not known
    :param db_connections: connections that the database allows; ``None`` if not given
    :param gunicorn_args: parses ``GUNICORN_CMD_ARGS``
    :param smallest_pool: connections that the smallest pool of a worker allows; ``None`` for no end
    """

    settings: SizingSettings
    config: Mapping[str, Any] = field(default_factory=dict)
    held_bytes: int = 0
    pool: float | None = None
    db_connections: int | None = None
    gunicorn_args: ArgsParser | None = None
    smallest_pool: int | None = None


class Probe(NamedTuple):
    """A request to a port: its name as it is written, and the port."""

    name: str
    port: int
    place: Place


class Keys(NamedTuple):
    """How an engine calls what the rules are about."""

    memory: str
    grace_seconds: float
    longer: str
    writable: str = ""


@dataclass(frozen=True, eq=False)
class Workload:
    """A container, a service of Compose or a unit, read.

    :param keys: how its engine calls things
    :param name: what it is called
    :param place: where it begins
    :param facts: what is known of the app
    :param image: its image; empty if there is none
    :param command: the words that start it; empty if the image knows
    :param variables: its environment, as far as it is known
    :param elsewhere: where variables come from that are not among the files
    :param amounts: every number with a unit, by what it is
    :param replicas: how many there are, or at least
    :param most_replicas: how many there are at most, if that is said beside it
    :param pre_stop: how long its engine waits before SIGTERM, in seconds
    :param probes: requests to its ports
    :param published: ports that are reachable from outside
    :param read_only: what makes its files read-only
    :param is_writable: whether there is a writable ``/tmp`` in spite of that
    :param tmpfs: a line that a stack drops
    :param links: whether Services become variables
    :param labels: what selects it
    :param concurrency: most requests at once that an engine sends to it
    :param lines: settings of a unit, by name
    :param is_part: whether it is a part of a unit: a drop-in without a command
    """

    keys: Keys
    name: str
    place: Place
    facts: Facts
    image: str = ""
    command: Sequence[str] = ()
    variables: Mapping[str, Value] = field(default_factory=dict)
    elsewhere: Sequence[Value] = ()
    amounts: Mapping[str, Amount] = field(default_factory=dict)
    replicas: Amount | None = None
    most_replicas: Amount | None = None
    pre_stop: float = 0
    probes: Sequence[Probe] = ()
    published: Sequence[Probe] = ()
    read_only: Value | None = None
    is_writable: bool = True
    tmpfs: Value | None = None
    links: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    concurrency: Value | None = None
    lines: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    is_part: bool = False

    @cached_property
    def words(self) -> list[str]:
        """The words of its command, those of a shell's script, too."""
        try:
            return [word for text in self.command for word in shlex.split(text)]
        except ValueError:
            return list(self.command)

    @cached_property
    def is_marked(self) -> bool:
        """Whether it surely runs an app that is meant here."""
        programs = {word.rpartition("/")[2] for word in self.words}
        names = {name for name in self.variables if name.startswith(("NOW_LMS_", "FLASK_"))}
        starts = programs & {"gunicorn", "waitress-serve", "flask", "serve-prod"}
        legacy = {"WEB_CONCURRENCY", GUNICORN_ARGS} & self.variables.keys()
        return bool(names or starts or legacy or self.is_part)

    @property
    def is_other(self) -> bool:
        """Whether it is known for something else."""
        programs = {word.rpartition("/")[2] for word in self.words}
        is_known = _OTHERS.search(self.image) is not None
        return bool(programs & {"celery", "rq"}) or (is_known and not self.is_marked)

    @cached_property
    def _options(self) -> dict[str, str]:
        """The settings in its command."""
        is_gunicorn = any(word.rpartition("/")[2] == "gunicorn" for word in self.words)
        flags = {f"--{names.option}": name for name, names in NAMES.items()}
        if is_gunicorn:
            flags |= {flag: name for name, n in NAMES.items() for flag in n.gunicorn_flags}
        found = {}
        for word, after in pairwise([*self.words, ""]):
            flag, equals, text = word.partition("=")
            if short := re.fullmatch(r"(-[a-z])([0-9]+)", word):
                flag, equals, text = short[1], "=", short[2]
            if flag in flags:
                found[flags[flag]] = text if equals else after
        if is_gunicorn:
            found["wsgi_server"] = "gunicorn"
            sizes = {word.partition("=")[0] for word in self.words} | self.variables.keys()
            if sizes.isdisjoint(("-c", "--config", "WEB_CONCURRENCY", GUNICORN_ARGS)):
                found.setdefault("workers", "1")
        return found

    @cached_property
    def unknown(self) -> set[str]:
        """The settings that are set to what is not known here."""
        elsewhere = {
            VARIABLES[n] for n, v in self.variables.items() if not v.is_known and n in VARIABLES
        }
        return elsewhere | {name for name, text in self._options.items() if "$" in text}

    @cached_property
    def loaded(self) -> SizingSettings | WorkerSizeConfigError:
        """The settings that it will start with, or the line that refuses them."""
        known = {name: value.text for name, value in self.variables.items() if value.is_known}
        options = {name: text for name, text in self._options.items() if "$" not in text}
        try:
            return SizingSettings.load(
                environ=known,
                config=self.facts.config,
                options=options,
                gunicorn_args=self.facts.gunicorn_args,
            )
        except WorkerSizeConfigError as error:
            return error

    @property
    def settings(self) -> SizingSettings:
        """The same, for a workload whose settings are not refused."""
        assert isinstance(self.loaded, SizingSettings)
        return self.loaded

    @property
    def is_pinned(self) -> bool:
        """Whether the number of its workers is set."""
        return self.settings.workers is not None and self.settings.wsgi_server == "gunicorn"

    def knows(self, *names: str) -> bool:
        """Return whether some settings are known."""
        return self.unknown.isdisjoint(names)

    def place_of(self, setting: str) -> Place:
        """Return where a setting is set."""
        found = [self.variables.get(name) for name in NAMES[setting].variables]
        return next((value.place for value in found if value), self.place)

    def size(self, *names: str) -> float | None:
        """Return the least of some amounts; ``None`` if one is not known, or none is set."""
        found = [self.amounts[name] for name in names if name in self.amounts]
        values = [item.value for item in found if item.value is not None]
        return min(values) if values and len(values) == len(found) else None

    @cached_property
    def memory_mb(self) -> int | None:
        """Its memory limit in MB; ``None`` if there is none, or it is not known."""
        size = self.size("memory limit", "MemoryHigh")
        return None if size is None or size in (0, math.inf) else int(size / MB)

    @cached_property
    def cpus(self) -> float:
        """Its CPUs; 1 if they are not limited: there are not fewer."""
        return self.size("CPU limit") or 1.0

    @cached_property
    def plan(self) -> SizingPlan | None:
        """The plan that it will make; ``None`` if too little is known of it."""
        return self._planned(0)

    @cached_property
    def least_plan(self) -> SizingPlan | None:
        """The same, if the loaded app holds some more there than here."""
        return self._planned(0 if self.facts.settings.profile else -_SLACK_MB)

    @cached_property
    def bounds(self) -> AdaptiveBounds | None:
        """The bounds of its size; ``None`` if that does not follow the load, or is not known."""
        if self.least_plan is None or not self.knows("sizing"):
            return None
        return adaptive_bounds(self.settings, self.least_plan, self.facts.smallest_pool)

    @cached_property
    def slots(self) -> int | None:
        """The requests that it serves at once, at most; ``None`` if too little is known of it."""
        if self.least_plan is None or not self.knows("sizing"):
            return None
        return self.bounds.slots if self.bounds else self.least_plan.concurrency

    def _planned(self, more_mb: int) -> SizingPlan | None:
        names = ("workers", "threads", "worker_memory_mb", "wsgi_server", "max_workers")
        if not self.knows(*names) or (self.memory_mb is None and not self.is_pinned):
            return None
        limit_mb = _ENDLESS_MB if self.memory_mb is None else self.memory_mb
        available = max(limit_mb - self._loaded_mb + more_mb, 0) * MB
        return compute_plan(
            self.settings,
            Resources(self.cpus, "limit", None, limit_mb * MB, available, "limit", None),
        )

    @property
    def _loaded_mb(self) -> int:
        profile = self.facts.settings.profile
        if profile:
            return profile.costs_for(self.settings.wsgi_server).shared_mb
        return loaded_mb(self.settings, self.facts.held_bytes)

    @cached_property
    def shortage(self) -> str | None:
        """What its plan needs and the limit does not hold; ``None`` if it holds it."""
        plan, profile, limit = self.plan, self.facts.settings.profile, self.memory_mb
        if plan is None or limit is None:
            return None
        is_set = self.settings.source_of("worker_memory_mb") != "default"
        loaded = f"{self._loaded_mb} + " if self._loaded_mb else ""
        if profile:
            own = worker_mb(self.facts.settings, plan)
            need = self._loaded_mb + plan.workers * own
            if need > limit:
                return f"{loaded}{plan.workers} × {own} = {need} MB, as measured"
        generous = self._planned(0 if profile else _SLACK_MB)
        if plan.fits or (generous and generous.fits) or (profile and not is_set):
            return None
        own, need = plan.worker_memory_mb, self._loaded_mb + plan.estimated_memory_mb
        left = f", with {plan.memory_headroom_percent} % kept free"
        return (
            f"{loaded}{plan.workers} × {own} = {need} MB"
            f"{left if plan.memory_headroom_percent else ''}"
            f"{'' if is_set else ' (assumed, not measured)'}"
        )


def collect(**found: Amount | None) -> Mapping[str, Amount]:
    """Return the amounts that are there, by their names with spaces."""
    return {name.replace("_", " "): item for name, item in found.items() if item is not None}


def port_of(text: str, named: Callable[[str], str | None] = lambda _: None) -> int | None:
    """Return a port by number or by name; ``None`` if it is not known."""
    return whole(named(text) or text)


def chosen(workloads: Iterable[Workload]) -> tuple[list[Workload], list[Workload]]:
    """Return those that run the app, and those that are left out.

    If none is marked by a variable or a command, all are meant but those that are known for
    something else.
    """
    found = [item for item in workloads if not item.is_other]
    marked = [item for item in found if item.is_marked]
    return (marked, [item for item in found if not item.is_marked]) if marked else (found, [])
