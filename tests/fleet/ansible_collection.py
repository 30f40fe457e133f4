"""`make test-ansible`: a real ansible-core over three hosts with servers under load.

1. Three network namespaces, each with a gunicorn and clients; ansible acts in each by `--netns`.
2. Check mode changes nothing. The rolling playbook then replaces all three, one after the other: 0 lost.
3. With a release that does not start on host two, host two is rolled back, host three is not touched: 0 lost.
4. The arm that must lose: the same three servers, each replaced plainly, under the same load.
5. ansible-test sanity, as far as it runs without a container.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.kernel import netns
from reuseport_tool.record import record
from tests.servers import restart, servers
from tests.servers.servers import Server

CHECKOUT = Path(__file__).parents[2]
CALLBACK = Path(__file__).parent / "callback"
ANSIBLE = CHECKOUT / "build" / "ansible" / "bin"
CLIENTS = 48
QUEUED = 8
LIMIT_S = 300
SANITY_LIMIT_S = 480
# They need PowerShell, and a program that is no Python package.
SKIPPED = ("pslint", "shellcheck")
PIP_SCRIPT = "get_pip_24_2.py"


@record
class Host:
    """A network namespace that lives as long as its first process, and the load on its server."""

    name: str
    pid: int
    load: Load


def server(app: str = "tests.servers.app:app") -> Server:
    made = servers.gunicorn(2, servers.PORT, "--chdir", str(CHECKOUT))
    return dataclasses.replace(made, command=(*made.command[:-1], app))


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """This thread in the namespace of a host."""
    with netns.visit(f"/proc/{host.pid}/ns/net"):
        yield


@contextmanager
def a_host(name: str) -> Iterator[Host]:
    with ExitStack() as stack:
        with netns.throw_away():
            holder = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
            stack.callback(holder.kill)
            restart.start(server())
            load = stack.enter_context(Load(servers.ADDRESS, servers.PORT, CLIENTS))
        host = Host(name=name, pid=holder.pid, load=load)
        try:
            yield host
        finally:
            with inside(host):
                restart.end_all()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with ExitStack() as stack:
        yield [stack.enter_context(a_host(name)) for name in ("one", "two", "three")]


def masters(host: Host) -> list[int]:
    with inside(host):
        return restart.owners_of(servers.listeners())


def ledgers(hosts: list[Host]) -> list[Ledger]:
    found = [host.load.stop() for host in hosts]
    for host, ledger in zip(hosts, found, strict=True):
        print(host.name, ledger)
    return found


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ansible finds the collection."""
    folder = tmp_path_factory.mktemp("collections")
    shutil.copytree(CHECKOUT / "packaging" / "ansible", folder / "ansible_collections" / "reuseport" / "tool")
    return folder


def inventory(hosts: list[Host], folder: Path, of_two: dict[str, object]) -> dict[str, object]:
    common = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "reload_endpoint": str(servers.PORT),
        "reload_executable": f"{sys.prefix}/bin/reuseport-tool",
        "reload_bpffs": str(folder / "bpffs"),
        "reload_command": list(server().command),
        "reload_options": ["--listeners", "2", "--start-timeout", "20"],
    }
    each = {
        host.name: {
            "reload_netns": f"pid:{host.pid}",
            "reload_output": str(folder / f"{host.name}.log"),
            **(of_two if host.name == "two" else {}),
        }
        for host in hosts
    }
    return {"web": {"hosts": each, "vars": common}}


def play(hosts: list[Host], folder: Path, collections: Path, *options: str, **of_two: object) -> tuple[int, list[Any]]:
    """Run the rolling playbook; the exit code, and the result of each task on each host in order."""
    (folder / "hosts.json").write_text(json.dumps(inventory(hosts, folder, of_two)))
    record = folder / "record"
    done = subprocess.run(
        [ANSIBLE / "ansible-playbook", "-i", folder / "hosts.json", "reuseport.tool.rolling", *options],
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACK),
            "ANSIBLE_CALLBACKS_ENABLED": "record",
            "RECORD": str(record),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    print(done.stdout[-6000:], done.stderr[-3000:])
    return done.returncode, [json.loads(line) for line in record.read_text().splitlines()]


