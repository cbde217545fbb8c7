r"""In a real container the plan follows the limits; a real Swarm runs the exported stack.

On demand, as root on Debian or Ubuntu: ``pytest -m docker``. What it does, by hand::

    apt-get install -y --no-install-recommends docker.io debootstrap
    dockerd --data-root T/data --exec-root T/exec --pidfile T/pid -H unix://T/sock \
        --iptables=false --bridge=none --storage-driver vfs &
    debootstrap --variant=minbase --include=haproxy,python-is-python3,python3 bookworm T/root
    pip wheel --no-deps -w T/wheels .
    pip install --target T/root/app --python-version 3.11 --only-binary :all: T/wheels/*.whl
    tar -C T/root -c . | docker -H unix://T/sock import - workersize
    docker -H unix://T/sock run --rm --network none -m 512m --cpus 1.5 -e PYTHONPATH=/app \
        workersize python3 -m flask --app shop:app serve-prod --wsgi-server gunicorn --dry-run

The daemon keeps everything in a folder of the test (T) and needs neither a registry nor a firewall
rule; it is stopped, and the folder removed, at the end. The server in the container is asked from
inside (``docker exec``), because the container has no network. The Swarm is on loopback, and its
balancer is published at a free port. Containers already on the machine, and a Docker daemon that
runs on it, are left alone. It takes about four minutes, a third of it debootstrap.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from flask_workersize.export import derive
from flask_workersize.export.render import render
from tests.export.balancer import free_port, load
from tests.export.intents import intent
from tests.resources.machines import MB
from tests.resources.real_groups import ROOT, remove
from tests.servers import serving

pytestmark = pytest.mark.docker

PROJECT = Path(__file__).parents[1]
PACKAGES = {"dockerd": "docker.io", "debootstrap": "debootstrap"}
IMAGE = "workersize"
CONFIG = "/usr/local/etc/haproxy/haproxy.cfg"
IMAGES = {
    IMAGE: 'CMD ["python", "-m", "flask", "serve-prod"]',
    "haproxy:lts": f'CMD ["haproxy", "-W", "-db", "-f", "{CONFIG}"]',
}
"""The images that are made, and what they start. One tree is in both."""

SECONDS = 120
"""How long a command may take."""

CPUS = 1.5 if (psutil.cpu_count() or 1) > 1 else 0.5
LIMITS = ["-m", "512m", "--cpus", str(CPUS)]
PORT = 8080
APP = """
import time
from flask import Flask
from flask_workersize import WorkerSizing

app = Flask("shop")
WorkerSizing(app)
app.add_url_rule("/", view_func=lambda: time.sleep(0.05) or "here")
"""
ASK = f"""
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:{PORT}/_health/capacity").read().decode())
"""


@dataclass(frozen=True)
class Docker:
    """A Docker daemon of the test's own, with one image.

    :param folder: everything it keeps
    """

    folder: Path

    @property
    def address(self) -> str:
        """Where the daemon is asked."""
        return f"unix://{self.folder}/sock"

    @property
    def group(self) -> str:
        """The control group that the containers are in; Docker itself would leave it behind."""
        return self.folder.name

    def __call__(self, *arguments: str, **keywords: Any) -> str:
        """Run ``docker``, and return what it prints."""
        return run(["docker", "-H", self.address, *arguments], **keywords)

    def run(self, *arguments: str, options: Sequence[str] = (), app: str = "shop:app") -> str:
        """Run ``flask`` in a container with the limits, and return what it prints."""
        command = ["python3", "-m", "flask", "--app", app, *arguments]
        base = ["run", "--rm", "--network", "none", *LIMITS, "-e", "PYTHONPATH=/app"]
        return self(*base, *options, IMAGE, *command)


def run(command: Sequence[str], timeout: float = SECONDS, **keywords: Any) -> str:
    """Run a command to its end, and return its standard output.

    :raises AssertionError: with what it said, if it failed
    """
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, **keywords
    )
    said = f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, said
    return str(done.stdout)


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """Install what is missing, start a daemon and make the image; or skip with the reason."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a Docker daemon needs root on Linux")
    missing = [package for name, package in PACKAGES.items() if shutil.which(name) is None]
    if missing and shutil.which("apt-get") is None:
        pytest.skip(f"not installed, and there is no apt-get: {', '.join(missing)}")
    if missing:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-q"], 300, env=environ)
        run(["apt-get", "install", "-qy", "--no-install-recommends", *missing], 300, env=environ)
    # Not tmp_path: a unix socket has a path of at most 107 bytes, and the image is large.
    folder = Path(tempfile.mkdtemp(prefix="workersize-"))
    docker = Docker(folder)
    daemon = start_daemon(docker)
    try:
        make_image(docker)
        yield docker
    finally:
        daemon.terminate()
        daemon.wait(60)
        shutil.rmtree(folder)
        for root in (ROOT, *ROOT.iterdir()):
            remove(root / docker.group)


