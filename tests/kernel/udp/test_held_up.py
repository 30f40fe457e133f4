"""An old server that cannot run has answers left although it reads nothing and sends nothing.

1. A server answers after 400 ms. It has read datagrams when the reload switches.
2. It cannot run for longer than --settle: it waits for a CPU or a disk, or is stopped, which a test can do at will.
3. The reload waits for it, and every datagram is answered. Who looks at the sockets alone stops it, and they are lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.check.udp_load import UdpLoad
from reuseport_tool.kernel.run_delay import RunDelay
from reuseport_tool.models import FlowMode, parse_endpoint
from reuseport_tool.reload import transaction
from reuseport_tool.reload.plan import Hook, Plan
from reuseport_tool.waiting import wait_until
from tests.kernel.reload import killed
from tests.kernel.udp.test_reload_udp import end_new_servers  # noqa: F401
from tests.tool import Tool

PORT = 5510
ENDPOINT = f"udp://127.0.0.1:{PORT}"
LAST, FIRST = 19, -20  # nice
SETTLE_S, LONG_S = 0.3, 20.0

pytestmark = [pytest.mark.needs("TCP iterator", "detach from a group")]

Spawn = Callable[..., subprocess.Popen[str]]


def command(name: str) -> tuple[str, ...]:
    module = "reuseport_tool.check.udp_server"
    return (sys.executable, "-m", module, "127.0.0.1", str(PORT), name, "--delay", "0.4")


def give(pid: int, nice: int, cpu: int) -> None:
    """Put a process on a CPU with this share. With autogroups the kernel weighs sessions."""
    os.sched_setaffinity(pid, {cpu})
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


@pytest.fixture
def busy(spawn: Spawn) -> Iterator[subprocess.Popen[str]]:
    """A process that takes a CPU almost for itself."""
    process = spawn(sys.executable, "-c", "while True: pass")
    yield process
    process.kill()
    process.wait()


def is_told_to_stop(process: subprocess.Popen[str]) -> bool:
    """Whether SIGTERM waits for a process that does not run, or has ended it."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        pending = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))
        return process.poll() is not None or bool(pending >> (signal.SIGTERM - 1) & 1)
    return True


def test_a_thread_that_waits_for_a_cpu_is_held_up(spawn: Spawn, busy: subprocess.Popen[str]) -> None:
    delay, cpu = RunDelay(), min(os.sched_getaffinity(0))
    sleeping = spawn("sleep", "60")
    assert wait_until(lambda: not delay.look([sleeping.pid]), LONG_S)
    other = spawn(sys.executable, "-c", "while True: pass")
    assert wait_until(lambda: not delay.look([other.pid]), LONG_S)
    give(busy.pid, FIRST, cpu)
    give(other.pid, LAST, cpu)
    delay.look([other.pid])
    assert wait_until(lambda: delay.look([other.pid]), LONG_S)


@pytest.mark.parametrize("looks", [True, False])
def test_a_server_that_cannot_run_is_waited_for(
    tool: Tool, in_netns: None, spawn: Spawn, tmp_path: Path, looks: bool
) -> None:
    old = spawn(*command("old"), stdout=subprocess.PIPE)
    assert old.stdout is not None
    assert old.stdout.readline() == "ready\n"
    switched, is_stopped = tmp_path / "switched", tmp_path / "stopped"
    wait = Hook(step="switch", command=f"touch {switched}; until [ -e {is_stopped} ]; do sleep 0.01; done")
    plan = Plan(command=command("new"), flows=FlowMode.NONE, settle_s=SETTLE_S, hooks=(wait,), output=Path("/dev/null"))

    def run() -> None:
        if not looks:
            RunDelay.look = lambda *_: False  # type: ignore[method-assign]
        transaction.reload([parse_endpoint(ENDPOINT)], plan, tool.bpffs, killed.quiet())

    with UdpLoad("127.0.0.1", PORT) as load:
        load.go_on(100)
        pid = killed.in_fork(run)
        assert wait_until(switched.exists, LONG_S)
        old.send_signal(signal.SIGSTOP)
        is_stopped.touch()
        assert wait_until(lambda: is_told_to_stop(old), 4 * SETTLE_S if looks else LONG_S) is not looks
        old.send_signal(signal.SIGCONT)
        assert os.waitpid(pid, 0)[1] == 0
        load.go_on(20)
    assert (load.lost == 0) is looks, load.lost
