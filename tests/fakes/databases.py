"""A database of its own in each of the real servers, for tests of lookups and of whatever else speaks SQL or Redis.

PostgreSQL, MariaDB and Redis run on their usual ports of this machine and are shared; a test gets a new database, or a
prefix for its keys, and what it made is dropped afterwards.  Nothing here stops or configures a server: to see one
fail, put a `FaultProxy` in between.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pymysql
import redis

from fakes.peers import require_service

HOST = "127.0.0.1"
POSTGRESQL_PORT = 5432
MARIADB_PORT = 3306
REDIS_PORT = 6379
#: who may do everything in MariaDB, without a password
MARIADB_USER = "root"
#: as the servers of Debian have them
POSTGRESQL_SOCKET = "/var/run/postgresql/.s.PGSQL.5432"
MARIADB_SOCKET = "/run/mysqld/mysqld.sock"


def _name() -> str:
    return f"outrider_{os.getpid()}_{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Postgresql:
    """A database in PostgreSQL.

    Attributes:
        name: of the database.
        connection: an open one, each statement of which commits by itself.
    """

    name: str
    connection: psycopg.Connection[tuple[Any, ...]]

    def server(self, port: int = POSTGRESQL_PORT) -> str:
        """The item of `pgsql_servers` for it, perhaps through a proxy."""
        return f"{HOST}:{port}/{self.name}/postgres/"

    @property
    def socket_server(self) -> str:
        return f"({POSTGRESQL_SOCKET})/{self.name}/postgres/"

    def run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a statement, `[]` for one that has none."""
        cursor = self.connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def postgresql() -> Iterator[Postgresql]:
    """Make a database and drop it at the end."""
    require_service(HOST, POSTGRESQL_PORT, "PostgreSQL")
    name = _name()
    where: dict[str, Any] = {"host": HOST, "port": POSTGRESQL_PORT, "user": "postgres", "autocommit": True}
    with psycopg.connect(dbname="postgres", **where) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
        try:
            with psycopg.connect(dbname=name, **where) as connection:
                yield Postgresql(name, connection)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@dataclass(frozen=True, slots=True)
class Mariadb:
    """A database in MariaDB; see `Postgresql`."""

    name: str
    connection: Any

    def server(self, port: int = MARIADB_PORT) -> str:
        """The item of `mysql_servers` for it; in a list its colon must be doubled."""
        return f"{HOST}:{port}/{self.name}/{MARIADB_USER}/"

    @property
    def socket_server(self) -> str:
        return f"localhost({MARIADB_SOCKET})/{self.name}/{MARIADB_USER}/"

    def run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())


@contextlib.contextmanager
def mariadb() -> Iterator[Mariadb]:
    """Make a database and drop it at the end."""
    require_service(HOST, MARIADB_PORT, "MariaDB")
    name = _name()
    connection: Any = pymysql.connect(host=HOST, user=MARIADB_USER, autocommit=True, charset="utf8mb4")
    with connection:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
            cursor.execute(f"USE {name}")
        try:
            yield Mariadb(name, connection)
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name}")


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """Keys in Redis.

    Attributes:
        prefix: what the name of each key begins with.
        connection: a client.
    """

    prefix: str
    connection: Any

    def server(self, port: int = REDIS_PORT) -> str:
        """The item of `redis_servers` for it; in a list its colon must be doubled."""
        return f"{HOST}:{port}/0/"

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"


@contextlib.contextmanager
def redis_keys() -> Iterator[RedisKeys]:
    """Reserve a prefix, and delete its keys at the end."""
    require_service(HOST, REDIS_PORT, "Redis")
    prefix = f"{_name()}:"
    with contextlib.closing(redis.Redis(host=HOST, port=REDIS_PORT)) as connection:
        try:
            yield RedisKeys(prefix, connection)
        finally:
            for key in connection.scan_iter(match=f"{prefix}*", count=1000):
                connection.delete(key)
