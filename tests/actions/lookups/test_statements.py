"""What the text of a statement tells of it: a result is kept only where nothing can have happened (5.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups.statements import is_plain_select, leaves_traces


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "  select a, b\nfrom t where c = 'it''s' and d in (1, 2)",
        "SELECT count(*), max(a), lower (b) FROM t WHERE x LIKE '%y' AND EXISTS (SELECT 1 FROM u)",
        "SELECT coalesce(a, 'none') FROM t ORDER BY a LIMIT 1",
    ],
)
def test_plain(query: str) -> None:
    assert is_plain_select(query.encode())


@pytest.mark.parametrize(
    "query",
    [
        # the example of the documentation that the project began with
        "SELECT * FROM record_Delivery('a', 'b')",
        "SELECT\n*\nFROM record_Delivery ('a')",
        "select f()",
        "select public.lower('x')",
        "select public . lower ('x')",
        'select "lower"(1)',
        "select `f`(1)",
        "select [f](1)",
        "select f/**/(1)",
        "select f--\n(1)",
        "select f#\n(1)",
        "select 1f(1)",
        "select f  \n (1)",
        "select x.f(1)",
        "select 1; delete from t",
        "select 1 into x",
        "select 1 for update",
        "select @a := 1",
        "select now()",
        "select current_timestamp",
        "select sysdate",
        "select nextval('s')",
        "select last_insert_id()",
        "select f\xfc(1)",
        "with x as (delete from t returning a) select * from x",
        "insert into t values (1)",
        "update t set a = 1",
        "call p()",
        "selected",
        "",
        "/* select */ delete from t",
        "values (1)",
    ],
)
def test_not_plain(query: str) -> None:
    assert not is_plain_select(query.encode())


@given(st.text(alphabet="abz_$.\"'`() \n", min_size=1, max_size=10))
def test_an_unknown_function_is_never_plain(noise: str) -> None:
    assert not is_plain_select(f"select {noise} unknown_function(1)".encode())


@pytest.mark.parametrize(
    "query", ["SET x = 1", " use db", "BEGIN", "start transaction", "LOCK TABLES t READ", "xa end"]
)
def test_traces(query: str) -> None:
    assert leaves_traces(query.encode())


@pytest.mark.parametrize("query", ["SELECT 1", "INSERT INTO t VALUES (1)", "settle", "CALL p()", "user", ""])
def test_no_traces(query: str) -> None:
    assert not leaves_traces(query.encode())


@pytest.mark.parametrize("word", ["x", "x ", "( ", ".", ". ", '"', "current_", "x(", "$"])
def test_long_text_takes_no_longer_than_it_is(word: str) -> None:
    """What takes the square of the length would be met by the time limit of the test."""
    assert not is_plain_select(b"select '" + word.encode() * 1_000_000 + b"'")
    is_plain_select(b"select '" + (word.encode() * 60_000)[:60_000] + b"'")
