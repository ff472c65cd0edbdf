"""The resolver and the routers over a real validating resolver: what is secure, what is not, what is bogus.

nsd serves signed zones, unbound validates them (`fakes.dnssec`); the engine sees them as it would in the field.
R-numbers are requirements on a DANE client: R1 the AD bit is believed, R3 aliases, R4 errors are no denials, R8 status
by address, R12 a secure denial of MX records, R15 what the base-domain search needs to know of an alias.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from engine.config import RouterOptions
from engine.delivery.routing import Route, Routed, RouteDeferred, RouterChain, Unrouteable
from engine.net.dns_message import MAX_RECORDS, NotOurs, build_query, parse_response
from engine.net.dns_names import Garbled
from engine.net.resolver import Resolver
from engine.policy.answers import Status
from engine.values import parse_address
from fakes.canned_dns import CannedDns
from fakes.dnssec import SignedDns, Signing, Zone, tlsa_name
from fakes.plain_expander import PlainExpander

FIRST, SECOND = "192.0.2.11", "192.0.2.12"


def zones() -> list[Zone]:
    good = Zone("good.test").mx("good.test", 10, "mx.good.test").mx("good.test", 20, "mx.plain.test")
    good.a("mx.good.test", FIRST).aaaa("mx.good.test", "2001:db8::11").tlsa("mx.good.test", 3, 1, 1, bytes(32))
    good.a("implicit.good.test", FIRST).mx("null.good.test", 0, ".")
    # R15: b) whole chain secure, c) first link secure and target insecure, d) first link insecure
    good.cname("secure-alias.good.test", "mx.good.test").mx("b.good.test", 10, "secure-alias.good.test")
    good.cname("leaving.good.test", "mx.plain.test").mx("c.good.test", 10, "leaving.good.test")
    good.mx("d.good.test", 10, "alias.plain.test").mx("half.good.test", 10, "half-host.good.test")
    good.a("half-host.good.test", FIRST).aaaa("half-host.good.test", "2001:db8::12")
    good.bogus = {("half-host.good.test", "AAAA")}
    good.mx("bogus-host.good.test", 10, "mx.wrong.test").mx("bogus-host.good.test", 20, "mx.good.test")
    good.mx("all-bogus.good.test", 10, "mx.wrong.test")
    for number in range(1000):  # unbound does not validate a set of 64 KiB
        good.mx("many.good.test", 1000 - number, f"h{number}.good.test")
    good.a("h0.good.test", SECOND)
    plain = Zone("plain.test", signing=Signing.NONE).mx("plain.test", 10, "mx.plain.test").a("mx.plain.test", SECOND)
    plain.cname("alias.plain.test", "mx.good.test")
    cut = Zone("cut.test", signing=Signing.NO_DS).mx("cut.test", 10, "mx.good.test")
    broken = [
        Zone(f"{signing.value}.test", signing=signing)
        .mx(f"{signing.value}.test", 10, "mx.good.test")
        .a(f"mx.{signing.value}.test", FIRST)
        for signing in (Signing.WRONG, Signing.EXPIRED, Signing.MISSING, Signing.WRONG_DS)
    ]
    return [good, plain, cut, *broken]


@pytest.fixture(scope="module")
def dns(shared_dns: Callable[..., SignedDns]) -> SignedDns:
    return shared_dns(zones(), failing=["mx.failing.good.test"])


def resolver_of(dns: SignedDns, trust_ad: str = "loopback") -> Resolver:
    return Resolver([dns.resolver_address], trust_ad=trust_ad, timeout_s=10)  # type: ignore[arg-type]


async def route(dns: SignedDns, domain: str, trust_ad: str = "loopback") -> Route:
    chain = RouterChain(
        [RouterOptions(name="dns", driver="dnslookup", transport="remote_smtp")],
        resolver_of(dns, trust_ad),
        expander=PlainExpander(),
        system_hosts=CannedDns({}),
        transports=("remote_smtp",),
        random=random.Random(1),
    )
    return await chain.route(parse_address(f"user@{domain}"))


Facts = tuple[str, bool | None, bool | None, bool | None, bool | None, str]


def facts(found: Route) -> list[Facts]:
    """(address, secure, MX secure, address secure, alias secure, canonical name) of each host."""
    assert isinstance(found, Routed), found
    return [
        (host.address, host.secure, host.mx_secure, host.address_secure, host.alias_secure, host.canonical_name)
        for host in found.hosts
    ]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (
            "good.test",
            [
                ("2001:db8::11", True, True, True, None, "mx.good.test"),
                (FIRST, True, True, True, None, "mx.good.test"),
                (SECOND, False, True, False, None, "mx.plain.test"),
            ],
        ),
        ("plain.test", [(SECOND, False, False, False, None, "mx.plain.test")]),
        (
            "cut.test",
            [
                ("2001:db8::11", False, False, True, None, "mx.good.test"),
                (FIRST, False, False, True, None, "mx.good.test"),
            ],
        ),
        ("implicit.good.test", [(FIRST, True, True, True, None, "implicit.good.test")]),
        (
            "b.good.test",
            [
                ("2001:db8::11", True, True, True, True, "mx.good.test"),
                (FIRST, True, True, True, True, "mx.good.test"),
            ],
        ),
        ("c.good.test", [(SECOND, False, True, False, True, "mx.plain.test")]),
        (
            "d.good.test",
            [
                ("2001:db8::11", False, True, False, False, "mx.good.test"),
                (FIRST, False, True, False, False, "mx.good.test"),
            ],
        ),
        ("half.good.test", [(FIRST, True, True, True, None, "half-host.good.test")]),
        (
            "bogus-host.good.test",
            [
                ("2001:db8::11", True, True, True, None, "mx.good.test"),
                (FIRST, True, True, True, None, "mx.good.test"),
            ],
        ),
    ],
)
async def test_status_of_hosts(dns: SignedDns, domain: str, expected: list[Facts]) -> None:
    """R3, R4, R8, R12, R15"""
    assert facts(await route(dns, domain)) == expected


@pytest.mark.parametrize(
    "domain", ["wrong.test", "expired.test", "missing.test", "wrong-ds.test", "all-bogus.good.test"]
)
async def test_what_is_bogus_defers(dns: SignedDns, domain: str) -> None:
    """R4: never a denial, never a host."""
    found = await route(dns, domain)
    assert isinstance(found, RouteDeferred)
    assert (found.message, found.errno) == ("host lookup did not complete", -36)
    assert any("servfail, EDE" in reason for reason in found.reasons)


async def test_a_name_that_is_proven_not_to_exist_fails(dns: SignedDns) -> None:
    found = await route(dns, "no.good.test")
    assert isinstance(found, Unrouteable)
    assert found.reasons[0] == "MX no.good.test: nxdomain, secure"


async def test_null_mx(dns: SignedDns) -> None:
    found = await route(dns, "null.good.test")
    assert isinstance(found, Unrouteable)
    assert (found.message, found.code) == ("an MX or SRV record indicated no SMTP service", "5.1.10")


async def test_a_thousand_mx_records_come_over_tcp_and_are_bounded(dns: SignedDns) -> None:
    resolver = resolver_of(dns)
    answer = await resolver.query("many.good.test", "MX")
    assert (answer.status, answer.ad, len(answer.mx), resolver.counts.tcp) == (Status.OK, True, MAX_RECORDS, 1)
    assert min(mx.preference for mx in answer.mx) == 1
    assert max(mx.preference for mx in answer.mx) == MAX_RECORDS
    found = await route(dns, "many.good.test")
    assert isinstance(found, Unrouteable), "the one host with an address is the worst of them"


async def test_ad_is_unknown_where_it_is_not_believed(dns: SignedDns) -> None:
    """R1, DN-3"""
    for address, *status, name in facts(await route(dns, "good.test", "never")):
        assert status == [None] * 4, (address, name)


async def test_a_resolver_that_does_not_validate_makes_everything_insecure(
    signed_dns: Callable[..., SignedDns],
) -> None:
    zone = Zone("good.test").mx("good.test", 10, "mx.good.test").a("mx.good.test", FIRST)
    plain = signed_dns([zone], validate=False)
    assert facts(await route(plain, "good.test")) == [(FIRST, False, False, False, None, "mx.good.test")]


async def test_tlsa_records_and_their_denial_keep_the_ad_bit(dns: SignedDns) -> None:
    resolver = resolver_of(dns)
    for _ in range(2):
        found = await resolver.query(tlsa_name("mx.good.test"), "TLSA")
        assert (found.status, found.secure, found.rdata) == (Status.OK, True, (bytes([3, 1, 1]) + bytes(32),))
        denied = await resolver.query(tlsa_name("half-host.good.test"), "TLSA")
        assert (denied.status, denied.secure) == (Status.NXDOMAIN, True)
        insecure = await resolver.query(tlsa_name("mx.plain.test"), "TLSA")
        assert (insecure.status, insecure.secure) == (Status.NXDOMAIN, False)
        bogus = await resolver.query("mx.wrong.test", "A")
        assert (bogus.status, bogus.ad) == (Status.SERVFAIL, False)
        assert "DNSSEC Bogus" in bogus.extended_error
    assert resolver.counts.cache_hits == 4


async def test_an_authority_instead_of_a_resolver_is_no_denial(dns: SignedDns) -> None:
    """R6: nsd refuses names that it does not serve, or refers to others; neither is an answer."""
    resolver = Resolver([dns.authority_address])
    assert (await resolver.query("good.test", "MX")).status is Status.OK
    authority_only = await resolver.query("elsewhere.example", "MX")
    assert authority_only.status in (Status.SERVFAIL, Status.NXDOMAIN)


QUESTIONS = [
    ("good.test", "MX"),
    ("c.good.test", "MX"),
    ("leaving.good.test", "A"),
    ("no.good.test", "A"),
    ("plain.test", "TXT"),
    (tlsa_name("mx.good.test"), "TLSA"),
    ("wrong.test", "MX"),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=" ".join)
def test_real_answers_with_octets_changed_are_read_or_refused(
    dns: SignedDns, question: tuple[str, str], rng: random.Random
) -> None:
    """Nothing but the two refusals comes of them, and the real answer itself is read."""
    wire = dns.ask_wire(*question)
    asked = build_query(*question, int.from_bytes(wire[:2], "big"))
    parse_response(wire, asked)
    for _ in range(1500):
        octets = bytearray(wire)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(2, len(octets))
            match rng.randrange(5):
                case 0:
                    octets[at] = rng.randrange(256)
                case 1:
                    octets[at] ^= 1 << rng.randrange(8)
                case 2:
                    del octets[at:]
                    octets += bytes(13)
                case 3:
                    octets[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 4:
                    octets[at : at + 2] = bytes((0xC0 | rng.randrange(2), rng.randrange(256)))
        try:
            parse_response(bytes(octets), asked)
        except (NotOurs, Garbled):
            pass
