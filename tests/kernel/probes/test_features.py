"""The probes on this kernel; and each one made to fail, so that its yes means something."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.check import doctor
from reuseport_tool.errors import NotFound, ToolError, Unsupported
from reuseport_tool.kernel import bpf, bpffs, btf, libc, links, loopback, netns, pidfd, program, sockets, sysctl
from reuseport_tool.kernel.bytecode import Verdict
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.probes import features, migration, misc, programs, tcp
from tests.kernel.needs import answer, expected_here, require
from tests.tool import TIMEOUT_S

PYTHON = sys.executable
# epoll_wait and epoll_pwait on x86-64, epoll_pwait where there is the generic table of system calls.
EPOLL_WAIT = ("232", "281", "22")
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]


pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A probe leaves the namespace, the statistics, the pins and the descriptors as they were."""
    before = left_behind()
    yield
    assert left_behind() == before


def left_behind() -> tuple[object, ...]:
    names = [entry.name for entry in bpffs.find_or_mount(None).iterdir()]
    pins = [name for name in names if name.startswith("reuseport-tool-probe")]
    return netns.identity(), pins, descriptors()


def descriptors() -> list[str]:
    """What the process has open, without the programs and type information that BCC keeps until the end."""
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            kinds.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(kind for kind in kinds if kind not in ("anon_inode:bpf-prog", "anon_inode:btf"))


@pytest.mark.vm
def test_every_feature_that_this_kernel_is_new_enough_for_is_there() -> None:
    found = features.probe_all()
    assert [feature for feature in found if expected_here(feature) and not feature.available] == []
    assert all(feature.detail and "\n" not in feature.detail for feature in found)


def test_the_detail_of_a_no_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "bpf_dir", lambda: Path("/nonexistent"))
    feature = answer("BCC")
    assert feature.available is False
    assert "\n" not in feature.detail


# Each row: a feature, and how to take away from the kernel what it stands on.
Break = Callable[[pytest.MonkeyPatch], None]


def _cookie_is_wrong(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SockArray, "get", lambda *_: 1)


def _map_type_is_missing(patch: pytest.MonkeyPatch) -> None:
    create = bpf.Map.create

    def unknown(kind: int, name: str, **shape: Any) -> bpf.Map:
        return create(9999 if kind == bpf.MapType.ARRAY_OF_MAPS else kind, name, **shape)

    patch.setattr(bpf.Map, "create", unknown)


def _one_size_only(patch: pytest.MonkeyPatch) -> None:
    update = bpf.Map.update

    def refuses(self: bpf.Map, key: int, value: bytes, flags: int = 0) -> None:
        if self.type == bpf.MapType.ARRAY_OF_MAPS:
            raise OSError(22, "Invalid argument")
        update(self, key, value, flags)

    patch.setattr(bpf.Map, "update", refuses)


def _program_passes(patch: pytest.MonkeyPatch) -> None:
    load = programs.bytecode.load
    patch.setattr(programs.bytecode, "load", lambda _verdict, attach_type=0: load(Verdict.PASS, attach_type))


def _detaching_does_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sockets, "detach_program", lambda _fd: None)


def _detaching_is_unknown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sockets, "SO_DETACH_REUSEPORT_BPF", 9999)


def _attach_type_is_ignored(patch: pytest.MonkeyPatch) -> None:
    load = programs.bytecode.load
    patch.setattr(programs.bytecode, "load", lambda verdict, _attach_type=0: load(verdict))


def _sysctl_moves_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sysctl, "write", lambda *_: None)


def _sysctl_is_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sysctl, "TCP_MIGRATE_REQ", "net.ipv4.tcp_no_such_thing")


def _descriptor_is_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pidfd, "take_fd", lambda *_: os.open("/dev/null", os.O_RDONLY))


def _call_is_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(libc, "_PIDFD_GETFD", 9999)


def _function_is_missing(patch: pytest.MonkeyPatch) -> None:
    function = btf.function
    patch.setattr(btf, "function", lambda name: function(name + "_no_such"))


def _structure_is_missing(patch: pytest.MonkeyPatch) -> None:
    offset = btf.offset
    patch.setattr(btf, "offset", lambda struct, field: offset(struct + "_no_such", field))


