"""Where a setting comes from: the layers that are asked, from the strongest to the weakest."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Final, NoReturn

from ..errors import WorkerSizeConfigError

PREFERRED_PREFIX = "NOW_LMS_"
CONFIG_PREFIX = "WORKERSIZE_"
GUNICORN_ARGS = "GUNICORN_CMD_ARGS"
DEFAULT_SERVER: Final = "waitress"


class Layer(IntEnum):
    """Who speaks; a smaller number is asked first."""

    OPTION = 0
    PREFERRED = 1
    GUNICORN_ARGS = 2
    LEGACY = 3
    CONFIG = 4
    SERVER_OPTIONS = 5
    DEFAULT = 6


@dataclass(frozen=True)
class SettingValue:
    """A value that is set, and the name it is set under."""

    value: Any
    source: str
    layer: Layer


@dataclass(frozen=True)
class SettingNames:
    """The names of one setting.

    :param variables: environment variables, the preferred one first
    :param gunicorn_flags: spellings in ``GUNICORN_CMD_ARGS``, the long one last
    :param gunicorn_action: what argparse does with such a flag
    :param server_option: key in ``WORKERSIZE_<SERVER>_OPTIONS``, by server
    """

    variables: tuple[str, ...]
    gunicorn_flags: tuple[str, ...] = ()
    gunicorn_action: str = "store"
    server_option: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SettingSources:
    """Everything that may set a value, as plain mappings.

    :param names: the names of every setting
    :param environ: the environment
    :param config: the config of the app
    :param options: options of the command or function, by setting
    :param option_source: how such an option is called in messages: a format of ``{name}``, the
        setting, and ``{option}``, the same with dashes
    """

    names: Mapping[str, SettingNames]
    environ: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    option_source: str = "--{option}"

    def candidates(self, name: str, server: str | None = None) -> Iterator[SettingValue]:
        """Yield what is set for a setting, the strongest first; what is empty is not set."""
        for found in self._all(name, server):
            value = found.value.strip() if isinstance(found.value, str) else found.value
            if value is not None and value != "":
                yield replace(found, value=value)

    def _all(self, name: str, server: str | None) -> Iterator[SettingValue]:
        names = self.names[name]
        option = self.option_source.format(name=name, option=name.replace("_", "-"))
        yield SettingValue(self.options.get(name), option, Layer.OPTION)
        for variable in names.variables:
            if variable.startswith(PREFERRED_PREFIX):
                yield SettingValue(self.environ.get(variable), variable, Layer.PREFERRED)
        if server == "gunicorn" and names.gunicorn_flags:
            source = f"{GUNICORN_ARGS} {names.gunicorn_flags[-1]}"
            yield SettingValue(self._gunicorn_args.get(name), source, Layer.GUNICORN_ARGS)
        for variable in names.variables:
            if not variable.startswith(PREFERRED_PREFIX):
                yield SettingValue(self.environ.get(variable), variable, Layer.LEGACY)
        key = config_key(name)
        yield SettingValue(self.config.get(key), f"app.config {key}", Layer.CONFIG)
        if server is not None and server in names.server_option:
            key, entry = options_key(server), names.server_option[server]
            value = server_options(self.config, server).get(entry)
            yield SettingValue(value, f"app.config {key}[{entry!r}]", Layer.SERVER_OPTIONS)

    @cached_property
    def _gunicorn_args(self) -> Mapping[str, Any]:
        return gunicorn_args(self.environ, self.names)


def config_key(name: str) -> str:
    """Return the key of a setting in ``app.config``."""
    return CONFIG_PREFIX + name.upper()


def options_key(server: str) -> str:
    """Return the key in ``app.config`` that holds further options of a server."""
    return f"{CONFIG_PREFIX}{server.upper()}_OPTIONS"


def server_options(config: Mapping[str, Any], server: str) -> Mapping[str, Any]:
    """Return the further options of a server.

    :raises WorkerSizeConfigError: if the value is no mapping with names as keys
    """
    options = config.get(options_key(server)) or {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise WorkerSizeConfigError(
            f"app.config {options_key(server)} is not a mapping: set it to a dictionary of "
            f"{server} options, by name."
        )
    return options


class _GunicornArgs(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = message.partition(":")[0]  # what follows may quote a value
        raise WorkerSizeConfigError(
            f"{GUNICORN_ARGS} cannot be read: {flag} lacks its value, or has one and takes none. "
            "Correct it."
        )


def gunicorn_args(
    environ: Mapping[str, str], names: Mapping[str, SettingNames]
) -> Mapping[str, Any]:
    """Return what ``GUNICORN_CMD_ARGS`` says of the settings that a plan is made from.

    Only their few flags are read here, so that planning needs no gunicorn; all the others are
    read by gunicorn's own parser when it is started.

    :raises WorkerSizeConfigError: if the text has an open quote, or a flag lacks its value
    """
    parser = _GunicornArgs(add_help=False, allow_abbrev=False)
    for name, spelled in names.items():
        if spelled.gunicorn_flags:
            action = spelled.gunicorn_action
            parser.add_argument(*spelled.gunicorn_flags, dest=name, action=action, default=None)
    try:
        words = shlex.split(environ.get(GUNICORN_ARGS, ""))
    except ValueError:
        raise WorkerSizeConfigError(
            f"{GUNICORN_ARGS} cannot be read: a quote is not closed, or it ends in a backslash. "
            "Correct it."
        ) from None
    return vars(parser.parse_known_args(words)[0])


def resolve(layers: SettingSources) -> dict[str, Any]:
    """Choose a value for every setting that is set; nothing is validated here.

    :returns: the values by setting, and ``sources`` and ``warnings``
    """
    server = next(layers.candidates("wsgi_server"), None)
    server_name = str(server.value).lower() if server else DEFAULT_SERVER
    found: dict[str, SettingValue] = {}
    warnings = list(_slips(layers))
    for name in layers.names:
        candidates = list(layers.candidates(name, server_name))
        if name in ("port", "health_port"):
            candidates = list(_without_service_links(candidates, warnings))
        if candidates:
            found[name] = candidates[0]
            warnings += _conflicts(candidates)
    _prefer_stronger_address(found, warnings)
    values: dict[str, Any] = {name: item.value for name, item in found.items()}
    values["sources"] = {name: item.source for name, item in found.items()}
    values["warnings"] = tuple(warnings)
    return values


def _slips(layers: SettingSources) -> Iterable[str]:
    """Say that a variable is almost the name of a setting: nobody else would.

    What is not that near may be the app's own: NOW LMS has other variables with this prefix.
    """
    known = [variable for names in layers.names.values() for variable in names.variables]
    for variable in layers.environ:
        if variable.startswith(PREFERRED_PREFIX) and variable not in known:
            for near in difflib.get_close_matches(variable, known, n=1, cutoff=0.9):
                yield f"{variable} is not a setting: did you mean {near}? Correct or remove it."


def _conflicts(candidates: list[SettingValue]) -> Iterable[str]:
    """Say that names of the environment contradict each other; the values stay unsaid."""
    spoken = [f for f in candidates if Layer.PREFERRED <= f.layer <= Layer.LEGACY]
    others = [f.source for f in spoken if _text(f.value) != _text(spoken[0].value)]
    if others and spoken[0] is candidates[0]:
        names = " and ".join([spoken[0].source, *others])
        yield f"{names} are set to different values: {spoken[0].source} wins; unset the other."


def _text(value: Any) -> str:
    """Return a value as a variable would hold it; argparse gives lists and ``True`` for flags."""
    if value is True:
        return "on"
    return (",".join(value) if isinstance(value, list) else str(value)).lower()


_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)


def _without_service_links(
    candidates: list[SettingValue], warnings: list[str]
) -> Iterable[SettingValue]:
    """Drop ``tcp://…``, which Kubernetes sets for a Service of that name: nobody asked for it."""
    for found in candidates:
        link = _SERVICE_LINK.match(found.value) if isinstance(found.value, str) else None
        if link and found.layer is not Layer.OPTION:
            warnings.append(
                f"{found.source} is skipped: it holds a {link[0]} address, which Kubernetes sets "
                "in each pod for a Service of that name; set enableServiceLinks: false in the "
                "pod's spec."
            )
        else:
            yield found


def _prefer_stronger_address(found: dict[str, SettingValue], warnings: list[str]) -> None:
    """Let ``--port`` win over ``NOW_LMS_BIND``: it is the stronger word on the same matter."""
    if "bind" not in found:
        return
    bind = found["bind"]
    for name in ("port", "host"):
        if name in found and found[name].layer < bind.layer:
            warnings.append(
                f"{bind.source} is not used: {found[name].source} is the stronger setting."
            )
            del found["bind"]
            return
