"""waitress' adjustments: ours, and over them those of the app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waitress.adjustments import Adjustments

from ...errors import WorkerSizeConfigError
from ...sizing.plan import SizingPlan
from ...sizing.settings import NAMES, SizingSettings
from ...sizing.sources import options_key, server_options
from ...sizing.validators import YEAR_SECONDS
from ..crowd import connection_limit
from ..listeners import BACKLOG

WHERE = f"app.config {options_key('waitress')}"
_ADDRESS_OPTIONS = ("listen", "sockets", "unix_socket", "unix_socket_perms")


def waitress_options(
    config: Mapping[str, Any], settings: SizingSettings, plan: SizingPlan
) -> dict[str, Any]:
    """Return the adjustments of waitress: ours, and over them those of the app's config."""
    options: dict[str, Any] = {
        "threads": plan.threads,
        "channel_timeout": settings.timeout or YEAR_SECONDS,
        "cleanup_interval": 30,
        # Both buffers of one may be in files.
        "connection_limit": connection_limit(descriptors_each=3),
        # select() cannot watch descriptors above 1023.
        "asyncore_use_poll": True,
        "backlog": BACKLOG,
        "clear_untrusted_proxy_headers": not settings.trusted_proxy,
    }
    planned = {names.server_option.get("waitress") for names in NAMES.values()}
    given = server_options(config, "waitress")
    others = {name: value for name, value in given.items() if name not in planned}
    for name, value in others.items():
        _check_option(name, value)
    options |= others
    try:
        Adjustments(**options)
    except ValueError as error:
        raise WorkerSizeConfigError(f"{WHERE} is not valid: {error}") from None
    return options


def _check_option(name: str, value: Any) -> None:
    if name in _ADDRESS_OPTIONS:
        raise WorkerSizeConfigError(f"{WHERE} has {name!r}: set NOW_LMS_PORT or NOW_LMS_BIND.")
    known: dict[str, Any] = dict(Adjustments._params)  # type: ignore[attr-defined]
    if name not in known:
        raise WorkerSizeConfigError(f"{WHERE} has {name!r}, which waitress does not know.")
    try:
        known[name](value)
    except (TypeError, ValueError):
        raise WorkerSizeConfigError(f"{WHERE} has a wrong value for {name!r}.") from None
    if name == "connection_limit" and int(value) < 1:
        raise WorkerSizeConfigError(
            f"{WHERE} has a {name!r} below 1: no request would be answered."
        )