def _links_do_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bpf, "attach_cgroup", lambda *_: bpf.Handle(-1))


def _device_is_not_made(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(links, "veth", lambda *_: None)


def _the_program_does_not_run(patch: pytest.MonkeyPatch) -> None:
    """That statistics are off cannot be had for sure: any process may have switched them on for the machine."""
    patch.setattr(sockets, "attach_program", lambda _fd, _program: None)


def _syn_data_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tcp, "_FASTOPEN_WITHOUT_COOKIES", 0x1 | 0x4)  # the client's half only


@pytest.mark.parametrize(
    ("name", "take_away"),
    [
        ("sockarray with cookies", _cookie_is_wrong),
        ("array of sockarrays", _map_type_is_missing),
        ("sockarrays of any size", _one_size_only),
        ("attach to a group", _program_passes),
        ("detach from a group", _detaching_does_nothing),
        ("detach from a group", _detaching_is_unknown),
        ("SELECT_OR_MIGRATE", _attach_type_is_ignored),
        ("migration by sysctl", _sysctl_moves_nothing),
        ("migration by sysctl", _sysctl_is_missing),
        ("migration by program", _attach_type_is_ignored),
        ("pidfd_getfd", _descriptor_is_another),
        ("pidfd_getfd", _call_is_missing),
        ("BTF", _structure_is_missing),
        ("TCP iterator", _structure_is_missing),
        ("bpf_sock_destroy", _function_is_missing),
        ("AutoLOWAT solo", _structure_is_missing),
        ("AutoLOWAT solo", _links_do_nothing),
        ("veth", _device_is_not_made),
        ("BPF statistics", _the_program_does_not_run),
        ("TCP Fast Open server", _syn_data_is_ignored),
    ],
)
def test_the_answer_is_no_without_what_it_stands_on(
    monkeypatch: pytest.MonkeyPatch, name: str, take_away: Break
) -> None:
    require(name)
    take_away(monkeypatch)
    assert answer(name).available is False


@pytest.mark.vm
def test_nothing_moves_without_sysctl_or_program() -> None:
    assert not migration.moved_by_sysctl(enabled=False).accepted
    assert not migration.moved_by_program(program.AttachType.SK_REUSEPORT_SELECT).accepted


@pytest.mark.vm
def test_the_wake_up_is_seen_by_epoll_as_by_a_sleeping_thread() -> None:
    """The probe polls after the fact; here a thread really sleeps in epoll_wait(2), and must agree."""
    require("migration by sysctl")
    with netns.throw_away():
        sysctl.write(sysctl.TCP_MIGRATE_REQ, "1")
        old = loopback.listener(8080)
        with old, loopback.connect(8080):
            loopback.wait_queued(old)
            with loopback.listener(8080) as new, sleeper(new) as woken:
                old.close()
                assert woken.wait(1.0) is bool(migration.migration_wakes())
                new.accept()[0].close()


@contextmanager
def sleeper(listener: socket.socket) -> Iterator[threading.Event]:
    """A thread asleep in epoll_wait on a listener; the event is set when that wakes it."""
    woken = threading.Event()
    with select.epoll() as epoll:
        epoll.register(listener, select.EPOLLIN)

        def sleep() -> None:
            if epoll.poll(2.0):
                woken.set()

        thread = threading.Thread(target=sleep)
        thread.start()
        wait_asleep(thread)
        yield woken
        thread.join()


def wait_asleep(thread: threading.Thread) -> None:
    deadline = time.monotonic() + 1.0
    while Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0] not in EPOLL_WAIT:
        assert time.monotonic() < deadline, "the thread did not go to sleep"
        time.sleep(0.001)


