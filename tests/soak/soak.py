"""Reloads back to back under a steady load, with generations that grow and shrink, and the same without the tool.

    python -m tests.soak.soak --runs 6 --reloads 25

1. A server with one listener starts, and the load: clients in a process of their own, each of which connects,
   asks, waits for the whole answer, resets the connection and begins anew. A quarter of them send their request
   20 ms after they have connected, and are half-open meanwhile, as the listeners have TCP_DEFER_ACCEPT.
2. One reload after the other, by the command as it is, each to a generation of another size.
3. The load ends, and every connection is in its ledger as answered, refused, reset, unanswered or timed out.
4. The same with plain restarts: the new server starts, the old one gets SIGTERM.

The runs take turns: a fast server, for many connections, and a slow one with more clients, whose accept queues
are still long when it is stopped. Each run has a network namespace and a bpffs of its own. Exit code 0 only if the
reloads lost nothing, the program counted what the kernel counted, and the plain restarts lost something.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.bench.server import END_OF_ANSWER
from reuseport_tool.kernel import netns
from tests.servers import restart, servers
from tests.servers.servers import Server
from tests.tool import Tool

# Doubling and halving, then from one end to the other.
SIZES = (2, 4, 8, 16, 32, 64, 32, 16, 8, 4, 2, 1, 64, 1, 48, 3)
_DELAY_S = 0.02
# One that is lost is never answered. Long queues take their time on a busy machine: 4,000 connections at 500 µs, twice.
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Profile:
    """How long a server takes for each request, and how many connections there are at a time."""

    service_us: int
    clients: int


FAST, SLOW = Profile(0, 2048), Profile(500, 4000)


@dataclass(kw_only=True)
class Result:
    """One arm over all its runs. Unit: connections; `queued`, `half_open` when the old sides were stopped."""

    ledger: Ledger = field(default_factory=Ledger)
    restarts: int = 0
    queued: int = 0
    half_open: int = 0
    migrated: int = 0
    duration_s: float = 0.0

    def __str__(self) -> str:
        ledger = self.ledger
        return (
            f"{self.restarts} restarts, {self.duration_s:.0f} s: {ledger.connections} connections, "
            f"{ledger.answered} answered, {ledger.refused} refused, {ledger.reset} reset, "
            f"{ledger.unanswered} unanswered, {ledger.timed_out} timed out, "
            f"longest wait {ledger.longest_wait_s * 1000:.0f} ms; {self.queued} were queued and {self.half_open} "
            f"half-open at the stops, {self.migrated} were moved"
        )


def server(profile: Profile, listeners: int) -> Server:
    words = (sys.executable, "-m", "reuseport_tool.bench.server", servers.ADDRESS, str(servers.PORT))
    options = ("--listeners", str(listeners), "--service-us", str(profile.service_us), "--defer-accept")
    return Server(name="bench_server", command=(*words, *options), stop_signal="TERM", listeners=listeners)


def with_the_tool(result: Result, restarts: int, profile: Profile) -> None:
    """One run. Raises AssertionError where a report contradicts what was done."""

    def reload(tool: Tool, before: int, after: int) -> None:
        report = restart.by_the_tool(tool, server(profile, after))
        assert (len(report["old"]["listeners"]), len(report["new"]["listeners"])) == (before, after), report
        assert not report["lost"]["migrate_failures"] + report["lost"]["listen_overflows"], report
        migrated = report["migrated"]
        counted = migrated["established"] + migrated["syn_recv"] + migrated["new_syn_recv"]
        assert counted == migrated["total"], f"the program counted {counted}, the kernel {migrated['total']}"
        result.migrated += counted
        result.queued += report["queued_at_stop"]["accept_queue"]
        result.half_open += report["queued_at_stop"]["half_open"]

    _run(result, restarts, profile, reload)


def without_the_tool(result: Result, restarts: int, profile: Profile) -> None:
    _run(result, restarts, profile, lambda _tool, _before, after: restart.plainly(server(profile, after)))


def _run(result: Result, restarts: int, profile: Profile, once: Callable[[Tool, int, int], None]) -> None:
    start = time.monotonic()
    with netns.throw_away(), restart.own_bpffs() as folder:
        try:
            restart.start(server(profile, 1))
            with _load(profile) as load:
                load.await_warm()
                for before, after in itertools.islice(itertools.pairwise(_sizes()), restarts):
                    once(Tool(folder), before, after)
                    result.restarts += 1
                result.ledger = result.ledger.plus(load.stop())
        finally:
            restart.end_all()
    result.duration_s += time.monotonic() - start


def _load(profile: Profile) -> Load:
    slow = profile.clients // 4
    return Load(
        *(servers.ADDRESS, servers.PORT, profile.clients),
        answer_end=END_OF_ANSWER,
        slow=slow,
        delay_s=_DELAY_S,
        timeout_s=_TIMEOUT_S,
    )


def _sizes() -> Iterator[int]:
    return itertools.chain((1,), itertools.cycle(SIZES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--reloads", type=int, default=25, help="in each run")
    parser.add_argument("--plain", type=int, default=25, help="plain restarts in each run")
    options = parser.parse_args()
    tool, plain = Result(), Result()
    for number, profile in zip(range(options.runs), itertools.cycle((FAST, SLOW))):
        print(f"{number + 1} of {options.runs}: {profile}", flush=True)
        with_the_tool(tool, options.reloads, profile)
        print(f"  the tool: {tool}", flush=True)
        without_the_tool(plain, options.plain, profile)
        print(f"  plain:    {plain}", flush=True)
    return 0 if plain.ledger.lost and not tool.ledger.lost else 1


if __name__ == "__main__":
    sys.exit(main())
