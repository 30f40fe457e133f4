"""Prove on the running kernel what AutoLOWAT does with every way to send and to read a frame."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from reuseport_tool.autolowat.attachment import AttachmentPlan, choose_engine
from reuseport_tool.check import framing_lab
from reuseport_tool.check.framing_lab import Pair, rpc_frame
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.models import CheckRpcFraming, Engine, FramingCase
from reuseport_tool.record import record

_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_FRAME = rpc_frame(100, 150)
_SIZE = len(_FRAME)


@dataclass(frozen=True)
class Expected:
    """What must be after a step: whether a reader is woken, and SO_RCVLOWAT. None: either will do."""

    ready: bool | None
    lowat: int | None


@record
class FramingStep:
    """Send a piece as one segment, or read up to so many bytes."""

    native: Expected
    solo: Expected
    piece: bytes = b""
    take: int = 0


def _send(piece: bytes, native: tuple[bool, int], solo: tuple[bool, int]) -> FramingStep:
    return FramingStep(native=Expected(*native), solo=Expected(*solo), piece=piece)


def _whole(piece: bytes) -> FramingStep:
    """A piece with which the queue, empty before, ends in a whole frame."""
    return _send(piece, (True, len(piece)), (True, 1))


def _quiet(piece: bytes, lowat: int) -> FramingStep:
    """A piece that completes no frame."""
    return _send(piece, (False, lowat), (False, lowat))


def _take(size: int, native: tuple[bool, int], solo_ready: bool | None = None) -> FramingStep:
    """The engine solo has no callback after recvmsg(): its mark is right again with the next segment."""
    return FramingStep(native=Expected(*native), solo=Expected(solo_ready, None), take=size)


_DRAINED = _take(1 << 16, (False, 8), False)
# By name: the steps, and how many frames are in them.
_CASES: dict[str, tuple[int, list[FramingStep]]] = {
    "whole": (1, [_whole(_FRAME), _DRAINED]),
    "two in a segment": (2, [_whole(_FRAME * 2), _DRAINED]),
    "three in a segment": (3, [_whole(_FRAME * 3), _DRAINED]),
    "1, 7, 100 and 150 bytes": (
        1,
        [
            *(_quiet(_FRAME[:1], 8), _quiet(_FRAME[1:8], _SIZE), _quiet(_FRAME[8:108], _SIZE)),
            *(_send(_FRAME[108:], (True, _SIZE), (True, 1)), _DRAINED),
        ],
    ),
    "descriptor byte by byte": (
        1,
        [
            *(_quiet(_FRAME[at : at + 1], 8 if at < 7 else _SIZE) for at in range(8)),
            *(_send(_FRAME[8:], (True, _SIZE), (True, 1)), _DRAINED),
        ],
    ),
    "a frame and part of the next": (
        2,
        [
            _send(_FRAME + _FRAME[:50], (True, _SIZE), (True, 1)),
            _take(_SIZE, (False, _SIZE)),
            _send(_FRAME[50:], (True, _SIZE), (True, 1)),
            _DRAINED,
        ],
    ),
    "a frame and part of a descriptor": (
        2,
        [
            _send(_FRAME + _FRAME[:3], (True, _SIZE), (True, 1)),
            _take(_SIZE, (False, 8)),
            _send(_FRAME[3:], (True, _SIZE), (True, 1)),
            _DRAINED,
        ],
    ),
    "reader takes less": (1, [_whole(_FRAME), _take(100, (True, _SIZE - 100), True), _DRAINED]),
    "reader takes exactly one": (2, [_whole(_FRAME * 2), _take(_SIZE, (True, _SIZE), True), _DRAINED]),
    "reader takes more than one": (
        3,
        [
            _send(_FRAME * 2 + _FRAME[:20], (True, 2 * _SIZE), (True, 1)),
            _take(300, (True, 2 * _SIZE - 300), True),
            _take(236, (False, _SIZE - 20), False),
            _send(_FRAME[20:], (True, _SIZE - 20), (True, 1)),
            _DRAINED,
        ],
    ),
    "reader takes part of an incomplete one": (
        1,
        [
            _quiet(_FRAME[:100], _SIZE),
            _take(60, (False, _SIZE - 60), False),
            _quiet(_FRAME[100:110], _SIZE - 60),
            _send(_FRAME[110:], (True, _SIZE - 60), (True, 1)),
            _DRAINED,
        ],
    ),
    "150 frames in a segment": (
        150,
        [
            _send(rpc_frame(0, 0) * 150, (True, 1), (True, 1)),
            FramingStep(native=Expected(False, 1), solo=Expected(False, None), take=1 << 16),
            _send(_FRAME[:1], (True, 1), (True, 1)),
        ],
    ),
    "oversize length": (
        0,
        [
            _send(b"\xff\xff\xff\x7f\xff\xff\xff\x7f", (True, 1), (True, 1)),
            FramingStep(native=Expected(False, 1), solo=Expected(False, 1), take=1 << 16),
            _send(b"x", (True, 1), (True, 1)),
        ],
    ),
    "garbage": (
        0,
        [
            _send(b"GET / HTTP/1.1\r\n", (True, 1), (True, 1)),
            FramingStep(native=Expected(False, 1), solo=Expected(False, 1), take=1 << 16),
            _send(b"Host: x\r\n", (True, 1), (True, 1)),
        ],
    ),
}


class _Failed(Exception):
    pass


@dataclass
class _Run:
    """What a case has counted so far."""

    engine: Engine
    wakeups: int = 0
    stalls: int = 0

    def play(self, pair: Pair, steps: list[FramingStep]) -> None:
        for number, step in enumerate(steps, 1):
            if step.piece:
                pair.send(step.piece)
                self.wakeups += pair.wakeups()
            else:
                pair.server.recv(step.take)
            self.compare(pair, getattr(step, self.engine), f"step {number}")

    def compare(self, pair: Pair, expected: Expected, where: str) -> None:
        ready, lowat = pair.is_ready(), pair.lowat()
        if expected.ready and not ready:
            self.stalls += 1
        if expected.ready not in (None, ready) or expected.lowat not in (None, lowat):
            raise _Failed(f"{where}: ready {ready}, SO_RCVLOWAT {lowat}; expected {expected.ready}, {expected.lowat}")


def _must_be(condition: bool, what: str) -> None:
    if not condition:
        raise _Failed(what)


def _errno_of(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def _fin_in_the_middle(run: _Run, pair: Pair) -> None:
    pair.opt_in()
    run.play(pair, [_quiet(_FRAME[:100], _SIZE)])
    pair.client.shutdown(socket.SHUT_WR)
    if not pair.level.poll(framing_lab.DEADLINE_S):
        run.stalls += 1
        raise _Failed("the reader was not woken by the FIN")
    run.wakeups += pair.wakeups()
    _must_be(len(pair.server.recv(_SIZE)) == 100 and pair.server.recv(1) == b"", "100 bytes and the end")


def _late_opt_in(run: _Run, pair: Pair) -> None:
    pair.send(b"wait")
    error = _errno_of(pair.opt_in)
    expected = errno.EUCLEAN if kernel.can_choose_errors() else errno.EPERM
    _must_be(error == expected, f"on a queue that is not empty: {os.strerror(error)}")
    _must_be(pair.server.recv(4) == b"wait" and _errno_of(pair.opt_in) == 0, "opted in when it is drained")
    pair.wakeups()
    run.play(pair, _CASES["1, 7, 100 and 150 bytes"][1])


def _opt_in_twice(run: _Run, pair: Pair) -> None:
    pair.opt_in()
    run.play(pair, [_quiet(_FRAME[:100], _SIZE)])
    _must_be(_errno_of(pair.opt_in) == 0, "the second time is no error")
    run.play(pair, [_send(_FRAME[100:], (True, _SIZE), (True, 1)), _DRAINED])


def _off_again(run: _Run, pair: Pair) -> None:
    pair.opt_in()
    run.play(pair, [_quiet(_FRAME[:100], _SIZE)])
    pair.opt_in(b"\0\0\0\0")
    run.compare(pair, Expected(True, 1), "off again")
    pair.server.recv(100)
    run.play(pair, [_send(_FRAME[100:101], (True, 1), (True, 1))])


def _short_value(run: _Run, pair: Pair) -> None:
    error = _errno_of(lambda: pair.opt_in(b"\1\0"))
    _must_be(error == errno.EPERM, f"a short value: {os.strerror(error)}")
    run.play(pair, [_send(_FRAME[:1], (True, 1), (True, 1))])


def _own_lowat(run: _Run, pair: Pair) -> None:
    pair.opt_in()
    run.play(pair, [_quiet(_FRAME[:8], _SIZE)])
    pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 20)
    run.play(pair, [_send(_FRAME[8:16], (False, 20), (False, 20)), _send(_FRAME[16:20], (True, 20), (True, 20))])


_OTHERS: dict[str, tuple[int, Callable[[_Run, Pair], None]]] = {
    "FIN in the middle": (0, _fin_in_the_middle),
    "opt-in late, on a non-empty queue": (1, _late_opt_in),
    "opt-in twice": (1, _opt_in_twice),
    "off again in the middle": (0, _off_again),
    "short option value": (0, _short_value),
    "the application's own SO_RCVLOWAT": (0, _own_lowat),
}


def _table(name: str) -> Callable[[_Run, Pair], None]:
    def play(run: _Run, pair: Pair) -> None:
        pair.opt_in()
        run.play(pair, _CASES[name][1])

    return play


def _case(engine: Engine, name: str, family: str) -> FramingCase:
    frames, act = _OTHERS[name] if name in _OTHERS else (_CASES[name][0], _table(name))
    run, detail = _Run(engine), ""
    try:
        with framing_lab.pair(_FAMILIES[family]) as pair:
            act(run, pair)
    except (_Failed, ToolError, OSError) as error:
        detail = str(error)
    return FramingCase(
        name=name,
        family=family,
        frames=frames,
        wakeups=run.wakeups,
        stalls=run.stalls,
        ok=not detail and not run.stalls,
        detail=detail,
    )


def check(engine: Engine | None, step: Callable[[int, int], None]) -> CheckRpcFraming:
    """Play every case on IPv4 and IPv6, in a network namespace and a cgroup of its own.

    Args:
        engine: None for the one that `autolowat attach` would take.
        step: called with the number of cases that are done and of all.

    Raises:
        Unsupported: the kernel has not what the engine takes.
    """
    begin, chosen = time.monotonic(), choose_engine(engine)
    plan = AttachmentPlan(engine=chosen, framing="rpc", ports=())
    names = list(itertools.product([*_CASES, *_OTHERS], _FAMILIES))
    cases = []
    with framing_lab.attached(plan):
        for name, family in names:
            cases.append(_case(chosen, name, family))
            step(len(cases), len(names))
    ok = all(case.ok for case in cases)
    return CheckRpcFraming(
        kernel=os.uname().release, engine=chosen, ok=ok, cases=tuple(cases), duration_s=time.monotonic() - begin
    )
