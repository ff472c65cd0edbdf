"""Name service for a sink: every domain has the sink for its mail host, with a TLSA record where it does TLS.

Layer: adapter.  RFC 1035, 5321 §5.1, 6698 §3.
It plays a validating resolver on the loopback, and says of every answer that it was signed (AD), although nothing was:
with it a demo or a benchmark runs as DANE runs, with the same questions and the same decisions.  It proves nothing of
DNSSEC; the tests do that with real signatures behind a real validating resolver.
Invariants: `answer` never raises; one datagram in, one out, no larger than what came over UDP may be.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: seconds that answers may be kept
TTL_S: Final = 300
#: connections over TCP at a time; nothing that we answer needs it, a client may insist
_MAX_CONNECTIONS: Final = 100
#: seconds for a client to send its next question over TCP
_IDLE_S: Final = 10.0
#: ports that are tried where any will do
_PORTS: Final = 20
_SOA: Final = "localhost. root.localhost. 1 3600 600 86400 300"


@dataclass(frozen=True, slots=True)
class SinkNames:
    """What there is to tell.

    Attributes:
        host_name: of the sink; every other name is a domain whose mail goes there.
        address: of the sink, IPv4 or IPv6; port: where it listens.
        tlsa: record of its certificate as text (``3 1 1 …``), None without TLS.
        own_hosts: each domain has a mail host of its own, ``mx.`` and its name, at the same address.
    """

    host_name: str
    address: str
    port: int
    tlsa: str | None
    own_hosts: bool = False

    def records(self, name: str, rdtype: str) -> tuple[str, ...]:
        """Rdata as text of a name in lower case without the last dot; empty if there is none."""
        host = self.host_name.lower()
        if self.own_hosts and (found := name.partition("mx."))[1] and found[0] in ("", f"_{self.port}._tcp."):
            host = f"mx.{found[2]}"
        if name == host:
            return (self.address,) if rdtype == self._address_type else ()
        if name == f"_{self.port}._tcp.{host}":
            return (self.tlsa,) if rdtype == "TLSA" and self.tlsa is not None else ()
        if rdtype == "MX" and name and not name.startswith("_"):
            return (f"10 mx.{name}." if self.own_hosts else f"10 {self.host_name}.",)
        return ()

    @property
    def _address_type(self) -> str:
        return "A" if ipaddress.ip_address(self.address).version == 4 else "AAAA"


def answer(names: SinkNames, query: bytes) -> bytes | None:
    """The response to one question, or None for what is none."""
    try:
        asked = dns.message.from_wire(query, ignore_trailing=True)
    except (dns.exception.DNSException, struct.error, ValueError, IndexError):
        return None
    if asked.flags & dns.flags.QR or asked.opcode() != dns.opcode.QUERY or len(asked.question) != 1:
        return None
    question = asked.question[0]
    response = dns.message.make_response(asked, recursion_available=True)
    response.flags |= dns.flags.AD
    if question.rdclass != dns.rdataclass.IN:
        response.set_rcode(dns.rcode.REFUSED)
        return response.to_wire()
    name = question.name.to_text(omit_final_dot=True).lower()
    records = names.records("" if name == "." else name, dns.rdatatype.to_text(question.rdtype))
    if question.name == dns.name.root and question.rdtype == dns.rdatatype.SOA:
        records = (_SOA,)
    if records:
        response.answer = [dns.rrset.from_text(question.name, TTL_S, "IN", question.rdtype, *records)]
    else:
        response.authority = [dns.rrset.from_text(dns.name.root, TTL_S, "IN", "SOA", _SOA)]
    return response.to_wire()


@contextlib.asynccontextmanager
async def open_names(names: SinkNames, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Answer over UDP and TCP while the block runs; gives the address and port.

    Raises:
        OSError: it cannot listen there.
        ValueError: the address is none.
    """
    datagrams, streams = await _bind(host, port)
    with datagrams, streams:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_datagrams, names, datagrams)
            nursery.start_soon(_serve_streams, names, trio.SocketListener(streams))
            yield host, datagrams.getsockname()[1]
            nursery.cancel_scope.cancel()


async def _bind(host: str, port: int) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Sockets for UDP and TCP with one port; of any port, one that both can have, since another may have half of it."""
    family = socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
    for tries_left in reversed(range(1 if port else _PORTS)):
        datagrams = trio.socket.socket(family, socket.SOCK_DGRAM)
        streams = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await datagrams.bind((host, port))
            streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await streams.bind((host, datagrams.getsockname()[1]))
            streams.listen(_MAX_CONNECTIONS)
        except BaseException as error:
            datagrams.close()
            streams.close()
            if not tries_left or not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                raise
        else:
            return datagrams, streams
    raise AssertionError("unreachable")


async def _serve_datagrams(names: SinkNames, datagrams: trio.socket.SocketType) -> None:
    while True:
        with contextlib.suppress(OSError):  # that an earlier answer found nobody
            query, client = await datagrams.recvfrom(65535)
            response = answer(names, query)
            if response is not None:
                await datagrams.sendto(response, client)


async def _serve_streams(names: SinkNames, listener: trio.SocketListener) -> None:
    limiter = trio.CapacityLimiter(_MAX_CONNECTIONS)

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream, limiter:
                await _serve_stream(names, stream)

    await trio.serve_listeners(serve, [listener])


async def _serve_stream(names: SinkNames, stream: trio.SocketStream) -> None:
    held = bytearray()
    while True:
        with trio.move_on_after(_IDLE_S) as scope:
            data = await stream.receive_some(65536)
        if scope.cancelled_caught or not data:
            return
        held += data
        while len(held) >= 2 and len(held) >= (end := 2 + int.from_bytes(held[:2], "big")):
            response = answer(names, bytes(held[2:end]))
            del held[:end]
            if response is None:
                return
            await stream.send_all(len(response).to_bytes(2, "big") + response)
