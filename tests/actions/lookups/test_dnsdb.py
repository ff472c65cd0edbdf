"""dnsdb against a name server of the tests: the syntax of queries, types, errors, AD and lifetimes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry, Timeouts
from engine.actions.lookups.dnsdb import Mode, Question, parse_question
from engine.actions.lookups.driver import Deferral
from fakes.dns_server import Reply, Zone, serve_dns
from fakes.dnssec import SignedDns
from fakes.dnssec import Zone as SignedZone
from fakes.searching import failure, find, in_thread, look

# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "question"),
    [
        ("a.test", Question(names=(b"a.test",))),
        ("mx=a.test", Question(kind="mx", names=(b"a.test",))),
        (" A = a.test : b.test ", Question(kind="a", names=(b"a.test", b"b.test"))),
        (">: a=<; a.test; b.test", Question(separator=b":", kind="a", names=(b"a.test", b"b.test"))),
        (">;,/ txt=x", Question(separator=b";", inner=b"/", names=(b"x",))),
        (">:; txt=x", Question(separator=b":", inner=b"", names=(b"x",))),
        ("defer_never,dnssec_strict,a=x", Question(defer=Mode.NEVER, dnssec=Mode.STRICT, kind="a", names=(b"x",))),
        ("retrans_1m, retry_3, a=x", Question(retrans_s=60.0, retries=3, kind="a", names=(b"x",))),
        ("a+=x", Question(kind="a+", names=(b"x",))),
    ],
)
def test_parse_question(query: str, question: Question) -> None:
    assert parse_question(query.encode()) == question


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("xyz=a", "unsupported DNS record type"),
        ("defer_sometimes,a=x", "unsupported dnsdb defer behaviour"),
        ("dnssec_maybe,a=x", "unsupported dnsdb dnssec behaviour"),
        ("retrans_x,a=x", "unsupported dnsdb timeout value"),
        ("retry_x,a=x", "dnsdb modifier syntax error"),
        ("defer_strict a=x", "dnsdb modifier syntax error"),
    ],
)
def test_bad_queries(registry: LookupRegistry, query: str, reason: str) -> None:
    assert failure(registry, "dnsdb", query) == f'lookup of "{query}" gave DEFER: {reason}'


@given(st.text(alphabet="><:;,=_ atxdefrny+.\\\xff0", max_size=20))
def test_any_text_is_a_question_or_a_deferral(text: str) -> None:
    try:
        question = parse_question(text.encode())
    except Deferral:
        return
    assert len(question.names) <= 256


# --- answers ----------------------------------------------------------------------------------------------------------

ZONE: Zone = {
    ("a.test", "A"): Reply(["192.0.2.1", "192.0.2.2"]),
    ("a.test", "AAAA"): Reply(["2001:db8::1"]),
    ("a.test", "MX"): Reply(["10 mx1.a.test.", "20 mx2.a.test."]),
    ("a.test", "TXT"): Reply(['"first" "second"', '"with \\"quotes\\""']),
    ("a.test", "SPF"): Reply(['"v=spf1 " "-all"']),
    ("a.test", "NS"): Reply(["ns.a.test."]),
    ("a.test", "SOA"): Reply(["ns.a.test. host.a.test. 1 2 3 4 5"]),
    ("_x._tcp.a.test", "SRV"): Reply(["1 2 25 mx1.a.test."]),
    ("_client._smtp.a.test", "SRV"): Reply(["1 2 0 mx1.a.test."]),
    ("_25._tcp.a.test", "TLSA"): Reply(["3 1 1 " + "ab" * 32]),
    ("alias.test", "CNAME"): Reply(["a.test."]),
    ("alias.test", "A"): Reply(["192.0.2.9"], cnames=["a.test."]),
    ("1.2.0.192.in-addr.arpa", "PTR"): Reply(["a.test."]),
    ("broken.test", "A"): Reply(rcode="SERVFAIL"),
    ("null.test", "MX"): Reply(["0 ."]),
    ("secure.test", "A"): Reply(["192.0.2.3"], ad=True),
    ("short.test", "A"): Reply(["192.0.2.4"], ttl=0),
    ("long.test", "TXT"): Reply(['"' + "x" * 200 + '"'] * 20, truncate=True),
}


def registry_for(address: str, *, query_s: float = 5.0, trust_ad: str = "loopback") -> LookupRegistry:
    return LookupRegistry(LookupOptions(nameservers=(address,), trust_ad=trust_ad, timeouts=Timeouts(1.0, query_s)))


async def test_types(monkeypatch: pytest.MonkeyPatch) -> None:
    # the name server of the tests mixes the records of an answer
    monkeypatch.setattr(random, "shuffle", lambda items: None)
    async with serve_dns(ZONE) as server:
        registry = registry_for(server.address)

        async def ask(query: str) -> str | None:
            found = await in_thread(look, registry, "dnsdb", query)
            return None if found is None else found.decode()

        assert await ask("a=a.test") == "192.0.2.1\n192.0.2.2"
        assert await ask(">: a=a.test:secure.test") == "192.0.2.1:192.0.2.2:192.0.2.3"
        assert await ask("aaaa=a.test") == "2001:db8::1"
        assert await ask(">, a+=a.test") == "2001:db8::1,192.0.2.1,192.0.2.2"
        assert await ask("mx=a.test") == "10 mx1.a.test\n20 mx2.a.test"
        assert await ask(">,,/ mx=a.test") == "10/mx1.a.test,20/mx2.a.test"
        assert await ask("mxh=a.test") == "mx1.a.test\nmx2.a.test"
        assert await ask("mxh=null.test") is None
        assert await ask("mx=null.test") == "0 "
        assert await ask("a.test") == 'first\nwith "quotes"'
        assert await ask(">:; txt=a.test") == 'firstsecond:with "quotes"'
        assert await ask(">:,+ txt=a.test") == 'first+second:with "quotes"'
        assert await ask("spf=a.test") == "v=spf1 -all"
        assert await ask("ns=a.test") == "ns.a.test"
        assert await ask("zns=x.y.a.test") == "ns.a.test"
        assert await ask("soa=x.a.test") == "ns.a.test"
        assert await ask(">:; soa=a.test") == "ns.a.test"
        assert await ask(">:,  soa=a.test") == "ns.a.test host.a.test 1 2 3 4 5"
        assert await ask("srv=_x._tcp.a.test") == "1 2 25 mx1.a.test"
        assert await ask("csa=a.test") == "Y mx1.a.test"
        assert await ask("tlsa=_25._tcp.a.test") == "3 1 1 " + "ab" * 32
        assert await ask("cname=alias.test") == "a.test"
        assert await ask("a=alias.test") == "192.0.2.9"
        assert await ask("ptr=192.0.2.1") == "a.test"
        assert await ask("a=none.test") is None
        assert await ask("txt=short.test") is None
        assert await ask("zns=nowhere") is None
        found = await ask("long.test")
        assert found is not None
        assert len(found.split("\n")) == 1  # twenty equal records are one
        for odd in ("a=" + "x" * 64 + ".test", "a=..", "a=\xe4\xff.test", "a=\\", "a=", "ptr=1.2.3"):
            assert await ask(odd) is None, odd


async def test_temporary_errors_and_what_they_mean() -> None:
    async with serve_dns(ZONE) as server:
        registry = registry_for(server.address)
        ask: Callable[[str], object] = lambda query: failure(registry, "dnsdb", query)  # noqa: E731
        assert await in_thread(ask, "a=broken.test") == 'lookup of "a=broken.test" gave DEFER: '
        assert await in_thread(ask, "a=broken.test:secure.test") == "found b'192.0.2.3'"
        assert "gave DEFER" in str(await in_thread(ask, "defer_strict,a=broken.test:secure.test"))
        assert await in_thread(ask, "defer_never,a=broken.test") == "found None"


async def test_ad_and_dnssec() -> None:
    async with serve_dns(ZONE) as server:
        for trust, secure in (("loopback", True), ("always", True), ("never", False)):
            registry = registry_for(server.address, trust_ad=trust)
            found = await in_thread(find, registry, "dnsdb", "a=secure.test")
            assert (found.authenticated, found.tainted) == (secure, True)
            found = await in_thread(find, registry, "dnsdb", "a=a.test")
            assert found.authenticated is False
            found = await in_thread(find, registry, "dnsdb", "a=secure.test:a.test")
            assert found.authenticated is False
            found = await in_thread(find, registry, "dnsdb", "dnssec_never,a=secure.test")
            assert found.authenticated is None
            message = await in_thread(failure, registry, "dnsdb", "dnssec_strict,a=a.test")
            assert message.endswith("gave DEFER: ")


async def test_results_are_kept_for_their_lifetime() -> None:
    async with serve_dns(ZONE) as server:
        registry = registry_for(server.address)
        for _ in range(2):
            await in_thread(look, registry, "dnsdb", "a=a.test")
            await in_thread(look, registry, "dnsdb", "a=short.test")
        assert server.count("a.test", "A") == 1
        assert server.count("short.test", "A") == 2


async def test_silence_is_waited_for_no_longer_than_said() -> None:
    async with serve_dns({("silent.test", "A"): Reply(["192.0.2.1"], drop=-1)}) as server:
        registry = registry_for(server.address, query_s=0.3)
        message = await in_thread(failure, registry, "dnsdb", "a=silent.test")
        assert message == 'lookup of "a=silent.test" gave DEFER: '


async def test_garbage_is_a_deferral() -> None:
    for mangle in (lambda wire: wire[:20], lambda wire: wire[:2] + b"\xff" * 40, lambda wire: b""):
        zone = {("a.test", "A"): Reply(["192.0.2.1"], mangle=mangle)}
        async with serve_dns(zone) as server:
            registry = registry_for(server.address, query_s=0.3)
            assert (await in_thread(failure, registry, "dnsdb", "a=a.test")).endswith("gave DEFER: ")


@pytest.mark.slow
def test_signed_zones_of_a_real_server(signed_dns: Callable[..., SignedDns]) -> None:
    zone = SignedZone("example.test")
    zone.mx("example.test", 10, "mx.example.test")
    zone.a("mx.example.test", "127.0.0.2")
    resolver = signed_dns([zone])
    registry = registry_for(resolver.resolver_address)
    found = find(registry, "dnsdb", "dnssec_strict,mx=example.test")
    assert found is not None
    assert (found.value, found.authenticated) == (b"10 mx.example.test", True)
    assert look(registry, "dnsdb", "a=none.example.test") is None
