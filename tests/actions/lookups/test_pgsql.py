"""pgsql against a real PostgreSQL: results, literals with escapes, sessions that end or stall."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry, Timeouts, driver, pgsql
from engine.actions.lookups.literals import escape_literals
from engine.expand.quoting import quote_pgsql
from fakes.databases import HOST, POSTGRESQL_PORT, Postgresql
from fakes.fault_proxy import TO_CLIENT, TO_SERVER, Cut, Fault, Inject, Point, Reset, Stall, open_fault_proxy
from fakes.patience import until
from fakes.peers import free_port
from fakes.searching import failure, has_live_connection, in_thread, look

# --- text only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        (r"SELECT 'a\\b'", r"SELECT  E'a\\b'"),
        (r"f('a''\n\t\r\b\"')", r"f( E'a''\n\t\r\b\"')"),
        (r"SELECT 'plain', 'a\\b'", r"SELECT 'plain',  E'a\\b'"),
        # a literal that was not written for escapes stays what it is
        (r"SELECT '\d+'", r"SELECT '\d+'"),
        (r"SELECT '\d\\'", r"SELECT '\d\\'"),
        (r"SELECT 'end\'", r"SELECT 'end\'"),
        (r"SELECT 'a\\' || '\'", r"SELECT  E'a\\' || '\'"),
        # no literal, or one that says itself what it is
        (r"SELECT E'a\\b'", r"SELECT E'a\\b'"),
        (r"SELECT e'it\'s\\'", r"SELECT e'it\'s\\'"),
        (r"SELECT U&'\\0041'", r"SELECT U&'\\0041'"),
        (r"SELECT $$'a\\b'$$", r"SELECT $$'a\\b'$$"),
        (r"SELECT $x$ $$ 'a\\b' $x$, 'c\\'", r"SELECT $x$ $$ 'a\\b' $x$,  E'c\\'"),
        (r"""SELECT "o'\\" """, r"""SELECT "o'\\" """),
        ("SELECT 1 -- it's \\\\\n, 'a\\\\'", "SELECT 1 -- it's \\\\\n,  E'a\\\\'"),
        (r"SELECT /* ' /* ' */ \\ */ 'a\\'", r"SELECT /* ' /* ' */ \\ */  E'a\\'"),
        (r"SELECT name'a\\'", r"SELECT name E'a\\'"),
        ("SELECT 'a\\\\'\n  'b\\\\'", "SELECT  E'a\\\\'\n  'b\\\\'"),
        # unfinished
        (r"SELECT 'a\\", r"SELECT 'a\\"),
        (r"SELECT /* 'a\\'", r"SELECT /* 'a\\'"),
        (r"SELECT $a$ 'a\\'", r"SELECT $a$ 'a\\'"),
        (r"SELECT E'a\\", r"SELECT E'a\\"),
    ],
)
def test_escape_literals(query: str, sent: str) -> None:
    assert escape_literals(query.encode()).decode() == sent


@given(st.text(alphabet="'\\\"nE$-/*\n ax", max_size=30))
def test_nothing_but_the_prefix_is_added(query: str) -> None:
    octets = query.encode()
    # an added prefix has a space before it, so taking all of them out shows that nothing else has changed
    assert escape_literals(octets).replace(b" E'", b"'") == octets.replace(b" E'", b"'")


@pytest.mark.parametrize("tail", ["-" * 10_000, "\n" * 10_000, "'" * 9_999, "$a" * 5_000, "/*" * 5_000, "E" * 10_000])
def test_long_text_takes_no_longer_than_it_is(tail: str) -> None:
    escape_literals(b"SELECT '\\\\'\n" + tail.encode())


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lookups(pg: Postgresql) -> Iterator[LookupRegistry]:
    """A registry with the test's database, through its Unix socket, as the only server."""
    pg.run("CREATE TABLE people (id int, name text)")
    pg.run("INSERT INTO people VALUES (1, 'one'), (2, 'two words'), (3, NULL), (4, '')")
    pg.run("CREATE TABLE calls (id serial, text text)")
    pg.run(
        "CREATE FUNCTION record_call(text) RETURNS text LANGUAGE sql AS"
        " 'INSERT INTO calls (text) VALUES ($1) RETURNING text'"
    )
    registry = LookupRegistry(LookupOptions(pgsql_servers=(pg.socket_server,)))
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT name FROM people WHERE id = 1", "one"),
        (
            "SELECT id, name FROM people ORDER BY id",
            'id=1 name=one \nid=2 name="two words" \nid=3 name="" \nid=4 name="" ',
        ),
        ("SELECT name FROM people ORDER BY id", "one\ntwo words\n\n"),
        ("SELECT name FROM people WHERE id = 3", ""),
        ("SELECT name FROM people WHERE id = 99", None),
        ("SELECT true, 1.50::numeric, 'ü'", "?column?=t numeric=1.50 ?column?=ü "),
        ("SELECT 1; SELECT 2", "2"),
        ("SELECT 1; SELECT 2 WHERE false", None),
        ("UPDATE people SET id = id WHERE id < 3", "2"),
        ("UPDATE people SET id = id WHERE id > 30", "0"),
        ("INSERT INTO calls (text) VALUES ('a'), ('b')", "2"),
        ("INSERT INTO calls (text) VALUES ('c') RETURNING text", "c"),
        ("CREATE TABLE IF NOT EXISTS people (id int)", None),
        ("DO 'BEGIN RAISE NOTICE ''quiet''; END'", None),
        ("BEGIN; INSERT INTO calls (text) VALUES ('d'); COMMIT", None),
        (";", None),
        ("-- nothing", None),
        ("SELECT", ""),
    ],
)
def test_results(lookups: LookupRegistry, query: str, value: str | None) -> None:
    assert look(lookups, "pgsql", query) == (None if value is None else value.encode())


