"""Fill a cache with every program that the tool may load on this kernel, for machines without a compiler."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from reuseport_tool.autolowat import attachment, framing
from reuseport_tool.errors import ProgramRejected, ToolError, Unsupported
from reuseport_tool.group import layout
from reuseport_tool.group import policy as policies
from reuseport_tool.kernel import (
    autolowat,
    btf_cache,
    held_sockets,
    iterator,
    listen_events,
    program,
    program_cache,
    quic,
    resets,
    rlimit,
    sock_destroy,
    socket_iterator,
    udp_sent,
)
from reuseport_tool.kernel.program import Source
from reuseport_tool.models import CompiledProgram, Engine, Filled, FlowMode, Policy, Protocol


def fill(folder: Path, own: tuple[Path, ...], on_step: Callable[[int, int], None]) -> Filled:
    """Compile the tool's programs, and policies of one's own, into a folder.

    Args:
        folder: made if need be, for its owner alone.
        own: C files of policies.
        on_step: told how many of how many are done.

    Raises:
        ToolError: the folder cannot be written, or others can write it.
        ProgramRejected: a program does not compile.
        Unsupported: BCC is missing.
    """
    with program_cache.only_in(folder.absolute()) as store:
        if not store.put("probe", b""):
            rlimit.require_room(2)
            raise ToolError(
                f"programs cannot be kept in {folder}", hint="it must be a folder of yours that nobody else can write"
            )
        store.remove("probe")
        wanted = [*_all(), *((str(path), lambda path=path: _own(path)) for path in own)]
        results = []
        for number, (name, make) in enumerate(wanted, 1):
            results.append(_compiled(name, make))
            on_step(number, len(wanted))
        for protocol in Protocol:
            socket_iterator.exactly_once(protocol)
        btf_cache.save()
    return Filled(folder=str(folder), kernel=os.uname().release, programs=tuple(results))


def _compiled(name: str, make: Callable[[], Source]) -> CompiledProgram:
    try:
        source = make()
    except Unsupported as error:
        return CompiledProgram(name=name, result="unsupported", detail=error.message)
    with program.Module(source) as module:
        if not module.is_kept:
            return CompiledProgram(name=name, result="not kept", detail="it includes or declares more than may be kept")
    return CompiledProgram(name=name, result="compiled", detail=None)


def _own(path: Path) -> Source:
    if not path.is_file():
        raise ProgramRejected(f"no such file: {path}", hint="give the path of a policy in C")
    return policies.policy_source(path, is_ours=False)


def _all() -> Iterator[tuple[str, Callable[[], Source]]]:
    """Name and maker of each program; a maker raises Unsupported where the kernel lacks what the program needs."""
    for policy, flows in itertools.product(Policy, FlowMode):
        path = program.bpf_dir() / "policy" / f"{policy.value.replace('-', '_')}.c"
        name = f"policy {policy}" + ("" if flows is FlowMode.NONE else f", flows by {flows}")
        yield name, lambda path=path, flows=flows: policies.policy_source(path, flows=flows)  # type: ignore[misc]
    yield "QUIC answers", lambda: quic.egress_source(layout.GENERATIONS)
    for ordered in (False, True):
        suffix = ", ordered" if ordered else ""
        yield f"TCP listeners{suffix}", lambda ordered=ordered: iterator.source(ordered=ordered)  # type: ignore[misc]
        yield f"UDP members{suffix}", lambda ordered=ordered: iterator.udp_source(ordered=ordered)  # type: ignore[misc]
    for protocol in Protocol:
        yield f"{protocol.upper()} sockets", lambda protocol=protocol: socket_iterator.walk_source(protocol)  # type: ignore[misc]
        yield f"{protocol.upper()} destroy", lambda protocol=protocol: sock_destroy.source(protocol)  # type: ignore[misc]
    yield "held sockets", held_sockets.source
    yield "listen events", listen_events.tcp_source
    yield "bind events", listen_events.udp_source
    yield "resets", resets.source
    yield "datagrams sent", udp_sent.source
    for engine in Engine:
        yield f"AutoLOWAT {engine}, walk", lambda engine=engine: autolowat.walk_source(engine)  # type: ignore[misc]
    for engine, spec in itertools.product(Engine, ("rpc", *framing.PRESETS)):
        yield f"AutoLOWAT {engine}, {spec}", lambda engine=engine, spec=spec: _autolowat(engine, spec)  # type: ignore[misc]


def _autolowat(engine: Engine, spec: str) -> Source:
    plan = attachment.AttachmentPlan(engine=engine, framing=spec, ports=())
    return autolowat.source(engine, attachment.defines(plan))
