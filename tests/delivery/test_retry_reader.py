"""Retry records read together: few calls, nothing stale, and a reading that fails is done again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from engine.delivery.retry_reader import RetryReader
from engine.delivery.settlement import StoreThread
from engine.queue.model import RetryRecord
from engine.queue.store import QueueLocked

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Store:
    """Records with the number of the call that read them; a call waits for `go` and raises what `errors` has."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.errors: list[Exception] = []
        self.go = threading.Event()
        self.go.set()

    def retry_records(self, keys: Sequence[str]) -> dict[str, RetryRecord]:
        self.calls.append(list(keys))
        number = len(self.calls)
        self.go.wait()
        if self.errors:
            raise self.errors.pop()
        return {key: RetryRecord(key, 0.0, 0.0, 0.0, errno=number) for key in keys}


@pytest.fixture
def store() -> _Store:
    return _Store()


@pytest.fixture
def reader(store: _Store) -> RetryReader:
    return RetryReader(StoreThread(store))  # type: ignore[arg-type]  # the one method that is called


async def test_what_is_asked_for_together_is_read_together(reader: RetryReader, store: _Store) -> None:
    found: dict[str, int] = {}

    async def read(key: str) -> None:
        found[key] = (await reader.read([key]))[key].errno

    async with trio.open_nursery() as nursery:
        for key in "abc":
            nursery.start_soon(read, key)
    assert store.calls == [["a", "b", "c"]]
    assert found == {"a": 1, "b": 1, "c": 1}


async def test_nothing_is_older_than_its_question(reader: RetryReader, store: _Store) -> None:
    """What is asked for while a reading is under way waits for the next one, even where the key is the same."""
    numbers: list[int] = []
    store.go.clear()

    async def read(key: str) -> None:
        numbers.append((await reader.read([key]))[key].errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read, "a")
        nursery.start_soon(read, "b")
        await trio.testing.wait_all_tasks_blocked()
        store.go.set()
    assert store.calls == [["a"], ["a", "b"]]
    assert numbers == [1, 2, 2]


async def test_a_reading_that_fails_is_done_again_for_the_next(reader: RetryReader, store: _Store) -> None:
    failed: list[str] = []
    found: list[str] = []
    store.errors = [QueueLocked("locked")]

    async def read(key: str) -> None:
        try:
            found.extend(await reader.read([key]))
        except QueueLocked:
            failed.append(key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "a")
        nursery.start_soon(read, "b")
    assert len(failed) == 1
    assert sorted(found) == ["a", "b"]
    assert store.calls == [["a", "b"]] * 2


async def test_who_is_cancelled_leaves_the_reading_to_the_others(reader: RetryReader, store: _Store) -> None:
    found: list[str] = []
    store.go.clear()

    async def read_first(key: str, scope: trio.CancelScope) -> None:
        with scope:
            await reader.read([key])

    async def read(key: str) -> None:
        found.extend(await reader.read([key]))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_first, "a", trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read_first, "b", scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read, "c")
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        store.go.set()
    assert "c" in found
