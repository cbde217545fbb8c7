"""WorkerSizing: one app's settings, plan, command and route, and nothing of another's."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import psutil
import pytest
from flask import Flask, current_app, url_for

from flask_workersize import SizingPlan, WorkerSizeConfigError, WorkerSizing, get_plan
from flask_workersize.app_state import get_state
from flask_workersize.runtime.deployment import current
from flask_workersize.runtime.meter import Meter
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.servers.proxy import TrustedProxy
from flask_workersize.sizing.sources import GUNICORN_ARGS
from tests.plain import SECRET, check_line, clear_environment, new_app

URL = "/_health/capacity"


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody launched this process, and no variable is set."""
    clear_environment(monkeypatch)
    monkeypatch.setattr(current, "deployment", None)


def sized(**config: Any) -> Flask:
    app = new_app(**config)
    WorkerSizing(app)
    return app


def factory(**config: Any) -> Flask:
    """Make an app as the documentation of Flask does, with the extension outside."""
    app = new_app(**config)
    extension.init_app(app)
    return app


extension = WorkerSizing()


@pytest.mark.parametrize("make", [sized, factory])
def test_app_gets_a_plan(make: Callable[..., Flask]) -> None:
    app = make(THREADS=3)
    plan = get_plan(app)
    assert isinstance(plan, SizingPlan)
    assert (plan.server, plan.threads) == ("waitress", 3)
    assert plan.sources["threads"] == "app.config WORKERSIZE_THREADS"


def test_plan_in_the_config_is_the_same_object() -> None:
    app = sized()
    assert app.config["WORKERSIZE_PLAN"] is get_plan(app)
    assert app.extensions["workersize"].plan is get_plan(app)


def test_plan_of_the_current_app() -> None:
    app = sized()
    with app.app_context():
        assert get_plan() is get_plan(app)


def test_plan_needs_an_app_or_an_app_context() -> None:
    with pytest.raises(RuntimeError, match="outside of application context"):
        get_plan()


def test_app_without_the_extension_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RuntimeError) as caught:
        get_plan(new_app())
    assert str(caught.value) == (
        "This Flask app is not registered with 'WorkerSizing': perhaps 'init_app' was not called, "
        "or for another app. Call 'WorkerSizing(app)' where the app is created."
    )


def test_second_init_app_is_an_error_that_says_what_to_do() -> None:
    app = sized()
    plan = get_plan(app)
    with pytest.raises(RuntimeError) as caught:
        extension.init_app(app)
    assert str(caught.value) == (
        "A 'WorkerSizing' instance has already been registered on this Flask app: perhaps both "
        "WorkerSizing(app) and init_app(app) are called. Remove one of them."
    )
    assert get_plan(app) is plan


def test_two_apps_of_one_extension_have_settings_of_their_own() -> None:
    few = factory(WSGI_SERVER="gunicorn", WORKERS=2, HEALTH_URL="/few", HEALTH_TOKEN=SECRET)
    many = factory(WSGI_SERVER="gunicorn", WORKERS=3)
    assert (get_plan(few).workers, get_plan(many).workers) == (2, 3)
    header = {"Authorization": f"Bearer {SECRET}"}
    opened = few.test_client().get("/few", headers=header).get_json()
    closed = many.test_client().get(URL, headers=header).get_json()
    assert (opened["workers"], closed["workers"]) == (2, 3)
    assert "pid" in opened
    assert "pid" not in closed
    assert few.test_client().get(URL).status_code == 404


def test_wrong_settings_of_one_app_leave_the_other_alone() -> None:
    wrong, right = sized(THREADS="all"), sized()
    assert get_state(wrong).error is not None
    assert right.test_client().get(URL).status_code == 200


def test_operator_wins_over_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADS", "5")
    assert get_plan(sized(THREADS=3)).threads == 5


def test_later_changes_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    app = sized(THREADS=3)
    plan = get_plan(app)
    app.config["WORKERSIZE_THREADS"] = 4
    monkeypatch.setenv("THREADS", "5")
    app.test_client().get(URL)
    assert get_plan(app) is plan


def test_machine_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    read = psutil.virtual_memory

    def counted() -> Any:
        calls.append(None)
        return read()

    monkeypatch.setattr(psutil, "virtual_memory", counted)
    app = sized()
    assert len(calls) == 1
    get_plan(app)
    app.test_client().get(URL)
    app.test_cli_runner().invoke(args=["serve-prod", "--dry-run", "--threads", "3"])
    assert len(calls) == 1


