"""Put one DNS question over TCP.

Layer: adapter (trio).  Spec: RFC 1035 §4.2.2, RFC 7766 §5 (TCP on truncation).
Invariants: a response of another question is an error, since nobody else writes into our connection; a deadline is the
caller's.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from .dns_message import NotOurs, parse_response
from .dns_names import Garbled

if TYPE_CHECKING:
    from .dns_message import Question, Response
    from .dns_servers import Server


async def exchange_stream(server: Server, question: Question) -> Response:
    """Ask over TCP.

    Raises:
        OSError: no connection, or it broke.
        Garbled: another answer than ours, or one that cannot be read.
    """
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as channel:
        await channel.connect((server.address, server.port))
        stream = trio.SocketStream(channel)
        try:
            await stream.send_all(len(question.wire).to_bytes(2, "big") + question.wire)
            length = int.from_bytes(await _receive_exactly(stream, 2), "big")
            wire = await _receive_exactly(stream, length)
        except trio.BrokenResourceError as error:
            raise Garbled(f"connection lost: {error.__cause__ or error}") from None
    try:
        return parse_response(wire, question)
    except NotOurs as error:
        raise Garbled(f"the response over TCP is not ours: {error}") from None


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        if not chunk:
            raise Garbled(f"connection closed after {len(received)} of {count} octets")
        received += chunk
    return bytes(received)
