"""Many statements in one transaction of a real PostgreSQL: what is done, what is undone, and what is known of it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest

from engine.actions.lookups import LookupOptions, LookupRegistry, Place, Progress, Statement, Timeouts
from engine.actions.lookups.driver import Template, Unit
from engine.actions.lookups.literals import template_or_none
from engine.actions.lookups.pipeline import run_units
from engine.expand.quoting import quote_pgsql
from fakes.databases import Postgresql

pytestmark = pytest.mark.slow


class World:
    def __init__(self, pg: Postgresql, *, port: int = 5432, timeouts: Timeouts | None = None) -> None:
        timeouts = timeouts or Timeouts(5, 30)
        self.pg = pg
        self.place = Place("pgsql", pg.server(port))
        self.lookups = LookupRegistry(LookupOptions(pgsql_servers=(self.place.server,), timeouts=timeouts))

    def run(self, *queries: str) -> Progress:
        return self.lookups.run_together(self.place, [(Statement(query.encode()),) for query in queries])

    def run_units(self, *units: Unit) -> Progress:
        return self.lookups.run_together(self.place, units)

    def values(self) -> list[str]:
        return [value for (value,) in self.pg.run("SELECT value FROM seen ORDER BY number")]


@pytest.fixture
def world(pg: Postgresql) -> Iterator[World]:
    pg.run("DROP TABLE IF EXISTS seen")
    pg.run(
        "CREATE TABLE seen (number SERIAL, value TEXT, at TIMESTAMPTZ DEFAULT now(), xid BIGINT DEFAULT txid_current())"
    )
    made = World(pg)
    yield made
    made.lookups.close()


def insert(value: object) -> str:
    return f"INSERT INTO seen (value) VALUES ('{value}')"


def test_all_of_them_are_one_transaction_in_order(world: World) -> None:
    assert world.run(*map(insert, range(100))) == Progress(100)
    assert world.values() == [str(number) for number in range(100)]
    assert world.pg.run("SELECT count(DISTINCT xid), count(DISTINCT at) FROM seen") == [(1, 1)]
    assert world.run("SELECT 1", insert("again"), "UPDATE seen SET value = 'x' WHERE value = 'again'", "SELECT 1") == (
        Progress(4)
    )
    assert world.values()[-1] == "x"


@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 40, 99])
def test_one_that_fails_is_named_and_nothing_is_left(world: World, place: int) -> None:
    queries = list(map(insert, range(100)))
    queries[place] = "SELECT 1 / 0"
    assert world.run(*queries) == Progress(0, place, "ERROR:  division by zero")
    assert world.values() == []
    assert world.run(insert("then")) == Progress(1), "the connection can be used as before"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT 1; SELECT 2", "cannot insert multiple commands"),
        ("VACUUM", "VACUUM cannot"),
        ("SELECT f(", "syntax error"),
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT '\udcff'", "invalid byte sequence"),
    ],
)
def test_what_does_not_go_together_is_named(world: World, query: str, reason: str) -> None:
    units = [(Statement(text.encode("utf-8", "surrogateescape")),) for text in (insert(1), query, insert(2))]
    progress = world.run_units(*units)
    assert (progress.done, progress.failed) == (0, 1)
    assert reason in progress.reason
    assert world.values() == []


def test_a_copy_and_a_long_result_end_the_connection(world: World) -> None:
    for query in ("COPY seen TO STDOUT", "COPY seen FROM STDIN"):
        assert world.run(insert(1), query).failed == 1
    assert world.run(insert(1), "SELECT repeat('x', 100000) FROM generate_series(1, 1000)").failed == 1
    assert world.run(insert(2), "SELECT repeat('x', 100000)") == Progress(2)
    assert world.values() == ["2"]


def test_a_unit_is_done_whole(world: World) -> None:
    good = (Statement(insert("a").encode()), Statement(insert("b").encode()))
    bad = (Statement(insert("c").encode()), Statement(b"SELECT 1 / 0"))
    assert world.run_units(good, good) == Progress(2)
    assert world.run_units(good, bad, good).failed == 1
    assert world.values() == ["a", "b"] * 2


def test_what_fails_at_the_commit_is_undone_and_nobody_knows_which_it_was(world: World) -> None:
    world.pg.run("ALTER TABLE seen ADD CONSTRAINT once UNIQUE (value) DEFERRABLE INITIALLY DEFERRED")
    progress = world.run(insert(1), insert(1))
    assert (progress.done, progress.failed, progress.is_in_doubt) == (0, None, False)
    assert "once" in progress.reason
    assert world.values() == []
    assert world.run(insert(1), insert(2)) == Progress(2)


def test_a_transaction_that_is_left_open_is_undone(world: World) -> None:
    progress = world.run(insert(1), "BEGIN")
    assert progress.done == 0
    assert "left a transaction open" in progress.reason
    assert world.values() == []
    assert world.run(insert(2)) == Progress(1)


def test_notices_and_notifications_are_no_answers(world: World) -> None:
    world.pg.run(
        "CREATE OR REPLACE FUNCTION talks() RETURNS INT AS $$ BEGIN RAISE NOTICE 'n'; RAISE WARNING 'w';"
        " PERFORM pg_notify('here', 'x'); RETURN 1; END $$ LANGUAGE plpgsql"
    )
    assert world.run("SELECT set_config('application_name', 'x', false)", *["SELECT talks()"] * 50) == Progress(51)


def test_a_backend_that_dies_in_the_middle_has_done_nothing(world: World) -> None:
    progress = world.run(insert(1), "SELECT pg_terminate_backend(pg_backend_pid())", insert(2))
    assert (progress.done, progress.failed) == (0, 1) or progress.failed is None
    assert not progress.is_in_doubt
    assert world.values() == []
    assert world.run(insert(3)) == Progress(1)


def test_a_lock_is_waited_for_as_long_as_a_query_may_take(pg: Postgresql, world: World) -> None:
    world.run(insert("locked"))
    impatient = World(pg, timeouts=Timeouts(5, 0.3))
    with psycopg.connect(host="127.0.0.1", user="postgres", dbname=pg.name) as other:
        other.execute("UPDATE seen SET value = 'theirs'")
        progress = impatient.run(insert(1), "UPDATE seen SET value = 'ours'")
        assert progress == Progress(0, reason="timeout expired")
        other.rollback()
    impatient.lookups.close()
    assert "1" not in world.values()


def test_a_transaction_that_takes_long_is_committed_with_what_it_has(world: World) -> None:
    units = [(Statement(insert(number).encode()),) for number in range(100)]
    with psycopg.connect(host="127.0.0.1", user="postgres", dbname=world.pg.name) as connection:
        connection.pgconn.nonblocking = 1
        assert run_units(connection.pgconn, units, 30.0, enough_s=0.0).progress == Progress(8)
        assert len(world.values()) == 8
        assert run_units(connection.pgconn, units, 30.0, enough_s=None).progress == Progress(100)


def test_a_server_that_cannot_be_reached_has_done_nothing() -> None:
    lookups = LookupRegistry(LookupOptions(timeouts=Timeouts(2, 2)))
    progress = lookups.run_together(Place("pgsql", "127.0.0.1:1/x/y/z"), [(Statement(b"SELECT 1"),)])
    assert progress.done == 0
    assert "PGSQL connection failed" in progress.reason


class Cutter:
    """Stands before PostgreSQL, and cuts a client off when it has told the server to commit and that has answered."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", 5432)) as server:
            while True:
                ready, _, _ = select.select([client, server], [], [], 20)
                if server in ready:
                    client.sendall(server.recv(65536))
                if client in ready:
                    data = client.recv(65536)
                    server.sendall(data)
                    if data.endswith(b"S\0\0\0\4"):
                        server.recv(65536)
                        return

    def close(self) -> None:
        self._thread.join(20)
        self._listener.close()


