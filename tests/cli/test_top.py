"""flask workersize top: which servers it queries, how it reads answers, the live screen."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import Result

from flask_workersize import WorkerSizeConfigError, WorkerSizing
from flask_workersize.cli.top.poll import ANSWER_SECONDS, Poller
from flask_workersize.cli.top.run import own_server
from flask_workersize.cli.top.target import Target
from flask_workersize.cli.top.values import Answer
from tests.cli.reports import REPORT
from tests.plain import SECRET, clear_environment, new_app
from tests.servers.serving import (
    DEADLINE_SECONDS,
    Starter,
    await_that,
    clean_environ,
    flask,
    starter,
)
from tests.servers.serving import serve_prod as serve_prod_command

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)


def response(body: bytes | str, status: str = "200 OK", *headers: str) -> bytes:
    """Return a response of HTTP, with its length."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


GOOD = response(json.dumps(REPORT))

Handler = Callable[[socket.socket], None]


class Fake:
    """A server that answers every request with the same bytes, or does what a handler does."""

    def __init__(self, answer: bytes | Handler, listener: socket.socket) -> None:
        self._answer = answer
        self._listener = listener
        name = listener.getsockname()
        self.url = f"unix:{name}" if isinstance(name, str) else f"http://127.0.0.1:{name[1]}"
        """Where it listens."""

        self.requests: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(DEADLINE_SECONDS)
            if callable(self._answer):
                self._answer(client)
                return
            self.requests.append(client.recv(65536).decode("latin-1"))
            client.sendall(self._answer)


@contextmanager
def fake(answer: bytes | Handler, path: Path | None = None) -> Iterator[Fake]:
    """Serve on loopback, or on a unix socket."""
    listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    listener.bind(("127.0.0.1", 0) if path is None else str(path))
    listener.listen()
    with listener:
        yield Fake(answer, listener)


def ask(*urls: str, token: str | None = None) -> list[Answer]:
    return Poller([Target.of(url) for url in urls], token).poll()


def problem(answer: bytes | Handler) -> str:
    """Return what is wrong with an answer."""
    with fake(answer) as server:
        (found,) = ask(server.url)
    assert found.report is None
    return found.problem


def run(*arguments: str, **environ: str) -> Result:
    app = new_app()
    WorkerSizing(app)
    return app.test_cli_runner().invoke(args=["workersize", "top", *arguments], env=environ)


# Addresses


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("http://host:8081", "http", "host", 8081, "/_health/capacity"),
        ("http://host:8081/", "http", "host", 8081, "/_health/capacity"),
        ("host:8081", "http", "host", 8081, "/_health/capacity"),
        ("localhost", "http", "localhost", None, "/_health/capacity"),
        ("https://lms.example/lms/cap", "https", "lms.example", None, "/lms/cap"),
        ("http://[::1]:8081", "http", "::1", 8081, "/_health/capacity"),
        ("http://host/a%20b/ü?x=1", "http", "host", None, "/a%20b/%C3%BC?x=1"),
        ("unix:/run/lms.sock", "unix", "/run/lms.sock", None, "/_health/capacity"),
    ],
)
def test_address_as_a_person_types_it(
    url: str, scheme: str, host: str, port: int | None, path: str
) -> None:
    assert Target.of(url) == Target(url, scheme, host, port, path)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "http://",
            "unix:",
            "ftp://host",
            "http://host:99999",
            "http://host:x",
            "http://[::1",
        ),
        *(
            "http://a b",
            "http://host/a b",
            f"http://me:{SECRET}@host",
            "http://host/\x1b[2J",
            "//x",
        ),
        *("http://host\r\nX: y", "http://host/#part"),
    ],
)
def test_what_is_no_address_is_one_line(url: str) -> None:
    done = run(url)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "is not a valid URL" in line
    assert line.isprintable()
    assert SECRET not in line


