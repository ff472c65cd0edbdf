"""Sockets that give up: one deadline and one number of octets for everything that a call of a library reads and sends.

Layer: adapter.  Spec: expansion 5.2.
Client libraries wait so long for each read, so that a server which sends an octet now and then is waited for without
end, and they read an answer of any length into memory.  A `BoundedSocket` looks at the clock and at the count before
each read, whatever timeout the library sets.
Invariants: no read or write starts after the deadline or waits beyond it; no octet over the limit is handed on.
A host name is looked up by the system's resolver, which has timeouts of its own that nothing here can shorten.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer, WriteableBuffer


class BoundedSocket(socket.socket):
    """A connected stream socket."""

    _deadline = 0.0
    _octets = 0
    #: whether a read or write met the deadline
    is_late = False

    def limit(self, seconds: float, octets: int) -> None:
        """Let what follows take so long and read so much, all together."""
        self._deadline = time.monotonic() + seconds
        self._octets = octets
        self.is_late = False

    @property
    def is_exhausted(self) -> bool:
        """Whether the other side sent more than it may."""
        return self._octets < 0

    def settimeout(self, value: float | None) -> None:
        """Nothing: the deadline counts."""

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            super().settimeout(left)
            yield
        except TimeoutError:
            # the one of the standard library has no number
            self.is_late = True
            raise TimeoutError(errno.ETIMEDOUT, "timed out") from None

    def _count(self, octets: int) -> None:
        self._octets -= octets
        if self._octets < 0:
            raise OSError(errno.EMSGSIZE, "more than may be sent")

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        with self._in_time():
            data = super().recv(bufsize, flags)
        self._count(len(data))
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        with self._in_time():
            size = super().recv_into(buffer, nbytes, flags)
        self._count(size)
        return size

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        with self._in_time():
            super().sendall(data, flags)

    def connect_within(self, address: Any, seconds: float) -> None:
        """Connect.

        Raises:
            OSError: it cannot be done, or not in time.
        """
        self.limit(seconds, 0)
        with self._in_time():
            self.connect(address)


def connect(host: str, port: int, path: str, seconds: float) -> BoundedSocket:
    """Connect within `seconds`: to the Unix socket `path`, or if that is empty to the addresses of `host` in turn.

    Raises:
        OSError: with an errno, except where the name of the host is not known.
    """
    deadline = time.monotonic() + seconds
    if path:
        return _connect(socket.AF_UNIX, path, deadline)
    last: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    address: Any
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    for family, kind, _, _, address in found:
        if kind != socket.SOCK_STREAM or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        try:
            plug = _connect(family, address, deadline)
        except OSError as error:
            last = error
            continue
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plug
    raise last


def _connect(family: int, address: Any, deadline: float) -> BoundedSocket:
    plug = BoundedSocket(family, socket.SOCK_STREAM)
    try:
        plug.connect_within(address, deadline - time.monotonic())
    except OSError:
        plug.close()
        raise
    return plug


def wait_for(descriptor: int, events: int, deadline: float) -> bool:
    """Wait for `events` (of `select.poll`) until `deadline` of the monotonic clock; False: it passed."""
    poller = select.poll()
    poller.register(descriptor, events)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def is_quiet(descriptor: int) -> bool:
    """Whether an idle connection still stands: nothing to read, no hang-up."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return not poller.poll(0)
