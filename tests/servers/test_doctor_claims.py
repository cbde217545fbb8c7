"""What the doctor says of more than one worker is so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers.serving import Answer, Starter, flask, serve_prod


@pytest.mark.parametrize("preload", ["on", "off"])
def test_two_workers_do_what_the_doctor_says(start: Starter, preload: str) -> None:
    environ = {"NOW_LMS_PRELOAD": preload}
    told = start.run(flask("workersize", "doctor", app="doubled"), **environ)
    assert told.status == 1
    assert "with 2 workers a limit allows up to 2 times as many requests" in told.stdout
    assert "Flask-Caching keeps a SimpleCache" in told.stdout
    assert ("each worker has its own and rejects" in told.stdout) == (preload == "off")
    assert ("no worker has them" in told.stdout) == (preload == "on")

    server = start(serve_prod(server="gunicorn", app="doubled"), None, **environ)
    (server.folder / "answers").mkdir()

    def ask(_: int) -> Answer:
        return server.get("/")

    with ThreadPoolExecutor(2) as pool:
        first, second = (answer.json() for answer in pool.map(ask, range(2)))
    # The limit was one a day.
    assert first["pid"] != second["pid"]
    assert ask(0).status == 429
    assert [each["cached"] for each in (first, second)] == [first["pid"], second["pid"]]
    assert (first["key"] == second["key"]) == (preload == "on")
    assert ("loaded" in first["threads"]) == (preload == "off")