def test_process_that_nobody_launched_says_so() -> None:
    app = sized()
    assert app.test_client().get(URL).get_json()["serving"] is False


def test_machine_whose_memory_psutil_may_not_read_gets_a_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "no /proc")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert get_plan(sized()).threads >= 1


# Wrong settings

WRONG: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"THREADS": SECRET}, {}, "THREADS is not a whole number"),
    ({"WEB_CONCURRENCY": SECRET}, {}, "WEB_CONCURRENCY is not a whole number"),
    ({}, {"PORT": SECRET}, "app.config WORKERSIZE_PORT is not a whole number"),
    ({}, {"THREAD": SECRET}, "app.config has an unknown key 'WORKERSIZE_THREAD'"),
    ({}, {"HEALTH_URL": SECRET}, "app.config WORKERSIZE_HEALTH_URL is not a path"),
    *(
        ({}, {"HEALTH_URL": f"/{SECRET}{end}"}, "app.config WORKERSIZE_HEALTH_URL is not a path")
        for end in ("<", "<foo:bar>", "<name>", " b")
    ),
    (
        {"WSGI_SERVER": "gunicorn", GUNICORN_ARGS: f"--preload={SECRET}"},
        {},
        "GUNICORN_CMD_ARGS cannot be read",
    ),
]


@pytest.fixture(params=WRONG, ids=[line for _, _, line in WRONG])
def wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Flask, str]:
    """Return an app with wrong settings, and how the line about them begins."""
    environ, config, line = request.param
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    app = sized(**config)

    @app.cli.command("upgrade")
    def upgrade() -> None:
        click.echo("upgraded")

    @app.get("/")
    def home() -> str:
        return "home"

    return app, line


def test_wrong_settings_leave_other_commands_and_pages_alone(wrong: tuple[Flask, str]) -> None:
    app, _ = wrong
    result = app.test_cli_runner().invoke(args=["upgrade"])
    assert (result.exit_code, result.output) == (0, "upgraded\n")
    assert app.test_client().get("/").text == "home"


def test_wrong_settings_are_raised_by_get_plan(wrong: tuple[Flask, str]) -> None:
    app, line = wrong
    with pytest.raises(WorkerSizeConfigError) as caught:
        get_plan(app)
    assert caught.value.message.startswith(line)
    check_line(caught.value)
    assert "WORKERSIZE_PLAN" not in app.config


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_wrong_settings_end_serve_prod_with_one_line_and_2(
    wrong: tuple[Flask, str], option: list[str]
) -> None:
    app, line = wrong
    result = app.test_cli_runner().invoke(args=["serve-prod", *option])
    assert result.exit_code == 2
    (shown,) = result.output.splitlines()
    assert shown.startswith(f"Error: {line}")
    assert SECRET not in shown


def test_wrong_settings_are_a_500_of_the_route_without_the_value(wrong: tuple[Flask, str]) -> None:
    app, line = wrong
    response = app.test_client().get(URL)
    assert response.status_code == 500
    assert response.get_json()["status"] == "fail"
    assert response.get_json()["error"].startswith(line)
    assert response.headers["Cache-Control"] == "no-store"
    assert SECRET not in response.text


def test_error_that_is_raised_for_every_request_does_not_grow() -> None:
    """A traceback keeps the frames, and so the requests, of each time that it was raised."""
    app = sized(THREADS="all")

    def frames() -> int:
        app.test_client().get(URL)
        error = get_state(app).error
        traceback = error.__traceback__ if error else None
        count = 0
        while traceback is not None:
            traceback, count = traceback.tb_next, count + 1
        return count

    assert frames() == frames()


def test_option_can_correct_what_the_environment_has_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADS", "all")
    app = sized()
    result = app.test_cli_runner().invoke(args=["serve-prod", "--dry-run", "--threads", "3"])
    assert result.exit_code == 0
    assert get_plan(app).threads == 3


# The route


def test_route_can_be_moved() -> None:
    app = sized(HEALTH_URL="/capacity")
    assert app.test_client().get("/capacity").status_code == 200
    assert app.test_client().get(URL).status_code == 404
    with app.test_request_context():
        assert url_for("workersize.capacity") == "/capacity"


def test_route_can_be_left_out() -> None:
    app = sized(HEALTH_URL=None)
    assert app.test_client().get(URL).status_code == 404
    assert "workersize" not in app.blueprints
    assert isinstance(get_plan(app), SizingPlan)


