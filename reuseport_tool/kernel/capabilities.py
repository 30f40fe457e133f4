"""The effective capabilities of the calling thread."""

from __future__ import annotations

from collections.abc import Iterable

from reuseport_tool.kernel import libc

# include/uapi/linux/capability.h
_NUMBERS = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
# CAP_SYS_ADMIN includes these two, and before Linux 5.8 it alone stood for them.
_IN_SYS_ADMIN = ("CAP_BPF", "CAP_PERFMON")


def effective(text: str | None = None) -> frozenset[str]:
    """Those of the capabilities that the tool uses which the thread has, by name.

    Args:
        text: contents of a /proc/PID/status file, by default the thread's own.
    """
    if text is None:
        with open("/proc/thread-self/status", errors="surrogateescape") as file:
            text = file.read()
    mask = next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:"))
    held = {name for name, number in _NUMBERS.items() if mask >> number & 1}
    return frozenset(held.union(_IN_SYS_ADMIN) if "CAP_SYS_ADMIN" in held else held)


def missing(wanted: Iterable[str]) -> list[str]:
    """Those of the wanted ones that the thread does not have, in their order."""
    held = effective()
    return [name for name in wanted if name not in held]


def hint(*wanted: str) -> str:
    """What to do about a refusal: the wanted ones that the thread does not have, or all, if it has them."""
    names = missing(wanted) or list(wanted)
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"run as root, or grant {listed}"


def lower_ambient() -> None:
    """Take the tool's capabilities out of the thread's ambient set, so that a program it executes gets none of them.

    Others, as CAP_NET_BIND_SERVICE, stay. Nothing changes for root, whose programs get all capabilities.
    """
    for number in _NUMBERS.values():
        libc.lower_ambient(number)
