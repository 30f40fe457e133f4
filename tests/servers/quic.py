"""QUIC servers as they are, under load: restarts, then reloads with the tool, side by side (`make quic`, as root).

    python -m tests.servers.quic [--server NAME]… [--family IPv4|IPv6]… [--reloads N] [--connections N]

It makes a network namespace and a bpffs of its own. aioquic's client keeps connections open, each through a NAT of its
own, and asks on each ten times a second; a connection without an answer is dead. nginx and haproxy are Debian 13's, in
a root that is made once and kept in the cache. It exits with 0 only if no connection died in a reload, and restarts
killed some.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from reuseport_tool.record import record
from tests.servers.apart import go_apart, is_apart
from tests.servers.quic_load import ANSWER_S, Connection, Echo, Http3, Load, certificate

PORT = 4433
_CACHE = Path(os.environ.get("REUSEPORT_TOOL_CACHE", Path.home() / ".cache" / "reuseport-tool")) / "roots"
_BASE, ROOT = _CACHE / "trixie", _CACHE / "trixie-quic"
_READY_S = 30.0
_ANSWERS = 10  # of each connection after the switch
# The bpffs of this mount namespace, which ends with it.
_TOOL = [sys.executable, "-m", "reuseport_tool", "--json", "--bpffs", "/sys/fs/bpf"]
_ADDRESSES = {"IPv4": ("0.0.0.0", "127.0.0.1"), "IPv6": ("::", "::1")}


@record
class QuicServer:
    """How to configure and start one.

    Attributes:
        configure: writes what it needs into a folder: the folder, the name that it answers with, the address to bind.
        command: starts it: the folder, the name, the address.
        stop: the signal for "finish what you have" in the arm without the tool.
        moves: whether a connection survives by itself that its client's address changes, if it reaches its process.
    """

    name: str
    configure: Callable[[Path, str, str], None]
    command: Callable[[Path, str, str], Sequence[str]]
    protocol: type[Echo] | type[Http3] = Http3
    stop: signal.Signals = signal.SIGTERM
    moves: bool = True


def _nginx(folder: Path, name: str, address: str) -> None:
    at = f"[{address}]:{PORT} ipv6only=on" if ":" in address else f"{address}:{PORT}"
    (folder / f"{name}.conf").write_text(
        f"""daemon off;
user root;
worker_processes 2;
pid {_inside(folder)}/{name}.pid;
error_log {_inside(folder)}/{name}.log;
events {{ }}
http {{
  access_log off;
  server {{
    listen {at} quic reuseport;
    ssl_certificate {_inside(folder)}/certificate.pem;
    ssl_certificate_key {_inside(folder)}/key.pem;
    add_header x-server {name};
    location / {{ return 200 ok; }}
  }}
}}
"""
    )


def _haproxy(owner: str) -> Callable[[Path, str, str], None]:
    def configure(folder: Path, name: str, address: str) -> None:
        at = f"quic6@[{address}]:{PORT} v6only" if ":" in address else f"quic4@{address}:{PORT}"
        both = "".join((folder / part).read_text() for part in ("certificate.pem", "key.pem"))
        (folder / "both.pem").write_text(both)
        (folder / f"{name}.conf").write_text(
            f"""global
  limited-quic
  nbthread 2
  tune.quic.socket-owner {owner}
defaults
  mode http
  timeout client 10s
frontend quic
  bind {at} ssl crt {_inside(folder)}/both.pem alpn h3
  http-request return status 200 content-type text/plain string ok hdr x-server {name}
