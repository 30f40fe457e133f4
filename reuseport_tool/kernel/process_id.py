"""What bpf/process.h needs: where the kernel keeps the number of a process in a PID namespace."""

from __future__ import annotations

import os

from reuseport_tool.kernel import btf

_OFFSETS = {
    "OFF_GROUP_LEADER": "task_struct.group_leader",
    "OFF_THREAD_PID": "task_struct.thread_pid",
    "OFF_PID_LEVEL": "pid.level",
    "OFF_PID_NUMBERS": "pid.numbers",
    "OFF_UPID_NR": "upid.nr",
    "OFF_UPID_NS": "upid.ns",
    "OFF_PIDNS_INUM": "pid_namespace.ns.inum",
}


def defines() -> dict[str, int]:
    """What it is compiled with. Raises Unsupported without BTF."""
    return {**btf.offsets(_OFFSETS), "SIZE_UPID": btf.size("upid")}


def namespace() -> int:
    """The inode of the calling process's PID namespace."""
    return os.stat("/proc/self/ns/pid").st_ino
