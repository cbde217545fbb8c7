"""What the operator asked for: every setting with its names, its rule and its default.

The name of a field is the name of its setting: variables, keys and options follow from it.
:mod:`flask_workersize.sizing.sources` holds their order of precedence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..errors import WorkerSizeConfigError
from .profile import SizingProfile
from .profile_location import REMEDY, ProfileLocation, doubts_of, find_profile
from .sources import (
    CONFIG_PREFIX,
    QUOTES,
    ArgsParser,
    OptionSource,
    SettingNames,
    SettingSources,
    config_key,
    is_quoted,
    options_key,
)
from .validators import (
    Addresses,
    CountOrAuto,
    Guard,
    Host,
    Networks,
    Patience,
    Percent,
    Port,
    Positive,
    ProfileChoice,
    RecyclePercent,
    Seconds,
    Server,
    ServerName,
    Sizing,
    explain,
    refusal,
    unknown,
)

DEFAULT_WORKER_MEMORY_MB = 200
"""Memory that one worker is assumed to need, in MB (guide, "NOW_LMS_WORKER_MEMORY_MB")."""

MEASURED = "measured"
"""The source of a number that a profile has."""

MEASURED_HEADROOM_PERCENT = 30
"""Share of available memory that a plan from a profile keeps free by default, in %.

