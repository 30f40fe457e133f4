"""DNS servers under steady load: restarts, then reloads with the tool, side by side (`make dns`, as root).

    python -m tests.servers.dns [--server unbound|knot|dnsdist]… [--arm restart|reload|run]… [--reloads N]

It makes a network namespace and a bpffs of its own. dnsperf sends queries by UDP and by TCP at a steady rate and counts
those that nobody answered. It exits with 0 only if the reloads lost none and the restarts lost some. The arm `run` is a
restart by `reload --run`. TCP connections that the old server has accepted are its own then: only UDP must lose none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from reuseport_tool.record import record
from tests.servers.apart import go_apart, is_apart

PORT, BACKEND_PORT = 5300, 5301
_READY_S = 30.0
_GAP_S = 1.0  # between two reloads
_TOOL = [sys.executable, "-m", "reuseport_tool", "--json"]


@record
class DnsServer:
    """How to configure and start one. It answers every name below example.org."""

    name: str
    configure: Callable[[Path, int], None]
    command: Callable[[Path], Sequence[str]]
    needs_backend: bool = False


def _unbound(folder: Path, port: int) -> None:
    (folder / "unbound.conf").write_text(
        f"""server:
  interface: 127.0.0.1@{port}
  port: {port}
  num-threads: 2
  so-reuseport: yes
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: "{folder}/unbound.{os.getpid()}.pid"
  use-syslog: no
  logfile: "{folder}/unbound.log"
  access-control: 127.0.0.0/8 allow
  local-zone: "example.org." redirect
  local-data: "example.org. 60 IN A 192.0.2.1"
remote-control:
  control-enable: no
"""
    )


def _knot(folder: Path, port: int) -> None:
    (folder / "zone").write_text(
        "$ORIGIN example.org.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\n* A 192.0.2.1\n"
    )
    for run in ("a", "b"):
        (folder / run).mkdir(exist_ok=True)
        (folder / f"knot-{run}.conf").write_text(
            f"""server:
    rundir: "{folder}/{run}"
    listen: 127.0.0.1@{port}
    udp-workers: 2
    tcp-workers: 2
    tcp-reuseport: on
database:
    storage: "{folder}/{run}"
control:
    listen: "{folder}/{run}/knot.sock"
zone:
  - domain: example.org
    file: "{folder}/zone"
