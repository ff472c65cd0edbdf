"""HostSearch: MX order, implicit and null MX, errors against denials (R4, R8), ignored hosts and ourselves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from engine.policy.answers import Answer, Status
from engine.policy.hosts import Deferral, Failure, FailureKind, HostList, apply_self
from engine.policy.mx import (
    MAX_ADDRESSES,
    MAX_HOSTS,
    MAX_MX_HOSTS,
    MAX_REASON_LENGTH,
    MAX_REASONS,
    HostSearch,
    SearchOptions,
)
from fakes.host_answers import DOMAIN, V4, addresses, addresses_of, bad, hosts, mx, names, search

# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_preference_orders_hosts(seed: int) -> None:
    found = search(
        mx((30, "c.test"), (10, "a.test"), (20, "b.test")),
        *[addresses(f"{name}.test", f"192.0.2.{number}") for number, name in enumerate("abc")],
        seed=seed,
    )
    assert names(found) == ["a.test", "b.test", "c.test"]
    assert [host.preference for host in hosts(found)] == [10, 20, 30]
    assert all(host.from_mx for host in hosts(found))


def test_chance_decides_within_one_preference() -> None:
    answers = [mx((10, "a.test"), (10, "b.test"), (5, "first.test")), addresses("first.test", "192.0.2.9")]
    answers += [addresses(name, "192.0.2.1") for name in ("a.test", "b.test")]
    seen = Counter(tuple(names(search(*answers, seed=seed))) for seed in range(200))
    assert set(seen) == {("first.test", "a.test", "b.test"), ("first.test", "b.test", "a.test")}
    assert min(seen.values()) > 60


def test_families_are_tried_in_the_configured_order_and_addresses_shuffled() -> None:
    answers = [
        mx((10, "a.test")),
        addresses("a.test", "192.0.2.1", "192.0.2.2"),
        addresses("a.test", "2001:db8::1", "2001:db8::2"),
    ]
    six_first = [addresses_of(search(*answers, options=SearchOptions(), seed=seed)) for seed in range(20)]
    assert all(":" in found[0] and ":" in found[1] and "." in found[2] for found in six_first)
    assert len({tuple(found) for found in six_first}) == 4
    four_first = addresses_of(search(*answers, options=SearchOptions(families=("A", "AAAA"))))
    assert "." in four_first[0]
    assert len(addresses_of(search(*answers))) == 2


def test_a_host_named_twice_counts_with_its_best_preference() -> None:
    found = search(mx((20, "a.test"), (10, "a.test")), addresses("a.test", "192.0.2.1"))
    assert [(host.name, host.preference) for host in hosts(found)] == [("a.test", 10)]


def test_questions_of_one_stage_are_given_at_once() -> None:
    machine = HostSearch(DOMAIN, SearchOptions(), random=random.Random(0))
    first = machine.next_query()
    assert first is not None
    assert machine.next_query() is None
    machine.on_answer(mx((10, "a.test"), (20, "b.test")))
    queries = set()
    while (query := machine.next_query()) is not None:
        queries.add((query.name, query.rdtype))
    assert queries == {(name, rdtype) for name in ("a.test", "b.test") for rdtype in ("A", "AAAA")}


def test_answers_nobody_asked_for_change_nothing() -> None:
    machine = HostSearch(DOMAIN, V4, random=random.Random(0))
    machine.on_answer(addresses("evil.test", "192.0.2.66"))
    assert machine.result is None
    machine.on_answer(Answer(DOMAIN, "MX", Status.NXDOMAIN))
    result = machine.result
    machine.on_answer(mx((10, "evil.test")))
    assert machine.result is result


def test_hosts_and_addresses_are_bounded() -> None:
    asked: list[str] = []
    many = [(number, f"h{number}.test") for number in range(300)]
    found = search(mx(*many), *[addresses(name, *[f"10.0.{n}.1" for n in range(200)]) for _, name in many], asked=asked)
    assert len(asked) == 1 + MAX_MX_HOSTS
    assert len(hosts(found)) == MAX_HOSTS
    assert Counter(names(found))["h0.test"] == MAX_ADDRESSES
    assert [host.preference for host in hosts(found)] == sorted(n for n in range(8) for _ in range(MAX_ADDRESSES))
    assert isinstance(found, HostList)
    assert len(found.reasons) <= MAX_REASONS
    assert max(map(len, found.reasons)) <= MAX_REASON_LENGTH


# --- no MX ------------------------------------------------------------------------------------------------------------


def test_without_mx_the_domain_is_its_own_host() -> None:
    found = search(Answer(DOMAIN, "MX", Status.NODATA, ttl_s=50), addresses(DOMAIN, "192.0.2.1"))
    (host,) = hosts(found)
    assert (host.name, host.preference, host.from_mx, host.domain) == (DOMAIN, None, False, DOMAIN)
    assert isinstance(found, HostList)
    assert found.ttl_s == 50


def test_null_mx_is_a_failure() -> None:
    """RFC 7505"""
    found = search(mx((0, "")), addresses(DOMAIN, "192.0.2.1"))
    assert isinstance(found, Failure)
    assert (found.kind, found.code) == (FailureKind.NO_SERVICE, "5.1.10")
    assert found.message == "an MX or SRV record indicated no SMTP service"


def test_a_dot_beside_real_hosts_is_no_null_mx() -> None:
    """RFC 7505 §3"""
    assert names(search(mx((0, ""), (10, "a.test")), addresses("a.test", "192.0.2.1"))) == ["a.test"]


def test_a_domain_that_does_not_exist_is_a_failure_at_once() -> None:
    asked: list[str] = []
    found = search(asked=asked)
    assert isinstance(found, Failure)
    assert (found.message, found.kind, found.ttl_s) == ("Unrouteable address", FailureKind.NO_DOMAIN, 60)
    assert asked == ["MX example.test"]


def test_neither_mx_nor_address() -> None:
    found = search(Answer(DOMAIN, "MX", Status.NODATA, ttl_s=50), addresses(DOMAIN))
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.NO_DOMAIN


def test_mx_domains_must_have_mx() -> None:
    asked: list[str] = []
    options = replace(V4, must_have_mx=True)
    found = search(Answer(DOMAIN, "MX", Status.NODATA), addresses(DOMAIN, "192.0.2.1"), options=options, asked=asked)
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.NO_MX
    assert asked == ["MX example.test"]


def test_all_mx_hosts_missing() -> None:
    found = search(mx((10, "a.test"), (20, "b.test")), addresses("b.test"))
    assert isinstance(found, Failure)
    assert found.message == "all relevant MX records point to non-existent hosts"
    assert found.kind is FailureKind.NO_ADDRESS


@pytest.mark.parametrize("exchange", ["192.0.2.1", "a b.test", "-x-.test", "[192.0.2.1]", "x\\.y.test"])
def test_an_mx_that_is_no_host_name_is_not_looked_up(exchange: str) -> None:
    asked: list[str] = []
    found = search(mx((10, exchange)), asked=asked)
    assert isinstance(found, Failure)
    assert found.message.endswith("non-existent hosts or (invalidly) to IP addresses")
    assert len(asked) == 1
    assert names(search(mx((10, exchange), (20, "a.test")), addresses("a.test", "192.0.2.1"))) == ["a.test"]


# --- errors (R4, R8) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "retry_name"), [(Status.SERVFAIL, ""), (Status.TIMEOUT, "timeout_DNS")])
def test_an_error_on_mx_defers(status: Status, retry_name: str) -> None:
    found = search(bad(DOMAIN, "MX", status), addresses(DOMAIN, "192.0.2.1"))
    assert isinstance(found, Deferral)
    assert (found.message, found.errno, found.code) == ("host lookup did not complete", -36, "4.4.3")
    assert found.retry_name == retry_name


def test_a_host_with_an_error_is_left_out() -> None:
    """R4"""
    found = search(mx((10, "a.test"), (20, "b.test"), ttl=3600), bad("a.test", "A"), addresses("b.test", "192.0.2.1"))
    assert names(found) == ["b.test"]
    assert isinstance(found, HostList)
    assert found.ttl_s == 60, "the better host is looked for again soon"


def test_if_only_hosts_with_errors_are_left_the_search_defers() -> None:
    assert isinstance(search(mx((10, "a.test"), (20, "b.test")), bad("a.test", "A")), Deferral)


def test_one_family_is_enough() -> None:
    """R8"""
    found = search(mx((10, "a.test")), bad("a.test", "AAAA"), addresses("a.test", "192.0.2.1"), options=SearchOptions())
    assert addresses_of(found) == ["192.0.2.1"]


def test_one_family_broken_and_the_other_empty_defers() -> None:
    """R8: what the broken one would have said is not known."""
    found = search(mx((10, "a.test")), bad("a.test", "AAAA"), addresses("a.test"), options=SearchOptions())
    assert isinstance(found, Deferral)


# --- literals and single hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "address"),
    [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1")],
)
@pytest.mark.parametrize("use_mx", [True, False])
def test_an_address_literal_needs_no_question(domain: str, address: str, use_mx: bool) -> None:
    machine = HostSearch(domain, replace(V4, port=2525, use_mx=use_mx), random=random.Random(0))
    assert machine.next_query() is None
    assert machine.result is not None
    (host,) = hosts(machine.result)
    assert (host.name, host.address, host.port, host.secure) == (domain, address, 2525, None)


@pytest.mark.parametrize("text", ["192.0.2.9", "2001:db8::9"])
def test_a_bare_address_is_a_host_and_no_domain(text: str) -> None:
    """RFC 5321 §4.1.3: a domain that is an address stands in brackets."""
    host = HostSearch(text, replace(V4, use_mx=False), random=random.Random(0))
    assert host.result is not None
    assert addresses_of(host.result) == [text]
    domain = HostSearch(text, V4, random=random.Random(0))
    assert domain.result is None
    query = domain.next_query()
    assert query is not None
    assert query.rdtype == "MX"


def test_a_host_without_mx_lookup() -> None:
    options = replace(V4, use_mx=False, port=26)
    asked: list[str] = []
    found = search(addresses("h.test", "192.0.2.1", ad=True), domain="h.test", options=options, asked=asked)
    assert asked == ["A h.test"]
    (host,) = hosts(found)
    assert (host.port, host.secure, host.mx_secure, host.address_secure) == (26, True, None, True)
    missing = search(domain="h.test", options=options)
    assert isinstance(missing, Failure)
    assert (missing.message, missing.kind) == ('lookup of host "h.test" failed', FailureKind.NO_ADDRESS)


# --- ignore_target_hosts and ourselves --------------------------------------------------------------------------------


def test_ignored_addresses_do_not_exist() -> None:
    seen: list[tuple[str, str]] = []

    def is_ignored(name: str, address: str) -> bool:
        seen.append((name, address))
        return address.startswith("127.")

    options = replace(V4, is_ignored=is_ignored)
    answers = [mx((10, "a.test"), (20, "b.test")), addresses("a.test", "127.0.0.1", "192.0.2.1")]
    answers.append(addresses("b.test", "127.0.0.2"))
    assert addresses_of(search(*answers, options=options)) == ["192.0.2.1"]
    assert ("b.test", "127.0.0.2") in seen
    found = search(mx((20, "b.test")), answers[-1], options=options)
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.IGNORED


def test_an_ignored_family_and_a_broken_one_defer() -> None:
    options = SearchOptions(is_ignored=lambda name, address: True)
    found = search(mx((10, "a.test")), addresses("a.test", "192.0.2.1"), bad("a.test", "AAAA"), options=options)
    assert isinstance(found, Deferral)


OURS = replace(V4, local_addresses=frozenset({"192.0.2.1"}))
FOUR = [addresses(f"{name}.test", f"192.0.2.{number}") for number, name in enumerate("zabcd")]


@pytest.mark.parametrize("seed", range(8))
def test_hosts_of_our_own_preference_and_worse_are_dropped(seed: int) -> None:
    """RFC 5321 §5.1; a.test is this machine."""
    found = search(mx((10, "b.test"), (20, "a.test"), (20, "c.test"), (30, "d.test")), *FOUR, options=OURS, seed=seed)
    assert names(found) == ["b.test"]
    assert isinstance(found, HostList)
    assert not found.is_ours


@pytest.mark.parametrize("seed", range(8))
def test_when_we_are_best_self_decides(seed: int) -> None:
    found = search(mx((10, "a.test"), (10, "b.test"), (20, "c.test")), *FOUR, options=OURS, seed=seed)
    assert isinstance(found, HostList)
    assert found.is_ours
    assert sorted(names(found)) == ["a.test", "b.test", "c.test"]
    assert apply_self(found, "send") is found
    deferred = apply_self(found, "defer")
    assert isinstance(deferred, Deferral)
    assert (deferred.message, deferred.errno) == ("lowest numbered MX record points to local host", -1)
    failed = apply_self(found, "fail")
    assert isinstance(failed, Failure)
    assert failed.kind is FailureKind.SELF


def test_self_without_mx() -> None:
    found = search(Answer(DOMAIN, "MX", Status.NODATA), addresses(DOMAIN, "192.0.2.1"), options=OURS)
    assert isinstance(found, HostList)
    failed = apply_self(found, "fail")
    assert isinstance(failed, Failure)
    assert failed.message == "remote host address is the local host"


def test_a_better_host_with_an_error_keeps_us_from_being_best() -> None:
    found = search(
        mx((10, "b.test"), (20, "a.test")), bad("b.test", "A"), addresses("a.test", "192.0.2.1"), options=OURS
    )
    assert isinstance(found, Deferral)
