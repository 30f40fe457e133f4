"""What this kernel really does, by doing it: `python -m vagrant.guest.proofs migration=yes wakes=no`.

1. A listens with SO_REUSEPORT; `reuseport-tool attach` gives its group the migrating program.
2. Clients connect and send; nobody accepts.
3. B joins the group and sleeps in epoll_wait().
4. A closes. migration: every client's connection is accepted by B, with its data.
   wakes: epoll_wait() returned by itself. On kernels with CVE-2026-46015 it does not.

hot-reload: `reuseport-tool check hot-reload` says "ok"; or "asleep" where all came out as expected but that
nobody was woken; or "unsupported" where the tool says that this kernel cannot migrate.

exactly-once: `reuseport-tool sockets` shows a listener and both ends of its connection once each; whether it says
that the kernel promises that.

destroy: `reuseport-tool destroy` ends an accepted connection, and nothing else; the engine that it took.

rpc-framing: `reuseport-tool check rpc-framing --engine solo` says "ok".

Each argument is a proof and what it must find. The findings go to $VM_RESULTS/proofs.json, and the
exit status is 1 when one is not as expected.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reuseport_tool.kernel import sockets
from vagrant.guest import rcvq

TOOL = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "reuseport-tool"
CLIENTS = 50
ADDRESS = ("127.0.0.1", 8080)
WAKE_DEADLINE_S = 3.0
CONNECT_DEADLINE_S = 10.0
UNSUPPORTED = 4


def main(arguments: list[str]) -> int:
    """Prove each `name=expected`; prints a line for each finding."""
    findings = {}
    for argument in arguments:
        name, _, expected = argument.partition("=")
        found, detail = PROOFS[name]()
        findings[name] = found
        agrees = "as expected" if found == expected else f"EXPECTED {expected}"
        print(f"proof {name}: {found}, {agrees} ({detail})", flush=True)
    if results := os.environ.get("VM_RESULTS"):
        (Path(results) / "proofs.json").write_text(json.dumps(findings))
    return 0 if all(f"{name}={found}" in arguments for name, found in findings.items()) else 1


def migration() -> tuple[str, str]:
    accepted, _, detail = _scenario()
    return ("yes" if accepted == CLIENTS else "no"), detail


def wakes() -> tuple[str, str]:
    accepted, woken, detail = _scenario()
    return ("yes" if accepted and woken else "no"), detail


def hot_reload() -> tuple[str, str]:
    done = subprocess.run([TOOL, "--json", "check", "hot-reload"], capture_output=True, text=True, check=False)
    if done.returncode == UNSUPPORTED:
        return "unsupported", json.loads(done.stderr)["message"]
    if done.returncode not in (0, 1):
        return "broken", done.stderr.strip()
    report = json.loads(done.stdout)
    wrong = [case for case in report["cases"] if not case["ok"]]
    detail = "; ".join(f"{case['strategy']} {case['family']} {case['state']}: {case['detail']}" for case in wrong[:3])
    text = f"{len(report['cases'])} cases in {report['duration_s']:.0f} s" + (f"; {detail}" if detail else "")
    if report["ok"]:
        return "ok", text
    asleep = all(case["woken"] is False and case["survived"] == case["connections"] for case in wrong)
    return ("asleep" if wrong and asleep else "wrong"), text


def rpc_framing() -> tuple[str, str]:
    done = subprocess.run(
        [TOOL, "--json", "check", "rpc-framing", "--engine", "solo"], capture_output=True, text=True, check=False
    )
    if done.returncode == UNSUPPORTED:
        return "unsupported", json.loads(done.stderr)["message"]
    if done.returncode not in (0, 1):
        return "broken", done.stderr.strip()
    report = json.loads(done.stdout)
    wrong = [f"{case['name']} {case['family']}: {case['detail']}" for case in report["cases"] if not case["ok"]]
    return ("wrong" if wrong else "ok"), "; ".join(wrong[:3]) or f"{len(report['cases'])} cases"


def exactly_once() -> tuple[str, str]:
    with _connection() as sockets_of_ours:
        report = _json("sockets")
        seen = [entry["cookie"] for entry in report["sockets"]]
        counts = [seen.count(_cookie(sock)) for sock in sockets_of_ours]
    if counts != [1, 1, 1]:
        return "broken", f"saw listener, client and accepted socket {counts} times"
    return {True: "yes", False: "no"}.get(report["exactly_once"], "unknown"), "saw each of three sockets once"


def destroy() -> tuple[str, str]:
    with _connection() as (listener, client, accepted), _connection(listener) as (_, other, _spared):
        report = _json("destroy", "--cookie", _cookie(accepted), "--yes")
        errors = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for sock in (accepted, client, other, listener)]
    if errors != [errno.ECONNABORTED, errno.ECONNRESET, 0, 0]:
        return "broken", f"errors {errors}"
    return report["engine"], "one of two connections ended"


def _json(*arguments: object) -> Any:
    """What a command that must succeed says."""
    done = subprocess.run([TOOL, "--json", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"reuseport-tool {arguments[0]} failed: {done.stderr}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def _connection(
    listener: socket.socket | None = None,
) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listener, its client and the accepted end."""
    with contextlib.ExitStack() as stack:
        listener = listener or stack.enter_context(_listener())
        client = stack.enter_context(socket.create_connection(ADDRESS, CONNECT_DEADLINE_S))
        select.select([listener], [], [], CONNECT_DEADLINE_S)
        yield listener, client, stack.enter_context(listener.accept()[0])


def _cookie(sock: socket.socket) -> int:
    return sockets.cookie(sock.fileno())


@functools.cache
def _scenario() -> tuple[int, bool, str]:
    """Connections that B accepted with their data, whether B's epoll_wait() returned, and a text."""
    with _listener() as old:
        attached = subprocess.run([TOOL, "attach", str(ADDRESS[1])], capture_output=True, text=True, check=False)
        if attached.returncode:
            raise SystemExit(f"reuseport-tool attach failed: {attached.stderr}")
        clients = [_client(number) for number in range(CLIENTS)]
        with _listener() as new, select.epoll() as poll:
            poll.register(new, select.EPOLLIN)
            old.close()
            woken = bool(poll.poll(WAKE_DEADLINE_S))
            accepted = _accept_all(new)
    for client in clients:
        client.close()
    return accepted, woken, f"{accepted} of {CLIENTS} accepted, epoll_wait {'returned' if woken else 'slept on'}"


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(ADDRESS)
    listener.listen(2 * CLIENTS)
    listener.setblocking(False)
    return listener


def _client(number: int) -> socket.socket:
    client = socket.create_connection(ADDRESS, CONNECT_DEADLINE_S)
    client.sendall(b"%04d" % number)
    return client


def _accept_all(listener: socket.socket) -> int:
    """How many different clients wait in the queue with their data."""
    seen: set[bytes] = set()
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return len(seen)
        with connection:
            connection.settimeout(WAKE_DEADLINE_S)
            seen.add(connection.recv(4))


PROOFS: dict[str, Callable[[], tuple[str, str]]] = {
    "migration": migration,
    "wakes": wakes,
    "hot-reload": hot_reload,
    "rpc-framing": rpc_framing,
    "exactly-once": exactly_once,
    "destroy": destroy,
    "rcvq": rcvq.prove,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
