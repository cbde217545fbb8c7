"""What to export: :class:`Intent`, and how it is read from options."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from platform import python_version
from typing import Literal, NamedTuple, get_args

from ..errors import WorkerSizeConfigError
from ..sizing.container import container_plan, loaded_mb, memory_for, worker_mb
from ..sizing.plan import MB
from ..sizing.settings import SizingSettings
from ..sizing.validators import YEAR_SECONDS
from ..sizing.what_if import parse_cpus, parse_memory

Autoscale = Literal["cpu", "keda", "none"]

MOST_REPLICAS = 10_000
"""Most replicas: beyond it there is a slip of the finger, not a fleet."""

_MOST_MB = 1 << 26
_MOST_CPUS = 1024


class Replicas(NamedTuple):
    """How many replicas there are: the same twice, or the bounds of an autoscaler."""

    low: int
    high: int

    @property
    def is_range(self) -> bool:
        """Whether something else decides the number."""
        return self.low < self.high

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" if self.is_range else str(self.low)


_THREE = Replicas(3, 3)


@dataclass(frozen=True)
class Intent:
    """What is to run, and where: all that an export is made from.

    :param settings: the settings here, with the profile if there is one
    :param memory_mb: memory limit of a replica, in MB
    :param memory_why: where that is from
    :param cpus: CPUs of a replica, in steps of 0.01
    :param cpus_why: where that is from
    :param loaded_mb: memory that the loaded app takes before the plan is made, in MB
    :param name: what everything is called, a DNS label
    :param image: the image of the app
    :param app: what ``FLASK_APP`` has to be; ``None`` where Flask finds it by itself
    :param replicas: how many
    :param autoscale: who decides their number, if it is a range
    :param pool: connections of the smallest database pool of a worker; ``None`` without one
    :param drain_seconds: how long a replica serves on after SIGTERM, in seconds
    :param network_policy: whether other pods are kept away from the health port
    :param python: version of Python, such as "3.13"
    """

    settings: SizingSettings
    memory_mb: int
    memory_why: str
    cpus: float = 1.0
    cpus_why: str = "the default"
    loaded_mb: int = 0
    name: str = "lms"
    image: str = "lms:1"
    app: str | None = None
    replicas: Replicas = _THREE
    autoscale: Autoscale = "none"
    pool: int | None = None
    drain_seconds: int = 10
    network_policy: bool = False
    python: str = field(default_factory=lambda: ".".join(python_version().split(".")[:2]))

    def __post_init__(self) -> None:
        """Refuse a memory in which not even one worker fits.

        :raises WorkerSizeConfigError: saying what would fit
        """
        plan = container_plan(self.settings, self.memory_mb, self.cpus, self.loaded_mb)
        own = worker_mb(self.settings, plan)
        needed = plan.workers * own
        fits = plan.fits and plan.memory_bound >= 1 and self.loaded_mb + needed <= self.memory_mb
        if not fits:
            share = 100 - plan.memory_headroom_percent
            least = self.loaded_mb + -(-needed * 100 // share)
            raise WorkerSizeConfigError(
                f"{self.memory_mb} MB is too little: the loaded app takes {self.loaded_mb} MB, "
                f"plus {plan.workers} × {own} MB for workers"
                + (f", with {plan.memory_headroom_percent} % kept free" if share < 100 else "")
                + f". Use --memory {least}M or more."
            )


def read_intent(  # noqa: PLR0913
    settings: SizingSettings,
    held_bytes: int,
    *,
    app: str | None = None,
    pool: int | None = None,
    memory: str | None = None,
    cpus: str | None = None,
    replicas: str = "3",
    autoscale: str | None = None,
    drain: str = "10",
    name: str = "lms",
    image: str = "lms:1",
    network_policy: bool = False,
) -> Intent:
    """Read an intent from options, as they were typed.

    :param settings: the settings here, with the profile if there is one
    :param held_bytes: memory that this process holds with the app loaded, in bytes
    :param app: what ``--app`` or ``FLASK_APP`` names
    :param pool: connections of the smallest database pool of a worker; ``None`` without one
    :raises WorkerSizeConfigError: if an option is not valid, or no memory is known
    """
    size = size_of(settings, held_bytes, memory, cpus)
    wanted = _replicas(replicas)
    return Intent(
        settings=settings,
        memory_mb=size.memory_mb,
        memory_why=size.memory_why,
        cpus=size.cpus,
        cpus_why="the default" if cpus is None else "given by --cpus",
        loaded_mb=size.loaded_mb,
        name=_name(name),
        image=_checked("--image", image, _IMAGE, _IMAGE_RULE),
        app=_app(app),
        replicas=wanted,
        pool=pool,
        autoscale=_autoscale(autoscale, wanted),
        drain_seconds=_whole("--drain", drain, 0, YEAR_SECONDS),
        network_policy=network_policy,
    )


class Size(NamedTuple):
    """Memory and CPUs of a replica, and what the loaded app takes of the memory."""

    memory_mb: int
    memory_why: str
    cpus: float
    loaded_mb: int


def size_of(
    settings: SizingSettings, held_bytes: int, memory: str | None, cpus: str | None
) -> Size:
    """Return the size of a replica; memory that is not given follows from the profile.

    :raises WorkerSizeConfigError: if an option is not valid, or there is no profile either
    """
    count = 1.0 if cpus is None else round(parse_cpus(cpus), 2)
    if not 0 < count <= _MOST_CPUS:
        raise WorkerSizeConfigError(f"--cpus is not a number from 0.01 to {_MOST_CPUS}.")
    loaded = loaded_mb(settings, held_bytes)
    if memory is not None:
        size = parse_memory(memory) // MB
        if not 1 <= size <= _MOST_MB:
            raise WorkerSizeConfigError("--memory is not a size from 1M to 64T.")
        return Size(size, "given by --memory", count, loaded)
    if settings.profile is None:
        raise WorkerSizeConfigError(
            "The memory of a replica is not known: measure the app with flask workersize "
            "measure, or set it with --memory, such as --memory 512M."
        )
    size = memory_for(settings, count, loaded)
    return Size(size, "calculated from the sizing profile", count, loaded)


_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
_NAME_RULE = "1 to 50 of a-z, 0-9 and -, a letter first"
_TAKEN = {"balancer", "y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Names that are a service of the stack already, or something else than a text in YAML."""

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?=.{{1,255}}\Z)(?:[a-z0-9][a-z0-9.-]*:[0-9]{{1,5}}/)?{_PART}(?:/{_PART})*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_IMAGE_RULE = "such as registry.example/lms:1"
_APP = re.compile(r"[\w.-]+(:\w+)?", re.ASCII)


