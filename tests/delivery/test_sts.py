"""Whom MTA-STS is for: by router, domain and option; what is known without waiting (R46, R49, R50)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from engine.config import RouterOptions, TransportOptions
from engine.delivery.routing import Routed
from engine.delivery.sts import NO_POLICY, StsGate
from engine.delivery.transport import Transport
from engine.expand import Scope
from engine.expand.lists import NamedLists
from engine.net.sts_cache import StsPolicies
from engine.net.sts_fetch import StsFetchError
from engine.policy.hosts import Host
from fakes.dns_server import DnsServer, Reply, resolver_for, serve_dns
from fakes.policy_host import policy

DOMAIN, MX = "example.org", "mx.example.org"
ROUTERS = (
    RouterOptions(name="dnslookup", driver="dnslookup", transport="smtp"),
    RouterOptions(name="smart", driver="manualroute", transport="smtp", route_list="* smart.example"),
)


class Bench:
    """A gate before policies that are fetched from a variable."""

    def __init__(self, dns: DnsServer, directory: Path, domains: str | tuple[str, ...] = "*") -> None:
        self.body: bytes | None = policy("enforce", MX)
        self.fetched = 0
        dns.zone[f"_mta-sts.{DOMAIN}", "TXT"] = Reply(['"v=STSv1; id=1;"'])
        self.resolver = resolver_for(dns)
        policies = StsPolicies(str(directory), self.resolver, self.fetch, clock=lambda: 1_800_000_000.0)
        options = TransportOptions(driver="smtp", mta_sts_domains=domains)
        transport = Transport.compile("smtp", options, NamedLists())
        self.gate = StsGate(policies, ROUTERS, {"smtp": transport}, Scope, trio.CapacityLimiter(1))

    async def fetch(self, domain: str) -> bytes:
        del domain
        self.fetched += 1
        await trio.lowlevel.checkpoint()
        if self.body is None:
            raise StsFetchError("no")
        return self.body


def route(router: str = "dnslookup", mx: str = MX) -> Routed:
    return Routed("smtp", router, (Host(mx, "192.0.2.1", domain=DOMAIN, from_mx=True),))


async def test_a_policy_is_known_once_it_was_looked_up(tmp_path: Path) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path)
        assert bench.gate.known_or_none(route(), DOMAIN) is None
        found = await bench.gate.look_up(route(), DOMAIN)
        assert found.policy is not None
        assert bench.gate.known_or_none(route(), DOMAIN) is found
        assert bench.fetched == 1


@pytest.mark.parametrize(("router", "domain"), [("smart", DOMAIN), ("dnslookup", "[192.0.2.1]")])
async def test_hosts_that_the_domain_does_not_name(tmp_path: Path, router: str, domain: str) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path)
        assert bench.gate.known_or_none(route(router), domain) is NO_POLICY
        assert await bench.gate.look_up(route(router), domain) is NO_POLICY
        assert dns.queries == []
        assert (bench.gate.is_by_dns("dnslookup"), bench.gate.is_by_dns("smart")) == (True, False)


@pytest.mark.parametrize(
    ("domains", "expected"),
    [("*", True), ("", False), (DOMAIN, True), ("!example.org : *", False), (("*.example", "*.org"), True)],
)
async def test_domains_of_the_option(tmp_path: Path, domains: str | tuple[str, ...], expected: bool) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path, domains)
        found = await bench.gate.look_up(route(), DOMAIN)
        assert (found.policy is not None) is expected
        assert bench.gate.known_or_none(route(), DOMAIN) is found


@pytest.mark.parametrize("body", [policy("none"), None])
async def test_what_demands_nothing(tmp_path: Path, body: bytes | None) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path)
        bench.body = body
        found = await bench.gate.look_up(route(), DOMAIN)
        assert found.policy is None
        assert (found is NO_POLICY) is (body is not None)
        assert bool(found.problem) is (body is None)


async def test_a_host_that_is_not_named_asks_for_a_newer_policy(tmp_path: Path) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path)
        await bench.gate.look_up(route(mx="mx2.example.org"), DOMAIN)
        assert bench.fetched == 2


async def test_an_option_that_cannot_be_expanded_makes_mail_wait(tmp_path: Path) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path, "${lookup{x}lsearch{/nowhere}}")
        found = await bench.gate.look_up(route(), DOMAIN)
        assert found.must_wait.startswith("mta_sts_domains: ")


async def test_without_a_wait_no_policy_is_known_from_its_record_and_a_policy_is_not(tmp_path: Path) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path)
        resolver = bench.resolver
        assert bench.gate.record_or_none(ROUTERS[0], DOMAIN) == f"_mta-sts.{DOMAIN}"
        for domain in (DOMAIN, "other.example"):
            assert bench.gate.find_now(route(), domain) is None, "nobody has asked"
            await resolver.query(f"_mta-sts.{domain}", "TXT")
        assert bench.gate.find_now(route(), DOMAIN) is None, "there is a policy to be fetched"
        assert bench.gate.find_now(route(), "other.example") is NO_POLICY
        assert resolver.peek("_mta-sts.other.example", "TXT") is None, "it is not kept twice"
        assert bench.gate.find_now(route(), "other.example") is NO_POLICY
        assert bench.gate.record_or_none(ROUTERS[0], "other.example") is None, "there is nothing to ask"
        assert bench.fetched == 0


async def test_without_a_wait_a_policy_on_disk_is_never_passed_over(tmp_path: Path) -> None:
    """R50: who takes the record away must not be able to take the policy away."""
    async with serve_dns() as dns:
        first = Bench(dns, tmp_path)
        await first.gate.look_up(route(), DOMAIN)
        del dns.zone[f"_mta-sts.{DOMAIN}", "TXT"]
        bench = Bench(dns, tmp_path)
        del dns.zone[f"_mta-sts.{DOMAIN}", "TXT"]
        await bench.resolver.query(f"_mta-sts.{DOMAIN}", "TXT")
        assert bench.gate.find_now(route(), DOMAIN) is None
        assert (await bench.gate.look_up(route(), DOMAIN)).policy is not None


async def test_domains_that_are_listed_are_looked_up_in_a_task(tmp_path: Path) -> None:
    async with serve_dns() as dns:
        bench = Bench(dns, tmp_path, (DOMAIN,))
        await bench.resolver.query("_mta-sts.other.example", "TXT")
        assert bench.gate.record_or_none(ROUTERS[0], "other.example") is None
        assert bench.gate.find_now(route(), "other.example") is None
