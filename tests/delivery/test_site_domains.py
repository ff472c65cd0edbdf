"""Which domains share a site, and which part once the name of the domain counts (R46, DN-11)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from engine.config import TransportOptions
from engine.delivery.routing import Routed
from engine.delivery.scheduler import Scheduler
from engine.delivery.site import Site
from engine.delivery.sts import NO_POLICY
from engine.delivery.transport import Transport
from engine.delivery.work import Work
from engine.expand.lists import NamedLists
from engine.policy.hosts import Host
from engine.policy.wishes import Wish
from fakes.engine_world import MakeWorld

HOST = Host("mx.test", "192.0.2.1", preference=10, secure=True, mx_secure=True, address_secure=True, domain="a.test")


def work(next_hop: str, tried: int = 0) -> Work:
    return Work(cast("Any", None), [], "id", next_hop=next_hop, tried=tried)


def site() -> Site:
    return Site("r", Transport.compile("smtp", TransportOptions(driver="smtp"), NamedLists()), (HOST,))


def test_work_of_several_domains_has_no_next_hop() -> None:
    first = work("a.test")
    first.take(work("a.test"))
    assert first.next_hop == "a.test"
    first.take(work("b.test"))
    assert first.next_hop == ""
    first.take(work("b.test"))
    assert first.next_hop == ""


def test_only_a_site_of_one_domain_knows_foreigners() -> None:
    made = site()
    own, foreign, mixed = work("a.test"), work("b.test"), work("")
    assert not made.is_foreign(foreign)
    made.by_domain = True
    assert [made.is_foreign(one) for one in (own, foreign, mixed)] == [False, True, True]


def test_foreigners_are_taken_out_wherever_they_wait() -> None:
    made = site()
    own = [work("a.test"), work("a.test", tried=2)]
    foreign = [work("b.test"), work("", tried=2), work("c.test")]
    for one in (own[0], foreign[0], own[1], foreign[1], foreign[2]):
        made.add(one)
    made.by_domain = True
    assert {id(one) for one in made.take_foreign()} == {id(one) for one in foreign}
    assert made.waiting == 2
    assert {id(one) for one in made.waiting_work()} == {id(one) for one in own}
    assert list(made.take_foreign()) == []


def test_domains_share_a_site_until_the_name_of_the_domain_counts(make_world: MakeWorld) -> None:
    scheduler = Scheduler(make_world().core, job_id=None, drain=True, wait=False)

    def at(domain: str, **changes: Any) -> Site:
        route = Routed("smtp", "smart", (replace(HOST, domain=domain, **changes),))
        return scheduler._find_site(route, Wish.USUAL, NO_POLICY)

    first = at("a.test")
    assert not first.is_shared
    assert at("b.test") is first
    assert first.is_shared
    first.by_domain = True
    second = at("b.test")
    assert second is not first
    assert second.hosts[0].domain == "b.test"
    assert at("b.test") is second
    assert at("a.test") is not first, "what it shared before may still be on its way"
    assert at("c.test") not in (first, second)


def test_what_dnssec_said_makes_another_site(make_world: MakeWorld) -> None:
    """R13, R15: the same host, found another way, has another policy."""
    scheduler = Scheduler(make_world().core, job_id=None, drain=True, wait=False)
    sites = {
        id(scheduler._find_site(Routed("smtp", "smart", (replace(HOST, **changes),)), Wish.USUAL, NO_POLICY))
        for changes in cast(
            "list[dict[str, Any]]",
            [
                {},
                {"mx_secure": False, "secure": False},
                {"mx_secure": None},
                {"address_secure": False, "secure": False},
                {"canonical_name": "target.test"},
                {"canonical_name": "target.test", "alias_secure": True},
            ],
        )
    }
    assert len(sites) == 6