def test_the_answer_to_the_commit_may_be_lost(pg: Postgresql, world: World) -> None:
    """Nobody knows then whether it was done, and it says so."""
    with contextlib.closing(Cutter()) as cutter:
        through = World(pg, port=cutter.port)
        progress = through.run(insert(1), insert(2))
        through.lookups.close()
    assert (progress.done, progress.failed, progress.is_in_doubt) == (0, None, True)
    assert "closed the connection" in progress.reason
    assert world.values() == ["1", "2"]


# --- values beside the statement --------------------------------------------------------------------------------------


def template(*pieces: bytes) -> Template:
    found = template_or_none(pieces)
    assert found is not None
    return found


def bound(made: Template, *values: bytes) -> Unit:
    return (Statement(made.text, values, (), made),)


ODD = ("plain", "o'brien", 'back\\slash "quoted"', "new\nline\ttab", "", "jörg $1", "E'\\'", "a\\")


def test_values_arrive_as_they_do_in_the_text(world: World) -> None:
    made = template(b"INSERT INTO seen (value) VALUES ('", b"')")
    assert world.run_units(*(bound(made, value.encode()) for value in ODD)) == Progress(len(ODD))
    assert world.run_units(*((Statement(made.filled([value.encode()])),) for value in ODD)) == Progress(len(ODD))
    assert world.values() == [*ODD, *ODD]


@pytest.mark.parametrize(
    ("pieces", "value"),
    [
        ((b"SELECT interval '", b"'"), b"1 day"),
        ((b"SELECT json_build_object('", b"', 1)"), b"key"),
        ((b"SELECT 'a' '", b"'"), b"b"),
    ],
)
def test_where_no_value_may_stand_the_text_is_sent(world: World, pieces: tuple[bytes, ...], value: bytes) -> None:
    made, other = template(*pieces), template(b"INSERT INTO seen (value) VALUES ('", b"')")
    if b"'a' '" in pieces[0]:
        # wrong either way, and then it says so
        assert world.run_units(bound(other, b"1"), bound(made, value)).failed == 1
        return
    for _ in range(2):
        assert world.run_units(bound(other, b"1"), bound(made, value), bound(other, b"2")) == Progress(3)
    assert world.values() == ["1", "2"] * 2


def test_a_value_that_is_wrong_is_named(world: World) -> None:
    made = template(b"SELECT '", b"'::int")
    progress = world.run_units(bound(made, b"1"), bound(made, b"x"), bound(made, b"2"))
    assert progress.failed == 1
    assert "invalid input syntax" in progress.reason


def test_many_at_the_same_time(pg: Postgresql, world: World) -> None:
    """Two workers whose transactions want the same rows the other way round: one is told, none hangs."""
    world.run(insert("a"), insert("b"))
    worlds = [World(pg), World(pg)]
    barrier = threading.Barrier(2, timeout=20)
    done: list[Progress] = []

    def work(which: World, *rows: str) -> None:
        updates = [f"UPDATE seen SET value = value WHERE value = '{row}'" for row in rows]
        barrier.wait()
        done.append(which.run(updates[0], "SELECT pg_sleep(0.2)", updates[1]))

    threads = [threading.Thread(target=work, args=(one, *rows)) for one, rows in zip(worlds, ["ab", "ba"], strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for one in worlds:
        one.lookups.close()
    assert len(done) == 2
    assert Progress(3) in done
    assert all(progress == Progress(3) or "deadlock detected" in progress.reason for progress in done)


def test_quoting_is_that_of_the_expansion() -> None:
    assert template(b"SELECT '", b"'").quoted is quote_pgsql
