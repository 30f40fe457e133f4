"""rtnetlink through pyroute2: devices, addresses, routes, neighbours and filters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reuseport_tool.kernel import rlimit

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_DESCRIPTORS = 4  # the netlink socket, and of pyroute2's event loop an epoll and both ends of a socket pair


@contextlib.contextmanager
def opened() -> Iterator[IPRoute]:
    """A netlink socket of the calling thread's network namespace.

    Raises OSError, also EMFILE where it has no room: asyncio closes a half-made event loop only when it is collected,
    and that fails on stderr.
    """
    from pyroute2 import IPRoute

    rlimit.require_room(_DESCRIPTORS)
    with IPRoute() as route:
        yield route