"""
        )


def _dnsdist(folder: Path, port: int) -> None:
    bind = f'"127.0.0.1:{port}", {{reusePort=true}}'
    (folder / "dnsdist.conf").write_text(
        f'setLocal({bind})\naddLocal({bind})\nsetSecurityPollSuffix("")\nsetACL({{"127.0.0.0/8"}})\n'
        f'newServer({{address="127.0.0.1:{BACKEND_PORT}"}}):setUp()\n'
    )


_turn = 0


def _next_knot(folder: Path) -> Sequence[str]:
    """Two configurations in turn: two knots that run at a time need a database and a control socket each."""
    global _turn
    _turn += 1
    return ["knotd", "-c", str(folder / f"knot-{'ab'[_turn % 2]}.conf")]


SERVERS = {
    server.name: server
    for server in (
        DnsServer(name="unbound", configure=_unbound, command=lambda f: ["unbound", "-d", "-c", f"{f}/unbound.conf"]),
        DnsServer(name="knot", configure=_knot, command=_next_knot),
        DnsServer(
            name="dnsdist",
            configure=_dnsdist,
            command=lambda f: ["dnsdist", "--supervised", "--disable-syslog", "-C", f"{f}/dnsdist.conf"],
            needs_backend=True,
        ),
    )
}


@record
class Outcome:
    """What dnsperf counted on one transport."""

    sent: int
    lost: int


class Load:
    """dnsperf on both transports. A context manager; `outcomes` is there at its end."""

    def __init__(self, queries: Path, rate: int, seconds: int) -> None:
        self.outcomes: dict[str, Outcome] = {}
        common = ["dnsperf", "-s", "127.0.0.1", "-p", str(PORT), "-d", str(queries), "-l", str(seconds), "-t", "5"]
        self._running = {
            "udp": subprocess.Popen([*common, "-Q", str(rate)], stdout=subprocess.PIPE, text=True),
            "tcp": subprocess.Popen(
                [*common, "-m", "tcp", "-Q", str(rate // 10), "-c", "4", "-O", "num-queries-per-conn=20"],
                stdout=subprocess.PIPE,
                text=True,
            ),
        }

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        for transport, process in self._running.items():
            text, _ = process.communicate()
            sent, lost = (int(re.findall(rf"Queries {word}:\s+(\d+)", text)[0]) for word in ("sent", "lost"))
            self.outcomes[transport] = Outcome(sent=sent, lost=lost)

    @property
    def runs(self) -> bool:
        return any(process.poll() is None for process in self._running.values())


def _await_answer(port: int) -> None:
    query = bytes.fromhex("0001010000010000000000000161076578616d706c65036f72670000010001")
    deadline = time.monotonic() + _READY_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        while time.monotonic() < deadline:
            try:
                client.sendto(query, ("127.0.0.1", port))
                client.recv(512)
                return
            except OSError:
                continue
    raise SystemExit(f"nobody answers on port {port}")


def _started(command: Sequence[str]) -> int:
    return subprocess.Popen([*command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid


class Running:
    """A server that was started here or by the tool; `pid` is who is told to stop."""

    def __init__(self, server: DnsServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.pid = _started(server.command(folder))
        _await_answer(PORT)

    def restart(self) -> None:
        """The arm without the tool: stop it, and start it again."""
        os.kill(self.pid, signal.SIGTERM)
        with_end = time.monotonic() + _READY_S
        while time.monotonic() < with_end and os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        self.pid = subprocess.Popen(
            [*self.server.command(self.folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).pid
        _await_answer(PORT)

    def reload(self) -> None:
        """With the tool, which stops the old one."""
        self._by_the_tool("--output", "/dev/null", "--", *self.server.command(self.folder))

    def restart_by_the_tool(self) -> None:
        """The new one starts when the old one is gone."""
        gone = f'until [ -z "$(ls /proc/{self.pid}/fd 2>/dev/null)" ]; do sleep 0.01; done'
        new = shlex.join(self.server.command(self.folder))
        self._by_the_tool("--run", f"kill {self.pid}; {gone}; {new} >/dev/null 2>&1 &")

    def _by_the_tool(self, *how: str) -> None:
        command = [*_TOOL, "reload", f"udp://127.0.0.1:{PORT}", "--flows", "none", *how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, done.stdout, file=sys.stderr)
            raise SystemExit(f"the reload failed with {done.returncode}")
        report = json.loads(done.stdout)
        assert len(report["groups"]) >= 2, report["groups"]
        self.pid = report["new"]["pids"][0]


def trial(server: DnsServer, act: Callable[[Running], None], times: int, rate: int) -> dict[str, Outcome]:
    """So many restarts or reloads under load."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        queries = folder / "queries"
        queries.write_text("".join(f"h{number}.example.org A\n" for number in range(1000)))
        backend = None
        if server.needs_backend:
            (folder / "backend").mkdir()
            _unbound(folder / "backend", BACKEND_PORT)
            backend = subprocess.Popen(
                ["unbound", "-d", "-c", f"{folder}/backend/unbound.conf"], stderr=subprocess.DEVNULL
            )
            _await_answer(BACKEND_PORT)
        server.configure(folder, PORT)
        running = Running(server, folder)
        try:
            with Load(queries, rate, seconds=10 + 6 * times) as load:
                for _ in range(times):
                    time.sleep(_GAP_S)
                    act(running)
                    if not load.runs:
                        raise SystemExit("the load ended before the last of them")
            return load.outcomes
        finally:
            subprocess.run([*_TOOL, "detach", f"udp://127.0.0.1:{PORT}"], capture_output=True, check=False)
            os.kill(running.pid, signal.SIGKILL)
            if backend is not None:
                backend.kill()
                backend.wait()


_ARMS = {"restart": Running.restart, "reload": Running.reload, "run": Running.restart_by_the_tool}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=SERVERS, action="append")
    parser.add_argument("--arm", choices=_ARMS, action="append")
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--rate", type=int, default=3000)
    options = parser.parse_args()
    if not is_apart():
        go_apart("tests.servers.dns")
    missing = [name for name in ("dnsperf", "unbound", "knotd", "dnsdist") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    ok = True
    for name in options.server or SERVERS:
        for arm in options.arm or _ARMS:
            outcomes = trial(SERVERS[name], _ARMS[arm], options.reloads, options.rate)
            counted = ("udp",) if arm == "run" else tuple(outcomes)
            lost = sum(outcomes[transport].lost for transport in counted)
            ok &= (lost == 0) == (arm != "restart")
            for transport, outcome in outcomes.items():
                print(f"{name:8} {arm:8} {transport}  {outcome.sent:7} sent  {outcome.lost:5} lost", flush=True)
    sys.exit(not ok)


if __name__ == "__main__":
    main()
