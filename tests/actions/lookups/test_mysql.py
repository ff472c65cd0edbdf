"""mysql against a real MariaDB: results, quoting, sessions that end, stall or talk nonsense."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry, Timeouts, mysql
from engine.expand.quoting import quote_mysql
from fakes.databases import HOST, MARIADB_PORT, MARIADB_SOCKET, MARIADB_USER, Mariadb
from fakes.fault_proxy import (
    TO_CLIENT,
    TO_SERVER,
    Answer,
    Cut,
    Dribble,
    Fault,
    Inject,
    Point,
    Reset,
    Stall,
    open_fault_proxy,
)
from fakes.patience import until
from fakes.peers import free_port
from fakes.searching import failure, has_live_connection, in_thread, look


def with_servers(*servers: str, connect_s: float = 5.0, query_s: float = 5.0) -> LookupRegistry:
    return LookupRegistry(LookupOptions(mysql_servers=servers, timeouts=Timeouts(connect_s, query_s)))


@pytest.fixture(scope="module")
def lookups(my: Mariadb) -> Iterator[LookupRegistry]:
    """A registry with the test's database as the only server."""
    my.run("CREATE TABLE people (id int, name text, octets varbinary(50))")
    my.run("INSERT INTO people VALUES (1, 'one', 'x'), (2, 'two words', ''), (3, NULL, NULL)")
    my.run("CREATE TABLE calls (id int AUTO_INCREMENT PRIMARY KEY, text text)")
    my.run(
        "CREATE FUNCTION record_call(x text) RETURNS text MODIFIES SQL DATA"
        " BEGIN INSERT INTO calls (text) VALUES (x); RETURN x; END"
    )
    my.run("CREATE PROCEDURE two_results() BEGIN SELECT 1; SELECT 2; END")
    registry = with_servers(my.server())
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT name FROM people WHERE id = 1", "one"),
        ("SELECT id, name FROM people ORDER BY id", 'id=1 name=one \nid=2 name="two words" \nid=3 name="" '),
        ("SELECT name FROM people ORDER BY id", "one\ntwo words\n"),
        ("SELECT name FROM people WHERE id = 3", None),
        ("SELECT name FROM people WHERE id = 99", None),
        ("SELECT NULL UNION ALL SELECT NULL UNION ALL SELECT 'b' UNION ALL SELECT NULL", "b\n"),
        ("SELECT ''", ""),
        ("SELECT 1.50, true, 'ü' AS `a b`", "1.50=1.50 TRUE=1 a b=ü "),
        ("UPDATE people SET octets = 'y' WHERE id = 1", "1"),
        ("UPDATE people SET octets = 'y' WHERE id = 1", "0"),
        ("INSERT INTO calls (text) VALUES ('a'), ('b')", "2"),
        ("-- nothing", "0"),
        ("CALL two_results()", "1"),
        ("SELECT 5", "5"),
    ],
)
def test_results(lookups: LookupRegistry, query: str, value: str | None) -> None:
    assert look(lookups, "mysql", query) == (None if value is None else value.encode())


def test_octets_are_octets(lookups: LookupRegistry) -> None:
    assert look(lookups, "mysql", "SELECT x'00ff27'") == b"\x00\xff'"


def test_refused_statements(lookups: LookupRegistry) -> None:
    assert failure(lookups, "mysql", "SELECT nothing") == (
        "lookup of \"SELECT nothing\" gave DEFER: MYSQL: query failed: Unknown column 'nothing' in 'SELECT'\n"
    )
    assert "You have an error in your SQL syntax" in failure(lookups, "mysql", "SELECT 1; SELECT 2")
    assert look(lookups, "mysql", "SELECT 6") == b"6"


def test_a_file_of_ours_is_never_sent(lookups: LookupRegistry, my: Mariadb) -> None:
    message = failure(lookups, "mysql", "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE calls (text)")
    assert "gave DEFER: MYSQL: query failed: " in message
    assert look(lookups, "mysql", "SELECT 7") == b"7"
    assert my.run("SELECT count(*) FROM calls WHERE text LIKE 'root:%%'") == [(0,)]


async def test_a_server_that_asks_for_a_file_gets_none(my: Mariadb) -> None:
    """The server's answer to any statement may be a request for a file: 0xFB and its name."""
    request = b"\x0c\x00\x00\x01\xfb/etc/passwd"
    faults = [Fault(Point(TO_SERVER, before=b"\x09\x00\x00\x00\x03SELECT 1"), Answer(request))]
    async with open_fault_proxy(HOST, MARIADB_PORT, faults) as proxy:
        registry = with_servers(my.server(proxy.port), query_s=0.5)
        message = await in_thread(failure, registry, "mysql", "SELECT 1")
        assert message.endswith("MYSQL: query failed: Lost connection to server during query\n")
        assert all(b"root:" not in connection.sent for connection in proxy.connections)
        registry.close()


