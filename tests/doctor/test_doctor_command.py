"""flask workersize doctor, from the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flask_workersize.doctor import Finding, examine
from flask_workersize.doctor.finding import Case
from flask_workersize.doctor.secret_key import made_at_start
from flask_workersize.servers.app_import import AppImport
from tests.doctor.cases import Told, doctor, flask, sized
from tests.plain import SECRET, plan
from tests.sessions import is_shown

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
NOTHING = "No multi-worker problems found. Checked: "

PLAIN = """\
from flask import Flask
from flask_workersize import WorkerSizing
app = Flask(__name__)
WorkerSizing(app)
"""
KEY_OF_EACH_LOAD = f"import secrets\n{PLAIN}app.secret_key = '{SECRET}' + secrets.token_hex()\n"
THREAD = """
import threading, time
def work():
    while True:
        time.sleep(1)
def start(_=None):
    threading.Thread(target=work).start()
start()
"""
UNLIMITED = f"""\
import secrets
from flask_apscheduler import APScheduler
from flask_caching import Cache
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine
{PLAIN}
app.config.update(
    SECRET_KEY="{SECRET}" + secrets.token_hex(),
    CACHE_TYPE="SimpleCache",
    RATELIMIT_STORAGE_URI="memory://",
    SQLALCHEMY_DATABASE_URI="mysql+pymysql://lms:{SECRET}@127.0.0.1/lms",
)
Cache(app)
Limiter(get_remote_address, app=app)
SQLAlchemy(app)
scheduler = APScheduler(app=app)
scheduler.add_job("a", "os:getpid", trigger="interval", hours=1)
scheduler.start()
own = create_engine("sqlite:///own.db")
own.connect().close()
{THREAD}
"""


def test_everything_is_found_and_the_status_is_1(tmp_path: Path) -> None:
    told = doctor(tmp_path, UNLIMITED, NOW_LMS_WORKERS="3")
    assert told.status == 1
    labels = [line.partition(": ")[0] for line in told.lines[:-1]]
    assert labels == ["Breaks"] * 6 + ["Multiplies"]
    for word in (
        *["Flask-Limiter", "Flask-Caching", "APScheduler", "SECRET_KEY", "hello.work"],
        *["1 connection (sqlite)", "can open 45 connections"],
    ):
        assert len(told.about(word)) == 1, word
    assert told.lines[-1] == (
        "With more than one worker 6 break and 1 multiplies. "
        "Planned: waitress, which is one process; gunicorn would have 3 workers."
    )
    assert SECRET not in told.all


def test_everything_without_preload(tmp_path: Path) -> None:
    told = doctor(tmp_path, UNLIMITED, NOW_LMS_PRELOAD="off", NOW_LMS_WSGI_SERVER="gunicorn")
    assert told.status == 1
    labels = [line.partition(": ")[0] for line in told.lines[:-1]]
    assert labels == ["Breaks"] * 4 + ["Multiplies"] * 2
    assert re.search(r"4 break and 2 multiply\. Planned: gunicorn with \d+ workers?\.$", told.all)
    assert SECRET not in told.all


def test_what_only_multiplies_is_0(tmp_path: Path) -> None:
    code = f"{PLAIN}from sqlalchemy import create_engine\n"
    code += "own = create_engine('mysql+pymysql://127.0.0.1/lms')\n"
    told = doctor(tmp_path, code, NOW_LMS_WORKERS="1")
    assert told.status == 0
    assert len(told.about("2 workers × (pool_size 5 + max_overflow 10)")) == 1
    assert told.lines[-1] == (
        "With more than one worker nothing breaks and 1 multiplies. "
        "Planned: waitress, which is one process; gunicorn would have 1 worker."
    )


def nothing_in(told: Told) -> bool:
    return told.status == 0 and len(told.lines) == 1 and told.lines[0].startswith(NOTHING)


def test_plain_app_has_nothing(tmp_path: Path) -> None:
    told = doctor(tmp_path, PLAIN)
    assert nothing_in(told)
    assert "a SECRET_KEY made at the start" in told.lines[0]


def test_example_app_has_nothing(tmp_path: Path) -> None:
    for preload in ("on", "off"):
        environ = {
            "EXAMPLE_DATABASE_URI": f"sqlite:///{tmp_path / 'lms.db'}",
            "NOW_LMS_PRELOAD": preload,
        }
        done = flask(ROOT, "--app", "example_app", "workersize", "doctor", **environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(NOTHING)


def test_readme_and_docs_show_what_the_command_prints(tmp_path: Path) -> None:
    plain = doctor(tmp_path, PLAIN).lines[0]
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("--app example_app workersize doctor\n")[2].partition("\n")[0]
    assert is_shown(shown, plain)

    page = (ROOT / "docs" / "doctor.rst").read_text()
    code, output = (
        block.partition("\n\n\n")[0].replace("\n    ", "\n").strip()
        for block in re.findall(
            r"code-block:: \w+\n(?:    :.*\n)?\n((?:    .*\n|\n(?=    |\n))+)", page
        )
    )
    told = doctor(tmp_path, code, NOW_LMS_WORKERS="4")
    assert output.splitlines()[1:] == told.lines


@pytest.mark.parametrize("preload", ["on", "off"])
def test_key_of_each_load_breaks_and_is_not_shown(tmp_path: Path, preload: str) -> None:
    told = doctor(tmp_path, KEY_OF_EACH_LOAD, NOW_LMS_PRELOAD=preload)
    assert told.status == 1
    (line,) = told.about("SECRET_KEY")
    assert ("each worker has its own" in line) == (preload == "off")
    assert SECRET not in told.all


@pytest.mark.parametrize(
    "line",
    [
        f"app.secret_key = '{SECRET}'",
        f"app.secret_key = b'{SECRET}'",
        "import os; app.secret_key = os.environ['SECRET_KEY']",
        "app.secret_key = None",
        "app.secret_key = ''",
    ],
)
def test_key_that_stays_is_no_finding(tmp_path: Path, line: str) -> None:
    told = doctor(tmp_path, f"{PLAIN}print('said when loaded')\n{line}\n", SECRET_KEY=SECRET)
    assert told.lines.pop(0) == "said when loaded"
    assert nothing_in(told)


def test_key_that_was_kept_in_a_file_is_no_finding(tmp_path: Path) -> None:
    code = f"""import pathlib, secrets
{PLAIN}
file = pathlib.Path("key")
if not file.exists():
    file.write_text(secrets.token_hex())
