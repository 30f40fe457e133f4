"""`bench speed` measures what it says, and leaves nothing."""

from __future__ import annotations

from tests.tool import Tool


def test_every_command_is_measured(tool: Tool) -> None:
    assert tool.bpffs is not None
    before = sorted(path.name for path in tool.bpffs.rglob("*"))
    report = tool.ok("bench", "speed", "--rounds", 2, "--workers", 2, "--addresses", 3)
    names = [figure["name"] for figure in report["figures"]]
    assert names[:3] == ["imports", "status", "attach"]
    assert names[3:] == [f"{verb}, many (6 listeners)" for verb in ("attach", "status", "reload", "detach")]
    assert all(figure["duration_s"] > 0 for figure in report["figures"])
    assert [figure["relative"] is not None for figure in report["figures"][:3]] == [False, True, True]
    assert sorted(path.name for path in tool.bpffs.rglob("*") if path.name != "reuseport-tool") == before
