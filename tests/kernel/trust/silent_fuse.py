"""A file system that stops answering, and a process of a user that stands in it.

1. The server mounts FUSE at a folder for everybody, answers what it must, and never a read.
2. The user's process goes there and opens and maps a file. It says that this memory is its command line, and that its
   environment has a TiB (prctl(PR_SET_MM_MAP), which needs no right). It listens and prints "ready".
3. The server answers nothing any more. Whoever looks into that folder or file waits until the server ends.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from reuseport_tool.kernel import libc

LOOKUP, GETATTR, OPEN, READ, INIT = 1, 3, 14, 15, 26
FILE = 2  # the number of the only file
_TIB = 1 << 40
_ENDLESS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14


def serve(folder: str, port: int, user: list[str]) -> None:
    """Print "ready" when the user's process is in place, and from then on be silent."""
    device = os.open("/dev/fuse", os.O_RDWR)
    libc.mount("silent", folder, "fuse", data=f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other")
    command = [*user, sys.executable, __file__, folder, str(port)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    while victim.stdout not in (ready := select.select([device, victim.stdout], [], [])[0]):
        if device in ready:
            answer(device, os.read(device, 1 << 17))
    if victim.stdout.readline():
        print("ready", victim.pid, flush=True)
        time.sleep(600)


def answer(device: int, request: bytes) -> None:
    _, kind, unique, node = struct.unpack_from("=IIQQ", request)
    attributes = struct.pack("=6Q10I", node, 4096, 8, 0, 0, 0, 0, 0, 0, 0o40777, 2, 0, 0, 0, 4096, 0)
    file = struct.pack("=6Q10I", FILE, 4096, 8, 0, 0, 0, 0, 0, 0, 0o100666, 1, 0, 0, 0, 4096, 0)
    error, body = 0, b""
    if kind == INIT:
        body = struct.pack("=IIIIHHIIHHI7I", 7, 31, 4096, 0, 1, 1, 4096, 1, 1, 0, 0, *[0] * 7)
    elif kind == GETATTR:
        body = struct.pack("=QII", 0, 0, 0) + (file if node == FILE else attributes)
    elif kind == LOOKUP:
        body = struct.pack("=4QII", FILE, 0, 0, 0, 0, 0) + file
    elif kind == OPEN:
        body = struct.pack("=QII", 0, 0, 0)
    elif kind == READ:
        return
    else:
        error = -errno.ENOSYS
    os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def stand(folder: str, port: int) -> None:
    """The user's process. Nothing of its memory is read any more once this is done."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    os.chdir(folder)
    fd = os.open("file", os.O_RDWR)
    mapped = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE), mmap.mmap(-1, _TIB, _ENDLESS)
    words, endless = (ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in mapped)
    fields = [0, 0, 0, *map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[1:])]
    heap = ctypes.CDLL(None).sbrk
    heap.restype = ctypes.c_void_p
    # start and end of code, data and heap, start of the stack; then where arguments and environment are
    places = (fields[25], fields[26], fields[44], fields[45], fields[46], heap(0), fields[27])
    layout = struct.pack("=11QQIi", *places, words, words + 4096, endless, endless + _TIB, 0, 0, -1)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_MM, _PR_SET_MM_MAP, layout, len(layout), 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MM_MAP)")
    print("ready", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    stand(sys.argv[1], int(sys.argv[2]))