The guide leaves nothing, since 200 MB a worker leave enough; a measured number leaves nothing by
itself. Of the guide's advice ("Leave 20-30% for OS and other processes") it is the part above
which the memory guard begins to act."""

_NOT_DERIVED = (
    SettingNames("workers", ("WORKERS", "WEB_CONCURRENCY"), "-w", {"gunicorn": "workers"}),
    SettingNames("threads", ("THREADS",), None, {"gunicorn": "threads", "waitress": "threads"}),
    SettingNames("worker_memory_mb", ("WORKER_MEMORY_MB",)),
    SettingNames("wsgi_server", ("WSGI_SERVER",)),
    SettingNames("host", server_option={"waitress": "host"}),
    SettingNames("port", ("LMS_PORT", "PORT"), server_option={"waitress": "port"}),
    SettingNames("timeout", (), "-t", {"gunicorn": "timeout", "waitress": "channel_timeout"}),
    SettingNames("graceful_timeout", server_option={"gunicorn": "graceful_timeout"}),
    SettingNames("bind", (), "-b", {"gunicorn": "bind"}),
    SettingNames("preload", server_option={"gunicorn": "preload_app"}),
)


class SizingSettings(BaseSettings):
    """What the operator asked for.

    ``SizingSettings()`` reads the environment, :meth:`load` also ``GUNICORN_CMD_ARGS``, the config
    of an app and the options of a command. Settings may be given by name:
    ``SizingSettings(threads=4)``. Every value that is not valid is refused.

    :raises WorkerSizeConfigError: naming the variable that was really set, never its value
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    workers: CountOrAuto = Field(None, description='gunicorn workers, at least 1, or "auto"')
    threads: CountOrAuto = Field(None, description='threads per worker, at least 1, or "auto"')
    worker_memory_mb: Positive = Field(
        DEFAULT_WORKER_MEMORY_MB, description="memory per worker, in MB, at least 1"
    )
    min_workers: Positive = Field(1, description="least calculated number of workers, at least 1")
    max_workers: Positive | None = Field(
        None, description="largest calculated number of workers, at least 1"
    )
    memory_headroom_percent: Percent = Field(
        0,
        description="share of available memory kept free, 0 to 99 %; "
        f"{MEASURED_HEADROOM_PERCENT} % by default with a sizing profile",
    )
    wsgi_server: Server = Field("waitress", description='server, "gunicorn" or "waitress"')
    host: Host = Field("0.0.0.0", description="address to listen on")
    port: Port = Field(8080, description="port to listen on, 0 to 65535; 0 picks a free one")
    timeout: Seconds = Field(
        120,
        description="seconds after which gunicorn kills a silent worker, and waitress closes an "
        "idle connection, at least 0; 0 means never",
    )
    graceful_timeout: Seconds = Field(
        30, description="seconds that running requests may take when the server stops, at least 0"
    )
    bind: Addresses = Field(
        None, description="HOST:PORT, [IPV6]:PORT or unix:PATH to listen on, separated by commas"
    )
    preload: bool = Field(True, description="load the app before the fork: on or off")
    trusted_proxy: Networks = Field(
        None, description="addresses or networks of the reverse proxy, separated by commas, or *"
    )
    health_token: SecretStr | None = Field(
        None, description="bearer token for the details of the capacity report"
    )
    health_port: Port | None = Field(
        None, description="port for probes and metrics, 0 to 65535; 0 picks a free one"
    )
    health_host: Host | None = Field(None, description="address that the health port listens on")
    drain_seconds: Seconds = Field(
        0, description="seconds to serve after SIGTERM, while /ready fails, at least 0"
    )
    memory_guard: Guard = Field(
        "on",
        description='"on" recycles workers before memory runs out, "off" does not, "exit" also '
        "stops waitress so that the service manager restarts it",
    )
    memory_recycle_percent: RecyclePercent = Field(
        70, description="share of the memory limit above which workers are recycled, 1 to 89 %"
    )
    worker_memory_max_mb: Positive | None = Field(
        None, description="private memory above which a worker is recycled, in MB, at least 1"
    )
    sizing_profile: ProfileChoice = Field(
        None, description='profile of the app; "off" for none, "learn" to write it while serving'
    )

    queue_seconds: Patience | None = Field(
        None,
        description="longest time in seconds that a request may wait for the app; later ones get "
        "status 503. Above 0, fractions allowed",
    )

    sizing: Sizing = Field(
        "guide",
        description='"guide" keeps the planned size, "adaptive" starts there and follows the load',
    )

    profile: SizingProfile | None = Field(None, repr=False, exclude=True)
    """The measured profile, if the plan uses it."""

    sources: dict[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    """Where each value came from, by setting."""

    warnings: tuple[str, ...] = Field((), repr=False, exclude=True)
    """What the operator should know, one sentence each."""

    gunicorn_args: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)
    """Everything that ``GUNICORN_CMD_ARGS`` sets, by gunicorn's names."""

    def __init__(self, **values: Any) -> None:
        if "sources" not in values:
            sources = SettingSources(NAMES, os.environ, {}, values, "argument {name!r}")
            others = {name: value for name, value in values.items() if name not in NAMES}
            values = {**sources.resolve(), **others}
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, type(self).model_fields, values["sources"]) from None

    @classmethod
    def load(
        cls,
        *,
        environ: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        option_source: OptionSource = "--{option}",
        gunicorn_args: ArgsParser | None = None,
    ) -> Self:
        """Read the settings from every source, each once.

        :param environ: the environment; ``os.environ`` if left out
        :param config: the config of the app
        :param options: options of a command or function, by setting; ``None`` is not set
        :param option_source: the name of such an option in messages: a format of ``{name}``, the
            setting, and ``{option}``, the same with dashes; or a name for each setting
        :param gunicorn_args: parses ``GUNICORN_CMD_ARGS``; called if that is set and the server is
            gunicorn
        :returns: the settings, with the source of each and what the operator should know
        :raises WorkerSizeConfigError: if a value is refused, or ``config`` has an unknown
            ``WORKERSIZE_`` key
        """
        config = config or {}
        _check_keys(config)
        environ = os.environ if environ is None else environ
        sources = SettingSources(
            NAMES, environ, config, options or {}, option_source, gunicorn_args
        )
        return cls(**sources.resolve())

    def with_profile(self, location: ProfileLocation | None = None) -> Self:
        """Return the settings with the measured profile of the app, if there is one.

        :param location: where the profile is if no file is named; ``None`` if the app is not known
        :raises WorkerSizeConfigError: if a file is named that cannot be used
        """
        path = self.profile_path or (location.path if location else None)
        if path is None or self.sizing_profile == "off":
            return self
        found = find_profile(Path(path), location, self.preload)
        if isinstance(found, SizingProfile):
            return self.measured_by(found, doubts_of(found, self.wsgi_server))
        if self.profile_path:
            remedy = QUOTES if found is None and is_quoted(self.profile_path) else REMEDY
            raise WorkerSizeConfigError(
                f"{self.source_of('sizing_profile')} names a sizing profile that is not usable: "
                f"{found or 'there is no such file'}. {remedy}"
            )
        if found is None:
            return self
        return self._with(
            f"The sizing profile in the instance folder is not usable: {found}. {REMEDY}"
        )

    @property
    def profile_path(self) -> str | None:
        """The file named for a profile, existing or not."""
        return None if self.sizing_profile in ("off", "learn") else self.sizing_profile

    def measured_by(self, profile: SizingProfile, doubts: tuple[str, ...] = ()) -> Self:
        """Return the settings with a profile, unless the memory per worker is set."""
        if self.source_of("worker_memory_mb") not in ("default", MEASURED):
            return self
        found = {
            "sizing_profile": "instance folder",
            "memory_headroom_percent": "default with a profile",
        }
        sources = {**found, **self.sources, "worker_memory_mb": MEASURED}
        headroom = self.measured_headroom_percent
        return self._with(
            *doubts, profile=profile, sources=sources, memory_headroom_percent=headroom
        )

    def _with(self, *warnings: str, **changes: Any) -> Self:
        return self.model_copy(update={**changes, "warnings": (*self.warnings, *warnings)})

    @property
    def measured_headroom_percent(self) -> int:
        """Share of available memory kept free with measured numbers, in %."""
        if self.source_of("memory_headroom_percent") == "default":
            return MEASURED_HEADROOM_PERCENT
        return self.memory_headroom_percent

    def memory_of_a_worker(self, threads: int, server: ServerName | None = None) -> tuple[int, int]:
        """Return shared memory, and the memory of a worker with its threads, in MB.

        :param threads: threads a worker
        :param server: the server, instead of ``wsgi_server``
        """
        if self.profile is None:
            return 0, self.worker_memory_mb
        costs = self.profile.costs_for(server or self.wsgi_server)
        return costs.shared_mb, costs.private_mb(threads)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Replace pydantic's reading of the environment by ours, which records sources."""
        return (init_settings,)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_workers is not None and self.min_workers > self.max_workers:
            low, high = self.source_of("min_workers"), self.source_of("max_workers")
            raise refusal(f"{low} is above {high}: lower the minimum or raise the maximum.")
        if problem := self._nothing_to_find():
            raise refusal(problem)
        if self.health_port and self.health_port in [port for _, port in self._tcp]:
            source = self.source_of("health_port")
            raise refusal(f"{source} is already the app's port: choose another one.")
        return self

    def _nothing_to_find(self) -> str | None:
        """Return why an adaptive size has nothing to find; ``None`` if it has."""
        set_names = [name for name in ("workers", "threads") if getattr(self, name) is not None]
        if self.wsgi_server == "waitress":
            set_names = [name for name in set_names if name == "threads"]
        elif len(set_names) < 2:
            return None
        if self.sizing != "adaptive" or not set_names:
            return None
        numbers = " and ".join(map(self.source_of, set_names))
        verb = "sets" if len(set_names) == 1 else "set"
        return (
            f"{self.source_of('sizing')}=adaptive has no effect: {numbers} {verb} the size. "
            "Unset one of them."
        )

    def for_platform(self, platform: str) -> Self:
        """Return the settings for a ``sys.platform``: gunicorn does not run on Windows."""
        if platform != "win32" or self.wsgi_server != "gunicorn":
            return self
        source = self.source_of("wsgi_server")
        warning = f"{source}: gunicorn does not run on Windows, using waitress instead."
        return self._with(warning, wsgi_server="waitress")

    def source_of(self, name: str) -> str:
        """Return where the value of a setting came from: a name, or "default"."""
        return self.sources.get(name, "default")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses to listen on: ``bind``, else host and port."""
        if self.bind is None:
            return (_joined(self.host, self.port),)
        has_port = re.compile(r"unix:|.*:[0-9]+$").match
        return tuple(item if has_port(item) else f"{item}:{self.port}" for item in self.bind)

    @property
    def health_address(self) -> str | None:
        """The address of the health port, the host of the app's own first one; ``None`` if off."""
        if self.health_port is None:
            return None
        hosts = [host for host, _ in self._tcp]
        return _joined(self.health_host or next(iter(hosts), "127.0.0.1"), self.health_port)

    @property
    def _tcp(self) -> list[tuple[str, int]]:
        """Host and port of each address that is no unix socket."""
        parts = [item.rpartition(":") for item in self.addresses if item[:5] != "unix:"]
        return [(host, int(port)) for host, _, port in parts]


NAMES: Mapping[str, SettingNames] = {
    name: SettingNames(name)
    for name, field in SizingSettings.model_fields.items()
    if not field.exclude
} | {names.name: names for names in _NOT_DERIVED}

HEALTH_URL_KEY = f"{CONFIG_PREFIX}HEALTH_URL"
PLAN_KEY = f"{CONFIG_PREFIX}PLAN"
DEFAULT_HEALTH_URL = "/_health/capacity"

CONFIG_KEYS = frozenset(
    {config_key(name) for name in NAMES}
    | {HEALTH_URL_KEY, PLAN_KEY, options_key("gunicorn"), options_key("waitress")}
)


def _joined(host: str, port: int) -> str:
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_keys(config: Mapping[str, Any]) -> None:
    for key in config:
        if isinstance(key, str) and key.startswith(CONFIG_PREFIX) and key not in CONFIG_KEYS:
            raise unknown(f"app.config has an unknown key {key!r}", key, CONFIG_KEYS)
