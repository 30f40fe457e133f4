"""What the programs keep of QUIC connections, and the program that reads the answers of servers."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.kernel import bpf, capabilities, cgroup
from reuseport_tool.kernel.abi import CONNECTION, CONNECTION_ID
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, bpf_dir, load

EGRESS_MAPS = ("FLOWS_FD", "CONNECTIONS_FD", "QUIC_FD")


def create_connections(entries: int) -> bpf.Map:
    """An empty map of connection IDs."""
    return bpf.Map.create(
        bpf.MapType.LRU_HASH,
        "connections",
        key_size=CONNECTION_ID.size,
        value_size=CONNECTION.size,
        max_entries=entries,
    )


def create_lengths(generations: int) -> bpf.Map:
    """How long the IDs of each generation are, 0 for unknown, and behind them the group's port."""
    return bpf.Map.create(bpf.MapType.ARRAY, "quic", max_entries=generations + 1)


def set_port(lengths: bpf.Map, generations: int, port: int) -> None:
    """Say which port's answers are read."""
    lengths.update_u32(generations, socket.htons(port))


def egress_source(generations: int) -> Source:
    """The program that reads answers."""
    path = bpf_dir() / "udp" / "quic_egress.c"
    return Source(path=path, defines={"GENERATIONS": generations}, maps=EGRESS_MAPS)


def read_answers(maps: Mapping[str, bpf.Map], generations: int) -> bpf.Handle:
    """Read the connection IDs in what servers of this machine answer, as long as the handle or a pin of it is there.

    The program looks at every packet that leaves a socket below the root of cgroup2: servers may be in any cgroup.

    Raises:
        Unsupported: no cgroup2 is mounted, or the kernel has no links to cgroups (Linux 5.7).
        MissingCapability: CAP_BPF and CAP_NET_ADMIN are needed.
    """
    source = egress_source(generations)
    linked = {f"{name.upper()}_FD": entry.fd for name, entry in maps.items()}
    chosen = {name: linked[name] for name in EGRESS_MAPS}
    folder = cgroup.open_folder(cgroup.root())
    try:
        with load(source, source.path.stem, ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS, chosen) as program:
            return bpf.attach_cgroup(program, folder, AttachType.CGROUP_INET_EGRESS)
    except MissingCapability as error:
        raise MissingCapability(error.message, hint=capabilities.hint("CAP_BPF", "CAP_NET_ADMIN")) from error
    except ToolError as error:
        if type(error) is not ToolError:
            raise
        raise Unsupported(
            f"the answers of QUIC servers cannot be read: {error.message}",
            hint="--flows address keeps connections whose clients keep their address",
        ) from error
    finally:
        os.close(folder)
