"""Router: what the two drivers make of their options: hosts in order, ports, codes of failures, columns of errors.

Whole configurations are held against Exim in tests/e2e/test_routing_exim.py; here is what Exim does not show.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from engine.config import RouterOptions
from engine.delivery.routing import Route, Routed, RouteDeferred, RouterChain, Unrouteable
from engine.delivery.routing.router import LOOKUP_TTL_S, STATIC_TTL_S
from engine.errors import ConfigError
from engine.policy.answers import Status
from engine.values import parse_address
from fakes.canned_dns import CannedDns, Records
from fakes.patience import PATIENCE_S
from fakes.plain_expander import PlainExpander

RECORDS: Records = {
    ("one.test", "MX"): ["10 a.test", "10 b.test", "20 c.test"],
    ("a.test", "A"): ["192.0.2.1"],
    ("a.test", "AAAA"): ["2001:db8::1"],
    ("b.test", "A"): ["192.0.2.2"],
    ("c.test", "A"): ["192.0.2.3"],
    ("self.test", "A"): ["192.0.2.99"],
    ("bad.test", "A"): Status.TIMEOUT,
    ("bad.test", "AAAA"): Status.NODATA,
}
#: what the system knows beside DNS
SYSTEM: Records = {("onlyhere.test", "A"): ["192.0.2.70"], ("a.test", "A"): ["192.0.2.71"]}


def router(driver: str = "manualroute", **options: Any) -> RouterOptions:
    return RouterOptions(name="r", driver=driver, transport="remote_smtp", **options)


async def route(
    *options: RouterOptions, to: str = "user@one.test", dns: CannedDns | None = None, **extra: Any
) -> Route:
    known: dict[str, Any] = {
        "expander": PlainExpander(),
        "system_hosts": CannedDns(SYSTEM, ttl_s=60),
        "transports": ("remote_smtp", "relay"),
        "local_addresses": frozenset({"192.0.2.99"}),
        "random": random.Random(1),
    }
    chain = RouterChain(options, CannedDns(RECORDS) if dns is None else dns, **{**known, **extra})
    return await chain.route(parse_address(to))


def addresses(found: Route) -> list[str]:
    assert isinstance(found, Routed), found
    return [host.address for host in found.hosts]


# --- dnslookup --------------------------------------------------------------------------------------------------------


async def test_dnslookup_gives_hosts_with_the_port_of_the_router() -> None:
    found = await route(router("dnslookup", port=2525))
    assert isinstance(found, Routed)
    assert sorted(addresses(found)[:3]) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert addresses(found)[3] == "192.0.2.3"
    assert {host.port for host in found.hosts} == {2525}
    assert {host.domain for host in found.hosts} == {"one.test"}
    assert found.reasons[0].startswith("MX one.test: 10 a.test")


async def test_families_are_those_of_the_chain() -> None:
    assert "2001:db8::1" not in addresses(await route(router("dnslookup"), families=("A",)))
    first = addresses(await route(router(route_list="* a.test"), families=("A", "AAAA")))
    assert first == ["192.0.2.1", "2001:db8::1"]


async def test_dnssec_status_goes_with_the_hosts() -> None:
    """DN-1 to DN-3"""
    dns = CannedDns(RECORDS, ad=True)
    found = await route(router("dnslookup"), dns=dns)
    assert isinstance(found, Routed)
    assert {host.secure for host in found.hosts} == {True}
    found = await route(router("dnslookup", dnssec_request_domains="other.test"), dns=dns)
    assert isinstance(found, Routed)
    assert {(host.secure, host.mx_secure, host.address_secure) for host in found.hosts} == {(None, None, None)}


async def test_required_dnssec_defers_what_is_insecure_even_where_it_is_not_requested() -> None:
    options = router("dnslookup", dnssec_require_domains="one.test", dnssec_request_domains="")
    found = await route(options)
    assert isinstance(found, RouteDeferred)
    assert (found.message, found.errno, found.retry_name) == ("host lookup done insecurely", -36, "")
    secure = await route(options, dns=CannedDns(RECORDS, ad=True))
    assert isinstance(secure, Routed)
    assert {host.secure for host in secure.hosts} == {True}


@pytest.mark.parametrize(
    ("action", "kind", "errno"), [("fail", Unrouteable, 0), ("defer", RouteDeferred, -1), ("send", Routed, 0)]
)
@pytest.mark.parametrize("driver", ["dnslookup", "manualroute"])
async def test_self(driver: str, action: str, kind: type[Route], errno: int) -> None:
    options = {"route_list": "* self.test"} if driver == "manualroute" else {}
    found = await route(router(driver, self_=action, **options), router("dnslookup"), to="user@self.test")
    assert isinstance(found, kind)
    if isinstance(found, RouteDeferred):
        assert (found.message, found.errno, found.code) == ("remote host address is the local host", errno, "4.4.6")
    if isinstance(found, Unrouteable):
        assert (found.message, found.code, found.router) == ("remote host address is the local host", "5.4.6", "r")


@pytest.mark.parametrize("action", ["fail", "defer", "send"])
async def test_ourselves_behind_other_hosts_end_the_list(action: str) -> None:
    """20.6: whatever `self` says"""
    found = await route(router(route_list='* "b.test : self.test : c.test"', self_=action))
    assert addresses(found) == ["192.0.2.2"]


async def test_ourselves_first_and_sent_to_do_not_end_the_list() -> None:
    found = await route(router(route_list='* "self.test : b.test"', self_="send"))
    assert addresses(found) == ["192.0.2.99", "192.0.2.2"]


async def test_an_item_of_mx_records_has_only_those() -> None:
    assert len(addresses(await route(router(route_list="* one.test/MX")))) == 4
    found = await route(router(route_list="* b.test/MX", host_find_failed="fail"))
    assert isinstance(found, Unrouteable)


async def test_an_address_literal_that_is_ourselves() -> None:
    found = await route(router("dnslookup", self_="fail"), to="user@[192.0.2.99]")
    assert isinstance(found, Unrouteable)
    ignored = await route(router("dnslookup", ignore_target_hosts="192.0.2.99"), to="user@[192.0.2.99]")
    assert isinstance(ignored, Unrouteable)


async def test_a_list_of_ignored_hosts_that_may_block_is_held_against_each_address_in_a_thread() -> None:
    expander = PlainExpander()
    found = await route(router("dnslookup", ignore_target_hosts="slow:192.0.2.1:b.test"), expander=expander)
    assert addresses(found) == ["2001:db8::1", "192.0.2.3"]
    assert "MainThread" not in expander.texts["routers.r.ignore_target_hosts"].evaluated
    assert found.ttl_s == LOOKUP_TTL_S


async def test_ignored_hosts_may_depend_on_the_address() -> None:
    found = await route(router("dnslookup", ignore_target_hosts="$host_address"), families=("A",))
    assert isinstance(found, Unrouteable)
    assert found.message == "all relevant MX records point to non-existent hosts"
    assert any("ignore_target_hosts" in reason for reason in found.reasons)


# --- manualroute: hosts -----------------------------------------------------------------------------------------------


async def test_ports_of_item_router_and_transport() -> None:
    found = await route(router(route_list='* "b.test::26 : c.test"', port=2525))
    assert isinstance(found, Routed)
    assert [(host.address, host.port) for host in found.hosts] == [("192.0.2.2", 26), ("192.0.2.3", 2525)]
    found = await route(router(route_list="* b.test"))
    assert isinstance(found, Routed)
    assert found.hosts[0].port == 0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("* a.test", ["2001:db8::1", "192.0.2.1"]),
        ("* a.test ipv4_only", ["192.0.2.1"]),
        ("* a.test ipv4_prefer", ["192.0.2.1", "2001:db8::1"]),
        ("* a.test byname", ["192.0.2.71"]),
        ("* onlyhere.test byname", ["192.0.2.70"]),
        ("* onlyhere.test", ["192.0.2.70"]),
        ("* 192.0.2.44:[2001:db8::44]", ["192.0.2.44", "2001:db8::44"]),
    ],
)
async def test_how_a_host_is_looked_up(rule: str, expected: list[str]) -> None:
    assert addresses(await route(router(route_list=rule))) == expected


async def test_bydns_does_not_ask_the_system() -> None:
    found = await route(router(route_list="* onlyhere.test bydns", host_find_failed="fail"))
    assert isinstance(found, Unrouteable)


async def test_a_name_that_the_system_knows_holds_no_longer_than_it_says() -> None:
    assert (await route(router(route_list="* onlyhere.test byname"))).ttl_s == 60
    assert (await route(router(route_list="* 192.0.2.44"))).ttl_s == STATIC_TTL_S


@pytest.mark.parametrize(
    ("options", "is_random"),
    [
        ({"hosts_randomize": True}, True),
        ({}, False),
        ({"route_list": '* "192.0.2.1:192.0.2.2:192.0.2.3:192.0.2.4" randomize'}, True),
        ({"hosts_randomize": True, "route_list": '* "192.0.2.1:192.0.2.2:192.0.2.3:192.0.2.4" no_randomize'}, False),
    ],
)
async def test_randomize_of_rule_and_router(options: dict[str, Any], is_random: bool) -> None:
    options = {"route_list": '* "192.0.2.1:192.0.2.2:192.0.2.3:192.0.2.4"', **options}
    seen = {tuple(addresses(await route(router(**options), random=random.Random(seed)))) for seed in range(20)}
    assert (len(seen) > 5) is is_random


async def test_the_transport_of_a_rule() -> None:
    found = await route(router(route_list="* b.test relay"))
    assert isinstance(found, Routed)
    assert found.transport == "relay"


async def test_hosts_of_a_list_are_looked_up_at_once() -> None:
    dns = CannedDns(RECORDS, delay_s=0.02)
    await route(router(route_list='* "a.test : b.test : c.test"'), dns=dns)
    assert dns.most_at_once == 6


# --- manualroute: hosts that are not found ----------------------------------------------------------------------------

NOT_FOUND = 'lookup of host "nohost.test" failed in r router'


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("decline", Routed),
        ("pass", Routed),
        ("ignore", Routed),
        ("fail", Unrouteable),
        ("defer", RouteDeferred),
        ("freeze", RouteDeferred),
    ],
)
async def test_host_find_failed(action: str, expected: type[Route]) -> None:
    found = await route(
        router(route_list='* "nohost.test : b.test"', host_find_failed=action), router("dnslookup"), to="user@one.test"
    )
    assert isinstance(found, expected)
    if isinstance(found, Routed):
        assert (addresses(found) == ["192.0.2.2"]) is (action == "ignore")
    elif isinstance(found, RouteDeferred):
        assert (found.message, found.errno, found.code) == (NOT_FOUND, -32, "4.4.4")
        assert found.is_frozen is (action == "freeze")
    else:
        assert (found.message, found.code, found.router) == (NOT_FOUND, "5.4.4", "r")


async def test_host_find_failed_against_more() -> None:
    """Declining obeys `more`, passing does not (20.1)."""
    for action, expected in (("decline", Unrouteable), ("pass", Routed)):
        options = router(route_list="* nohost.test", host_find_failed=action, more=False)
        assert isinstance(await route(options, router("dnslookup")), expected)


async def test_all_hosts_ignored_defers() -> None:
    found = await route(router(route_list='* "nohost.test : gone.test"', host_find_failed="ignore"))
    assert isinstance(found, RouteDeferred)
    assert found.message.startswith("lookup failed for all hosts in r router: host_find_failed=ignore")


async def test_a_host_that_cannot_be_looked_up_defers() -> None:
    found = await route(router(route_list='* "b.test : bad.test"', host_find_failed="ignore"))
    assert isinstance(found, RouteDeferred)
    assert (found.message, found.errno) == ("host lookup for bad.test did not complete (DNS timeout?)", -36)
    assert found.retry_name == "timeout_DNS"


# --- manualroute: texts -----------------------------------------------------------------------------------------------


async def test_an_empty_host_list_and_a_forced_failure_decline() -> None:
    for options in ({"route_data": "$nothing"}, {"route_data": "FORCED"}, {"route_list": "* $nothing"}):
        found = await route(router(**options), router("dnslookup"))
        assert isinstance(found, Routed)
        assert "router r: declined" in found.reasons


@pytest.mark.parametrize(
    ("route_data", "message"),
    [
        ("$domain::x", "r router: 'x' is not a port in 'one.test::x'"),
        ("a.test nope", "r router: unknown routing option or transport name \"nope\" in 'a.test nope'"),
        ("b_!.test", "r router: domain 'b_!.test' is not valid: bad label 'b_!' in 'b_!.test'"),
    ],
)
async def test_an_expanded_text_that_is_no_host_list_defers(route_data: str, message: str) -> None:
    found = await route(router(route_data=route_data), router("dnslookup"))
    assert isinstance(found, RouteDeferred)
    assert (found.message, found.errno, found.code) == (message, -27, "4.3.5")


async def test_route_data_is_expanded_and_then_its_host_list() -> None:
    expander = PlainExpander()
    found = await route(router(route_data="$2nd"), expander=expander)
    assert isinstance(found, Unrouteable)
    found = await route(router(route_list="* $domain"), expander=expander, to="user@b.test")
    assert addresses(found) == ["192.0.2.2"]


@pytest.mark.parametrize(
    ("options", "key", "column"),
    [
        ({"route_list": "* a.test::x"}, "routers.r.route_list", 10),
        ({"route_list": "one.test a.test ; BAD b.test"}, "routers.r.route_list", 18),
        ({"route_list": ("one.test a.test", "* $BAD")}, "routers.r.route_list[1]", 3),
        ({"route_list": ("one.test a.test", "* a.test what")}, "routers.r.route_list[1]", 9),
        ({"route_data": "$BAD"}, "routers.r.route_data", 1),
        ({}, "routers.r", None),
        ({"route_list": "* a.test", "route_data": "a.test"}, "routers.r", None),
        ({"self_": "pass", "route_list": "* a.test"}, "routers.r.self", None),
    ],
)
async def test_what_is_wrong_has_a_key_and_a_column(options: dict[str, Any], key: str, column: int | None) -> None:
    with pytest.raises(ConfigError) as info:
        await route(router(**options))
    assert (info.value.key, info.value.column) == (key, column)


async def test_an_unknown_driver() -> None:
    with pytest.raises(ConfigError) as info:
        await route(router("accept"))
    assert info.value.key == "routers.r.driver"


async def test_hosts_that_cannot_be_expanded_defer_without_trouble_in_the_nursery() -> None:
    with trio.fail_after(PATIENCE_S):
        found = await route(router(route_list='* "a.test : b.test"', ignore_target_hosts="ERROR"))
    assert isinstance(found, RouteDeferred)
    assert found.errno == -27
