"""Resolver: servers in turn, UDP and TCP, AD trust (R1 to R3), cache, single flight, and whatever a server may send."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.net.dns_message import MAX_RECORDS, Garbled, NotOurs, Response, build_query, parse_response
from engine.net.dns_servers import Server, ServerList, parse_server, system_servers
from engine.net.resolver import ERROR_TTL_S, Resolver
from engine.policy.answers import Mx, Status
from fakes.dns_server import DnsServer, Reply, serve_dns

if TYPE_CHECKING:
    from collections.abc import Mapping

MX = ("example.test", "MX")
ZONE = {
    MX: Reply(records=["20 B.example.test.", "10 a.example.test."], ad=True),
    ("a.example.test", "A"): Reply(records=["192.0.2.1", "192.0.2.2"]),
    ("a.example.test", "AAAA"): Reply(records=["2001:DB8::1"]),
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def resolver_for(*servers: DnsServer | str, **options: object) -> Resolver:
    names = [server if isinstance(server, str) else server.address for server in servers]
    return Resolver(names, **{"timeout_s": 3.0, **options})  # type: ignore[arg-type]


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_records_of_each_type() -> None:
    async with serve_dns(ZONE) as server:
        resolver = resolver_for(server)
        answer = await resolver.query("Example.TEST.", "MX")
        assert (answer.status, answer.ad, answer.secure) == (Status.OK, True, True)
        assert set(answer.mx) == {Mx(20, "b.example.test"), Mx(10, "a.example.test")}
        assert (answer.name, answer.canonical_name, answer.ttl_s) == ("example.test", "example.test", 300)
        assert answer.server == server.address
        assert (await resolver.query("a.example.test", "A")).addresses in (
            ("192.0.2.1", "192.0.2.2"),
            ("192.0.2.2", "192.0.2.1"),
        )
        six = await resolver.query("a.example.test", "AAAA")
        assert six.addresses == ("2001:db8::1",)
        assert six.secure is False


async def test_a_query_asks_for_ad_with_edns_and_a_fresh_id_and_port() -> None:
    """R2"""
    zone = {(f"n{number}.test", "A"): Reply(records=["192.0.2.1"]) for number in range(20)}
    async with serve_dns(zone) as server:
        resolver = resolver_for(server)
        for name, _ in zone:
            await resolver.query(name, "A")
        for wire in server.wires:
            query = dns.message.from_wire(wire)
            assert query.flags & dns.flags.AD
            assert query.flags & dns.flags.RD
            assert query.ednsflags & dns.flags.DO
            assert query.payload == 1232
        assert len({wire[:2] for wire in server.wires}) > 15
        assert len(set(server.source_ports)) > 10


async def test_nodata_and_nxdomain_are_answers_with_a_negative_ttl() -> None:
    async with serve_dns({("a.test", "A"): Reply(records=["192.0.2.1"])}) as server:
        resolver = resolver_for(server)
        nodata = await resolver.query("a.test", "MX")
        assert (nodata.status, nodata.ttl_s, nodata.is_error) == (Status.NODATA, 60, False)
        missing = await resolver.query("no.example", "MX")
        assert (missing.status, missing.ttl_s) == (Status.NXDOMAIN, 60)


async def test_a_null_mx_is_an_empty_exchange() -> None:
    async with serve_dns({MX: Reply(records=["0 ."])}) as server:
        assert (await resolver_for(server).query(*MX)).mx == (Mx(0, ""),)


async def test_extended_error_is_kept() -> None:
    async with serve_dns({MX: Reply(rcode="SERVFAIL", ede=(6, "bad signature"))}) as server:
        answer = await resolver_for(server).query(*MX)
        assert answer.status is Status.SERVFAIL
        assert answer.extended_error == "EDE 6 (DNSSEC Bogus): bad signature"
        assert answer.server == server.address


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "x." * 150 + "test", "a..test", "\u00fc.test"])
async def test_what_cannot_be_a_name_does_not_exist(name: str) -> None:
    async with serve_dns(ZONE) as server:
        answer = await resolver_for(server).query(name, "A")
        assert (answer.status, answer.ad) == (Status.NXDOMAIN, False)
        assert not server.queries


# --- AD (R1, R3) ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "trusts_ad", "trust_ad", "trusted"),
    [
        (["127.0.0.1"], False, "loopback", True),
        (["::1"], False, "loopback", True),
        (["127.0.0.1", "::1"], False, "loopback", True),
        (["192.0.2.53"], False, "loopback", False),
        (["192.0.2.53"], True, "loopback", True),
        (["127.0.0.1", "192.0.2.53"], False, "loopback", False),
        (["192.0.2.53"], False, "always", True),
        (["127.0.0.1"], True, "never", False),
    ],
)
def test_whose_ad_is_believed(servers: list[str], trusts_ad: bool, trust_ad: str, trusted: bool) -> None:
    """R1"""
    found = ServerList(tuple(map(parse_server, servers)), trusts_ad)
    assert found.is_ad_trusted(trust_ad) is trusted  # type: ignore[arg-type]


async def test_ad_of_an_untrusted_server_is_unknown() -> None:
    async with serve_dns(ZONE) as server:
        answer = await resolver_for(server, trust_ad="never").query(*MX)
        assert (answer.ad, answer.secure) == (False, None)


def test_resolv_conf(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# x\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver nonsense\noptions rotate trust-ad\n"
    )
    found = system_servers(str(file))
    assert found == ServerList((Server("192.0.2.53"), Server("fe80::1%eth0")), True)
    assert Resolver(resolv_conf=str(file)).is_ad_trusted
    assert system_servers(str(tmp_path / "none")) == ServerList((Server("127.0.0.1"),))


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", Server("192.0.2.1")),
        (" 192.0.2.1:5353 ", Server("192.0.2.1", 5353)),
        ("[192.0.2.1]:5353", Server("192.0.2.1", 5353)),
        ("2001:db8::1", Server("2001:db8::1")),
        ("[2001:DB8::1]", Server("2001:db8::1")),
        ("[::1]:53530", Server("::1", 53530)),
    ],
)
def test_name_server_addresses(text: str, server: Server) -> None:
    assert parse_server(text) == server
    assert parse_server(str(server)) == server


@pytest.mark.parametrize(
    "text", ["", "ns.example", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "[::1", "[::1]5", "[::1]:", "::1%"]
)
def test_what_is_no_name_server_address(text: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_server(text)
    assert info.value.key == "dns.nameservers"


async def test_cname_chain_in_one_response() -> None:
    zone = {("w.test", "A"): Reply(cnames=["x.test.", "Y.test."], records=["192.0.2.7"], ad=True, ttl=77)}
    async with serve_dns(zone) as server:
        answer = await resolver_for(server).query("w.test", "A")
        assert answer.cnames == ("x.test", "y.test")
        assert answer.canonical_name == "y.test"
        assert (answer.addresses, answer.ad, answer.ttl_s) == (("192.0.2.7",), True, 77)


async def test_cname_chain_across_responses_is_secure_only_if_all_are() -> None:
    """R3"""
    zone = {
        ("w.test", "A"): Reply(cnames=["x.test."], ad=False),
        ("x.test", "A"): Reply(cnames=["y.test."], ad=True),
        ("y.test", "A"): Reply(records=["192.0.2.7"], ad=True, ttl=9),
    }
    async with serve_dns(zone) as server:
        resolver = resolver_for(server)
        answer = await resolver.query("w.test", "A")
        assert (answer.cnames, answer.addresses) == (("x.test", "y.test"), ("192.0.2.7",))
        assert (answer.ad, answer.ttl_s) == (False, 9)
        assert (await resolver.query("x.test", "A")).ad is True


async def test_nodata_behind_a_cname_is_not_asked_again() -> None:
    async with serve_dns({("w.test", "A"): Reply(cnames=["x.test."], soa=30)}) as server:
        answer = await resolver_for(server).query("w.test", "A")
        assert (answer.status, answer.canonical_name, answer.ttl_s) == (Status.NODATA, "x.test", 30)
        assert len(server.queries) == 1


async def test_nxdomain_behind_a_cname() -> None:
    async with serve_dns({("w.test", "A"): Reply(cnames=["x.test."], rcode="NXDOMAIN", soa=30)}) as server:
        answer = await resolver_for(server).query("w.test", "A")
        assert (answer.status, answer.canonical_name) == (Status.NXDOMAIN, "x.test")


@pytest.mark.parametrize(
    "zone",
    [
        {("w.test", "A"): Reply(cnames=["x.test.", "w.test."])},
        {("w.test", "A"): Reply(cnames=["x.test."]), ("x.test", "A"): Reply(cnames=["w.test."])},
        {("w.test", "A"): Reply(cnames=[f"n{number}.test." for number in range(20)])},
        {("w.test", "A"): Reply(cnames=["n0.test."])}
        | {(f"n{number}.test", "A"): Reply(cnames=[f"n{number + 1}.test."]) for number in range(40)},
    ],
)
async def test_cname_loops_and_endless_chains_are_errors(zone: Mapping[tuple[str, str], Reply]) -> None:
    """R3: limit, loop => ERR"""
    async with serve_dns(zone) as server:
        answer = await resolver_for(server).query("w.test", "A")
        assert answer.status is Status.SERVFAIL
        assert len(server.queries) < 25


async def test_cname_query_gives_the_status_of_the_first_name() -> None:
    zone = {("w.test", "CNAME"): Reply(records=["x.test."], ad=True)}
    async with serve_dns(zone) as server:
        answer = await resolver_for(server).query("w.test", "CNAME")
        assert (answer.status, answer.ad, answer.canonical_name) == (Status.OK, True, "x.test")
        assert answer.rdata == (b"\x01x\x04test\x00",)


# --- malformed records (0.1, R19, R20) --------------------------------------------------------------------------------


async def test_malformed_tlsa_records_come_through_with_their_siblings() -> None:
    good = bytes([3, 1, 1]) + bytes(32)
    records = [good, bytes([3, 1, 1]) + bytes(31), b"", b"\x03", bytes([3, 1, 2, 9]), bytes([9, 9, 9])]
    async with serve_dns({("_25._tcp.mx.test", "TLSA"): Reply(records=records, ad=True)}) as server:
        answer = await resolver_for(server).query("_25._tcp.mx.test", "TLSA")
        assert answer.status is Status.OK
        assert answer.ad
        assert sorted(answer.rdata) == sorted(records)


async def test_one_bad_record_does_not_hide_the_others() -> None:
    async with serve_dns({("a.test", "A"): Reply(records=[b"\x01\x02", "192.0.2.9"])}) as server:
        assert (await resolver_for(server).query("a.test", "A")).addresses == ("192.0.2.9",)


async def test_only_bad_records_are_an_error_not_a_denial() -> None:
    """R6"""
    async with serve_dns({("a.test", "A"): Reply(records=[b"\x01\x02"]), MX: Reply(records=[b"\x00"])}) as server:
        resolver = resolver_for(server)
        assert (await resolver.query("a.test", "A")).status is Status.SERVFAIL
        assert (await resolver.query(*MX)).status is Status.SERVFAIL


async def test_the_number_of_records_is_bounded() -> None:
    records = [f"10.{number >> 8}.{number & 255}.1" for number in range(2000)]
    async with serve_dns({("a.test", "A"): Reply(records=records, truncate=True)}) as server:
        assert len((await resolver_for(server).query("a.test", "A")).addresses) == MAX_RECORDS


# --- servers that misbehave -------------------------------------------------------------------------------------------


async def test_truncated_over_udp_is_asked_over_tcp() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True)}) as server:
        resolver = resolver_for(server)
        assert (await resolver.query(*MX)).mx == (Mx(10, "a.test"),)
        assert [query[2] for query in server.queries] == ["udp", "tcp"]
        assert resolver.counts.tcp == 1


async def test_garbled_over_udp_is_asked_over_tcp() -> None:
    reply = Reply(records=["10 a.test."], mangle=lambda wire: wire[:-20], mangle_tcp=False)
    async with serve_dns({MX: reply}) as server:
        assert (await resolver_for(server).query(*MX)).mx == (Mx(10, "a.test"),)
        assert [query[2] for query in server.queries] == ["udp", "tcp"]


async def test_garbled_everywhere_is_an_error_after_the_other_servers() -> None:
    reply = Reply(records=["10 a.test."], mangle=lambda wire: wire[:-20])
    async with serve_dns({MX: reply}) as bad, serve_dns(ZONE) as good:
        assert (await resolver_for(bad).query(*MX)).status is Status.SERVFAIL
        answer = await resolver_for(bad, good).query(*MX)
        assert (answer.status, answer.server) == (Status.OK, good.address)


async def test_tcp_that_is_refused_is_an_error() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True)}) as server:
        server.listens_tcp = False
        answer = await resolver_for(server).query(*MX)
        assert answer.status is Status.SERVFAIL
        assert "closed" in answer.extended_error or "lost" in answer.extended_error


@pytest.mark.parametrize(
    "forge",
    [
        lambda wire: bytes([wire[0] ^ 1]) + wire[1:],
        lambda wire: wire.replace(b"\x07example", b"\x07exbmple"),
        lambda wire: wire[:2] + bytes([wire[2] & 0x7F]) + wire[3:],
        lambda wire: wire[:11],
        lambda wire: b"",
    ],
    ids=["id", "question", "not a response", "short", "empty"],
)
async def test_what_does_not_match_the_question_is_passed_over(forge: object) -> None:
    """RFC 5452 §9"""
    async with serve_dns({MX: Reply(records=["10 a.test."], mangle=forge, repeat=True)}) as server:  # type: ignore[arg-type]
        assert (await resolver_for(server).query(*MX)).mx == (Mx(10, "a.test"),)
        assert [query[2] for query in server.queries] == ["udp"]


async def test_a_server_without_edns() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], refuse_edns=True)} | {("b.test", "A"): Reply()}) as server:
        resolver = resolver_for(server)
        assert (await resolver.query(*MX)).mx == (Mx(10, "a.test"),)
        before = len(server.queries)
        await resolver.query("b.test", "A")
        assert len(server.queries) == before + 1
        assert dns.message.from_wire(server.wires[-1]).edns == -1


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
async def test_the_next_server_is_asked_after_an_error(rcode: str) -> None:
    async with serve_dns({MX: Reply(rcode=rcode)}) as first, serve_dns(ZONE) as second:
        answer = await resolver_for(first, second).query(*MX)
        assert (answer.status, answer.server) == (Status.OK, second.address)
        alone = await resolver_for(first).query(*MX)
        assert alone.status is Status.SERVFAIL
        assert alone.extended_error == rcode


async def test_a_server_that_is_not_there_costs_no_time() -> None:
    async with serve_dns(ZONE) as server:
        with trio.fail_after(2):
            answer = await resolver_for("127.0.0.1:1", server, timeout_s=60.0).query(*MX)
        assert answer.server == server.address
        assert (await resolver_for("127.0.0.1:1").query(*MX)).status is Status.SERVFAIL


async def test_a_lost_datagram_is_sent_again() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], drop=1)}) as server:
        assert (await resolver_for(server, timeout_s=1.5).query(*MX)).status is Status.OK
        assert len(server.queries) == 2


async def test_a_silent_server_is_a_timeout_within_the_time() -> None:
    async with serve_dns({MX: Reply(drop=-1)}) as server:
        start = trio.current_time()
        answer = await resolver_for(server, timeout_s=0.6).query(*MX)
        assert answer.status is Status.TIMEOUT
        assert answer.is_error
        assert trio.current_time() - start < 1.5
        assert len(server.queries) == 3


async def test_a_silent_server_is_asked_last_for_a_while() -> None:
    async with serve_dns({MX: Reply(drop=-1), ("a.test", "A"): Reply()}) as silent, serve_dns(ZONE) as server:
        resolver = resolver_for(silent, server, timeout_s=1.5)
        assert (await resolver.query(*MX)).server == server.address
        assert (await resolver.query("a.example.test", "A")).server == server.address
        assert silent.count("a.example.test", "A") == 0


async def test_a_tcp_reply_that_never_comes_ends_in_time() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True, drop_tcp=True)}) as server:
        resolver = resolver_for(server, timeout_s=0.6)
        with trio.fail_after(3):
            assert (await resolver.query(*MX)).is_error


async def test_a_reply_in_dribbles_over_tcp() -> None:
    async with serve_dns(ZONE) as server, trio.open_nursery() as nursery:

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                query = await stream.receive_some(4096)
                (octets,), _ = server.respond(query[2:], "tcp")
                framed = len(octets).to_bytes(2, "big") + octets
                for at in range(len(framed)):
                    await stream.send_all(framed[at : at + 1])

        server.zone[MX].truncate = True
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as datagrams:
            await datagrams.bind(("127.0.0.1", port))

            async def truncate() -> None:
                wire, peer = await datagrams.recvfrom(4096)
                await datagrams.sendto(server.respond(wire, "udp")[0][0], peer)

            nursery.start_soon(truncate)
            answer = await resolver_for(f"127.0.0.1:{port}").query(*MX)
        server.zone[MX].truncate = False
        assert len(answer.mx) == 2
        nursery.cancel_scope.cancel()


# --- cache and single flight ------------------------------------------------------------------------------------------


async def test_answers_are_kept_for_their_ttl_and_no_longer() -> None:
    clock = Clock()
    async with serve_dns({MX: Reply(records=["10 a.test."], ttl=100)}) as server:
        resolver = resolver_for(server, clock=clock)
        await resolver.query(*MX)
        clock.now += 60
        kept = await resolver.query("EXAMPLE.test.", "MX")
        assert (kept.ttl_s, len(server.queries)) == (40, 1)
        assert resolver.counts.cache_hits == 1
        clock.now += 40
        assert resolver.cached_or_none(*MX) is None
        await resolver.query(*MX)
        assert len(server.queries) == 2


async def test_denials_are_kept_for_the_negative_ttl() -> None:
    """RFC 2308 §5"""
    clock = Clock()
    async with serve_dns({("b.test", "A"): Reply(), MX: Reply(rcode="NXDOMAIN", soa=None)}) as server:
        resolver = resolver_for(server, clock=clock)
        for _ in range(2):
            await resolver.query("no.test", "A")
            await resolver.query(*MX)
        assert len(server.queries) == 2
        clock.now += 10
        await resolver.query("no.test", "A")
        assert len(server.queries) == 2
        await resolver.query(*MX)
        assert len(server.queries) == 3, "a denial without SOA is not kept beyond a burst"


async def test_errors_are_kept_for_seconds_only() -> None:
    """R6"""
    clock = Clock()
    async with serve_dns({MX: Reply(rcode="SERVFAIL", soa=600)}) as server:
        resolver = resolver_for(server, clock=clock)
        await resolver.query(*MX)
        assert (await resolver.query(*MX)).status is Status.SERVFAIL
        assert len(server.queries) == 1
        clock.now += ERROR_TTL_S
        server.zone[MX] = ZONE[MX]
        assert (await resolver.query(*MX)).status is Status.OK


async def test_a_ttl_of_zero_or_beyond_reason() -> None:
    zone = {
        ("zero.test", "A"): Reply(records=["192.0.2.1"], ttl=0),
        ("long.test", "A"): Reply(records=["192.0.2.1"], ttl=2**30),
    }
    async with serve_dns(zone) as server:
        resolver = resolver_for(server)
        for _ in range(2):
            assert (await resolver.query("zero.test", "A")).ttl_s == 0
        assert len(server.queries) == 2
        assert (await resolver.query("long.test", "A")).ttl_s == 86400


async def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago() -> None:
    zone = {(f"n{number}.test", "A"): Reply(records=["192.0.2.1"]) for number in range(4)}
    async with serve_dns(zone) as server:
        resolver = resolver_for(server, cache_size=3)
        for number in (0, 1, 2, 0, 3):
            await resolver.query(f"n{number}.test", "A")
        assert resolver.cached_or_none("n1.test", "A") is None
        assert resolver.cached_or_none("n0.test", "A") is not None
        resolver.flush()
        assert resolver.cached_or_none("n0.test", "A") is None


async def test_one_query_in_flight_for_one_question() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], ttl=0, delay_s=0.05)}) as server:
        resolver = resolver_for(server)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(resolver.query, *MX)
        assert len(server.queries) == 1
        assert not resolver._flights


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_a_cancelled_waiter_takes_nobody_with_it(cancelled: int) -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], delay_s=0.1)}) as server:
        resolver = resolver_for(server)
        scopes = [trio.CancelScope() for _ in range(3)]
        statuses: dict[int, Status] = {}

        async def ask(number: int) -> None:
            with scopes[number]:
                statuses[number] = (await resolver.query(*MX)).status

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, number)
                await trio.sleep(0.01)
            scopes[cancelled].cancel()
        assert statuses == {number: Status.OK for number in range(3) if number != cancelled}
        assert not resolver._flights


async def test_questions_in_flight_are_bounded() -> None:
    zone = {(f"n{number}.test", "A"): Reply(records=["192.0.2.1"], delay_s=0.02) for number in range(12)}
    async with serve_dns(zone) as server:
        resolver = resolver_for(server, max_in_flight=3)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, 3 - resolver._turn.value)
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as asking:
                for name, rdtype in zone:
                    asking.start_soon(resolver.query, name, rdtype)
            nursery.cancel_scope.cancel()
        assert most == 3
        assert len(server.queries) == 12


async def test_counts_tell_of_secure_answers() -> None:
    """R10"""
    async with serve_dns(ZONE | {("bad.test", "A"): Reply(rcode="SERVFAIL")}) as server:
        resolver = resolver_for(server)
        await resolver.query(*MX)
        await resolver.query("a.example.test", "A")
        await resolver.query("bad.test", "A")
        counts = resolver.counts
        assert (counts.secure, counts.insecure, counts.errors) == (1, 1, 1)


async def test_over_ipv6() -> None:
    async with serve_dns(ZONE, host="::1") as server:
        server.zone[MX].truncate = True
        answer = await resolver_for(server).query(*MX)
        server.zone[MX].truncate = False
        assert (answer.status, answer.server) == (Status.OK, server.address)


# --- octets -----------------------------------------------------------------------------------------------------------

QUESTION = build_query("www.example.test", "MX", 0x1234)


def response(*records: tuple[str, str, str], rcode: int = 0) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(QUESTION.wire))
    for owner, rdtype, text in records:
        message.answer.append(dns.rrset.from_text(owner, 300, "IN", rdtype, text))
    message.set_rcode(rcode)  # type: ignore[arg-type]
    return message.to_wire()


GOOD = response(
    ("www.example.test.", "CNAME", "a.test."), ("a.test.", "MX", "10 b.test."), ("a.test.", "MX", "20 c.test.")
)


def read(wire: bytes) -> Response | None:
    try:
        return parse_response(wire, QUESTION)
    except (NotOurs, Garbled):
        return None


def test_every_cut_of_a_response_is_refused() -> None:
    assert read(GOOD) is not None
    for end in range(len(GOOD)):
        assert read(GOOD[:end]) is None


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_changed_octets_never_raise_anything_else(at: int, octets: bytes) -> None:
    read(GOOD[:at] + octets + GOOD[at + len(octets) :])


@given(st.binary(max_size=600))
def test_garbage_behind_a_right_header_never_raises_anything_else(octets: bytes) -> None:
    read(octets)
    read(GOOD[: 12 + 22] + octets)
    read(struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 65535, 65535, 65535) + GOOD[12:34] + octets)


def test_compression_pointers_that_loop_are_refused() -> None:
    head = GOOD[:6] + struct.pack("!HHH", 1, 0, 0) + GOOD[12:34]
    loop = head + struct.pack("!H", 0xC000 | len(head)) + struct.pack("!HHIH", 15, 1, 300, 0)
    assert read(loop) is None
    forward = head + struct.pack("!H", 0xC000 | (len(head) + 40)) + struct.pack("!HHIH", 15, 1, 300, 0) + bytes(60)
    assert read(forward) is None


def test_a_name_that_does_not_end_with_its_record_is_refused() -> None:
    record = b"\xc0\x0c" + struct.pack("!HHIH", 15, 1, 300, 4) + b"\x00\x0a\x01b\x00\x00"
    assert read(GOOD[:6] + struct.pack("!HHH", 1, 0, 0) + GOOD[12:34] + record) is None


def test_records_of_other_owners_and_classes_are_no_answer() -> None:
    wire = response(("other.test.", "MX", "10 b.test."))
    found = read(wire)
    assert found is not None
    assert not found.has_records
    chaos = bytearray(response(("www.example.test.", "MX", "10 b.test.")))
    at = chaos.index(b"\x00\x0f\x00\x01\x00\x00\x01\x2c")
    chaos[at + 3] = 3
    found = read(bytes(chaos))
    assert found is not None
    assert not found.has_records


def test_a_ttl_with_the_top_bit_is_zero() -> None:
    """RFC 2181 §8"""
    wire = response(("www.example.test.", "MX", "10 b.test.")).replace(b"\x00\x00\x01\x2c", b"\xff\xff\xff\xff")
    found = read(wire)
    assert found is not None
    assert (found.ttl_s, found.has_records) == (0, True)


_LABEL = st.text("abcXYZ019-_", min_size=1, max_size=20)
_NAME = st.lists(_LABEL, min_size=1, max_size=5).map(".".join)


@given(st.lists(st.tuples(st.integers(0, 65535), _NAME), min_size=1, max_size=20))
def test_agrees_with_dnspython(records: list[tuple[int, str]]) -> None:
    wire = response(*[("www.example.test.", "MX", f"{preference} {name}.") for preference, name in records])
    theirs = dns.message.from_wire(wire).find_rrset(
        dns.message.ANSWER, dns.name.from_text("www.example.test."), dns.rdataclass.IN, dns.rdatatype.MX
    )
    expected = {(record.preference, record.exchange.to_text(omit_final_dot=True).lower()) for record in theirs}
    ours = read(wire)
    assert ours is not None
    assert {(mx.preference, mx.exchange) for mx in ours.mx} == expected
