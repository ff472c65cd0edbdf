"""Variables, headers, the clock and what an item sets (X-17 to X-19, section 7)."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest

from engine.errors import ExpandError
from engine.expand import ExpandOptions, Scope, compile_text
from engine.expand.searches import Found
from engine.expand.variables import SOURCES, Source

_HEADERS = [
    b"From: A <a@b.c>\r\n",
    b"To: x@y.z\r\n",
    b"to:  p@q.r \r\n",
    b"Subject: =?utf-8?q?caf=C3=A9?=  \r\n",
    b"X-Latin: =?iso-8859-1?q?=E9?=\r\n",
    b"X-L: a:b\r\n",
    b"X-L:  c\r\n d\r\n",
]


def _value(text: str, scope: Scope | None = None, **options: Any) -> bytes:
    return bytes(compile_text(text, options=ExpandOptions(**options)).evaluate(scope or Scope()))


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        (b"x", b"x"),
        ("é", "é".encode()),
        ("\udcff", b"\xff"),
        (5, b"5"),
        (-5, b"-5"),
        (True, b"yes"),
        (False, b"no"),
        (None, b""),
        (lambda: "made", b"made"),
        (lambda: 3, b"3"),
    ],
)
def test_a_scope_may_hold_values_of_many_types(value: object, octets: bytes) -> None:
    assert _value("$address_data", Scope({"address_data": value})) == octets
    assert _value("${if def:address_data{y}{n}}", Scope({"address_data": value})) == (b"y" if octets else b"n")


def test_a_variable_that_nobody_set_has_its_default() -> None:
    assert _value("$event_defer_errno,$tls_out_dane,$sending_port,$host_port,$local_part") == b"0,no,-1,0,"


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"rheader_"}))  # which is a header whose name is missing
def test_every_variable_can_be_read_where_nothing_is_set(name: str) -> None:
    scope = Scope(now=lambda: 0.0)
    assert isinstance(compile_text(f"${name}").evaluate(scope), bytes)
    assert isinstance(compile_text(f"${{if def:{name}{{y}}{{n}}}}").evaluate(scope), bytes)


def test_variables_of_this_scope_only_are_known_when_they_are_named() -> None:
    with pytest.raises(ExpandError, match='unknown variable name "mine"'):
        _value("$mine")
    assert _value("$mine", Scope({"mine": b"x"}), extra=frozenset(["mine"])) == b"x"


def test_acl_and_router_variables() -> None:
    scope = Scope()
    scope.acl_c["acl_c0"] = b"c"
    scope.acl_m["acl_m_x"] = b"m"
    scope.router_variables["r_x"] = b"r"
    scope.acl_args = (b"one", b"two")
    assert _value("$acl_c0$acl_m_x$r_x$r_y$acl_arg2$acl_arg3$acl_narg$acl_m_none", scope) == b"cmrtwo2"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[$h_from:]", b"[A <a@b.c>]"),
        ("[$h_TO:]", b"[x@y.z,\np@q.r]"),
        ("[$rh_to:]", b"[ x@y.z\n  p@q.r \n]"),
        ("[$lh_to:]", b"[ x@y.z:  p@q.r ]"),
        ("[$bh_to:]", b"[x@y.z,\np@q.r]"),
        ("[$h_subject:]", "[café]".encode()),
        ("[$rheader_subject:]", b"[ =?utf-8?q?caf=C3=A9?=  \n]"),
        ("[$h_x-latin:]", "[é]".encode()),
        ("[$bh_x-latin:]", b"[\xe9]"),
        ("[$h_x-l:]", b"[a:b\nc\n d]"),
        ("[$lheader_x-l:]", b"[ a::b:  c\n d]"),
        ("[$h_none:]", b"[]"),
        ("$h_from", b"A <a@b.c>"),
        ("$h_x-l: x", b"a:b\nc\n d x"),
        ("${if def:h_from:{y}{n}}${if def:h_none:{y}{n}}", b"yn"),
        ("${strlen:$message_headers_raw}", b"%d" % len(b"".join(_HEADERS).replace(b"\r", b""))),
    ],
)
def test_headers(text: str, value: bytes) -> None:
    assert _value(text, Scope(headers=_HEADERS)) == value


def test_the_clock_is_that_of_the_scope() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    scope = Scope(now=lambda: 1_000_000_000.25, timezone=zone)
    assert _value("$tod_epoch $tod_epoch_l $tod_log $tod_zone $tod_zulu", scope) == (
        b"1000000000 1000000000250000 2001-09-09 03:46:40 +0200 20010909014640Z"
    )
    assert _value("$tod_full|$tod_bsdinbox|$tod_logfile", scope) == (
        b"Sun, 09 Sep 2001 03:46:40 +0200|Sun Sep 09 03:46:40 2001|20010909"
    )
    with pytest.raises(ExpandError, match="no clock here"):
        _value("$tod_log")


def test_random_numbers_are_those_of_the_scope() -> None:
    assert _value("${randint:10}", Scope(random=lambda most: most - 3)) == b"7"
    assert _value("${randint:1}${randint:0}", Scope(random=lambda most: most)) == b"00"
    with pytest.raises(ExpandError, match="no random numbers here"):
        _value("${randint:10}")


def test_the_environment_is_what_was_allowed() -> None:
    scope = Scope(environ={b"HOME": b"/root"})
    assert _value("${env{HOME}{<$value>}{none}}${env{PATH}{<$value>}{none}}", scope) == b"</root>none"


def test_value_item_and_groups_of_the_scope_are_those_outside() -> None:
    scope = Scope()
    scope.value, scope.item, scope.groups = b"v", b"i", (b"zero", b"one")
    assert _value("$value$item$0$1$2${if match{x}{(x)}{$1}}$1${map{a}{$item}}$item", scope) == b"vizeroonexoneai"
    assert (scope.value, scope.item, scope.groups) == (b"v", b"i", (b"zero", b"one"))


def test_a_copied_scope_is_one_of_its_own() -> None:
    scope = Scope({"domain": b"a"}, headers=_HEADERS, now=lambda: 5.0)
    scope.value = b"v"
    twin = copy.copy(scope)
    twin.variables = {"domain": b"b"}
    twin.value = None
    assert _value("$domain$value", scope) == b"av"
    assert _value("$domain$value$tod_epoch$h_from:", twin) == b"b5A <a@b.c>"


def test_a_lookup_says_whether_dns_was_authentic() -> None:
    class Lookups:
        def find(self, *_: object, **__: object) -> Found:
            return Found(b"x", authenticated=True)

    scope = Scope(lookups=Lookups())
    assert _value("${lookup dnsdb{a=b}{$lookup_dnssec_authenticated}}", scope) == b"yes"


def test_each_kind_of_source_is_used() -> None:
    assert set(SOURCES.values()) >= set(Source) - {Source.ACL_C, Source.ACL_M, Source.ROUTER}
