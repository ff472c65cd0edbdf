"""The in-flight journal: whatever is left of its file, it never says less than is true without saying so."""

from __future__ import annotations

import os
import resource
import struct
import threading
import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StoreError
from engine.queue.journal import (
    MAGIC,
    MAX_FILE_OCTETS,
    MAX_RECORD_OCTETS,
    Entry,
    Journal,
    JournalContents,
    is_held,
    journal_path,
    read_living,
    read_untrusted,
    take_dead,
)
from engine.queue.model import OutcomeKind

HEADER_OCTETS = 12


@pytest.fixture
def path(tmp_path: Path) -> str:
    return journal_path(str(tmp_path / "queue.db"), 7)


def record(payload: bytes) -> bytes:
    length = len(payload)
    return struct.pack("<III", length, length ^ 0xFFFFFFFF, zlib.crc32(payload)) + payload


def begin(host: str, *flights: tuple[int, int]) -> bytes:
    return record(msgpack.packb([0, host, flights]))


def finish(*results: tuple[int, int, int, str]) -> bytes:
    return record(msgpack.packb([1, results]))


def octets_of(path: str) -> bytes:
    return Path(path).read_bytes()


# --- the living engine ------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_a_reader_finds(path: str) -> None:
    with Journal(path) as journal:
        journal.begin([(1, 10), (2, 10)], "mx1.example.org")
        journal.begin([(3, 11)], "mx2.example.org")
        journal.finish([(1, 10, OutcomeKind.DELIVERED, "250 ok"), (3, 11, OutcomeKind.FAILED, "550 é\udcff")])
        journal.finish([(9, 12, OutcomeKind.DEFERRED, "never begun")])
        expected = {
            (1, 10): Entry(1, 10, "mx1.example.org", OutcomeKind.DELIVERED, "250 ok"),
            (2, 10): Entry(2, 10, "mx1.example.org"),
            (3, 11): Entry(3, 11, "mx2.example.org", OutcomeKind.FAILED, "550 é?"),
            (9, 12): Entry(9, 12, "", OutcomeKind.DEFERRED, "never begun"),
        }
        assert read_living(path) == JournalContents(expected)
        assert journal.open_count == 4
        in_memory = journal.contents()
        assert in_memory.entries.keys() == expected.keys()
        assert not in_memory.is_damaged


def test_the_file_is_empty_again_when_everything_is_forgotten(path: str) -> None:
    with Journal(path) as journal:
        journal.begin([(1, 1), (2, 1)], "mx")
        journal.forget([(1, 1), (8, 8)])
        assert octets_of(path) != MAGIC
        journal.forget([(2, 1)])
        assert octets_of(path) == MAGIC
        assert (journal.open_count, journal.size_octets) == (0, len(MAGIC))


def test_a_long_file_shrinks_to_what_is_open_and_stays_locked(path: str) -> None:
    with Journal(path, limit_octets=2000) as journal:
        journal.begin([(1, 1)], "slow.example.org")
        journal.finish([(2, 1, OutcomeKind.DELIVERED, "250")])
        for number in range(3, 500):
            journal.begin([(number, 1)], "mx.example.org")
            journal.forget([(number, 1)])
        assert journal.size_octets <= 2100
        assert journal.size_octets == os.path.getsize(path)
        found = read_living(path)
        assert found.entries[1, 1] == Entry(1, 1, "slow.example.org")
        assert found.entries[2, 1].kind is OutcomeKind.DELIVERED
        assert is_held(path)
        assert take_dead(path) is None
        assert not os.path.exists(path + ".new")


def test_a_file_that_is_all_open_is_not_rewritten_over_and_over(path: str) -> None:
    with Journal(path, limit_octets=500) as journal:
        inodes = set()
        for number in range(2000):
            journal.begin([(number, 1)], "mx.example.org")
            journal.forget([(9999, 9)])
            inodes.add(os.stat(path).st_ino)
        assert len(inodes) <= 12, "only when the file has doubled"
        assert len(read_living(path).entries) == 2000


