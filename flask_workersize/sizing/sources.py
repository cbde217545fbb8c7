"""The sources of a setting, and which one wins."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from operator import itemgetter
from typing import Any

from ..errors import WorkerSizeConfigError

PREFERRED_PREFIX = "NOW_LMS_"
CONFIG_PREFIX = "WORKERSIZE_"
GUNICORN_ARGS = "GUNICORN_CMD_ARGS"

QUOTES = "The quotes are part of the value (docker --env-file keeps them): remove them."
"""Likely cause and remedy for a quoted value."""

ArgsParser = Callable[[str], Mapping[str, Any]]
"""Returns what the text of ``GUNICORN_CMD_ARGS`` sets, by gunicorn's names."""


OptionSource = str | Mapping[str, str]
"""Name of an option in messages: a format, or a name for each setting."""


class Layer(IntEnum):
    """Precedence of sources; the smaller number wins."""

    OPTION = 0
    GUNICORN_APPLIED_LAST = 1
    PREFERRED = 2
    GUNICORN_ARGS = 3
    LEGACY = 4
    CONFIG = 5
    SERVER_OPTIONS = 6


@dataclass(frozen=True)
class SettingValue:
    """A value, and where it was set."""

    value: Any
    source: str
    layer: Layer

    @property
    def text(self) -> str:
        """The value as in a variable; gunicorn's parser returns lists and ``True``."""
        if self.value is True:
            return "on"
        return (",".join(self.value) if isinstance(self.value, list) else str(self.value)).lower()


