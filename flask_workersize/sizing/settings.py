"""What the operator asked for: every variable and config key, its rule and its default.

This module is the one place that spells the names of the settings;
:mod:`flask_workersize.sizing.sources` holds their order of precedence.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..errors import WorkerSizeConfigError
from .profile import SizingProfile
from .profile_location import REMEDY, ProfileLocation, find_profile
from .sources import (
    CONFIG_PREFIX,
    DEFAULT_SERVER,
    SettingNames,
    SettingSources,
    config_key,
    options_key,
    resolve,
)
from .validators import (
    Addresses,
    Guard,
    Host,
    HostOrNone,
    MegabytesOrPercent,
    Networks,
    ProfileChoice,
    Server,
    Whole,
    WholeOrAuto,
    WholeOrNone,
    explain,
    profile_choice,
    refusal,
)

MOST_PROCESSES = 10_000
"""Most workers, and most threads: beyond it there is a slip of the finger, not a machine."""

YEAR_SECONDS = 365 * 24 * 3600
"""Longest timeout, in seconds: what is longer is meant as never, which is 0."""

DEFAULT_WORKER_MEMORY_MB = 200
"""Memory that one worker is taken to need, in MB (guide, "NOW_LMS_WORKER_MEMORY_MB")."""

MEASURED = "measured"
"""The source of a number that a profile has."""

MEASURED_HEADROOM_PERCENT = 30
"""Share of available memory that a plan from a profile leaves alone where none is set, in %.

