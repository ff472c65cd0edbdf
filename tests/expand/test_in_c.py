"""What the evaluator does in C against the functions in Python that say what it should be."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import ExpandError
from engine.expand import ExpandOptions, Scope, conditions, items, operators, pieces
from engine.expand import _evaluate as kernel
from engine.expand.compiler import Compiler
from engine.expand.lists import NamedLists
from engine.expand.program import compile_text
from engine.expand.regexes import compile_regex
from engine.expand.taint import taint

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT = st.one_of(st.binary(max_size=30), st.text('aB1.@:;, ="\\\t<-_', max_size=30).map(str.encode))
_NUMBER = st.one_of(st.integers(-9, 9), st.integers(-(10**14), 10**14)).map(lambda number: b"%d" % number)
_SPACED = st.tuples(st.sampled_from([b"", b" ", b"\t\n"]), _NUMBER).map(b"".join)


def _result(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    try:
        return (function(*arguments),)
    except ExpandError as error:
        return type(error), error.message


@given(_SPACED | st.just(b"-"), st.sampled_from([b"", b".", b"@.", b": ", b"a"]), _TEXT)
@example(b"0", b":", b"a:b")
@example(b"-1", b":", b"")
@example(b"2", b":", b":")
def test_fields_by_number(number: bytes, separators: bytes, text: bytes) -> None:
    assert kernel.extract_number(number, separators, text) == items.extract_number(number, separators, text)


def test_a_key_that_is_constant_only_when_folded_is_no_number() -> None:
    assert compile_text("${extract{${lc:ABC}}{abc=1}{$value}{none}}").evaluate(Scope()) == b"1"
    assert compile_text("${extract{${lc:ABC}}{:}{a:b}}").evaluate(Scope()) == b""
    assert compile_text("${extract{${lc:2}}{:}{a:b}}").evaluate(Scope()) == b"b"
    program = compile_text("${extract{$domain}{:}{a:b}}")
    assert program.specialise({"domain": b"x"}).evaluate(Scope()) == b""


def test_a_field_number_is_a_number() -> None:
    with pytest.raises(ValueError, match="number"):
        kernel.extract_number(b"1x", b":", b"a:b")


@given(st.sampled_from([b"a", b"A1", b" B ", b"", b"  ", b'"a']), _TEXT)
@example(b"a", b'a="x\\')
@example(b"a", b'a="x\\"y\\x41" b')
@example(b"a", b'A = "" a=1')
@example(b"b", b'a="x\\ b=1')
@example(b"b", b"a b=1 b = 2")
@example(b"a", b"a")
def test_fields_by_key(key: bytes, text: bytes) -> None:
    assert _result(kernel.extract_key, key, text) == _result(items.extract_key, key, text)


@given(_SPACED | st.sampled_from([b"", b" ", b"-", b"1x", b"--1", b"1 2"]), _TEXT)
def test_items_by_number(number: bytes, text: bytes) -> None:
    assert _result(kernel.list_extract, number, text) == _result(items.list_extract, number, text)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
@example(-(1 << 63))
@example((1 << 63) - 1)
@example(0)
@example(-10)
def test_numbers_as_digits(number: int) -> None:
    # the sum is written so that no side of it overflows
    half = number // 2
    text = f"{'-' if half < 0 else ''}{abs(half)}*2|{number - 2 * half}".encode()
    scope = Scope()
    scope.acl_m["acl_m_x"] = text
    assert compile_text("${eval10:$acl_m_x}").evaluate(scope) == b"%d" % number


@given(_TEXT | _NUMBER)
@example(b"9223372036854775807")
@example(b"99999999999999999999999999999999999999999999999")
@example(b"604800")
def test_operators_that_have_a_function_in_c(text: bytes) -> None:
    for name, function in operators.FAST.items():
        assert _result(function, text) == _result(operators.OPERATORS[name].function or pytest.fail, text)


_OPERATORS = [
    *("escape", "escape8bit", "hexquote", "quote", "quote_local_part", "rfc2047", "rxquote", "base64", "listcount"),
    *(
        "s_1",
        "s_-3_2",
        "s_0_0",
        "s_-40",
        "s_2_99",
        "length_3",
        "l_0",
        "h_3",
        "h_2_26",
        "h_1_0",
        "nh_7",
        "nh_0",
        "nh_5_9",
    ),
    *("nh_7_0", "nhash_2147483647_2147483647", "hash_3_99"),
]


@given(st.sampled_from(_OPERATORS), _TEXT, st.booleans())
@example("quote", b"", True)
@example("quote_local_part", b"", False)
@example("quote_local_part", b"a..b", False)
def test_operators_in_a_program(name: str, text: bytes, tainted: bool) -> None:
    program = compile_text(f"${{{name}:$acl_m_x}}")

    def run(prepared: bool) -> tuple[Any, ...]:
        scope = Scope()
        scope.acl_m["acl_m_x"] = taint(text) if tainted else text
        value = Compiler(program.options, prepared=prepared).compile(program.tree).evaluate(scope)
        return value, type(value)

    assert _result(run, True) == _result(run, False)


@given(_TEXT, st.integers(0, 40), st.integers(-1, 40))
def test_numeric_hash(text: bytes, first: int, second: int) -> None:
    assert _result(kernel.numeric_hash, first, second, text) == _result(pieces.nhash, text, first, second)


@given(st.sampled_from(["md5", "sha1"]), st.binary(max_size=100), _TEXT)
def test_hmac(algorithm: str, key: bytes, text: bytes) -> None:
    expected = hmac.new(key, text, getattr(hashlib, algorithm)).hexdigest().encode()
    assert items.hmac(algorithm.encode(), key, text) == expected


_ITEMS = st.sampled_from(
    [
        *("a.test", "*.B.test", "*", "*st", "x", "", "!a.test", "^a", "+ld", "*@a.test", "A@b.test", "*x@*.test", "@a"),
        *("a@*", "a@b@c.test", "*@", "USER", "a@+ld", "a@^b"),
    ]
)
_SUBJECTS = st.sampled_from(
    [b"", b"a.test", b"A.Test", b"x.b.test", b"b.test", b"x", b"a@b.test", b"xx@A.test", b"a@", b"@a", b"a@b@c.test"]
)


@given(
    st.sampled_from(["match_domain", "match_local_part", "match_address"]),
    st.lists(_ITEMS, max_size=5),
    _SUBJECTS,
    st.booleans(),
)
def test_lists_of_names(kind: str, members: list[str], subject: bytes, tainted: bool) -> None:
    options = ExpandOptions(lists=NamedLists(domains={"ld": "a.test : *.b.test"}, local_parts={"ld": "x"}))
    text = " : ".join(members)
    try:
        program = compile_text(f"${{if {kind}{{$acl_m_x}}{{{text}}}{{yes}}{{no}}}}[$value]", options=options)
    except ExpandError:
        return
    shown = compile_text(
        f"${{if {kind}{{$acl_m_x}}{{{text}}}{{yes $value $0 $1}}{{no $value $0 $1}}}}", options=options
    )

    def run(which: Any, prepared: bool) -> tuple[Any, ...]:
        scope = Scope()
        scope.acl_m["acl_m_x"] = taint(subject) if tainted else subject
        scope.value = b"before"
        scope.groups = (b"g0", b"g1")
        value = Compiler(options, prepared=prepared).compile(which.tree).evaluate(scope)
        return value, type(value)

    for which in (program, shown):
        assert _result(run, which, True) == _result(run, which, False)


def test_a_list_of_names_is_looked_through_in_c() -> None:
    plain = conditions.compiled_list("match_domain", b"a.test : *.b.test", ExpandOptions())
    long = conditions.compiled_list("match_domain", b" : ".join(b"%d.test" % at for at in range(99)), ExpandOptions())
    other = conditions.compiled_list("match_domain", b"a.test : ^b", ExpandOptions())
    assert plain is not None
    assert long is not None
    assert other is not None
    assert conditions.plain_list("match_domain", plain) == (
        False,
        True,
        ((None, False, b"a.test", False, b"a.test"), (None, False, b".b.test", True, b"*.b.test")),
    )
    assert conditions.plain_list("match_domain", long) is None
    assert conditions.plain_list("match_domain", other) is None


@given(st.sampled_from([b"(a)|(b)", b"a*", b"^", b"(x)?y", b"\\bb"]), _TEXT, st.integers(0, 30))
def test_a_match_has_its_groups(pattern: bytes, text: bytes, start: int) -> None:
    regex = compile_regex(pattern)
    found = re.search(pattern, text)
    assert regex.search(text) == (None if found is None else tuple(part or b"" for part in (found[0], *found.groups())))
    if start <= len(text):
        place = re.compile(pattern).search(text, start)
        got = regex.span(text, start)
        assert (got is None) is (place is None)
        assert got is None or place is None or got[:2] == place.span()
