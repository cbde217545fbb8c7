"""Run an app under waitress."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from waitress.adjustments import Adjustments
from waitress.server import create_server

from ..errors import WorkerSizeConfigError
from ..plan import SizingPlan
from ..settings import NAMES, SizingSettings
from ..sources import options_key, server_options
from . import announce, say
from .listeners import close_listeners, open_listeners, url_of
from .proxy import TrustedProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from flask import Flask

MOST_CONNECTIONS = 1000
"""Connections that are open at once. At waitress' own 100 a page with many idle browsers looks
like a hang; an idle connection costs a few KB."""

_ADDRESS_OPTIONS = ("listen", "sockets", "unix_socket", "unix_socket_perms")
_YEAR = 365 * 24 * 3600


def run(app: Flask, settings: SizingSettings, plan: SizingPlan) -> None:
    """Serve until SIGTERM or Ctrl-C.

    :raises WorkerSizeConfigError: if an option of waitress is not valid
    :raises WorkerSizeStartError: if an address cannot be had
    """
    options = waitress_options(app.config, settings, plan)
    wsgi = TrustedProxy(app, settings.trusted_proxy) if settings.trusted_proxy else app
    listeners = open_listeners(settings.addresses)
    try:
        server = _create_server(wsgi, listeners, options)
        announce(plan)
        say(logging.INFO, f"Serving on {', '.join(map(url_of, listeners))}")
        signal.signal(signal.SIGTERM, _stop)
        server.run()
    finally:
        close_listeners(listeners)


def _create_server(
    wsgi: WSGIApplication, listeners: list[socket.socket], options: Mapping[str, Any]
) -> Any:
    try:
        return create_server(wsgi, sockets=listeners, **options)
    except ValueError as error:
        raise WorkerSizeConfigError(
            f"waitress refuses these settings: {error} Correct the addresses, or app.config "
            f"{options_key('waitress')}."
        ) from None


def waitress_options(
    config: Mapping[str, Any], settings: SizingSettings, plan: SizingPlan
) -> dict[str, Any]:
    """Return the adjustments of waitress: ours, and over them those of the app's config.

    :raises WorkerSizeConfigError: if there is no such option, or its value is not valid
    """
    options: dict[str, Any] = {
        "threads": plan.threads,
        "channel_timeout": settings.timeout or _YEAR,
        "cleanup_interval": 30,
        "connection_limit": _connection_limit(),
        # select() cannot watch descriptors above 1023.
        "asyncore_use_poll": True,
        "clear_untrusted_proxy_headers": not settings.trusted_proxy,
    }
    planned = {names.server_option.get("waitress") for names in NAMES.values()}
    for name, value in server_options(config, "waitress").items():
        if name in planned:
            continue
        _check_option(name, value)
        options[name] = value
    return options


def _check_option(name: str, value: Any) -> None:
    where = f"app.config {options_key('waitress')}"
    if name in _ADDRESS_OPTIONS:
        raise WorkerSizeConfigError(
            f"{where} has {name!r}: addresses are set by NOW_LMS_HOST, NOW_LMS_PORT or "
            "NOW_LMS_BIND. Remove it."
        )
    known: dict[str, Any] = dict(Adjustments._params)  # type: ignore[attr-defined]
    if name not in known:
        raise WorkerSizeConfigError(
            f"{where} has {name!r}, which waitress does not know. Correct or remove it."
        )
    try:
        known[name](value)
    except (TypeError, ValueError):
        raise WorkerSizeConfigError(
            f"{where} has a value for {name!r} that waitress does not take. Correct or remove it."
        ) from None


def _connection_limit() -> int:
    """Return how many connections may be open; one can take up to three descriptors."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(100, min(MOST_CONNECTIONS, soft // 3))


def _stop(signum: int, frame: Any) -> NoReturn:
    raise SystemExit(0)
