"""The accept queues as a reload saw them: of each listener over the time, in a bounded number of looks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from reuseport_tool.models import ListenerQueue, QueueLook

_FIRST_INTERVAL_S = 0.01
_LOOKS_MAX = 100
_ROWS_MAX = 8
"""Of each side; the queues of its further listeners are added up."""

_Row = tuple[int | None, bool]
"""The cookie, None for all further listeners; and whether the row is the old side's."""


class QueueLog:
    """Notes what a reload sees when it looks anyway.

    An interval of time keeps the longest queue that was seen in it. When there are too many intervals, each two become
    one: a peak stays, however long the reload takes.
    """

    def __init__(self) -> None:
        self._interval_s = _FIRST_INTERVAL_S
        self._looks: dict[int, dict[_Row, int]] = {}
        self._rows: dict[_Row, None] = {}
        self._earlier: tuple[ListenerQueue, ...] = ()

    def go_on(self, earlier: tuple[ListenerQueue, ...]) -> None:
        """Begin with what an earlier run of the same reload saw."""
        self._earlier = earlier
        self._rows.update({(series.cookie, series.old): None for series in earlier})

    def note(self, at_s: float, lengths: Mapping[int, int], old: Collection[int]) -> None:
        """Add a look at all listeners: the length of each queue by cookie. One that is missing is closed.

        A listener gets a row when its queue is not empty for the first time.
        """
        found: dict[_Row, int] = dict.fromkeys(self._rows, 0)
        for cookie, length in lengths.items():
            row: _Row = (cookie, cookie in old)
            if length and row not in found:
                row = self._row(row)
            if row in found or length:
                found[row] = found.get(row, 0) + length
        self._rows.update(dict.fromkeys(found))
        self._add(int(at_s / self._interval_s), found)
        if len(self._looks) > _LOOKS_MAX:
            self._thin()

    def _row(self, row: _Row) -> _Row:
        """The row of a listener that has none yet."""
        mine = [cookie for cookie, is_old in self._rows if is_old is row[1] and cookie is not None]
        if len(mine) >= _ROWS_MAX:
            return None, row[1]
        self._rows[row] = None
        return row

    def _thin(self) -> None:
        self._interval_s *= 2
        looks, self._looks = self._looks, {}
        for index, found in looks.items():
            self._add(index // 2, found)

    def _add(self, index: int, found: Mapping[_Row, int]) -> None:
        """Keep the longest queue of each row in an interval."""
        look = self._looks.setdefault(index, {})
        look.update({row: max(length, look.get(row, 0)) for row, length in found.items()})

    def series(self) -> tuple[ListenerQueue, ...]:
        """Every row, with the looks at which its length had changed."""
        earlier = {(series.cookie, series.old): series.looks for series in self._earlier}
        return tuple(
            ListenerQueue(cookie=row[0], old=row[1], looks=(*earlier.get(row, ()), *self._changes(row)))
            for row in self._rows
        )

    def _changes(self, row: _Row) -> list[QueueLook]:
        found: list[QueueLook] = []
        for index, look in sorted(self._looks.items()):
            length = look.get(row, 0)
            if not found or found[-1].length != length:
                found.append(QueueLook(at_s=round(index * self._interval_s, 3), length=length))
        return found
