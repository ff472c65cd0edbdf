"""Stores for tests: every implementation of `engine.queue.store.Store`, and an engine on one.

A store is opened more than once on the same queue, as engines of different processes would; a dead engine is one whose
journal was closed without `retire`.  Each implementation adds a line to `STORES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.queue.model import Claim, NewJob, NewRecipient, Outcome
from engine.queue.sqlite import open_store
from engine.queue.store import Engine, Store

NOW = 1_700_000_000.0
LEASE_S = 60.0

Opener = Callable[[], Store]


def sqlite_stores(folder: Path) -> Opener:
    return lambda: open_store(f"sqlite://{folder}/queue.db")


STORES = {"sqlite": sqlite_stores}


class Bench:
    """One connection with an engine, and the calls that tests make over and over."""

    def __init__(self, store: Store, now: float = NOW) -> None:
        self.store = store
        self.engine: Engine = store.register(now)
        self.owner = self.engine.owner

    def load(self, *addresses: str, merge: bool = False, now: float = NOW, **options: object) -> int:
        job = self.store.add_job(self.owner, NewJob("a@example.com", b"body", **options), now)  # type: ignore[arg-type]
        rows = [NewRecipient(address, {"name": address} if merge else None) for address in addresses]
        self.store.add_recipients(job, rows)
        self.store.finish_loading(job, now)
        return job

    def claim(self, limit: int = 100, now: float = NOW, job: int | None = None) -> list[Claim]:
        return self.store.claim(self.owner, limit, now, LEASE_S, job)

    def settle(self, *outcomes: Outcome, now: float = NOW) -> tuple[Outcome, ...]:
        return self.store.settle(self.owner, outcomes, now).lost

    def die(self) -> None:
        """The process is gone: the lock on its journal with it, and nothing else."""
        self.engine.journal.close()
        self.store.close()


def addresses(count: int, domain: str = "example.org") -> list[str]:
    return [f"user{number}@{domain}" for number in range(1, count + 1)]


@contextlib.contextmanager
def stopped_group(bench: Bench) -> Iterator[None]:
    """A group whose block raises behind what the test does in it."""
    try:
        with bench.store.group():
            yield
            raise _Stop
    except _Stop:
        pass


class _Stop(Exception):
    """What ends a group in these tests."""
