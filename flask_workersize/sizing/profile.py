"""The sizing profile: what an app was measured to cost, in a small file.

``flask workersize measure`` writes it, and so does the monitor of a server that learns. It is JSON,
with the version of its schema in it.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median_high
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..resources.files import read_regular
from .validators import ServerName

LEAST_THREAD_MB = 0.1
"""Memory that each thread is taken to need at least, in MB: less cannot be told from noise."""

_MOST = 1e9
_MOST_BYTES = 64 * 1024


def _of_our_time(made_at: datetime) -> datetime:
    if not 2000 <= made_at.year < 3000:
        raise ValueError("a year that cannot be")
    return made_at


_Version = Annotated[str, Field(pattern=r"^[!-~]{1,50}$")]

_Number = Annotated[float, Field(ge=-_MOST, le=_MOST), AfterValidator(partial(round, ndigits=3))]


class Estimate(BaseModel):
    """A measured number with its spread."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    value: _Number
    low: _Number
    high: _Number

    @model_validator(mode="after")
    def _is_within_its_spread(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError("a number outside of its spread")
        return self

    @classmethod
    def of(cls, values: Iterable[float], value: float | None = None) -> Self:
        """Make a figure of what was seen: its median, or another number that is planned with."""
        seen = list(values)
        middle = median_high(seen) if value is None else value
        return cls(value=middle, low=min(*seen, middle), high=max(*seen, middle))

    @classmethod
    def around(cls, value: float, error: float) -> Self:
        """Make a figure of a number and its standard error, to either side."""
        return cls(value=value, low=value - error, high=value + error)

    def __str__(self) -> str:
        """Return the number and its spread, with one decimal."""
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def _not_negative(figure: Estimate) -> Estimate:
    if figure.low < 0:
        raise ValueError("below nothing")
    return figure


def _not_zero(figure: Estimate) -> Estimate:
    if not figure.value:
        raise ValueError("a worker without memory of its own")
    return figure


Amount = Annotated[Estimate, AfterValidator(_not_negative)]
"""A figure of memory or time: not below 0."""


@dataclass(frozen=True)
class AppCosts:
    """What a plan needs to know of an app.

    :param shared_mb: memory that is needed once with this server, in MB, rounded up
    :param peak_mb: the most memory that a worker with one thread has of its own, in MB
    :param thread_mb: memory of each thread more, in MB
    :param cpu_ms: CPU time of a request, in milliseconds
    :param wait_ms: time that a request waits, in milliseconds
    """

    shared_mb: int
    peak_mb: float
    thread_mb: float
    cpu_ms: float
    wait_ms: float

    def private_mb(self, threads: int) -> int:
        """Return the most memory that a worker has of its own, in MB, rounded up, at least 1.

        :param threads: threads a worker: each more than the first needs memory, too
        """
        return max(1, math.ceil(self.peak_mb + (threads - 1) * self.each_thread_mb))

    @property
    def each_thread_mb(self) -> float:
        """Memory that each thread more is taken to need, in MB."""
        return max(self.thread_mb, LEAST_THREAD_MB)

    def threads_within(self, usable_mb: int) -> int:
        """Return how many threads one process may have; 0 if it does not fit with one.

        :param usable_mb: memory that it may need, in MB, with what is needed once
        """
        possible = range(1, int(usable_mb / LEAST_THREAD_MB) + 2)
        return bisect_right(possible, usable_mb - self.shared_mb, key=self.private_mb)


class SizingProfile(BaseModel):
    """What an app costs. Memory is in MB, times are in milliseconds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    version: Literal[1] = Field(alias="schema")

    app: str
    """Name of the app, Flask's ``import_name``."""

    made_at: Annotated[AwareDatetime, AfterValidator(_of_our_time)]

    made_by: Literal["measure", "learn"]
    """From requests that were sent for it, or from real traffic."""

    python: _Version

    server: Annotated[str, Field(pattern=r"^[!-~]{1,50}( [!-~]{1,50})?$")]
    """The server and its version."""

    flask_workersize: _Version

    preload: bool
    """Whether the app was loaded before the workers were forked."""

    requests: int = Field(ge=1, le=int(_MOST))
    """Requests that it was measured with."""

    shared_mb: Amount
    """Memory that is needed once, for all workers; the most is planned with."""

    alone_mb: Amount | None = None
    """The same for waitress, whose one process is its own launcher; ``None`` if it was learnt under
    waitress: then that is ``shared_mb``."""

    boot_mb: Amount
    """A worker's own memory when it has started."""

    warm_mb: Amount
    """The same after its first requests."""

    peak_mb: Annotated[Amount, AfterValidator(_not_zero)]
    """The same at its most; the most is planned with."""

    thread_mb: Amount
    """Memory of each thread more, at its most; 0 if it was learnt: the peak has the threads that
    there were."""

    growth_mb: Estimate
    """Own memory that 1,000 requests more added; its spread is its standard error, to either
    side."""

    grows: bool
    """Whether it was still growing at the end."""

    cpu_ms: Amount
    """CPU time of a request, the server's part included."""

    wait_ms: Amount
    """Time that a request waits: for a database, for a service."""

    found_threads: int | None = Field(None, ge=1, le=1000)
    """Threads per worker that an adaptive size had reached; ``None`` if the size was the plan's."""

    @property
    def of_server(self) -> str:
        """Name of the server that it was made with."""
        return self.server.partition(" ")[0]

    def costs_for(self, server: ServerName) -> AppCosts:
        """Return what a plan for a server needs to know of it."""
        alone = self.alone_mb if server == "waitress" else None
        return AppCosts(
            math.ceil((alone or self.shared_mb).value),
            self.peak_mb.value,
            self.thread_mb.value,
            self.cpu_ms.value,
            self.wait_ms.value,
        )

    @classmethod
    def made_now(
        cls, made_by: Literal["measure", "learn"], app: str, server: str, **figures: Any
    ) -> Self:
        """Make a profile of this moment."""
        return cls(
            schema=1,
            app=app,
            made_at=datetime.now(UTC).replace(microsecond=0),
            made_by=made_by,
            python=platform.python_version(),
            server=f"{server} {version(server)}",
            flask_workersize=version("flask-workersize"),
            **figures,
        )

    def save(self, path: Path, within: Path | None = None) -> None:
        """Write the file: whoever reads it has the old one or the new one, whole.

        :param path: the file; a link stays one
        :param within: the folder that a link may not lead out of; ``None`` for anywhere
        :raises OSError: if it cannot be written, or a device is in its place
        """
        target = Path(os.path.realpath(path))
        if within is not None and not target.is_relative_to(os.path.realpath(within)):
            raise OSError(errno.EPERM, f"a link leads out of {within}")
        before = target.stat().st_mode if target.exists() else stat.S_IFREG | 0o644
        if stat.S_ISCHR(before) or stat.S_ISBLK(before):
            raise OSError(errno.ENXIO, "It is a device")
        mode = before & 0o777 if stat.S_ISREG(before) else 0o644
        text = self.model_dump_json(indent=2, by_alias=True) + "\n"
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if hasattr(os, "fchmod"):
                    os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.replace(name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        :raises OSError: if it cannot be read
        :raises ValueError: saying why, if it is no profile; nothing of it is shown
        """
        raw = read_regular(path, _MOST_BYTES)
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            why = f"its {place} is missing or not valid"
            if not place:
                is_json = first["type"] != "json_invalid"
                why = "it is no sizing profile" if is_json else "it is no JSON"
            elif place == "schema":
                why = "its schema is not 1: another version of flask-workersize wrote it"
            raise ValueError(why) from None
        except (ValueError, OverflowError):
            # pydantic lets through what datetime raises for a year that it does not have.
            raise ValueError("its made_at is missing or not valid") from None
