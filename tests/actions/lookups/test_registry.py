"""The registry: defaults and partial matching (5.2), what is kept, what is refused, one thread at a time."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry
from engine.actions.lookups import registry as module
from engine.actions.lookups.driver import Deferral, Failure, Result
from engine.actions.lookups.kept import MAX_AGE_S
from engine.actions.lookups.registry import candidates
from engine.errors import ExpandError, LookupDeferral
from engine.expand.searches import Search, SearchDeferral, parse_type
from fakes.patience import PATIENCE_S
from fakes.searching import failure, find, look


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """A query driver that answers with the number of the call."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.closed = 0
        self.result: Result | Exception | None = None

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        self.asked.append(query)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result or Result(b"%d" % len(self.asked))

    def is_cacheable(self, query: bytes) -> bool:
        return not query.startswith(b"write")

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def driver() -> Counting:
    return Counting()


@pytest.fixture
def counted(driver: Counting, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> LookupRegistry:
    """A registry whose pgsql is `driver`."""
    monkeypatch.setattr(module, "_load", lambda name, file, cls: lambda *arguments: driver)
    return LookupRegistry(monotonic=clock)


# --- candidates (5.2) -------------------------------------------------------------------------------------------------


def tries(kind: str, key: str) -> list[tuple[str, tuple[str, ...]]]:
    found = candidates(parse_type(kind.encode(), has_key=True), key.encode())
    return [(wanted.decode(), tuple(group.decode() for group in groups)) for wanted, groups in found]


def test_a_plain_search_has_one_key_and_no_groups() -> None:
    assert tries("lsearch", "a@b.c") == [("a@b.c", ())]


def test_star_and_star_at() -> None:
    assert tries("lsearch*", "a@b.c") == [("a@b.c", ()), ("*", ("a@b.c", ""))]
    assert tries("lsearch*@", "a@b@c") == [("a@b@c", ()), ("*@c", ("a@b", "")), ("*", ("a@b@c", ""))]
    assert tries("lsearch*@", "a") == [("a", ()), ("*", ("a", ""))]
    # an @ at the start is none for Exim
    assert tries("lsearch*@", "@c") == [("@c", ()), ("*", ("@c", ""))]


def test_partial_takes_labels_off_while_two_stay() -> None:
    assert tries("partial-lsearch", "a.b.c.d") == [
        ("a.b.c.d", ("", "a.b.c.d")),
        ("*.a.b.c.d", ("", "a.b.c.d")),
        ("*.b.c.d", ("a", "b.c.d")),
        ("*.c.d", ("a.b", "c.d")),
    ]


def test_partial_zero_tries_the_affix_alone_without_its_dot() -> None:
    assert tries("partial0-lsearch", "a.b")[-2:] == [("*.b", ("a", "b")), ("*", ("a.", ""))]
    assert tries("partial0()lsearch", "a.b") == [("a.b", ("", "a.b")), ("b", ("a", "b"))]


def test_partial_with_an_affix_of_its_own() -> None:
    assert [wanted for wanted, _ in tries("partial1(.)lsearch", "a.b")] == ["a.b", ".a.b", ".b"]


@given(st.binary(max_size=40), st.sampled_from(["partial0-lsearch", "partial-lsearch*@", "partial3(!)lsearch*"]))
def test_candidates_never_fail_and_begin_with_the_key(key: bytes, kind: str) -> None:
    found = candidates(parse_type(kind.encode(), has_key=True), key)
    assert found[0][0] == key
    assert all(len(groups) == 2 for _, groups in found)


def test_a_key_of_many_labels_is_bounded() -> None:
    assert len(tries("partial0-lsearch", "a." * 10_000 + "b")) <= 131


# --- single keys ------------------------------------------------------------------------------------------------------


def test_ret_key_is_the_key_that_was_asked_for(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("*.b.c: data\n*: star\n")
    found = find(registry, "partial-lsearch*,ret=key", str(file), "a.b.c")
    assert found is not None
    assert (found.value, found.groups, found.tainted) == (b"a.b.c", (b"a", b"b.c"), False)
    assert look(registry, "lsearch*,ret=key", str(file), "else") == b"else"


def test_an_empty_key_is_not_looked_for_but_its_default_is(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text('"": empty\n*: star\n')
    assert look(registry, "lsearch", str(file), "") is None
    assert look(registry, "lsearch*", str(file), "") == b"star"


def test_a_tainted_file_name_is_refused_before_anything_is_opened(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("a: secret\n")
    message = failure(registry, "lsearch", str(file), "a", text_tainted=True)
    assert message == f"attempt to use tainted string '{file}' for lsearch file name"


def test_a_file_that_cannot_be_read_is_a_deferral(registry: LookupRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def look_up(self, *_: object) -> bytes | None:
            raise OSError(5, "ignored")

    monkeypatch.setattr(module, "_load", lambda *_: Broken)
    with pytest.raises(SearchDeferral, match=r'lookup of "k" gave DEFER: /x: Input/output error'):
        find(registry, "json", "/x", "k")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_deferral_names_the_key_or_query(counted: LookupRegistry, driver: Counting) -> None:
    driver.result = Deferral("no servers")
    with pytest.raises(LookupDeferral) as caught:
        find(counted, "pgsql", "SELECT\n1")
    assert caught.value.message == r'lookup of "SELECT\n1" gave DEFER: no servers'


def test_a_failure_is_the_whole_message_and_no_deferral(counted: LookupRegistry, driver: Counting) -> None:
    driver.result = Failure("unable to open database file")
    with pytest.raises(ExpandError) as caught:
        find(counted, "pgsql", "x")
    assert caught.value.message == "unable to open database file"
    assert not isinstance(caught.value, LookupDeferral)


def test_without_the_package_of_its_extra_a_type_is_unknown(
    registry: LookupRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, package: str | None = None) -> object:
        raise ModuleNotFoundError(name="psycopg")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert failure(registry, "pgsql", "x") == 'unknown lookup type "pgsql"'


# --- taint (X-25) -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pgsql", "mysql", "sqlite", "redis"])
@pytest.mark.parametrize("other", [None, "pgsql", "mysql", "sqlite", "redis", "ldap"])
def test_a_tainted_query_is_sent_only_when_quoted_for_its_type(
    counted: LookupRegistry, driver: Counting, kind: str, other: str | None
) -> None:
    message = failure(counted, kind, "GET x", tainted=True, quoted_for=other)
    if other == kind:
        assert message == "found b'1'"
        assert driver.asked == [b"GET x"]
    else:
        assert message == "tainted search query is not properly quoted: GET x"
        assert driver.asked == []


def test_a_tainted_query_of_a_type_without_a_quoter_is_asked(counted: LookupRegistry) -> None:
    found = find(counted, "dnsdb", "a=x", tainted=True)
    assert found is not None
    assert found.tainted


def test_a_result_of_a_database_is_not_tainted(counted: LookupRegistry) -> None:
    found = find(counted, "pgsql", "x")
    assert found is not None
    assert not found.tainted


# --- what is kept (5.2) -----------------------------------------------------------------------------------------------


def test_a_reading_query_is_kept_until_forgotten(counted: LookupRegistry, driver: Counting) -> None:
    assert [look(counted, "pgsql", "read") for _ in range(3)] == [b"1"] * 3
    counted.forget()
    assert look(counted, "pgsql", "read") == b"2"


def test_what_is_kept_ends_after_a_minute(counted: LookupRegistry, clock: Clock) -> None:
    assert look(counted, "pgsql", "read") == b"1"
    clock.now += MAX_AGE_S - 1
    assert look(counted, "pgsql", "read") == b"1"
    clock.now += 1
    assert look(counted, "pgsql", "read") == b"2"


def test_a_result_with_a_lifetime_ends_with_it(counted: LookupRegistry, driver: Counting, clock: Clock) -> None:
    driver.result = Result(b"x", ttl_s=5)
    look(counted, "dnsdb", "a=x")
    clock.now += 4
    look(counted, "dnsdb", "a=x")
    assert len(driver.asked) == 1
    clock.now += 1
    look(counted, "dnsdb", "a=x")
    assert len(driver.asked) == 2


def test_options_are_part_of_the_place(counted: LookupRegistry, driver: Counting) -> None:
    assert look(counted, "pgsql,servers=a", "read") == b"1"
    assert look(counted, "pgsql,servers=b", "read") == b"2"
    assert look(counted, "pgsql,servers=a", "read") == b"1"


def test_a_writing_query_is_never_kept_and_empties_what_is(counted: LookupRegistry, driver: Counting) -> None:
    """The trap of 5.2: each evaluation reaches the server."""
    look(counted, "pgsql", "read")
    look(counted, "mysql", "read")
    assert [look(counted, "pgsql", "write"), look(counted, "pgsql", "write")] == [b"3", b"4"]
    assert look(counted, "mysql", "read") == b"2"
    assert look(counted, "pgsql", "read") == b"5"


def test_a_writing_query_that_fails_empties_too(counted: LookupRegistry, driver: Counting) -> None:
    look(counted, "pgsql", "read")
    driver.result = Deferral("lost")
    failure(counted, "pgsql", "write")
    driver.result = None
    assert look(counted, "pgsql", "read") == b"3"


def test_the_cache_options(counted: LookupRegistry, driver: Counting) -> None:
    assert look(counted, "pgsql,cache=no", "read") == b"1"
    assert look(counted, "pgsql", "read") == b"2"
    assert look(counted, "pgsql,cache=no_rd", "read") == b"3"
    assert look(counted, "pgsql", "read") == b"3"
    assert look(counted, "pgsql,cache=no_wr", "read") == b"3"
    counted.forget()
    assert look(counted, "pgsql,cache=no_wr", "read") == b"4"
    assert look(counted, "pgsql", "read") == b"5"


def test_inside_an_event_nothing_is_kept(counted: LookupRegistry, driver: Counting) -> None:
    assert [look(counted, "pgsql", "read", cached=False) for _ in range(2)] == [b"1", b"2"]
    assert look(counted, "pgsql", "read") == b"3"


def test_a_failure_is_not_kept(counted: LookupRegistry, driver: Counting) -> None:
    driver.result = Deferral("down")
    failure(counted, "pgsql", "read")
    driver.result = None
    assert look(counted, "pgsql", "read") == b"2"


def test_an_empty_query_asks_nobody(counted: LookupRegistry, driver: Counting) -> None:
    assert look(counted, "pgsql", "") is None
    assert look(counted, "pgsql", " \t\n") is None
    assert driver.asked == []


def test_closing_closes_drivers_and_the_registry_goes_on(counted: LookupRegistry, driver: Counting) -> None:
    look(counted, "pgsql", "read")
    counted.close()
    assert driver.closed == 1
    assert look(counted, "pgsql", "read") == b"2"


# --- threads ----------------------------------------------------------------------------------------------------------


def test_two_threads_at_once_are_a_bug_and_one_after_the_other_are_none(
    counted: LookupRegistry, driver: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, leave = threading.Event(), threading.Event()
    results: list[bytes | None] = []

    def ask(search: Search, query: bytes, *, tainted: bool) -> Result | None:
        inside.set()
        assert leave.wait(PATIENCE_S)
        return Result(b"slow")

    monkeypatch.setattr(driver, "ask", ask)
    thread = threading.Thread(target=lambda: results.append(look(counted, "pgsql", "write")))
    thread.start()
    assert inside.wait(PATIENCE_S)
    with pytest.raises(RuntimeError, match="two threads"):
        look(counted, "pgsql", "read")
    with pytest.raises(RuntimeError, match="two threads"):
        counted.forget()
    with pytest.raises(RuntimeError, match="two threads"):
        counted.close()
    leave.set()
    thread.join(10)
    assert results == [b"slow"]
    assert look(counted, "pgsql", "write") == b"slow"


def test_two_registries_share_nothing(tmp_path: Path) -> None:
    first, second = (LookupRegistry(LookupOptions(sqlite_dbfile=str(tmp_path / name))) for name in ("a.db", "b.db"))
    for registry, value in ((first, "1"), (second, "2")):
        failure(registry, "sqlite", "CREATE TABLE t (x)")
        failure(registry, "sqlite", f"INSERT INTO t VALUES ({value})")
    assert look(first, "sqlite", "SELECT x FROM t") == b"1"
    assert look(second, "sqlite", "SELECT x FROM t") == b"2"
    first.close()
    second.close()
