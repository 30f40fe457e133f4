"""Which capabilities each verb takes, tried: with exactly these it works, and without one of them the error names it.

The tool runs as a user of its own with ambient capabilities, in a bpffs that belongs to that user (docs/rights.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.kernel import cgroup, libc
from tests.kernel.conftest import PORT, SERVER, Clients, ask, server_command
from tests.kernel.readable import READABLE
from tests.tool import Tool

pytestmark = [
    pytest.mark.needs("migration by program", "migration wakes readers", "bpf_sock_destroy"),
    pytest.mark.usefixtures("readable"),
]
Spawn = Callable[..., subprocess.Popen[str]]

USER = 4242  # that the tool runs as
STRANGER = 4343

BPF = ("bpf", "perfmon")
TAKE = ("sys_ptrace",)  # a descriptor of another user's process
SEE = ("sys_ptrace", "dac_read_search")  # who holds it, where no iterator over descriptors may be loaded
NEW = ("--output", "/dev/null", "--", *server_command("new"))
# What each takes for a server of the tool's own user, and what more for that of another user.
VERBS: dict[str, tuple[tuple[object, ...], tuple[str, ...], tuple[str, ...]]] = {
    "attach": (("attach", PORT), BPF, TAKE),
    "detach": (("detach", PORT), (), SEE),
    "map add": (("map", "add", PORT), (), SEE),
    "map remove": (("map", "remove", PORT, "--generation", 1, "--slot", 0), (), ()),
    "map switch": (("map", "switch", PORT, 1), (), ()),
    "map list": (("map", "list"), (), ()),
    "status": (("status", PORT), (), ()),
    "reload": (("reload", PORT, *NEW), BPF, ()),
    "reload sysctl": (("reload", PORT, "--strategy", "sysctl", *NEW), (*BPF, "net_admin"), ()),
    "reload --new-pid": (("reload", PORT, "--new-pid", "{new}", "--old-pid", "{old}"), BPF, (*TAKE, "kill")),
    "migrate-req": (("migrate-req", "on"), ("net_admin",), ()),
    "sockets": (("sockets", "--pid", "{old}"), BPF, ()),
    "destroy": (("destroy", "--endpoint", PORT, "--state", "established", "--yes"), BPF, ()),
    "check": (
        ("check", "hot-reload", "--strategy", "bpf-migrate", "--connections", 1),
        ("sys_admin", "net_admin", "net_raw"),
        (),
    ),
    "bench select": (("bench", "select", "--rounds", 2, "--connections", 8), ("sys_admin", "net_admin"), ()),
    "bench udp": (
        ("bench", "udp", "--rounds", 2, "--datagrams", 20, "--flows", 1),
        ("sys_admin", "net_admin", "net_raw"),
        (),
    ),
    "bench sockets": (
        ("bench", "sockets", "--sockets", 20, "--rounds", 2, "--protocol", "tcp"),
        ("sys_admin", "net_admin"),
        (),
    ),
}
FOREIGN_VERBS = [name for name, (_, _, more) in VERBS.items() if more]
ATTACHED = ("detach", "map add", "map remove", "map switch", "map list")


class Capable(Tool):
    """The command line with some capabilities and no other right."""

    def __init__(self, bpffs: Path, held: tuple[str, ...]) -> None:
        super().__init__(bpffs)
        self._held = ",".join(("-all", *(f"+{name}" for name in held)))

    def command(self, *arguments: object, as_json: bool = True) -> list[str]:
        sets = [f"--{kind}={self._held}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
        return [*as_user(USER), *sets, *READABLE.command(super().command(*arguments, as_json=as_json))]


def as_user(uid: int) -> list[str]:
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]


@pytest.fixture
def pins(root: None) -> Iterator[Path]:
    """A bpffs of the tool's user, at a place that every user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    mount = folder / "bpffs"
    mount.mkdir()
    libc.mount("bpf", str(mount), "bpf")
    os.chown(mount, USER, USER)
    mount.chmod(0o700)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        shutil.rmtree(folder)


