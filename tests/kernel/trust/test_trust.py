"""What a user without rights can do to root's runs of the tool: nothing.

The user makes folders, links and files in a bpffs of mode 1777, processes with names, current folders and headers.
Root runs every verb. There is no traceback, and nothing outside of our folders changes: a snapshot proves it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from reuseport_tool.group import places
from reuseport_tool.kernel import bpf, bpffs, cgroup, folders, held_sockets, libc, netns
from reuseport_tool.models import parse_endpoint
from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT, ask, server_command
from tests.kernel.readable import READABLE
from tests.kernel.trust.hostile import AS_USER, USER, as_user, picture
from tests.tool import TIMEOUT_S, Done, Tool

Start = Callable[..., subprocess.Popen[str]]
GROUP = parse_endpoint(f"127.0.0.1:{PORT}")
CODES = (0, 1, 2, 3, 6, 7, 8)
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
    ("detach", "--all"),
    ("status", "--check"),
    ("metrics",),
    ("flows", PORT),
    ("reload", PORT, "--dry-run", "--run", "true"),
    ("reload", PORT, "--unit", "web@"),
    ("reload", "no-such-deploy"),
    ("attach", PORT, "--follow"),
    ("status", "--watch", "--interval", "0.1"),
    ("metrics", "--textfile", "{textfile}"),
    ("autolowat", "attach", "--cgroup", "{cgroup}", "--framing", "rpc"),
    ("autolowat", "detach", "--cgroup", "{cgroup}"),
    ("completion", "bash"),
]


PARTS = ("reuseport-tool", "{netns}", "{group}", "state", "program", "generation_1", "next_1", "gone_1", "journal")


def planted(chance: random.Random, victim: Path, cgroup_id: int) -> str:
    """A shell command that makes something where root's tool keeps its pins."""
    depth = chance.randrange(1, 5)
    path = [PARTS[0], netns.key(), places.folder_name(GROUP), chance.choice(PARTS[3:])][:depth]
    if chance.random() < 0.2:
        path = [PARTS[0], "autolowat", str(cgroup_id), "state"][:depth]
    above, last = "/".join(path[:-1]) or ".", "/".join(path)
    target = chance.choice([str(victim), "/etc", "/", "..", str(victim / "state"), "/proc/self/fd/1", "nowhere"])
    make = chance.choice([f"ln -s {target} {last}", f"mkdir -p {last}", f"mkdir -p {last}; ln -s {target} {last}/x"])
    return f"mkdir -p {above}; {make}; chmod {chance.choice(['700', '755', '777'])} {PARTS[0]}"


@pytest.fixture
def empty_cgroup(root: None) -> Iterator[Path]:
    """A cgroup without a process."""
    folder = cgroup.root() / f"reuseport-tool-trust-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """In place of systemctl(1): web@a runs, web@b is a process that does nothing. Returns the list of its calls."""
    calls = tmp_path / "calls"
    script = tmp_path / "bin" / "systemctl"
    script.parent.mkdir()
    answers = "*list-units*) echo web@a.service;; *MainPID*) echo 1;; *is-enabled*) echo disabled;;"
    script.write_text(f'#!/bin/sh\necho "$*" >>{calls}\ncase "$*" in {answers} esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return calls


CHANGING = ("attach", "detach", "autolowat attach", "autolowat detach")


def refused(verb: tuple[object, ...]) -> bool:
    """Whether a verb must refuse a folder of somebody else: it would change something there."""
    name = f"{verb[0]} {verb[1]}" if verb[0] == "autolowat" else verb[0]
    return name in CHANGING and not {"--gone", "--all"} & {*verb}


@pytest.mark.parametrize("seed", range(4))
def test_what_a_user_plants_in_a_bpffs(
    in_netns: None,
    server: Start,
    open_bpffs: Path,
    victim: Path,
    empty_cgroup: Path,
    systemctl: Path,
    tmp_path: Path,
    seed: int,
) -> None:
    """Refused with the owner's name, or not noticed, and never touched."""
    server("one")
    chance, tool = random.Random(seed), Tool(open_bpffs)
    here = {"cgroup": empty_cgroup, "textfile": tmp_path / "metrics"}
    left = chance.sample(VERBS, len(VERBS))
    for _ in range(6):
        as_user(f"cd {open_bpffs} && {{ {planted(chance, victim, empty_cgroup.stat().st_ino)}; }}")
        before = picture(open_bpffs, victim)
        assert any(entry[2] == USER for entry in before)
        for verb in [left.pop() for _ in range(min(5, len(left)))]:
            words = [str(word).format(**here) for word in verb]
            done = watched(tool, *words) if "--watch" in words else tool.run(*words)
            assert done.code in CODES, (verb, done)
            assert "Traceback" not in done.err, (verb, done.err)
            if refused(verb):
                assert (done.code, f"uid {USER}" in done.error["message"]) == (7, True), (verb, done)
        assert picture(open_bpffs, victim) == before
        assert ask() == "one"
        as_user(f"chmod -R u+rwx {open_bpffs}/reuseport-tool; rm -rf {open_bpffs}/reuseport-tool")
        assert not (open_bpffs / "reuseport-tool").exists()
    assert not left, "every verb ran"
    assert not (tmp_path / "metrics").exists(), "nothing was read there"
    assert systemctl.read_text().splitlines()[-1].endswith("stop web@b"), "a refused reload stops what it started"
    assert not subprocess.check_output(["bpftool", "-j", "cgroup", "show", empty_cgroup]).strip()