def test_a_refused_statement(lookups: LookupRegistry) -> None:
    assert failure(lookups, "pgsql", "SELECT nothing") == (
        'lookup of "SELECT nothing" gave DEFER: PGSQL: query failed: ERROR:  column "nothing" does not exist\n'
        "LINE 1: SELECT nothing\n               ^\n (PGRES_FATAL_ERROR) (SELECT nothing)\n"
    )
    assert look(lookups, "pgsql", "SELECT 1; SELECT 2") == b"2"


def test_the_first_error_of_several_statements_counts(lookups: LookupRegistry) -> None:
    assert 'column "x" does not exist' in failure(lookups, "pgsql", "SELECT 1; SELECT x; SELECT y")


@pytest.mark.parametrize("query", ["COPY people TO STDOUT", "COPY people FROM STDIN"])
def test_copy_is_refused_and_the_next_query_works(lookups: LookupRegistry, query: str) -> None:
    assert failure(lookups, "pgsql", query).endswith(f"(PGRES_COPY_{'OUT' if 'TO' in query else 'IN'}) ({query})\n")
    assert look(lookups, "pgsql", "SELECT 7 WHERE true") == b"7"


def test_a_select_with_side_effects_reaches_the_server_each_time(lookups: LookupRegistry, pg: Postgresql) -> None:
    """The trap of 5.2, with the function call of the documentation's example."""
    for _ in range(3):
        assert look(lookups, "pgsql", "SELECT * FROM record_call('same')") == b"same"
    assert pg.run("SELECT count(*) FROM calls WHERE text = 'same'") == [(3,)]


def test_a_transaction_that_stays_open_is_an_error_and_undone(lookups: LookupRegistry, pg: Postgresql) -> None:
    message = failure(lookups, "pgsql", "BEGIN; INSERT INTO calls (text) VALUES ('open')")
    assert message.endswith("gave DEFER: PGSQL: query failed: it left a transaction open, which is rolled back\n")
    assert failure(lookups, "pgsql", "BEGIN; SELECT nothing").count("nothing") > 1
    assert look(lookups, "pgsql", "INSERT INTO calls (text) VALUES ('after')") == b"1"
    assert pg.run("SELECT text FROM calls WHERE text IN ('open', 'after')") == [("after",)]


@pytest.mark.parametrize(
    "change", ["SET search_path TO nowhere", "SELECT set_config('client_encoding', 'SJIS', false)"]
)
def test_a_session_that_was_changed_is_not_used_again(lookups: LookupRegistry, change: str) -> None:
    failure(lookups, "pgsql", change)
    assert look(lookups, "pgsql", "SELECT current_setting('search_path')") == b'"$user", public'
    assert look(lookups, "pgsql", "SELECT current_setting('client_encoding')") == b"SQL_ASCII"


