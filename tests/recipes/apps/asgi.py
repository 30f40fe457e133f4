"""The ASGI application of the recipes: busy for a moment, so that connections queue, and says who it is."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

_BUSY_S = 0.004


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], _receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    until = time.perf_counter() + _BUSY_S
    while time.perf_counter() < until:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"process {os.getpid()}\n".encode()})
