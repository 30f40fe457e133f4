"""Without rights, without a bpffs, in other namespaces: an exit code and a hint, never a traceback."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import PORT, server_command, snapshot
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]


class PoorTool(Tool):
    """The command line as uid 0 without capabilities, or with few ("+bpf,+perfmon")."""

    def __init__(self, bpffs: Path | None, few: str = "") -> None:
        super().__init__(bpffs)
        self._kept = f"-all,{few}" if few else "-all"

    def command(self, *arguments: object, as_json: bool = True) -> list[str]:
        drop = ["setpriv", f"--bounding-set={self._kept}", "--inh-caps=-all", "--ambient-caps=-all"]
        return [*drop, *super().command(*arguments, as_json=as_json)]


VERBS = [("attach", PORT), ("reload", PORT, "--", *server_command("new")), ("map", "add", PORT)]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_without_capabilities(tool: Tool, server: Start, verb: tuple[object, ...]) -> None:
    server("one")
    if verb[0] == "map":
        tool.ok("attach", PORT)
        server("two")
    before = snapshot(tool)
    error = PoorTool(tool.bpffs).fails(3, *verb)
    assert "CAP_" in error["hint"] or "root" in error["hint"]
    assert snapshot(tool) == before


def test_status_without_capabilities_still_lists(tool: Tool, server: Start) -> None:
    server("one")
    listeners = PoorTool(tool.bpffs).ok("status", PORT)["groups"][0]["listeners"]
    assert listeners[0]["half_open"] is None


def test_a_folder_that_is_no_bpffs(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("one")
    error = Tool(tmp_path / "plain").fails(6, "attach", PORT)
    assert "mount -t bpf" in error["hint"]


def test_a_bpffs_is_mounted_where_none_is(server: Start, tmp_path: Path) -> None:
    """In a mount namespace whose /sys/fs/bpf is hidden and whose /run is empty."""
    server("one")
    tool = Tool(None)
    script = "mount -t tmpfs none /run && { ! mountpoint -q /sys/fs/bpf || umount /sys/fs/bpf; } && " + " && ".join(
        " ".join(tool.command(*words)) for words in (("attach", PORT), ("status", PORT), ("detach", PORT))
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "/run/reuseport-tool/bpffs" in done.stdout


@pytest.mark.parametrize(
    ("name", "code"), [("no-such", 6), ("/no/such", 6), ("pid:x", 2), ("pid:4194304", 6), ("/etc/passwd", 6)]
)
def test_bad_namespaces(tool: Tool, name: str, code: int) -> None:
    tool.fails(code, "--netns", name, "status")


def test_the_namespace_of_a_process(tool: Tool, server: Start) -> None:
    process = server("one")
    from reuseport_tool.kernel import netns

    with netns.throw_away():
        tool.fails(6, "status", PORT)
        assert tool.ok("--netns", f"pid:{process.pid}", "status", PORT)["groups"]


@pytest.mark.parametrize(
    "endpoint", ["0", "65536", "x", "1.2.3:80", "[::1:80", "::1:80", "ftp://80", "[1.2.3.4]:80", "-1"]
)
def test_bad_endpoints(tool: Tool, endpoint: str) -> None:
    tool.fails(2, "attach", "--", endpoint)


def test_migrate_req(tool: Tool) -> None:
    assert tool.ok("migrate-req") == {**tool.ok("migrate-req"), "enabled": False, "changed": False}
    assert tool.ok("migrate-req", "on")["changed"]
    assert not tool.ok("migrate-req", "on")["changed"]
    assert tool.ok("migrate-req")["enabled"]
    tool.fails(2, "migrate-req", "perhaps")