def test_a_listener_that_nobody_announced_counts_as_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-46015 as the probe would see it: the connection is there, and the ready list is empty."""
    require("migration by sysctl")

    class Deaf:
        def __enter__(self) -> Deaf:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def register(self, *_: object) -> None:
            pass

        def poll(self, _timeout: float) -> list[tuple[int, int]]:
            return []

    monkeypatch.setattr(loopback.select, "epoll", Deaf)
    migration._moved.cache_clear()
    try:
        assert migration.migration_works() is True
        assert migration.migration_wakes() is False
        assert answer(migration.MIGRATION_WAKES).available is False
        assert "CVE-2026-46015" in answer(migration.MIGRATION_WAKES).detail
    finally:
        migration._moved.cache_clear()


@pytest.mark.vm
def test_wakes_could_not_be_told_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    _sysctl_moves_nothing(monkeypatch)
    assert answer(migration.MIGRATION_WAKES).available is None


def test_asking_is_cheap_enough_for_every_reload() -> None:
    """A reload starts a server: to ask costs no more than to start a few of the smallest Python programs.

    What either costs is the least of five: a busy machine can only add to it.
    """
    starting_s = min(timeit.repeat(lambda: subprocess.run([sys.executable, "-c", ""], check=True), number=1, repeat=5))
    assert min(_asking_s() for _ in range(5)) < 3 * starting_s


def _asking_s() -> float:
    migration._moved.cache_clear()
    start = time.perf_counter()
    migration.migration_works()
    migration.migration_wakes()
    return time.perf_counter() - start


@pytest.mark.vm
def test_bpffs_is_mountable_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(_folder: object) -> Path:
        raise NotFound("no bpffs is mounted")

    monkeypatch.setattr(bpffs, "find", nowhere)
    assert answer(misc.BPFFS).available is True
    monkeypatch.setattr(libc, "mount", refused)
    assert answer(misc.BPFFS).available is None


def refused(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_bpffs_that_was_named_must_be_one(tmp_path: Path) -> None:
    found = {feature.name: feature for feature in features.probe_all(tmp_path)}
    assert found["bpffs"].available is False
    assert str(tmp_path) in found["bpffs"].detail


@pytest.mark.vm
def test_doctor_proves_the_tool_s_own_program() -> None:
    require(migration.MIGRATION_BY_PROGRAM)
    report = doctor.doctor(None)
    ours = report.features[-1]
    assert ours.name == "the tool's program"
    assert ours.available is True
    assert report.ok is bool(migration.migration_wakes())


def test_doctor_notices_when_its_program_does_not_migrate(monkeypatch: pytest.MonkeyPatch) -> None:
    load = program.Module.load

    def select_only(
        self: program.Module, function: str, kind: program.ProgramType, attach_type: program.AttachType, *rest: Any
    ) -> bpf.Program:
        if attach_type is program.AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE:
            raise Unsupported("an old kernel")
        return load(self, function, kind, attach_type, *rest)

    monkeypatch.setattr(program.Module, "load", select_only)
    monkeypatch.setattr(programs, "loads_migrating_program", lambda: False)
    with pytest.raises(Unsupported, match="selected 1 of 1 connections, migrated 0"):
        doctor._our_program()


def test_a_lost_connection_is_could_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_sock: socket.socket) -> None:
        raise ToolError("a connection over loopback did not arrive")

    monkeypatch.setattr(loopback, "wait_queued", lost)
    assert answer("migration by sysctl").available is None


def test_without_any_rights() -> None:
    """No traceback; what takes a capability is unknown and names it; nothing is claimed absent."""
    done = subprocess.run(
        [*UNPRIVILEGED, PYTHON, "-m", "reuseport_tool", "--json", "doctor"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    report = json.loads(done.stdout)
    found = {feature["name"]: feature for feature in report["features"]}
    readable = {"BCC", "BTF", "bpf_sock_destroy", "pidfd_getfd", "cgroup v2"}  # take no capability
    for name in found.keys() - readable:
        assert found[name]["available"] is None, found[name]
        assert "CAP_" in found[name]["detail"]
    assert found["BCC"]["available"] is True
    assert [capability["name"] for capability in report["capabilities"] if capability["held"]] == []


def test_with_some_rights_the_rest_is_named() -> None:
    keep = ["--bounding-set=-all,+bpf,+net_admin", "--inh-caps=-all"]
    done = subprocess.run(
        ["setpriv", *keep, PYTHON, "-m", "reuseport_tool", "--json", "doctor"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    report = json.loads(done.stdout)
    found = {feature["name"]: feature for feature in report["features"]}
    assert done.returncode == 3
    assert found["sk_reuseport program"]["available"] is True
    assert found["veth"]["detail"] == "not permitted: CAP_SYS_ADMIN missing"
