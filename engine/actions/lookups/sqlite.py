"""sqlite: queries to SQLite files.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-24, X-25.
Invariants: a file is named by the configuration, by an absolute path, never by text from outside; a connection is used
for as long as its path leads to the same file; a statement and the wait for a lock have a deadline; statements commit
one by one.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from .driver import MAX_RESULT_OCTETS, Deferral, Failure, Result
from .servers import KeptConnections, Timeouts, format_row, is_plain_select

if TYPE_CHECKING:
    from engine.expand.searches import Search

_SPACE: Final = b" \t\n\v\f\r"
#: virtual-machine steps between looks at the clock (measured: well under a millisecond)
_STEPS: Final = 10_000
_TOKEN: Final = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|;""", re.DOTALL)


def split_statements(text: str) -> list[str]:
    """The statements of a text, as `sqlite3_exec` would take them one after the other."""
    statements = []
    start = 0
    for match in _TOKEN.finditer(text):
        # a trigger has semicolons inside
        if match[0] == ";" and sqlite3.complete_statement(text[start : match.end()]):
            statements.append(text[start : match.end()])
            start = match.end()
    if text[start:].strip():
        statements.append(text[start:])
    return statements


class _Database:
    def __init__(self, path: bytes, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._deadline = 0.0
        self._path = path
        try:
            self._db = sqlite3.connect(
                os.fsdecode(path), timeout=timeouts.connect_s, isolation_level=None, check_same_thread=False
            )
            self._db.text_factory = bytes
            self._db.set_progress_handler(self._is_late, _STEPS)
            self._identity = self._identify()
        except (sqlite3.Error, ValueError, OSError):
            raise Failure("unable to open database file") from None

    def _identify(self) -> tuple[int, int]:
        status = os.stat(self._path)
        return status.st_dev, status.st_ino

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    @property
    def is_current(self) -> bool:
        try:
            return self._identify() == self._identity
        except OSError:
            return False

    def run(self, text: str) -> Result | None:
        self._deadline = time.monotonic() + self._timeouts.query_s
        rows: list[bytes] = []
        octets = 0
        try:
            for statement in split_statements(text):
                cursor = self._db.execute(statement)
                names = [column[0].encode("utf-8", "surrogateescape") for column in cursor.description or ()]
                for row in cursor:
                    values = [self._as_text(value) for value in row]
                    rows.append(values[0] if len(values) == 1 else format_row(names, values))
                    octets += len(rows[-1]) + 1
                    if octets > MAX_RESULT_OCTETS:
                        cursor.close()
                        raise Deferral(f"result of more than {MAX_RESULT_OCTETS} octets")
        except sqlite3.Error as error:
            # Exim reads an error of the statement as "not found"; then a locked file would look like a missing row
            raise Deferral(f"sqlite: {error}") from None
        return Result(b"\n".join(rows)) if rows else None

    def _as_text(self, value: Any) -> bytes:
        if value is None:
            return b"<NULL>"
        if isinstance(value, bytes):
            return value
        if isinstance(value, int):
            return b"%d" % value
        # SQLite's own text of a floating point number is not Python's
        text: bytes = self._db.execute("SELECT CAST(? AS TEXT)", (value,)).fetchone()[0]
        return text

    def close(self) -> None:
        self._db.close()


class Sqlite:
    """The driver.

    Args:
        file: the option `sqlite_dbfile`.
        timeouts: for a lock, and for a query.
    """

    def __init__(self, file: str, timeouts: Timeouts) -> None:
        self._file = os.fsencode(file)
        self._timeouts = timeouts
        self._databases: KeptConnections[_Database] = KeptConnections()

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        path, query = self._choose(search, query, tainted=tainted)
        if not query:
            return None
        try:
            text = query.decode()
        except UnicodeDecodeError:
            raise Deferral("sqlite: the query is not UTF-8") from None
        if "\0" in text:
            raise Deferral("sqlite: a NUL octet in the query")
        key = os.fsdecode(path)
        database = self._databases.take(key)
        if database is not None and not database.is_current:
            database.close()
            database = None
        if database is None:
            database = _Database(path, self._timeouts)
        try:
            return database.run(text)
        finally:
            self._databases.put(key, database)

    def _choose(self, search: Search, query: bytes, *, tainted: bool) -> tuple[bytes, bytes]:
        """The file, and the query without the file that the old form puts in front of it."""
        query = query.lstrip(_SPACE)
        path = search.option("file")
        if path is None and query.startswith(b"/"):
            match = re.match(rb"(\S*)\s*", query)
            path = match[1] if match else b""
            if tainted:
                raise Failure(f"attempt to use tainted string '{os.fsdecode(path)}' for sqlite file")
            query = query[match.end() :] if match else b""
        path = path or self._file
        if not path.startswith(b"/"):
            raise Failure('absolute file name expected for "sqlite" lookup')
        return path, query

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._databases.close()
