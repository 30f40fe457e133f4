"""An aioquic server that knows nothing of a reload: it sends back what comes on each stream, after its name.

python -m tests.servers.quic_server ADDRESS PORT NAME CERTIFICATE KEY

The certificate is a file of `quic_load.certificate()`. It ends at SIGTERM without looking back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration

ALPN = "echo"


def member(address: str, port: int) -> socket.socket:
    """A socket that joins the group."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    return sock


async def serve(address: str, port: int, name: str, certificate: Path, key: Path) -> None:
    """Until the process ends."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN])
    configuration.load_cert_chain(certificate, key)
    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(name.encode() + b" " + line)

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(answer(reader, writer))
        answering.add(task)
        task.add_done_callback(answering.discard)

    await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, stream_handler=begin), sock=member(address, port)
    )
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5])))
