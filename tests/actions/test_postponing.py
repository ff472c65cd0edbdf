"""Which programs only tell: what they would ask is the same text, or a template and values that make that text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.frames import ProgramText
from engine.actions.lookups import LookupOptions, LookupRegistry, Place, Statement
from engine.actions.lookups.driver import Template
from engine.actions.lookups.literals import escape_literals, template_or_none
from engine.actions.postponing import Asking, asking_or_none
from engine.expand import ExpandOptions, Scope, compile_text
from engine.expand.quoting import quote_pgsql

OPTIONS = LookupOptions(
    pgsql_servers="one/a/b/c:two/d/e/f", mysql_servers="one/a/b/c", sqlite_dbfile="/var/lib/test.db"
)
VALUES = {"local_part": b"ann", "domain": b"example.org", "acl_m_x": b"1"}


def asking(source: str) -> Asking | None:
    text = ProgramText(1, source.encode(), "event_action", ("local_part", "domain"), {"event_name": b"msg:delivery"})
    program = compile_text(source, options=ExpandOptions(late_errors=True)).specialise(text.constants)
    return asking_or_none(text, program, LookupRegistry(OPTIONS), Scope())


def asked(source: str, local_part: bytes = b"ann", domain: bytes = b"example.org") -> Any:
    found = asking(source)
    assert found is not None
    return found.ask((local_part, domain), {})


@pytest.mark.parametrize(
    "source",
    [
        "${lookup pgsql{SELECT 1}}",
        "before ${lookup mysql{INSERT INTO x VALUES (1)}} between ${lookup pgsql{SELECT 1}} behind",
        "${lookup sqlite{INSERT INTO x VALUES (1)}{yes}{no}}",
        "${lookup pgsql{SELECT 1}{$value}}",
        "${if eq{$domain}{a}{${lookup pgsql{SELECT 1}}}{${lookup pgsql{SELECT 2}}}}",
        "${if eq{msg:delivery}{$event_name}{${lookup pgsql{SELECT 1}}}{${acl{x}}}}",
    ],
)
def test_programs_that_only_tell(source: str) -> None:
    assert asking(source) is not None


@pytest.mark.parametrize(
    "source",
    [
        "text",
        "$domain",
        "${lookup{a}lsearch{/x}}",
        "${lookup redis{GET x}}",
        "${lookup dnsdb{a=x}}",
        # the value is looked at, so that something may fail, or not be asked
        "${lookup pgsql{SELECT 1}{$value}fail}",
        "${lookup pgsql{SELECT 1}{${if >{$value}{5}{a}{b}}}}",
        "${if eq{${lookup pgsql{SELECT 1}}}{a}{b}{c}}",
        "${lc:${lookup pgsql{SELECT 1}}}",
        "${lookup pgsql{SELECT ${lookup pgsql{SELECT 1}}}}",
        "${lookup pgsql{SELECT 1}}${acl{x}}",
        "${lookup pgsql{SELECT 1}}${lookup{a}lsearch{/x}}",
        "${map{a:b}{${lookup pgsql{SELECT '$item'}}}}",
    ],
)
def test_programs_that_are_evaluated_by_themselves(source: str) -> None:
    assert asking(source) is None


def test_what_is_asked_where() -> None:
    here = Place("pgsql", "one/a/b/c")
    assert asked("${lookup pgsql{SELECT 1}}") == [(here, Statement(b"SELECT 1"))]
    assert asked("${lookup pgsql,servers=two{SELECT 1}}")[0].place == Place("pgsql", "two/d/e/f")
    assert asked("${lookup pgsql{servers=two; SELECT 1}}") == [(Place("pgsql", "two/d/e/f"), Statement(b"SELECT 1"))]
    assert asked("${lookup mysql{DELETE FROM x}}")[0].place == Place("mysql", "one/a/b/c")
    assert asked("${lookup sqlite{DELETE FROM x}}")[0].place == Place("sqlite", "/var/lib/test.db")
    assert asked("${if eq{$domain}{a}{${lookup pgsql{SELECT 1}}}}") == []
    order = asked("${lookup pgsql{SELECT 1}}${lookup mysql{DELETE FROM x}}")
    assert [one.place.type for one in order] == ["pgsql", "mysql"]


@pytest.mark.parametrize(
    "source",
    [
        # tainted and not quoted; quoted for another; text from outside that names a server
        "${lookup pgsql{SELECT '$local_part'}}",
        "${lookup pgsql{SELECT '${quote_mysql:$local_part}'}}",
        "${lookup pgsql{servers=two; SELECT '${quote_pgsql:$local_part}'}}",
        "${lookup pgsql,servers=three{SELECT 1}}",
        "${lookup pgsql{VACUUM}}",
        "${lookup pgsql{BEGIN; SELECT 1}}",
        "${lookup pgsql{COPY x TO STDOUT}}",
        "${lookup pgsql{CALL x()}}",
        "${lookup pgsql{-- a comment\nSELECT 1}}",
        "${lookup pgsql{}}",
        "${lookup sqlite{SELECT 1}}",
        "${lookup sqlite{INSERT INTO x VALUES (1); INSERT INTO x VALUES (2)}}",
        "${lookup pgsql{SELECT 1}}${lookup pgsql{VACUUM}}",
        "${lookup pgsql{SELECT 1}}${base64d:}${sg{x}{[}{}}",
    ],
)
def test_what_is_out_of_the_ordinary_is_not_postponed(source: str) -> None:
    assert asked(source, b"o'brien") is None


def test_a_failure_leaves_nothing_for_the_next_event() -> None:
    found = asking(
        "${if match{$local_part}{^(.)(.*)}{${lookup pgsql{SELECT '${quote_pgsql:$2}', $acl_m_x}}${eval:$1}}}"
    )
    assert found is not None
    assert found.ask((b"ann", b"d"), {}) is None, "`a` is no number"
    assert [one.statement.text for one in found.ask((b"1nn", b"d"), {"acl_m": {"acl_m_x": b"7"}}) or ()] == [
        b"SELECT 'nn', 7"
    ]
    assert [one.statement.text for one in found.ask((b"1nn", b"d"), {}) or ()] == [b"SELECT 'nn', "]


# --- templates --------------------------------------------------------------------------------------------------------


def test_whole_literals_become_values() -> None:
    (one,) = asked("${lookup pgsql{SELECT f('${quote_pgsql:${uc:$local_part}}', 'x', '${quote_pgsql:$domain}')}}")
    text, values, _, template = one.statement
    assert text == b"SELECT f($1, 'x', $2)"
    assert values == [b"ANN", b"example.org"]
    assert template is not None
    assert template.filled(values) == b"SELECT f('ANN', 'x', 'example.org')"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT f('x ${quote_pgsql:$local_part}')",
        "SELECT f('${quote_pgsql:$local_part}${quote_pgsql:$domain}')",
        "SELECT f(E'${quote_pgsql:$local_part}')",
        "SELECT f(N'${quote_pgsql:$local_part}')",
        "SELECT f(\\$\\$'${quote_pgsql:$local_part}'\\$\\$)",
        "SELECT 1 -- '${quote_pgsql:$local_part}'",
        "SELECT 1 /* '${quote_pgsql:$local_part}' */",
        "SELECT \"'${quote_pgsql:$local_part}'\"",
        "SELECT ''${quote_pgsql:$local_part}''",
        "SELECT ${quote_pgsql:$local_part}",
        "SELECT '${quote_pgsql:$local_part}', \\$1",
        "SELECT '${quote_pgsql:$local_part}', '${quote_mysql:$domain}'",
        "SELECT '${quote_pgsql:$local_part}', ${length_3:$acl_m_x}",
    ],
)
def test_what_is_no_whole_literal_stays_text(query: str) -> None:
    found = asking(f"${{lookup pgsql{{{query}}}}}")
    assert found is not None
    for one in found.ask((b"ann", b"example.org"), {}) or ():
        assert one.statement.values is None


def test_a_value_with_nul_is_for_the_lookup_to_refuse() -> None:
    assert asked("${lookup pgsql{SELECT '${quote_pgsql:$local_part}'}}", b"a\0b") is None


@given(st.lists(st.binary().map(lambda value: value.replace(b"\0", b"")), min_size=2, max_size=2))
def test_a_template_that_is_filled_is_the_query(values: list[bytes]) -> None:
    query = "INSERT INTO x VALUES ('${quote_pgsql:$local_part}', 'it''s', '${quote_pgsql:$domain}')"
    (one,) = asked(f"${{lookup pgsql{{{query}}}}}", *values)
    assert one.statement.values == values
    wanted = b"INSERT INTO x VALUES ('%b', 'it''s', '%b')" % tuple(map(quote_pgsql, values))
    assert one.statement.template.filled(values) == wanted


PIECES = st.lists(st.text("'$1E \\\"/*-(),ab\n\1", max_size=8).map(str.encode), min_size=2, max_size=4)


@given(PIECES)
def test_a_template_has_its_literals_where_the_server_sees_them(pieces: list[bytes]) -> None:
    """What is put into the places of the values can be seen nowhere else, and ends nothing."""
    template: Template | None = template_or_none(pieces)
    if template is None:
        return
    count = len(pieces) - 1
    assert template.text.count(b"$") >= count
    filled = template.filled([b"v"] * count)
    assert filled == b"v".join(pieces)
    hostile = template.filled([b"\\"] * count)
    escaped = escape_literals(hostile)
    assert escaped.count(b" E'\\\\'") >= count
