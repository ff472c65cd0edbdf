"""cdb: what is in a file is found, and no damage to it leads out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupRegistry, driver
from engine.actions.lookups.cdb import cdb_hash, find_in_cdb
from fakes.cdb_file import make_cdb
from fakes.searching import failure, look

_RECORDS = st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=20)), max_size=30)


@given(_RECORDS, st.binary(max_size=8))
def test_it_is_a_dictionary_whose_first_record_wins(records: list[tuple[bytes, bytes]], other: bytes) -> None:
    data = make_cdb(records)
    wanted = dict(reversed(records))
    for key in [*wanted, other]:
        assert find_in_cdb(data, key) == wanted.get(key)


@given(_RECORDS.filter(bool), st.data())
def test_damage_is_a_wrong_answer_or_an_error_but_never_a_crash(
    records: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    octets = bytearray(make_cdb(records))
    key = data.draw(st.sampled_from([key for key, _ in records]))
    # where damage hurts: the pointer of this key's table, and everything behind the pointers
    place = (cdb_hash(key) & 255) * 8
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(place, place + 7), st.integers(2048, len(octets) - 1)))
        octets[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(octets)), st.integers(2048, len(octets))))
    try:
        find_in_cdb(bytes(octets[:cut]), key)
    except ValueError:
        pass


def test_a_table_of_nothing_but_full_slots_ends() -> None:
    octets = bytearray(make_cdb([(b"a", b"1")]))
    place = (cdb_hash(b"a") & 255) * 8
    table = int.from_bytes(octets[place : place + 4], "little")
    for slot in range(2):
        octets[table + slot * 8 : table + slot * 8 + 8] = (1).to_bytes(4, "little") + (2048).to_bytes(4, "little")
    assert find_in_cdb(bytes(octets), b"a") is None


def test_through_the_registry(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "x.cdb"
    file.write_bytes(make_cdb([(b"key", b"data"), (b"*", b"star"), (b"*.b.c", b"wild")]))
    assert look(registry, "cdb", str(file), "key") == b"data"
    assert look(registry, "cdb", str(file), "KEY") is None
    assert look(registry, "cdb*", str(file), "x") == b"star"
    assert look(registry, "partial-cdb", str(file), "a.b.c") == b"wild"


def test_damaged_files(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "x.cdb"
    file.write_bytes(make_cdb([(b"key", b"data")])[:2060])
    message = failure(registry, "cdb", str(file), "key")
    assert message == f'lookup of "key" gave DEFER: cdb: corrupt cdb file {file} (too short)'
    file.write_bytes(b"short")
    assert failure(registry, "cdb", str(file), "key").startswith(f"failed to open {file} too short for cdb lookup")
    file.write_bytes(b"")
    assert failure(registry, "cdb", str(file), "key").startswith(f"failed to open {file} too short for cdb lookup")


def test_a_record_is_bounded(registry: LookupRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MAX_RESULT_OCTETS", 10)
    file = tmp_path / "x.cdb"
    file.write_bytes(make_cdb([(b"key", b"x" * 11)]))
    assert failure(registry, "cdb", str(file), "key") == 'lookup of "key" gave DEFER: result of more than 10 octets'