@pytest.mark.parametrize("url", ["", "capacity", "/", 5, ["/a"], True])
def test_what_is_no_path_is_refused_and_said_at_the_usual_place(url: Any) -> None:
    app = sized(HEALTH_URL=url)
    response = app.test_client().get(URL)
    assert response.status_code == 500
    assert "app.config WORKERSIZE_HEALTH_URL is not a path" in response.text


def test_settings_are_resolved_by_init_app_and_once_more_by_a_command_with_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WSGI_SERVER", "gunicorn")
    monkeypatch.setenv(GUNICORN_ARGS, "--workers 3")
    app = sized()
    assert get_plan(app).workers == 3
    calls: list[str] = []

    def counted(text: str) -> dict[str, Any]:
        calls.append(text)
        return {"workers": "4", "keepalive": 9}

    get_state(app).gunicorn_args = counted
    result = app.test_cli_runner().invoke(args=["serve-prod", "--dry-run"])
    assert result.output.startswith("gunicorn: 4 workers")
    assert len(calls) == 1


def test_import_and_init_app_load_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GUNICORN_ARGS, "--workers 3")  # nothing to waitress
    code = (
        "import sys, flask, flask_workersize as f\n"
        "app = flask.Flask('x'); f.WorkerSizing(app); f.get_plan(app)\n"
        "app.test_client().get('/_health/capacity')\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "'flask_workersize'" in done.stdout
    assert "'gunicorn'" not in done.stdout
    assert "'waitress'" not in done.stdout


@pytest.mark.parametrize("wrong", [new_app, new_app().wsgi_app, Flask, "lms", 0, False])
def test_what_is_no_app_is_refused_by_one_line_that_names_what_to_pass(wrong: Any) -> None:
    for pass_it in (WorkerSizing, WorkerSizing().init_app):
        with pytest.raises(TypeError) as caught:
            pass_it(wrong)
        (line,) = str(caught.value).splitlines()
        assert f"not {type(wrong).__name__!r}: pass the object that Flask(...)" in line
    with pytest.raises(TypeError, match="NoneType"):
        WorkerSizing().init_app(None)  # type: ignore[arg-type]


def test_current_app_is_refused_before_anything_is_done_to_the_app() -> None:
    app = new_app()
    with app.app_context(), pytest.raises(TypeError, match="not 'LocalProxy': pass the object"):
        WorkerSizing(current_app)
    assert "workersize" not in app.extensions
    WorkerSizing(app)


class Middleware:
    """Middleware of an app, which its views ask for something."""

    kind = "of the class"

    def __init__(self, app: Any) -> None:
        self.app = app
        self.script_name = "/lms"
        self._hidden = 1

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)

    def rename(self) -> None:
        self.script_name = "/renamed"


@pytest.fixture
def wrapped() -> tuple[Any, Middleware]:
    """Return what stands at ``app.wsgi_app`` above a middleware, under every layer of ours."""
    app = new_app()
    middleware = Middleware(app.wsgi_app)
    app.wsgi_app = middleware  # type: ignore[method-assign]
    WorkerSizing(app)
    board = Scoreboard(1, 1)
    row = board.allocate(1)
    assert row is not None
    return Meter(TrustedProxy(app.wsgi_app, ["*"]), row), middleware


def test_attributes_of_the_apps_own_middleware_are_read_and_written_through_our_layers(
    wrapped: tuple[Any, Middleware],
) -> None:
    outside, middleware = wrapped
    assert (outside.script_name, outside.kind, outside._hidden) == ("/lms", "of the class", 1)
    outside.script_name = "/other"
    outside.added = "later"
    assert (middleware.script_name, middleware.added) == ("/other", "later")  # type: ignore[attr-defined]
    outside.rename()
    assert outside.script_name == "/renamed"
    assert hasattr(outside, "added")
    assert not hasattr(outside, "missing")
    with pytest.raises(AttributeError, match="'Middleware' object has no attribute 'missing'"):
        outside.missing  # noqa: B018


def test_chain_of_middleware_can_be_followed_through_our_layers(
    wrapped: tuple[Any, Middleware],
) -> None:
    """Each link names the next one as ``app``, which is the custom."""
    outside, middleware = wrapped
    chain = [outside]
    while hasattr(chain[-1], "app"):
        chain.append(chain[-1].app)
    assert middleware in chain
    assert copy.copy(outside).script_name == "/lms"


def test_app_without_middleware_keeps_its_manners_at_an_attribute_that_is_not_there() -> None:
    app = sized()
    assert app.wsgi_app.__self__ is app  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        app.wsgi_app.nothing = 1
