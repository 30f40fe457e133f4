"""A URL to ask, and the group that it leads to. Only a run with a URL imports this: http.client takes 15 ms."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reuseport_tool.errors import ToolError, UsageError
from reuseport_tool.group.state import State
from reuseport_tool.group.steering import LOOPBACK, connection
from reuseport_tool.models import Endpoint

_OK = range(200, 400)
_END_S = 1.0
_AGAIN_S = 0.2
Wait = Callable[[Callable[[], bool], float], bool]


@dataclass(frozen=True)
class Url:
    """A URL to ask, and the address of the group behind it."""

    text: str
    group: Endpoint
    address: str

    def ask(self, wait: Wait, timeout_s: float, canary: State | None = None) -> None:
        """GET it, of the canary generation if that is given. A certificate is not verified.

        Args:
            wait: waits for a condition at most so many seconds; an interrupt may end it with an exception.

        Raises ToolError for every answer but 2xx and 3xx, and for none within `timeout_s`, however slowly it comes.
        """
        asking = _Asking(self, timeout_s, canary)
        try:
            in_time = wait(asking.done, timeout_s)
        finally:
            asking.end()
        if not in_time:
            raise ToolError(f"{self.text} does not answer within {timeout_s:.3g} s")
        if asking.error is not None:
            raise asking.error
        if asking.status not in _OK:
            raise ToolError(f"{self.text} answers with status {asking.status}")

    def get(self, timeout_s: float, canary: State | None, opened: Callable[[socket.socket], None]) -> int:
        """The status of the answer. Each read of the socket, which `opened` is told, takes `timeout_s` at most."""
        parts = urllib.parse.urlsplit(self.text)
        asked = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
        try:
            with connection(self.address, self.group.port, timeout_s, canary) as client:
                opened(client)
                asked.sock = _encrypted(client, parts.hostname) if parts.scheme == "https" else client
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                asked.request("GET", path, headers={"Connection": "close", "User-Agent": "reuseport-tool"})
                return asked.getresponse().status
        except OSError as error:
            raise ToolError(f"{self.text} does not answer: {error or type(error).__name__}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise ToolError(f"{self.text} does not answer in HTTP: {type(error).__name__}") from error
        finally:
            asked.close()


def ask_until(url: Url, wait: Wait, timeout_s: float, canary: State | None) -> None:
    """Ask again and again until the answer is good. Raises as Url.ask() when the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return url.ask(wait, max(deadline_s - time.monotonic(), _AGAIN_S), canary)
        except ToolError:
            if time.monotonic() + _AGAIN_S >= deadline_s:
                raise
            wait(lambda: False, _AGAIN_S)


class _Asking:
    """One request in a thread of its own, so that it can be ended at any time."""

    def __init__(self, url: Url, timeout_s: float, canary: State | None) -> None:
        self.status = 0
        self.error: ToolError | None = None
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, args=(url, timeout_s, canary), daemon=True)
        self._thread.start()

    def _run(self, url: Url, timeout_s: float, canary: State | None) -> None:
        try:
            self.status = url.get(timeout_s, canary, self._opened)
        except ToolError as error:
            self.error = error
        except Exception as error:
            self.error = ToolError(f"{url.text} cannot be asked: {type(error).__name__}: {error}")

    def _opened(self, client: socket.socket) -> None:
        # A copy: the other one belongs to TLS from the handshake on.
        self._client = client.dup()

    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return not self._thread.is_alive()

    def end(self) -> None:
        """Cut the connection, by which the thread ends."""
        with contextlib.suppress(OSError):
            if self._client is not None:
                self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_S)
        if self._client is not None:
            self._client.close()


def _encrypted(client: socket.socket, host: str | None) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(client, server_hostname=host)


def url(text: str, groups: Sequence[Endpoint]) -> Url:
    """Find the group that a URL leads to.

    Raises:
        UsageError: not an http or https URL, or it leads to none of the groups.
    """
    hint = "for example http://127.0.0.1:8080/health"
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        if not port or not parts.hostname or any(character.isspace() for character in text):
            raise UsageError(f"not an http or https URL: {text!r}", hint=hint)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (ValueError, OSError) as error:
        raise UsageError(f"not a URL that can be asked: {text!r}: {error}", hint=hint) from error
    for address in (str(entry[4][0]) for entry in found):
        for group in groups:
            if port == group.port and _leads_to(address, group):
                return Url(text, group, address)
    raise UsageError(
        f"{text} does not lead to {', '.join(map(str, groups))}",
        hint="the new server is asked on the port it takes over",
    )


def _leads_to(address: str, group: Endpoint) -> bool:
    return address == group.address or (group.address in LOOPBACK and (":" in address) == group.is_ipv6)
