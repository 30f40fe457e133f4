"""docs/recipes/systemd.md: two instances of a template unit take turns, under a real systemd.

Its own unit files run in a container; the load comes from outside. The follower runs as the service
that is shipped: it is killed, restarted and sees gunicorn replace its workers meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.waiting import wait_until
from tests.servers import restart, servers
from tests.servers.container import Container, container

CHECKOUT = Path(__file__).parents[2]
RECIPE = CHECKOUT / "docs" / "recipes" / "systemd"
UNITS = CHECKOUT / "packaging" / "systemd"
FOLLOWER = f"reuseport-tool-follow@{servers.PORT}"
WORKERS = 2
DEPLOYS = 2
CLIENTS = 128
QUEUED = 32
ADDRESS = f"{servers.ADDRESS}:{servers.PORT}"
UNIT_FOLDER = "/etc/systemd/system"

# Where this checkout has what an operator has installed.
SERVER = f"""
[Service]
ExecStart=
ExecStart={sys.prefix}/bin/python -m gunicorn --reuse-port --workers {WORKERS} --bind {ADDRESS} app:app
User=root
CPUAffinity={restart.cpu()}
"""


@pytest.fixture
def systemd(in_netns: None, tmp_path: Path) -> Iterator[Container]:
    folder = tmp_path / "container"
    folder.mkdir()
    with container(folder, "reuseport-tool-test") as made:
        made.write("/usr/local/bin/reuseport-tool", f'#!/bin/sh\nexec {sys.prefix}/bin/reuseport-tool "$@"\n', 0o755)
        made.write("/srv/web/app.py", (CHECKOUT / "tests" / "servers" / "app.py").read_text())
        made.write(f"{UNIT_FOLDER}/web@.service.d/test.conf", SERVER)
        for unit in (RECIPE / "web@.service", UNITS / "reuseport-tool-follow@.service"):
            made.write(f"{UNIT_FOLDER}/{unit.name}", unit.read_text())
        made.start()
        made.ok("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
        made.ok("systemctl", "enable", "--now", "web@a")
        servers.await_listeners(WORKERS)
        servers.await_answer()
        yield made


def test_instances_alone_lose_connections(systemd: Container) -> None:
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for old, new in (("a", "b"), ("b", "a")) * 2:
            restart.await_load(QUEUED)
            before = frozenset(member.cookie for member in servers.listeners())
            systemd.ok("systemctl", "start", f"web@{new}")
            servers.await_listeners(WORKERS, besides=before)
            systemd.ok("systemctl", "stop", f"web@{old}")
        ledger = load.stop()
    restart.assert_resets(ledger)


def test_the_recipe_loses_none(systemd: Container) -> None:
    systemd.ok("systemctl", "start", FOLLOWER)
    ledger = deploys(systemd)
    print(ledger)
    assert ledger.answered > DEPLOYS * QUEUED
    assert ledger.lost == 0
    assert state_of(systemd, "web@a", "web@b") == ["active", "inactive"]
    assert enabled(systemd, "web@a", "web@b") == ["enabled", "disabled"]
    status = systemd.ok("reuseport-tool", "status", servers.PORT)
    assert status.count("working\n") == WORKERS, status
    assert "following" in systemd.ok("systemctl", "show", "--property", "StatusText", FOLLOWER)


def deploys(systemd: Container) -> Ledger:
    with restart.on_one_cpu():
        clients = Load(servers.ADDRESS, servers.PORT, CLIENTS)
    with clients as load:
        for turn in range(DEPLOYS):
            restart.await_load(QUEUED)
            print(systemd.ok("reuseport-tool", "reload", servers.PORT, "--unit", "web@"))
            replace_workers(systemd, "ba"[turn % 2])
            if turn == 0:
                systemd.ok("systemctl", "kill", "--signal", "KILL", FOLLOWER)
                assert wait_until(lambda: state_of(systemd, FOLLOWER) == ["active"], 20)
            if turn == 1:
                systemd.ok("systemctl", "restart", FOLLOWER)
        return load.stop()


def replace_workers(systemd: Container, instance: str) -> None:
    """SIGHUP: the arbiter starts new workers and ends the old ones."""
    before = frozenset(member.cookie for member in servers.listeners())
    systemd.ok("systemctl", "kill", "--signal", "HUP", "--kill-who", "main", f"web@{instance}")
    servers.await_listeners(WORKERS, besides=before)
    restart.await_gone(before)
    assert wait_until(lambda: "foreign" not in systemd.ok("reuseport-tool", "status", servers.PORT), 20)


def test_a_new_instance_that_does_not_start_leaves_the_old_one(systemd: Container) -> None:
    systemd.write(f"{UNIT_FOLDER}/web@b.service.d/zz-broken.conf", "[Service]\nExecStart=\nExecStart=/bin/false\n")
    systemd.ok("systemctl", "daemon-reload")
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        restart.await_load(QUEUED)
        done = systemd.run("reuseport-tool", "reload", servers.PORT, "--unit", "web@")
        ledger = load.stop()
    assert done.returncode == 1, done.stderr
    assert "web@b" in done.stderr
    assert ledger.lost == 0
    assert state_of(systemd, "web@a")[0] == "active"
    assert state_of(systemd, "web@b")[0] in ("inactive", "failed")
    assert enabled(systemd, "web@a") == ["enabled"]


def enabled(systemd: Container, *units: str) -> list[str]:
    return systemd.run("systemctl", "is-enabled", *units).stdout.split()


def state_of(systemd: Container, *units: str) -> list[str]:
    return systemd.run("systemctl", "is-active", *units).stdout.split()
