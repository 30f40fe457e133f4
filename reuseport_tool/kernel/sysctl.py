"""sysctls of the calling thread's network namespace."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.kernel import capabilities

TCP_MIGRATE_REQ = "net.ipv4.tcp_migrate_req"


def _path(name: str) -> str:
    return os.path.join("/proc/sys", name.replace(".", "/"))


def _missing(name: str) -> Unsupported:
    if not os.path.isdir("/proc/sys"):
        return Unsupported("no /proc is mounted here", hint="mount -t proc proc /proc")
    return Unsupported(f"the kernel has no sysctl {name}", hint="'doctor' shows what this kernel has")


def read(name: str) -> str:
    """The value as text. Raises Unsupported when the kernel has no such sysctl."""
    try:
        with open(_path(name)) as file:
            return file.read().strip()
    except FileNotFoundError as error:
        raise _missing(name) from error


def write(name: str, value: str) -> None:
    """Raises Unsupported, MissingCapability."""
    try:
        with open(_path(name), "w") as file:
            file.write(value)
    except FileNotFoundError as error:
        raise _missing(name) from error
    except PermissionError as error:
        raise MissingCapability(
            f"writing the sysctl {name} is not permitted", hint=capabilities.hint("CAP_NET_ADMIN")
        ) from error
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        raise Unsupported(
            f"the sysctl {name} cannot be written: /proc/sys is read-only here",
            hint="run it on the host, or start the container with /proc/sys/net writable",
        ) from error


@contextlib.contextmanager
def changed(name: str, value: str) -> Iterator[None]:
    """The sysctl with another value, restored at the end."""
    before = read(name)
    write(name, value)
    try:
        yield
    finally:
        write(name, before)
