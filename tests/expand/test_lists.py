"""Domain, host, address and local-part lists as configuration has them (4.1, X-21, X-22)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ExpandError, LookupDeferral
from engine.expand import Scope
from engine.expand.lists import AddressList, DomainList, HostList, LocalPartList, NamedLists
from engine.expand.patterns import text_subject
from engine.expand.searches import Found, SearchDeferral

_NAMED = NamedLists(
    domains={"own": "example.org : *.example.org", "deep": ["+own", "other.test"]},
    hosts={"inside": ["10.0.0.0/8", "*.inside.test"]},
    addresses={"vip": "boss@example.org : *@vip.test"},
    local_parts={"roles": "postmaster : abuse"},
)


class _Lookups:
    """Finds what is in a dictionary; `down` cannot be told."""

    def __init__(self, **known: bytes) -> None:
        self.known = known
        self.asked: list[tuple[str, bytes | None, bytes, bool]] = []

    def find(self, search: Any, *, key: bytes | None, text: bytes, tainted: bool = False, **_: Any) -> Found | None:
        self.asked.append((search.type.name, key, text, tainted))
        word = (key or text).decode()
        if word == "down":
            raise SearchDeferral(key or text, "server is down")
        return Found(self.known[word]) if word in self.known else None


@pytest.mark.parametrize(
    ("items", "domain", "expected"),
    [
        ("*", "x", True),
        ("", "x", False),
        ("example.org", "EXAMPLE.org", True),
        ("*.org", "example.org", True),
        ("*.org", "org", False),
        ("*org", "org", True),
        (r"\N^ex.*\.org$\N", "example.org", True),
        (r"^ex.*\\.org\$", "example.org", True),
        ("!bad.test : *", "bad.test", False),
        ("!bad.test : *", "good.test", True),
        ("a : !b", "c", True),
        ("a : !b", "b", False),
        ("+own", "sub.example.org", True),
        ("!+own", "sub.example.org", False),
        ("!+own", "elsewhere.test", True),
        ("+deep", "other.test", True),
        ("+deep", "a.example.org", True),
        ("<; a.test ; b.test", "b.test", True),
        (("a.test", "b.test"), "b.test", True),
        (("!a.test", "*"), "a.test", False),
        ((), "a.test", False),
        ("${if eq{a}{a}{x.test:y.test}}", "y.test", True),
        (("${if eq{a}{b}{x.test}fail}", "z.test"), "z.test", True),
        ("$primary_hostname", "host.test", True),
        ("@", "host.test", True),
    ],
)
def test_domains(items: Any, domain: str, expected: bool) -> None:
    compiled = DomainList.compile(items, named=_NAMED)
    assert compiled.is_pure
    assert compiled.matches(domain, Scope({"primary_hostname": b"host.test"})) is expected


@pytest.mark.parametrize(
    ("items", "name", "address", "expected"),
    [
        ("*", None, None, True),
        ("10.0.0.1", "mx.test", "10.0.0.1", True),
        ("10.0.0.0/8", "mx.test", "10.9.9.9", True),
        ("10.0.0.0/8", "mx.test", "::ffff:10.9.9.9", True),
        ("10.0.0.0/8", "mx.test", "2001:db8::1", False),
        ("<; 2001:db8::/32", "mx.test", "2001:DB8::1", True),
        ("[10.0.0.1]", "mx.test", "10.0.0.1", True),
        ("*.test", "mx.TEST", "10.0.0.1", True),
        ("*.test", "mx.test.", "10.0.0.1", True),
        ("*.test", None, "10.0.0.1", False),
        ("mx.test", "mx.test", None, True),
        ("10.0.0.1", "mx.test", None, False),
        ("+inside", "a.inside.test", "192.0.2.1", True),
        ("!10.0.0.1 : 10.0.0.0/8", "x", "10.0.0.1", False),
        ("^mx", "mx1.test", "10.0.0.1", True),
    ],
)
def test_hosts(items: Any, name: str | None, address: str | None, expected: bool) -> None:
    assert HostList.compile(items, named=_NAMED).matches(name=name, address=address) is expected


@pytest.mark.parametrize(
    ("items", "address", "expected"),
    [
        ("*@example.org", "a@EXAMPLE.org", True),
        ("boss@*", "Boss@anywhere", True),
        ("*s@x.test", "boss@x.test", True),
        ("x.test", "boss@x.test", True),
        ("*.test", "boss@x.test", True),
        ("+vip", "any@vip.test", True),
        ("*@+own", "any@sub.example.org", True),
        ("boss@+own", "other@example.org", False),
        (":", "", True),
        ("*", "", False),
        (r"^boss@", "boss@x", True),
        ("!boss@x.test : *", "boss@x.test", False),
    ],
)
def test_addresses(items: Any, address: str, expected: bool) -> None:
    assert AddressList.compile(items, named=_NAMED).matches(address) is expected


def test_local_parts() -> None:
    assert LocalPartList.compile("+roles", named=_NAMED).matches("Postmaster")
    assert not LocalPartList.compile("*master", named=_NAMED).matches("abuse")


def test_lookups_in_lists() -> None:
    lookups = _Lookups(**{"a.test": b"data", "boss": b"x", "10.1.2.0/24": b"net", "10.1.2.3": b"host"})
    scope = Scope({"primary_hostname": b"host.test"}, lookups=lookups)
    domains = DomainList.compile("x.test : lsearch;/etc/domains", named=_NAMED)
    assert not domains.is_pure
    assert domains.match("a.test", scope) == b"data"
    assert domains.match("none.test", scope) is None
    assert domains.match("x.test", scope) == b"x.test"
    assert HostList.compile("net24-lsearch;/etc/hosts").match(address="10.1.2.3", scope=scope) == b"net"
    assert HostList.compile("net-lsearch;/etc/hosts").match(address="10.1.2.3", scope=scope) == b"host"
    assert not AddressList.compile("@@lsearch;/etc/parts").matches("boss@none.test", scope)
    assert lookups.asked[0] == ("lsearch", b"a.test", b"/etc/domains", False)


def test_the_local_parts_of_a_domain_may_be_looked_up() -> None:
    scope = Scope(lookups=_Lookups(**{"a.test": b"boss : !fool : f*"}))
    people = AddressList.compile("@@cdb;/etc/parts")
    assert [people.matches(f"{local}@a.test", scope) for local in ("boss", "fool", "fine", "other")] == [
        *(True, False, False, False)
    ]


def test_a_server_that_is_down_is_a_deferral_and_not_a_no() -> None:
    scope = Scope(lookups=_Lookups())
    with pytest.raises(LookupDeferral):
        DomainList.compile("lsearch;/x : *").matches("down", scope)


@pytest.mark.parametrize(
    ("kind", "items", "message"),
    [
        (DomainList, "+nosuch", 'unknown named domain list "+nosuch"'),
        (HostList, "+own", 'unknown named host list "+own"'),
        (DomainList, "a : ^(", "regular expression error"),
        (DomainList, "nosuch;x", 'unknown lookup type "nosuch"'),
        (DomainList, "/etc/domains", 'file name "/etc/domains" in a list'),
        (DomainList, "@mx_any", "needs the addresses of this host"),
        (HostList, "@[]", "needs the addresses of this host"),
        (DomainList, "${lc:", "missing } at end of string"),
    ],
)
def test_what_cannot_be_a_list(kind: Any, items: str, message: str) -> None:
    with pytest.raises(ExpandError) as caught:
        kind.compile(items, named=_NAMED)
    assert message in caught.value.message
    assert caught.value.column is not None


def test_named_lists_that_hold_themselves_are_refused() -> None:
    named = NamedLists(domains={"a": "+b", "b": "+a"})
    with pytest.raises(ExpandError, match="nested too deep"):
        DomainList.compile("+a", named=named)


def test_fixed_answers_are_known() -> None:
    assert DomainList.compile("*").always is True
    assert DomainList.compile("").always is False
    assert DomainList.compile("!* : a").always is False
    assert DomainList.compile("a : *").always is None


@given(
    st.lists(
        st.sampled_from(["a.test", "*.test", "*test", "b.a.test", "A.test", "*a.test", "*"]), min_size=1, max_size=6
    ),
    st.sampled_from(["a.test", "b.a.test", "B.A.TEST", "test", "x", ""]),
)
def test_a_list_with_an_index_finds_what_one_without_finds(items: list[str], domain: str) -> None:
    """An item that never matches keeps a list from having an index."""
    indexed = DomainList.compile(items)
    plain = DomainList.compile([*items, "\\N^never matches$\\N"])
    subject = text_subject(domain.encode())
    assert indexed.match(domain) == plain.match(domain)
    assert indexed.shown(subject, Scope()) == plain.shown(subject, Scope())
