"""The report of a reload: what was done, and what became of the connections."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from reuseport_tool.kernel.iterator import UdpInfo
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import Balance, HandedOver, Lost, Migrated, Reload, Resets, Side
from reuseport_tool.reload import sides
from reuseport_tool.reload.saving import since_begin_s
from reuseport_tool.reload.state import GroupState, ReloadState, WayName
from reuseport_tool.reload.world import World


def made(state: ReloadState, world: World, result: str) -> Reload:
    """What can be read is; a report is made whatever fails."""
    counted = world.traffic.mib().since(state.mib_before)
    moved = state.migrated or migrated(state, world)
    # What an earlier run counted went with it.
    resets = None if state.resumed else world.traffic.resets()
    return Reload(
        endpoint=state.name,
        groups=tuple(str(group.endpoint) for group in state.groups),
        result=result,
        strategy=state.strategy,
        old=_old(state),
        new=_new(state, world),
        queued_at_stop=state.queued,
        migrated=moved,
        lost=Lost(
            migrate_failures=counted.TCPMigrateReqFailure,
            listen_drops=counted.ListenDrops,
            listen_overflows=counted.ListenOverflows,
            aborted_accepted=counted.TCPAbortOnClose,
        ),
        balance=_balance(state, world, moved, resets),
        resets=resets,
        resets_old=None if resets is None else world.traffic.resets_of(state.old_side),
        resets_new=None if resets is None else world.traffic.resets_of(_new_side(state, world)),
        steps=state.steps,
        switch_us=state.switch_us,
        begun_at=state.begun_at,
        duration_s=since_begin_s(state, world),
        output=state.output,
        warnings=state.warnings,
        canary=state.canary,
        queues=world.queues.series(),
        leftovers=state.leftovers,
        datagrams=tuple(_handed_over(group, state, world) for group in state.groups if group.way is WayName.DATAGRAMS),
    )


def losses(done: Reload | None) -> list[str]:
    """For the message of a failure, which may be all that is read: what was lost meanwhile, if anything is known."""
    resets = done.resets if done is not None else None
    if resets is None or not resets.lost:
        return []
    waiting = resets.never_accepted + resets.handshakes
    counts = {"waiting connections were reset": waiting, "connections were refused": resets.refused or 0}
    return [" and ".join(f"{count} {what}" for what, count in counts.items() if count)]


def _new_side(state: ReloadState, world: World) -> tuple[ProcessIdentity, ...]:
    """All processes that are known to be the new server's, also those that it has started since."""
    with contextlib.suppress(Exception):
        return (*state.new_side, *sides.new_side(state, world).new_side)
    return state.new_side


def _handed_over(group: GroupState, state: ReloadState, world: World) -> HandedOver:
    """By the program's counters, and by the sockets as they were when they were last looked at."""
    now, before = None, group.counters_before
    present: Mapping[int, UdpInfo] = {}
    with contextlib.suppress(Exception):
        now = world.pins.counters(group.endpoint)
        present = world.datagrams.sockets()
    first = now.since(before) if now is not None and before is not None else None
    last = now.since(group.counters_at_switch or now) if now is not None else None
    is_run = state.plan.run is not None
    given = group.given + group.not_given if is_run else 0  # seen twice, and first for sockets that nobody read
    old = () if group.endpoint.is_shared else group.old  # of those the new sockets got everything as well
    ours = () if group.parked is None else (group.parked,)
    gone = [info for cookie in (*old, *ours) if (info := world.datagrams.last_seen(cookie)) is not None]
    is_seen = len(gone) == len(old) + len(ours) > 0
    closed = [info for info in gone if info.cookie not in present]
    return HandedOver(
        endpoint=str(group.endpoint),
        flows=group.flows,
        to_old=max(first.selected - last.selected - given, 0) if first and last else None,
        to_new=last.selected if last else None,
        by_kernel=first.fallback if first else None,
        unread=sum(info.receive_queue for info in closed) if is_seen else None,
        drops_old=sum(info.drops for info in gone) - group.drops_before if is_seen else None,
        drops_new=sum(present[cookie].drops for cookie in group.new) if present.keys() >= set(group.new) else None,
        cut=group.cut if state.stop_asked else 0,
        evicted=group.evicted,
        given=group.given,
        not_given=group.not_given,
    )


def _balance(state: ReloadState, world: World, moved: Migrated, resets: Resets | None) -> Balance | None:
    """Where what waited went; None where a part of it is not known."""
    if not state.stop_asked or resets is None or state.queued.half_open is None:
        return None
    behind = None
    with contextlib.suppress(Exception):
        behind = sides.half_open_behind(state, world)
    if behind is None:
        return None
    return Balance.of(
        waiting=state.queued.accept_queue + state.queued.half_open,
        moved=moved.moved,
        lost=resets.never_accepted + resets.handshakes,
        half_open=behind,
    )


def _old(state: ReloadState) -> Side:
    cookies = tuple(cookie for group in state.groups for cookie in group.old)
    pids = tuple(owner.pid for owner in state.owners)
    return Side(generation=state.groups[0].old_generation, pids=pids, listeners=cookies)


def _new(state: ReloadState, world: World) -> Side:
    cookies = tuple(cookie for group in state.groups for cookie in group.new)
    first = state.groups[0]
    generation = first.new_generation if first.new_generation and not first.joins else first.old_generation
    pids: tuple[int, ...] = ()
    with contextlib.suppress(Exception):
        pids = tuple(world.processes.masters(sides.owners(state, world, cookies)))
    return Side(generation=generation, pids=pids, listeners=cookies)


def migrated(state: ReloadState, world: World) -> Migrated:
    """By the program's counters where there is one, and by the kernel's."""
    total = world.traffic.mib().since(state.mib_before).TCPMigrateReqSuccess
    deltas = []
    for group in state.groups:
        with contextlib.suppress(Exception):
            now = world.pins.counters(group.endpoint)
            if now is not None and group.counters_before is not None:
                deltas.append(now.since(group.counters_before))
    if not deltas:
        return Migrated(established=None, syn_recv=None, new_syn_recv=None, total=total)
    return Migrated(
        established=sum(delta.migrated_established for delta in deltas),
        syn_recv=sum(delta.migrated_syn_recv for delta in deltas),
        new_syn_recv=sum(delta.migrated_new_syn_recv for delta in deltas),
        total=total,
    )
