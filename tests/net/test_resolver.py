"""Resolver: what each kind of answer becomes, AD along CNAME chains (R1 to R3), malformed records (R19, R20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.flags
import dns.message
import pytest

from engine.net.dns_message import MAX_RECORDS
from engine.policy.answers import Mx, Status
from fakes.dns_server import Reply, resolver_for, serve_dns

if TYPE_CHECKING:
    from collections.abc import Mapping

MX = ("example.test", "MX")
ZONE = {
    MX: Reply(records=["20 B.example.test.", "10 a.example.test."], ad=True),
    ("a.example.test", "A"): Reply(records=["192.0.2.1", "192.0.2.2"]),
    ("a.example.test", "AAAA"): Reply(records=["2001:DB8::1"]),
}


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
        assert len({wire[15:20] for wire in server.wires}) > 5, "the case of .test"
        assert len(set(server.source_ports)) > 10


async def test_nodata_and_nxdomain_are_answers_with_a_negative_ttl() -> None:
    async with serve_dns({("a.test", "A"): Reply(records=["192.0.2.1"])}) as server:
        resolver = resolver_for(server)
        nodata = await resolver.query("a.test", "MX")
        assert (nodata.status, nodata.ttl_s, nodata.is_error) == (Status.NODATA, 60, False)
        missing = await resolver.query("no.example", "MX")
        assert (missing.status, missing.ttl_s) == (Status.NXDOMAIN, 60)


async def test_thousands_of_mx_records_are_bounded_and_the_best_kept() -> None:
    records = [f"{(number * 7919) % 3000} h{number}.test." for number in range(2500)]
    async with serve_dns({MX: Reply(records=records, truncate=True)}) as server:
        answer = await resolver_for(server, timeout_s=30.0).query(*MX)
    preferences = sorted(int(record.split()[0]) for record in records)
    assert sorted(mx.preference for mx in answer.mx) == preferences[:MAX_RECORDS]


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


async def test_ad_of_an_untrusted_server_is_unknown() -> None:
    async with serve_dns(ZONE) as server:
        answer = await resolver_for(server, trust_ad="never").query(*MX)
        assert (answer.ad, answer.secure) == (False, None)


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
        answer = await resolver_for(server, timeout_s=30.0).query("a.test", "A")
        assert len(answer.addresses) == MAX_RECORDS