def test_a_long_result_is_refused_and_the_next_one_comes(
    lookups: LookupRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgsql, "MAX_RESULT_OCTETS", 10_000)
    message = failure(lookups, "pgsql", "SELECT repeat('x', 100) FROM generate_series(1, 1000000)")
    assert "result of more than 10000 octets" in message
    assert look(lookups, "pgsql", "SELECT 8 WHERE true") == b"8"
    assert driver.MAX_RESULT_OCTETS > 10_000


def test_a_nul_never_leaves(lookups: LookupRegistry) -> None:
    assert failure(lookups, "pgsql", b"SELECT 'a\0b'").endswith("PGSQL: query failed: a NUL octet in it\n")


def test_octets_that_are_no_text_of_the_server_are_refused_by_it(lookups: LookupRegistry) -> None:
    assert "invalid byte sequence" in failure(lookups, "pgsql", b"SELECT '\xff'")


_NASTY = st.text(st.sampled_from("'\\\"\n\t\r\b%_;$-/*aE?: ü\u20ac\U0001f600\x7f\x01"), max_size=12)


@given(st.lists(_NASTY, min_size=1, max_size=4))
def test_quoted_text_arrives_as_it_was(lookups: LookupRegistry, texts: list[str]) -> None:
    literals = ", ".join(f"'{quote_pgsql(text.encode()).decode()}'" for text in texts)
    found = look(lookups, "pgsql", f"SELECT array_to_string(ARRAY[{literals}], chr(2))", cached=False)
    assert found == "\x02".join(texts).encode()


@given(_NASTY)
def test_quoted_text_arrives_in_an_e_literal_too(lookups: LookupRegistry, text: str) -> None:
    found = look(lookups, "pgsql", f"SELECT E'{quote_pgsql(text.encode()).decode()}' || chr(2)")
    assert found == f"{text}\x02".encode()


@given(_NASTY)
def test_quoted_text_arrives_at_a_server_with_escapes_in_plain_literals(pg: Postgresql, text: str) -> None:
    """`standard_conforming_strings` off, as a user may have it."""
    pg.run("ALTER ROLE postgres IN DATABASE " + pg.name + " SET standard_conforming_strings TO off")
    pg.run("ALTER ROLE postgres IN DATABASE " + pg.name + " SET escape_string_warning TO off")
    registry = LookupRegistry(LookupOptions(pgsql_servers=(pg.socket_server,)))
    try:
        found = look(registry, "pgsql", f"SELECT '{quote_pgsql(text.encode()).decode()}' || chr(2)")
        assert found == f"{text}\x02".encode()
    finally:
        registry.close()
        pg.run("ALTER ROLE postgres IN DATABASE " + pg.name + " RESET ALL")


# --- servers that are not there ---------------------------------------------------------------------------------------


def with_servers(*servers: str, connect_s: float = 5.0, query_s: float = 5.0) -> LookupRegistry:
    return LookupRegistry(LookupOptions(pgsql_servers=servers, timeouts=Timeouts(connect_s, query_s)))


def test_a_server_that_is_down_defers_with_the_words_of_libpq() -> None:
    port = free_port()
    registry = with_servers(f"{HOST}:{port}/a/b/c")
    assert failure(registry, "pgsql", "SELECT 1") == (
        f'lookup of "SELECT 1" gave DEFER: PGSQL connection failed: connection to server at "{HOST}", port {port}'
        " failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n"
    )
    registry.close()


def test_a_socket_that_is_not_there() -> None:
    registry = with_servers("(/nonexistent/.s.PGSQL.5432)/a/b/c")
    assert "No such file or directory" in failure(registry, "pgsql", "SELECT 1")
    message = failure(with_servers("(/tmp/other)/a/b/c"), "pgsql", "SELECT 1")
    assert message == 'lookup of "SELECT 1" gave DEFER: PGSQL invalid filename for socket: /tmp/other'


def test_the_next_server_is_asked(pg: Postgresql) -> None:
    registry = with_servers(f"{HOST}:{free_port()}/a/b/c", pg.server())
    assert look(registry, "pgsql", "SELECT current_database()") == pg.name.encode()
    registry.close()


def test_a_database_that_does_not_exist() -> None:
    message = failure(with_servers(f"{HOST}/no_such_database/postgres/"), "pgsql", "SELECT 1")
    assert message.endswith('FATAL:  database "no_such_database" does not exist\n')


# --- servers that fail in the middle ----------------------------------------------------------------------------------

_QUERY = b"SELECT * FROM record_call('middle')"