@pytest.fixture
def start(in_netns: None, spawn: Spawn) -> Callable[[int, str], subprocess.Popen[str]]:
    def started(uid: int, name: str) -> subprocess.Popen[str]:
        process = spawn(*as_user(uid), *READABLE.command([*SERVER, PORT, name]), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return started


Start = Callable[[int, str], subprocess.Popen[str]]


def words(name: str, start: Start, uid: int, pins: Path) -> list[str]:
    """The arguments of a verb, and everything that it presupposes."""
    old = start(uid, "one").pid
    if name in ATTACHED:
        Tool(pins).ok("attach", PORT)
        # What root has pinned is the user's, too.
        for path in (pins, *pins.rglob("*")):
            if not path.name.endswith(".debug"):
                os.chown(path, USER, USER)
    new = start(uid, "two").pid if name in ("map add", "reload --new-pid") else 0
    return [str(word).format(old=old, new=new) for word in VERBS[name][0]]


@pytest.mark.parametrize("name", VERBS)
def test_a_server_of_the_same_user(name: str, pins: Path, start: Start, end_owners: None) -> None:
    arguments, needed = words(name, start, USER, pins), VERBS[name][1]
    for missing in needed:
        held = {*needed, *(BPF if missing == "sys_admin" else ())} - {missing}  # which CAP_SYS_ADMIN includes
        error = Capable(pins, tuple(held)).fails(3, *arguments)
        assert error["hint"] == f"run as root, or grant CAP_{missing.upper()}"
    Capable(pins, needed).ok(*arguments)


@pytest.mark.parametrize("name", FOREIGN_VERBS)
def test_a_server_of_another_user(name: str, pins: Path, start: Start, end_owners: None) -> None:
    arguments, needed = words(name, start, STRANGER, pins), (*VERBS[name][1], *VERBS[name][2])
    for missing in VERBS[name][2]:
        error = Capable(pins, tuple({*needed} - {missing})).fails(3, *arguments)
        assert f"CAP_{missing.upper()}" in error["hint"]
        assert ask() in ("one", "two")
    Capable(pins, needed).ok(*arguments)


def test_autolowat(pins: Path, in_netns: None) -> None:
    """It also works where BCC cannot read the kernel's symbols, and so takes an older helper than it was told to."""
    needed = (*BPF, "net_admin")
    with cgroup.throw_away() as folder:
        attach = ("autolowat", "attach", "--cgroup", folder, "--framing", "rpc", "--ports", "80")
        for missing in needed:
            error = Capable(pins, tuple({*needed} - {missing})).fails(3, *attach)
            assert error["hint"] == f"run as root, or grant CAP_{missing.upper()}"
        Capable(pins, needed).ok(*attach)
        for verb in (("autolowat", "status"), ("autolowat", "detach", "--cgroup", folder)):
            Capable(pins, ()).fails(3, *verb)
            Capable(pins, BPF).ok(*verb)


def test_metrics_needs_none(pins: Path, in_netns: None) -> None:
    done = Capable(pins, ()).run("metrics")
    assert done.code == 0, done.err


def test_it_works_without_roots_rights(pins: Path, start: Start, clients: Clients, end_owners: None) -> None:
    """Queued connections move, and the new server gets none of the tool's capabilities."""
    old = start(USER, "one")
    clients.connect(3)
    assert clients.answers() == {"one": 3}
    report = Capable(pins, BPF).ok("reload", PORT, *NEW)
    assert old.wait(20) is not None
    assert ask() == "new"
    sets = Path(f"/proc/{report['new']['pids'][0]}/status").read_text()
    held = {line.split()[0]: int(line.split()[1], 16) for line in sets.splitlines() if line.startswith("Cap")}
    assert held["CapAmb:"] == 0
    assert held["CapEff:"] == 0


def test_pins_that_an_ended_server_left_are_cleaned_with_none(pins: Path, start: Start) -> None:
    server = start(USER, "one")
    Capable(pins, BPF).ok("attach", PORT)
    server.kill()
    server.wait()
    assert Capable(pins, ()).ok("detach", PORT)["detached"][0]["result"] == "cleaned"


def test_status_shows_less(pins: Path, start: Start) -> None:
    start(STRANGER, "one")
    listener = Capable(pins, ()).ok("status", PORT)["groups"][0]["listeners"][0]
    assert (listener["pid"], listener["half_open"], listener["uid"]) == (None, None, STRANGER)


def test_pins_are_for_their_owner_only(pins: Path, start: Start) -> None:
    start(USER, "one")
    before = os.umask(0)
    try:
        Tool(pins).ok("attach", PORT)
    finally:
        os.umask(before)
    made = [path for path in pins.rglob("*") if not path.name.endswith(".debug")]
    assert len(made) > 8
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


INTRUDER = """
import errno, socket, sys
from reuseport_tool.kernel import bpf
from reuseport_tool.kernel.sockarray import SockArray

def refused(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def join():
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", int(sys.argv[1])))
    sock.listen()

print(refused(join), refused(lambda: bpf.Map.open(sys.argv[2])), refused(lambda: bpf.Map.open(sys.argv[3])))
"""


def test_a_stranger_cannot_get_in(pins: Path, start: Start) -> None:
    """Neither join the group, nor open its maps, nor be put there by the verbs."""
    start(USER, "one")
    Tool(pins).ok("attach", PORT)
    state = next(pins.rglob("generation_1")).parent
    stranger = [*as_user(STRANGER), "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    intruder = [sys.executable, "-c", INTRUDER, PORT, state / "generation_1", state / "members"]
    program = [*stranger, *READABLE.command(intruder)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["EADDRINUSE", "EACCES", "EACCES"], done.stderr
    verbs = ("map", "add", PORT), ("map", "switch", PORT, 1), ("map", "list"), ("attach", PORT), ("detach", PORT)
    for verb in (*verbs, ("status",), ("status", PORT), ("reload", PORT, *NEW), ("reload", PORT, "--abort")):
        command = [*stranger, *READABLE.command(Tool(pins).command(*verb))]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (shown.returncode, "Traceback" in shown.stderr) == (3, False), (verb, shown)
    assert ask() == "one"