"""
        )

    return configure


def _inside(folder: Path) -> str:
    """A folder of the root as a server in it sees it."""
    return "/" + str(folder.relative_to(ROOT))


def _in_root(*command: str) -> list[str]:
    return ["chroot", str(ROOT), *command]


SERVERS = {
    server.name: server
    for server in (
        QuicServer(
            name="aioquic",
            configure=lambda _folder, _name, _address: None,
            command=lambda folder, name, address: [
                *(sys.executable, "-m", "tests.servers.quic_server", address, str(PORT), name),
                *(f"{folder}/certificate.pem", f"{folder}/key.pem"),
            ],
            protocol=Echo,
        ),
        QuicServer(
            name="nginx",
            configure=_nginx,
            command=lambda folder, name, _: _in_root("nginx", "-c", f"{_inside(folder)}/{name}.conf"),
            stop=signal.SIGQUIT,
        ),
        *(
            QuicServer(
                name=name,
                configure=_haproxy(owner),
                command=lambda folder, name, _: _in_root("haproxy", "-db", "-f", f"{_inside(folder)}/{name}.conf"),
                stop=signal.SIGUSR1,
                moves=False,
            )
            for name, owner in (("haproxy", "connection"), ("haproxy-listener", "listener"))
        ),
    )
}


class Trial:
    """One server, one family: it is started, and replaced again and again. A context manager."""

    def __init__(self, server: QuicServer, family: str, connections: int) -> None:
        self._server = server
        self._bound, self._address = _ADDRESSES[family]
        self._count = connections
        self._number = 0
        home = ROOT / "srv" if ROOT.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="quic-", dir=home))
        certificate(self._folder)
        self._load = Load(self._address, PORT, server.protocol)
        self._pids: set[int] = set()
        self.endpoint = f"udp://[{self._bound}]:{PORT}" if ":" in self._bound else f"udp://{self._bound}:{PORT}"

    def __enter__(self) -> Trial:
        self._load.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._load.__exit__()
        for pid in self._pids:
            _end(pid)
        if kind is not None:
            return  # the error says what is wrong; what is left ends with the namespaces
        _until(lambda: not _sockets(), "a socket is left of the servers")
        _tool("detach", self.endpoint)
        shutil.rmtree(self._folder)

    def _next(self) -> list[str]:
        self._number += 1
        name = f"server{self._number}"
        self._server.configure(self._folder, name, self._bound)
        return [*self._server.command(self._folder, name, self._bound)]

    def start(self) -> int:
        """Start the next version. Returns its pid once its socket is there."""
        before = _sockets()
        pid = subprocess.Popen(self._next(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
        self._pids.add(pid)
        _until(lambda: len(_sockets()) > len(before), "the server binds no socket")
        return pid

    def connect(self) -> list[Connection]:
        """Connections of which none is dead."""
        made = self._load.connect(self._count)
        if _dead(made):
            raise SystemExit(f"no connection to {self._server.name}: {_dead(made)[0].dead}")
        return made

    def restart(self) -> int:
        """The arm without the tool: the next version beside the old one, which is told to finish. Returns the dead."""
        old = self.start()
        before = self.connect()
        self.start()
        os.kill(old, self._server.stop)
        self._load.wait(lambda: len(_dead(before)) == len(before), 15)
        return len(_dead(before))

    def rebind(self) -> int:
        """Without a reload and without the tool: every client's address changes. Returns the dead."""
        self.start()
        before = self.connect()
        self._load.rebind(before)
        self._go_on(before)
        return len(_dead(before))

    def reload(self, mode: str, times: int) -> int:
        """So many reloads; connections live from one into the next. Returns the dead."""
        self.start()
        _tool("attach", self.endpoint, "--flows", mode)
        everyone = before = self.connect()
        for _ in range(times):
            after = self._replaced(before, mode)
            self._say_dead(before, after)
            everyone = everyone + after
            before = after
        return len(_dead(everyone))

    def _replaced(self, before: list[Connection], mode: str) -> list[Connection]:
        working = self._working()
        done: list[subprocess.CompletedProcess[str]] = []
        # A connection that is not dead yet must not count as ended.
        options = ("--flow-timeout", f"{ANSWER_S:g}s", "--drain-timeout", "60s", "--output", "/dev/null", "--")
        command = [*_TOOL, "reload", self.endpoint, *options, *self._next()]
        run = lambda: done.append(subprocess.run(command, capture_output=True, text=True, check=False))  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        _until(lambda: self._working() != working or not thread.is_alive(), "no switch", 4 * _READY_S)
        after = self.connect() if thread.is_alive() else []
        if mode == "quic" and self._server.moves:
            self._load.rebind(before + after)
        self._go_on(before + after)
        self._load.end(before)
        thread.join()
        report = json.loads(done[0].stdout or "{}")
        if done[0].returncode:
            what = report.get("datagrams"), report.get("warnings"), done[0].stderr
            raise SystemExit(f"the reload exits with {done[0].returncode}: {what}")
        self._pids.add(report["new"]["pids"][0])
        return after

    def _say_dead(self, before: Sequence[Connection], after: Sequence[Connection]) -> None:
        for when, connections in (("before", before), ("after", after)):
            for why, count in collections.Counter(each.dead for each in _dead(connections)).items():
                print(f"server{self._number}: {count} connections from {when} the switch: {why}", flush=True)

    def _go_on(self, connections: list[Connection]) -> None:
        wanted = {each: each.answers + _ANSWERS for each in connections}
        self._load.wait(lambda: all(each.dead or each.answers >= count for each, count in wanted.items()), 60)

    def _working(self) -> int:
        return int(_tool("status", self.endpoint)["groups"][0]["working_generation"])


