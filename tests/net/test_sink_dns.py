"""The name service of a sink: what it answers, and that nothing sent to it ends it."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.net import sink_dns
from engine.net.resolver import Resolver
from engine.net.sink_dns import SinkNames, answer, open_names
from engine.policy.answers import Status
from fakes.patience import PATIENCE_S

NAMES = SinkNames("mx.sink.test", "127.0.0.1", 2525, "3 1 1 " + "ab" * 32)
SIX = SinkNames("mx.sink.test", "::1", 2525, None)
OWN = SinkNames("mx.sink.test", "127.0.0.1", 2525, "3 1 1 " + "ab" * 32, own_hosts=True)


def ask(names: SinkNames, name: str, rdtype: str, rdclass: str = "IN") -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, rdclass)
    wire = answer(names, query.to_wire())
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    assert response.flags & dns.flags.AD
    return response


@pytest.mark.parametrize(
    ("names", "name", "rdtype", "rdata"),
    [
        (NAMES, "example.org", "MX", ["10 mx.sink.test."]),
        (OWN, "example.org", "MX", ["10 mx.example.org."]),
        (OWN, "mx.example.org", "A", ["127.0.0.1"]),
        (OWN, "mx.example.org", "MX", []),
        (OWN, "_2525._tcp.mx.example.org", "TLSA", ["3 1 1 " + "ab" * 32]),
        (OWN, "_25._tcp.mx.example.org", "TLSA", []),
        (OWN, "_mta-sts.example.org", "TXT", []),
        (NAMES, "EXAMPLE.org", "MX", ["10 mx.sink.test."]),
        (NAMES, "mx.sink.test", "A", ["127.0.0.1"]),
        (NAMES, "mx.sink.test", "AAAA", []),
        (NAMES, "mx.sink.test", "MX", []),
        (NAMES, "example.org", "A", []),
        (NAMES, "_2525._tcp.mx.sink.test", "TLSA", ["3 1 1 " + "ab" * 32]),
        (NAMES, "_25._tcp.mx.sink.test", "TLSA", []),
        (NAMES, "_mta-sts.example.org", "TXT", []),
        (NAMES, ".", "SOA", ["localhost. root.localhost. 1 3600 600 86400 300"]),
        (SIX, "mx.sink.test", "AAAA", ["::1"]),
        (SIX, "_2525._tcp.mx.sink.test", "TLSA", []),
    ],
)
def test_answers(names: SinkNames, name: str, rdtype: str, rdata: list[str]) -> None:
    response = ask(names, name, rdtype)
    assert response.rcode() == dns.rcode.NOERROR
    assert [record.to_text() for rrset in response.answer for record in rrset] == rdata
    assert bool(response.authority) is not bool(rdata)


@pytest.mark.parametrize("names", [NAMES, OWN, SIX])
@pytest.mark.parametrize("edns", [False, True])
@given(name=st.from_regex(r"\A(_mta-sts\.|_|mx\.|)[a-zA-Z0-9_-]{1,63}(\.[a-zA-Z-]{1,20}){0,3}\Z"), is_mx=st.booleans())
def test_the_quick_way_says_the_same(names: SinkNames, edns: bool, name: str, is_mx: bool) -> None:
    options: dict[str, Any] = {"use_edns": 0, "ednsflags": dns.flags.DO, "payload": 1232} if edns else {}
    wire = dns.message.make_query(name, "MX" if is_mx else "TXT", **options).to_wire()
    quick, slow = answer(names, wire), sink_dns._answer(names, wire)
    assert quick is not None
    assert slow is not None
    first, second = dns.message.from_wire(quick), dns.message.from_wire(slow)
    assert first == second
    assert (first.answer, first.authority, first.edns) == (second.answer, second.authority, second.edns)


def test_another_class_is_refused() -> None:
    assert ask(NAMES, "version.bind", "TXT", "CH").rcode() == dns.rcode.REFUSED


@given(st.binary(max_size=100) | st.builds(lambda a, b: a[: len(a) - b], st.binary(min_size=12), st.integers(0, 12)))
def test_octets_that_are_no_question_get_no_answer_or_an_answer(octets: bytes) -> None:
    answer(NAMES, octets)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_question_does_no_harm(place: int, octet: int) -> None:
    wire = bytearray(dns.message.make_query("example.org", "MX", use_edns=0).to_wire())
    wire[place % len(wire)] = octet
    answer(NAMES, bytes(wire))


def test_the_resolver_of_the_engine_believes_it() -> None:
    async def main() -> None:
        async with open_names(NAMES, "127.0.0.1", 0) as (host, port):
            resolver = Resolver([f"{host}:{port}"])
            found = await resolver.query("example.org", "MX")
            missing = await resolver.query("mx.sink.test", "AAAA")
            assert (found.status, found.secure) == (Status.OK, True)
            assert (missing.status, missing.secure) == (Status.NODATA, True)

    trio.run(main)


def test_nothing_sent_over_either_transport_ends_it() -> None:
    async def main() -> None:
        async with open_names(NAMES, "127.0.0.1", 0) as (host, port):
            await trio.to_thread.run_sync(abuse, host, port)
            for send in (dns.query.udp, dns.query.tcp):
                query = dns.message.make_query("example.org", "MX")
                question = partial(send, query, host, port=port, timeout=PATIENCE_S)
                response = await trio.to_thread.run_sync(question)
                assert response.answer

    trio.run(main)


def abuse(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for octets in (b"", b"\0", b"\xff" * 600, b"\0" * 12):
            datagrams.sendto(octets, (host, port))
    for octets in (b"", b"\0", b"\0\5abc", b"\0\0", b"\0\3abc", b"\xff\xff" + b"x" * 70_000):
        with socket.create_connection((host, port), timeout=PATIENCE_S) as stream:
            stream.sendall(octets)
            stream.shutdown(socket.SHUT_WR)
            try:
                assert stream.recv(100) == b""
            except ConnectionResetError:
                pass
