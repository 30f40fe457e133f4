"""The real servers of the tests: how to start them, and how their operators stop them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from reuseport_tool.group import discover
from reuseport_tool.group.discover import Member
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.record import record
from reuseport_tool.waiting import wait_until

ADDRESS = "127.0.0.1"
PORT = 8080
BACKEND_PORT = 8081
_START_S = 30.0
_BUILD_S = 120.0
_GO_SOURCE = Path(__file__).parent / "go" / "server.go"


@record
class Server:
    """A command that runs in the foreground, the signal that stops it gracefully, its listeners."""

    name: str
    command: tuple[str, ...]
    stop_signal: str
    listeners: int


def gunicorn(workers: int = 2, port: int = PORT, *options: str) -> Server:
    """Each worker opens a listener of its own; the arbiter has none."""
    command = (
        *(sys.executable, "-m", "gunicorn", "--reuse-port", "--workers", str(workers), "--log-level", "warning"),
        *("--bind", f"{ADDRESS}:{port}", *options, "tests.servers.app:app"),
    )
    return Server(name="gunicorn", command=command, stop_signal="TERM", listeners=workers)


_NGINX_TEMP = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def nginx(folder: Path, name: str, workers: int = 1, daemon: str = "off") -> Server:
    """Workers that are busy with each request (they compress a page), so that connections queue.

    nginx upgrades itself only where it runs as a daemon.
    """
    prefix = folder / name
    (prefix / "www").mkdir(parents=True)
    (prefix / "www" / "index.html").write_text("".join(f"<p>{number**5}</p>" for number in range(20_000)))
    configure_nginx(prefix, workers, daemon)
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command = (program, "-p", str(prefix), "-e", f"{prefix}/error.log", "-c", str(prefix / "nginx.conf"))
    return Server(name="nginx", command=command, stop_signal="QUIT", listeners=workers)


def configure_nginx(prefix: Path, workers: int, daemon: str = "on") -> None:
    """Write the configuration; nginx opens one listener for each worker."""
    (prefix / "nginx.conf").write_text(
        f"""
        daemon {daemon};
        user root;
        worker_processes {workers};
        error_log {prefix}/error.log;
        pid {prefix}/nginx.pid;
        events {{ worker_connections 4096; multi_accept off; }}
        http {{
            access_log off;
            gzip on;
            gzip_http_version 1.0;
            {"".join(f"{kind}_temp_path {prefix}/{kind};" for kind in _NGINX_TEMP)}
            types {{ text/html html; }}
            server {{ listen {ADDRESS}:{PORT} reuseport; root {prefix}/www; }}
        }}
        """
    )


def haproxy(folder: Path) -> Server:
    """A frontend that serves few connections at a time, so that the others queue in the kernel."""
    config = folder / "haproxy.cfg"
    config.write_text(
        f"""
        global
            nbthread 1
            hard-stop-after 20s
        defaults
            mode http
            timeout connect 5s
            timeout client 20s
            timeout server 20s
        frontend front
            bind {ADDRESS}:{PORT}
            maxconn 8
            backlog 1024
            default_backend back
        backend back
            server app {ADDRESS}:{BACKEND_PORT}
\n"""
    )
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    return Server(name="haproxy", command=(program, "-D", "-f", str(config)), stop_signal="USR1", listeners=1)


def go(folder: Path) -> Server:
    """tests/servers/go/server.go, built."""
    program = folder / "server"
    environment = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(folder / "cache")}
    subprocess.run(["go", "build", "-o", program, _GO_SOURCE], env=environment, check=True, timeout=_BUILD_S)
    return Server(name="go", command=(str(program), f"{ADDRESS}:{PORT}"), stop_signal="TERM", listeners=1)


def listeners(port: int = PORT) -> list[Member]:
    """The listeners on the port and who holds them."""
    found = discover.with_holders(discover.sockets_of(Endpoint(protocol=Protocol.TCP, address=ADDRESS, port=port)))
    return list(found[0].members) if found else []


def all_listeners() -> list[Member]:
    """Every TCP listener of the namespace."""
    return [member for group in discover.with_holders(discover.all_groups(Protocol.TCP)) for member in group.members]


def await_listeners(count: int, besides: frozenset[int] = frozenset(), port: int = PORT) -> None:
    """Wait for so many listeners on the port, besides those with these cookies."""

    def listening() -> bool:
        return len({member.cookie for member in listeners(port)} - besides) >= count

    assert wait_until(listening, _START_S), f"no {count} listeners on {port}"


def await_answer(port: int = PORT) -> None:
    """Wait until the server answers."""

    def answered() -> bool:
        try:
            with socket.create_connection((ADDRESS, port), timeout=5) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(client.recv(1))
        except OSError:
            return False

    assert wait_until(answered, _START_S), f"no answer on {port}"
