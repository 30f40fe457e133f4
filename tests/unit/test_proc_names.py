"""Names of cgroups and mount points that users choose, in files of /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import cgroup

# What fusermount lets every user do. The kernel escapes space, tab, line feed and backslash in a name, nothing else.
ODD_MOUNTS = [
    b"dev /home/u/x\x0b/evil\x0bcgroup2 fuse rw 0 0",
    b"dev /home/u/a\rnone fuse rw 0 0",
    b"dev /home/u/\x85/evil\x85cgroup2 fuse rw 0 0",
    b"dev /home/u/\xff\xfe fuse rw 0 0",
    b"x",
    b"",
]


def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: bytes) -> None:
    (tmp_path / "mounts").write_bytes(b"\n".join(lines) + b"\n")
    monkeypatch.setattr(cgroup, "_MOUNTS", tmp_path / "mounts")


@pytest.mark.parametrize("odd", ODD_MOUNTS, ids=repr)
def test_a_mount_point_is_no_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes) -> None:
    mounts(tmp_path, monkeypatch, odd)
    with pytest.raises(Unsupported):
        cgroup.root()
    mounts(tmp_path, monkeypatch, odd, b"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0")
    assert cgroup.root() == Path("/sys/fs/cgroup")


def test_an_escaped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(tmp_path, monkeypatch, rb"cgroup2 /my\040\134cgroups cgroup2 rw 0 0")
    assert cgroup.root() == Path("/my \\cgroups")


@pytest.mark.parametrize(
    ("content", "service"),
    [
        (b"0::/system.slice/web.service\n", "/system.slice/web.service"),
        (b"0::/user.slice/x\r0::/system.slice/web.service\n", "/user.slice/x\r0::/system.slice/web.service"),
        (b"3:cpu:/x\rb\n0::/user.slice\n", None),
        (b"0::/user.slice/\xff\n", None),
        (b"", None),
    ],
)
def test_a_cgroup_with_a_carriage_return_in_its_name(content: bytes, service: str | None) -> None:
    assert cgroup.service_in(content) == service