def start_daemon(docker: Docker) -> subprocess.Popen[bytes]:
    """Start dockerd in a folder of its own, without bridge or firewall rules."""
    folder = docker.folder
    log = folder / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [
                "dockerd",
                *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
                *("--pidfile", str(folder / "pid"), "-H", docker.address),
                *("--iptables=false", "--ip-forward=false", "--bridge=none"),
                *("--storage-driver", "vfs"),
                *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", docker.group),
            ],
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + 60
    while "API listen on" not in log.read_text():
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            said = log.read_text()[-500:]
            shutil.rmtree(folder)
            pytest.skip(f"dockerd does not start here: {said}")
        time.sleep(0.1)
    return daemon


def make_image(docker: Docker) -> None:
    """Make an image of Debian, its Python, this project and what it depends on."""
    root, wheels = docker.folder / "root", docker.folder / "wheels"
    packages = "haproxy,python-is-python3,python3"
    run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)], 600)
    pip = [sys.executable, "-m", "pip"]
    run([*pip, "wheel", "-q", "--no-deps", "-w", str(wheels), str(PROJECT)])
    target = ["--target", str(root / "app"), "--python-version", "3.11", "--only-binary", ":all:"]
    run([*pip, "install", "-q", *target, *map(str, wheels.glob("*.whl"))])
    (root / "app" / "shop.py").write_text(APP)
    for image, command in IMAGES.items():
        changes = ["--change", "ENV PYTHONPATH=/app FLASK_APP=shop:app", "--change", command]
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            docker("import", *changes, "-", image, stdin=tar.stdout)
    shutil.rmtree(root)


def check_found(found: dict[str, Any]) -> None:
    assert found["cpus"] == CPUS
    assert found["cpu_source"] in ("cgroup1:cpu.cfs_quota_us", "cgroup2:cpu.max")
    assert found["memory_limit"] == 512 * MB
    assert found["memory_source"] in ("cgroup1:memory.limit_in_bytes", "cgroup2:memory.max")
    assert 300 * MB < found["memory_available"] < 512 * MB
    assert found["notes"] == []


