"""Name service for a sink: every domain has the sink for its mail host, with a TLSA record where it does TLS.

Layer: adapter.  RFC 1035, 5321 §5.1, 6698 §3.
It plays a validating resolver on the loopback, and says of every answer that it was signed (AD), although nothing was:
with it a demo or a benchmark runs as DANE runs, with the same questions and the same decisions.  It proves nothing of
DNSSEC; the tests do that with real signatures behind a real validating resolver.
The two questions that are asked of each domain are answered without dnspython: it would be the slower half of a
benchmark with many domains.
Invariants: `answer` never raises; one datagram in, one out, no larger than what came over UDP may be.
"""

from __future__ import annotations

import contextlib
import errno
import functools
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
import dns.rdata
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


@dataclass(frozen=True)
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

    @functools.cached_property
    def host_labels(self) -> bytes:
        """The host's name in lower case as it stands in a message."""
        return dns.name.from_text(self.host_name.lower()).to_wire() or b""

    @property
    def _address_type(self) -> str:
        return "A" if ipaddress.ip_address(self.address).version == 4 else "AAAA"


def answer(names: SinkNames, query: bytes) -> bytes | None:
    """The response to one question, or None for what is none."""
    return _usual_answer(names, query) or _answer(names, query)


_HEADER: Final = struct.Struct("!HHHHHH")
_RECORD: Final = struct.Struct("!HHHIH")
_QUESTION: Final = struct.Struct("!HH")
#: where the name of the question stands, as a pointer
_ASKED: Final = 0xC000 | _HEADER.size
_RD: Final = int(dns.flags.RD)
_REPLY: Final = int(dns.flags.QR | dns.flags.RA | dns.flags.AD)
#: what must not be there in a query that is answered the quick way
_UNUSUAL: Final = int(dns.flags.QR | dns.flags.AA | dns.flags.TC) | 0x7800
_IN: Final = int(dns.rdataclass.IN)
_MX: Final = int(dns.rdatatype.MX)
_TXT: Final = int(dns.rdatatype.TXT)
_SOA_TYPE: Final = int(dns.rdatatype.SOA)
#: EDNS of a query as the engine asks, without options; and ours
_EDNS_OF_QUERY: Final = b"\0\0\x29"
_EDNS: Final = _EDNS_OF_QUERY + struct.pack("!HIH", 1232, 0x8000, 0)


def _usual_answer(names: SinkNames, query: bytes) -> bytes | None:
    """The response to a question for the MX or TXT records of a domain; None for all other questions."""
    if len(query) < _HEADER.size:
        return None
    query_id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(query)
    if flags & _UNUSUAL or (questions, answers, authorities) != (1, 0, 0) or additionals > 1:
        return None
    end = _end_of_name(query)
    labels = query[_HEADER.size : end]
    after = end + _QUESTION.size
    if len(labels) < 2 or len(labels) > 255 or after > len(query):
        return None
    edns = query[after:]
    has_edns = len(edns) == len(_EDNS) and edns.startswith(_EDNS_OF_QUERY) and edns.endswith(b"\0\0")
    if not labels.isascii() or (len(edns) if not additionals else not has_edns):
        return None
    if labels.lower() == names.host_labels or (names.own_hosts and labels[1:3].lower() == b"mx"):
        return None
    rdtype, rdclass = _QUESTION.unpack_from(query, end)
    if rdclass != _IN or rdtype not in (_MX, _TXT):
        return None
    record = _SOA_RECORD
    if rdtype == _MX and labels[1:2] != b"_":
        exchange = b"\2mx" + _ASKED.to_bytes(2) if names.own_hosts else names.host_labels
        record = _RECORD.pack(_ASKED, _MX, _IN, TTL_S, 2 + len(exchange)) + b"\0\x0a" + exchange
    counts = (1, 0) if record is not _SOA_RECORD else (0, 1)
    head = _HEADER.pack(query_id, _REPLY | flags & _RD, 1, *counts, additionals)
    return head + query[_HEADER.size : after] + record + (_EDNS if has_edns else b"")


def _end_of_name(query: bytes) -> int:
    """Where the name behind the header ends; 0 for one that is compressed or does not end."""
    position = _HEADER.size
    while position < len(query) and 0 < query[position] < 0x40:
        position += 1 + query[position]
    return position + 1 if position < len(query) and query[position] == 0 else 0


def _soa_record() -> bytes:
    """The authority section of a denial, whose owner is the root."""
    rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.SOA, _SOA).to_wire()
    assert rdata is not None
    return b"\0" + struct.pack("!HHIH", _SOA_TYPE, _IN, TTL_S, len(rdata)) + rdata


_SOA_RECORD: Final = _soa_record()


def _answer(names: SinkNames, query: bytes) -> bytes | None:
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
