"""What a follower decides, from what one look found. Nothing here asks the kernel."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence

from reuseport_tool.record import record

# The kernel tells of a listener a moment before it can be found, and a socket may be on its way between processes.
AGAIN_S = (0.001, 0.004, 0.016, 0.064, 0.25)
_CREDIT_S = 1.0


@record
class Unregistered:
    """A listener that nobody registered.

    Attributes:
        held: a process holds it.
        is_kin: that process belongs to the working generation.
    """

    cookie: int
    held: bool
    is_kin: bool


@record
class Look:
    """A group, with its lock held.

    Attributes:
        first: the follower has just started: it attaches by its own options, and errors end it.
        listeners: how many there are; `held` by a process are so many.
        attached: pins of ours are there.
        interrupted: of a reload that was killed.
        working: the working generation has listeners.
    """

    first: bool
    listeners: int
    held: int
    attached: bool
    interrupted: bool
    working: bool


class Action(enum.Enum):
    NOTHING = enum.auto()
    JOIN = enum.auto()
    """Register the kin of the working generation."""
    ATTACH = enum.auto()
    """Attach the policy of the follower's options."""
    RENEW = enum.auto()
    """Attach again what the pins say, as all listeners of before are gone."""
    REFUSE = enum.auto()
    """A killed reload comes first."""
    WAIT = enum.auto()
    """A listener is on its way between processes."""


def act(look: Look) -> Action:
    """What to do with a group."""
    if not look.listeners:
        return Action.NOTHING
    if look.attached and look.working and (look.interrupted or not look.first):
        return Action.JOIN
    if look.interrupted:
        return Action.REFUSE
    if not look.first and look.held < look.listeners:
        return Action.WAIT
    return Action.RENEW if look.attached and not look.first else Action.ATTACH


@record
class Sorted:
    """Cookies: to register, to look at again, and to leave alone."""

    take: tuple[int, ...]
    wait: tuple[int, ...]
    leave: tuple[int, ...]


def sort(seen: Sequence[Unregistered]) -> Sorted:
    """What to do with each listener that nobody registered."""
    return Sorted(
        take=tuple(entry.cookie for entry in seen if entry.held and entry.is_kin),
        wait=tuple(entry.cookie for entry in seen if not entry.held),
        leave=tuple(entry.cookie for entry in seen if entry.held and not entry.is_kin),
    )


class Announced:
    """How many listeners events have announced and no look has found, and when to look again."""

    def __init__(self) -> None:
        self.present: frozenset[int] = frozenset()
        self._owed = 0
        self._looked_at = 0.0
        self._again: Iterator[float] = iter(())

    def start(self, present: Collection[int]) -> None:
        """What the first look found."""
        self.present = frozenset(present)
        self.hurry()

    def hurry(self) -> None:
        """Something has happened: look again soon."""
        self._again = iter(AGAIN_S)

    def account(self, events: int, present: Collection[int], now: float) -> None:
        """Each event is to be followed by a listener; one that is seen before its event arrives is a credit.

        Args:
            now: seconds; a credit lasts for one.
        """
        if now - self._looked_at > _CREDIT_S:
            self._owed = max(0, self._owed)
        self._owed += events - len(frozenset(present) - self.present)
        self.present = frozenset(present)
        self._looked_at = now

    @property
    def missing(self) -> bool:
        """Whether one that was announced is not found yet."""
        return self._owed > 0

    def next_s(self) -> float | None:
        """After which time to look again, None when enough was tried."""
        return next(self._again, None)

    def give_up(self) -> None:
        """Those that are missing have closed again."""
        self._owed = min(0, self._owed)
