"""The servers of docs/recipes/ that are not in every test run: how each shares its port, and how it stops."""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from reuseport_tool.bench.load import REQUEST
from reuseport_tool.record import record
from tests.servers.servers import ADDRESS, PORT, Server

_APPS = Path(__file__).parent / "apps"
_PAGE = "".join(f"<p>{number**5}</p>" for number in range(10_000))


@record
class Recipe:
    """A server, and how it must be stopped.

    Attributes:
        make: the server, whose files go into a folder.
        settle_s: how long the old side, which gets no new connections any more, needs to read what it has accepted;
            0 where its stop signal means "finish what you have accepted".
        request: what a client says, if it is not HTTP.
        queues: whether connections wait in its accept queue under load, and not in the server.
    """

    make: Callable[[Path], Server]
    settle_s: float = 0.0
    queues: bool = True
    request: bytes = REQUEST


def node(_: Path) -> Server:
    command = (_node(), str(_APPS / "node.js"), ADDRESS, str(PORT))
    return Server(name="node", command=command, stop_signal="TERM", listeners=1)


def node_cluster(_: Path) -> Server:
    command = (_node(), str(_APPS / "node_cluster.js"), ADDRESS, str(PORT))
    return Server(name="node cluster", command=command, stop_signal="TERM", listeners=2)


def _node() -> str:
    """A Node with `reusePort` (22.12 or 23.1); Debian's are older, so `make recipes` takes it from npm."""
    return str(Path(sys.prefix) / "node" / "node_modules" / ".bin" / "node")


def apache(folder: Path) -> Server:
    """One listener for each bucket: ListenCoresBucketsRatio 1 makes as many as there are CPUs."""
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_text(_PAGE)
    modules = "/usr/lib/apache2/modules"
    names = ("mpm_event", "authz_core", "dir", "mime", "filter", "deflate")
    config = folder / "apache.conf"
    config.write_text(
        "\n".join(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in names)
        + f"""
        ServerName localhost
        ServerRoot {folder}
        ErrorLog {folder}/error.log
        TypesConfig /etc/mime.types
        Listen {ADDRESS}:{PORT}
        ListenBacklog 1024
        ListenCoresBucketsRatio 1
        DocumentRoot {folder}/www
        DirectoryIndex index.html
        SetOutputFilter DEFLATE
        User www-data
        Group www-data
        StartServers 2
        ThreadsPerChild 4
        MaxRequestWorkers 8
        <Directory {folder}/www>
            Require all granted
        </Directory>
        """
    )
    # Each instance needs a PidFile of its own.
    script = f'exec /usr/sbin/apache2 -D FOREGROUND -f {config} -c "PidFile {folder}/$$.pid"'
    command = ("/bin/sh", "-c", script)
    return Server(name="apache", command=command, stop_signal="WINCH", listeners=2)


def caddy(folder: Path) -> Server:
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_text(_PAGE)
    (folder / "Caddyfile").write_text(
        f"""{{
    admin off
    auto_https off
    storage file_system {folder}/storage
}}
http://:{PORT} {{
    bind {ADDRESS}
    root * {folder}/www
    encode gzip
    file_server
}}
"""
    )
    command = ("/usr/bin/caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile"))
    return Server(name="caddy", command=command, stop_signal="TERM", listeners=1)


def granian(_: Path) -> Server:
    command = (
        *(sys.executable, "-m", "granian", "--interface", "wsgi", "--workers", "2", "--backlog", "1024"),
        *("--host", ADDRESS, "--port", str(PORT), "--log-level", "warning", "tests.servers.app:app"),
    )
    return Server(name="granian", command=command, stop_signal="TERM", listeners=2)


def hypercorn(_: Path) -> Server:
    """It sets SO_REUSEPORT only with more than one worker, which then share one listener."""
    command = (
        *(sys.executable, "-m", "hypercorn", "--workers", "2", "--backlog", "1024"),
        *("--bind", f"{ADDRESS}:{PORT}", "tests.recipes.apps.asgi:app"),
    )
    return Server(name="hypercorn", command=command, stop_signal="TERM", listeners=1)


def uvicorn(_: Path) -> Server:
    command = (sys.executable, "-m", "tests.recipes.apps.uvicorn_reuseport", ADDRESS, str(PORT))
    return Server(name="uvicorn", command=command, stop_signal="TERM", listeners=1)


def uwsgi(folder: Path) -> Server:
    program = shutil.which("uwsgi") or "/usr/bin/uwsgi"
    command = (
        *(program, "--plugin", "python3", "--http-socket", f"{ADDRESS}:{PORT}", "--reuse-port", "--listen", "1024"),
        *("--master", "--processes", "2", "--module", "tests.servers.app:app", "--disable-logging", "--need-app"),
        *("--hook-master-start", "unix_signal:15 gracefully_kill_them_all"),
    )
    return Server(name="uwsgi", command=command, stop_signal="TERM", listeners=1)


def pgbouncer(folder: Path) -> Server:
    """Its own console answers, so that no PostgreSQL is needed: see ASK_PGBOUNCER."""
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
        [databases]
        [pgbouncer]
        listen_addr = {ADDRESS}
        listen_port = {PORT}
        unix_socket_dir =
        auth_type = any
        admin_users = deploy
        so_reuseport = 1
        listen_backlog = 1024
        max_client_conn = 2000
        log_connections = 0
        log_disconnections = 0
        """
    )
    # It refuses to run as root.
    nobody = ("/usr/bin/setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    command = (*nobody, "/usr/sbin/pgbouncer", "-q", str(config))
    return Server(name="pgbouncer", command=command, stop_signal="INT", listeners=1)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


# StartupMessage, Query and Terminate of PostgreSQL's protocol 3.0.
ASK_PGBOUNCER = (
    _message(b"", struct.pack("!I", 3 << 16) + b"user\0deploy\0database\0pgbouncer\0\0")
    + _message(b"Q", b"SHOW VERSION\0")
    + _message(b"X", b"")
)


RECIPES = {
    "node": Recipe(make=node),
    "node cluster": Recipe(make=node_cluster),
    "apache": Recipe(make=apache),
    "caddy": Recipe(make=caddy, settle_s=5.0, queues=False),
    "granian": Recipe(make=granian, queues=False),
    "hypercorn": Recipe(make=hypercorn, settle_s=5.0, queues=False),
    "uvicorn": Recipe(make=uvicorn, settle_s=5.0, queues=False),
    "uwsgi": Recipe(make=uwsgi),
    "pgbouncer": Recipe(make=pgbouncer, request=ASK_PGBOUNCER, queues=False),
}
