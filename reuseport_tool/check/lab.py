"""What the live checks work with: servers of their own, a program, pins that nobody else sees."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Conflict, Unsupported
from reuseport_tool.group import policy as policies
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, folders, sockets, wchan
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.iterator import TcpListeners
from reuseport_tool.kernel.packets import Family
from reuseport_tool.models import Policy

PORT = 8000
BACKLOG = 128
_PINS = "check"
_POLICIES = (Policy.HASH, Policy.ROUND_ROBIN)


def listener(family: Family) -> socket.socket:
    """A listening socket with SO_REUSEPORT and TCP Fast Open on the family's server address.

    Raises:
        Unsupported: no IPv6 here.
    """
    try:
        made = socket.socket(family.socket_family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        raise Unsupported(
            f"the kernel has no {family}: {error.strerror}", hint="it needs CONFIG_IPV6, or no ipv6.disable=1"
        ) from error
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, BACKLOG)
    made.bind((family.server, PORT))
    made.listen(BACKLOG)
    return made


class Server(Closing):
    """A server in a thread. It sleeps in epoll_wait(2) and answers each request with its name.

    It accepts when it is woken for its listener, but only after watch(): before that it is a server
    that is busy with something else.

    Attributes:
        listener: what it listens on; it owns it.
        cookie: of the listener.
        woken: set when epoll_wait returned for the listener.
    """

    def __init__(self, name: str, listening: socket.socket) -> None:
        self.name = name
        self.listener = listening
        self.cookie = sockets.cookie(listening.fileno())
        self.woken = threading.Event()
        self._connections: dict[int, socket.socket] = {}
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._serve, name=f"server {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._stop)
        self.listener.close()
        for connection in self._connections.values():
            connection.close()

    def watch(self) -> None:
        """EPOLL_CTL_ADD of the listener."""
        self._epoll.register(self.listener, select.EPOLLIN)

    def asleep(self) -> bool:
        """Whether its thread sits in epoll_wait."""
        return self._thread.native_id is not None and wchan.in_epoll_wait(self._thread.native_id)

    def accept_all(self) -> int:
        """Accept until EAGAIN, from any thread. Returns how many connections there were."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self.listener.accept()
                count += 1
                # Reset at the end: an orphan in FIN_WAIT1 would hold the namespace for minutes.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._connections[connection.fileno()] = connection
                self._epoll.register(connection, select.EPOLLIN)
        return count

    def _serve(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._stop:
                    return
                if fd in self._connections:
                    self._answer(fd)
                elif fd == self.listener.fileno():
                    self.woken.set()
                    self.accept_all()

    def _answer(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            if connection.recv(4096):
                connection.sendall(self.name.encode())
                return
        except OSError:  # reset by its client
            pass
        self._epoll.unregister(fd)


class Lab:
    """What concurrent cases share. Cases run in threads, each in a namespace of its own.

    Attributes:
        listeners: the iterator over TCP listeners of the calling thread's namespace.
        stop: set when the whole check is to end early.
    """

    def __init__(self, pins: Place, listeners: TcpListeners, chosen: Mapping[Policy, policies.ChosenPolicy]) -> None:
        self.listeners = listeners
        self._chosen = chosen
        self.stop = threading.Event()
        self._pins = pins
        self._loading = threading.Lock()  # a ChosenPolicy is for one thread at a time

    def attach(self, name: str, policy: Policy, fds: list[int]) -> State:
        """Attach our program to the group of these listeners, which become generation 1.

        Args:
            name: of the folder of pins, for this one case.
        """
        with ExitStack() as stack:
            with self._loading:
                maps, program = self._chosen[policy].fresh(stack)
            opened = State.create(self._pins / name, maps, program)
            opened.generations.create(1)
            for fd in fds:
                opened.generations[1].add(fd)
            opened.choice.switch(1)
            sockets.attach_program(fds[0], program)
            stack.pop_all()
            return opened


@contextlib.contextmanager
def opened(root: Path | None) -> Iterator[Lab]:
    """A lab with a private folder of pins, which is removed at the end.

    Raises:
        Unsupported: no iterator over TCP sockets (Linux 5.9), no BTF.
        MissingCapability: loading a program, or mounting a bpffs, is not permitted.
    """
    with private_pins(root) as folder, TcpListeners() as listeners, ExitStack() as stack:
        chosen = {policy: stack.enter_context(policies.ChosenPolicy(policy, None)) for policy in _POLICIES}
        # Now, while there are no listeners: what is compiled in a child process would keep them open meanwhile.
        for policy in chosen.values():
            policy.prepare()
        yield Lab(folder, listeners, chosen)


@contextlib.contextmanager
def private_pins(root: Path | None) -> Iterator[Place]:
    """A folder for pins that nobody else sees, which is removed at the end with what is in it.

    What a killed run left is removed, too: its folder is not locked.

    Raises:
        MissingCapability: mounting a bpffs, or writing to it, is not permitted.
    """
    home = Place(bpffs.find_or_mount(root)) / bpffs.HOME / _PINS
    folder = home / str(os.getpid())
    try:
        with folders.lock(folder, _never):
            _remove_leftovers(home, folder)
            for name in folder.names():  # of a run with our number: in a container it is often the same
                (folder / name).remove()
            try:
                yield folder
            finally:
                folder.remove()
    finally:
        with contextlib.suppress(OSError):  # another run's folder is in it
            folders.remove_empty(home)


def _remove_leftovers(home: Place, own: Place) -> None:
    for folder in map(home.__truediv__, home.names()):
        if folder != own:
            with contextlib.suppress(Conflict), folders.lock(folder, _never):
                folder.remove()


def _never(_holder: int) -> bool:
    return False
