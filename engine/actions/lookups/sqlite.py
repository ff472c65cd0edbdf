"""sqlite: queries to SQLite files.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-24, X-25.
A query that begins as one that reads is run on a connection that cannot write and creates no file; only when SQLite
says that it must write after all (or that an interrupted transaction must be undone first) it is run on one that can.
Octets that are no UTF-8, and NUL, cannot stand in the text of a statement here; a literal with such octets is written
as a cast of its hexadecimal form, which has the same value.
Invariants: a file is named by the configuration, by an absolute path, never by text from outside; a connection is used
for as long as its path leads to the same file; a statement and the wait for a lock have a deadline; a value and a
result are bounded; statements commit one by one, or many that write in one transaction where nobody reads their
results, and no transaction stays open.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from .driver import MAX_RESULT_OCTETS, TOGETHER_S, Deferral, Failure, Progress, Result
from .servers import KeptConnections, Timeouts, format_row
from .statements import is_plain_select, leaves_traces, may_share_transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.expand.searches import Search

    from .driver import Unit

_SPACE: Final = b" \t\n\v\f\r"
#: virtual-machine steps between looks at the clock (measured: well under a millisecond)
_STEPS: Final = 10_000
# what is not closed goes on to the end, as for SQLite
_SKIPPED: Final = r"""\"[^"]*+"?|`[^`]*+`?|\[[^\]]*+\]?|--[^\n]*+|/\*.*?(?:\*/|\Z)"""
_TOKEN: Final = re.compile(rf"'[^']*+'?|{_SKIPPED}|;", re.DOTALL)
_LITERAL: Final = re.compile(rf"'((?:[^']|'')*+)'|'.*|{_SKIPPED}".encode(), re.DOTALL)
_READS: Final = re.compile(rb"\s*(?:select|values|with|explain)\b", re.IGNORECASE)
#: primary codes that a connection which cannot write answers where another one may do better
_NEEDS_WRITING: Final = frozenset([sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN])


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


def statement_text(query: bytes) -> str:
    """`query` as text that means the same.

    Raises:
        Deferral: octets that are no text stand outside of a literal.
    """
    if b"\0" not in query:
        try:
            return query.decode()
        except UnicodeDecodeError:
            pass
    try:
        text = _LITERAL.sub(_in_hexadecimal, query).decode()
    except UnicodeDecodeError:
        raise Deferral("sqlite: the query is not UTF-8") from None
    if "\0" in text:
        raise Deferral("sqlite: a NUL octet in the query")
    return text


def _in_hexadecimal(match: re.Match[bytes]) -> bytes:
    content = match[1]
    if content is None:
        return match[0]
    try:
        if "\0" not in content.decode():
            return match[0]
    except UnicodeDecodeError:
        pass
    return b"CAST(x'%b' AS TEXT)" % content.replace(b"''", b"'").hex().encode()


class _NeedsWriting(Exception):
    """The query cannot be done on a connection that only reads."""