@dataclass(frozen=True)
class SettingNames:
    """The names of one setting; names not listed follow from the field's name.

    ``server_option`` has its key in ``WORKERSIZE_<SERVER>_OPTIONS``, by server.
    """

    name: str
    legacy: tuple[str, ...] = ()
    short_flag: str | None = None
    server_option: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables, the preferred one first."""
        return (PREFERRED_PREFIX + self.name.upper(), *self.legacy)

    @property
    def option(self) -> str:
        """The name as a command spells it, without dashes before it."""
        return self.name.replace("_", "-")

    @property
    def gunicorn_flags(self) -> tuple[str, ...]:
        """Spellings in ``GUNICORN_CMD_ARGS``, the long one last."""
        if "gunicorn" not in self.server_option:
            return ()
        return (*filter(None, [self.short_flag]), f"--{self.option}")


@dataclass
class SettingSources:
    """All sources of the settings, each read once."""

    names: Mapping[str, SettingNames]
    environ: Mapping[str, str]
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    option_source: OptionSource
    gunicorn_args: ArgsParser | None = None
    args_win: bool = False
    """Whether gunicorn applies ``GUNICORN_CMD_ARGS`` itself, on top of our options."""
    warnings: list[str] = field(default_factory=list, init=False)

    def resolve(self) -> dict[str, Any]:
        """Return the strongest value of each setting, with the sources; nothing is validated."""
        self._warn_of_near_misses()
        found = {name: value for name in self.names if (value := self._strongest(name))}
        self._prefer_stronger_address(found)
        for item in found.values():
            if is_quoted(item.value) and item.layer is not Layer.CONFIG:
                self.warnings.append(f"{item.source} is in quotes. {QUOTES}")
        return {
            **{name: item.value for name, item in found.items()},
            "sources": {name: item.source for name, item in found.items()},
            "warnings": tuple(self.warnings),
            "gunicorn_args": self._command_args,
        }

    @cached_property
    def _server(self) -> str:
        chosen = next(self._candidates("wsgi_server"), None)
        return str(chosen.value).lower() if chosen else "waitress"

    @cached_property
    def _command_args(self) -> Mapping[str, Any]:
        text = self.environ.get(GUNICORN_ARGS, "").strip()
        if not text or self._server != "gunicorn":
            return {}
        if self.gunicorn_args is None:
            self.warnings.append(f"{GUNICORN_ARGS} is only read for an app: use get_plan().")
            return {}
        try:
            return self.gunicorn_args(text)
        except WorkerSizeConfigError as error:
            if not is_quoted(text):
                raise
            raise WorkerSizeConfigError(f"{error.message} {QUOTES}") from None

    def _candidates(self, name: str) -> Iterator[SettingValue]:
        """Yield the values of a setting, the strongest first; empty ones do not count."""
        for value, source, layer in sorted(self._all(self.names[name]), key=itemgetter(2)):
            stripped = value.strip() if isinstance(value, str) else value
            if stripped is not None and stripped != "":
                yield SettingValue(stripped, source, layer)

    def _all(self, names: SettingNames) -> Iterator[tuple[Any, str, Layer]]:
        option = self.option_source
        if isinstance(option, str):
            option = option.format(name=names.name, option=names.option)
        else:
            option = option.get(names.name, names.name)
        yield self.options.get(names.name), option, Layer.OPTION
        preferred, *legacy = names.variables
        yield self.environ.get(preferred), preferred, Layer.PREFERRED
        if key := names.server_option.get("gunicorn"):
            flag = f"{GUNICORN_ARGS} {names.gunicorn_flags[-1]}"
            layer = Layer.GUNICORN_APPLIED_LAST if self.args_win else Layer.GUNICORN_ARGS
            yield self._command_args.get(key), flag, layer
        for variable in legacy:
            yield self.environ.get(variable), variable, Layer.LEGACY
        key = config_key(names.name)
        yield self.config.get(key), f"app.config {key}", Layer.CONFIG
        if names.server_option and (key := names.server_option.get(self._server)):
            entry = f"app.config {options_key(self._server)}[{key!r}]"
            yield server_options(self.config, self._server).get(key), entry, Layer.SERVER_OPTIONS

    def _strongest(self, name: str) -> SettingValue | None:
        candidates = list(self._candidates(name))
        if name in ("port", "health_port"):
            for link in filter(_is_service_link, list(candidates)):
                candidates.remove(link)
                self.warnings.append(
                    f"{link.source} is skipped: it holds the address of a Kubernetes Service of "
                    "that name. Set enableServiceLinks: false in the pod's spec."
                )
        if not candidates:
            return None
        # Variables that contradict each other; their values are not shown.
        first = candidates[0]
        if Layer.OPTION < first.layer <= Layer.LEGACY:
            rivals = [item for item in candidates if item.layer <= Layer.LEGACY]
            names = [first.source, *(item.source for item in rivals if item.text != first.text)]
            if len(names) > 1:
                wins = f"{first.source} wins; unset the other."
                self.warnings.append(f"{' and '.join(names)} are set to different values: {wins}")
        return first

    def _warn_of_near_misses(self) -> None:
        """Warn about variables that are almost named like a setting.

        Other names may belong to the app: NOW LMS has more variables with this prefix.
        """
        known = [variable for names in self.names.values() for variable in names.variables]
        for variable in self.environ:
            if variable.startswith(PREFERRED_PREFIX) and variable not in known:
                for name in difflib.get_close_matches(variable, known, n=1, cutoff=0.9):
                    self.warnings.append(f"{variable} is not a setting: did you mean {name}?")

    def _prefer_stronger_address(self, found: dict[str, SettingValue]) -> None:
        """Let ``--port`` win over ``NOW_LMS_BIND``: its source is the stronger one."""
        for name in ("port", "host"):
            bind, other = found.get("bind"), found.get(name)
            if bind is None or other is None:
                continue
            if other.layer < bind.layer:
                self._warn_of_unused(found.pop("bind"), other)
            elif bind.layer is Layer.GUNICORN_APPLIED_LAST and other.layer is Layer.PREFERRED:
                self._warn_of_unused(other, bind)

    def _warn_of_unused(self, weaker: SettingValue, stronger: SettingValue) -> None:
        line = f"{weaker.source} is not used: {stronger.source} takes precedence."
        self.warnings.append(line)


def is_quoted(value: Any) -> bool:
    """Return whether a value begins and ends with the same quote."""
    return isinstance(value, str) and re.fullmatch(r"(['\"]).*\1", value, re.DOTALL) is not None


def _is_service_link(found: SettingValue) -> bool:
    """Return whether Kubernetes has set it, for a Service of that name."""
    is_text = isinstance(found.value, str) and found.layer is not Layer.OPTION
    return is_text and re.match(r"(tcp|udp|sctp)://", found.value, re.IGNORECASE) is not None


def config_key(name: str) -> str:
    """Return the key of a setting in ``app.config``."""
    return CONFIG_PREFIX + name.upper()


def options_key(server: str) -> str:
    """Return the key in ``app.config`` for extra options of a server."""
    return f"{CONFIG_PREFIX}{server.upper()}_OPTIONS"


def server_options(config: Mapping[str, Any], server: str) -> Mapping[str, Any]:
    """Return the extra options of a server in ``app.config``."""
    options = config.get(options_key(server)) or {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        key = options_key(server)
        raise WorkerSizeConfigError(f"app.config {key} is not a dictionary of {server} options.")
    return options