def _dead(connections: Sequence[Connection]) -> list[Connection]:
    return [connection for connection in connections if connection.dead]


def _tool(*arguments: str) -> dict:  # type: ignore[type-arg]
    done = subprocess.run([*_TOOL, *arguments], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _sockets() -> list[str]:
    """The unconnected sockets on the port, in this namespace."""
    lines = [line for name in ("udp", "udp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    return [line for line in lines if line.split()[1].endswith(f":{PORT:04X}") and line.split()[3] == "07"]


def _until(condition: Callable[[], bool], problem: str, wait_s: float = _READY_S) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(problem)
        time.sleep(0.02)


def _end(pid: int) -> None:
    """A server and its workers; the master first, because it would start another worker for each that ends."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for each in (pid, *(children.read_text().split() if children.exists() else ())):
        try:
            os.kill(int(each), signal.SIGKILL)
        except ProcessLookupError:
            continue


def make_root() -> None:
    """Debian 13 with its nginx and haproxy, once."""
    made = ROOT.with_name(ROOT.name + ".made")
    if made.exists():
        return
    shutil.rmtree(ROOT, ignore_errors=True)
    if _BASE.with_name(_BASE.name + ".made").exists():
        subprocess.run(["cp", "-a", "--reflink=auto", _BASE, ROOT], check=True)
    else:
        ROOT.mkdir(parents=True)
        mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []
        subprocess.run(["debootstrap", "--variant=minbase", "trixie", str(ROOT), *mirror], check=True)
    for file in (Path("/etc/resolv.conf"), Path("/etc/hosts"), *Path("/etc/apt/apt.conf.d").glob("*proxy*")):
        if file.exists():
            (ROOT / file.relative_to("/")).unlink(missing_ok=True)
            shutil.copy(file.resolve(), ROOT / file.relative_to("/"))
    (ROOT / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (ROOT / "usr/sbin/policy-rc.d").chmod(0o755)
    apt = _in_root("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq")
    subprocess.run([*apt, "update"], check=True)
    subprocess.run(
        [*apt, "install", "-y", "--no-install-recommends", "nginx", "haproxy"], check=True, stdout=subprocess.DEVNULL
    )
    made.touch()


def run(server: QuicServer, family: str, modes: Sequence[str], reloads: int, connections: int) -> bool:
    """All arms. Returns whether they came out as they should."""
    ok = True

    def arm(name: str, act: Callable[[Trial], int], expected: Callable[[int], bool], total: int) -> None:
        nonlocal ok
        with Trial(server, family, connections) as trial:
            dead = act(trial)
        ok &= expected(dead)
        print(f"{server.name:17} {family}  {name:24} {total:4} connections  {dead:4} dead", flush=True)

    arm("restart", Trial.restart, lambda dead: dead > 0, connections)
    arm("rebinding, no tool", Trial.rebind, lambda dead: server.moves or dead > 0, connections)
    total = connections * (reloads + 1)
    for mode in modes:
        moving = ", rebinding" if mode == "quic" and server.moves else ""
        act = functools.partial(Trial.reload, mode=mode, times=reloads)
        arm(f"{reloads} reloads, {mode}{moving}", act, lambda dead: not dead, total)
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=SERVERS, action="append")
    parser.add_argument("--family", choices=_ADDRESSES, action="append")
    parser.add_argument("--mode", choices=("address", "quic"), action="append")
    parser.add_argument("--reloads", type=int, default=5)
    parser.add_argument("--connections", type=int, default=20)
    options = parser.parse_args()
    names = options.server or list(SERVERS)
    if not is_apart():
        if names != ["aioquic"]:
            make_root()
        go_apart("tests.servers.quic")
    results = [
        run(SERVERS[name], family, options.mode or ("address", "quic"), options.reloads, options.connections)
        for name in names
        for family in options.family or _ADDRESSES
    ]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
