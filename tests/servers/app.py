"""The WSGI application of the tests: busy for a moment, so that connections queue, and says who it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

_BUSY_S = float(os.environ.get("APP_BUSY_S", "0.004"))


def app(_environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    deadline = time.perf_counter() + _BUSY_S
    while time.perf_counter() < deadline:
        time.sleep(_BUSY_S / 4)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"worker {os.getpid()} of {os.getppid()}\n".encode()]