@pytest.mark.parametrize("namespace", ["host", "private"])
def test_plan_in_a_container_follows_its_limits(docker: Docker, namespace: str) -> None:
    """With the host's control groups in view (Docker on version 1), and in a namespace."""
    arguments = ["workersize", "plan", "--server", "gunicorn", "--json"]
    told = json.loads(docker.run(*arguments, options=["--cgroupns", namespace]))
    check_found(told["resources"])
    available_mb = told["resources"]["memory_available"] // MB
    assert told["plan"]["cpu_bound"] == int(2 * CPUS) + 1
    assert told["plan"]["memory_bound"] == available_mb // 200
    assert told["plan"]["workers"] == min(int(2 * CPUS) + 1, available_mb // 200)


def test_dry_run_in_a_container_says_where_the_limits_are(docker: Docker) -> None:
    text = docker.run("serve-prod", "--wsgi-server", "gunicorn", "--dry-run")
    print(text)
    rows = {line[2:26].strip(): line[27:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["CPUs"].startswith(f"{CPUS:g} ")
    assert "/sys/fs/cgroup" in rows["CPUs"]
    assert rows["memory limit"].startswith("512 MB ")
    assert "/sys/fs/cgroup" in rows["memory limit"]
    assert "Note: unreadable" not in text


def test_without_limits_the_container_has_what_the_host_has(docker: Docker) -> None:
    base = ["run", "--rm", "--network", "none", "-e", "PYTHONPATH=/app", IMAGE]
    code = "import json, flask_workersize as f; print(json.dumps(vars(f.detect_resources())))"
    found = json.loads(docker(*base, "python3", "-c", code))
    assert found["cpus"] == len(os.sched_getaffinity(0))
    assert found["memory_source"] == "host"
    assert found["memory_limit"] == psutil.virtual_memory().total


def test_cpuset_of_a_container_counts(docker: Docker) -> None:
    options = ["--cpuset-cpus", str(min(os.sched_getaffinity(0))), "--cpus", "0"]
    told = json.loads(docker.run("workersize", "plan", "--json", options=options))
    assert told["resources"]["cpus"] == 1.0


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_server_in_a_container_answers_and_has_the_size_that_fits(
    docker: Docker, server: str
) -> None:
    """And it stops with status 0 when Docker stops it."""
    options = ["--name", server, "-d"]
    serve = ["serve-prod", "--wsgi-server", server, "--port", str(PORT)]
    docker.run(*serve, "--worker-memory-mb", "150", options=options)
    try:
        report = ask(docker, server)
        assert report["serving"] is True
        assert (report["server"], report["cpus"]) == (server, CPUS)
        assert 300 < report["memory_available_mb"] < 512
        expected = min(int(2 * CPUS) + 1, report["memory_available_mb"] // 150)
        assert report["concurrency"] == expected
        # docker update: the next look at the machine sees it, the running plan stays.
        docker("update", "-m", "400m", "--memory-swap", "400m", server)
        plan = ["python3", "-m", "flask", "--app", "shop:app", "workersize", "plan", "--json"]
        told = json.loads(docker("exec", server, *plan))
        assert told["resources"]["memory_limit"] == 400 * MB
    finally:
        with subprocess.Popen(
            ["docker", "-H", docker.address, "wait", server], stdout=subprocess.PIPE, text=True
        ) as waiting:
            print(docker("logs", server))
            docker("stop", "-t", "20", server)
            status = waiting.communicate(timeout=60)[0].strip()
    assert status == "0"


def ask(docker: Docker, name: str) -> dict[str, Any]:
    """Ask for the capacity report from inside, as soon as somebody answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            report: dict[str, Any] = json.loads(docker("exec", name, "python3", "-c", ASK))
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return report


GATEWAY = "docker_gwbridge"
"""The bridge by which the tasks of a Swarm reach the machine; Docker leaves it behind."""

CLIENTS = 4
STACK = intent(name="shop", memory="512M", cpus="0.5", drain="4")
SERVICE = "shop_shop"


@dataclass(frozen=True)
class Swarm:
    """The exported stack in a Swarm of one node.

    :param port: where its balancer is published
    """

    docker: Docker
    port: int

    def tasks(self) -> set[str]:
        """Return the containers of the app that are healthy."""
        filters = ["--filter", f"name={SERVICE}.", "--filter", "health=healthy"]
        return set(self.docker("ps", "-q", *filters).split())

    def await_tasks(self, count: int, gone: Set[str] = frozenset()) -> None:
        """Wait until so many are healthy, and none of some others is."""
        self.wait(lambda: len(found := self.tasks()) == count and not found & gone, "tasks")

    def answers(self) -> bool:
        """Return whether a request to the balancer is answered."""
        url = f"http://127.0.0.1:{self.port}"
        with closing(serving.connect(url)) as client, suppress(OSError, HTTPException):
            return serving.ask(client, "/").status == 200
        return False

    def updated(self) -> bool:
        """Return whether an update has come to its end."""
        state = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}"
        return self.docker("service", "inspect", "--format", state, SERVICE).strip() == "completed"

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds, and show the tasks if it never does."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.docker('node', 'ps', '--no-trunc')}"
            time.sleep(0.5)


@pytest.fixture
def swarm(docker: Docker, tmp_path: Path) -> Iterator[Swarm]:
    """Begin a Swarm on loopback, and deploy what is exported for it."""
    if GATEWAY in psutil.net_if_addrs():
        pytest.skip(f"{GATEWAY} is here already: another daemon is in a Swarm")
    manager, port = f"127.0.0.1:{free_port()}", free_port()
    for name, text in render("compose", STACK).items():
        (tmp_path / name).write_text(text.replace("published: 80,", f"published: {port},"))
    swarm = Swarm(docker, port)
    with ExitStack() as stack:
        docker("swarm", "init", "--advertise-addr", manager, "--listen-addr", manager)
        stack.callback(run, ["ip", "link", "delete", GATEWAY])
        stack.callback(docker, "swarm", "leave", "--force")
        docker("tag", IMAGE, STACK.image)
        deploy = ["stack", "deploy", "--resolve-image", "never", "-c", f"{tmp_path}/compose.yaml"]
        docker(*deploy, STACK.name)
        stack.callback(swarm.wait, lambda: not docker("ps", "-q"), "the end of all tasks")
        stack.callback(docker, "stack", "rm", STACK.name)
        swarm.await_tasks(3)
        swarm.wait(swarm.answers, "an answer")
        yield swarm


def test_exported_stack_is_scaled_and_updated_under_load_and_loses_no_request(
    swarm: Swarm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor when a task is killed: a GET whose connection breaks is sent again."""
    docker = swarm.docker
    (report,) = {ask(docker, task)["concurrency"] for task in swarm.tasks()}
    assert report == derive.plan_of(STACK).concurrency
    rows, lost = [], []

    def scale(count: int) -> None:
        docker("service", "scale", "-d", f"{SERVICE}={count}")
        swarm.await_tasks(count)

    def update() -> None:
        before = swarm.tasks()
        docker("service", "update", "-d", "--env-add", "RELEASE=2", SERVICE)
        swarm.wait(swarm.updated, "updated")
        swarm.await_tasks(3, gone=before)

    def kill() -> None:
        task = min(swarm.tasks())
        docker("kill", "--signal", "KILL", task)
        swarm.await_tasks(3, gone={task})

    for what, act in {
        "scale from 3 to 5": lambda: scale(5),
        "scale from 5 to 3": lambda: scale(3),
        "rolling update": update,
        "kill -9 of a task": kill,
    }.items():
        with load(swarm.port, CLIENTS) as outcome:
            act()
            # Those that were before may have to be noticed yet.
            time.sleep(3)
        rows.append(f"{what:20} {outcome} failed")
        lost += outcome.failed
    with capsys.disabled():
        print("", *rows, sep="\n")
    assert lost == []
