"""What a service tells its manager: sd_notify(3), datagrams to the socket $NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket

_FULL_S = 1.0
"""How long a manager may leave its queue full: it would be better told than waited for."""


def notify(*assignments: str) -> None:
    """Send READY=1, STATUS=…, STOPPING=1, WATCHDOG=1. Without a manager that listens nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(_FULL_S)
        manager.sendto("\n".join(assignments).encode(), name)


def watchdog_s() -> float | None:
    """How often to send WATCHDOG=1, None for never: twice in $WATCHDOG_USEC, as sd_watchdog_enabled(3) advises."""
    period, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(period) / 2e6 if period.isdigit() and pid == str(os.getpid()) else None
