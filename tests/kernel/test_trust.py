"""What a user without rights can do to root's runs of the tool: nothing.

The user makes folders, links and files in a bpffs of mode 1777, processes with names, current folders and headers.
Root runs every verb. There is no traceback, and nothing outside of our folders changes: a snapshot proves it.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.group import places
from reuseport_tool.kernel import bpf, bpffs, libc, netns
from reuseport_tool.models import parse_endpoint
from tests.kernel.conftest import PORT, ask, server_command
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
GROUP = parse_endpoint(f"127.0.0.1:{PORT}")
USER = 65534
CODES = (0, 1, 2, 3, 6, 7, 8)
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
VERBS = [
    ("status",),
    ("status", PORT),
    ("map", "list"),
    ("map", "show", PORT),
    ("map", "add", PORT),
    ("sockets", "--endpoint", PORT),
    ("attach", PORT),
    ("attach", PORT, "--policy", "cpu"),
    ("attach", PORT, "--repair"),
    ("reload", PORT, "--resume"),
    ("reload", PORT, "--abort"),
    ("reload", PORT, "--start-timeout", "0.2", "--no-probe", "--", "true"),
    ("autolowat", "status"),
    ("detach", "--gone"),
    ("detach", PORT),
]


@pytest.fixture
def open_bpffs(root: None) -> Iterator[Path]:
    """A bpffs that everybody can write to, where everybody can reach it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        mount = Path(folder) / "bpf"
        mount.mkdir()
        libc.mount("bpf", str(mount), "bpf", data="mode=1777")
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def victim() -> Iterator[Path]:
    """Files of root that a link can lead to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        place = Path(folder)
        (place / "state").mkdir()
        for name in ("precious", "state/program", "journal", "state/generation_1"):
            (place / name).write_text("precious")
        yield place


def picture(*folders: Path) -> list[tuple[str, int, int, int, str]]:
    """Everything in folders: name, mode, owner, inode and content."""
    seen = []
    for folder in folders:
        for path in sorted([folder, *folder.rglob("*")]):
            info = path.lstat()
            content = os.readlink(path) if path.is_symlink() else ""
            if stat.S_ISREG(info.st_mode) and not folder.name.startswith("bpf"):
                content = path.read_text()
            seen.append((str(path), info.st_mode, info.st_uid, info.st_ino, content))
    return seen


def as_user(script: str) -> None:
    subprocess.run([*AS_USER, "sh", "-c", script], check=False, capture_output=True)


PARTS = ("reuseport-tool", "{netns}", "{group}", "state", "program", "generation_1", "next_1", "gone_1", "journal")


def planted(chance: random.Random, victim: Path) -> str:
    """A shell command that makes something where root's tool keeps its pins."""
    depth = chance.randrange(1, 5)
    path = [PARTS[0], netns.key(), places.folder_name(GROUP), chance.choice(PARTS[3:])][:depth]
    if chance.random() < 0.2:
        path = ["reuseport-tool", "autolowat", "1", "state"][:depth]
    above, last = "/".join(path[:-1]) or ".", "/".join(path)
    target = chance.choice([str(victim), "/etc", "/", "..", str(victim / "state"), "/proc/self/fd/1", "nowhere"])
    make = chance.choice([f"ln -s {target} {last}", f"mkdir -p {last}", f"mkdir -p {last}; ln -s {target} {last}/x"])
    return f"mkdir -p {above}; {make}; chmod {chance.choice(['700', '755', '777'])} {PARTS[0]}"


@pytest.mark.parametrize("seed", range(4))
def test_what_a_user_plants_in_a_bpffs(
    in_netns: None, server: Start, open_bpffs: Path, victim: Path, seed: int
) -> None:
    """Refused with the owner's name, or not noticed, and never touched."""
    server("one")
    chance, tool = random.Random(seed), Tool(open_bpffs)
    for _ in range(6):
        as_user(f"cd {open_bpffs} && {{ {planted(chance, victim)}; }}")
        before = picture(open_bpffs, victim)
        assert any(entry[2] == USER for entry in before)
        for verb in chance.sample(VERBS, 5):
            done = tool.run(*verb)
            assert done.code in CODES, (verb, done)
            assert "Traceback" not in done.err, (verb, done.err)
            if verb[0] in ("attach", "detach") and "--gone" not in verb:
                assert (done.code, f"uid {USER}" in done.error["message"]) == (7, True), done
        assert picture(open_bpffs, victim) == before
        assert ask() == "one"
        as_user(f"chmod -R u+rwx {open_bpffs}/reuseport-tool; rm -rf {open_bpffs}/reuseport-tool")
        assert not (open_bpffs / "reuseport-tool").exists()


