"""One connection to a SQLite queue file: opening, transactions, errors in words.

Layer: adapter (SQLite).  Spec: issue "Bad input": disk full, a locked or corrupt file end in a clear error.
Facts: with WAL and ``synchronous=FULL`` a commit is on disk when it returns, and readers never wait for the writer.
What it means for us: a transaction that changes something begins IMMEDIATE, so it waits for the lock at its start, for
a bounded time, and never fails half-way with a lock.  We never open the file ourselves while SQLite has it: closing any
descriptor of a file drops the POSIX locks that the process holds on it.  No mmap: a file that shrinks under us must
be an error, not a signal.  A queue has one name: symbolic links are followed first, and hard links are refused, because
the write-ahead log and the journals stand beside that name, and who sees another one takes living engines for dead.
Invariants: no sqlite3 exception leaves this module; after an error the transaction is rolled back as a whole.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from ..errors import ConfigError, StoreError
from ._schema import APPLICATION_ID, MIGRATIONS, SCHEMA, SCHEMA_VERSION
from .store import NotAQueue, QueueCorrupt, QueueFull, QueueLocked, QueueReadOnly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: seconds to wait for another engine's transaction; each takes milliseconds
DEFAULT_BUSY_TIMEOUT_S: Final = 10.0
#: KiB of page cache for the file and for its temporary tables; the second holds the hashes of two million recipients
CACHE_KIB: Final = 32_768
TEMP_CACHE_KIB: Final = 49_152
#: pages in the write-ahead log before it is copied back; measured, 16 MiB costs nothing and 4 MiB a tenth of the rate
WAL_PAGES: Final = 4096
URL_PREFIX: Final = "sqlite://"


def queue_path(url: str) -> str:
    """The path of a `sqlite://` URL; more leading slashes than three do no harm.

    Raises:
        ConfigError: it is another kind of URL, or its path is not absolute.
    """
    if not url.startswith(URL_PREFIX):
        raise ConfigError(f"queue {url!r} is not supported: it must be sqlite:// and an absolute path")
    path = url[len(URL_PREFIX) :]
    if not path.startswith("/") or not path.strip("/") or "\x00" in path:
        raise ConfigError(f"queue {url!r} has no absolute path after sqlite://")
    return "/" + path.lstrip("/")


class Database:
    """The connection under a store.

    Args:
        path: absolute path of the queue file.
        create: make the file if it is not there; its directory must be.
        read_only: change nothing, not even by mistake.
        busy_timeout_s: how long to wait for another process.

    Raises:
        StoreError: see `store.Store`; the subclass tells why.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = True,
        read_only: bool = False,
        busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S,
    ) -> None:
        path = os.path.realpath(path)
        #: absolute, without symbolic links
        self.path = path
        self.read_only = read_only
        self._busy_timeout_s = busy_timeout_s
        self._in_group = False
        self._is_doomed = False
        self._after_commit: list[Callable[[], None]] = []
        _check_file(path, create=create, read_only=read_only)
        with self._errors():
            self._db = sqlite3.connect(
                f"file:{quote(path)}?mode={'ro' if read_only else 'rw'}",
                uri=True,
                isolation_level=None,
                timeout=busy_timeout_s,
                check_same_thread=False,
                cached_statements=256,
            )
        try:
            self._prepare()
            self._file = _identity(path)
        except BaseException:
            self._db.close()
            raise

    def _check_in_place(self) -> None:
        """See that the file that was opened is the one that others find.

        Raises:
            StoreError: it was removed or replaced: what is queued now goes elsewhere, and the journals that stand
                beside it may be those of another queue.
        """
        try:
            is_same = _identity(self.path) == self._file
        except FileNotFoundError:
            is_same = False
        except OSError:
            return  # nothing is known
        if not is_same:
            raise StoreError(f"the queue file {self.path} was removed or replaced while it was in use")

    def _prepare(self) -> None:
        with self._errors():
            self._db.execute("PRAGMA cell_size_check = ON")
            self._db.execute("PRAGMA trusted_schema = OFF")
            is_new = self._check_schema()
            if self.read_only:
                if is_new:
                    raise NotAQueue(f"{self.path} is not an Outrider queue: it is empty")
                return
            self._enter_wal()
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._db.execute(f"PRAGMA temp.cache_size = -{TEMP_CACHE_KIB}")
            # nothing in a temporary table is ever rolled back; measured, this is four times as fast in a large one
            self._db.execute("PRAGMA temp.journal_mode = OFF")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            self._db.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096 * 4}")
            self._db.execute("PRAGMA secure_delete = OFF")
        if is_new:
            with self._writing():
                if self._check_schema():
                    for statement in SCHEMA:
                        self._db.execute(statement)
        elif self._version() != SCHEMA_VERSION:
            self._migrate()
        self._check_length()

    def _check_schema(self) -> bool:
        """Whether the file is still empty.  Raises NotAQueue for what is not ours or not of this version."""
        application, version, tables = self._marks()
        if application == APPLICATION_ID:
            if version in MIGRATIONS and self.read_only:
                raise NotAQueue(
                    f"{self.path} is a queue of schema version {version}, which only a command that writes to it"
                    f" (an engine, or `outrider queue retry`) brings to version {SCHEMA_VERSION}"
                )
            if version != SCHEMA_VERSION and version not in MIGRATIONS:
                raise NotAQueue(
                    f"{self.path} is a queue of schema version {version}; this version reads {SCHEMA_VERSION}"
                )
            return False
        if application or version or tables:
            raise NotAQueue(f"{self.path} is a SQLite database of something else, not an Outrider queue")
        return True

    def _marks(self) -> tuple[int, int, int]:
        """Application id, version and number of tables, all of one moment: another process may be making them."""
        is_ours = not self._db.in_transaction
        if is_ours:
            self._db.execute("BEGIN")
        try:
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            version = self._version()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            if is_ours:
                self._db.execute("ROLLBACK")
        return int(application), version, int(tables)

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _migrate(self) -> None:
        """Bring a file of an older version to ours, in one commit."""
        with self._writing():
            # another process may have done it meanwhile
            while (version := self._version()) in MIGRATIONS:
                for statement in MIGRATIONS[version]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {version + 1}")

    def _enter_wal(self) -> None:
        # two processes that open a new file at once: SQLite does not wait here by itself
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise StoreError(f"the file system of {self.path} does not allow a write-ahead log")
            return

    def _check_length(self) -> None:
        """A file that was cut off is noticed at once, not when the missing page is asked for."""
        with self._errors():
            (size,) = self._db.execute("PRAGMA page_size").fetchone()
            (count,) = self._db.execute("PRAGMA page_count").fetchone()
        try:
            if os.path.exists(self.path + "-wal") and os.path.getsize(self.path + "-wal") > 0:
                return
            actual = os.path.getsize(self.path)
        except OSError:
            return
        if actual < size * count:
            raise QueueCorrupt(
                f"the queue file {self.path} is corrupt: it has {actual} octets and should have {size * count}"
            )

    def check(self) -> None:
        """Read the whole file and check its structure; takes seconds for a gigabyte.

        Raises:
            QueueCorrupt: with the first thing that is wrong.
        """
        with self._errors():
            rows = self._db.execute("PRAGMA quick_check(1)").fetchall()
        if rows != [("ok",)]:
            raise QueueCorrupt(f"the queue file {self.path} is corrupt: {rows[0][0] if rows else 'no answer'}")

    def close(self) -> None:
        """Close the file.  Closing twice does nothing."""
        with self._errors():
            self._db.close()

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """Put every operation inside into one commit.

        What they return is true only after the block.  If the block raises, or one of them did, nothing happened.
        """
        with self._writing():
            yield

    def _not_in_group(self, call: str) -> None:
        if self._in_group:
            raise StoreError(f"{call} cannot be part of a group")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if self._in_group:
            try:
                with self._errors():
                    yield
            except BaseException:
                self._is_doomed = True
                raise
            return
        if self.read_only:
            raise QueueReadOnly(f"the queue file {self.path} was opened for reading only")
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            self._in_group = True
            self._is_doomed = False
            try:
                yield
                if self._is_doomed:
                    raise StoreError("an operation of the group failed, so none of it was done")
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite itself rolls back on some errors (disk full, I/O)
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._in_group = False
                callbacks, self._after_commit = self._after_commit, []
        for callback in callbacks:
            callback()

    @contextlib.contextmanager
    def _savepoint(self) -> Iterator[None]:
        """A part of a transaction that is undone alone when it raises."""
        self._db.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO part")
                self._db.execute("RELEASE part")
            raise
        self._db.execute("RELEASE part")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        path = self.path
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return QueueLocked(f"the queue file {path} is locked by another process for {self._busy_timeout_s:g} s")
        if code == sqlite3.SQLITE_FULL:
            return QueueFull(f"the disk of the queue file {path} is full")
        if code == sqlite3.SQLITE_CORRUPT:
            return QueueCorrupt(f"the queue file {path} is corrupt: {error}")
        if code == sqlite3.SQLITE_NOTADB:
            return NotAQueue(f"{path} is not an Outrider queue: {error}")
        if code == sqlite3.SQLITE_READONLY and self.read_only:
            # a reader makes the shared-memory file where no engine has made it
            return QueueReadOnly(
                f"the queue file {path} cannot be read without the right to write to its directory while no engine runs"
            )
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return QueueReadOnly(f"the queue file {path} cannot be written: {error}")
        if code == sqlite3.SQLITE_CANTOPEN:
            return StoreError(f"the queue file {path} cannot be opened: {error}")
        if code == sqlite3.SQLITE_IOERR:
            name = getattr(error, "sqlite_errorname", "")
            return StoreError(f"the queue file {path} cannot be read or written: {error} ({name})")
        return StoreError(f"the queue file {path}: {error}")


def _identity(path: str) -> tuple[int, int]:
    """What tells a file from all others.  Raises OSError."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _check_file(path: str, *, create: bool, read_only: bool) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        if not create or read_only:
            raise StoreError(f"there is no queue at {path}") from None
        _create_file(path)
        return
    except OSError as error:
        raise StoreError(f"the queue file {path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise NotAQueue(f"{path} is not an Outrider queue: it is not a regular file")
    if status.st_nlink > 1:
        raise StoreError(f"the queue file {path} has {status.st_nlink} names (hard links): remove all but one")
    if not os.access(path, os.R_OK):
        raise QueueReadOnly(f"the queue file {path} cannot be read: permission denied")
    if not read_only and not os.access(path, os.W_OK):
        raise QueueReadOnly(f"the queue file {path} cannot be written: permission denied")


def _create_file(path: str) -> None:
    # addresses of people are in it, so nobody else reads it; SQLite gives its log the same mode
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise StoreError(f"the directory of the queue file {path} does not exist") from None
    except OSError as error:
        raise StoreError(f"the queue file {path} cannot be made: {error.strerror}") from error
