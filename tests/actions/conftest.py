"""Databases for the tests of lookups: one of each kind for a whole run, since making one costs a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.actions.lookups import LookupRegistry
from fakes.databases import Mariadb, Postgresql, RedisKeys, mariadb, postgresql, redis_keys


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgresql]:
    """A database in PostgreSQL."""
    with postgresql() as database:
        yield database


@pytest.fixture(scope="session")
def my() -> Iterator[Mariadb]:
    """A database in MariaDB."""
    with mariadb() as database:
        yield database


@pytest.fixture(scope="session")
def keys() -> Iterator[RedisKeys]:
    """A prefix in Redis."""
    with redis_keys() as reserved:
        yield reserved


@pytest.fixture
def registry() -> Iterator[LookupRegistry]:
    """A registry without servers."""
    made = LookupRegistry()
    yield made
    made.close()
