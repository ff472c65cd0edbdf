"""Loading a job: duplicates are found for certain, memory stays flat, and what is removed is removed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.queue import _loading
from engine.queue._database import CACHE_KIB, TEMP_CACHE_KIB
from engine.queue._loading import normalised
from engine.queue.model import Filter, JobState, NewJob, NewRecipient
from engine.queue.sqlite import SqliteStore
from engine.queue.store import QueueFull
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

NOW = 1_700_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(str(tmp_path / "queue.db"))
    yield opened
    opened.close()


def expected(addresses: list[str]) -> list[str]:
    return list(dict.fromkeys(normalised(address) for address in addresses))


def load(store: SqliteStore, batches: list[list[str]], owner: int = 1) -> list[str]:
    job = store.add_job(owner, NewJob("", b""), NOW)
    accepted = duplicates = 0
    for batch in batches:
        added = store.add_recipients(job, map(NewRecipient, batch))
        accepted += added.accepted
        duplicates += added.duplicates
    counts = store.finish_loading(job, NOW).counts
    assert (counts.total, counts.duplicates) == (accepted, duplicates)
    views = store.recipients(Filter(job_id=job), 10_000)
    assert [view.number for view in views] == list(range(1, len(views) + 1))
    return [view.address for view in views]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the stores that hypothesis makes."""
    return tmp_path_factory.mktemp("loading")


def fresh_store(folder: Path) -> SqliteStore:
    store = SqliteStore(str(folder / f"{next(_numbers)}.db"))
    store._db.execute("PRAGMA synchronous = OFF")
    return store


_numbers = itertools.count()
# few letters, so that most lists hold an address twice
some_addresses = st.builds("{}@{}".format, st.sampled_from("abcABC"), st.sampled_from(["x.org", "X.org", "y.org"]))


@given(st.lists(st.lists(some_addresses, max_size=12), max_size=4))
def test_every_address_is_there_once_in_the_order_in_which_it_came(folder: Path, batches: list[list[str]]) -> None:
    store = fresh_store(folder)
    try:
        assert load(store, batches) == expected([address for batch in batches for address in batch])
    finally:
        store.close()


class _Few(str):
    """Addresses that share their hashes."""

    __slots__ = ()

    def __hash__(self) -> int:
        return len(self) % 2


@given(st.lists(st.lists(some_addresses, max_size=12), max_size=4))
def test_addresses_with_the_same_hash_are_told_apart(folder: Path, batches: list[list[str]]) -> None:
    def few(address: str) -> str:
        return _Few(normalised(address))

    store = fresh_store(folder)
    original = _loading.normalised
    _loading.normalised = few
    try:
        assert load(store, batches) == expected([address for batch in batches for address in batch])
    finally:
        _loading.normalised = original
        store.close()


def test_a_hash_at_the_end_of_the_range_goes_on_at_its_start(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Last(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return (1 << 61) - 2  # the greatest hash that Python gives to what is not a string

    monkeypatch.setattr(_loading, "_MAX_HASH", (1 << 61) - 2)
    monkeypatch.setattr(_loading, "normalised", lambda address: Last(address))
    assert load(store, [["a@x", "b@x"], ["c@x", "a@x", "b@x", "c@x"]]) == ["a@x", "b@x", "c@x"]


def test_a_stream_is_cut_into_commits(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loading, "CHUNK", 10)

    def stream() -> Iterator[NewRecipient]:
        for number in range(25):
            yield NewRecipient(f"user{number}@x.org")
        raise DataError("bad row", line=26)

    job = store.add_job(1, NewJob("", b""), NOW)
    with pytest.raises(DataError, match="line 26: bad row"):
        store.add_recipients(job, stream())
    assert store.counts(job).total == 20
    monkeypatch.setattr(_loading, "REMOVE_CHUNK", 7)
    store.abandon_loading(job)
    assert store.recipients(Filter(), 10) == []


def test_a_removal_that_was_interrupted_is_ended_by_the_next_recovery(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.add_job(1, NewJob("", b""), NOW)
    store.add_recipients(job, [NewRecipient("a@x.org")])
    original = store._remove_job

    def interrupted(job_id: int) -> None:
        raise QueueFull("full")

    monkeypatch.setattr(store, "_remove_job", interrupted)
    with pytest.raises(QueueFull):
        store.abandon_loading(job)
    monkeypatch.setattr(store, "_remove_job", original)
    found = store.job_or_none(job)
    assert found is not None
    assert found.state is JobState.CANCELLED
    assert store.claim(1, 10, NOW, 60) == store.claim_expired(1, 10, NOW, 60) == []
    store.recover(1, NOW)
    assert store.job_or_none(job) is None
    assert store.recipients(Filter(), 10) == []


def test_two_jobs_are_loaded_side_by_side(store: SqliteStore) -> None:
    first, second = (store.add_job(1, NewJob("", b""), NOW) for _ in range(2))
    for number in range(5):
        store.add_recipients(first, [NewRecipient(f"user{number}@x.org")])
        store.add_recipients(second, [NewRecipient(f"user{number}@x.org"), NewRecipient("user0@x.org")])
    assert store.finish_loading(first, NOW).counts.total == 5
    counts = store.finish_loading(second, NOW).counts
    assert (counts.total, counts.duplicates) == (5, 5)


def test_the_table_of_hashes_goes_with_the_loading(store: SqliteStore) -> None:
    load(store, [["a@x.org"]])
    store.abandon_loading(store.add_job(1, NewJob("", b""), NOW))
    assert store._db.execute("SELECT count(*) FROM temp.sqlite_master").fetchone() == (0,)


@pytest.mark.slow
def test_memory_stays_flat_while_a_long_list_is_loaded(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc")
    peaks: list[int] = []
    for count in (20_000, 200_000):
        done = subprocess.run(
            [sys.executable, "tests/isolated/queue_load.py", str(tmp_path / f"{count}.db"), str(count)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=PROJECT,
            check=False,
            env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["accepted"] == count - count // 100
        assert result["duplicates"] == count // 100
        peaks.append(result["peak_kib"])
    # the caches are bounded; ten times the list may fill them and no more
    assert peaks[1] < peaks[0] + (CACHE_KIB + TEMP_CACHE_KIB) // 2
    assert peaks[1] < 100 * 1024