def _checked(option: str, text: str, pattern: re.Pattern[str], rule: str) -> str:
    if pattern.fullmatch(text):
        return text
    raise WorkerSizeConfigError(f"{option} is not valid ({rule}).")


def _name(text: str) -> str:
    if text in _TAKEN:
        raise WorkerSizeConfigError(f"--name {text} means something else in YAML or in the stack.")
    return _checked("--name", text, _NAME, _NAME_RULE)


def _app(path: str | None) -> str | None:
    """Return an import path as it is valid elsewhere: a file without its folders."""
    if path is None:
        return None
    short = path.rpartition("/")[2]
    if _APP.fullmatch(short):
        return short
    raise WorkerSizeConfigError(
        "--app cannot be exported: name a module and a factory without arguments, such as "
        "hello:create_app."
    )


def _whole(option: str, text: str, least: int, most: int) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text)
    raise WorkerSizeConfigError(f"{option} is not a whole number from {least} to {most:,}.")


def _replicas(text: str) -> Replicas:
    low, separator, high = text.partition("..")
    first = _whole("--replicas", low, 1, MOST_REPLICAS)
    if not separator:
        return Replicas(first, first)
    last = _whole("--replicas", high, 1, MOST_REPLICAS)
    if last <= first:
        raise WorkerSizeConfigError(
            "--replicas is not a range: the second number has to be above the first, as in 2..10."
        )
    return Replicas(first, last)


def _autoscale(text: str | None, replicas: Replicas) -> Autoscale:
    known: tuple[Autoscale, ...] = get_args(Autoscale)
    if text is None:
        return "cpu" if replicas.is_range else "none"
    for choice in known:
        if text == choice:
            break
    else:
        raise WorkerSizeConfigError(f"--autoscale must be one of {', '.join(known)}.")
    if replicas.is_range and choice == "none":
        raise WorkerSizeConfigError(
            "--replicas is a range, so --autoscale has to be cpu or keda. Or give one number."
        )
    if choice != "none" and not replicas.is_range:
        raise WorkerSizeConfigError(
            f"--autoscale {choice} needs a range to choose in, such as --replicas 2..10."
        )
    return choice