@pytest.mark.parametrize("interval", ["0", "0.01", "-1", "x", "", "nan", "3601", "1e3"])
def test_interval_that_is_none_is_one_line(interval: str) -> None:
    done = run("--interval", interval, "http://127.0.0.1:1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: --interval is not a number from 0.1 to 3,600.\n"


def test_token_is_sent_to_each_and_shown_nowhere() -> None:
    with fake(GOOD) as first, fake(GOOD) as second:
        done = run(first.url, f"{second.url}/other/path", NOW_LMS_HEALTH_TOKEN=f" {SECRET}ü ")
    assert done.exit_code == 0
    assert SECRET not in done.output
    sent = f"Authorization: Bearer {SECRET}ü".encode().decode("latin-1")
    for server, path in ((first, "/_health/capacity"), (second, "/other/path")):
        (request,) = server.requests
        assert request.startswith(f"GET {path} HTTP/1.1\r\n")
        assert request.count(f"\r\n{sent}\r\n") == 1


def test_token_that_no_header_can_hold_is_one_line() -> None:
    done = run("http://127.0.0.1:1", NOW_LMS_HEALTH_TOKEN=f"{SECRET}\nX: y")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: NOW_LMS_HEALTH_TOKEN contains a line break")
    assert len(done.stderr.splitlines()) == 1
    assert SECRET not in done.stderr


def test_redirect_is_not_followed_and_its_target_gets_no_token() -> None:
    with fake(GOOD) as other:
        location = f"Location: {other.url}/_health/capacity"
        with fake(response("", "302 Found", location)) as server:
            (found,) = ask(server.url, token=SECRET)
    assert found.report is None
    assert found.problem.startswith("answered 302, a redirect: use its target as the URL")
    assert other.url in found.problem
    assert other.requests == []


def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake(GOOD) as proxy, fake(GOOD) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        (found,) = ask(server.url)
    assert found.report == REPORT
    assert proxy.requests == []


def test_unix_socket_is_asked(tmp_path: Path) -> None:
    with fake(GOOD, tmp_path / "lms.sock") as server:
        (found,) = ask(server.url)
    assert found == Answer(server.url, REPORT)


@pytest.mark.parametrize(
    ("settings", "url", "path"),
    [
        ({"HEALTH_PORT": 8081}, "http://127.0.0.1:8081", "/_health/capacity"),
        ({"HEALTH_PORT": 8081, "HOST": "10.0.0.5"}, "http://10.0.0.5:8081", "/_health/capacity"),
        ({"HEALTH_PORT": 8081, "HOST": "::"}, "http://[::1]:8081", "/_health/capacity"),
        ({"HEALTH_TOKEN": "t"}, "http://127.0.0.1:8080", "/_health/capacity"),
        ({"HEALTH_TOKEN": "t", "HEALTH_URL": "/cap"}, "http://127.0.0.1:8080", "/cap"),
        (
            {"HEALTH_TOKEN": "t", "BIND": "unix:/run/a.sock"},
            "unix:/run/a.sock",
            "/_health/capacity",
        ),
    ],
)
def test_server_of_this_app_is_found_in_its_settings(
    settings: Mapping[str, Any], url: str, path: str
) -> None:
    app = new_app(**settings)
    WorkerSizing(app)
    target, token = own_server(app)
    assert (target.url, target.path) == (url, path)
    assert token == settings.get("HEALTH_TOKEN")


@pytest.mark.parametrize(
    "settings",
    [{}, {"HEALTH_TOKEN": "t", "HEALTH_URL": None}, {"HEALTH_TOKEN": "t", "PORT": 0}],
)
def test_server_of_this_app_that_cannot_be_asked_names_both_ways(
    settings: Mapping[str, Any],
) -> None:
    app = new_app(**settings)
    WorkerSizing(app)
    with pytest.raises(WorkerSizeConfigError) as caught:
        own_server(app)
    for word in ("NOW_LMS_HEALTH_PORT", "NOW_LMS_HEALTH_TOKEN", "http://host:8081"):
        assert word in caught.value.message


def test_app_that_fails_does_not_matter_if_there_is_a_url(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken')\n")
    with fake(GOOD) as server, starter(tmp_path) as start:
        command = flask("workersize", "top", server.url, app="broken")
        done = start.run(command, PYTHONPATH=str(tmp_path))
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{server.url}   ● pass")
        assert start.run([*command[:3], *command[5:]]).status == 0


def test_app_without_the_extension_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from flask import Flask\napp = Flask('plain')\n")
    with starter(tmp_path) as start:
        for name in ("top", "plan"):
            done = start.run(flask("workersize", name, app="plain"), PYTHONPATH=str(tmp_path))
            line = done.assert_one_line_error(2)
            assert "does not use flask-workersize" in line


# Answers


def test_it_prints_once_where_the_output_is_no_terminal() -> None:
    with fake(GOOD) as server:
        done = run(server.url, NOW_LMS_HEALTH_TOKEN="t")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == "gunicorn 3 × 1 · limited by CPU"
    assert "\x1b" not in done.stdout
    assert len(server.requests) == 1


def test_one_that_does_not_answer_is_a_line_and_the_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    with fake(GOOD) as server:
        done = run("--once", server.url, closed, "http://no-such-host.invalid:1")
    assert (done.exit_code, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1 of 3 instances answer   busy 2 of 3")
    assert f"{closed}: no answer (connection refused)" in lines
    assert lines[-1].startswith("http://no-such-host.invalid:1: no answer (")


def drip(client: socket.socket) -> None:
    """Send a header a byte at a time, for ever."""
    client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        client.sendall(b"y")
        time.sleep(0.02)


def flood(client: socket.socket) -> None:
    """Send a body without an end."""
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        client.sendall(b'{"workers":1,' * 1000)


def stay_silent(client: socket.socket) -> None:
    """Wait until the client has gone."""
    while client.recv(65536):
        pass


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "connection closed"),
        (b"\x00\xff garbage\r\n\r\n", "not an HTTP server"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 999 + b"\r\n", "not an HTTP server"),
        (response("<html>"), "not a capacity report"),
        (response("{}"), "not a capacity report"),
        (response('{"status":"pass"}'), "not a capacity report"),
        (response("[" * 100_000), "not a capacity report"),
        (response('{"workers":' + "9" * 5000 + "}"), "not a capacity report"),
        (response(b'{"workers":"\xff"}'), "not a capacity report"),
        (response("{}", "404 NOT FOUND"), "answered 404: no report at this path"),
        (response("", "401 UNAUTHORIZED"), "answered 401: NOW_LMS_HEALTH_TOKEN is missing"),
        (response("", "301 Moved"), "answered 301, a redirect"),
        (
            response('{"status":"fail","error":"THREADS is\\n\\u001b[2J wrong."}', "500 ERROR"),
            "answered 500: THREADS is??[2J wrong.",
        ),
        (flood, "more than 1 MB"),
    ],
)
def test_what_is_wrong_with_an_answer_is_a_line(answer: bytes | Handler, says: str) -> None:
    found = problem(answer)
    assert says in found
    assert found.isprintable()


