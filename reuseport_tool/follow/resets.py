"""A follower counts the resets of its ports for as long as it runs, and shows them in the folders of its groups."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Conflict
from reuseport_tool.group import followed
from reuseport_tool.kernel import resets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.resets import ResetCounter
from reuseport_tool.models import Endpoint, Protocol


class ShownResets(Closing):
    """A context manager. Where the kernel does not let us count, nothing is shown."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._stack = ExitStack()
        ports = [endpoint.port] if endpoint.protocol is Protocol.TCP else []
        found = self._stack.enter_context(resets.counting(ports))
        self._counter = found if isinstance(found, ResetCounter) and ports else None
        self._shown: dict[Endpoint, ExitStack] = {}

    def show(self, group: Endpoint, folder: Place) -> None:
        """Have the counts in the folder of an attached group; another follower's are left there."""
        if self._counter is None or (group in self._shown and followed.is_shown(folder)):
            return
        self._hide(group)  # whoever detached it removed them
        with ExitStack() as stack, contextlib.suppress(Conflict):
            stack.enter_context(followed.shown(folder, self._counter.counts))
            self._shown[group] = stack.pop_all()

    def _hide(self, group: Endpoint) -> None:
        if group in self._shown:
            self._shown.pop(group).close()

    def close(self) -> None:
        """Show nothing any more, and stop counting."""
        for group in list(self._shown):
            self._hide(group)
        self._stack.close()