def test_a_rewrite_that_is_not_possible_loses_nothing(path: str) -> None:
    with Journal(path, limit_octets=100) as journal:
        os.mkdir(path + ".new")
        journal.begin([(1, 1)], "mx")
        for number in range(2, 30):
            journal.begin([(number, 1)], "mx")
            journal.forget_quietly([(number, 1)])
        with pytest.raises(StoreError, match="directory"):
            journal.forget([])
        assert (1, 1) in read_living(path).entries
        os.rmdir(path + ".new")
        journal.forget([])
        assert list(read_living(path).entries) == [(1, 1)]


def test_one_process_at_a_time_has_it(path: str) -> None:
    with Journal(path), pytest.raises(StoreError, match="held by another process"):
        Journal(path)
    assert not is_held(path)
    with Journal(path):
        assert is_held(path)


def test_a_file_of_a_former_engine_is_emptied(path: str) -> None:
    Path(path).write_bytes(MAGIC + begin("mx", (1, 1)))
    with Journal(path):
        assert octets_of(path) == MAGIC


def test_a_journal_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        Journal(str(tmp_path / "none" / "x"))
    with pytest.raises(StoreError, match="directory"):
        Journal(str(tmp_path))


def test_a_closed_journal_refuses(path: str) -> None:
    journal = Journal(path)
    journal.begin([(1, 1)], "mx")
    journal.close()
    journal.close()
    with pytest.raises(StoreError, match="is closed"):
        journal.begin([(1, 1)], "mx")
    with pytest.raises(StoreError, match="is closed"):
        journal.finish([(1, 1, OutcomeKind.FAILED, "")])
    journal.forget([(1, 1)])
    assert os.path.exists(path)


