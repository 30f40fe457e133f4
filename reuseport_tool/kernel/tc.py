"""Programs at the ingress of network devices: by tcx where the kernel has it (Linux 6.6), else by filters of clsact."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.kernel import bpf, capabilities, rtnetlink
from reuseport_tool.record import record

_ETHERNET, _LOOPBACK = 1, 772  # ARPHRD_ETHER, ARPHRD_LOOPBACK (include/uapi/linux/if_arp.h)
# A device with such a master hands over its packets before IP sees them. Those of a VRF go on to IP.
_STAYS_WITH_MASTER = ("vrf",)
_CLSACT_INGRESS, _INGRESS = 0xFFFFFFF2, 0xFFFF0000  # parents: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), ffff:
_FIRST = 1  # the preference of our filter: others that end the walk come later


@record
class Device:
    """A network device. `has_header`: its packets begin with an Ethernet header."""

    index: int
    name: str
    has_header: bool


def topmost_devices() -> list[Device]:
    """The devices of the calling thread's namespace from which IP gets packets.

    Ports of bonds, bridges and the like are left out: their packets are seen again at the device above.
    """
    with rtnetlink.opened() as route:
        links = list(route.get_links())
    kinds = {link["index"]: _kind(link) for link in links}
    return [
        Device(index=link["index"], name=link.get_attr("IFLA_IFNAME"), has_header=_has_header(link))
        for link in links
        if kinds.get(link.get_attr("IFLA_MASTER"), _STAYS_WITH_MASTER[0]) in _STAYS_WITH_MASTER
    ]


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return (info and info.get_attr("IFLA_INFO_KIND")) or ""


def _has_header(link: Any) -> bool:
    return link["ifi_type"] in (_ETHERNET, _LOOPBACK)


def attach_tcx(program: bpf.Program, device: Device) -> bpf.Handle:
    """Attach before the programs that are there. Raises Unsupported where there is no tcx, ToolError."""
    try:
        return bpf.attach_tcx(program, device.index)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Unsupported("the kernel has no tcx", hint="it came with Linux 6.6") from error
        raise bpf.translate(error, f"attaching a program to {device.name}") from error


class IngressFilter(Closing):
    """A program as a filter of a device's ingress; it stays until remove_filters(), or close() here.

    Args:
        label: what remove_filters() finds it by.

    Raises:
        Unsupported: the kernel has no clsact, or no bpf filters.
    """

    def __init__(self, program: bpf.Program, device: Device, label: str) -> None:
        self._device, self._label = device, label
        self.made_qdisc = False
        with rtnetlink.opened() as route, _translated(device):
            parent = _parent(route, device.index)
            if parent is None:
                parent = _CLSACT_INGRESS
                self.made_qdisc = _add_qdisc(route, device.index)
            _add_filter(route, device.index, program, parent, label)

    def close(self) -> None:
        remove_filters(self._label, [self._device.index] if self.made_qdisc else [])


def has_ingress(device: Device) -> bool:
    """Whether filters can be put at the device's ingress already."""
    with rtnetlink.opened() as route:
        return _parent(route, device.index) is not None


def remove_filters(label: str, qdiscs: list[int]) -> None:
    """Remove the filters with this label from all devices of the calling thread's namespace.

    Also clsact from the devices `qdiscs`, where nobody else has filters there.
    """
    with rtnetlink.opened() as route:
        for link in route.get_links():
            index = link["index"]
            parent = _parent(route, index)
            if parent is None:
                continue
            for message in _filters(route, index, parent):
                if _label(message) == label:
                    with _gone_is_fine():
                        route.tc(
                            "del-filter",
                            index=index,
                            parent=parent,
                            handle=message["handle"],
                            info=message["info"],
                            kind="bpf",
                        )
            if index in qdiscs and not _in_use(route, index):
                with _gone_is_fine():
                    route.tc("del", "clsact", index=index)


def labels(device: Device) -> list[str]:
    """The labels of the bpf filters at a device's ingress."""
    with rtnetlink.opened() as route:
        parent = _parent(route, device.index)
        return [_label(message) for message in _filters(route, device.index, parent)] if parent else []


def _parent(route: Any, index: int) -> int | None:
    kinds = {message.get_attr("TCA_KIND") for message in route.get_qdiscs(index=index)}
    if "clsact" in kinds:
        return _CLSACT_INGRESS
    return _INGRESS if "ingress" in kinds else None


def _add_qdisc(route: Any, index: int) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        route.tc("add", "clsact", index=index)
    except NetlinkError as error:
        if error.code == errno.EEXIST:  # somebody was quicker
            return False
        raise
    return True


def _add_filter(route: Any, index: int, program: bpf.Program, parent: int, label: str) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    for preference in (_FIRST, 0):
        try:
            route.tc(
                "add-filter",
                "bpf",
                index=index,
                parent=parent,
                fd=program.fd,
                name=label,
                direct_action=True,
                prio=preference,
            )
            return
        except NetlinkError:
            # A filter of another kind has this preference: the kernel chooses one.
            if not preference:
                raise


def _filters(route: Any, index: int, parent: int) -> list[Any]:
    found = route.get_filters(index=index, parent=parent)
    return [message for message in found if message.get_attr("TCA_KIND") == "bpf" and message["handle"]]


def _label(message: Any) -> str:
    options = message.get_attr("TCA_OPTIONS")
    return (options and options.get_attr("TCA_BPF_NAME")) or ""


def _in_use(route: Any, index: int) -> bool:
    """Whether clsact has any filter at either side."""
    return any(list(route.get_filters(index=index, parent=parent)) for parent in (_CLSACT_INGRESS, 0xFFFFFFF3))


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """What is gone already is no error."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise ToolError(f"removing a filter failed: {error}") from error


@contextmanager
def _translated(device: Device) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise MissingCapability(
                f"adding a filter to {device.name} is not permitted", hint=capabilities.hint("CAP_NET_ADMIN")
            ) from error
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise Unsupported(
                f"the kernel cannot filter at the ingress of {device.name}",
                hint="it needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or tcx (Linux 6.6)",
            ) from error
        raise ToolError(f"adding a filter to {device.name} failed: {error}") from error
