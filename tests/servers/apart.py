"""A module of measurements that starts itself again in namespaces and a bpffs of its own."""

from __future__ import annotations

import os
import sys

_MARK = "TESTS_RUN_APART"


def is_apart() -> bool:
    """Whether this process is the one that go_apart() has become."""
    return os.environ.get(_MARK) == "1"


def go_apart(module: str) -> None:
    """Become `python -m MODULE` with the same arguments, in new namespaces of mounts, network and processes."""
    inside = 'ip link set lo up; mount -t bpf -o mode=0700 bpf /sys/fs/bpf; exec "$@"'
    command = ["unshare", "-mnpf", "--mount-proc", "--kill-child", "sh", "-c", inside, "sh"]
    os.execvpe("unshare", [*command, sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, _MARK: "1"})
