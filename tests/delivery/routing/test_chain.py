"""RouterChain: which router decides, what is kept by domain and for how long, and who waits for whom."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing

from engine.config import RouterOptions
from engine.delivery.routing import Route, Routed, RouteDeferred, RouterChain, Unrouteable
from engine.delivery.routing.chain import MIN_ROUTE_TTL_S
from engine.delivery.routing.router import LOOKUP_TTL_S, STATIC_TTL_S
from engine.errors import ConfigError
from engine.policy.answers import Status
from engine.values import parse_address
from fakes.canned_dns import CannedDns, Records
from fakes.plain_expander import PlainExpander

RECORDS: Records = {
    ("one.test", "MX"): ["10 a.test"],
    ("two.test", "MX"): ["10 a.test", "20 b.test"],
    ("a.test", "A"): ["192.0.2.1"],
    ("b.test", "A"): ["192.0.2.2"],
    ("bad.test", "MX"): Status.SERVFAIL,
    ("slow.test", "MX"): Status.TIMEOUT,
}


def dns(name: str = "dns", **options: Any) -> RouterOptions:
    return RouterOptions(name=name, driver="dnslookup", transport="remote_smtp", **options)


def manual(route_list: str, name: str = "manual", **options: Any) -> RouterOptions:
    return RouterOptions(name=name, driver="manualroute", transport="remote_smtp", route_list=route_list, **options)


def chain_of(*routers: RouterOptions, asks: CannedDns | None = None, **options: Any) -> RouterChain:
    answers = CannedDns(RECORDS) if asks is None else asks
    known: dict[str, Any] = {
        "expander": PlainExpander(),
        "system_hosts": answers,
        "transports": ("remote_smtp", "relay"),
        "random": random.Random(1),
    }
    return RouterChain(routers, answers, **{**known, **options})


async def route(chain: RouterChain, text: str, scope: Any = None) -> Route:
    return await chain.route(parse_address(text), scope)


def addresses(found: Route) -> list[str]:
    assert isinstance(found, Routed), found
    return [host.address for host in found.hosts]


# --- which router -----------------------------------------------------------------------------------------------------


async def test_the_first_router_whose_preconditions_hold_decides() -> None:
    chain = chain_of(
        manual("* 192.0.2.9", "never", domains="other.test"),
        manual("* 192.0.2.8", "person", local_parts="postmaster"),
        manual("* 192.0.2.7", "rule", condition="$color"),
        dns(),
    )
    assert addresses(await route(chain, "postmaster@one.test")) == ["192.0.2.8"]
    assert addresses(await route(chain, "user@one.test", {"color": "red"})) == ["192.0.2.7"]
    found = await route(chain, "user@one.test", {"color": "no"})
    assert isinstance(found, Routed)
    assert (found.router, found.transport, addresses(found)) == ("dns", "remote_smtp", ["192.0.2.1"])
    assert found.reasons[:3] == ("router never: skipped", "router person: skipped", "router rule: skipped")


async def test_no_router_left_is_a_failure_without_a_transport() -> None:
    found = await route(chain_of(dns(domains="one.test")), "user@two.test")
    assert found == Unrouteable(
        "Unrouteable address",
        code="5.1.2",
        ttl_s=STATIC_TTL_S,
        cacheable_by_domain=True,
        reasons=("router dns: skipped",),
    )


async def test_a_router_that_declines_gives_way_unless_more_is_false() -> None:
    for more, expected in ((True, Routed), (False, Unrouteable)):
        chain = chain_of(dns(more=more), manual("* 192.0.2.9"))
        assert isinstance(await route(chain, "user@missing.test"), expected)
    last = chain_of(dns(), manual("other.test 192.0.2.9"))
    assert isinstance(await route(last, "user@missing.test"), Unrouteable)


async def test_more_false_does_not_hold_for_a_router_that_skips() -> None:
    chain = chain_of(dns(more=False, domains="other.test"), manual("* 192.0.2.9"))
    assert addresses(await route(chain, "user@missing.test")) == ["192.0.2.9"]


@pytest.mark.parametrize(("domain", "retry_name"), [("bad.test", ""), ("slow.test", "timeout_DNS")])
async def test_an_error_in_dns_defers(domain: str, retry_name: str) -> None:
    found = await route(chain_of(dns(), manual("* 192.0.2.9")), f"user@{domain}")
    assert isinstance(found, RouteDeferred)
    assert (found.errno, found.code, found.router, found.retry_name) == (-36, "4.4.3", "dns", retry_name)
    assert found.message == "host lookup did not complete"


async def test_pass_on_timeout_gives_way_and_defers_if_nobody_is_left() -> None:
    chain = chain_of(dns(pass_on_timeout=True, more=False), manual("* 192.0.2.9", domains="bad.test"))
    assert addresses(await route(chain, "user@bad.test")) == ["192.0.2.9"]
    found = await route(chain, "user@slow.test")
    assert isinstance(found, RouteDeferred)
    assert (found.router, found.retry_name) == ("dns", "timeout_DNS")


@pytest.mark.parametrize(("word", "errno", "code"), [("DEFER", -1, "4.3.0"), ("ERROR", -27, "4.3.5")])
async def test_an_expansion_that_fails_defers_and_never_skips_a_router(word: str, errno: int, code: str) -> None:
    chain = chain_of(manual("* 192.0.2.9", condition=f"{word}"), dns())
    found = await route(chain, "user@one.test")
    assert isinstance(found, RouteDeferred)
    assert (found.errno, found.code, found.message) == (errno, code, f"manual router: told to: {word}")


async def test_a_forced_failure_of_a_condition_skips() -> None:
    assert addresses(await route(chain_of(manual("* 192.0.2.9", condition="FORCED"), dns()), "u@one.test")) == [
        "192.0.2.1"
    ]


def test_what_is_wrong_with_a_router_is_found_when_it_is_made() -> None:
    with pytest.raises(ConfigError) as info:
        chain_of(RouterOptions(name="r", driver="dnslookup", transport="nope"))
    assert info.value.key == "routers.r.transport"
    for option in (
        "domains",
        "local_parts",
        "condition",
        "ignore_target_hosts",
        "mx_domains",
        "dnssec_request_domains",
    ):
        with pytest.raises(ConfigError) as info:
            chain_of(dns(**{option: "x BAD"}))
        assert (info.value.key, info.value.column) == (f"routers.dns.{option}", 2)


# --- what is kept -----------------------------------------------------------------------------------------------------


async def test_a_route_is_kept_for_its_ttl_and_then_asked_for_again(autojump_clock: trio.testing.MockClock) -> None:
    asks = CannedDns(RECORDS, ttl_s=60)
    chain = chain_of(dns(), asks=asks)
    address = parse_address("user@one.test")
    assert chain.cached_or_none(address.domain) is None
    first = await chain.route(address)
    asked = len(asks.asked)
    await trio.sleep(59)
    assert chain.cached_or_none("one.test") is first
    assert await chain.route(address) is first
    assert len(asks.asked) == asked
    asks.records["a.test", "A"] = ["192.0.2.55"]
    await trio.sleep(1)
    assert chain.cached_or_none(address.domain) is None
    assert addresses(await chain.route(address)) == ["192.0.2.55"]


@pytest.mark.parametrize("domain", ["bad.test", "one.test", "missing.test"])
async def test_a_route_serves_a_batch_even_if_its_ttl_is_zero(
    domain: str, autojump_clock: trio.testing.MockClock
) -> None:
    asks = CannedDns(RECORDS, ttl_s=0)
    chain = chain_of(dns(), asks=asks)
    first = await route(chain, f"user@{domain}")
    assert first.ttl_s == MIN_ROUTE_TTL_S
    asked = len(asks.asked)
    await trio.sleep(MIN_ROUTE_TTL_S - 1)
    assert await route(chain, f"other@{domain}") is first
    await trio.sleep(1)
    await route(chain, f"user@{domain}")
    assert len(asks.asked) > asked


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"local_parts": "!root:*"}, False),
        ({"domains": "other.test", "local_parts": "x"}, True),
        ({"condition": "$domain"}, True),
        ({"condition": "$local_part"}, False),
        ({"condition": "$sender_address"}, False),
        ({"domains": "$sender_address"}, False),
        ({"ignore_target_hosts": "127.0.0.1:$local_part"}, False),
        ({"ignore_target_hosts": "127.0.0.1"}, True),
        ({"dnssec_require_domains": "$h_subject"}, False),
    ],
)
async def test_a_route_is_kept_only_if_nothing_but_the_domain_was_looked_at(
    options: dict[str, str], kept: bool
) -> None:
    chain = chain_of(dns(**options), dns("last"))
    found = await route(chain, "user@one.test")
    assert found.cacheable_by_domain is kept
    assert (chain.cached_or_none("one.test") is not None) is kept


async def test_different_local_parts_get_different_routes() -> None:
    chain = chain_of(manual("* 192.0.2.9", local_parts="a"), manual("* 192.0.2.8"))
    for _ in range(2):
        assert addresses(await route(chain, "a@one.test")) == ["192.0.2.9"]
        assert addresses(await route(chain, "b@one.test")) == ["192.0.2.8"]


async def test_what_was_looked_up_on_the_way_holds_for_a_minute() -> None:
    found = await route(chain_of(manual("* 192.0.2.9", condition="slow:$domain")), "user@one.test")
    assert (found.ttl_s, found.cacheable_by_domain) == (LOOKUP_TTL_S, True)


async def test_a_domain_can_be_forgotten() -> None:
    chain = chain_of(dns())
    await route(chain, "user@one.test")
    chain.forget("one.test")
    chain.forget("never.test")
    assert chain.cached_or_none("one.test") is None


async def test_what_is_kept_is_bounded() -> None:
    chain = chain_of(manual("* 192.0.2.9"), cache_size=5)
    for number in range(20):
        await route(chain, f"user@d{number}.test")
    assert [number for number in range(20) if chain.cached_or_none(f"d{number}.test")] == [*range(15, 20)]
    many = ":".join(f"192.0.2.{number}" for number in range(1, 129))
    chain = chain_of(manual(f"big.test {many} ; * 192.0.2.9"), cache_size=6)
    for number in range(5):
        await route(chain, f"user@d{number}.test")
    await route(chain, "user@big.test")
    assert chain.cached_or_none("big.test") is not None
    assert chain._kept.used_units <= 6
    assert len(chain._kept) == 2


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_a_domain_is_routed_once_however_many_ask(autojump_clock: trio.testing.MockClock) -> None:
    asks = CannedDns(RECORDS, delay_s=1)
    chain = chain_of(dns(), asks=asks)
    found: list[Route] = []

    async def ask(number: int) -> None:
        found.append(await route(chain, f"user{number}@two.test"))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    assert len({id(one) for one in found}) == 1
    assert asks.asked.count(("two.test", "MX")) == 1
    assert not chain._flights


async def test_those_who_wait_route_themselves_where_the_local_part_mattered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asks = CannedDns(RECORDS, delay_s=1)
    chain = chain_of(manual("* 192.0.2.9", local_parts="user3"), dns(), asks=asks)
    found: dict[int, list[str]] = {}

    async def ask(number: int) -> None:
        found[number] = addresses(await route(chain, f"user{number}@one.test"))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(ask, number)
    assert found == {number: ["192.0.2.9"] if number == 3 else ["192.0.2.1"] for number in range(6)}


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_task_that_is_cancelled_takes_nobody_with_it(
    cancelled: int, autojump_clock: trio.testing.MockClock
) -> None:
    chain = chain_of(dns(), asks=CannedDns(RECORDS, delay_s=1))
    scopes = [trio.CancelScope() for _ in range(4)]
    found: set[int] = set()

    async def ask(number: int) -> None:
        with scopes[number]:
            assert addresses(await route(chain, f"user{number}@one.test")) == ["192.0.2.1"]
            found.add(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(ask, number)
            await trio.sleep(0.01)
        scopes[cancelled].cancel()
    assert found == {0, 1, 2, 3} - {cancelled}
    assert not chain._flights


async def test_a_lookup_that_blocks_holds_up_nobody_else() -> None:
    """It runs in a thread, one at a time, and may be given up."""
    expander = PlainExpander(delay_s=0.05)
    chain = chain_of(manual("* 192.0.2.9", condition="slow:$domain", domains="slow.test"), dns(), expander=expander)
    with trio.move_on_after(0.02) as scope:
        await route(chain, "user@slow.test")
    assert scope.cancelled_caught
    assert not chain._flights
    assert addresses(await route(chain, "user@slow.test")) == ["192.0.2.9"]
    threads = expander.texts["routers.manual.condition"].evaluated
    assert "MainThread" not in threads
    assert len(threads) == 2
