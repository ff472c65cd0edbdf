"""Statements of MySQL and SQLite that share a transaction: what came before one that fails is kept, once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.actions.lookups import LookupOptions, LookupRegistry, Place, Progress, Statement, Timeouts
from fakes.databases import Mariadb
from fakes.searching import look

Rows = Callable[[], list[Any]]


def units(*queries: str) -> list[tuple[Statement, ...]]:
    return [(Statement(query.encode()),) for query in queries]


def insert(value: object) -> str:
    return f"INSERT INTO seen (value) VALUES ('{value}')"


# --- SQLite -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE seen (value TEXT UNIQUE)")
    database.close()
    return path


@pytest.fixture
def lite(file: Path) -> Iterator[tuple[LookupRegistry, Place]]:
    lookups = LookupRegistry(LookupOptions(sqlite_dbfile=str(file), timeouts=Timeouts(0.1, 5.0)))
    yield lookups, Place("sqlite", str(file))
    lookups.close()


def rows_of(file: Path) -> list[str]:
    database = sqlite3.connect(file)
    found = [value for (value,) in database.execute("SELECT value FROM seen ORDER BY rowid")]
    database.close()
    return found


def test_sqlite_does_all_of_them(lite: tuple[LookupRegistry, Place], file: Path) -> None:
    lookups, place = lite
    assert lookups.run_together(place, units(*map(insert, range(100)))) == Progress(100)
    assert rows_of(file) == [str(number) for number in range(100)]


def test_sqlite_keeps_what_came_before_one_that_fails(lite: tuple[LookupRegistry, Place], file: Path) -> None:
    lookups, place = lite
    progress = lookups.run_together(place, units(insert(1), insert(2), insert(1), insert(3)))
    assert (progress.done, progress.failed) == (2, 2)
    assert "UNIQUE" in progress.reason
    assert rows_of(file) == ["1", "2"]
    whole = [(Statement(insert(3).encode()), Statement(insert(1).encode())), *units(insert(4))]
    assert lookups.run_together(place, [*units(insert(5)), *whole]).done == 1
    assert rows_of(file) == ["1", "2", "5"], "nothing of a unit is left"


def test_sqlite_may_undo_all_of_it(lite: tuple[LookupRegistry, Place], file: Path) -> None:
    lookups, place = lite
    rolled = "INSERT OR ROLLBACK INTO seen (value) VALUES ('1')"
    progress = lookups.run_together(place, units(insert(1), insert(2), rolled, insert(3)))
    assert (progress.done, progress.failed) == (0, 2)
    assert rows_of(file) == []
    assert lookups.run_together(place, units(insert(1))) == Progress(1)


def test_sqlite_waits_for_a_lock_and_gives_up(lite: tuple[LookupRegistry, Place], file: Path) -> None:
    lookups, place = lite
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    progress = lookups.run_together(place, units(insert(1)))
    assert (progress.done, progress.failed) == (0, None)
    assert "locked" in progress.reason
    other.execute("ROLLBACK")
    other.close()
    assert lookups.run_together(place, units(insert(1))) == Progress(1)
    assert lookups.run_together(Place("sqlite", "/nowhere/a.db"), units(insert(1))).done == 0


# --- MySQL ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def maria(my: Mariadb) -> Iterator[tuple[LookupRegistry, Place, Rows]]:
    my.run("DROP TABLE IF EXISTS seen")
    my.run("CREATE TABLE seen (number INT AUTO_INCREMENT PRIMARY KEY, value VARCHAR(50) UNIQUE) ENGINE=InnoDB")
    lookups = LookupRegistry(LookupOptions(mysql_servers=(my.server(),), timeouts=Timeouts(5, 5)))
    yield lookups, Place("mysql", my.server()), lambda: [v for (v,) in my.run("SELECT value FROM seen ORDER BY number")]
    lookups.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["InnoDB", "MyISAM"])
def test_mysql_keeps_what_came_before_one_that_fails(
    my: Mariadb, maria: tuple[LookupRegistry, Place, Rows], engine: str
) -> None:
    """Also where nothing could be undone: then it is not done twice."""
    lookups, place, rows = maria
    my.run(f"ALTER TABLE seen ENGINE={engine}")
    progress = lookups.run_together(place, units(insert(1), insert(2), insert(1), insert(3)))
    assert (progress.done, progress.failed) == (2, 2)
    assert "Duplicate" in progress.reason
    assert rows() == ["1", "2"]
    assert lookups.run_together(place, units(*map(insert, range(10, 60)), "SELECT 1")) == Progress(51)
    assert len(rows()) == 52
    assert look(lookups, "mysql", "SELECT count(*) FROM seen") == b"52", "statements commit by themselves again"


@pytest.mark.slow
def test_mysql_leaves_nothing_of_a_unit(maria: tuple[LookupRegistry, Place, Rows]) -> None:
    lookups, place, rows = maria
    bad = (Statement(insert(3).encode()), Statement(insert(1).encode()))
    good = (Statement(insert(1).encode()), Statement(insert(2).encode()))
    assert lookups.run_together(place, [good, bad]).failed == 1
    assert rows() == ["1", "2"]


@pytest.mark.slow
def test_mysql_undoes_all_that_a_connection_had_which_was_given_up(maria: tuple[LookupRegistry, Place, Rows]) -> None:
    lookups, place, rows = maria
    assert lookups.run_together(place, units(insert(1))) == Progress(1)
    impatient = LookupRegistry(LookupOptions(mysql_servers=(place.server,), timeouts=Timeouts(5, 0.2)))
    progress = impatient.run_together(place, units(insert("x"), "SELECT sleep(5)"))
    impatient.close()
    assert (progress.done, progress.is_in_doubt) == (0, False)
    assert rows() == ["1"]
