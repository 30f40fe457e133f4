"""The unit file of the follower: systemd understands it, and its capabilities are enough."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.follower import PRIORITY, Follower
from tests.kernel.conftest import PORT
from tests.kernel.test_rights import PoorTool
from tests.tool import Tool

UNIT = Path(__file__).parents[3] / "packaging" / "systemd" / "reuseport-tool-follow@.service"
NOBODY = 65534


def confined(tool: Tool) -> Tool:
    """The command line with the capabilities of the unit file and no other."""
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    names = [name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]
    return PoorTool(tool.bpffs, ",".join(f"+{name}" for name in names))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_it(tmp_path: Path) -> None:
    here = shutil.which("true")
    text = UNIT.read_text().replace("ExecStart=reuseport-tool", f"ExecStart={here}")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / UNIT.name.replace("@", "@8080")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_its_priority_is_that_of_the_tests() -> None:
    assert f"Nice={PRIORITY}" in UNIT.read_text().splitlines()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_its_capabilities_are_enough(
    tool: Tool, tmp_path: Path, server: Callable[..., Any], protocol: str, end_owners: None
) -> None:
    endpoint = f"{protocol}://{PORT}"
    kind = ["--udp"] if protocol == "udp" else []
    with Follower(confined(tool), tmp_path, endpoint) as follower:
        process = server("other user's", "--uid", NOBODY, *kind)
        assert os.stat(f"/proc/{process.pid}").st_uid == NOBODY
        assert follower.await_event("registered")[0]["pid"] == process.pid
        held = Path(f"/proc/{follower.pid}/status").read_text()
        assert f"CapEff:\t{_mask():016x}" in held
        assert follower.stop() == 0


def _mask() -> int:
    bits = {"NET_ADMIN": 12, "DAC_READ_SEARCH": 2, "SYS_PTRACE": 19, "PERFMON": 38, "BPF": 39}
    return sum(1 << bit for bit in bits.values())
