"""The same size if you start gunicorn yourself.

``gunicorn -c python:flask_workersize.gunicorn_conf app:app``

gunicorn reads this before it loads the app, so only the environment is known. An app with
another size in ``app.config`` is served under this plan anyway, and one warning reports it.
Options on gunicorn's own command line, or in ``GUNICORN_CMD_ARGS``, win, as always with
gunicorn, and the plan follows them.

To add settings, start a file of your own with ``from flask_workersize.gunicorn_conf import *``.
Hooks in it run after ours; only ``on_starting`` has to call the one here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .app_state import compare
from .errors import WorkerSizeStartError, one_line_errors
from .log import say
from .resources import Resources, detect_resources
from .resources.processes import held_memory
from .runtime.deployment import Deployment, current
from .servers.gunicorn.hooks import Hooks, is_master
from .servers.gunicorn.options import (
    own_options,
    parse_command_args,
    planned_class,
    warn_of_hup,
    warn_of_reload,
)
from .servers.listeners import address_of
from .servers.systemd import watchdog_seconds
from .sizing.plan import available_for, compute_plan
from .sizing.settings import NAMES, SizingSettings
from .sizing.sources import SettingSources

_FOLLOWED = {
    name: names.server_option["gunicorn"]
    for name, names in NAMES.items()
    if "gunicorn" in names.server_option
}
"""Options of gunicorn's own command line or file that the plan follows, by our names."""


@one_line_errors()
def _decide(resources: Resources, held: int, options: Mapping[str, Any]) -> Deployment:
    """Plan, or end gunicorn with one line."""
    sources = SettingSources(
        NAMES,
        os.environ,
        config={},
        options={"wsgi_server": "gunicorn", **options},
        option_source="gunicorn setting {name}",
        gunicorn_args=parse_command_args,
        args_win=True,
    )
    settings = SizingSettings(**sources.resolve()).with_profile()
    plan = compute_plan(settings, available_for(settings, resources, held))
    return Deployment(settings, resources, plan, held_bytes=held)


current.deployment = _decided = _decide(detect_resources(), held_memory(os.getpid()), {})

_options = own_options(_decided.settings, _decided.plan)
_options["bind"] = list(_decided.settings.addresses)
globals().update(_options)

_gunicorn_log = logging.getLogger("gunicorn.error")

_hooks: list[Hooks] = []
"""Those of this server, from :func:`on_starting` on."""

__all__ = ["on_reload", "on_starting"]
__all__ += list(_options)


@one_line_errors()
def on_starting(server: Any) -> None:
    """Make the plan follow gunicorn's options, log it, start the monitor."""
    decided = _follow(server.cfg)
    current.deployment, current.is_final = decided, True
    current.board = decided.make_scoreboard()
    hooks = Hooks(decided, current.board, is_ours=False)
    _hooks.append(hooks)
    hooks.chain_into(server.cfg)
    _chain_at_reloads(server.app, hooks)
    hooks.monitor.start()
    decided.announce(_gunicorn_log)
    hooks.port.announce()
    if decided.settings.sizing == "adaptive":
        say(logging.WARNING, _NO_ADAPTING)
    if decided.settings.drain_seconds:
        say(logging.WARNING, _NO_DRAIN)
    if watchdog_seconds() is not None:
        say(logging.WARNING, _NO_WATCHDOG)
    warn_of_reload(server.cfg)
    for app in list(current.apps):
        compare(app, decided.plan)


def on_reload(server: Any) -> None:
    """Do nothing: kept for files whose own hook of that name calls it."""


def _chain_at_reloads(app: Any, hooks: Hooks) -> None:
    """Install our hooks again whenever gunicorn reads its configuration again, as HUP does."""
    load_config = app.load_config

    def load_and_chain() -> None:
        load_config()
        hooks.chain_into(app.cfg)
        warn_of_hup(app.cfg)

    app.load_config = load_and_chain


def _refuse_to_fork() -> None:
    """End a master that would start workers without :func:`on_starting`.

    It is not a hook, because a file that replaces that one may replace any other, too. An
    exception here would not stop the fork.
    """
    is_here = current.deployment is _decided  # not if an app of serve-prod imports this module
    if is_here and not _hooks and is_master():
        WorkerSizeStartError(_NOT_CALLED).show()
        os._exit(WorkerSizeStartError.exit_code)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_refuse_to_fork)

_NOT_CALLED = (
    "gunicorn's configuration has an 'on_starting' that does not call "
    "flask_workersize.gunicorn_conf.on_starting(server). Call it there."
)
_NO_DRAIN = "NOW_LMS_DRAIN_SECONDS needs flask serve-prod: it has no effect here."
_NO_ADAPTING = "NOW_LMS_SIZING=adaptive needs flask serve-prod: this gunicorn keeps its size."
_NO_WATCHDOG = (
    "WatchdogSec= is set, but gunicorn never answers it: systemd will kill the service. Remove it, "
    "or use flask serve-prod."
)


def _follow(cfg: Any) -> Deployment:
    """Plan again if gunicorn's command line, or a file, sets something else."""
    told = {name: cfg.settings[key].get() for name, key in _FOLLOWED.items()}
    known = (_options, _decided.settings.gunicorn_args)
    options = {
        name: value
        for name, value in told.items()
        if value not in [each.get(_FOLLOWED[name]) for each in known]
    }
    if "bind" in options:
        # As gunicorn understands them: its default port is another one.
        options["bind"] = [text for item in cfg.address if (text := address_of(item))] or None
    if "threads" in options:
        # gunicorn has read the workers above: they do not follow other threads any more.
        options["workers"] = cfg.workers
    decided = _decided
    if options:
        decided = _decide(decided.resources, decided.held_bytes, options)
    kind = planned_class("gunicorn's configuration", cfg.worker_class_str)
    return replace(decided, plan=replace(decided.plan, worker_class=kind))
