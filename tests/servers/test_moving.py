"""The files of docs/moving.rst, as they stand there, on real servers."""

from __future__ import annotations

from tests.servers.serving import Starter, flask, gunicorn, script
from tests.test_pages import captioned, snippets_of

HELLO = """
from flask import Flask
from flask_workersize import WorkerSizing

app = Flask(__name__)
WorkerSizing(app)
"""

HOOKS = """
def post_fork(server, worker):
    server.log.info("Worker %s is here", worker.pid)
"""


def test_gunicorn_conf_keeps_its_hooks_and_gets_the_plan(start: Starter) -> None:
    (start.folder / "hello.py").write_text(HELLO)
    text = captioned("moving.rst", "gunicorn.conf.py")
    (start.folder / "gunicorn.conf.py").write_text(text)
    command = gunicorn("-c", "gunicorn.conf.py", app="hello:app")
    server = start(command, None, NOW_LMS_THREADS="4", NOW_LMS_WORKERS="1")
    server.wait_for_line("Worker .* is here")
    report = server.get("/_health/capacity").json()
    assert (report["serving"], report["workers"], report["threads"]) == (True, 1, 4)


def test_settings_and_options_of_the_file_after_it(start: Starter) -> None:
    """``.env`` is read by Flask's command line."""
    (options,) = [each.text for each in snippets_of("moving.rst") if each.caption == "hello.py"]
    (start.folder / "hello.py").write_text(f"{HELLO}{options}")
    (start.folder / "hooks.py").write_text(HOOKS)
    _, environ = [each.text for each in snippets_of("moving.rst") if each.caption == ".env"]
    (start.folder / ".env").write_text(environ.replace(":8000", ":0"))
    server = start(flask("serve-prod", app="hello"), None, NOW_LMS_WORKERS="1")
    server.wait_for_line("Worker .* is here")
    report = server.get("/_health/capacity").json()
    assert (report["server"], report["threads"]) == ("gunicorn", 4)


def test_run_py_of_now_lms_serves(start: Starter) -> None:
    """With an app in its place that has the same two names."""
    text = captioned("moving.rst", "run.py").replace("from now_lms", "from guide_app")
    # guide_app has the extension already.
    text = text.replace("WorkerSizing(lms_app)\n", "")
    (start.folder / "run.py").write_text(text)
    server = start(script(start.folder / "run.py"), None, NOW_LMS_WORKERS="2")
    assert server.get("/_health/capacity").json()["workers"] == 2
    assert server.stop() == 0