def test_a_record_over_the_limit_is_refused(path: str) -> None:
    with Journal(path) as journal:
        with pytest.raises(StoreError, match="over the limit"):
            journal.begin([(number << 32, 1) for number in range(MAX_RECORD_OCTETS // 8)], "mx")
        assert journal.open_count == 0
        assert octets_of(path) == MAGIC


def test_a_full_disk_is_an_error_and_what_was_written_stays(path: str) -> None:
    """The limit on the size of a file stands for the disk; Python ignores its signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.begin([(1, 1)], "mx")
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size_octets + 20, before[1]))
        try:
            for _ in range(2):
                with pytest.raises(StoreError, match=r"No space left|too large"):
                    journal.begin([(2, 1)], "mx.example.org")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert journal.open_count == 1
        assert list(read_living(path).entries) == [(1, 1)]
        journal.begin([(3, 1)], "mx")
        assert list(read_living(path).entries) == [(1, 1), (3, 1)]


def test_threads_may_write_and_forget_at_once(path: str) -> None:
    with Journal(path, limit_octets=3000) as journal:

        def work(base: int) -> None:
            for number in range(base, base + 300):
                journal.begin([(number, 1)], "mx.example.org")
                journal.finish([(number, 1, OutcomeKind.DELIVERED, "250")])
                if number % 3:
                    journal.forget([(number, 1)])

        threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = read_living(path)
        assert not found.is_damaged
        wanted = {(1000 * index + number, 1) for index in range(3) for number in range(300)}
        wanted -= {flight for flight in wanted if flight[0] % 3}
        assert wanted <= found.entries.keys()
        assert journal.contents().entries.keys() == wanted


# --- the dead engine --------------------------------------------------------------------------------------------------


def test_the_journal_of_a_dead_engine_is_taken_by_one(path: str) -> None:
    Journal(path).close()
    first = take_dead(path)
    assert first is not None
    assert take_dead(path) is None
    assert first.contents() == JournalContents()
    first.close(remove=True)
    assert not os.path.exists(path)


def test_a_journal_that_is_gone_proves_nothing(path: str) -> None:
    dead = take_dead(path)
    assert dead is not None
    assert dead.contents().is_damaged
    dead.close(remove=True)
    assert read_living(path).is_damaged
    assert not is_held(path)


def test_a_symbolic_link_is_not_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(MAGIC)
    os.symlink(tmp_path / "other", path)
    with pytest.raises(StoreError, match="symbolic links"):
        take_dead(path)
    assert read_living(path).is_damaged
    assert is_held(path), "what cannot be told is taken for alive"


def test_a_file_that_is_too_long_to_be_ours_proves_nothing(path: str) -> None:
    with open(path, "wb") as file:
        file.write(MAGIC)
        file.truncate(MAX_FILE_OCTETS + 1)
    assert read_living(path).is_damaged


# --- any octets -------------------------------------------------------------------------------------------------------

flights = st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 30))
results = st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 30), st.integers(0, 3), st.text(max_size=8))
records = st.one_of(
    st.builds(lambda host, some: begin(host, *some), st.text(max_size=8), st.lists(flights, max_size=3)),
    st.builds(lambda some: finish(*some), st.lists(results, max_size=3)),
)


@given(st.lists(records, max_size=6), st.data())
def test_a_cut_leaves_the_records_before_it(parts: list[bytes], data: st.DataObject) -> None:
    whole = MAGIC + b"".join(parts)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [len(MAGIC)]
    for part in parts:
        ends.append(ends[-1] + len(part))
    kept = max((end for end in ends if end <= cut), default=0)
    found = read_untrusted(whole[:cut])
    assert found == read_untrusted(whole[:kept])
    assert not found.is_damaged, "a cut is what a kill in the middle of a write leaves"


@given(st.lists(records, min_size=1, max_size=6), st.data())
def test_damage_is_noticed_and_what_stands_before_it_is_kept(parts: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(MAGIC + b"".join(parts))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    found = read_untrusted(bytes(whole))
    assert found.is_damaged
    prefixes = [read_untrusted(MAGIC + b"".join(parts[:count])).entries for count in range(len(parts))]
    assert found.entries in prefixes or found.entries == {}


@given(st.binary(max_size=200), st.booleans(), st.lists(records, max_size=2))
def test_garbage_never_raises(garbage: bytes, has_magic: bool, parts: list[bytes]) -> None:
    before = read_untrusted(MAGIC + b"".join(parts)).entries
    found = read_untrusted((MAGIC + b"".join(parts) if has_magic else b"") + garbage)
    if has_magic:
        assert before.keys() <= found.entries.keys()
        # fewer octets than a header look like a cut; more of them are noticed
        assert found.is_damaged or len(garbage) < HEADER_OCTETS
    elif not MAGIC.startswith(garbage):
        assert found == JournalContents(is_damaged=True)


@given(st.binary(max_size=60))
def test_a_record_with_any_payload_never_raises(payload: bytes) -> None:
    found = read_untrusted(MAGIC + record(payload) + begin("mx", (5, 5)))
    assert found.is_damaged or (5, 5) in found.entries


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [0],
        [2, "h", []],
        [0, b"h", [[1, 1]]],
        [0, "h", [[1]]],
        [0, "h", [["1", 1]]],
        [0, "h", 5],
        [1, [[1, 1, 9, "x"]]],
        [1, [[1, 1, 0, b"x"]]],
        [1, [[1, 1, None, "x"]]],
        [1, []] * 2,
        {0: "h"},
    ],
)
def test_a_payload_of_another_form_is_damage(value: object) -> None:
    assert read_untrusted(MAGIC + record(msgpack.packb(value))).is_damaged


def test_a_deeply_nested_payload_is_damage() -> None:
    assert read_untrusted(MAGIC + record(b"\x91" * 100_000)).is_damaged


def test_a_length_over_the_limit_is_damage() -> None:
    length = MAX_RECORD_OCTETS + 1
    header = struct.pack("<III", length, length ^ 0xFFFFFFFF, 0)
    assert read_untrusted(MAGIC + header + b"x" * 50).is_damaged


def test_an_empty_file_is_a_journal_whose_engine_died_at_once() -> None:
    assert read_untrusted(b"") == read_untrusted(MAGIC[:5]) == read_untrusted(MAGIC) == JournalContents()
