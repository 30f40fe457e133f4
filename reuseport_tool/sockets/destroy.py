"""End sockets that their programs will not let go."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path

from reuseport_tool.errors import UsageError
from reuseport_tool.kernel import netns, sock_destroy
from reuseport_tool.kernel.abi import SocketRecord, TcpState
from reuseport_tool.kernel.socket_iterator import Walker
from reuseport_tool.models import Destroy, Ending, Protocol, SocketState
from reuseport_tool.sockets import select as sockets
from reuseport_tool.sockets.select import Filter, Matching

_NEVER = 1 << TcpState.TIME_WAIT | 1 << TcpState.NEW_SYN_RECV


class DestroyEngine(enum.StrEnum):
    """AUTO is BPF where the kernel has bpf_sock_destroy(), and else NETLINK."""

    AUTO = "auto"
    BPF = "bpf"
    NETLINK = "netlink"


def destroy(wanted: Filter, root: Path | None, *, act: bool, engine: DestroyEngine = DestroyEngine.AUTO) -> Destroy:
    """End the sockets that match, or only tell which.

    A socket is chosen by its cookie. It is ended if it then still has its addresses and ports, and a state
    that the filter allows. A listener is chosen only if the filter names its state. Request and TIME_WAIT
    sockets never are: they belong to no program, and the kernel ends them by itself.

    Raises:
        UsageError: the filter is empty, contradicts itself, or names only states that are never ended.
        NotFound, Unsupported, MissingCapability: as sockets(), and from the engine.
    """
    _check(wanted)
    chosen_engine = _engine(engine)
    sockets.require_processes(wanted.pids)
    with Walker(wanted.protocols) as walker:
        matching = sockets.select(wanted, walker.read(), root)
        chosen = [found for found in matching if may_end(wanted, found.raw)]
        endings = end(wanted, chosen, walker, chosen_engine) if act else _would_end(chosen)
        left = [found.raw.state for found in matching if not may_end(wanted, found.raw)]
        return Destroy(
            netns=f"net:[{netns.identity()}]",
            engine=str(chosen_engine),
            dry_run=not act,
            exactly_once=walker.promise(),
            endings=tuple(endings),
            listeners=left.count(TcpState.LISTEN),
            request_sockets=left.count(TcpState.NEW_SYN_RECV),
            time_wait=left.count(TcpState.TIME_WAIT),
        )


def _check(wanted: Filter) -> None:
    if wanted.is_empty:
        raise UsageError("at least one filter is needed", hint="'sockets' with the same filters shows what matches")
    wanted.check()
    if wanted.states and not wanted.state_mask() & ~_NEVER:
        raise UsageError(
            "request and TIME_WAIT sockets are never ended",
            hint="no program holds them; the kernel ends them, TIME_WAIT after 60 s",
        )


def _engine(asked: DestroyEngine) -> DestroyEngine:
    if asked is not DestroyEngine.AUTO:
        return asked
    return DestroyEngine.BPF if sock_destroy.kfunc() is not None else DestroyEngine.NETLINK


def _allowed_states(wanted: Filter) -> int:
    listeners = 0 if SocketState.LISTEN in wanted.states else 1 << TcpState.LISTEN
    return wanted.state_mask() & ~(_NEVER | listeners)


def may_end(wanted: Filter, raw: SocketRecord) -> bool:
    """Whether the filter allows to end a socket in this state."""
    return bool(_allowed_states(wanted) >> raw.state & 1)


def _would_end(chosen: Sequence[Matching]) -> list[Ending]:
    return [Ending(socket=found.shown, result="would-end") for found in chosen]


def end(
    wanted: Filter, chosen: Sequence[Matching], walker: Walker, engine: DestroyEngine = DestroyEngine.AUTO
) -> list[Ending]:
    """End sockets that a walk has found, by their cookies, and look by another walk what is left of them."""
    by_bpf, states = _engine(engine) is DestroyEngine.BPF, _allowed_states(wanted)
    outcomes: sock_destroy.Outcomes = {}
    for protocol in walker.protocols:
        targets = [found.raw for found in chosen if found.protocol is protocol]
        # bpf_sock_destroy() on a listener may sleep under RCU, before the fix of September 2026.
        for_bpf = [raw for raw in targets if by_bpf and raw.state != TcpState.LISTEN]
        if for_bpf:
            outcomes |= sock_destroy.by_bpf(protocol, for_bpf, states & ~(1 << TcpState.LISTEN))
        others = [raw for raw in targets if raw not in for_bpf]
        if others:
            outcomes |= sock_destroy.by_netlink(protocol, others, states)
    left = {raw.cookie: raw for raws in walker.read().values() for raw in raws if not _NEVER >> raw.state & 1}
    return [_ending(found, outcomes.get(found.raw.cookie), left.get(found.raw.cookie)) for found in chosen]


def _ending(found: Matching, error: int | None, left: SocketRecord | None) -> Ending:
    """Judge by the outcome (None where it was not met as it had been) and by what is left of the socket."""
    if error == 0:
        stays = left is not None and found.protocol is Protocol.UDP
        if left is None or stays:
            return Ending(socket=found.shown, result="disconnected" if stays else "ended")
        return Ending(
            socket=found.shown, result="refused", detail="the kernel says that it ended it, and it is still there"
        )
    if left is None or not _is_same(found.raw, left):
        return Ending(socket=found.shown, result="gone")
    detail = sock_destroy.reason(error) if error else "a look-up of its addresses finds another socket"
    return Ending(socket=found.shown, result="refused", detail=detail)


def _is_same(then: SocketRecord, now: SocketRecord) -> bool:
    return (then.local, then.local_port, then.remote, then.remote_port, then.state) == (
        *(now.local, now.local_port, now.remote, now.remote_port, now.state),
    )
