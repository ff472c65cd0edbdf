"""A small name server on loopback, UDP and TCP, that answers from a dictionary and misbehaves as told.

    async with serve_dns({("example.test", "MX"): Reply(records=["10 mx.example.test."], ad=True)}) as server:
        Resolver([server.address], …)

A key is (name, type), the name in lower case without trailing dot.  What is not there is NXDOMAIN, or NODATA if the
name exists with another type; both with an SOA record, so that they can be cached.  `server.queries` has every question
in order of arrival as (name, type, transport).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

from engine.net.resolver import Resolver

#: makes other octets out of a response
Mangle = Callable[[bytes], bytes]


@dataclass(slots=True)
class Reply:
    """How to answer one question.

    Attributes:
        records: rdata as text; bytes are put on the wire as they are, as a malformed record needs it.
        cnames: chain before the records: each target in turn.
        ttl: of every record.
        ad: the AD bit.
        rcode: such as ``SERVFAIL``.
        soa: negative TTL of an SOA record in the authority section, or None for none.
        drop: how many times not to answer at all, over either transport; -1 for never.
        drop_tcp: never answer over TCP.
        truncate: set TC over UDP, so that the client asks again over TCP.
        ede: extended error code and text.
        mangle: changes the octets; over UDP only where `mangle_tcp` is False.
        delay_s: how long to wait before the reply.
        refuse_edns: FORMERR as long as the query has EDNS.
        repeat: sends the mangled octets first and the right ones after them (UDP), as a forger would.
    """

    records: Sequence[str | bytes] = ()
    cnames: Sequence[str] = ()
    ttl: int = 300
    ad: bool = False
    rcode: str = "NOERROR"
    soa: int | None = None
    drop: int = 0
    drop_tcp: bool = False
    truncate: bool = False
    ede: tuple[int, str] | None = None
    mangle: Mangle | None = None
    mangle_tcp: bool = True
    delay_s: float = 0.0
    refuse_edns: bool = False
    repeat: bool = False


Zone = MutableMapping[tuple[str, str], Reply]


class ManualClock:
    """A clock for caches that stands still until a test sets it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def resolver_for(*servers: DnsServer | str, **options: object) -> Resolver:
    """A resolver that asks these servers."""
    names = [server if isinstance(server, str) else server.address for server in servers]
    return Resolver(names, **{"timeout_s": 60.0, **options})  # type: ignore[arg-type]


