"""Run one SQL statement an event, its parameters bound by name: PostgreSQL (postgresql.py), MySQL, SQLite.

Layer: adapter.  Spec: issue text "Workers".
The statement has ``:name`` where a value belongs: `:event_name`, `:event_id`, or the name of a value of the event; one
that the event does not have is NULL.  Values are bound, never put into the text.
Invariants: a batch is one transaction: all of it is done, or none; after an error the connection is closed, so that the
next attempt begins on a new one; octets that are no UTF-8, and NUL, become backslash escapes.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from ...errors import ConfigError
from .form import only, required, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..api import Event
    from .form import Handler

#: what holds no parameter (strings, quoted names, comments, casts), and parameters
_TOKENS: Final = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|::\w+|:(?P<name>[a-z_][a-z0-9_]*)|%""",
    re.DOTALL | re.IGNORECASE,
)


def bind(statement: str, style: str) -> tuple[str, tuple[str, ...]]:
    """A statement with the driver's placeholders, and the names they stand for in order.

    Args:
        style: ``?``, ``$`` (with a number behind it), or ``%s``; with that a literal % is doubled, as its drivers want
            it.
    """
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name is not None:
            names.append(name.lower())
            return f"${len(names)}" if style == "$" else style
        return match[0].replace("%", "%%") if style == "%s" else match[0]

    return _TOKENS.sub(replace, statement), tuple(names)


class Sql:
    """The handler.

    Args:
        connect: makes a connection with transactions (DB-API).
        statement, names: see `bind`.
    """

    def __init__(self, connect: Callable[[], Any], statement: str, names: tuple[str, ...]) -> None:
        self._connect = connect
        self._statement = statement
        self._names = names
        self._connection: Any = None

    def handle(self, events: list[Event]) -> None:
        """Run the statement for each, in one transaction.  Raises what the driver raises."""
        if self._connection is None:
            self._connection = self._connect()
        try:
            cursor = self._connection.cursor()
            with contextlib.closing(cursor):
                rows = [self._row(event) for event in events]
                cursor.executemany(self._statement, rows)
            self._connection.commit()
        except BaseException:
            self.close()
            raise

    def _row(self, event: Event) -> tuple[Any, ...]:
        row = []
        for name in self._names:
            value: Any
            if name == "event_name":
                value = event.name
            elif name == "event_id":
                value = event.id
            else:
                value = event.get(name)
            value = shown(value)
            row.append(value.replace("\0", "\\x00") if isinstance(value, str) else value)
        return tuple(row)

    def close(self) -> None:
        """Close the connection; what it has not committed is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def build(name: str, options: Mapping[str, Any]) -> Handler:
    """From `[handlers.NAME]`.  Raises ConfigError; ModuleNotFoundError if the driver is not installed."""
    only(name, options, ("url", "statement"))
    url = urllib.parse.urlsplit(required(name, options, "url"))
    statement = required(name, options, "statement")
    timeout_s = float(options.get("timeout") or 30)
    if url.scheme == "postgresql":
        made: Handler = importlib.import_module(".postgresql", __package__).Postgresql(
            url.geturl(), *bind(statement, "$"), timeout_s
        )
        return made
    connector = _CONNECTORS.get(url.scheme)
    if connector is None:
        known = ", ".join(("postgresql", *_CONNECTORS))
        raise ConfigError(f"{url.scheme!r} is not one of {known}", key=f"handlers.{name}.url")
    make, style = connector
    return Sql(make(url, timeout_s), *bind(statement, style))


def _mysql(url: urllib.parse.SplitResult, timeout_s: float) -> Callable[[], Any]:
    pymysql = importlib.import_module("pymysql")
    return lambda: pymysql.connect(
        host=url.hostname or "127.0.0.1",
        port=url.port or 3306,
        user=urllib.parse.unquote(url.username or ""),
        password=urllib.parse.unquote(url.password or ""),
        database=url.path.lstrip("/"),
        charset="utf8mb4",
        connect_timeout=max(1, int(timeout_s)),
        read_timeout=timeout_s,
        write_timeout=timeout_s,
    )


def _sqlite(url: urllib.parse.SplitResult, timeout_s: float) -> Callable[[], Any]:
    sqlite3 = importlib.import_module("sqlite3")
    # as in `queue`: sqlite:///absolute/path, with any number of slashes
    path = "/" + urllib.parse.unquote(url.path).lstrip("/")
    # the thread that makes a connection uses and closes it
    return lambda: sqlite3.connect(path, timeout=timeout_s)


_CONNECTORS: Final = {"mysql": (_mysql, "%s"), "sqlite": (_sqlite, "?")}
