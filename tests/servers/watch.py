"""When each listener is first seen in a slot, by a process of its own that looks at the pinned maps every millisecond.

Run as `python -m tests.servers.watch FOLDER`: prints "COOKIE NANOSECONDS" (CLOCK_MONOTONIC) until it is ended.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from reuseport_tool.group.state import State
from reuseport_tool.kernel.folders import Place


def main() -> None:
    seen: set[int] = set()
    with State.open(Place(Path(sys.argv[1]))) as opened:
        while True:
            for cookie in opened.generations.registered() - seen:
                print(cookie, time.monotonic_ns(), flush=True)
                seen.add(cookie)
            time.sleep(0.001)


if __name__ == "__main__":
    main()