@dataclass
class DnsServer:
    """A running server.

    Attributes:
        zone: may be changed while it runs.
        listens_tcp: False closes TCP connections at once.
    """

    zone: Zone
    host: str = "127.0.0.1"
    port: int = 0
    listens_tcp: bool = True
    queries: list[tuple[str, str, str]] = field(default_factory=list)
    wires: list[bytes] = field(default_factory=list)
    source_ports: list[int] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def count(self, name: str, rdtype: str) -> int:
        """How many times this was asked, over either transport."""
        return sum(query[:2] == (name, rdtype) for query in self.queries)

    def respond(self, wire: bytes, transport: str) -> tuple[list[bytes], float]:
        """The messages to send for a query, and how many seconds to wait before."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self.queries.append((name, rdtype, transport))
        self.wires.append(wire)
        reply = self.zone.get((name, rdtype)) or self._denial(name)
        if reply.drop:
            reply.drop -= reply.drop > 0
            return [], 0.0
        if reply.drop_tcp and transport == "tcp":
            return [], 0.0
        octets = render(query, reply, transport)
        if reply.mangle is None or (transport == "tcp" and not reply.mangle_tcp):
            return [octets], reply.delay_s
        mangled = reply.mangle(octets)
        return ([mangled, octets] if reply.repeat else [mangled]), reply.delay_s

    def _denial(self, name: str) -> Reply:
        exists = any(owner == name or owner.endswith("." + name) for owner, _ in self.zone)
        return Reply(rcode="NOERROR" if exists else "NXDOMAIN", soa=60)


def render(query: dns.message.Message, reply: Reply, transport: str) -> bytes:
    """The response to `query` that `reply` describes."""
    response = dns.message.make_response(query, recursion_available=True, our_payload=1232)
    if reply.refuse_edns and query.edns >= 0:
        response.set_rcode(dns.rcode.FORMERR)
        response.use_edns(False)
        return response.to_wire()
    if transport == "udp" and reply.truncate:
        response.flags |= dns.flags.TC
        return response.to_wire()
    response.set_rcode(dns.rcode.from_text(reply.rcode))
    if reply.ad:
        response.flags |= dns.flags.AD
    if reply.ede:
        response.use_edns(
            0, payload=1232, options=[dns.edns.EDEOption(dns.edns.EDECode.make(reply.ede[0]), reply.ede[1])]
        )
    owner = query.question[0].name
    for target in reply.cnames:
        response.answer.append(dns.rrset.from_text(owner, reply.ttl, "IN", "CNAME", target))
        owner = dns.name.from_text(target)
    if reply.records:
        response.answer.append(_rrset(owner, reply, query.question[0].rdtype))
    if reply.soa is not None:
        soa = f"ns.test. root.test. 1 3600 600 86400 {reply.soa}"
        response.authority.append(dns.rrset.from_text("test.", 3600, "IN", "SOA", soa))
    return response.to_wire(max_size=65535)


def _rrset(owner: dns.name.Name, reply: Reply, rdtype: dns.rdatatype.RdataType) -> dns.rrset.RRset:
    rrset = dns.rrset.RRset(owner, dns.rdataclass.IN, rdtype)
    rrset.update_ttl(reply.ttl)
    for record in reply.records:
        if isinstance(record, bytes):
            # a generic record goes out as it is, however wrong
            rdata: dns.rdata.Rdata = dns.rdata.GenericRdata(dns.rdataclass.IN, rdtype, record)
            rrset.items[rdata] = None
        else:
            rrset.add(dns.rdata.from_text(dns.rdataclass.IN, rdtype, record))
    return rrset


@contextlib.asynccontextmanager
async def serve_dns(
    zone: Mapping[tuple[str, str], Reply] | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[DnsServer]:
    """Run a server until the block ends."""
    server = DnsServer(dict(zone or {}), host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    datagrams, listeners = await _listen(family, host)
    server.port = datagrams.getsockname()[1]
    with datagrams:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_datagrams, server, datagrams, nursery)
            nursery.start_soon(trio.serve_listeners, lambda stream: _serve_stream(server, stream), listeners)
            try:
                yield server
            finally:
                nursery.cancel_scope.cancel()


async def _listen(family: socket.AddressFamily, host: str) -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """The same ephemeral port for UDP and TCP; another process may have one of them, so try a few."""
    for tries_left in reversed(range(5)):
        datagrams = trio.socket.socket(family, socket.SOCK_DGRAM)
        await datagrams.bind((host, 0))
        try:
            return datagrams, await trio.open_tcp_listeners(datagrams.getsockname()[1], host=host)
        except OSError:
            datagrams.close()
            if not tries_left:
                raise
    raise AssertionError("unreachable")


async def _serve_datagrams(server: DnsServer, channel: trio.socket.SocketType, nursery: trio.Nursery) -> None:
    while True:
        wire, peer = await channel.recvfrom(4096)
        server.source_ports.append(peer[1])
        messages, delay_s = server.respond(wire, "udp")
        nursery.start_soon(_send, channel, messages, peer, delay_s)


async def _send(
    channel: trio.socket.SocketType, messages: Sequence[bytes], peer: tuple[str, int], delay_s: float
) -> None:
    await trio.sleep(delay_s)
    for message in messages:
        with contextlib.suppress(OSError):
            await channel.sendto(message, peer)


async def _serve_stream(server: DnsServer, stream: trio.SocketStream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError, EOFError):
            if not server.listens_tcp:
                return
            length = int.from_bytes(await _exactly(stream, 2), "big")
            messages, delay_s = server.respond(await _exactly(stream, length), "tcp")
            if not messages:
                await trio.sleep_forever()
            await trio.sleep(delay_s)
            for message in messages:
                await stream.send_all(len(message).to_bytes(2, "big") + message)


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    return received
