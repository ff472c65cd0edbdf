"""Routes that domains share, and routing without a wait."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.config import RouterOptions
from engine.delivery.routing import Routed, RouterChain, Unrouteable
from engine.policy.answers import Answer, Status
from engine.values import parse_address
from fakes.canned_dns import CannedDns, Records
from fakes.dns_server import ManualClock
from fakes.plain_expander import PlainExpander

RECORDS: Records = {
    ("one.test", "MX"): ["10 a.test", "20 b.test"],
    ("two.test", "MX"): ["10 a.test", "20 b.test"],
    ("three.test", "MX"): ["10 a.test"],
    ("broken.test", "MX"): ["10 a.test", "20 bad.test"],
    ("broken2.test", "MX"): ["10 a.test", "20 bad.test"],
    ("implicit.test", "A"): ["192.0.2.7"],
    ("a.test", "A"): ["192.0.2.1"],
    ("b.test", "A"): ["192.0.2.2"],
    ("bad.test", "A"): Status.SERVFAIL,
}


class Remembering(CannedDns):
    """Knows what it was asked once, and whom it told of what was not found."""

    def __init__(self, records: Records = RECORDS, **options: Any) -> None:
        super().__init__(records, **options)
        self.kept: dict[tuple[str, str], Answer] = {}
        self.told: list[tuple[str, str]] = []

    async def query(self, name: str, rdtype: str) -> Answer:
        answer = self.peek(name, rdtype) or await super().query(name, rdtype)
        self.kept[name, rdtype] = answer
        self.tell(answer)
        return answer

    def peek(self, name: str, rdtype: str) -> Answer | None:
        return self.kept.get((name, rdtype))

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        answer = self.peek(name, rdtype)
        if answer is not None:
            self.tell(answer)
        return answer

    def tell(self, answer: Answer) -> None:
        if answer.status is not Status.OK:
            self.told.append((answer.name, answer.rdtype))


def dns(**options: Any) -> RouterOptions:
    return RouterOptions(**{"name": "dns", "driver": "dnslookup", "transport": "smtp", **options})


def chain_of(asks: CannedDns, *routers: RouterOptions, **options: Any) -> RouterChain:
    known: dict[str, Any] = {
        "expander": PlainExpander(),
        "system_hosts": asks,
        "transports": ("smtp",),
        "random": random.Random(1),
    }
    return RouterChain(routers or (dns(),), asks, **{**known, **options})


async def routed(chain: RouterChain, domain: str) -> Routed:
    found = await chain.route(parse_address(f"u@{domain}"))
    assert isinstance(found, Routed)
    return found


def now(chain: RouterChain, domain: str) -> object:
    return chain.route_now(parse_address(f"u@{domain}"), lambda: None)


async def test_domains_with_the_same_mx_records_share_what_is_kept() -> None:
    asks = Remembering()
    chain = chain_of(asks)
    one = await routed(chain, "one.test")
    await asks.query("two.test", "MX")
    asks.asked.clear()
    two = await routed(chain, "two.test")
    assert not asks.asked, "the hosts are known"
    assert chain.shared_or_none("two.test") is chain.shared_or_none("one.test") is one
    assert two.group is one.group
    assert [host.domain for host in two.hosts] == ["two.test"] * 2
    assert [(host.name, host.address, host.preference) for host in two.hosts] == [
        (host.name, host.address, host.preference) for host in one.hosts
    ]
    kept = chain.cached_or_none("two.test")
    assert isinstance(kept, Routed)
    assert kept.hosts == two.hosts
    assert one.next_hop("two.test") == "two.test"


async def test_a_shared_route_says_what_one_found_for_itself_would() -> None:
    asks = Remembering(ad=True)
    chain, alone = chain_of(asks, clock=ManualClock()), chain_of(Remembering(ad=True))
    await routed(chain, "one.test")
    await asks.query("two.test", "MX")
    shared, own = await routed(chain, "two.test"), await routed(alone, "two.test")
    assert (shared.hosts, shared.transport, shared.router, shared.ttl_s) == (
        own.hosts,
        own.transport,
        own.router,
        own.ttl_s,
    )


@pytest.mark.parametrize(("first", "second"), [("one.test", "three.test"), ("broken.test", "broken2.test")])
async def test_what_is_not_the_same_or_not_whole_is_not_shared(first: str, second: str) -> None:
    """A host that was left out for an error may be there a moment later."""
    asks = Remembering()
    chain = chain_of(asks)
    one = await routed(chain, first)
    await asks.query(second, "MX")
    two = await routed(chain, second)
    assert two.group is None or two.group is not one.group


class Changing(Remembering):
    """The MX records of one domain become those of another while its hosts are looked up."""

    async def query(self, name: str, rdtype: str) -> Answer:
        answer = await super().query(name, rdtype)
        if rdtype == "A":
            self.kept["three.test", "MX"] = await CannedDns.query(self, "one.test", "MX")
        return answer


async def test_hosts_of_old_records_are_not_given_to_whoever_has_the_new_ones() -> None:
    """Whose answer holds for a second must not lead the mail of others to hosts of their own."""
    asks = Changing()
    chain = chain_of(asks)
    assert {host.name for host in (await routed(chain, "three.test")).hosts} == {"a.test"}
    await asks.query("one.test", "MX")
    assert {host.name for host in (await routed(chain, "one.test")).hosts} == {"a.test", "b.test"}


async def test_what_dnssec_said_of_the_mx_records_is_not_shared_by_others() -> None:
    asks = Remembering(ad=True)
    chain = chain_of(asks)
    one = await routed(chain, "one.test")
    asks.ad = False
    await asks.query("two.test", "MX")
    two = await routed(chain, "two.test")
    assert (one.hosts[0].mx_secure, two.hosts[0].mx_secure) == (True, False)
    assert two.group is not one.group


async def test_hosts_that_have_had_their_time_are_looked_up_again() -> None:
    clock = ManualClock()
    asks = Remembering(ttl_s=60)
    chain = chain_of(asks, clock=clock)
    one = await routed(chain, "one.test")
    clock.now += 40
    await asks.query("two.test", "MX")
    two = await routed(chain, "two.test")
    assert two.ttl_s == 20, "no longer than what was found for the other"
    clock.now += 20
    assert chain.shared_or_none("one.test") is chain.shared_or_none("two.test") is None
    again = await routed(chain, "two.test")
    assert again.group is not one.group


async def test_ignored_hosts_are_looked_at_for_each_domain() -> None:
    asks = Remembering()
    chain = chain_of(asks, dns(ignore_target_hosts="192.0.2.2"))
    assert (await routed(chain, "one.test")).group is None


async def test_what_was_not_found_of_the_hosts_is_told_for_each_domain() -> None:
    asks = Remembering()
    chain = chain_of(asks)
    await routed(chain, "one.test")
    first = list(asks.told)
    assert ("a.test", "AAAA") in first
    await asks.query("two.test", "MX")
    asks.told.clear()
    await routed(chain, "two.test")
    assert sorted(asks.told) == sorted(first)


# --- without a wait ---------------------------------------------------------------------------------------------------


async def test_what_is_known_is_routed_at_once_and_nothing_else() -> None:
    asks = Remembering()
    chain = chain_of(asks)
    assert now(chain, "one.test") is None
    one = await routed(chain, "one.test")
    await asks.query("two.test", "MX")
    asks.told.clear()
    assert now(chain, "two.test") is one
    assert sorted(asks.told) == [("a.test", "AAAA"), ("b.test", "AAAA")]
    assert chain.shared_or_none("two.test") is one


async def test_a_walk_that_does_not_come_to_its_end_tells_nobody() -> None:
    asks = Remembering()
    chain = chain_of(asks)
    await asks.query("three.test", "MX")
    await asks.query("a.test", "AAAA")
    asks.told.clear()
    assert now(chain, "three.test") is None
    assert not asks.told
    await asks.query("a.test", "A")
    assert isinstance(now(chain, "three.test"), Routed)
    assert asks.told == [("a.test", "AAAA")]


async def test_what_does_not_exist_fails_at_once() -> None:
    asks = Remembering()
    chain = chain_of(asks)
    await asks.query("missing.test", "MX")
    found = now(chain, "missing.test")
    assert isinstance(found, Unrouteable)
    assert chain.cached_or_none("missing.test") == found


@pytest.mark.parametrize(
    "options", [{"condition": "slow:yes"}, {"local_parts": "!root"}, {"domains": "slow:*.test"}, {"condition": "$mood"}]
)
async def test_what_blocks_or_depends_on_more_than_the_domain_is_for_a_task(options: dict[str, Any]) -> None:
    asks = Remembering()
    chain = chain_of(asks, dns(**options))
    for name, rdtype in (("three.test", "MX"), ("a.test", "A"), ("a.test", "AAAA")):
        await asks.query(name, rdtype)
    asks.told.clear()
    assert chain.route_now(parse_address("u@three.test"), lambda: {"mood": "yes"}) is None
    assert not asks.told


def test_the_first_router_says_what_is_worth_asking_ahead() -> None:
    asks = Remembering()
    assert chain_of(asks, dns()).first_lookup == dns()
    for options in ({"domains": "one.test"}, {"condition": "yes"}, {"local_parts": "postmaster"}):
        assert chain_of(asks, dns(**options), dns(name="other")).first_lookup is None
    manual = RouterOptions(name="m", driver="manualroute", transport="smtp", route_list="* 192.0.2.1")
    assert chain_of(asks, manual, dns()).first_lookup is None