def watched(tool: Tool, *words: str) -> Done:
    """`status --watch` until it has shown something twice, ended as by Ctrl-C."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(tool.command(*words), stdout=out, stderr=err)
        wait_until(lambda: process.poll() is not None or _shown(out) > 1, TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        code = process.wait(TIMEOUT_S)
        return Done(code, *(os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, err)))


def _shown(out: IO[str]) -> int:
    return os.pread(out.fileno(), 1 << 20, 0).count(b'"groups"')


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


OTHER_BPFFS = (
    "mkdir -p /run/reuseport-tool/bpffs && mount -t bpf -o mode=1777 bpf /run/reuseport-tool/bpffs",
    "true",
)


@pytest.mark.parametrize("other", OTHER_BPFFS, ids=["beside an open one", "alone"])
def test_everybody_may_ask_for_the_status(in_netns: None, server: Start, open_bpffs: Path, other: str) -> None:
    """As docs/rights.md says, also after root has attached."""
    server("one")
    Tool(open_bpffs).ok("attach", PORT)
    command = " ".join([*AS_USER, *READABLE.command(Tool(None).command("status", PORT))])
    script = f"mount -t tmpfs tmpfs /run && {other} && mount --bind {open_bpffs} /sys/fs/bpf && exec {command}"
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
    for verb in (("status",), ("sockets",), ("metrics",), ("destroy", "--state", "listen")):
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


def test_a_header_that_a_user_puts_beside_root_s_policy(
    tool: Tool, server: Start, fresh_compiler: None, sticky: Path
) -> None:
    server("one")
    source = sticky / "mine.c"
    source.write_text('#include "reuseport.h"\n#include "other.h"\nREUSEPORT_POLICY(mine)\n{\n\treturn 0;\n}\n')
    as_user(
        f"echo '#error planted' >{sticky}/other.h; mkdir {sticky}/linux; cp {sticky}/other.h {sticky}/linux/types.h"
    )
    assert "other.h' file not found" in tool.fails(5, "attach", PORT, "--program", source)["message"]
    source.write_text(source.read_text().replace('#include "other.h"\n', ""))
    tool.ok("attach", PORT, "--program", source)


PLANTED = {"link": "ln -s {victim}/precious {file}", "pipe": "mkfifo {file}", "file": "echo theirs >{file}"}


@pytest.mark.parametrize("what", PLANTED)
def test_files_that_root_names_in_a_folder_of_everybody(
    tool: Tool, end_owners: None, server: Start, sticky: Path, victim: Path, what: str
) -> None:
    """Also where the kernel's own protection is off: see kernel/named_files.py."""
    server("one")
    names = ("output", "timeline", "trace", "metrics")
    for name in names:
        as_user(PLANTED[what].format(victim=victim, file=sticky / name))
    before = picture(victim), _about(sticky / "output")
    command = ("--output", sticky / "output", "--", *server_command("two"))
    assert f"uid {USER}" in tool.fails(7, "reload", PORT, *command)["message"]
    assert ask() == "one"
    pictures = ("--timeline", sticky / "timeline", "--trace", sticky / "trace", "--output", "/dev/null")
    done = tool.run("reload", PORT, *pictures, "--", *server_command("two"))
    assert (done.code, done.err.count(f"of uid {USER}")) == (0, 2), done
    assert ask() == "two"
    assert (picture(victim), _about(sticky / "output")) == before
    replaced = tool.run("metrics", "--textfile", sticky / "metrics")
    assert replaced.code == (0 if what == "file" else 2)
    assert picture(victim) == before[0]


