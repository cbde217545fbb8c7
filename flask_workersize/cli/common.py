"""Options that commands share, and the end of their process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from ..app_state import EXTENSION_KEY
from ..errors import WorkerSizeConfigError
from ..servers.ending import process_end

F = TypeVar("F", bound=Callable[..., Any])


def load_app(info: ScriptInfo) -> Flask:
    """Load the app of a command, which then runs in its context.

    :raises WorkerSizeConfigError: if there is none, or it is not registered with the extension
    """
    try:
        app = info.load_app()
    except NoAppException as error:
        # A traceback of the app's own has more lines, which are shown as they are.
        if len(error.message.splitlines()) > 1:
            raise
        raise WorkerSizeConfigError(error.message) from None
    if EXTENSION_KEY not in app.extensions:
        raise WorkerSizeConfigError(
            f"The app {app.name!r} does not use flask-workersize. Call WorkerSizing(app) where it "
            "is created."
        )
    click.get_current_context().with_resource(app.app_context())
    return app


def load_app_if_any(info: ScriptInfo) -> Flask | None:
    """Load the app for a command that also works without one; a named one has to load."""
    if info.app_import_path:
        return load_app(info)
    # What is found in the folder may want a database, or be no app at all.
    with suppress(Exception, SystemExit):
        if EXTENSION_KEY in info.load_app().extensions:
            return load_app(info)
    return None


server_option = partial(
    click.option, metavar="[waitress|gunicorn]", help="Server to run.  [default: waitress]"
)


def sizing_options(command: F) -> F:
    """Add the options for workers, threads and memory."""
    for add in (
        click.option(
            "--worker-memory-mb",
            metavar="MB",
            help="Memory per worker, in MB.  [default: 200]",
        ),
        click.option(
            "--threads",
            metavar="NUMBER",
            help="Threads per worker.  [default: 1 for gunicorn, calculated for waitress]",
        ),
        click.option(
            "--workers", metavar="NUMBER", help="Worker processes.  [default: calculated]"
        ),
    ):
        command = add(command)
    return command


def option_names() -> dict[str, str]:
    """Return the name of each option for messages: the flag, or the variable it was read from."""
    context = click.get_current_context()
    names = {}
    for param in context.command.params:
        if param.name and param.opts:
            names[param.name] = param.opts[0]
            if context.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
                names[param.name] = f"{context.auto_envvar_prefix}_{param.name.upper()}"
    return names


class Ends(click.Command):
    """A command that ends its process, even if threads of the app still run.

    If it got a loaded app, as in a test, the process is not ours to end.
    """

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence of the help in full; the list of commands wraps it.

        :param limit: ignored; click would cut the text there
        """
        return super().get_short_help_str(sys.maxsize)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the options; help and invalid options end the command here."""
        try:
            return super().make_context(*args, **extra)
        except BaseException:
            with _end_after(extra.get("parent")):
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _end_after(ctx):
            return super().invoke(ctx)


class Group(Ends, click.Group):
    """A group of such commands."""

    command_class = Ends


def _end_after(ctx: click.Context | None) -> AbstractContextManager[None]:
    info = ctx.find_object(ScriptInfo) if ctx else None
    if ctx is None or info is None:
        return nullcontext()
    group = ctx.find_root().command
    # A project's own FlaskGroup creates the app, too.
    is_made_here = info.create_app in (None, getattr(group, "create_app", None))
    return process_end.bounded() if is_made_here else nullcontext()
