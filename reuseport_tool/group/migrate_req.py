"""The kernel's own switch for migration: net.ipv4.tcp_migrate_req of the network namespace."""

from __future__ import annotations

from reuseport_tool.kernel import netns, sysctl
from reuseport_tool.models import MigrateReq


def migrate_req(enable: bool | None) -> MigrateReq:
    """Read the switch, or set it.

    Raises:
        Unsupported: no such sysctl (Linux 5.14).
        MissingCapability: not permitted to write it.
    """
    before = sysctl.read(sysctl.TCP_MIGRATE_REQ) != "0"
    if enable is not None and enable != before:
        sysctl.write(sysctl.TCP_MIGRATE_REQ, str(int(enable)))
    now = before if enable is None else enable
    return MigrateReq(netns=f"net:[{netns.identity()}]", enabled=now, changed=now != before)