def _about(file: Path) -> tuple[int, int, int]:
    info = file.lstat()
    return info.st_ino, info.st_mode, info.st_size


@pytest.mark.parametrize("file", ["/dev/null", "/no/such/folder/x", "/proc/x"])
def test_metrics_that_cannot_be_written(tool: Tool, in_netns: None, file: str) -> None:
    """A device is not replaced by a file."""
    before = os.stat("/dev/null").st_rdev
    tool.fails(2 if file == "/dev/null" else 1, "metrics", "--textfile", file)
    assert os.stat("/dev/null").st_rdev == before


def test_programs_are_not_kept_where_somebody_else_can_write(tool: Tool, sticky: Path) -> None:
    as_user(f"mkdir {sticky}/theirs; ln -s /etc {sticky}/link; echo x >{sticky}/file")
    before = picture(sticky)
    for name in ("", "theirs", "link"):
        tool.fails(1, "compile", "--output", sticky / name)
    tool.fails(2, "compile", "--output", sticky / "file")
    assert picture(sticky) == before


def test_a_lock_with_the_inode_of_root_s_folder(tmp_path: Path) -> None:
    """Every file system has its own inode numbers, and a user may lock what he likes on his."""
    with contextlib.ExitStack() as stack:
        for name, mode in (("theirs", "1777"), ("ours", "0700")):
            (tmp_path / name).mkdir()
            libc.mount("none", str(tmp_path / name), "tmpfs", data=f"mode={mode},inode64")
            stack.callback(subprocess.run, ["umount", str(tmp_path / name)], check=True)
        place = folders.Place(tmp_path / "ours", ("lock",))
        place.make()
        inode = os.stat(tmp_path / "ours" / "lock").st_ino
        while True:
            fd = os.open(tmp_path / "theirs" / str(len(os.listdir(tmp_path / "theirs"))), os.O_CREAT | os.O_RDWR)
            stack.callback(os.close, fd)
            assert os.fstat(fd).st_ino <= inode
            if os.fstat(fd).st_ino == inode:
                break
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert folders.lock_holder(os.fstat(fd)) == os.getpid()
        assert not folders.is_locked(place)
        stack.close()


MANY = """
import os, resource, socket, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listeners = [socket.create_server(("127.0.0.1", port), reuse_port=True) for port in (9100, 9101)]
for number in range(3000):
    os.dup(listeners[number % 2].fileno())
print("ready", flush=True)
time.sleep(600)
"""


def test_very_many_descriptors_of_a_user(in_netns: None, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """They cost root nothing: who holds a socket is told once for each process. More than one buffer is read."""
    process = spawn(*AS_USER, os.path.realpath(sys.executable), "-c", MANY, stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(socket.socket()) for _ in range(3000)]
        with held_sockets.HeldSockets() as held:
            for _ in range(2):
                found = list(held.read())
                assert sum(pid == process.pid for _, pid, _ in found) == 2
                ours = [inode for inode, pid, _ in found if pid == os.getpid()]
                assert {os.fstat(sock.fileno()).st_ino for sock in mine} <= set(ours)
                assert len(ours) == len(set(ours))


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
