"""The proof: what became of the connections of a server, by the kernel's own count."""

from __future__ import annotations

from reuseport_tool.record import record


@record
class Resets:
    """Connections to some ports of a network namespace that the kernel reset, by the tracepoint tcp_send_reset."""

    never_accepted: int
    """They waited for accept(), and their listener closed: lost."""
    handshakes: int
    """They waited for the final ACK, and when it came their listener was gone: lost. Before Linux 6.10 only those that
    found another listener are seen."""
    refused: int | None
    """Their SYN found no listener: lost. Null where the kernel does not show it (before Linux 6.10)."""
    accepted: int
    """A server had accepted them, and closed them with unread data or before its client was done: its own doing. Before
    Linux 6.10 those that a server had closed properly, and that then got more data, may be missing."""

    @property
    def lost(self) -> int:
        """All that the kernel reset before a server had accepted it, as far as it shows them."""
        return self.never_accepted + self.handshakes + (self.refused or 0)

    @property
    def total(self) -> int:
        return self.lost + self.accepted

    def plus(self, other: Resets) -> Resets:
        """Both together; what one of them does not know is unknown."""
        unknown = self.refused is None or other.refused is None
        return Resets(
            never_accepted=self.never_accepted + other.never_accepted,
            handshakes=self.handshakes + other.handshakes,
            refused=None if unknown else (self.refused or 0) + (other.refused or 0),
            accepted=self.accepted + other.accepted,
        )


@record
class SideResets:
    """The resets that one side of a reload brought about: its processes closed the listener, or the connection. A
    packet that finds nothing is of no side."""

    never_accepted: int
    """They waited for accept() when its listener closed: lost."""
    accepted: int
    """It had accepted them, and closed them with unread data or before their clients were done: its own doing."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.never_accepted + self.accepted


@record
class PortResets:
    """The resets of one port."""

    port: int
    """The server's port."""
    resets: Resets
    """What was reset there."""


@record
class Balance:
    """Where the connections went that waited when the old server was told to stop. `waiting` and `later` together are
    as many as the other four."""

    waiting: int
    """They were in accept queues, or half-open, when the old server was told to stop."""
    later: int
    """They came to the old listeners after that count, and before these closed; at least so many."""
    moved: int
    """The kernel moved them to another listener."""
    old_side: int
    """The rest: the old server accepted them before its listeners closed, or their clients gave up."""
    lost: int
    """The kernel reset them."""
    half_open: int
    """They are still half-open on closed listeners."""

    @classmethod
    def of(cls, *, waiting: int, moved: int, lost: int, half_open: int) -> Balance:
        """Add it up: four numbers are counted, and what is missing on either side follows from them."""
        rest = waiting - moved - lost - half_open
        return cls(
            waiting=waiting, later=max(0, -rest), moved=moved, old_side=max(0, rest), lost=lost, half_open=half_open
        )
