"""HostSearch: MX order, implicit and null MX, errors against denials, ourselves, DNSSEC status
(DN-1 to DN-3, R3, R4, R8)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.answers import Answer, Mx, Status
from engine.policy.mx import (
    MAX_ADDRESSES,
    MAX_HOSTS,
    MAX_MX_HOSTS,
    MAX_REASON_LENGTH,
    MAX_REASONS,
    Deferral,
    Failure,
    FailureKind,
    Found,
    Host,
    HostList,
    HostSearch,
    SearchOptions,
    apply_self,
)

DOMAIN = "example.test"
V4 = SearchOptions(families=("A",))


def mx(*records: tuple[int, str], ad: bool | None = None, name: str = DOMAIN, ttl: int = 300) -> Answer:
    found = tuple(Mx(preference, exchange) for preference, exchange in records)
    return Answer(
        name, "MX", Status.OK, ad=bool(ad), is_ad_trusted=ad is not None, mx=found, canonical_name=name, ttl_s=ttl
    )


def addresses(
    name: str, *texts: str, ad: bool | None = None, cnames: tuple[str, ...] = (), rdtype: str = "", ttl: int = 300
) -> Answer:
    rdtype = rdtype or ("AAAA" if texts and ":" in texts[0] else "A")
    status = Status.OK if texts else Status.NODATA
    canonical = cnames[-1] if cnames else name
    return Answer(
        name,
        rdtype,
        status,
        ad=bool(ad),
        is_ad_trusted=ad is not None,
        addresses=texts,
        canonical_name=canonical,
        cnames=cnames,
        ttl_s=ttl,
    )


def bad(name: str, rdtype: str, status: Status = Status.SERVFAIL) -> Answer:
    return Answer(name, rdtype, status, canonical_name=name)


def search(
    *answers: Answer, domain: str = DOMAIN, options: SearchOptions = V4, seed: int = 0, asked: list[str] | None = None
) -> Found:
    """Run a search; what is not among `answers` does not exist."""
    known = {(answer.name, answer.rdtype): answer for answer in answers}
    machine = HostSearch(domain, options, random=random.Random(seed))
    for _ in range(1000):
        query = machine.next_query()
        if query is None:
            break
        if asked is not None:
            asked.append(f"{query.rdtype} {query.name}")
        none = Answer(query.name, query.rdtype, Status.NXDOMAIN, canonical_name=query.name, ttl_s=60)
        machine.on_answer(known.get((query.name, query.rdtype), none))
    assert machine.result is not None
    return machine.result


def hosts(found: Found) -> tuple[Host, ...]:
    assert isinstance(found, HostList), found
    return found.hosts


def names(found: Found) -> list[str]:
    return [host.name for host in hosts(found)]


def addresses_of(found: Found) -> list[str]:
    return [host.address for host in hosts(found)]


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


# --- DNSSEC status ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mx_ad", "address_ad", "secure"),
    [
        (True, True, True),
        (True, False, False),
        (False, True, False),
        (False, False, False),
        (None, None, None),
    ],
)
def test_status_of_a_host(mx_ad: bool | None, address_ad: bool | None, secure: bool | None) -> None:
    """DN-1, DN-2, DN-3"""
    found = search(mx((10, "a.test"), ad=mx_ad), addresses("a.test", "192.0.2.1", ad=address_ad))
    (host,) = hosts(found)
    assert (host.secure, host.mx_secure, host.address_secure, host.alias_secure) == (secure, mx_ad, address_ad, None)


def test_status_is_by_address() -> None:
    """R8"""
    found = search(
        mx((10, "a.test"), ad=True),
        addresses("a.test", "192.0.2.1", ad=True),
        addresses("a.test", "2001:db8::1", ad=False),
        options=SearchOptions(),
    )
    assert {host.address: host.secure for host in hosts(found)} == {"192.0.2.1": True, "2001:db8::1": False}


@pytest.mark.parametrize(("denial_ad", "secure"), [(True, True), (False, False)])
def test_without_mx_the_denial_must_be_secure_too(denial_ad: bool, secure: bool) -> None:
    """R12: otherwise who strips the MX records chooses the host."""
    denial = Answer(DOMAIN, "MX", Status.NODATA, ad=denial_ad, is_ad_trusted=True)
    (host,) = hosts(search(denial, addresses(DOMAIN, "192.0.2.1", ad=True)))
    assert (host.secure, host.mx_secure, host.address_secure) == (secure, denial_ad, True)


def test_dnssec_not_requested_is_unknown_and_asks_nothing_more() -> None:
    """DN-3"""
    asked: list[str] = []
    found = search(
        mx((10, "a.test"), ad=True),
        addresses("a.test", "192.0.2.1", ad=False, cnames=("b.test",)),
        options=replace(V4, request_dnssec=False),
        asked=asked,
    )
    (host,) = hosts(found)
    assert (host.secure, host.mx_secure, host.address_secure, host.alias_secure) == (None, None, None, None)
    assert "CNAME a.test" not in asked


@pytest.mark.parametrize(("first_ad", "expected"), [(True, True), (False, False)])
def test_an_insecure_alias_is_asked_for_its_first_cname(first_ad: bool, expected: bool) -> None:
    """R3, R15 c and d"""
    asked: list[str] = []
    alias = Answer("a.test", "CNAME", Status.OK, ad=first_ad, is_ad_trusted=True, canonical_name="b.test", ttl_s=7)
    found = search(
        mx((10, "a.test"), ad=True),
        addresses("a.test", "192.0.2.1", ad=False, cnames=("b.test",)),
        alias,
        asked=asked,
    )
    (host,) = hosts(found)
    assert asked[-1] == "CNAME a.test"
    assert (host.alias_secure, host.address_secure, host.canonical_name) == (expected, False, "b.test")
    assert isinstance(found, HostList)
    assert found.ttl_s == 7


def test_a_secure_answer_proves_its_alias() -> None:
    asked: list[str] = []
    found = search(
        mx((10, "a.test"), ad=True),
        addresses("a.test", "192.0.2.1", ad=False, cnames=("b.test",)),
        addresses("a.test", "2001:db8::1", ad=True, cnames=("b.test",)),
        options=SearchOptions(),
        asked=asked,
    )
    assert "CNAME a.test" not in asked
    assert {host.alias_secure for host in hosts(found)} == {True}


def test_an_error_at_the_alias_makes_the_host_unreachable() -> None:
    """R4"""
    answers = [
        mx((10, "a.test"), (20, "b.test"), ad=True),
        addresses("a.test", "192.0.2.1", ad=False, cnames=("c.test",)),
        bad("a.test", "CNAME"),
    ]
    assert isinstance(search(*answers), Deferral)
    assert names(search(*answers, addresses("b.test", "192.0.2.2", ad=True))) == ["b.test"]


def test_an_alias_of_the_domain_is_kept_for_reference_names() -> None:
    """R36"""
    answer = replace(mx((10, "a.test")), canonical_name="real.test", cnames=("real.test",))
    (host,) = hosts(search(answer, addresses("a.test", "192.0.2.1")))
    assert (host.domain, host.domain_canonical_name) == (DOMAIN, "real.test")


def test_dnssec_required() -> None:
    options = replace(V4, require_dnssec=True)
    insecure = search(mx((10, "a.test"), ad=False), addresses("a.test", "192.0.2.1", ad=True), options=options)
    assert isinstance(insecure, Deferral)
    assert insecure.message == "host lookup done insecurely"
    address = search(mx((10, "a.test"), ad=True), addresses("a.test", "192.0.2.1", ad=False), options=options)
    assert isinstance(address, Deferral)
    both = search(
        mx((10, "a.test"), (20, "b.test"), ad=True),
        addresses("a.test", "192.0.2.1", ad=False),
        addresses("b.test", "192.0.2.2", ad=True),
        options=options,
    )
    assert names(both) == ["b.test"]


def test_reasons_tell_the_whole_way() -> None:
    found = search(mx((10, "a.test"), ad=True), addresses("a.test", "192.0.2.1", ad=False, cnames=("b.test",)))
    assert isinstance(found, Deferral | HostList)
    assert found.reasons[0] == "MX example.test: 10 a.test, secure"
    assert found.reasons[1] == "A a.test: 192.0.2.1 (alias of b.test), insecure"


# --- everything -------------------------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["a.test", "b.test", "c.test", "", "192.0.2.1", DOMAIN])
_STATUS = st.sampled_from(list(Status))


@st.composite
def _answer(draw: st.DrawFn, name: str, rdtype: str) -> Answer:
    status = draw(_STATUS)
    records = draw(st.lists(st.tuples(st.integers(0, 3), _NAMES), min_size=1, max_size=4)) if rdtype == "MX" else []
    texts = draw(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]), min_size=1, max_size=3))
    cnames = draw(st.sampled_from([(), ("x.test",), ("x.test", "y.test")]))
    return Answer(
        name,
        rdtype,
        status,
        ad=draw(st.booleans()),
        is_ad_trusted=True,
        mx=tuple(Mx(*record) for record in records) if status is Status.OK else (),
        addresses=tuple(texts) if status is Status.OK and rdtype in ("A", "AAAA") else (),
        canonical_name=cnames[-1] if cnames else name,
        cnames=cnames,
    )


@given(st.data(), st.integers(0, 5), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_every_set_of_answers_ends_in_a_result(
    data: st.DataObject, seed: int, require: bool, use_mx: bool, order: random.Random
) -> None:
    """Whatever comes, in whatever order, the search ends, with hosts in order, none insecure where that is refused."""
    options = SearchOptions(
        require_dnssec=require,
        use_mx=use_mx,
        local_addresses=frozenset({"192.0.2.2"}),
        is_ignored=lambda name, address: address == "2001:db8::1" and name == "c.test",
    )
    machine = HostSearch(DOMAIN, options, random=random.Random(seed))
    answered = 0
    while machine.result is None:
        queries = []
        while (query := machine.next_query()) is not None:
            queries.append(query)
        assert queries, "neither a question nor a result"
        order.shuffle(queries)
        for query in queries:
            answered += 1
            machine.on_answer(data.draw(_answer(query.name, query.rdtype)))
    assert answered < 40
    if isinstance(machine.result, HostList):
        assert machine.result.hosts
        preferences = [-1 if host.preference is None else host.preference for host in machine.result.hosts]
        assert preferences == sorted(preferences)
        if require:
            assert all(host.address_secure for host in machine.result.hosts)
        if not machine.result.is_ours:
            assert "192.0.2.2" not in {host.address for host in machine.result.hosts}