async def test_a_connection_that_was_cut_while_idle_is_opened_again(pg: Postgresql, lookups: LookupRegistry) -> None:
    async with open_fault_proxy(HOST, POSTGRESQL_PORT) as proxy:
        registry = with_servers(pg.server(proxy.port))
        assert await in_thread(look, registry, "pgsql", "SELECT pg_backend_pid() > 0") == b"t"
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        pg.run(f"SELECT pg_terminate_backend(pid) {others}")
        await until(lambda: not has_live_connection(registry, "pgsql"))
        assert await in_thread(look, registry, "pgsql", "SELECT pg_backend_pid() > 0") == b"t"
        assert len(proxy.connections) == 2
        registry.close()


@pytest.mark.parametrize("action", [Cut(), Reset()])
async def test_a_statement_whose_answer_is_lost_is_not_sent_again(
    pg: Postgresql, lookups: LookupRegistry, action: Cut | Reset
) -> None:
    faults = [Fault(Point(TO_CLIENT, before=b"middle"), action)]
    async with open_fault_proxy(HOST, POSTGRESQL_PORT, faults) as proxy:
        registry = with_servers(pg.server(proxy.port), pg.server(proxy.port))
        message = await in_thread(failure, registry, "pgsql", _QUERY)
        assert message.startswith("lookup of \"SELECT * FROM record_call('middle')\" gave DEFER: PGSQL: query failed: ")
        assert sum(connection.sent.count(_QUERY) for connection in proxy.connections) == 1
        registry.close()


async def test_a_reading_statement_goes_to_the_next_server(pg: Postgresql) -> None:
    faults = [Fault(Point(TO_CLIENT, before=b"found-it"), Cut())]
    async with open_fault_proxy(HOST, POSTGRESQL_PORT, faults) as proxy:
        registry = with_servers(pg.server(proxy.port), pg.server())
        assert await in_thread(look, registry, "pgsql", "SELECT concat('found', '-it')") == b"found-it"
        registry.close()


async def test_a_server_that_stalls_is_waited_for_no_longer_than_said(pg: Postgresql, lookups: LookupRegistry) -> None:
    faults = [Fault(Point(TO_CLIENT, before=b"middle"), Stall())]
    async with open_fault_proxy(HOST, POSTGRESQL_PORT, faults) as proxy:
        registry = with_servers(pg.server(proxy.port), query_s=0.2)
        message = await in_thread(failure, registry, "pgsql", _QUERY)
        assert message.endswith("gave DEFER: PGSQL: query failed: timeout expired\n")
        registry.close()


async def test_a_server_that_stalls_in_the_log_in(pg: Postgresql) -> None:
    async with open_fault_proxy(HOST, POSTGRESQL_PORT, [Fault(Point(TO_CLIENT, octets=5), Stall())]) as proxy:
        registry = with_servers(pg.server(proxy.port), connect_s=0.2)
        message = await in_thread(failure, registry, "pgsql", "SELECT 1")
        assert message.endswith("gave DEFER: PGSQL connection failed: timeout expired\n")
        registry.close()


@pytest.mark.parametrize("octets", [0, 1, 10, 100, 400])
async def test_garbage_is_a_deferral(pg: Postgresql, octets: int) -> None:
    faults = [Fault(Point(TO_CLIENT, octets=octets), Inject(b"\xff\x00garbage\r\n" * 20))]
    async with open_fault_proxy(HOST, POSTGRESQL_PORT, faults) as proxy:
        registry = with_servers(pg.server(proxy.port), connect_s=0.3, query_s=0.3)
        message = await in_thread(failure, registry, "pgsql", "SELECT 1")
        assert re.match(r"found b'1'|lookup of \"SELECT 1\" gave DEFER: PGSQL", message)
        registry.close()


@pytest.mark.slow
async def test_a_statement_that_could_not_be_handed_over(pg: Postgresql) -> None:
    """The proxy swallows a large statement: it was never complete, so the next server may have it."""
    statement = b"SELECT length('" + b"x" * 12_000_000 + b"')"
    async with open_fault_proxy(HOST, POSTGRESQL_PORT, [Fault(Point(TO_SERVER, after=b"SELECT"), Stall())]) as proxy:
        registry = with_servers(pg.server(proxy.port), pg.server(), query_s=1.5)
        assert await in_thread(failure, registry, "pgsql", statement) == "found b'12000000'"
        registry.close()
