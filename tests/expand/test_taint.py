"""Text from outside: marked, carried along, refused where it would be code, a name or a bare query (X-24, X-25)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError, ExpandError
from engine.expand import ExpandOptions, Scope, compile_text
from engine.expand.acl import Acls
from engine.expand.lists import DomainList
from engine.expand.quoting import QUOTERS, quote_for
from engine.expand.searches import Found
from engine.expand.taint import Tainted, is_tainted, join, quoter_of, taint


class _Lookups:
    """Remembers how it was asked."""

    def __init__(self, found: Found | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self._found = found

    def find(self, search: Any, **asked: Any) -> Found | None:
        self.asked.append({"type": search.type.name, **asked})
        return self._found


def _scope(lookups: _Lookups | None = None) -> Scope:
    scope = Scope(
        {"local_part": b"o'neil", "domain": b"A.Test", "primary_hostname": b"host.test", "address_data": b"clean"},
        headers=[b"Subject: hello\n"],
        lookups=lookups,
        acls=Acls.compile({"back": "accept message = <$acl_arg1>", "set": "accept set acl_m_kept = $acl_arg1"}),
    )
    scope.acl_m["acl_m_out"] = taint(b"$domain")
    scope.acl_m["acl_m_in"] = b"$domain"
    return scope


@pytest.mark.parametrize(
    ("text", "tainted"),
    [
        ("$local_part", True),
        ("$primary_hostname$address_data", False),
        ("x$domain", True),
        ("${lc:$domain}${uc:$domain}", True),
        ("${length_1:$local_part}", True),
        ("${sg{$domain}{A}{b}}", True),
        ("${sg{abc}{b}{$local_part}}", True),
        ("${tr{$local_part}{o}{a}}", True),
        ("${extract{1}{.}{$domain}}", True),
        ("${map{$local_part}{x}}", False),
        ("${map{$local_part}{$item}}", True),
        ("${filter{$domain:x}{eq{$item}{x}}}", True),
        ("${reduce{a:b}{$domain}{$value$item}}", True),
        ("${sort{$domain:b}{lt}{$item}}", True),
        ("${if match{$domain}{(A)}{$1}}", True),
        ("${if match_domain{$domain}{^(A)}{$1}}", True),
        ("${if inlist{a}{a:b}{$value}}", False),
        ("$h_subject:", True),
        ("$acl_m_out", True),
        ("$acl_m_in", False),
        # what only depends on text from outside is not from outside
        ("${if eq{$domain}{A.Test}{yes}{no}}", False),
        ("${strlen:$local_part}", False),
        ("${hash_3:$local_part}${nhash_5:$domain}", False),
        ("${listcount:$domain}", False),
        ("${eval:${strlen:$domain}+1}", False),
        ("${if eq{$domain}{x}{$local_part}{no}}", False),
        ("${length_0:$local_part}", True),
        ("a${if eq{a}{b}{$domain}}b", False),
        # an empty text from outside marks nothing it is joined to
        ("a$sender_address", False),
        ("${acl{back}{$domain}}", True),
        ("${acl{back}{clean}}", False),
    ],
)
def test_the_mark_goes_where_the_text_goes(text: str, tainted: bool) -> None:
    assert is_tainted(compile_text(text).evaluate(_scope())) is tainted


def test_an_acl_variable_keeps_the_mark() -> None:
    scope = _scope()
    compile_text("${acl{set}{$domain}}").evaluate(scope)
    assert is_tainted(scope.acl_m["acl_m_kept"])
    assert is_tainted(compile_text("$acl_m_kept").evaluate(scope))


@pytest.mark.parametrize(
    "text",
    [
        "${expand:$acl_m_out}",
        "${expand:\\$$local_part}",
        "${sg{a}{a}{$acl_m_out}}",
    ],
)
def test_text_from_outside_is_never_expanded(text: str) -> None:
    with pytest.raises(ExpandError, match="attempt to expand tainted string"):
        compile_text(text).evaluate(_scope())


def test_clean_text_may_be_expanded_and_tainted_text_stays_as_it_is_in_a_list() -> None:
    assert compile_text("${expand:$acl_m_in}").evaluate(_scope()) == b"A.Test"
    assert compile_text("${if inlist{\\$domain}{$acl_m_out}{y}{n}}").evaluate(_scope()) == b"y"
    with pytest.raises(ExpandError, match="attempt to expand tainted string"):
        compile_text(taint(b"$domain"))
    assert compile_text(taint(b"plain")).evaluate(_scope()) == b"plain"


def test_the_separator_of_a_list_from_outside_is_not_believed() -> None:
    """X-21: a `<c` counts in the text of the program and in clean text only."""
    scope = _scope()
    scope.acl_m["acl_m_out"] = taint(b"<; a;b")
    scope.acl_m["acl_m_in"] = b"<; a;b"
    assert compile_text("${map{$acl_m_in}{[$item]}}").evaluate(scope) == b"[a];[b]"
    assert compile_text("${map{$acl_m_out}{[$item]}}").evaluate(scope) == b"[<; a;b]"
    assert compile_text("${map{<, $acl_m_out,c}{[$item]}}").evaluate(scope) == b"[<; a;b],[c]"


@pytest.mark.parametrize("item", ["hash", "length", "nhash", "substr"])
def test_numbers_from_outside_are_refused(item: str) -> None:
    scope = _scope()
    scope.acl_m["acl_m_out"] = taint(b"1")
    with pytest.raises(ExpandError, match=f"attempt to use tainted string '1' for {item}"):
        compile_text(f"${{{item}{{$acl_m_out}}{{abc}}}}").evaluate(scope)


def test_the_name_of_an_acl_cannot_come_from_outside() -> None:
    with pytest.raises(ExpandError, match="ERROR from acl"):
        compile_text("${acl{$local_part}}").evaluate(_scope())


def test_a_list_cannot_come_from_outside() -> None:
    with pytest.raises(ExpandError, match="attempt to use tainted string"):
        DomainList.compile("$domain").match("A.Test", _scope())
    assert DomainList.compile("$primary_hostname").matches("host.test", _scope())


def test_a_lookup_is_told_what_comes_from_outside() -> None:
    lookups = _Lookups()
    compile_text("${lookup{$local_part}lsearch{/etc/$primary_hostname}}").evaluate(_scope(lookups))
    compile_text("${lookup{clean}lsearch{/etc/$domain}}").evaluate(_scope(lookups))
    compile_text("${lookup pgsql{SELECT '${quote_pgsql:$local_part}', '${quote_pgsql:$domain}'}}").evaluate(
        _scope(lookups)
    )
    compile_text("${lookup pgsql{SELECT '${quote_mysql:$local_part}'}}").evaluate(_scope(lookups))
    compile_text("${lookup pgsql{SELECT '${quote_pgsql:$local_part}', '$domain'}}").evaluate(_scope(lookups))
    compile_text("${lookup pgsql{SELECT '${lc:${quote_pgsql:$local_part}}'}}").evaluate(_scope(lookups))
    compile_text("${lookup pgsql{SELECT '$primary_hostname'}}").evaluate(_scope(lookups))
    marks = [(one["tainted"], one["quoted_for"], one["text_tainted"]) for one in lookups.asked]
    assert marks == [
        (True, None, False),
        (False, None, True),
        (True, "pgsql", False),
        (True, "mysql", False),
        (True, None, False),
        # what was changed after it was quoted is not known to be quoted any more
        (True, None, False),
        (False, None, False),
    ]
    assert lookups.asked[2]["text"] == b"SELECT 'o''neil', 'A.Test'"


def test_what_a_lookup_finds_is_clean_unless_it_is_dns() -> None:
    found = compile_text("${lookup{x}lsearch{/f}}").evaluate(_scope(_Lookups(Found(b"data"))))
    assert not is_tainted(found)
    found = compile_text("${lookup dnsdb{a=x}{<$value>}}").evaluate(_scope(_Lookups(Found(b"data", tainted=True))))
    assert is_tainted(found)


def test_the_fixed_part_of_a_partial_match_is_clean() -> None:
    lookups = _Lookups(Found(b"data", groups=(b"wild", b"fixed")))
    program = "${lookup{$domain}partial-lsearch{/f}{%s}}"
    assert is_tainted(compile_text(program % "$1").evaluate(_scope(lookups)))
    assert not is_tainted(compile_text(program % "$2").evaluate(_scope(lookups)))


def test_an_acl_that_asks_unquoted_is_compiled_and_refused_when_it_runs() -> None:
    acls = Acls.compile({"x": "accept message = ${expand:$domain\\$x}"}, options=ExpandOptions())
    scope = Scope({"domain": b"a"}, acls=acls)
    assert compile_text("${acl{x}}").evaluate(scope) == b""  # a message that cannot be expanded is logged
    with pytest.raises(ConfigError):
        Acls.compile({"x": "accept message = ${nosuch"})


@given(st.lists(st.tuples(st.binary(max_size=3), st.sampled_from([None, "clean", "pgsql", "mysql"])), max_size=5))
def test_joining_keeps_the_quoting_only_when_all_of_it_is_the_same(parts: list[tuple[bytes, str | None]]) -> None:
    texts = [text if mark == "clean" else taint(text, mark) for text, mark in parts]
    joined = join(texts)
    marks = {mark for text, mark in parts if mark != "clean" and text}
    assert is_tainted(joined) is bool(marks)
    assert quoter_of(joined) == (marks.pop() if len(marks) == 1 else None)


@pytest.mark.parametrize("quoter", [None, "pgsql"])
def test_marked_text_can_be_copied_and_sent(quoter: str | None) -> None:
    marked = taint(b"x", quoter)
    for twin in (copy.copy(marked), copy.deepcopy(marked), pickle.loads(pickle.dumps(marked))):
        assert twin == marked
        assert isinstance(twin, Tainted)
        assert twin.quoter == quoter


@given(st.binary(max_size=20), st.sampled_from(sorted(QUOTERS)))
def test_the_quote_operators_do_what_the_quoters_do(text: bytes, lookup: str) -> None:
    scope = Scope({"local_part": text})
    value = compile_text(f"${{quote_{lookup}:$local_part}}").evaluate(scope)
    assert value == quote_for(lookup, text)
    assert isinstance(value, Tainted)
