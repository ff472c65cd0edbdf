"""HostSearch: what DNSSEC said of each host (DN-1 to DN-3, R3, R8, R12), and that every search ends in order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.answers import Answer, Mx, Status
from engine.policy.hosts import Deferral, HostList
from engine.policy.mx import (
    HostSearch,
    SearchOptions,
)
from fakes.host_answers import DOMAIN, V4, addresses, bad, hosts, mx, names, search

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
