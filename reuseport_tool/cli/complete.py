"""What a shell offers while an operator types: ports of groups and network namespaces.

A completion says nothing when it fails: there is nobody to read it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from reuseport_tool.errors import ToolError

_NAMED = Path("/run/netns")


def namespaces(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names that `ip netns` knows."""
    with contextlib.suppress(OSError):
        return [CompletionItem(name) for name in sorted(os.listdir(_NAMED)) if name.startswith(incomplete)]
    return []


def ports(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The ports of TCP listeners, with their addresses as help: bash takes a colon for the end of a word."""
    with contextlib.suppress(ToolError, OSError):
        return [
            CompletionItem(str(port), help=", ".join(sorted(addresses)))
            for port, addresses in sorted(_listening(ctx).items())
            if str(port).startswith(incomplete)
        ]
    return []


def _listening(ctx: click.Context) -> dict[int, set[str]]:
    from reuseport_tool.group import discover
    from reuseport_tool.kernel import netns
    from reuseport_tool.models import Protocol

    name = ctx.find_root().params.get("netns")
    if name:
        netns.enter(netns.resolve(name))
    found: dict[int, set[str]] = {}
    for endpoint in discover.all_groups(Protocol.TCP):
        found.setdefault(endpoint.port, set()).add(str(endpoint))
    return found
