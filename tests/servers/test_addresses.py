"""Where both servers listen, and what is said where they cannot."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_workersize.errors import WorkerSizeStartError
from flask_workersize.servers.listeners import open_listeners
from tests.servers.serving import Starter, serve_prod


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 on loopback")
needs_unix = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets"
)


@pytest.fixture
def busy_port() -> Iterator[int]:
    """Listen on a port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def stale_socket(path: Path) -> None:
    """Leave the file of a socket behind, as a killed server does."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()


@needs_unix
def test_nothing_stays_open_where_one_address_cannot_be_had(busy_port: int, tmp_path: Path) -> None:
    path = tmp_path / "lms.sock"
    with pytest.raises(WorkerSizeStartError, match=f"127.0.0.1:{busy_port}"):
        open_listeners([f"unix:{path}", "127.0.0.1:0", f"127.0.0.1:{busy_port}"])
    assert not path.exists()


@needs_ipv6
def test_ipv6_listener_leaves_ipv4_alone() -> None:
    """So that 0.0.0.0 and [::] can be had for the same port."""
    (listener,) = open_listeners(["[::1]:0"])
    with listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@needs_unix
def test_unix_socket_is_served_and_removed_at_the_end(
    start: Starter, name: str, tmp_path: Path
) -> None:
    server = start(serve_prod("--workers", "1", "--bind", "unix:lms.sock", server=name))
    assert server.urls == ["unix:lms.sock"]
    mode = (tmp_path / "lms.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o777
    assert server.get("/").json()["serving"] is True
    assert server.stop() == 0
    assert not (tmp_path / "lms.sock").exists()


@needs_unix
def test_stale_socket_file_is_replaced(start: Starter, name: str, tmp_path: Path) -> None:
    stale_socket(tmp_path / "lms.sock")
    server = start(serve_prod("--workers", "1", "--bind", "unix:lms.sock", server=name))
    assert server.get("/").json()["serving"] is True
    assert server.stop() == 0
    assert not (tmp_path / "lms.sock").exists()


@needs_unix
def test_socket_in_use_is_refused_and_goes_on_working(
    start: Starter, name: str, tmp_path: Path
) -> None:
    first = start(serve_prod("--workers", "1", "--bind", "unix:lms.sock", server=name))
    done = start.run(serve_prod("--bind", "unix:lms.sock", server=name))
    assert "unix:lms.sock: it is in use" in done.assert_one_line_error(1)
    assert first.get("/").json()["serving"] is True


@needs_unix
def test_file_that_is_no_socket_is_refused_and_kept(
    start: Starter, name: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    done = start.run(serve_prod("--bind", "unix:notes.txt", server=name))
    assert "a file that is not a socket exists there" in done.assert_one_line_error(1)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


@needs_unix
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere/lms.sock", "No such file or directory"),
        ("x" * 200, "path too long"),
        ("é" * 60, "path too long"),
    ],
    ids=["folder", "long", "long in bytes"],
)
def test_socket_that_cannot_be_made_is_refused(start: Starter, path: str, reason: str) -> None:
    done = start.run(serve_prod("--bind", f"unix:{path}"))
    line = done.assert_one_line_error(1)
    assert f"Cannot listen on unix:{path}: " in line
    assert reason in line


@needs_unix
def test_path_with_a_null_byte_is_refused(start: Starter, name: str) -> None:
    done = start.run(serve_prod(server=name), {"WORKERSIZE_BIND": "unix:lms\0.sock"})
    assert done.status in (1, 2)
    assert "\0" not in done.assert_one_line_error(done.status)


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["--bind", "127.0.0.1:0", "--bind", "127.0.0.1:0"], {}),
        ([], {"NOW_LMS_BIND": "127.0.0.1:0, 127.0.0.1:0"}),
    ],
    ids=["options", "environment"],
)
def test_several_addresses_are_served(
    start: Starter, name: str, arguments: list[str], environ: dict[str, str]
) -> None:
    server = start(serve_prod("--workers", "1", *arguments, server=name), **environ)
    assert len(set(server.urls)) == 2
    for url in server.urls:
        assert server.get("/", url=url).json()["host"] == url.removeprefix("http://")
    assert server.stop() == 0


@needs_unix
def test_gunicorn_serves_a_socket_and_a_port(start: Starter) -> None:
    command = serve_prod("--bind", "unix:lms.sock", "--bind", "127.0.0.1:0", server="gunicorn")
    server = start([*command, "--workers", "1"])
    assert len(server.urls) == 2
    for url in server.urls:
        assert server.get("/", url=url).json()["serving"] is True


@needs_unix
def test_waitress_cannot_mix_sockets_and_ports_and_says_so(start: Starter, tmp_path: Path) -> None:
    done = start.run(serve_prod("--bind", "unix:lms.sock", "--bind", "127.0.0.1:0"))
    assert "may not be mixed" in done.assert_one_line_error(2)
    assert not (tmp_path / "lms.sock").exists()


@needs_ipv6
@pytest.mark.parametrize(
    "arguments", [["--host", "::1"], ["--bind", "[::1]:0"]], ids=["host", "bind"]
)
def test_ipv6_address_is_served(start: Starter, name: str, arguments: list[str]) -> None:
    server = start(serve_prod("--workers", "1", *arguments, server=name))
    assert server.urls[0].startswith("http://[::1]:")
    assert server.get("/").json()["remote_addr"] == "::1"


@needs_ipv6
def test_ipv6_host_for_all_addresses_answers_ipv4_too(start: Starter, name: str) -> None:
    server = start(serve_prod("--workers", "1", server=name), NOW_LMS_HOST="::")
    (url,) = server.urls
    assert url.startswith("http://[::]:")
    for host in ("127.0.0.1", "[::1]"):
        assert server.get("/", url=url.replace("[::]", host)).json()["serving"] is True
    assert server.stop() == 0


@needs_ipv6
@pytest.mark.parametrize("hosts", [["[::]", "0.0.0.0"], ["0.0.0.0", "[::]"]])
def test_both_addresses_for_all_can_be_had_for_one_port(
    start: Starter, name: str, hosts: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bind = ",".join(f"{host}:{port}" for host in hosts)
    server = start(serve_prod("--workers", "1", "--bind", bind, server=name))
    assert len(server.urls) == 2
    for host in ("127.0.0.1", "[::1]"):
        assert server.get("/", url=f"http://{host}:{port}").json()["serving"] is True
    assert server.stop() == 0


def test_every_address_of_a_host_name_is_served(start: Starter, name: str) -> None:
    server = start(serve_prod("--workers", "1", "--host", "localhost", server=name))
    for url in server.urls:
        assert server.get("/", url=url).json()["serving"] is True


def test_port_alone_binds_every_address_of_ipv4_by_default(start: Starter) -> None:
    config = {"WORKERSIZE_HOST": None, "WORKERSIZE_PORT": None}
    done = start.run(serve_prod("--dry-run"), config)
    assert "0.0.0.0:8080" in done.stdout


@pytest.mark.parametrize("way", ["option", "environment", "bind"])
def test_port_in_use_is_refused(start: Starter, name: str, busy_port: int, way: str) -> None:
    arguments = {
        "option": ["--port", str(busy_port)],
        "environment": [],
        "bind": ["--bind", f"127.0.0.1:0,127.0.0.1:{busy_port}"],
    }[way]
    environ = {"PORT": str(busy_port)} if way == "environment" else {}
    done = start.run(serve_prod(*arguments, server=name), **environ)
    line = done.assert_one_line_error(1)
    assert f"127.0.0.1:{busy_port}: it is in use" in line
    assert "--port" in line


def test_second_server_leaves_the_first_alone(start: Starter, name: str) -> None:
    first = start(serve_prod("--workers", "1", server=name))
    port = first.urls[0].rpartition(":")[2]
    start.run(serve_prod("--port", port, server=name)).assert_one_line_error(1)
    assert first.get("/").json()["serving"] is True


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "this machine has no such address"),
        ("no-such-host.invalid", "host name not found"),
        ("a..b", "not a valid host name or path"),
        ("a" * 70, "not a valid host name or path"),
    ],
)
def test_address_that_cannot_be_had_is_refused(start: Starter, host: str, reason: str) -> None:
    line = start.run(serve_prod("--host", host)).assert_one_line_error(1)
    assert re.search(f"Cannot listen on '?{re.escape(host)}:0'?: {reason}", line), line


@pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 0)() == 0, reason="root may use every port and folder"
)
def test_address_that_this_user_may_not_use_is_refused(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(0o500)
    done = start.run(serve_prod("--bind", "unix:locked/lms.sock"))
    assert "permission denied" in done.assert_one_line_error(1)


def test_stronger_port_wins_over_bind_with_a_warning(start: Starter, name: str) -> None:
    server = start(
        serve_prod("--workers", "1", "--port", "0", server=name), NOW_LMS_BIND="unix:lms.sock"
    )
    assert server.urls[0].startswith("http://127.0.0.1:")
    assert server.stderr.count("NOW_LMS_BIND is not used: --port takes precedence") == 1
