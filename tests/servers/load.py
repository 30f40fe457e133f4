"""A steady load of new connections, one process, bounded: every connection ends in a ledger.

Run as `python -m tests.servers.load ADDRESS PORT --clients 64 --seconds 30`: a closed loop of clients,
each of which connects, asks, reads to the end and begins anew. It stops after the time, or when
its standard input is closed, and prints the ledger as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field

_REQUEST = b"GET / HTTP/1.0\r\nHost: load\r\nAccept-Encoding: gzip\r\n\r\n"
_TIMEOUT_S = 45.0
_STUCK_MAX = 3


@dataclass(kw_only=True)
class Ledger:
    """Every connection is counted once.

    Attributes:
        longest_wait_s: from connect() to the first byte.
        stuck: both ends, by ss(8), of some that timed out.
    """

    answered: int = 0
    refused: int = 0
    reset: int = 0
    unanswered: int = 0
    timed_out: int = 0
    longest_wait_s: float = 0.0
    duration_s: float = 0.0
    stuck: list[str] = field(default_factory=list)

    @property
    def connections(self) -> int:
        return self.answered + self.lost

    @property
    def lost(self) -> int:
        return self.refused + self.reset + self.unanswered + self.timed_out


async def _connection(address: str, port: int, ledger: Ledger) -> None:
    writer = None
    start = time.monotonic()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(_REQUEST)
            first = await reader.read(65536)
            ledger.longest_wait_s = max(ledger.longest_wait_s, time.monotonic() - start)
            while await reader.read(65536):
                pass
        if first:
            ledger.answered += 1
        else:
            ledger.unanswered += 1
    except ConnectionRefusedError:
        ledger.refused += 1
    except TimeoutError:
        ledger.timed_out += 1
        if len(ledger.stuck) < _STUCK_MAX:
            ledger.stuck.append(_ends(writer))
    except OSError:
        ledger.reset += 1
    finally:
        if writer is not None:
            writer.transport.abort()


def _ends(writer: asyncio.StreamWriter | None) -> str:
    if writer is None:
        return "not connected"
    port = writer.get_extra_info("sockname")[1]
    command = ["ss", "-Htanoep", f"( sport = :{port} or dport = :{port} )"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


async def _load(address: str, port: int, clients: int, seconds: float) -> Ledger:
    ledger = Ledger()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stopped.set)
    start = time.monotonic()

    async def client() -> None:
        while not stopped.is_set() and time.monotonic() - start < seconds:
            await _connection(address, port, ledger)

    await asyncio.gather(*(client() for _ in range(clients)))
    ledger.duration_s = time.monotonic() - start
    return ledger


class Load:
    """The load as a process; stop() ends it and returns the ledger. A context manager."""

    def __init__(self, address: str, port: int, clients: int = 64, seconds: float = 600.0) -> None:
        words = [address, port, "--clients", clients, "--seconds", seconds]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.load", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> Ledger:
        """No new connections; the open ones are seen to their end."""
        out, _ = self._process.communicate(timeout=_TIMEOUT_S + 10)
        return Ledger(**json.loads(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    ledger = asyncio.run(_load(options.address, options.port, options.clients, options.seconds))
    print(json.dumps(dataclasses.asdict(ledger)))


if __name__ == "__main__":
    main()
