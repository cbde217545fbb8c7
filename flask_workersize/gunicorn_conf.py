"""The same size if you start gunicorn yourself.

``gunicorn -c python:flask_workersize.gunicorn_conf app:app``

gunicorn reads this before it loads the app, so it knows the environment only: an app whose
``app.config`` asks for something else is served under this plan all the same, and says so in one
warning. What stands on gunicorn's own command line, or in ``GUNICORN_CMD_ARGS``, wins, as always
with gunicorn, and the plan follows it.

To add settings, start a file of your own with ``from flask_workersize.gunicorn_conf import *``.
Hooks in it run after ours; only ``on_starting`` and ``on_reload`` have to call the one here.
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
from .runtime.scoreboard import Scoreboard
from .servers.gunicorn.hooks import Hooks
from .servers.gunicorn.options import own_options, parse_command_args, planned_class
from .servers.systemd import watchdog_seconds
from .sizing.plan import available_for, compute_plan
from .sizing.settings import SizingSettings

_FOLLOWED = ("workers", "threads", "timeout", "graceful_timeout")


@one_line_errors()
def _decide(resources: Resources, held: int, options: Mapping[str, Any]) -> Deployment:
    """Plan, or end gunicorn with one line."""
    settings = SizingSettings.load(
        options={"wsgi_server": "gunicorn", **options},
        option_source="gunicorn --{option}",
        gunicorn_args=parse_command_args,
    ).with_profile()
    plan = compute_plan(settings, available_for(settings, resources, held))
    return Deployment(settings, resources, plan, held_bytes=held)


current.deployment = _decided = _decide(detect_resources(), held_memory(os.getpid()), {})

_options = own_options(_decided.settings, _decided.plan)
_options["bind"] = list(_decided.settings.addresses)
globals().update(_options)

_hooks: list[Hooks] = []
"""Those of this server, from :func:`on_starting` on."""

__all__ = ["on_reload", "on_starting", "pre_fork"]
__all__ += list(_options)


@one_line_errors()
def on_starting(server: Any) -> None:
    """Make the plan follow what gunicorn was really told, log it, start the monitor."""
    decided = _follow(server.cfg)
    current.deployment, current.is_final = decided, True
    current.board = Scoreboard(decided.plan.workers, decided.plan.threads)
    hooks = Hooks(decided, current.board, is_ours=False)
    _hooks.append(hooks)
    hooks.chain_into(server.cfg)
    hooks.monitor.start()
    server.log.info("%s", decided.plan)
    hooks.port.announce()
    if decided.settings.drain_seconds:
        say(logging.WARNING, _NO_DRAIN)
    if watchdog_seconds() is not None:
        say(logging.WARNING, _NO_WATCHDOG)
    if server.cfg.on_reload is not on_reload:
        say(logging.WARNING, _OWN_ON_RELOAD)
    for warning in decided.plan.warnings:
        server.log.warning("%s", warning)
    for app in list(current.apps):
        compare(app, decided.plan)


def on_reload(server: Any) -> None:
    """Install our hooks again: a reload has read the configuration anew."""
    for hooks in _hooks:
        hooks.chain_into(server.cfg)


@one_line_errors()
def pre_fork(server: Any, worker: Any) -> None:
    """Refuse to go on without :func:`on_starting`; it replaces this hook by ours."""
    if not _hooks:
        raise WorkerSizeStartError(
            "gunicorn's configuration has an 'on_starting' that does not call "
            "flask_workersize.gunicorn_conf.on_starting(server). Call it there."
        )


_NO_DRAIN = "NOW_LMS_DRAIN_SECONDS has no effect if you run gunicorn: use flask serve-prod."
_NO_WATCHDOG = (
    "WatchdogSec= is set, but gunicorn never answers it: systemd will kill the service. Remove it, "
    "or use flask serve-prod."
)
_OWN_ON_RELOAD = (
    "gunicorn's configuration has an 'on_reload' of its own: call "
    "flask_workersize.gunicorn_conf.on_reload(server) in it, or a reload (HUP) drops the report."
)


def _follow(cfg: Any) -> Deployment:
    """Plan again if gunicorn's command line asks for something else."""
    told = {name: getattr(cfg, name) for name in _FOLLOWED}
    options = {name: value for name, value in told.items() if value != _options[name]}
    if "threads" in options:
        # gunicorn has read the workers above: they do not follow other threads any more.
        options["workers"] = cfg.workers
    decided = _decided
    if options:
        decided = _decide(decided.resources, decided.held_bytes, options)
    kind = planned_class("gunicorn's configuration", cfg.worker_class_str)
    return replace(decided, plan=replace(decided.plan, worker_class=kind))