app.secret_key = file.read_text()
"""
    assert nothing_in(doctor(tmp_path, code))


def test_key_is_compared_where_a_factory_has_arguments(tmp_path: Path) -> None:
    code = "def create_app(name):\n" + "".join(
        f"    {line}\n" for line in [*KEY_OF_EACH_LOAD.splitlines(), "return app"]
    )
    told = doctor(tmp_path, code, app="hello:create_app('lms')")
    assert (told.status, len(told.about("SECRET_KEY"))) == (1, 1)


def test_app_that_cannot_be_loaded_twice_is_a_note(tmp_path: Path) -> None:
    once = "import os\nos.close(os.open('once', os.O_CREAT | os.O_EXCL))\n"
    code = f"{PLAIN}app.secret_key = 'a'\n{once}"
    told = doctor(tmp_path, code)
    assert told.status == 0
    (line,) = told.about("SECRET_KEY")
    assert line.startswith("Note: The app could not be loaded a second time")
    assert " a SECRET_KEY made at the start, except for what the notes name. " in told.lines[-1]
    assert "Traceback" not in told.all


def test_second_load_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    (tmp_path / "endless.py").write_text(code + "while True:\n    time.sleep(0.1)\n")
    monkeypatch.chdir(tmp_path)
    case = Case(sized(SECRET_KEY=SECRET), True, 2, AppImport("endless"))
    (finding,) = made_at_start(case, seconds=5)
    assert finding.level == "unseen"
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_app_that_was_handed_in_is_not_loaded_again() -> None:
    app = sized(SECRET_KEY=SECRET)
    assert list(made_at_start(Case(app, True, 2, None))) == []
    done = app.test_cli_runner().invoke(args=["workersize", "doctor"])
    assert "SECRET_KEY" not in done.output


def test_threads_that_fork_handlers_start_again_are_no_finding(tmp_path: Path) -> None:
    """As packages do that collect metrics; and the command ends, though the threads never do."""
    again = "import os\nos.register_at_fork(after_in_child=start)\n"
    assert doctor(tmp_path, PLAIN + THREAD).status == 1
    assert nothing_in(doctor(tmp_path, PLAIN + THREAD + again))


def test_settings_that_are_not_valid_are_one_line_and_2(tmp_path: Path) -> None:
    told = doctor(tmp_path, PLAIN, NOW_LMS_WORKERS=SECRET)
    assert told.status == 2
    assert told.all.startswith("Error: NOW_LMS_WORKERS is not a ")
    assert len(told.all.splitlines()) == 1
    assert SECRET not in told.all


def test_doctor_takes_no_option(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(PLAIN)
    done = flask(tmp_path, "--app", "hello", "workersize", "doctor", "--json")
    assert done.returncode == 2


def test_doctor_imports_no_extension_that_the_app_does_not_use() -> None:
    code = """
import sys
from flask import Flask
from flask_workersize import WorkerSizing, get_plan
from flask_workersize.doctor import examine
app = Flask("lms")
WorkerSizing(app)
assert examine(app, get_plan(app)) == []
names = ("flask_limiter", "limits", "flask_caching", "cachelib", "apscheduler", "sqlalchemy")
assert not [name for name in names if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_findings_are_sorted_the_worst_first() -> None:
    app = sized()
    app.extensions["limiter"] = object()
    app.extensions["cache"] = {"cache": type("SimpleCache", (), {})()}
    found = [finding.level for finding in examine(app, plan()) if "hread" not in finding.what]
    assert found == ["breaks", "unseen"]
    assert str(Finding("breaks", "This.", "Do that.")) == "This. Do that."
