"""The fixture that the tests of delivery share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.engine_world import MakeWorld, World, make_world_in


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Make an engine at rest: see `fakes.engine_world.make_world_in`; its store is closed after the test."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(make_world_in(tmp_path, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.store.close()