def test_a_select_with_side_effects_reaches_the_server_each_time(lookups: LookupRegistry, my: Mariadb) -> None:
    """The trap of 5.2."""
    for _ in range(3):
        assert look(lookups, "mysql", "SELECT record_call('same')") == b"same"
    assert my.run("SELECT count(*) FROM calls WHERE text = 'same'") == [(3,)]


def test_a_transaction_that_stays_open_is_an_error_and_undone(lookups: LookupRegistry, my: Mariadb) -> None:
    message = failure(lookups, "mysql", "START TRANSACTION")
    assert message.endswith("MYSQL: query failed: it left a transaction open, which is rolled back\n")
    assert look(lookups, "mysql", "INSERT INTO calls (text) VALUES ('after')") == b"1"
    assert my.run("SELECT text FROM calls WHERE text = 'after'") == [("after",)]


@pytest.mark.parametrize("change", ["SET NAMES gbk", "SET autocommit = 0", "SET sql_mode = 'NO_BACKSLASH_ESCAPES'"])
def test_a_session_that_was_changed_is_not_used_again(lookups: LookupRegistry, change: str) -> None:
    assert look(lookups, "mysql", change) == b"0"
    settings = look(lookups, "mysql", "SELECT @@character_set_client, @@autocommit, @@sql_mode LIKE '%BACKSLASH%'")
    assert settings is not None
    assert settings.startswith(b"@@character_set_client=utf8mb4 @@autocommit=1 ")
    assert settings.endswith(b"=0 ")


def test_escapes_are_put_back_when_a_statement_took_them_away(lookups: LookupRegistry) -> None:
    number = look(lookups, "mysql", "SELECT connection_id()")
    look(lookups, "mysql", "EXECUTE IMMEDIATE 'SET SESSION sql_mode = ''NO_BACKSLASH_ESCAPES'''")
    assert look(lookups, "mysql", "SELECT 'a\\\\b\\'c'") == b"a\\b'c"
    lookups.forget()
    assert look(lookups, "mysql", "SELECT connection_id()") == number


def test_a_long_result_is_refused_and_the_next_one_comes(
    lookups: LookupRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "MAX_RESULT_OCTETS", 10_000)
    message = failure(lookups, "mysql", "SELECT repeat('x', 1000) FROM seq_1_to_1000")
    assert "result of more than 10000 octets" in message or "doesn't exist" in message
    message = failure(lookups, "mysql", "SELECT repeat('x', 10001)")
    assert message.endswith("MYSQL: query failed: result of more than 10000 octets\n")
    assert look(lookups, "mysql", "SELECT 8") == b"8"


def test_what_is_on_the_wire_is_bounded(lookups: LookupRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql, "_MAX_ANSWER_OCTETS", 50_000)
    message = failure(lookups, "mysql", "SELECT repeat('x', 1000000)")
    assert "MYSQL: query failed: result of more than" in message
    assert look(lookups, "mysql", "SELECT 9") == b"9"


_NASTY = st.text(st.sampled_from("'\\\"\n\t\r\b\0%_;`-/*a#: ü\u20ac\U0001f600\x7f\x1a"), max_size=12)


@given(_NASTY)
def test_quoted_text_arrives_as_it_was(lookups: LookupRegistry, text: str) -> None:
    quoted = quote_mysql(text.encode()).decode()
    assert look(lookups, "mysql", f"SELECT concat('{quoted}', \"{quoted}\", '|')") == f"{text}{text}|".encode()


@given(st.binary(max_size=12))
def test_quoted_octets_arrive_in_a_binary_literal(lookups: LookupRegistry, octets: bytes) -> None:
    query = b"SELECT hex(_binary'" + quote_mysql(octets) + b"')"
    assert look(lookups, "mysql", query) == octets.hex().upper().encode()


# --- servers that are not there ---------------------------------------------------------------------------------------


def test_a_server_that_is_down(my: Mariadb) -> None:
    port = free_port()
    registry = with_servers(f"{HOST}:{port}/a/b/c")
    message = failure(registry, "mysql", "SELECT 1")
    assert (
        message
        == f"lookup of \"SELECT 1\" gave DEFER: MYSQL connection failed: Can't connect to server on '{HOST}' (111)"
    )
    registry = with_servers(f"{HOST}:{port}/a/b/c", my.server())
    assert look(registry, "mysql", "SELECT 1") == b"1"
    registry.close()


