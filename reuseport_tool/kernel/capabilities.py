"""The effective capabilities of the calling thread."""

from __future__ import annotations

from collections.abc import Iterable

# include/uapi/linux/capability.h
_NUMBERS = {"CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
# CAP_SYS_ADMIN includes these two, and before Linux 5.8 it alone stood for them.
_IN_SYS_ADMIN = ("CAP_BPF", "CAP_PERFMON")


def effective(text: str | None = None) -> frozenset[str]:
    """Those of the capabilities that the tool uses which the thread has, by name.

    Args:
        text: contents of a /proc/PID/status file, by default the thread's own.
    """
    if text is None:
        with open("/proc/thread-self/status") as file:
            text = file.read()
    mask = next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:"))
    held = {name for name, number in _NUMBERS.items() if mask >> number & 1}
    return frozenset(held.union(_IN_SYS_ADMIN) if "CAP_SYS_ADMIN" in held else held)


def missing(wanted: Iterable[str]) -> list[str]:
    """Those of the wanted ones that the thread does not have, in their order."""
    held = effective()
    return [name for name in wanted if name not in held]
