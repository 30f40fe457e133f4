"""A frame of several segments, where it goes to, and how soon a reader must be woken."""

from __future__ import annotations

from reuseport_tool.check.framing_lab import rpc_frame
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.models import Engine

PORT = 9000
FRAME = rpc_frame(100, 150)
CUT = ((0, 8), (8, 100), (100, 258))
# TCP_DELACK_MAX of 200 ms, and what a busy machine adds.
MENDED_S = 2.0


def is_here(engine: Engine) -> bool:
    return engine is Engine.SOLO or not kernel.missing_for_native()
