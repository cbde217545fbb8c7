"""How the decision of a launcher reaches the app that it serves."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from flask_workersize import WorkerSizing, compute_plan, get_plan
from flask_workersize.app_state import adopt, adopt_current, get_state
from flask_workersize.runtime.deployment import Deployment, current
from flask_workersize.runtime.scoreboard import Scoreboard
from tests.plain import MB, SECRET, clear_environment, load, new_app, resources
from tests.sizing.profiles import profile

URL = "/_health/capacity"
GUNICORN = {"WSGI_SERVER": "gunicorn"}


def decide(**environ: str) -> Deployment:
    """Decide as a launcher does that knows the environment alone."""
    settings = load({**GUNICORN, **environ})
    machine = resources(cpus=4, memory_mb=1024)
    return Deployment(settings, machine, compute_plan(settings, machine))


@pytest.fixture(autouse=True)
def nobody_launched_us(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    monkeypatch.setattr(current, "deployment", None)
    monkeypatch.setattr(current, "warns", True)
    monkeypatch.setattr(current, "is_final", False)
    monkeypatch.setattr(current, "is_serving", False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """Let this process be one that a launcher started."""
    deployment = decide()
    monkeypatch.setattr(current, "deployment", deployment)
    monkeypatch.setattr(current, "is_final", True)
    monkeypatch.setattr(current, "board", Scoreboard(5, 1))
    return deployment


def test_what_the_launcher_held_counts_once_however_often_it_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(211 + 45) × 70 % - 60 = 119 MB, for 3 workers of 30 MB: in the launcher and in a worker."""
    environ = {"NOW_LMS_SIZING_PROFILE": str(tmp_path / "profile.json"), **GUNICORN}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    profile(app="lms").save(tmp_path / "profile.json")
    # Its import decides, as in a launcher; the fixture above takes that back.
    from flask_workersize import gunicorn_conf

    machine = resources(16, 211, memory_limit=512 * MB)
    first = gunicorn_conf._decide(machine, 45 * MB, {})
    again = gunicorn_conf._decide(first.resources, first.held_bytes, {})
    monkeypatch.setattr(current, "deployment", again)
    app = new_app()
    WorkerSizing(app)
    assert [first.plan.workers, again.plan.workers, get_plan(app).workers] == [3, 3, 3]


def test_launched_app_plans_from_what_the_launcher_found(launched: Deployment) -> None:
    app = new_app()
    WorkerSizing(app)
    assert get_state(app).resources is launched.resources
    assert get_plan(app) == launched.plan


def test_launched_app_is_not_served_before_its_worker_is(launched: Deployment) -> None:
    app = new_app()
    WorkerSizing(app)
    assert not get_state(app).serving
    assert app.test_client().get(URL).get_json()["serving"] is False


def test_app_of_a_worker_adopts_the_plan_of_its_deployment(launched: Deployment) -> None:
    """Also if the app asks for something else in its config."""
    app = new_app(WORKERS=2, WSGI_SERVER="gunicorn")
    WorkerSizing(app)
    assert get_plan(app).workers == 2
    adopt_current()
    body = app.test_client().get(URL).get_json()
    assert (body["workers"], body["serving"]) == (launched.plan.workers, True)
    assert get_plan(app) is app.config["WORKERSIZE_PLAN"] is launched.plan


def test_app_that_is_made_later_in_a_worker_adopts_it_when_it_is_made(
    launched: Deployment,
) -> None:
    adopt_current()
    app = new_app(WORKERS=2)
    WorkerSizing(app)
    assert get_plan(app) is launched.plan
    assert get_state(app).serving


def test_process_that_nobody_launched_has_nothing_to_adopt() -> None:
    app = new_app()
    WorkerSizing(app)
    adopt_current()
    app.test_client().get("/")
    assert not get_state(app).serving


def test_second_app_of_a_process_that_serves_another_one_goes_on_alone() -> None:
    served, other = new_app(), new_app()
    WorkerSizing(served)
    WorkerSizing(other)
    adopt(served, decide(WORKERS="7"), Scoreboard(7, 1))
    later = new_app()
    WorkerSizing(later)
    told = [app.test_client().get(URL).get_json()["serving"] for app in (served, other, later)]
    assert told == [True, False, False]


def test_app_keeps_its_token_under_the_plan_of_a_launcher(launched: Deployment) -> None:
    app = new_app(HEALTH_TOKEN=SECRET)
    WorkerSizing(app)
    adopt_current()
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert "pid" in app.test_client().get(URL, headers=headers).get_json()


def test_wrong_config_is_still_reported_under_the_plan_of_a_launcher(
    launched: Deployment,
) -> None:
    app = new_app(THREADS=SECRET)
    WorkerSizing(app)
    adopt_current()
    response = app.test_client().get(URL)
    assert response.status_code == 500
    assert "app.config WORKERSIZE_THREADS is not a whole number" in response.text
    assert SECRET not in response.text


@pytest.mark.usefixtures("launched")
class TestDifferingConfig:
    """An ``app.config`` that asks for another size than the launcher planned."""

    def test_it_gives_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        WorkerSizing(new_app(WORKERS=2))
        assert caplog.messages == [
            "app.config of 'lms' asks for 2 × 1 (workers × threads), but 5 × 1 from the "
            "environment wins: set NOW_LMS_ variables, or use flask serve-prod."
        ]

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"WORKERS": 5},
            {"WSGI_SERVER": "waitress"},
            {"HEALTH_TOKEN": SECRET, "TIMEOUT": 60},
            {"HEALTH_URL": "/capacity"},
        ],
        ids=str,
    )
    def test_config_that_asks_for_the_same_size_gives_none(
        self, caplog: pytest.LogCaptureFixture, config: dict[str, object]
    ) -> None:
        WorkerSizing(new_app(**config))
        assert caplog.messages == []

    def test_command_line_of_gunicorn_is_no_matter_of_the_config(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(current, "deployment", decide(WORKERS="7"))
        WorkerSizing(new_app())
        assert caplog.messages == []

    def test_only_one_worker_speaks(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(current, "warns", False)
        WorkerSizing(new_app(WORKERS=2))
        assert caplog.messages == []


def test_process_knows_its_apps_and_lets_them_go() -> None:
    app = new_app()
    WorkerSizing(app)
    assert app in current.apps
    before = len(current.apps)
    del app
    gc.collect()
    assert len(current.apps) < before
