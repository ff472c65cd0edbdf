"""The signed test zones are what they claim to be, as a real validating resolver sees them.  No engine here."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dns.flags
import pytest

from fakes.dnssec import Algorithm, SignedDns, Signing, Zone, tlsa_name

TLSA = b"\x55" * 32


def mail_zone(origin: str, **options: object) -> Zone:
    host = f"mx.{origin}"
    zone = Zone(origin, **options)  # type: ignore[arg-type]
    zone.mx(origin, 10, host).a(host, "127.0.0.2").aaaa(host, "::1").tlsa(host, 3, 1, 1, TLSA)
    return zone.cname(f"alias.{origin}", host).a(f"*.wild.{origin}", "127.0.0.3")


@pytest.fixture(scope="module")
def resolver(shared_dns: Callable[..., SignedDns]) -> SignedDns:
    zones = [mail_zone(f"{signing.value}.test", signing=signing) for signing in Signing]
    zones += [
        mail_zone("ed25519.test", algorithm=Algorithm.ED25519),
        mail_zone("child.valid.test"),
        mail_zone("partly.test", bogus={("_25._tcp.mx.partly.test", "TLSA")}),
        mail_zone("failing.test"),
        Zone("malformed.test", is_malformed=True)
        .a("malformed.test", "127.0.0.4")
        .add("_25._tcp.malformed.test", "TLSA", b"\x03\x01")
        .add("_25._tcp.malformed.test", "TLSA", b"\x03\x01\x01" + TLSA),
        Zone("nullmx.test").mx("nullmx.test", 0, "."),
    ]
    return shared_dns(zones, failing=["_tcp.mx.failing.test"], silent=["silent.valid.test"])


SECURE, INSECURE, BOGUS = ("NOERROR", True), ("NOERROR", False), ("SERVFAIL", False)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("valid.test", SECURE),
        ("child.valid.test", SECURE),
        ("ed25519.test", SECURE),
        ("expired.test", BOGUS),
        ("missing.test", BOGUS),
        ("wrong.test", BOGUS),
        ("wrong-ds.test", BOGUS),
        ("no-ds.test", INSECURE),
        ("none.test", INSECURE),
    ],
)
def test_the_way_a_zone_is_signed_is_what_the_resolver_says(
    resolver: SignedDns, origin: str, expected: tuple[str, bool]
) -> None:
    host = f"mx.{origin}"
    for name, rdtype in [(origin, "MX"), (host, "A"), (host, "AAAA"), (tlsa_name(host), "TLSA"), (origin, "TXT")]:
        assert resolver.status(name, rdtype) == expected, (name, rdtype)
    denial = ("NXDOMAIN", expected[1]) if expected != BOGUS else BOGUS
    assert resolver.status(f"nothing.{origin}", "A") == denial


def test_aliases_and_wildcards_are_followed_and_proven(resolver: SignedDns) -> None:
    answer = resolver.ask("alias.valid.test", "A")
    assert answer.flags & dns.flags.AD
    assert [rrset.rdtype.name for rrset in answer.answer if rrset.rdtype.name != "RRSIG"] == ["CNAME", "A"]
    assert resolver.status("any.wild.valid.test", "A") == SECURE
    assert resolver.ask("nullmx.test", "MX").answer[0][0].to_text() == "0 ."


def test_only_the_record_set_that_is_meant_to_be_bogus_is(resolver: SignedDns) -> None:
    assert resolver.status("partly.test", "MX") == SECURE
    assert resolver.status("mx.partly.test", "A") == SECURE
    assert resolver.status(tlsa_name("mx.partly.test"), "TLSA") == BOGUS
    assert any("DNSSEC Bogus" in str(o.to_text()) for o in resolver.ask(tlsa_name("mx.partly.test"), "TLSA").options)


def test_an_authority_that_fails_for_tlsa_only(resolver: SignedDns) -> None:
    assert resolver.status("mx.failing.test", "A") == SECURE
    assert resolver.status(tlsa_name("mx.failing.test"), "TLSA") == BOGUS


def test_an_authority_that_never_answers(resolver: SignedDns) -> None:
    with pytest.raises(TimeoutError):
        resolver.status("mx.silent.valid.test", "A", timeout_s=0.3)


def test_malformed_records_arrive_as_they_are_and_are_secure(resolver: SignedDns) -> None:
    wire = resolver.ask_wire(tlsa_name("malformed.test"), "TLSA")
    assert wire[3] & 0x20
    assert b"\x00\x02\x03\x01" in wire
    assert TLSA in wire
    assert resolver.status("malformed.test", "A") == SECURE
    assert resolver.status("malformed.test", "MX") == SECURE
    assert resolver.status("nothing.malformed.test", "A") == ("NXDOMAIN", True)


def test_a_name_of_no_zone_is_proven_not_to_exist(resolver: SignedDns) -> None:
    assert resolver.status("elsewhere.example", "MX") == ("NXDOMAIN", True)


def test_a_resolver_that_does_not_validate_vouches_for_nothing(signed_dns: Callable[..., SignedDns]) -> None:
    resolver = signed_dns([mail_zone("valid.test"), mail_zone("wrong.test", signing=Signing.WRONG)], validate=False)
    assert resolver.status("valid.test", "MX") == INSECURE
    assert resolver.status("wrong.test", "MX") == INSECURE


@pytest.mark.slow
def test_zones_can_change_and_signatures_can_run_out(signed_dns: Callable[..., SignedDns]) -> None:
    zone = mail_zone("moving.test")
    resolver = signed_dns([zone])
    assert resolver.status("new.moving.test", "A") == ("NXDOMAIN", True)
    zone.a("new.moving.test", "127.0.0.9")
    resolver.reload()
    assert resolver.status("new.moving.test", "A") == SECURE
    now = datetime.now(UTC)
    zone.window = (now - timedelta(days=2), now - timedelta(days=1, hours=1))
    resolver.reload()
    assert resolver.status("new.moving.test", "A") == BOGUS


def test_what_cannot_be_served_is_an_error_and_leaves_nothing_behind() -> None:
    with pytest.raises(ValueError, match="no such signed RRset"):
        SignedDns([Zone("a.test", bogus={("b.a.test", "A")})])
    with pytest.raises(RuntimeError, match=r"nsd does not serve a\.test"):
        SignedDns([Zone("a.test").add("_25._tcp.a.test", "TLSA", b"\x03")])


def test_both_servers_are_gone_afterwards() -> None:
    with SignedDns([Zone("a.test")]) as dns_servers:
        port, place = dns_servers.authority_port, dns_servers._place.path
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    assert not place.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
