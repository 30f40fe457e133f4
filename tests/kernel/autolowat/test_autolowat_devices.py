"""The engine solo at network devices: which ones, beside whose programs, and what a killed run leaves."""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.autolowat import attachment
from reuseport_tool.check import framing_lab
from reuseport_tool.check.framing_lab import rpc_frame
from reuseport_tool.errors import Conflict, NotFound, Unsupported
from reuseport_tool.kernel import bpf, cgroup, libc, netns, tc
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, load
from reuseport_tool.models import Engine
from reuseport_tool.waiting import wait_until
from tests.tool import Tool

pytestmark = pytest.mark.needs("AutoLOWAT solo")

PORT = 9000
FRAME = rpc_frame(100, 150)
LO = tc.Device(index=1, name="lo", has_header=True)


@pytest.fixture
def group(in_netns: None) -> Iterator[Path]:
    """A cgroup that the test is in."""
    with cgroup.throw_away() as folder:
        yield folder


@pytest.fixture(params=["as the kernel can", "clsact"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By tcx where the kernel has it; and as on one that has not."""
    if request.param == "clsact":
        monkeypatch.setattr(tc, "attach_tcx", _no_tcx)
    return str(request.param)


def _no_tcx(*_: object) -> bpf.Handle:
    raise Unsupported("the kernel has no tcx")


@pytest.fixture
def root_folder(tool: Tool) -> Path:
    assert tool.bpffs is not None
    return tool.bpffs


def attach(group: Path, root: Path) -> str:
    return attachment.attach(group, "rpc", [PORT], Engine.SOLO, root).result


def follows() -> bool:
    """Whether a new connection is followed."""
    with framing_lab.pair(port=PORT) as pair:
        pair.send(FRAME[:100])
        return pair.lowat() == len(FRAME)


def qdiscs(device: str = "lo") -> list[str]:
    return tc_says("qdisc", "show", "dev", device)


def filters(device: str = "lo") -> list[str]:
    return [line for line in tc_says("filter", "show", "dev", device, "ingress") if "handle" in line]


def tc_says(*words: str) -> list[str]:
    return subprocess.run(["tc", *words], capture_output=True, text=True, check=True).stdout.splitlines()


def test_attach_and_detach_leave_the_device_as_it_was(group: Path, root_folder: Path, way: str) -> None:
    before = qdiscs(), filters()
    assert attach(group, root_folder) == "attached"
    assert attach(group, root_folder) == "unchanged"
    assert follows()
    (status,) = attachment.status(root_folder).attachments
    assert status.devices == ("lo",)
    attachment.detach(group, root_folder)
    assert (qdiscs(), filters()) == before
    assert not follows()


def test_programs_of_others_stay_and_see_every_packet(group: Path, root_folder: Path, way: str) -> None:
    with ExitStack() as stack:
        theirs = [stack.enter_context(_counter(stack)) for _ in range(2)]
        for number, program in enumerate(theirs):
            tc.IngressFilter(program, LO, f"theirs {number}")
        others = filters()
        attach(group, root_folder)
        with bpf.enable_stats():
            counts = [program.info().run_count for program in theirs]
            assert follows()
            # The later one comes first, and ends the walk.
            seen = [program.info().run_count > count for program, count in zip(theirs, counts, strict=True)]
            assert seen == [False, True]
        attachment.detach(group, root_folder)
        assert filters() == others
        assert "clsact" in " ".join(qdiscs())
    tc.remove_filters("theirs 0", [])
    tc.remove_filters("theirs 1", [1])


def test_a_qdisc_that_others_made_stays(group: Path, root_folder: Path, way: str) -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "clsact"], check=True)
    before = qdiscs()
    attach(group, root_folder)
    attachment.detach(group, root_folder)
    assert qdiscs() == before


def test_a_qdisc_that_others_use_by_now_stays(group: Path, root_folder: Path, way: str) -> None:
    attach(group, root_folder)
    with ExitStack() as stack:
        tc.IngressFilter(_counter(stack), LO, "theirs")
        attachment.detach(group, root_folder)
        assert ["theirs" in line for line in filters()] == [True]


def _counter(stack: ExitStack) -> bpf.Program:
    """A tc program that lets everything pass, and ends the walk."""
    source = Source(path=Path(__file__).with_name("tc_pass.c"), is_ours=False)
    return stack.enter_context(load(source, "tc_pass", ProgramType.SCHED_CLS, AttachType.NONE))


def link(*words: str) -> None:
    subprocess.run(["ip", "link", *words], check=True, capture_output=True, text=True)


def test_only_the_topmost_devices_get_it(group: Path, root_folder: Path, way: str) -> None:
    link("add", "one", "type", "veth", "peer", "name", "two")
    link("add", "under", "type", "veth", "peer", "name", "far")
    link("add", "bridge", "type", "bridge")
    link("set", "under", "master", "bridge")
    attach(group, root_folder)
    (status,) = attachment.status(root_folder).attachments
    assert sorted(status.devices) == ["bridge", "far", "lo", "one", "two"]
    # One that comes later, and one in the place of another.
    link("del", "one")
    link("add", "three", "type", "veth", "peer", "name", "four")
    assert attach(group, root_folder) == "extended"
    (status,) = attachment.status(root_folder).attachments
    assert sorted(status.devices) == ["bridge", "far", "four", "lo", "three"]
    attachment.detach(group, root_folder)
    assert filters("bridge") == []


@pytest.fixture
def far(in_netns: None) -> Iterator[str]:
    """The path of another network namespace that no process is in."""
    with netns.throw_away():
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield f"/proc/{os.getpid()}/fd/{fd}"
    os.close(fd)


# Devices above a veth, by the words of `ip link`; {port} is the device below. The last one gets the address.
ABOVE = {
    "bridge": [["add", "top", "type", "bridge"], ["set", "{port}", "master", "top"]],
    "bond": [["add", "top", "type", "bond", "mode", "active-backup"], ["set", "{port}", "down", "master", "top"]],
    "VLAN": [["add", "link", "{port}", "name", "top", "type", "vlan", "id", "5"]],
    "macvlan": [["add", "link", "{port}", "name", "top", "type", "macvlan", "mode", "bridge"]],
    "ipvlan": [["add", "link", "{port}", "name", "top", "type", "ipvlan", "mode", "l2"]],
    "VLAN over bond": [
        ["add", "middle", "type", "bond", "mode", "active-backup"],
        ["set", "{port}", "down", "master", "middle"],
        ["set", "middle", "up"],
        ["add", "link", "middle", "name", "top", "type", "vlan", "id", "5"],
    ],
}


@pytest.mark.vm
@pytest.mark.parametrize("above", ABOVE.values(), ids=ABOVE)
def test_a_connection_over_stacked_devices(group: Path, root_folder: Path, far: str, above: list[list[str]]) -> None:
    """The peer is in another namespace, behind a veth; each segment is followed once, at the device that IP sees."""
    link("add", "below", "type", "veth", "peer", "name", "end", "netns", far)
    kinds = [words[words.index("type") + 1] for words in above if "type" in words]
    if not all(map(is_known, kinds)):
        return  # what this kernel was built without; those of Debian in the VMs have all of it
    with netns.visit(far):
        stack_devices("end", ABOVE["VLAN"] if "vlan" in kinds else [], "10.8.0.2/24")
    top = stack_devices("below", above, "10.8.0.1/24")
    attach(group, root_folder)
    with across(far) as (client, server):
        for number in range(3):
            client.sendall(FRAME[:100])
            assert wait_until(functools.partial(has_got, server, number * len(FRAME) + 100), 10)
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == len(FRAME)
            client.sendall(FRAME[100:])
            assert wait_until(lambda: bool(select.select([server], [], [], 0)[0]), 10)
            assert server.recv(1 << 16) == FRAME
    (status,) = attachment.status(root_folder).attachments
    assert top in status.devices
    assert ("below" in status.devices) == (not any("master" in words for words in above))
    assert (status.frames, status.wakeups_saved, sum(astuple(status.fail_opens))) == (3, 3, 0)
    attachment.detach(group, root_folder)
    assert filters(top) == []


def is_known(kind: str) -> bool:
    """Whether the kernel has such devices, by trying to make one."""
    done = subprocess.run(["ip", "link", "add", "x" * 15, "type", kind], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        link("del", "x" * 15)
    return "Unknown device type" not in done.stderr


def stack_devices(port: str, above: list[list[str]], address: str) -> str:
    """Make them above `port`, all of them up, and give the topmost the address. Returns its name."""
    for words in above:
        link(*(word.format(port=port) for word in words))
    names = [port] + [name for name in ("middle", "top") if any(name in words for words in above)]
    for name in names:
        link("set", name, "up")
    subprocess.run(["ip", "address", "add", address, "dev", names[-1]], check=True)
    return names[-1]


@contextmanager
def across(far: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from 10.8.0.2 in the namespace `far` to 10.8.0.1 here: the client's end, and the server's."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("10.8.0.1", PORT)))
        with netns.visit(far):
            client = stack.enter_context(socket.create_connection(("10.8.0.1", PORT), 10))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = stack.enter_context(listener.accept()[0])
        server.setblocking(False)
        waiting = stack.enter_context(select.epoll())
        waiting.register(server, select.EPOLLIN)
        yield client, server


def has_got(server: socket.socket, size: int) -> bool:
    return framing_lab.arrived(server).size >= size


def test_the_namespace_is_that_of_the_processes(group: Path, root_folder: Path, spawn: Callable[..., Any]) -> None:
    inner = group / "inner"
    inner.mkdir()
    process = spawn("sleep", "600", preexec_fn=lambda: _alone(inner))
    try:
        attach(inner, root_folder)
        with netns.visit(f"/proc/{process.pid}/ns/net"):
            there = netns.identity()
        (status,) = attachment.status(root_folder).attachments
        assert status.devices == ("lo",)
        assert not follows()  # here
        attachment.detach(inner, root_folder)
        assert there != netns.identity()
        # Both: ours, and that one.
        with pytest.raises(Conflict, match="2 network namespaces"):
            attach(group, root_folder)
    finally:
        process.kill()
        process.wait()
        inner.rmdir()


def _alone(folder: Path) -> None:
    (folder / "cgroup.procs").write_text("0")
    libc.unshare(netns.CLONE_NEWNET)


# What changes the world, in the order of an attach; a run is killed before and after each.
STEPS = ["Place.make", "bpffs.pin", "kernel.attach", "tc._add_qdisc", "tc._add_filter", "Place.rename", "set_working"]
KILLED = """
import os, signal, sys
from pathlib import Path
from reuseport_tool.autolowat import attachment
from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import autolowat, bpffs, folders, tc
from reuseport_tool.models import Engine
from reuseport_tool.waiting import wait_until

verb, group, root, step, when, clsact = sys.argv[1:]
homes = {"Place": folders.Place, "bpffs": bpffs, "kernel": autolowat, "tc": tc, "set_working": autolowat.EngineMaps}
home, name = homes[step.split(".")[0]], step.split(".")[-1]
real = getattr(home, name)
calls = 0

def killed(*arguments, **named):
    global calls
    calls += 1
    last = calls == int(when) // 2 + 1
    if last and int(when) % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **named)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

def no_tcx(*_):
    raise Unsupported("the kernel has no tcx")

setattr(home, name, killed)
if clsact == "1":
    tc.attach_tcx = no_tcx
if verb == "attach":
    attachment.attach(Path(group), "rpc", [9000], Engine.SOLO, Path(root))
else:
    attachment.detach(Path(group), Path(root))
"""


def killed(verb: str, group: Path, root: Path, step: str, when: int, way: str) -> bool:
    """Run it until it is killed before (even) or after (odd) a call of the step. False: it came to its end."""
    arguments = [verb, group, root, step, when, int(way == "clsact")]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


@pytest.mark.parametrize("step", STEPS)
def test_an_attach_that_is_killed_is_mended_by_the_next(group: Path, root_folder: Path, way: str, step: str) -> None:
    """At every call of what changes the world: nothing works before the commit, and attach or detach clears it away."""
    before = qdiscs(), filters()
    for when in range(0, 30, 5):
        was_killed = killed("attach", group, root_folder, step, when, way)
        if when % 2:
            attach(group, root_folder)
            assert follows()
            attachment.detach(group, root_folder)
        else:
            try:
                attachment.detach(group, root_folder)
            except NotFound:
                assert was_killed
        assert (qdiscs(), filters()) == before, (step, when)
        assert not (root_folder / "reuseport-tool").exists()
        if not was_killed:
            return


@pytest.mark.parametrize("step", ["Place.rename", "Place.remove", "tc.remove_filters", "set_working"])
def test_a_detach_that_is_killed_is_mended_by_the_next(group: Path, root_folder: Path, way: str, step: str) -> None:
    before = qdiscs(), filters()
    for when in range(6):
        attach(group, root_folder)
        was_killed = killed("detach", group, root_folder, step, when, way)
        with suppress(NotFound):
            attachment.detach(group, root_folder)
        assert (qdiscs(), filters()) == before, (step, when)
        assert not follows()
        if not was_killed:
            return
