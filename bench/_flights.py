"""A client that costs next to nothing: flights of whole transactions, written beforehand, over blocking sockets.

It shows what a sink can take, and nothing of what sending mail takes.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import ExitStack
from typing import Final, Self

_TAKEN: Final = b"250 2.0.0 Ok: queued as "
_HEADER: Final = b"Message-ID: <%b.%010d@bench.test>\r\nSubject: x\r\n\r\n"
_LINE: Final = b"x" * 76 + b"\r\n"
#: octets that one connection takes without waiting for the sink to read
_SEND_OCTETS: Final = 1 << 20


class Flights:
    """Open connections, and what is to be sent over them.

    Args:
        port: of the sink, at 127.0.0.1.
        connections: used in turns, one flight each.
        window: transactions of a flight.
        count: messages, rounded up to whole flights; octets: of each, about.
        tls: STARTTLS, or clear text.

    Attributes:
        count: messages of a run.
    """

    def __init__(self, port: int, *, connections: int, window: int, count: int, octets: int, tls: bool) -> None:
        self._port = port
        self._connections = connections
        self._window = window
        self._tls = tls
        token = os.urandom(8).hex().encode()
        body = _LINE * max(octets // len(_LINE), 1)
        self._flights = [
            b"".join(_transaction(token, start + number, body) for number in range(window))
            for start in range(0, count, window)
        ]
        self.count = len(self._flights) * window
        self._clients: list[socket.socket] = []
        self._stack = ExitStack()

    def send(self) -> int:
        """Send everything and give the number of messages that were taken."""
        taken = 0
        for start in range(0, len(self._flights), len(self._clients)):
            pairs = list(zip(self._clients, self._flights[start : start + len(self._clients)], strict=False))
            for client, flight in pairs:
                client.sendall(flight)
            taken += sum(_read_replies(client, 3 * self._window).count(_TAKEN) for client, _ in pairs)
        return taken

    def __enter__(self) -> Self:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for _ in range(self._connections):
            client = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_OCTETS)
            _read_replies(client, 1)
            if self._tls:
                for command in (b"EHLO bench.test\r\n", b"STARTTLS\r\n"):
                    client.sendall(command)
                    _read_replies(client, 1)
                client = context.wrap_socket(client)
            self._clients.append(self._stack.enter_context(client))
            client.sendall(b"EHLO bench.test\r\n")
            _read_replies(client, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _transaction(token: bytes, number: int, body: bytes) -> bytes:
    content = _HEADER % (token, number) + body
    head = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<r%d@d.test>\r\nBDAT %d LAST\r\n" % (number, len(content))
    return head + content


def _read_replies(client: socket.socket, count: int) -> bytes:
    """Read so many replies; the middle lines of a long one have a hyphen behind the code."""
    found = b""
    while sum(line[3:4] == b" " for line in found.splitlines()) < count or not found.endswith(b"\n"):
        data = client.recv(1 << 18)
        if not data:
            raise ConnectionError(f"the sink closed after {found[-200:]!r}")
        found += data
    return found
