"""docs/recipes/haproxy.md, master-worker mode (`haproxy -W`, which `-Ws` is with systemd).

SIGUSR2, which `systemctl reload haproxy` sends, hands the very same listener to the next worker, so nothing is lost.
The arm that loses is `haproxy -sf` without a master: test_reload_servers.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Load
from reuseport_tool.waiting import wait_until
from tests.servers import restart, servers
from tests.servers.servers import Server

ROUNDS = 3
CLIENTS = 128
QUEUED = 32
LIMIT_S = 30
_SIGNAL_SETS = ("SigBlk", "SigCgt")


@pytest.fixture
def front(servers_end: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """haproxy as master and worker, in front of a slow application, already serving."""
    monkeypatch.setenv("APP_BUSY_S", "0.02")
    backend = servers.gunicorn(1, servers.BACKEND_PORT, "--threads", "8")
    subprocess.Popen(backend.command, start_new_session=True)
    servers.await_answer(servers.BACKEND_PORT)
    made = servers.haproxy(tmp_path)
    program, config = made.command[0], made.command[-1]
    command = (program, "-W", "-D", "-p", str(tmp_path / "pid"), "-f", config)
    subprocess.run(command, check=True, timeout=LIMIT_S)
    servers.await_listeners(1)
    servers.await_answer()
    return Server(name="haproxy -W", command=command, stop_signal="USR1", listeners=1)


def master(folder: Path) -> int:
    return int((folder / "pid").read_text())


def obeys(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal and lets it in: haproxy's master ignores SIGUSR2 while it starts."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sets = {name: int(value, 16) for name, _, value in (line.partition(":") for line in lines) if name in _SIGNAL_SETS}
    bit = 1 << (number - 1)
    return bool(sets["SigCgt"] & bit) and not sets["SigBlk"] & bit


def workers() -> set[int]:
    return {holder.pid for member in servers.listeners() for holder in member.holders}


def test_a_reload_of_the_master_keeps_the_listener(front: Server, tmp_path: Path) -> None:
    cookies = {member.cookie for member in servers.listeners()}
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(ROUNDS):
            restart.await_load(QUEUED)
            before = workers()
            assert wait_until(lambda: obeys(master(tmp_path), signal.SIGUSR2), LIMIT_S)
            os.kill(master(tmp_path), signal.SIGUSR2)
            assert wait_until(lambda old=before: bool(workers() - old - {master(tmp_path)}), LIMIT_S)  # type: ignore[misc]
        ledger = load.stop()
    print(ledger)
    assert ledger.answered > ROUNDS * QUEUED
    assert ledger.lost == 0
    assert {member.cookie for member in servers.listeners()} == cookies
