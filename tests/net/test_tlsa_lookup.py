"""Answers to TLSA questions: asked once for all addresses of a host, kept for a while, errors never (R6, R17)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from engine.net.tlsa_lookup import MIN_TTL_S, TlsaLookup
from engine.policy.answers import Answer, Status
from engine.policy.builder import PlanBuilder
from engine.policy.hosts import Host
from engine.policy.plan import TlsLevel
from engine.policy.requirement import Decision, Refusal, TlsChoices

HOST = Host("mx.test", "192.0.2.1", mx_secure=True, address_secure=True, canonical_name="mx.test", domain="d.test")
RECORD = b"\x03\x01\x01" + bytes(32)


@dataclass
class Canned:
    """A resolver with one answer for everything."""

    answer: Answer
    asked: list[str] = field(default_factory=list)

    async def query(self, name: str, rdtype: str) -> Answer:
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        return replace(self.answer, name=name, rdtype=rdtype)


def canned(status: Status = Status.OK, ttl_s: int = 0) -> Canned:
    rdata = (RECORD,) if status is Status.OK else ()
    return Canned(Answer("", "", status, ad=True, is_ad_trusted=True, rdata=rdata, ttl_s=ttl_s))


async def ask(lookup: TlsaLookup, address: str = "192.0.2.1", port: int = 25) -> Decision | Refusal:
    return await lookup.run(PlanBuilder(replace(HOST, address=address), port, TlsChoices()))


async def test_one_question_for_all_addresses_even_without_a_ttl(autojump_clock: trio.testing.MockClock) -> None:
    """R17"""
    resolver = canned()
    lookup = TlsaLookup(resolver)
    for number in range(4):
        found = await ask(lookup, f"192.0.2.{number}")
        assert isinstance(found, Decision)
        assert (found.plan.level, found.ttl_s) == (TlsLevel.DANE, MIN_TTL_S)
    assert resolver.asked == ["_25._tcp.mx.test"]
    await trio.sleep(MIN_TTL_S / 2)
    found = await ask(lookup)
    assert isinstance(found, Decision)
    assert found.ttl_s == MIN_TTL_S / 2, "what is left of it"
    await trio.sleep(MIN_TTL_S)
    await ask(lookup)
    assert len(resolver.asked) == 2


async def test_another_port_is_another_question() -> None:
    """R16"""
    resolver = canned(ttl_s=60)
    lookup = TlsaLookup(resolver)
    await ask(lookup, port=25)
    await ask(lookup, port=2525)
    assert resolver.asked == ["_25._tcp.mx.test", "_2525._tcp.mx.test"]


async def test_a_denial_is_kept_for_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """R6"""
    resolver = canned(Status.NXDOMAIN, ttl_s=60)
    lookup = TlsaLookup(resolver)
    for _ in range(2):
        found = await ask(lookup)
        assert isinstance(found, Decision)
        assert found.plan.level is TlsLevel.OPPORTUNISTIC
    assert len(resolver.asked) == 1
    await trio.sleep(60)
    await ask(lookup)
    assert len(resolver.asked) == 2


async def test_an_error_is_not_kept() -> None:
    """R6"""
    resolver = canned(Status.SERVFAIL)
    lookup = TlsaLookup(resolver)
    for _ in range(2):
        assert isinstance(await ask(lookup), Refusal)
    assert len(resolver.asked) == 2
    resolver.answer = replace(resolver.answer, status=Status.OK, rdata=(RECORD,))
    assert isinstance(await ask(lookup), Decision)


async def test_what_is_kept_is_bounded() -> None:
    resolver = canned(ttl_s=60)
    resolver.answer = replace(resolver.answer, rdata=(RECORD, b"\x03\x00\x00" + bytes(5000)))
    lookup = TlsaLookup(resolver, cache_size=12)
    for port in (1, 2, 3):
        await ask(lookup, port=port)
    assert lookup._kept.used_units <= 12
    await ask(lookup, port=1)
    assert len(resolver.asked) == 4


async def test_a_host_without_dane_asks_nothing() -> None:
    resolver = canned()
    lookup = TlsaLookup(resolver)
    found = await lookup.run(PlanBuilder(replace(HOST, address_secure=False), 25, TlsChoices()))
    assert isinstance(found, Decision)
    assert resolver.asked == []


@pytest.mark.parametrize(
    ("status", "ad", "is_trusted", "expected"),
    [
        (Status.OK, True, True, True),
        (Status.NODATA, False, True, False),
        (Status.OK, True, False, None),
        (Status.TIMEOUT, False, True, None),
    ],
)
async def test_whether_the_resolver_validates(
    status: Status, ad: bool, is_trusted: bool, expected: bool | None
) -> None:
    """R10"""
    resolver = Canned(Answer("", "", status, ad=ad, is_ad_trusted=is_trusted))
    assert await TlsaLookup(resolver).validates() is expected
    assert resolver.asked == ["."]
