"""Fixtures of the contract suites: one more connection to a queue, and engines on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.queue.store import Store
from fakes.stores import STORES, Bench, Opener


@pytest.fixture(params=list(STORES))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens one more connection to the same queue; all are closed in the end."""
    stores: list[Store] = []
    make = STORES[request.param](tmp_path)

    def open_one() -> Store:
        stores.append(make())
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def bench(opener: Opener) -> Iterator[Bench]:
    made = Bench(opener())
    yield made
    made.engine.journal.close()


@pytest.fixture
def other(opener: Opener) -> Iterator[Bench]:
    """A second engine on the same queue."""
    made = Bench(opener())
    yield made
    made.engine.journal.close()