@pytest.mark.parametrize("handler", [drip, stay_silent])
def test_slow_one_is_given_up_and_keeps_nobody(handler: Handler) -> None:
    started = time.monotonic()
    with fake(handler) as slow, fake(GOOD) as server:
        poller = Poller([Target.of(slow.url), Target.of(server.url)], None)
        first, second = poller.poll()
    assert first.problem == f"no answer within {ANSWER_SECONDS:g} s"
    assert second.report == REPORT
    assert time.monotonic() - started < 2 * ANSWER_SECONDS


def test_all_are_asked_at_the_same_time() -> None:
    together = threading.Barrier(8, timeout=ANSWER_SECONDS)

    def answer(client: socket.socket) -> None:
        client.recv(65536)
        together.wait()
        client.sendall(GOOD)

    with fake(answer) as server:
        found = ask(*[server.url] * 8)
    assert [answer.report for answer in found] == [REPORT] * 8


def test_server_without_tls_is_a_line() -> None:
    with fake(b"HTTP/1.0 400 no\r\n\r\n") as server:
        (found,) = ask(server.url.replace("http", "https"))
    assert found.problem.startswith("no answer (TLS:")


def test_certificate_that_nobody_has_signed_is_a_line(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as wrapped:
            wrapped.recv(65536)

    with fake(answer) as server:
        (found,) = ask(server.url.replace("http", "https"))
    assert found.problem.startswith("no answer (certificate not accepted: self")


# The live screen


class Terminal:
    """A command that runs in a terminal of its own.

    :param command: the command line
    :param environ: its whole environment
    :param columns: how wide the terminal is
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], columns: int = 80
    ) -> None:
        self._master, slave = os.openpty()
        self._slave = os.dup(slave)
        self.before = termios.tcgetattr(slave)
        self.resize(columns)
        self.process = subprocess.Popen(
            command,
            env={"TERM": "xterm-256color", **environ},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(slave)
        self._seen = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self._thread.join()
        os.close(self._master)

    def _read(self) -> None:
        # Who has the other end last closes it: then there is an error, or nothing to read.
        with suppress(OSError):
            while data := os.read(self._master, 65536):
                self._seen += data

    @property
    def text(self) -> str:
        """All that it has shown."""
        return self._seen.decode("utf-8", "replace")

    @property
    def picture(self) -> list[str]:
        """The lines of the last picture that is complete."""
        pictures = [part for part in self.text.split(HOME) if part.endswith("\x1b[J")]
        # The terminal adds a return to each end of a line.
        return re.sub("\x1b\\[[0-9]*[mKJ]", "", pictures[-1]).split("\r\r\n")

    def await_text(self, text: str, times: int = 1) -> None:
        await_that(lambda: self.text.count(text) >= times, f"{text!r} in\n{self.text}")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int = 50) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self) -> int:
        """Return the status with which it ends, and see that the terminal is as it was."""
        status = self.process.wait(DEADLINE_SECONDS)
        await_that(lambda: self.text.endswith(LEAVE), f"the end in {self.text[-200:]!r}")
        assert self.text.count(ENTER) == self.text.count(LEAVE)
        assert termios.tcgetattr(self._slave) == self.before
        return status


def top(*arguments: str, columns: int = 80, **environ: str) -> Terminal:
    """Run the command in a terminal, without an app."""
    command = [sys.executable, "-m", "flask", "workersize", "top", *arguments]
    return Terminal(command, clean_environ({"NO_COLOR": "", **environ}), columns)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    with starter(tmp_path) as start:
        yield start


def test_live_view_of_a_real_server_shows_its_load_and_gives_the_terminal_back(
    start: Starter,
) -> None:
    command = serve_prod_command("--workers", "2", server="gunicorn")
    server = start(command, None, NOW_LMS_HEALTH_PORT="0").await_ready()
    with top(server.health_url, "--interval", "0.2", NO_COLOR="1") as terminal:
        terminal.await_text("busy 0 of 2   waiting 0")
        threads = [
            threading.Thread(target=server.get, args=(f"/hold?name={name}",)) for name in "ab"
        ]
        for thread in threads:
            thread.start()
        terminal.await_text("busy 2 of 2")
        await_that(lambda: any("■" in line for line in terminal.picture), "a box")
        assert terminal.picture[0].startswith(f"{server.health_url}   ● pass   up ")
        (start.folder / "a.go").touch()
        (start.folder / "b.go").touch()
        for thread in threads:
            thread.join()
        await_that(lambda: any("busy 0 of 2" in line for line in terminal.picture), "no load")
        server.stop()
        await_that(lambda: "no answer (connection refused)" in terminal.picture[0], "the end")
        terminal.type(b"\x03")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
        assert "\x1b[3" not in terminal.text.replace(ENTER, "")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_ends_it_and_gives_the_terminal_back(number: int, status: int) -> None:
    with fake(GOOD) as server, top(server.url) as terminal:
        terminal.await_text("gunicorn 3 × 1")
        terminal.process.send_signal(number)
        assert terminal.end() == status
        assert "Traceback" not in terminal.text


def test_stopped_one_gives_the_terminal_back_until_it_goes_on() -> None:
    with fake(GOOD) as server, top(server.url) as terminal:
        terminal.await_text("gunicorn 3 × 1")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.await_text(LEAVE)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.await_text(ENTER, 2)
        shown = terminal.text.count("gunicorn 3 × 1")
        terminal.await_text("gunicorn 3 × 1", shown + 1)
        terminal.type(b"\x03")
        assert terminal.end() == 0


def test_it_follows_the_size_of_the_terminal_at_once() -> None:
    with fake(GOOD) as server, top(server.url, "--interval", "3600", columns=80) as terminal:
        terminal.await_text("add a replica, or")
        assert max(map(len, terminal.picture)) > 40
        terminal.resize(40, 5)
        await_that(lambda: len(terminal.picture) == 5, "a smaller picture")
        assert max(map(len, terminal.picture)) <= 40
        assert len(server.requests) == 1


def test_colours_are_shown_unless_somebody_forbids_them() -> None:
    with fake(GOOD) as server:
        with top(server.url) as terminal:
            terminal.await_text("\x1b[32m   ● pass\x1b[0m")
        with top("--once", server.url) as terminal:
            assert terminal.process.wait(DEADLINE_SECONDS) == 0
            terminal.await_text("\x1b[32m   ● pass\x1b[0m")
            assert ENTER not in terminal.text
        with top("--once", server.url, NO_COLOR="1") as terminal:
            assert terminal.process.wait(DEADLINE_SECONDS) == 0
            terminal.await_text("● pass")
            assert "\x1b" not in terminal.text
        with top(server.url, TERM="dumb") as terminal:
            assert terminal.process.wait(DEADLINE_SECONDS) == 0
            terminal.await_text("● pass")
            assert "\x1b" not in terminal.text


def test_terminal_of_another_encoding_gets_what_it_can_show() -> None:
    with fake(GOOD) as server, top("--once", server.url, PYTHONIOENCODING="ascii") as terminal:
        assert terminal.process.wait(DEADLINE_SECONDS) == 0
        terminal.await_text("gunicorn 3 x 1")
        assert terminal.text.isascii()


def test_several_are_the_fleet_and_a_slow_one_keeps_nobody() -> None:
    with (
        fake(GOOD) as first,
        fake(stay_silent) as slow,
        top(first.url, slow.url, "--interval", "0.1", NO_COLOR="1") as terminal,
    ):
        terminal.await_text("1 of 2 instances answer   busy 2 of 3   waiting 0   82 req/s", 2)
        assert f"{slow.url}: no answer yet" in terminal.picture
        late = f"{slow.url}: no answer within 3 s"
        await_that(lambda: late in terminal.picture, "the end of its time")
        requests = len(first.requests)
        await_that(lambda: len(first.requests) > requests + 1, "more of the other one")
        assert late in terminal.picture
        terminal.type(b"\x03")
        assert terminal.end() == 0


def test_terminal_that_is_gone_ends_it() -> None:
    with fake(GOOD) as server:
        terminal = top(server.url, "--interval", "0.1")
        terminal.await_text("gunicorn 3 × 1")
        os.close(terminal._slave)
        os.close(terminal._master)
        assert terminal.process.wait(DEADLINE_SECONDS) in (0, 129)


def test_reader_of_a_pipe_that_has_gone_is_no_traceback() -> None:
    with fake(GOOD) as server:
        command = f"{sys.executable} -m flask workersize top {server.url} | true"
        environ = clean_environ({})
        done = subprocess.run(command, shell=True, env=environ, capture_output=True, check=True)
    assert b"Traceback" not in done.stderr
