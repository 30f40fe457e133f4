"""The records that cross layers, by job. The JSON output is made of exactly these.

Each field is described once, by the string below it: docs/json.md and docs/schema.json are made of that (`make docs`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reuseport_tool.models.autolowat import (
        Autolowat,
        AutolowatAttachment,
        AutolowatDetached,
        AutolowatStatus,
        Engine,
        FailOpens,
    )
    from reuseport_tool.models.bench import (
        BenchReload,
        BenchRpcFraming,
        BenchSelect,
        BenchSockets,
        BenchSpeed,
        BenchUdp,
        CloseSize,
        FramingArm,
        FramingSize,
        ReloadArm,
        SelectArm,
        SocketsArm,
        SocketsSize,
        SpeedFigure,
        Spread,
        UdpArm,
    )
    from reuseport_tool.models.check import (
        Case,
        CheckedWay,
        CheckHotReload,
        CheckRpcFraming,
        CheckUdpReload,
        ConnectionState,
        FramingCase,
        Move,
        Redistribution,
        UdpCase,
    )
    from reuseport_tool.models.doctor import Capability, Doctor, Feature
    from reuseport_tool.models.endpoint import Endpoint, Identity, Protocol, parse_endpoint
    from reuseport_tool.models.error import ErrorReport
    from reuseport_tool.models.flows import Flow, FlowCounters, FlowMode, Flows, FlowTable
    from reuseport_tool.models.follow import FollowEvent, Happening
    from reuseport_tool.models.group import (
        Attached,
        AttachReport,
        Canary,
        Counters,
        Detached,
        DetachReport,
        Followed,
        GonePins,
        Group,
        LastReload,
        Listener,
        MigrateReq,
        OldSide,
        Policy,
        Problem,
        ProblemKind,
        Program,
        Status,
        Transaction,
    )
    from reuseport_tool.models.maps import GenerationMap, MapChange, MapChanges, Maps, Slot
    from reuseport_tool.models.programs import CompiledProgram, Filled
    from reuseport_tool.models.proof import Balance, Resets, SideResets
    from reuseport_tool.models.reload import (
        CanaryStep,
        DryRun,
        HandedOver,
        Leftovers,
        ListenerQueue,
        Lost,
        Migrated,
        PlannedGroup,
        QueueLook,
        Queues,
        Reload,
        Side,
        Step,
        Strategy,
    )
    from reuseport_tool.models.sockets import Destroy, Ending, Socket, Sockets, SocketState, SocketTable

__all__ = [
    "AttachReport",
    "Attached",
    "Autolowat",
    "AutolowatAttachment",
    "AutolowatDetached",
    "AutolowatStatus",
    "Balance",
    "BenchReload",
    "BenchRpcFraming",
    "BenchSelect",
    "BenchSockets",
    "BenchSpeed",
    "BenchUdp",
    "Canary",
    "CanaryStep",
    "Capability",
    "Case",
    "CheckHotReload",
    "CheckRpcFraming",
    "CheckUdpReload",
    "CheckedWay",
    "CloseSize",
    "CompiledProgram",
    "ConnectionState",
    "Counters",
    "Destroy",
    "DetachReport",
    "Detached",
    "Doctor",
    "DryRun",
    "Ending",
    "Endpoint",
    "Engine",
    "ErrorReport",
    "FailOpens",
    "Feature",
    "Filled",
    "Flow",
    "FlowCounters",
    "FlowMode",
    "FlowTable",
    "Flows",
    "FollowEvent",
    "Followed",
    "FramingArm",
    "FramingCase",
    "FramingSize",
    "GenerationMap",
    "GonePins",
    "Group",
    "HandedOver",
    "Happening",
    "Identity",
    "LastReload",
    "Leftovers",
    "Listener",
    "ListenerQueue",
    "Lost",
    "MapChange",
    "MapChanges",
    "Maps",
    "MigrateReq",
    "Migrated",
    "Move",
    "OldSide",
    "PlannedGroup",
    "Policy",
    "Problem",
    "ProblemKind",
    "Program",
    "Protocol",
    "QueueLook",
    "Queues",
    "Redistribution",
    "Reload",
    "ReloadArm",
    "Resets",
    "SelectArm",
    "Side",
    "SideResets",
    "Slot",
    "Socket",
    "SocketState",
    "SocketTable",
    "Sockets",
    "SocketsArm",
    "SocketsSize",
    "SpeedFigure",
    "Spread",
    "Status",
    "Step",
    "Strategy",
    "Transaction",
    "UdpArm",
    "UdpCase",
    "parse_endpoint",
]

_HOMES = {
    "autolowat": "Autolowat AutolowatAttachment AutolowatDetached AutolowatStatus Engine FailOpens",
    "bench": (
        "BenchReload BenchRpcFraming BenchSelect BenchSockets BenchSpeed BenchUdp CloseSize FramingArm FramingSize "
        "ReloadArm SelectArm SocketsArm SocketsSize SpeedFigure Spread UdpArm"
    ),
    "check": (
        "Case CheckedWay CheckHotReload CheckRpcFraming CheckUdpReload ConnectionState FramingCase Move "
        "Redistribution UdpCase"
    ),
    "doctor": "Capability Doctor Feature",
    "endpoint": "Endpoint Identity Protocol parse_endpoint",
    "error": "ErrorReport",
    "flows": "Flow FlowCounters FlowMode Flows FlowTable",
    "follow": "FollowEvent Happening",
    "group": (
        "Attached AttachReport Canary Counters Detached DetachReport Followed GonePins Group LastReload Listener "
        "MigrateReq OldSide Policy Problem ProblemKind Program Status Transaction"
    ),
    "maps": "GenerationMap MapChange MapChanges Maps Slot",
    "programs": "CompiledProgram Filled",
    "proof": "Balance Resets SideResets",
    "reload": (
        "CanaryStep DryRun HandedOver Leftovers ListenerQueue Lost Migrated PlannedGroup QueueLook Queues Reload Side "
        "Step Strategy"
    ),
    "sockets": "Destroy Ending Socket Sockets SocketState SocketTable",
}
"""The module of each name."""


def __getattr__(name: str) -> object:
    """Import what is asked for: a verb needs a few of the records, and to make all of them takes 30 ms."""
    for module, names in _HOMES.items():
        if name in names.split():
            found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
