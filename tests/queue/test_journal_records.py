"""The kernel's records are those of msgpack, octet for octet, and what it cannot write it refuses."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.queue import _journal
from engine.queue.journal import MAGIC, Entry, read_untrusted
from engine.queue.model import OutcomeKind

EDGES = [
    edge + step
    for power in (5, 7, 8, 15, 16, 31, 32, 63)
    for edge in (1 << power, -(1 << power))
    for step in (-1, 0, 1)
    if -(1 << 63) <= edge + step < 1 << 63
]
NUMBERS = st.one_of(st.integers(0, (1 << 63) - 1), st.sampled_from(EDGES))
TEXTS = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(codec=None), max_size=20),
    st.sampled_from(
        ["", "é" * 16, "x" * 31, "x" * 32, "é" * 128, "x" * 255, "x" * 256, "\U0001f4e7" * 1000, "y" * 2000]
    ),
)
FLIGHTS = st.one_of(
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20),
    st.just([(1, 2)] * 15),
    st.just([(1, 2)] * 16),
    st.just([(1, 2)] * 70000),
)
RESULTS = st.lists(st.tuples(NUMBERS, NUMBERS, st.sampled_from(OutcomeKind), TEXTS), max_size=20)


def record(payload: bytes) -> bytes:
    length = len(payload)
    return struct.pack("<III", length, length ^ 0xFFFFFFFF, zlib.crc32(payload)) + payload


@given(host=st.one_of(TEXTS, st.just("h" * 70_000)), flights=FLIGHTS)
def test_a_begin(host: str, flights: list[tuple[int, int]]) -> None:
    expected = record(msgpack.packb([0, host, flights], unicode_errors="replace"))
    assert _journal.begin_record(host, flights) == expected


@given(results=RESULTS)
def test_a_finish(results: list[tuple[int, int, OutcomeKind, str]]) -> None:
    cut = [(*result[:3], result[3][: _journal.MAX_TEXT]) for result in results]
    assert _journal.finish_record(results) == record(msgpack.packb([1, cut], unicode_errors="replace"))


@given(flights=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=8), results=RESULTS)
def test_what_is_noted_is_what_the_records_say(
    flights: list[tuple[int, int]], results: list[tuple[int, int, OutcomeKind, str]]
) -> None:
    results = [(*flight, OutcomeKind.FAILED, "550 no") for flight in flights[::2]] + results
    noted: dict[tuple[int, int], tuple[str, OutcomeKind | None, str]] = {}
    _journal.note_begun(noted, flights, "mx")
    _journal.note_finished(noted, results)
    said = read_untrusted(MAGIC + _journal.begin_record("mx", flights) + _journal.finish_record(results))
    assert not said.is_damaged
    assert said.entries == {
        flight: Entry(*flight, host, kind, text.encode("utf-8", "replace").decode())
        for flight, (host, kind, text) in noted.items()
    }


WRONG: list[Any] = [None, [None], [(1,)], [(1, 2, 3)], [("a", 1)], [(1 << 64, 1)], [(-(1 << 63) - 1, 1)], [[1, 2]]]


@pytest.mark.parametrize("flights", WRONG, ids=repr)
def test_what_is_no_flight_is_refused(flights: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        _journal.begin_record("mx", flights)


@pytest.mark.parametrize(
    "results", [None, [None], [(1, 2, 3)], [(1, 2, 3, 4)], [(1, 2, 3, b"x")], [(1, 2, None, "x")], [(1, 2, 3, "x", 5)]]
)
def test_what_is_no_result_is_refused(results: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _journal.finish_record(results)


def test_a_list_that_changes_while_it_is_written() -> None:
    flights: list[Any] = []

    class Clearing:
        def __int__(self) -> int:
            flights.clear()
            return 1

    flights += [(Clearing(), 1)] * 3
    with pytest.raises(IndexError):
        _journal.begin_record("mx", flights)


def test_append_says_what_the_file_took_or_why_it_took_nothing(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    assert (_journal.append(fd, b"one"), _journal.append(fd, b""), _journal.append(fd, b" two")) == (3, 0, 4)
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == b"one two"
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        _journal.append(fd, b"x")
    assert caught.value.errno == errno.EBADF
