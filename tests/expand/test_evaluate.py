"""The compiled evaluator against the reference: the same value, taint, quoting and error for the same program."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import ExpandError
from engine.expand import ExpandOptions, Scope, compile_text, numbers
from engine.expand import _evaluate as kernel
from engine.expand.compiler import Compiler
from engine.expand.lists import NamedLists
from engine.expand.listsplit import join_list, split_list
from engine.expand.taint import Tainted, quoter_of, taint
from reference import expand_grammar
from reference.expand_reference import Reference, assemble, hash_text, prime_sum

_OPTIONS = ExpandOptions(lists=NamedLists(domains={"ld": "a.test : *.b.test"}), late_errors=True)
_NAMES = ("local_part", "address_data", "acl", "value")
_VALUES = st.sampled_from(
    [
        b"",
        b"a",
        b"ABC",
        b"x y",
        b"a:b:c",
        b"1",
        b"10",
        b"user@a.test",
        b"a'b",
        b"$item",
        b"10.0.0.1",
        b"<, a, b",
        b"\xff",
    ]
)


def _scope(values: dict[str, bytes], tainted: bool) -> Scope:
    mark: Any = taint if tainted else bytes
    scope = Scope(
        {
            "primary_hostname": b"oracle.test",
            "local_part": values["local_part"],
            "domain": "A.Test",
            "address_data": values["address_data"],
            "message_size": 12,
            "tls_out_dane": True,
        }
    )
    scope.acl_m["acl_m_unset"] = mark(values["acl"])
    scope.value = mark(values["value"])
    scope.groups = (mark(b"zero"), mark(b"one"))
    return scope


def _result(run: Any) -> tuple[Any, ...]:
    try:
        value = run()
    except ExpandError as error:
        return type(error), error.message
    return bytes(value), isinstance(value, Tainted), quoter_of(value)


@given(
    st.one_of(expand_grammar.expressions(), expand_grammar.broken()),
    st.fixed_dictionaries(dict.fromkeys(_NAMES, _VALUES)),
    st.booleans(),
)
@example("${quote_pgsql:$local_part}", dict.fromkeys(_NAMES, b"a'b"), True)
@example("${sg{$local_part}{(.)}{<\\$1>}}", dict.fromkeys(_NAMES, b"ab"), True)
def test_the_kernel_does_what_the_reference_does(text: str, values: dict[str, bytes], tainted: bool) -> None:
    try:
        program = compile_text(text, options=_OPTIONS)
    except ExpandError:
        return
    expected = _result(Reference(assemble(text.encode(), _OPTIONS), _scope(values, tainted)).run)
    assert _result(lambda: program.evaluate(_scope(values, tainted))) == expected
    plain = kernel.Code(*Compiler(_OPTIONS, prepared=False).assemble(program.tree))
    assert _result(lambda: plain.evaluate(_scope(values, tainted))) == expected


@given(st.binary(max_size=30) | st.text(": a\\<,\n;", max_size=20).map(str.encode), st.none() | st.integers(0, 255))
@example(b"a::b: :c:", None)
@example(b"<\n a\nb\n", None)
@example(b"a\\ : b", None)
def test_lists_are_split_as_in_python(text: bytes, separator: int | None) -> None:
    assert kernel.split_list(text, separator) == split_list(text, separator)


def _value_or_error(function: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return function(*arguments, **named)
    except ExpandError as error:
        return error.message


@given(
    st.lists(
        st.sampled_from(
            [
                *"0123456789+-*/%()~&|^kMG x",
                "<<",
                ">>",
                " ",
                "0x1F",
                "010",
                "9223372036854775807",
                "4611686018427387903",
                "-1",
            ]
        ),
        max_size=12,
    ).map("".join),
    st.booleans(),
)
@example("(0-9223372036854775807-1)/-1", False)
@example("(0-9223372036854775807-1)%-1", False)
@example("(" * 101 + "1", False)
@example("~" * 101 + "1", False)
@example("99999999999999999999999", False)
@example("-7/2", True)
@example("-7%2", True)
@example("1<<64", True)
def test_sums_are_as_in_python(text: str, decimal: bool) -> None:
    octets = text.encode()
    expected = _value_or_error(numbers.evaluate, octets, decimal=decimal)
    assert _value_or_error(kernel.evaluate_sum, octets, decimal) == expected


@given(st.binary(min_size=1, max_size=80), st.data())
def test_hashes_are_as_in_python(text: bytes, data: Any) -> None:
    size, modulus = data.draw(st.integers(1, len(text))), data.draw(st.integers(1, 62))
    assert kernel.hash_text(text, size, modulus) == hash_text(text, size, modulus)
    assert kernel.prime_sum(text) == prime_sum(text)


@pytest.mark.parametrize(("size", "modulus"), [(0, 5), (4, 5), (-1, 5), (2, 0), (2, 63), (2, -1)])
def test_a_hash_that_there_is_not_is_refused(size: int, modulus: int) -> None:
    with pytest.raises(ValueError, match="no such hash"):
        kernel.hash_text(b"abc", size, modulus)


@given(st.lists(st.text(":a ,", max_size=4).map(str.encode), max_size=6), st.sampled_from(b":,\n a"))
def test_lists_are_joined_as_in_python(items: list[bytes], separator: int) -> None:
    assert kernel.join_list(items, separator) == join_list(items, separator)


@given(
    st.lists(st.text(":a ,", max_size=4).map(lambda text: text.strip().encode()), max_size=6), st.sampled_from(b":,;")
)
def test_a_joined_list_reads_back(items: list[bytes], separator: int) -> None:
    items = [item for item in items if not item.startswith(b"%c" % separator)]
    if items and not items[-1]:
        items.append(b"end")  # one separator at the end makes no item
    if items and not items[0]:
        items.insert(0, b"start")  # no space goes before the first item
    assert kernel.split_list(kernel.join_list(items, separator), separator) == items


# --- programs that no compiler makes ---------------------------------------------------------------------------------

_CONSTANTS = (b"text", b"a:b", "local_part", 5, None, (len, False), (str.upper, 0), (bytes.upper, bytes(256), 2), len)


@given(st.data())
def test_a_program_of_random_numbers_is_refused_or_ends(data: Any) -> None:
    number = st.integers(-len(_CONSTANTS) - 1, 12)
    count = data.draw(st.integers(0, 12))
    instructions: list[int] = []
    for _ in range(count):
        instructions += [data.draw(st.integers(-1, len(kernel.Op))), *(data.draw(number) for _ in range(4))]
    instructions += [int(kernel.Op.RETURN), data.draw(number), 0, 0, 0]
    pool = data.draw(st.lists(number, max_size=5))
    _refused_or_ends(instructions, pool)


def _refused_or_ends(instructions: list[int], pool: list[int]) -> None:
    try:
        code = kernel.Code(instructions, _CONSTANTS, pool, 4, ())
    except ValueError:
        return
    scope = Scope({"local_part": b"abc"})
    try:
        assert isinstance(code.evaluate(scope), bytes)
    except (ExpandError, TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError, RuntimeError):
        pass  # a program that mixes up what is in its slots is told so, and nothing worse happens
    assert scope.depth == 0


def test_changed_programs_are_refused_or_end() -> None:
    rng = random.Random(7)
    text = "${map{a:b:$local_part}{${if match{$item}{(a)}{$1}{${sg{$item}{b}{\\$0x}}}}}}${sort{b:a}{lt}{$item}}"
    assembly = Compiler(_OPTIONS).assemble(compile_text(text, options=_OPTIONS).tree)
    for _ in range(1000):
        instructions = list(assembly.instructions)
        for _ in range(rng.randrange(1, 4)):
            instructions[rng.randrange(len(instructions))] = rng.randrange(-12, 60)
        try:
            code = kernel.Code(instructions, assembly.constants, assembly.pool, assembly.slot_count, ())
        except ValueError:
            continue
        try:
            code.evaluate(Scope({"local_part": b"abc"}))
        except (ExpandError, TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError, RuntimeError):
            pass


@pytest.mark.parametrize(
    ("instructions", "slots"),
    [
        ([], 1),
        ([0, 0, 0, 0], 1),
        ([0, 1, 0, 0, 0], 1),
        ([0, -1, 0, 0, 0], 1),
        ([99, 0, 0, 0, 0], 1),
        ([int(kernel.Op.MOVE), 0, 0, 0, 0], 1),  # does not end
        ([int(kernel.Op.JUMP), 1, 0, 0, 0], 1),
        ([int(kernel.Op.JUMP), -1, 0, 0, 0], 1),
        ([int(kernel.Op.JOIN), 0, 0, 1, 0, 0, 0, 0, 0, 0], 1),
        ([int(kernel.Op.SPLIT), 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
        ([int(kernel.Op.COMPARE), 0, 0, 0, 1, 0, 0, 0, 0, 0], 1),  # a loop that nothing counts
        ([int(kernel.Op.COMPARE), 99, 0, 0, 2, 0, 0, 0, 0, 0], 1),
        ([0, 0, 0, 0, 0], 0),
    ],
)
def test_a_program_with_a_wrong_number_is_refused(instructions: list[int], slots: int) -> None:
    with pytest.raises(ValueError, match=r"range|program|instruction|end|counted"):
        kernel.Code(instructions, (), [], slots, ())


def test_a_loop_ends_with_an_error() -> None:
    code = kernel.Code([int(kernel.Op.JUMP), 0, 0, 0, 0], (), [], 1, ())
    with pytest.raises(ExpandError, match="takes too long"):
        code.evaluate(Scope())


def test_a_state_can_be_used_again_after_an_error() -> None:
    scope = Scope()
    with pytest.raises(ExpandError):
        compile_text("${expand:\\${eval:x\\}}").evaluate(scope)
    assert scope.depth == 0
    assert compile_text("${expand:\\${lc:A\\}}").evaluate(scope) == b"a"
