"""Run an app under gunicorn."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from gunicorn.app.base import BaseApplication

from ...errors import WorkerSizeStartError
from ...log import say
from ...runtime.deployment import Deployment
from ...runtime.scoreboard import Scoreboard
from .. import systemd
from ..app_import import LoadApp
from ..ending import process_end, status_of
from ..listeners import close_listeners, open_listeners
from ..temporary import open_temporary, use_shared_memory
from .arbiter import GracefulArbiter
from .hooks import Hooks
from .options import warn_of_reload
from .sync_worker import SyncWorker
from .thread_worker import ThreadWorker


class _Application(BaseApplication):
    """gunicorn's seam for a server of one's own ("Custom Application" in its docs)."""

    def __init__(self, load: LoadApp, hooks: Hooks, options: dict[str, Any]) -> None:
        self._load = load
        self._hooks = hooks
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            self.cfg.set(name, value)
        self._hooks.chain_into(self.cfg)

    def load(self) -> Any:
        return self._load()


def run(load: LoadApp, deployment: Deployment, board: Scoreboard, options: dict[str, Any]) -> None:
    """Open the addresses and be gunicorn's master, until it has stopped."""
    hooks = Hooks(deployment, board)
    launcher = os.getpid()
    try:
        _serve(load, deployment, hooks, options)
    except SystemExit as stop:
        if os.getpid() != launcher:
            # Unwinding would end the launcher's frames too: Flask's command, its app context and
            # whatever stands around serve() are the launcher's alone.
            process_end.leave(status_of(stop))
        if stop.code:
            raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # Its loop reports its own errors: this is what gunicorn refuses before it starts.
        line = str(error).strip().partition("\n")[0]
        reason = line.removeprefix("Error: ").rstrip(" .:") or type(error).__name__
        raise WorkerSizeStartError(f"gunicorn cannot start: {reason}.") from None
    finally:
        hooks.on_exit(None)


def _serve(load: LoadApp, deployment: Deployment, hooks: Hooks, options: dict[str, Any]) -> None:
    adapts = deployment.bounds is not None
    is_threaded = adapts or options["worker_class"] == "gthread"
    worker_class = ThreadWorker if is_threaded else SyncWorker
    ThreadWorker.most_threads = hooks.board.most_threads
    ThreadWorker.shares_queue = adapts
    options = {**options, "worker_class": worker_class}
    application = _Application(load, hooks, options)
    arbiter = GracefulArbiter(application, hooks, deployment.settings.drain_seconds)
    use_shared_memory()
    # Without one gunicorn's heartbeats would end in a traceback.
    open_temporary("gunicorn", "heartbeats", options.get("worker_tmp_dir")).close()
    # Not before: what the master writes to from here on is not shared with the monitor.
    hooks.monitor.start()
    if systemd.inherited_count():
        # gunicorn takes the sockets, and the other two variables away.
        os.environ.pop("LISTEN_FDNAMES", None)
    else:
        options["bind"] = _listen(deployment.settings.addresses, application.cfg)
        application.cfg.set("bind", options["bind"])
    deployment.announce()
    hooks.port.announce()
    warn_of_reload(application.cfg)
    if os.path.exists("gunicorn.conf.py"):
        say(logging.INFO, _CONF_FILE)
    arbiter.run()


def _listen(addresses: Iterable[str], cfg: Any) -> list[str]:
    """Open the addresses ourselves, for one line where that fails; gunicorn takes them over."""
    listeners = open_listeners(addresses, cfg.backlog)
    for listener in listeners:
        path = listener.getsockname()
        if isinstance(path, str):
            os.chmod(path, 0o777 & ~cfg.umask)
            try:
                _give_to(path, cfg.uid, cfg.gid)
            except OSError:
                close_listeners(listeners)
                raise WorkerSizeStartError(
                    f"Only root can change the owner of unix:{path}: "
                    "remove the options user and group."
                ) from None
    return [f"fd://{listener.detach()}" for listener in listeners]


def _give_to(path: str, uid: int, gid: int) -> None:
    """Change whose a file is, if it is not: a filter of system calls may kill for trying."""
    found = os.stat(path)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid)


_CONF_FILE = (
    "gunicorn.conf.py is not read. Use app.config WORKERSIZE_GUNICORN_OPTIONS, or run gunicorn "
    "yourself and begin that file with 'from flask_workersize.gunicorn_conf import *'."
)
