"""The handler `sql` with PostgreSQL: the statements of a batch go through libpq's pipeline.

Layer: adapter.  Spec: issue text "Workers".
A statement is parsed once a batch, and its values travel beside it, typed as psycopg types them.
Invariants: a batch is one transaction: all of it is done, or none; after an error the connection is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors

from ..lookups.driver import Statement
from ..lookups.pipeline import run_units
from .form import shown

if TYPE_CHECKING:
    from ..api import Event
    from ..lookups.pipeline import Outcome

#: numbers of types, as pg_type has them
_BOOL, _INT8, _INT2, _INT4, _FLOAT8, _NUMERIC = 16, 20, 21, 23, 701, 1700
#: of text, whose type the server finds out
_UNKNOWN: Final = 0
#: an octet that text has no place for, and what it becomes
_NUL, _ESCAPED_NUL = "\0", "\\x00"


class Postgresql:
    """The handler.

    Args:
        url: as libpq takes it.
        statement: with ``$1``, ``$2`` … for `names`: see `sql.bind`.
        timeout_s: of each statement, and of connecting.
    """

    def __init__(self, url: str, statement: str, names: tuple[str, ...], timeout_s: float) -> None:
        self._url = url
        self._statement = statement
        self._names = names
        self._timeout_s = timeout_s
        self._connection: psycopg.Connection[Any] | None = None

    def handle(self, events: list[Event]) -> None:
        """Run the statement for each, in one transaction.  Raises psycopg.Error."""
        if self._connection is None:
            self._connection = self._connect()
        try:
            encoding = self._connection.info.encoding
            text = self._statement.encode(encoding)
            units = [(self._bound(text, event, encoding),) for event in events]
            # each statement has as long as the server lets it take
            timeout_s = self._timeout_s * (1 + len(units))
            outcome = run_units(self._connection.pgconn, units, timeout_s, enough_s=None)
            if outcome.progress.done < len(units):
                raise _error(outcome)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            self._url,
            connect_timeout=max(1, int(self._timeout_s)),
            options=f"-c statement_timeout={int(self._timeout_s * 1000)}",
        )
        connection.pgconn.nonblocking = 1
        return connection

    def _bound(self, text: bytes, event: Event, encoding: str) -> Statement:
        values: list[bytes | None] = []
        types: list[int] = []
        for name in self._names:
            value: Any
            if name == "event_name":
                value = event.name
            elif name == "event_id":
                value = event.id
            else:
                value = event.get(name)
            if type(value) is bytes and value.isascii() and b"\0" not in value:
                # for nearly every value of all: its octets are what they would become
                values.append(value)
                types.append(_UNKNOWN)
                continue
            octets, kind = _dumped(shown(value), encoding)
            values.append(octets)
            types.append(kind)
        return Statement(text, values, tuple(types) if any(types) else ())

    def close(self) -> None:
        """Close the connection; what it has not committed is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _dumped(value: Any, encoding: str) -> tuple[bytes | None, int]:
    """A value as text, and its type."""
    if value is None:
        return None, _UNKNOWN
    if isinstance(value, str):
        return value.replace(_NUL, _ESCAPED_NUL).encode(encoding), _UNKNOWN
    if isinstance(value, bool):
        return b"t" if value else b"f", _BOOL
    if isinstance(value, float):
        return repr(value).encode(), _FLOAT8
    for kind, bits in ((_INT2, 15), (_INT4, 31), (_INT8, 63)):
        if -(1 << bits) <= value < 1 << bits:
            return b"%d" % value, kind
    return b"%d" % value, _NUMERIC


def _error(outcome: Outcome) -> psycopg.Error:
    reason = outcome.progress.reason.removeprefix("ERROR:").strip()
    try:
        return errors.lookup(outcome.sqlstate)(reason)
    except KeyError:
        return psycopg.OperationalError(reason)