The guide leaves nothing, since 200 MB a worker leave enough; a measured number leaves nothing by
itself. Of the guide's advice ("Leave 20-30% for OS and other processes") it is the part above
which the memory guard begins to act."""

_GUNICORN = "gunicorn"
_WAITRESS = "waitress"

NAMES: Mapping[str, SettingNames] = {
    "workers": SettingNames(
        ("NOW_LMS_WORKERS", "WORKERS", "WEB_CONCURRENCY"),
        ("-w", "--workers"),
        server_option={_GUNICORN: "workers"},
    ),
    "threads": SettingNames(
        ("NOW_LMS_THREADS", "THREADS"),
        ("--threads",),
        server_option={_GUNICORN: "threads", _WAITRESS: "threads"},
    ),
    "worker_memory_mb": SettingNames(("NOW_LMS_WORKER_MEMORY_MB", "WORKER_MEMORY_MB")),
    "min_workers": SettingNames(("NOW_LMS_MIN_WORKERS",)),
    "max_workers": SettingNames(("NOW_LMS_MAX_WORKERS",)),
    "memory_headroom_percent": SettingNames(("NOW_LMS_MEMORY_HEADROOM_PERCENT",)),
    "wsgi_server": SettingNames(("NOW_LMS_WSGI_SERVER", "WSGI_SERVER")),
    "host": SettingNames(("NOW_LMS_HOST",), server_option={_WAITRESS: "host"}),
    "port": SettingNames(("NOW_LMS_PORT", "LMS_PORT", "PORT"), server_option={_WAITRESS: "port"}),
    "timeout": SettingNames(
        ("NOW_LMS_TIMEOUT",),
        ("-t", "--timeout"),
        server_option={_GUNICORN: "timeout", _WAITRESS: "channel_timeout"},
    ),
    "graceful_timeout": SettingNames(
        ("NOW_LMS_GRACEFUL_TIMEOUT",),
        ("--graceful-timeout",),
        server_option={_GUNICORN: "graceful_timeout"},
    ),
    "bind": SettingNames(
        ("NOW_LMS_BIND",),
        ("-b", "--bind"),
        gunicorn_action="append",
        server_option={_GUNICORN: "bind"},
    ),
    "preload": SettingNames(
        ("NOW_LMS_PRELOAD",),
        ("--preload",),
        gunicorn_action="store_true",
        server_option={_GUNICORN: "preload_app"},
    ),
    "trusted_proxy": SettingNames(("NOW_LMS_TRUSTED_PROXY",)),
    "health_token": SettingNames(("NOW_LMS_HEALTH_TOKEN",)),
    "health_port": SettingNames(("NOW_LMS_HEALTH_PORT",)),
    "health_host": SettingNames(("NOW_LMS_HEALTH_HOST",)),
    "ready_saturated_seconds": SettingNames(("NOW_LMS_READY_SATURATED_SECONDS",)),
    "drain_seconds": SettingNames(("NOW_LMS_DRAIN_SECONDS",)),
    "memory_guard": SettingNames(("NOW_LMS_MEMORY_GUARD",)),
    "memory_recycle_percent": SettingNames(("NOW_LMS_MEMORY_RECYCLE_PERCENT",)),
    "memory_critical_percent": SettingNames(("NOW_LMS_MEMORY_CRITICAL_PERCENT",)),
    "worker_memory_max_mb": SettingNames(("NOW_LMS_WORKER_MEMORY_MAX_MB",)),
    "sizing_profile": SettingNames(("NOW_LMS_SIZING_PROFILE",)),
}

HEALTH_URL_KEY = f"{CONFIG_PREFIX}HEALTH_URL"
PLAN_KEY = f"{CONFIG_PREFIX}PLAN"
DEFAULT_HEALTH_URL = "/_health/capacity"

CONFIG_KEYS = frozenset(
    {config_key(name) for name in NAMES}
    | {HEALTH_URL_KEY, PLAN_KEY, options_key(_GUNICORN), options_key(_WAITRESS)}
)


class SizingSettings(BaseSettings):
    """What the operator asked for.

    ``SizingSettings()`` reads the environment, :meth:`load` also the config of an app and the
    options of a command. Settings may be given by name: ``SizingSettings(threads=4)``. Every
    value that is not valid is refused.

    :raises WorkerSizeConfigError: naming the variable that was really set, never its value
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    workers: WholeOrAuto = Field(
        None,
        ge=1,
        le=MOST_PROCESSES,
        description='worker processes of gunicorn, at least 1, or "auto"',
        examples=[4],
    )
    threads: WholeOrAuto = Field(
        None,
        ge=1,
        le=MOST_PROCESSES,
        description='threads per gunicorn worker, or all of waitress, at least 1, or "auto"',
        examples=[4],
    )
    worker_memory_mb: Whole = Field(
        DEFAULT_WORKER_MEMORY_MB,
        ge=1,
        description="memory that one worker needs, in MB, at least 1",
    )
    min_workers: Whole = Field(
        1, ge=1, description="fewest workers that are calculated for gunicorn, at least 1"
    )
    max_workers: WholeOrNone = Field(
        None,
        ge=1,
        description="most workers that are calculated for gunicorn, at least 1",
        examples=[8],
    )
    memory_headroom_percent: Whole = Field(
        0,
        ge=0,
        le=99,
        description="share of available memory that is left alone, 0 to 99 %; with a sizing "
        f"profile, {MEASURED_HEADROOM_PERCENT} % where none is set",
        examples=[25],
    )
    wsgi_server: Server = Field(
        DEFAULT_SERVER,
        description='server to run, "gunicorn" or "waitress"',
        examples=["gunicorn"],
    )
    host: Host = Field("0.0.0.0", min_length=1, description="address to listen on")
    port: Whole = Field(
        8080, ge=0, le=65535, description="port to listen on, 0 to 65535; 0 takes a free one"
    )
    timeout: Whole = Field(
        120,
        ge=0,
        le=YEAR_SECONDS,
        description="seconds after which gunicorn ends a silent worker, and waitress an idle "
        "connection, at least 0; 0 is never",
    )
    graceful_timeout: Whole = Field(
        30,
        ge=0,
        le=YEAR_SECONDS,
        description="seconds that running requests have to end at a stop, at least 0",
    )
    bind: Addresses = Field(
        None,
        description="addresses to listen on, separated by commas: HOST:PORT, [IPV6]:PORT or "
        "unix:PATH",
        examples=["127.0.0.1:8080"],
    )
    preload: bool = Field(
        True,
        description="load the app once, before gunicorn's workers are forked: on or off",
        examples=["on"],
    )
    trusted_proxy: Networks = Field(
        None,
        description="addresses or networks of the reverse proxy, separated by commas, or *",
        examples=["127.0.0.1"],
    )
    health_token: SecretStr | None = Field(
        None,
        description="bearer token that opens the details of the capacity report",
        examples=["a long random text"],
    )
    health_port: WholeOrNone = Field(
        None,
        ge=0,
        le=65535,
        description="second port, for probes and metrics, which needs no worker, 0 to 65535; 0 "
        "takes a free one",
        examples=[8081],
    )
    health_host: HostOrNone = Field(
        None,
        min_length=1,
        description="address that the health port listens on",
        examples=["127.0.0.1"],
    )
    ready_saturated_seconds: WholeOrNone = Field(
        None,
        ge=1,
        le=YEAR_SECONDS,
        description="seconds that every worker may be busy before /ready says no, at least 1",
        examples=[30],
    )
    drain_seconds: Whole = Field(
        0,
        ge=0,
        le=YEAR_SECONDS,
        description="seconds that the server goes on serving after SIGTERM, while /ready says no, "
        "at least 0",
        examples=[5],
    )
    memory_guard: Guard = Field(
        "on",
        description='"on" recycles workers before memory runs out, "off" does not, "exit" also '
        "ends waitress, for the service manager to start it again",
        examples=["on"],
    )
    memory_recycle_percent: Whole = Field(
        70,
        ge=1,
        le=99,
        description="share of the memory limit above which workers are recycled, 1 to 99 %",
    )
    memory_critical_percent: Whole = Field(
        90,
        ge=1,
        le=100,
        description="share of the memory limit above which there are fewer workers, and waitress "
        "is not ready, 1 to 100 %",
    )
    worker_memory_max_mb: MegabytesOrPercent = Field(
        None,
        description="own memory above which a worker is recycled, in MB, or as a share of the "
        'memory limit, such as "25%"',
        examples=[300],
    )

    sizing_profile: ProfileChoice = Field(
        None,
        description='file that says what the app was measured to cost; "off" for none, "learn" to '
        "write it while serving",
        examples=["learn"],
    )

    profile: SizingProfile | None = Field(None, repr=False, exclude=True)
    """What the app was measured to cost, where the plan is to be made from it."""

    sources: dict[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    """Where each value came from, by setting."""

    warnings: tuple[str, ...] = Field((), repr=False, exclude=True)
    """What the operator should know, one sentence each."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            sources = values["sources"] if "sources" in values else _from_environ(values)["sources"]
            raise explain(error, type(self).model_fields, sources) from None

    @classmethod
    def load(
        cls,
        *,
        environ: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        option_source: str = "--{option}",
        profile_location: ProfileLocation | None = None,
    ) -> Self:
        """Read the settings from every layer.

        :param environ: the environment; ``os.environ`` where left out
        :param config: the config of the app
        :param options: options of a command or function, by setting; ``None`` is not set
        :param option_source: how such an option is called in messages; ``{option}`` is its name
        :param home: where the profile of the app is looked for
        :returns: the settings, with the source of each and what the operator should know
        :raises WorkerSizeConfigError: if a value is refused, or ``config`` has an unknown
            ``WORKERSIZE_`` key
        """
        _check_keys(config or {})
        layers = SettingSources(
            NAMES,
            os.environ if environ is None else environ,
            config or {},
            options or {},
            option_source,
        )
        return cls(**resolve(layers))._with_profile(profile_location)

    def _with_profile(self, profile_location: ProfileLocation | None) -> Self:
        """Find out what the app was measured to cost; who has set a number is not overruled."""
        found = find_profile(self.sizing_profile, profile_location, self.preload, self.wsgi_server)
        if isinstance(found, str):
            told = f"cannot be used: {found}. {REMEDY}"
            if self.sizing_profile not in (None, "learn"):
                source = self.source_of("sizing_profile")
                raise WorkerSizeConfigError(f"{source} names a sizing profile that {told}")
            warning = f"The sizing profile in the instance folder {told}"
            return self.model_copy(update={"warnings": (*self.warnings, warning)})
        profile, doubts = found
        if profile is None:
            return self
        made = self.measured_by(profile, doubts)
        if self.sizing_profile is not None or made.profile is None:
            return made
        named = {**made.sources, "sizing_profile": "instance folder"}
        return made.model_copy(update={"sources": named})

    def measured_by(self, profile: SizingProfile, doubts: tuple[str, ...] = ()) -> Self:
        """Return the settings with a profile, unless a number for the memory of a worker is set.

        :param profile: what the app was measured to cost
        :param doubts: what is to be said of it
        """
        if self.source_of("worker_memory_mb") not in ("default", MEASURED):
            return self
        sources = {**self.sources, "worker_memory_mb": MEASURED}
        if self.source_of("memory_headroom_percent") == "default":
            sources["memory_headroom_percent"] = "default with a profile"
        update = {
            "profile": profile,
            "sources": sources,
            "memory_headroom_percent": self.measured_headroom_percent,
            "warnings": (*self.warnings, *doubts),
        }
        return self.model_copy(update=update)

    @property
    def measured_headroom_percent(self) -> int:
        """Share of available memory that is left alone beside measured numbers, in %."""
        if self.source_of("memory_headroom_percent") == "default":
            return MEASURED_HEADROOM_PERCENT
        return self.memory_headroom_percent

    @staticmethod
    def profile_named(config: Mapping[str, Any]) -> str | None:
        """Return the file that is named for a profile, whether it is there or not.

        :param config: the config of the app
        """
        layers = SettingSources(NAMES, os.environ, config)
        found = next(layers.candidates("sizing_profile"), None)
        choice = profile_choice(found.value) if found else None
        return None if choice in (None, "off", "learn") else choice

    def memory_of_a_worker(self, threads: int) -> tuple[int, int]:
        """Return the memory that is needed once, and that of each worker, in MB.

        :param threads: threads a worker
        """
        if self.profile is None:
            return 0, self.worker_memory_mb
        return self.profile.costs.shared_mb, self.profile.costs.private_mb(threads)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Replace pydantic's reading of the environment by ours, which knows where from."""
        return _EnvironmentSource(settings_cls, init_settings), init_settings

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.max_workers is not None and self.min_workers > self.max_workers:
            low, high = self.source_of("min_workers"), self.source_of("max_workers")
            raise refusal(f"{low} is above {high}: lower the minimum or raise the maximum.")
        return self

    @model_validator(mode="after")
    def _recycle_below_critical(self) -> Self:
        if self.memory_recycle_percent > self.memory_critical_percent:
            low, high = map(
                self._spoken_name, ("memory_recycle_percent", "memory_critical_percent")
            )
            raise refusal(f"{low} is above {high}: lower the first or raise the second.")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = [int(item.rpartition(":")[2]) for item in self.addresses if item[:5] != "unix:"]
        if self.health_port and self.health_port in ports:
            raise refusal(
                f"{self.source_of('health_port')} is a port that the app listens on: choose "
                "another one."
            )
        return self

    def for_platform(self, platform: str) -> Self:
        """Return the settings that hold on a platform: gunicorn does not run on Windows.

        :param platform: as :data:`sys.platform` gives it
        """
        if platform != "win32" or self.wsgi_server != "gunicorn":
            return self
        warning = (
            f"{self.source_of('wsgi_server')} asks for gunicorn, which does not run on Windows: "
            "waitress is used instead."
        )
        update = {"wsgi_server": "waitress", "warnings": (*self.warnings, warning)}
        return self.model_copy(update=update)

    def source_of(self, name: str) -> str:
        """Return where the value of a setting came from: a name, or "default"."""
        return self.sources.get(name, "default")

    def _spoken_name(self, name: str) -> str:
        """Return what a person has set, or could set."""
        source = self.source_of(name)
        if source != "default":
            return source
        return f"{NAMES[name].variables[0]} (default {getattr(self, name)})"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses to listen on: ``bind``, else host and port."""
        if self.bind is not None:
            return tuple(self._with_port(item) for item in self.bind)
        host = self.host.strip("[]")
        host = f"[{host}]" if ":" in host else host
        return (f"{host}:{self.port}",)

    @property
    def health_address(self) -> str | None:
        """The address of the health port, the host of the app's own first one; ``None`` if off."""
        if self.health_port is None:
            return None
        hosts = [item.rpartition(":")[0] for item in self.addresses if item[:5] != "unix:"]
        host = self.health_host or next(iter(hosts), "127.0.0.1")
        host = host.strip("[]")
        return f"[{host}]:{self.health_port}" if ":" in host else f"{host}:{self.health_port}"

    def _with_port(self, address: str) -> str:
        if address.startswith("unix:") or re.search(r":[0-9]+$", address):
            return address
        return f"{address}:{self.port}"


class _EnvironmentSource(PydanticBaseSettingsSource):
    """The environment, for ``SizingSettings()``, under the values that are given by name."""

    def __init__(
        self, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(settings_cls)
        self.given: dict[str, Any] = init_settings()

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of one field; pydantic-settings asks for this method."""
        return self()[field_name], field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what the environment sets, and where; nothing where :meth:`load` has read it."""
        return {} if "sources" in self.given else _from_environ(self.given)


def _from_environ(given: Mapping[str, Any]) -> dict[str, Any]:
    return resolve(
        SettingSources(NAMES, os.environ, options=given, option_source="argument {name!r}")
    )


def _check_keys(config: Mapping[str, Any]) -> None:
    for key in config:
        if isinstance(key, str) and key.startswith(CONFIG_PREFIX) and key not in CONFIG_KEYS:
            near = difflib.get_close_matches(key, CONFIG_KEYS, n=1, cutoff=0)
            raise WorkerSizeConfigError(
                f"app.config has an unknown key {key!r}: did you mean {near[0]!r}? Correct or "
                "remove it."
            )
