"""The cgroup v2 file system."""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.errors import Unsupported


def root() -> Path:
    """Where it is mounted, which on a hybrid host is not /sys/fs/cgroup. Raises Unsupported."""
    with open("/proc/mounts") as file:
        mounts = [line.split() for line in file]
    found = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if found is None:
        raise Unsupported("no cgroup2 file system is mounted")
    return Path(found)


def service(pid: int) -> str | None:
    """The cgroup of the systemd service that a process is in, None when it is in none.

    The path up to the last part that ends in `.service`; the services of a user's manager are below user@UID.service,
    which is a service of many.
    """
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return None
    path = next((fields[2] for fields in lines if not fields[1] or fields[1] == "name=systemd"), "")
    parts = path.split("/")
    for end in range(len(parts), 0, -1):
        name = parts[end - 1]
        if name.endswith(".service") and not name.startswith("user@"):
            return "/".join(parts[:end])
    return None