def replaced(results: list[Any]) -> dict[str, Any]:
    """What the module `reload` returned, by host."""
    return {each["host"]: each["result"] for each in results if each["task"].endswith("reload : Replace the server")}


def tell(results: list[Any]) -> None:
    """Print what the tool reported on each host, for the ledger of the run (`-s`)."""
    for host, done in replaced(results).items():
        report = done.get("report") or {}
        counted = {name: report.get(name) for name in ("queued_at_stop", "migrated", "resets", "lost")}
        print(host, "rc", done.get("rc", 0), report.get("result"), json.dumps(counted))


def lost_by_the_kernel(done: dict[str, Any]) -> int:
    """What the report of a host says was lost: connections that no server had accepted."""
    resets = done["report"]["resets"]
    return int(resets["never_accepted"] + resets["handshakes"] + (resets["refused"] or 0))


def test_check_mode_changes_nothing(hosts: list[Host], bpffs: Path, tmp_path: Path, collections: Path) -> None:
    before = {host.name: masters(host) for host in hosts}
    code, results = play(hosts, tmp_path, collections, "--check", "--diff")
    assert code == 0
    assert all(result["changed"] for result in replaced(results).values())
    assert {host.name: masters(host) for host in hosts} == before


def test_a_rolling_deploy_loses_none(hosts: list[Host], bpffs: Path, tmp_path: Path, collections: Path) -> None:
    before = {host.name: masters(host) for host in hosts}
    for host in hosts:
        with inside(host):
            restart.await_queue(QUEUED)
    code, results = play(hosts, tmp_path, collections, "--diff")
    tell(results)
    assert code == 0
    done = replaced(results)
    assert list(done) == ["one", "two", "three"]
    for host in hosts:
        assert masters(host) != before[host.name]
        assert done[host.name]["report"]["result"] == "reloaded"
        assert lost_by_the_kernel(done[host.name]) == 0
    for ledger in ledgers(hosts):
        assert ledger.lost == 0
        assert ledger.answered > QUEUED


def test_a_broken_release_stops_at_the_host_it_breaks(
    hosts: list[Host], bpffs: Path, tmp_path: Path, collections: Path
) -> None:
    before = {host.name: masters(host) for host in hosts}
    broken = list(server("tests.servers.not_there:app").command)
    code, results = play(hosts, tmp_path, collections, reload_command=broken, reload_options=["--start-timeout", "20"])
    tell(results)
    assert code != 0
    done = replaced(results)
    assert list(done) == ["one", "two"]
    assert done["two"]["rolled_back"] is True
    assert done["two"]["rc"] == 8
    after = {host.name: masters(host) for host in hosts}
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]
    assert after["three"] == before["three"]
    assert all(ledger.lost == 0 for ledger in ledgers(hosts))


def test_the_same_without_the_tool_loses_connections(hosts: list[Host]) -> None:
    for host in hosts:
        with inside(host):
            restart.await_queue(QUEUED)
            restart.plainly(server())
    assert sum(ledger.reset for ledger in ledgers(hosts))


def test_sanity(collections: Path, tmp_path: Path) -> None:
    """Its virtual environments get their pip from this Python: it would download a script from elsewhere."""
    cache = tmp_path / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True)
    (cache / PIP_SCRIPT).write_text("import ensurepip; ensurepip.bootstrap()\n")
    skipped = [word for name in SKIPPED for word in ("--skip-test", name)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run(
        [ANSIBLE / "ansible-test", "sanity", "--python", version, "--requirements", "--color", "no", *skipped],
        cwd=collections / "ansible_collections" / "reuseport" / "tool",
        env={
            **os.environ,
            "PATH": f"{ANSIBLE}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=SANITY_LIMIT_S,
        check=False,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout + done.stderr
