"""sqlite: statements, files that are opened for reading only, locks, deadlines, octets."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry, Timeouts, sqlite
from engine.actions.lookups.driver import Deferral
from engine.actions.lookups.sqlite import split_statements, statement_text
from engine.expand.quoting import quote_sqlite
from fakes.searching import failure, look


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (a INTEGER, b TEXT)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(1, "one"), (2, "two words"), (3, None)])
    database.close()
    return path


@pytest.fixture
def lookups(file: Path) -> Iterator[LookupRegistry]:
    registry = LookupRegistry(LookupOptions(sqlite_dbfile=str(file), timeouts=Timeouts(0.1, 1.0)))
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT b FROM t WHERE a = 1", "one"),
        ("SELECT a, b FROM t ORDER BY a", 'a=1 b=one \na=2 b="two words" \na=3 b=<NULL> '),
        ("SELECT b FROM t WHERE a = 3", "<NULL>"),
        ("SELECT b FROM t WHERE a = 9", None),
        ("SELECT 1; SELECT 2 AS x, 3 AS y", "1\nx=2 y=3 "),
        ("SELECT 1.0, 1e300, 1/3.0", "1.0=1.0 1e300=1.0e+300 1/3.0=0.333333333333333 "),
        ("SELECT 9223372036854775807, -0.0, x'6162'", "9223372036854775807=9223372036854775807 -0.0=0.0 x'6162'=ab "),
        ("INSERT INTO t VALUES (4, 'x')", None),
        ("INSERT INTO t VALUES (4, 'x') RETURNING a", "4"),
        ("WITH x(y) AS (SELECT 5) SELECT y FROM x", "5"),
        ("WITH x(y) AS (SELECT 6) INSERT INTO t SELECT y, y FROM x RETURNING a", "6"),
        ("-- nothing", None),
        (";", None),
        ("/* comment */ SELECT 7", "7"),
    ],
)
def test_results(lookups: LookupRegistry, query: str, value: str | None) -> None:
    assert look(lookups, "sqlite", query) == (None if value is None else value.encode())


def test_an_error_is_a_deferral(lookups: LookupRegistry) -> None:
    """Exim reads it as "not found"; then a locked file would look like a missing row."""
    message = failure(lookups, "sqlite", "SELECT x FROM t")
    assert message == 'lookup of "SELECT x FROM t" gave DEFER: sqlite: no such column: x'
    assert "not a database" in failure(lookups, "sqlite,file=/etc/passwd", "SELECT 1 FROM t")


def test_files_by_option_and_in_the_old_form(lookups: LookupRegistry, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    assert look(lookups, f"sqlite,file={other}", "CREATE TABLE u (x)") is None
    assert look(lookups, f"sqlite,file={other}", "INSERT INTO u VALUES (5)") is None
    assert look(lookups, "sqlite", f" {other}  SELECT x FROM u") == b"5"
    assert look(lookups, "sqlite", f"{other}") is None
    message = 'absolute file name expected for "sqlite" lookup'
    assert failure(lookups, "sqlite,file=other.db", "SELECT 1") == message
    assert failure(LookupRegistry(), "sqlite", "SELECT 1") == message


def test_text_from_outside_never_names_a_file(lookups: LookupRegistry, tmp_path: Path) -> None:
    """X-24."""
    message = failure(lookups, "sqlite", f"{tmp_path}/new.db CREATE TABLE x (y)", tainted=True, quoted_for="sqlite")
    assert message == f"attempt to use tainted string '{tmp_path}/new.db' for sqlite file"
    assert not (tmp_path / "new.db").exists()


def test_reading_creates_no_file(lookups: LookupRegistry, tmp_path: Path) -> None:
    message = failure(lookups, f"sqlite,file={tmp_path}/none.db", "SELECT 1")
    assert message == "unable to open database file"
    message = failure(lookups, "sqlite,file=/nonexistent/x.db", "CREATE TABLE x (y)")
    assert message == "unable to open database file"


def test_a_file_that_may_only_be_read(lookups: LookupRegistry, file: Path) -> None:
    file.chmod(0o444)
    assert look(lookups, "sqlite", "SELECT count(*) FROM t") == b"3"
    if os.geteuid():
        assert "readonly" in failure(lookups, "sqlite", "INSERT INTO t VALUES (1, '')")


def test_a_reading_query_holds_no_connection_that_writes(lookups: LookupRegistry, file: Path) -> None:
    look(lookups, "sqlite", "SELECT 1 FROM t")
    driver = lookups._query_drivers["sqlite"]
    assert isinstance(driver, sqlite.Sqlite)
    (database,) = driver._databases._kept.values()
    with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
        database._db.execute("INSERT INTO t VALUES (9, 'x')")


def test_a_file_in_wal_mode(lookups: LookupRegistry, file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("INSERT INTO t VALUES (8, 'wal')")
        database.commit()
        assert look(lookups, "sqlite", "SELECT b FROM t WHERE a = 8") == b"wal"
    database.close()
    lookups.forget()
    assert look(lookups, "sqlite", "SELECT b FROM t WHERE a = 8") == b"wal"


def test_a_locked_file_is_waited_for_and_then_a_deferral(lookups: LookupRegistry, file: Path) -> None:
    with sqlite3.connect(file, isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        for query in ("SELECT b FROM t", "INSERT INTO t VALUES (1, '')"):
            assert failure(lookups, "sqlite", query).endswith("gave DEFER: sqlite: database is locked")
        database.execute("COMMIT")
    database.close()
    assert look(lookups, "sqlite", "SELECT b FROM t WHERE a = 1") == b"one"


def test_another_file_under_the_same_name_is_seen(lookups: LookupRegistry, file: Path, tmp_path: Path) -> None:
    assert look(lookups, "sqlite", "SELECT count(*) FROM t") == b"3"
    new = tmp_path / "new.db"
    with sqlite3.connect(new) as database:
        database.execute("CREATE TABLE t (a)")
    database.close()
    new.rename(file)
    lookups.forget()
    assert look(lookups, "sqlite", "SELECT count(*) FROM t") == b"0"


def test_a_statement_that_does_not_end_is_stopped(lookups: LookupRegistry) -> None:
    endless = "WITH RECURSIVE x(y) AS (SELECT 1 UNION ALL SELECT y + 1 FROM x) SELECT max(y) FROM x"
    assert failure(lookups, "sqlite", endless).endswith("gave DEFER: sqlite: interrupted")
    assert look(lookups, "sqlite", "SELECT 1") == b"1"


def test_results_are_bounded(lookups: LookupRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "too big" in failure(lookups, "sqlite", "SELECT zeroblob(10000000)")
    monkeypatch.setattr(sqlite, "MAX_RESULT_OCTETS", 1000)
    rows = "WITH RECURSIVE x(y) AS (SELECT 1 UNION ALL SELECT y + 1 FROM x LIMIT 1000) SELECT y FROM x"
    assert failure(lookups, "sqlite", rows).endswith("gave DEFER: result of more than 1000 octets")
    assert look(lookups, "sqlite", "SELECT 1") == b"1"


def test_a_transaction_that_stays_open_is_an_error_and_undone(lookups: LookupRegistry) -> None:
    message = failure(lookups, "sqlite", "BEGIN; INSERT INTO t VALUES (7, 'open')")
    assert message.endswith("gave DEFER: sqlite: the query left a transaction open, which is rolled back")
    assert look(lookups, "sqlite", "SELECT count(*) FROM t WHERE a = 7") == b"0"
    assert look(lookups, "sqlite", "BEGIN; INSERT INTO t VALUES (7, 'closed'); COMMIT") is None
    assert look(lookups, "sqlite", "SELECT b FROM t WHERE a = 7") == b"closed"


def test_a_writing_statement_runs_each_time(lookups: LookupRegistry) -> None:
    for _ in range(3):
        look(lookups, "sqlite", "INSERT INTO t VALUES (20, 'same')")
    assert look(lookups, "sqlite", "SELECT count(*) FROM t WHERE a = 20") == b"3"


def test_an_attached_file_is_gone_afterwards(lookups: LookupRegistry, tmp_path: Path) -> None:
    query = f"ATTACH '{tmp_path}/x.db' AS other; CREATE TABLE other.u (x)"
    assert look(lookups, "sqlite", query) is None
    assert "no such table" in failure(lookups, "sqlite", "SELECT * FROM u")


# --- the text of statements -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT ';'; SELECT \";\" -- ;\n", ["SELECT ';';", ' SELECT ";" -- ;\n']),
        ("SELECT 1 /* ; */; ; x", ["SELECT 1 /* ; */;", " ;", " x"]),
        (
            "CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END; SELECT 3",
            ["CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;", " SELECT 3"],
        ),
        ("SELECT 'open ; SELECT 2", ["SELECT 'open ; SELECT 2"]),
        (" \n", []),
    ],
)
def test_split_statements(text: str, statements: list[str]) -> None:
    assert split_statements(text) == statements


def test_octets_outside_of_literals_are_refused(lookups: LookupRegistry) -> None:
    assert failure(lookups, "sqlite", b"SELECT \xff").endswith("sqlite: the query is not UTF-8")
    assert failure(lookups, "sqlite", b"SELECT 1 \0").endswith("sqlite: a NUL octet in the query")
    assert failure(lookups, "sqlite", b"SELECT '\xff").endswith("sqlite: the query is not UTF-8")
    assert statement_text(b"SELECT '\xff''x', 'plain'") == "SELECT CAST(x'ff2778' AS TEXT), 'plain'"


@given(st.binary(max_size=20))
def test_quoted_octets_arrive_as_they_were(octets: bytes) -> None:
    database = sqlite3.connect(":memory:")
    statement = statement_text(b"SELECT hex('" + quote_sqlite(octets) + b"'), typeof('" + quote_sqlite(octets) + b"')")
    assert database.execute(statement).fetchone() == (octets.hex().upper(), "text")
    database.close()


@pytest.mark.parametrize("word", ["'", '"', "[", "/*", "--", "`", ";", "x;"])
def test_long_text_takes_no_longer_than_it_is(word: str) -> None:
    with contextlib.suppress(Deferral):
        statement_text(b"SELECT '" + word.encode() * 100_000 + b"\xff'")
    with contextlib.suppress(Deferral):
        statement_text(b"SELECT " + word.encode() * 100_000 + b"\xff")
    split_statements("SELECT 1 " + word * 3_000)
