"""QUIC connections by aioquic, each through a NAT of its own, that ask again and again; unanswered ones are dead."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers.quic_server import ALPN

_GAP_S = 0.1
ANSWER_S = 6.0
_START_S = 20.0
T = TypeVar("T")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of its own for `localhost`, and its key, as PEM files in a folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return paths


class Nat:
    """Forwards between one client and the server, and may take another port for the server's side at any time."""

    def __init__(self, address: str, port: int) -> None:
        self._server = (address, port)
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._inside = self._socket()
        self._inside.bind(("::1" if ":" in address else "127.0.0.1", 0))
        self._outside = self._socket()
        self._outside.connect(self._server)
        self._client: Any = None
        self._left: list[socket.socket] = []  # open, so that no other connection gets a port that was this one's
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inside, self._forward)
        self._loop.add_reader(self._outside, self._return)

    @property
    def port(self) -> int:
        """Where the client connects to."""
        return int(self._inside.getsockname()[1])

    def rebind(self) -> None:
        """The server sees another port from now on."""
        self._loop.remove_reader(self._outside)
        self._left.append(self._outside)
        self._outside = self._socket()
        self._outside.connect(self._server)
        self._loop.add_reader(self._outside, self._return)

    def close(self) -> None:
        for sock in (self._inside, self._outside):
            self._loop.remove_reader(sock)
        for sock in (self._inside, self._outside, *self._left):
            sock.close()

    def _socket(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        return sock

    def _forward(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, self._client = self._inside.recvfrom(65535)
            with contextlib.suppress(OSError):
                self._outside.send(data)

    def _return(self) -> None:
        with contextlib.suppress(OSError):
            data = self._outside.recv(65535)
            self._inside.sendto(data, self._client)


class Http3(QuicConnectionProtocol):
    """Asks with GET / over HTTP/3, one request after another."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._http = H3Connection(self._quic)
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._names: dict[int, str] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        for found in self._http.handle_event(event):
            if isinstance(found, HeadersReceived):
                headers = dict(found.headers)
                self._names[found.stream_id] = headers.get(b"x-server", b"?").decode()
            if isinstance(found, (HeadersReceived, DataReceived)) and found.stream_ended:
                waiting = self._waiting.pop(found.stream_id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(self._names[found.stream_id])

    async def ask(self) -> str:
        """The header x-server of the answer."""
        stream = self._quic.get_next_available_stream_id()
        headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")]
        self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        return await self._waiting[stream]


class Echo(QuicConnectionProtocol):
    """Asks on one stream that stays open."""

    _stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> str:
        """The name of the server that answers."""
        if self._stream is None:
            self._stream = await self.create_stream()
        reader, writer = self._stream
        writer.write(b"line\n")
        return (await reader.readline()).split()[0].decode()


class Connection:
    """One connection. `servers` are those that answered, in order; `dead` says why it died."""

    def __init__(self) -> None:
        self.servers: list[str] = []
        self.answers = 0
        self.dead = ""
        self.ready = asyncio.Event()
        self.nat: Nat | None = None
        self._end = asyncio.Event()

    def end(self) -> None:
        """Close it after the answer that is under way."""
        self._end.set()

    async def live(self, address: str, port: int, protocol: type[Echo] | type[Http3]) -> None:
        """From the handshake to the end."""
        alpn = [ALPN] if protocol is Echo else H3_ALPN
        configuration = QuicConfiguration(alpn_protocols=alpn, verify_mode=ssl.CERT_NONE, server_name="localhost")
        try:
            async with AsyncExitStack() as stack:
                self.nat = Nat(address, port)
                stack.callback(self.nat.close)
                host = "::1" if ":" in address else "127.0.0.1"
                made = connect(host, self.nat.port, configuration=configuration, create_protocol=protocol)
                async with asyncio.timeout(_START_S):
                    client = cast(Echo | Http3, await stack.enter_async_context(made))
                while not self._end.is_set():
                    await self._ask(client)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, IndexError) as error:
            self.dead = f"{type(error).__name__} {error}"
        finally:
            self.ready.set()

    async def _ask(self, client: Echo | Http3) -> None:
        async with asyncio.timeout(ANSWER_S):
            server = await client.ask()
        self.answers += 1
        if server not in self.servers[-1:]:
            self.servers.append(server)
        self.ready.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end.wait(), _GAP_S)


class Load:
    """Connections in a thread of their own, in the namespace of who makes it. A context manager."""

    def __init__(self, address: str, port: int, protocol: type[Echo] | type[Http3]) -> None:
        self._where = address, port, protocol
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._running: list[asyncio.Task[None]] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def connect(self, count: int) -> list[Connection]:
        """So many more, each with an answer or dead."""
        return self._call(self._connect(count))

    def rebind(self, connections: list[Connection]) -> None:
        """Each gets another port, as the server sees it."""

        async def rebind() -> None:
            for connection in connections:
                if connection.nat is not None and not connection.dead:
                    connection.nat.rebind()

        self._call(rebind())

    def end(self, connections: list[Connection]) -> None:
        """Close them; those that died keep their reason."""

        async def end() -> None:
            for connection in connections:
                connection.end()

        self._call(end())

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until it holds."""

        async def wait() -> bool:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not condition():
                        await asyncio.sleep(0.02)
            return condition()

        return self._call(wait())

    async def _connect(self, count: int) -> list[Connection]:
        made = [Connection() for _ in range(count)]
        self._running += [asyncio.ensure_future(connection.live(*self._where)) for connection in made]
        for connection in made:
            await connection.ready.wait()
        return made

    async def _stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