class _Database:
    def __init__(self, path: bytes, timeouts: Timeouts, *, writes: bool) -> None:
        """Open the file.

        Raises:
            Failure: it cannot be opened.
        """
        self._timeouts = timeouts
        self._deadline = 0.0
        self._path = path
        self._writes = writes
        self.is_changed = False
        uri = f"file:{urllib.parse.quote(path)}?mode={'rwc' if writes else 'ro'}"
        try:
            # the threads that use a registry take turns
            self._db = sqlite3.connect(
                uri, uri=True, timeout=timeouts.connect_s, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, ValueError):
            raise Failure("unable to open database file") from None
        self._db.text_factory = bytes
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_RESULT_OCTETS)
        self._db.set_progress_handler(self._is_late, _STEPS)
        try:
            self._identity = self._identify()
        except OSError:
            self._db.close()
            raise Failure("unable to open database file") from None

    def _identify(self) -> tuple[int, int]:
        status = os.stat(self._path)
        return status.st_dev, status.st_ino

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    @property
    def is_current(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return self._identify() == self._identity
        except OSError:
            return False

    def run(self, text: str) -> Result | None:
        """Run statements one after the other; the rows of all of them are the result.

        Raises:
            Deferral: one of them cannot be done.
            _NeedsWriting: nothing was changed, since this connection cannot.
        """
        result = self._execute(text)
        if self._db.in_transaction:
            raise Deferral("sqlite: the query left a transaction open, which is rolled back")
        return result

    def run_together(self, units: Sequence[Unit]) -> Progress:
        """Run statements in one transaction: see `TogetherDriver.run_together`.

        What came before one that fails is committed, as long as SQLite has left the transaction open.
        """
        enough_at = time.monotonic() + TOGETHER_S
        done, failed, reason = 0, None, ""
        try:
            self._execute("BEGIN IMMEDIATE")
            for unit in units:
                if done and time.monotonic() >= enough_at:
                    break
                try:
                    self._run_unit(unit)
                except Deferral as error:
                    failed, reason = done, str(error)
                    if not self._db.in_transaction:
                        return Progress(0, failed, reason)
                    break
                done += 1
            self._execute("COMMIT")
        except Deferral as error:
            # what is not committed is undone when it is closed
            return Progress(0, None, str(error))
        return Progress(done, failed, reason)

    def _run_unit(self, unit: Unit) -> None:
        """Raises Deferral, with nothing of it done."""
        self._execute("SAVEPOINT outrider")
        try:
            for statement in unit:
                self._execute(statement_text(statement.text))
        except Deferral:
            if self._db.in_transaction:
                self._execute("ROLLBACK TO outrider")
                self._execute("RELEASE outrider")
            raise
        self._execute("RELEASE outrider")

    def _execute(self, text: str) -> Result | None:
        """Raises as `run`."""
        self._deadline = time.monotonic() + self._timeouts.query_s
        rows: list[bytes] = []
        octets = 0
        try:
            for statement in split_statements(text):
                if self._is_late():
                    raise Deferral("sqlite: interrupted")
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
            if not self._writes and getattr(error, "sqlite_errorcode", 0) & 0xFF in _NEEDS_WRITING:
                raise _NeedsWriting from None
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

    @property
    def is_clean(self) -> bool:
        """Whether the next query finds it as the first one did."""
        return not self.is_changed and not self._db.in_transaction

    def close(self) -> None:
        """Close it, which undoes a transaction that is open."""
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
        text = statement_text(query)
        if _READS.match(query):
            try:
                return self._run(path, query, text, writes=False)
            except _NeedsWriting:
                pass
        return self._run(path, query, text, writes=True)

    def _run(self, path: bytes, query: bytes, text: str, *, writes: bool) -> Result | None:
        with self._database(path, writes=writes) as database:
            database.is_changed = leaves_traces(query)
            return database.run(text)

    @contextlib.contextmanager
    def _database(self, path: bytes, *, writes: bool) -> Iterator[_Database]:
        """An open one, which is kept if it is as it was behind it."""
        key = ("+" if writes else "-") + os.fsdecode(path)
        database = self._databases.take(key)
        if database is not None and not database.is_current:
            database.close()
            database = None
        if database is None:
            database = _Database(path, self._timeouts, writes=writes)
        try:
            yield database
        finally:
            if database.is_clean:
                self._databases.put(key, database)
            else:
                database.close()

    def postpone(self, search: Search, query: bytes, *, tainted: bool) -> tuple[str, bytes] | None:
        path, query = self._choose(search, query, tainted=tainted)
        # what reads may do so on a connection that creates no file
        if not may_share_transaction(query) or _READS.match(query) or len(split_statements(statement_text(query))) > 1:
            return None
        return os.fsdecode(path), query

    def run_together(self, server: str, units: Sequence[Unit]) -> Progress:
        try:
            with self._database(os.fsencode(server), writes=True) as database:
                return database.run_together(units)
        except Failure as error:
            return Progress(0, reason=str(error))

    def _choose(self, search: Search, query: bytes, *, tainted: bool) -> tuple[bytes, bytes]:
        """The file, and the query without the file that the old form puts in front of it."""
        query = query.lstrip(_SPACE)
        path = search.option("file")
        if path is None and query.startswith(b"/") and not query.startswith(b"/*"):
            match = re.match(rb"(\S*)\s*", query)
            path = match[1] if match else b""
            if tainted:
                raise Failure(f"attempt to use tainted string '{os.fsdecode(path)}' for sqlite file")
            query = query[match.end() :] if match else b""
        path = path or self._file
        if not path.startswith(b"/") or b"\0" in path:
            raise Failure('absolute file name expected for "sqlite" lookup')
        return path, query

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._databases.close()