def test_root_s_pins_in_an_open_bpffs(in_netns: None, server: Start, open_bpffs: Path) -> None:
    """A user can neither look into them, nor lock, rename or remove them."""
    server("one")
    tool = Tool(open_bpffs)
    tool.ok("attach", PORT)
    before = picture(open_bpffs)
    home = open_bpffs / "reuseport-tool"
    as_user(f"rm -rf {home}; mv {home} {open_bpffs}/x; ls {home} && mkdir {open_bpffs}/seen; flock {home} sleep 5 &")
    assert picture(open_bpffs) == before
    assert tool.ok("attach", PORT)["attached"][0]["result"] == "unchanged"
    tool.ok("detach", PORT)


def test_everybody_may_ask_for_the_status(in_netns: None, server: Start, open_bpffs: Path) -> None:
    """As docs/rights.md says, also after root has attached."""
    server("one")
    Tool(open_bpffs).ok("attach", PORT)
    command = " ".join([*AS_USER, *Tool(None).command("status", PORT)])
    script = f"mount --bind {open_bpffs} /sys/fs/bpf && exec {command}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [entry["endpoint"] for entry in shown["groups"]] == [str(GROUP)]
    assert "uid 0" in shown["unseen"]


ODD_NAMES = [b"\xff\xfe", b"\x1b[2J\nroot", b"a b) S 1", b"\xc3", b") Z 0 0", b"\x9b31m", b"'; rm -rf /", b"%s%n", b" "]
HOLDER = """
import ctypes, socket, sys, time
s = socket.socket(); s.setsockopt(1, 15, 1); s.bind(("127.0.0.1", 9001)); s.listen()
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
def test_a_name_that_a_user_has_chosen(
    tool: Tool, server: Start, spawn: Callable[..., subprocess.Popen[str]], end_owners: None, name: bytes
) -> None:
    server("one")
    process = spawn(
        *AS_USER, os.path.realpath(sys.executable), "-c", HOLDER, name.hex(), stdout=subprocess.PIPE, cwd="/"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for verb in (("status",), ("sockets",), ("destroy", "--state", "listen")):
        done = tool.run(*verb, as_json=False)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out
        assert all(line.isprintable() for line in done.out.splitlines())
        assert "\x9b" not in done.out
    command = next(entry["command"] for entry in tool.ok("sockets")["sockets"] if entry["local"].endswith(":9001"))
    assert command == name.decode(errors="backslashreplace")
    tool.ok("reload", PORT, "--output", "/dev/null", "--", *server_command("two"))
    assert ask() == "two"


@pytest.fixture
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from the cache of compiled programs."""
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", "")


CURRENT_FOLDERS = {
    "a planted header": "mkdir linux uapi; echo '#error planted' | tee linux/types.h uapi/bpf.h bpf.h reuseport.h",
    "deleted": "rmdir $PWD",
    "closed": "chmod 000 .",
    "read-only": "mount -t tmpfs -o ro none $PWD && cd $PWD",
}


@pytest.mark.parametrize("what", CURRENT_FOLDERS)
def test_every_current_folder(tool: Tool, server: Start, fresh_compiler: None, tmp_path: Path, what: str) -> None:
    server("one")
    folder = tmp_path / "here"
    folder.mkdir()
    command = " ".join(tool.command("attach", PORT)).replace("-m reuseport_tool", "-I -m reuseport_tool")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"cd {folder}; {CURRENT_FOLDERS[what]}; exec {command}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ask() == "one"


def test_a_policy_with_a_header_of_its_own(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("one")
    (tmp_path / "first.h").write_text("#define FIRST 0\n")
    source = tmp_path / "mine.c"
    source.write_text('#include "reuseport.h"\n#include "first.h"\nREUSEPORT_POLICY(mine)\n{\n\treturn FIRST;\n}\n')
    tool.ok("attach", PORT, "--program", source)
    (tmp_path / "first.h").write_text("#error changed\n")
    assert "changed" in tool.fails(5, "attach", PORT, "--program", source)["message"]


def test_a_journal_of_another_user_is_not_read(tool: Tool, server: Start) -> None:
    """Its pin alone is another user's: root made the folder, and somebody gave the pin away."""
    server("one")
    assert tool.bpffs is not None
    folder = places.group_folder(tool.bpffs, GROUP)
    folder.make()
    with bpf.Map.create(bpf.MapType.ARRAY, "journal", value_size=64) as entry:
        bpffs.pin(entry, folder / places.JOURNAL)
    os.chown(str(folder / places.JOURNAL), USER, USER)
    for verb in (("reload", PORT, "--resume"), ("reload", PORT, "--abort")):
        assert f"uid {USER}" in tool.fails(7, *verb)["message"]