def test_sockets(my: Mariadb) -> None:
    message = failure(with_servers("localhost(/nonexistent)/a/b/c"), "mysql", "SELECT 1")
    assert message.endswith("Can't connect to local server through socket '/nonexistent' (2)")
    if os.path.exists(MARIADB_SOCKET):
        # the host "localhost" is the socket, too
        for server in (
            my.socket_server,
            f"localhost/{my.name}/{MARIADB_USER}/",
            f"localhost({MARIADB_SOCKET})[group]/{my.name}/{MARIADB_USER}/",
        ):
            registry = with_servers(server)
            assert look(registry, "mysql", "SELECT database()") == my.name.encode()
            registry.close()


def test_log_ins_that_are_refused() -> None:
    message = failure(with_servers(f"{HOST}/no_such_database/{MARIADB_USER}/"), "mysql", "SELECT 1")
    assert message.endswith("MYSQL connection failed: Unknown database 'no_such_database'")
    message = failure(with_servers(f"{HOST}//nobody/secret"), "mysql", "SELECT 1")
    assert f"MYSQL connection failed: Access denied for user 'nobody'@'{HOST}'" in message
    assert "secret" not in message


# --- servers that fail in the middle ----------------------------------------------------------------------------------

_QUERY = b"SELECT record_call('middle')"


async def test_a_connection_that_was_cut_while_idle_is_opened_again(my: Mariadb) -> None:
    async with open_fault_proxy(HOST, MARIADB_PORT) as proxy:
        registry = with_servers(my.server(proxy.port))
        number = await in_thread(look, registry, "mysql", "SELECT connection_id()")
        assert number is not None
        my.run(f"KILL {number.decode()}")
        await until(lambda: not has_live_connection(registry, "mysql"))
        assert await in_thread(look, registry, "mysql", "SELECT connection_id() > 0") == b"1"
        assert len(proxy.connections) == 2
        registry.close()


@pytest.mark.parametrize("action", [Cut(), Reset()])
async def test_a_statement_whose_answer_is_lost_is_not_sent_again(
    my: Mariadb, lookups: LookupRegistry, action: Cut | Reset
) -> None:
    faults = [Fault(Point(TO_CLIENT, before=b"record_call('middle')"), action)]
    async with open_fault_proxy(HOST, MARIADB_PORT, faults) as proxy:
        registry = with_servers(my.server(proxy.port), my.server(proxy.port))
        message = await in_thread(failure, registry, "mysql", _QUERY)
        assert message.endswith("gave DEFER: MYSQL: query failed: Lost connection to server during query\n")
        assert sum(connection.sent.count(_QUERY) for connection in proxy.connections) == 1
        registry.close()


async def test_a_reading_statement_goes_to_the_next_server(my: Mariadb) -> None:
    async with open_fault_proxy(HOST, MARIADB_PORT, [Fault(Point(TO_CLIENT, before=b"found-it"), Cut())]) as proxy:
        registry = with_servers(my.server(proxy.port), my.server())
        assert await in_thread(look, registry, "mysql", "SELECT concat('found', '-it')") == b"found-it"
        registry.close()


async def test_a_server_that_stalls_or_dribbles_is_waited_for_no_longer_than_said(my: Mariadb) -> None:
    for action in (Stall(), Dribble(pause_s=0.05, count=1000)):
        async with open_fault_proxy(HOST, MARIADB_PORT, [Fault(Point(TO_CLIENT, before=b"found-it"), action)]) as proxy:
            registry = with_servers(my.server(proxy.port), query_s=0.2)
            message = await in_thread(failure, registry, "mysql", "SELECT concat('found', '-it', repeat('x', 1000))")
            assert message.endswith("gave DEFER: MYSQL: query failed: Lost connection to server during query\n")
            registry.close()


async def test_a_server_that_stalls_in_the_log_in(my: Mariadb) -> None:
    for octets in (0, 10, 100):
        async with open_fault_proxy(HOST, MARIADB_PORT, [Fault(Point(TO_CLIENT, octets=octets), Stall())]) as proxy:
            registry = with_servers(my.server(proxy.port), connect_s=0.1)
            message = await in_thread(failure, registry, "mysql", "SELECT 1")
            assert message.endswith("gave DEFER: MYSQL connection failed: timed out")
            registry.close()


@pytest.mark.parametrize("octets", [0, 1, 4, 30, 90, 110, 150, 180, 200, 240])
async def test_garbage_is_a_deferral(my: Mariadb, octets: int) -> None:
    for garbage in (b"\xff\x00garbage\r\n" * 20, b"\x05\x00\x00\x01\xfc\x00\x00", b"\x01\x00\x00\x01\x02" * 9):
        async with open_fault_proxy(
            HOST, MARIADB_PORT, [Fault(Point(TO_CLIENT, octets=octets), Inject(garbage))]
        ) as proxy:
            registry = with_servers(my.server(proxy.port), connect_s=0.3, query_s=0.3)
            message = await in_thread(failure, registry, "mysql", "SELECT 1")
            assert re.match(r"found |lookup of \"SELECT 1\" gave DEFER: MYSQL", message)
            registry.close()
