"""The in-flight journal: what an engine was sending when it died.

Layer: adapter (files, no SQL).  Spec: bulk-sending section 5, rule 6; RFC 1047.
One file an engine, beside the queue.  The living engine holds an exclusive flock on it, so a journal whose lock can be
taken belongs to a dead engine.  `begin` is written before the final octet of a message may leave; `finish` when its
reply is known and the queue has not committed it yet.  Records go out by one plain write each and are not synced: the
page cache survives `kill -9`, and after a power loss (another boot id) the queue holds every lease for doubtful anyway.

File: `MAGIC`, then records of ``length (4) | its complement (4) | CRC-32 of the payload (4) | payload``,
little-endian; the complement tells a record that was cut off from one whose length was damaged.  Payload is msgpack:
``[0, host, [[recipient id, epoch], …]]`` for a begin, ``[1, [[recipient id, epoch, kind, text], …]]`` for a finish.
Entries are matched to leases by epoch, so a stale entry says nothing about anything.

Invariants: a record that was cut off at the end of the file was never acknowledged to its writer and counts as not
written; anything else that does not parse makes the journal *damaged*, and then it proves nothing.  `read_untrusted`
never raises and never allocates more than the file holds.  The file shrinks to what is still open when it passes
`limit_octets`; the replacement is locked before it gets the name, so the lock is never free while the engine lives.
Workers must be started with exec: a forked child would share the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgpack

from ..errors import StoreError
from . import _journal
from .model import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

MAGIC: Final = b"outrider-flight1"
_HEADER: Final = struct.Struct("<III")
_COMPLEMENT: Final = 0xFFFFFFFF
#: octets; a flight holds at most some hundred recipients of some 1,100 octets each
MAX_RECORD_OCTETS: Final = 4 << 20
#: octets; a journal is rewritten when it is longer.  Arbitrary: about 20,000 small entries
DEFAULT_LIMIT_OCTETS: Final = 1 << 20
#: octets that are read of a journal at all; far above what an engine leaves
MAX_FILE_OCTETS: Final = 256 << 20

_KINDS: Final = {int(kind): kind for kind in OutcomeKind}

#: (recipient id, epoch)
Flight = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the journal says of one claim: `kind` is None while no reply is known."""

    recipient_id: int
    epoch: int
    host: str
    kind: OutcomeKind | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class JournalContents:
    """What could be read: entries by (recipient id, epoch), and whether more may have been there."""

    entries: dict[Flight, Entry] = field(default_factory=dict)
    is_damaged: bool = False


class Journal:
    """The journal of a living engine.  Its methods may be called from any thread.

    Args:
        path: see `journal_path`; made if it is not there.
        limit_octets: length from which `forget` rewrites the file.

    Raises:
        StoreError: it cannot be made or another process holds it.
    """

    def __init__(self, path: str, *, limit_octets: int = DEFAULT_LIMIT_OCTETS) -> None:
        self.path = path
        self._limit = limit_octets
        # host, kind, text: an `Entry` each would be a fifth of the cost of `begin`
        self._open: dict[Flight, tuple[str, OutcomeKind | None, str]] = {}
        self._is_torn = False
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"in-flight journal {path}: {error.strerror}") from error
        if not _try_lock(self._fd):
            os.close(self._fd)
            raise StoreError(f"in-flight journal {path} is held by another process")
        self._size = 0
        try:
            os.ftruncate(self._fd, 0)
            self._append(MAGIC)
        except (OSError, StoreError) as error:
            os.close(self._fd)
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"in-flight journal {path}: {error.strerror}") from error

    def begin(self, flights: Iterable[Flight], host: str) -> None:
        """Note that the final octet of these messages may be written from now on.

        Args:
            flights: (recipient id, epoch) of every recipient of the messages.

        Raises:
            StoreError: the disk is full or failing; then do not send that octet.
        """
        fresh = list(flights)
        octets = _journal.begin_record(host, fresh)
        with self._lock:
            self._append(octets)
            _journal.note_begun(self._open, fresh, host)

    def finish(self, results: Iterable[tuple[int, int, OutcomeKind, str]]) -> None:
        """Note replies that are known and not committed yet.

        Args:
            results: (recipient id, epoch, kind, reply text).

        Raises:
            StoreError: the disk is full or failing; settling soon is all that can be done.
        """
        known = list(results)
        octets = _journal.finish_record(known)
        with self._lock:
            self._append(octets)
            _journal.note_finished(self._open, known)

    def forget(self, flights: Iterable[Flight]) -> None:
        """Drop what the queue has committed; empties or shortens the file when that pays.

        Raises:
            StoreError: the file could not be rewritten; it stays as it was and keeps growing.
        """
        with self._lock:
            for flight in flights:
                self._open.pop(flight, None)
            if self._fd < 0:
                return
            if not self._open:
                if self._size > len(MAGIC):
                    self._truncate(len(MAGIC))
            elif self._size > self._limit:
                self._rewrite()

    def forget_quietly(self, flights: Iterable[Flight]) -> None:
        """`forget`, where a file that could not be shortened is nobody's business: its entries are only stale."""
        try:
            self.forget(flights)
        except StoreError:
            pass

    @property
    def open_count(self) -> int:
        """Entries that were begun and are not forgotten."""
        return len(self._open)

    @property
    def size_octets(self) -> int:
        return self._size

    def contents(self) -> JournalContents:
        """What a reader would find, without reading."""
        with self._lock:
            return JournalContents(
                {flight: Entry(*flight, host, kind, text) for flight, (host, kind, text) in self._open.items()}
            )

    def close(self, *, remove: bool = False) -> None:
        """Give up the lock; with `remove` the file goes first.  Closing twice does nothing."""
        with self._lock:
            if self._fd < 0:
                return
            if remove:
                _unlink(self.path)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, octets: bytes) -> None:
        if self._fd < 0:
            raise StoreError(f"in-flight journal {self.path} is closed")
        if len(octets) > MAX_RECORD_OCTETS + _HEADER.size:
            raise StoreError(f"in-flight record of {len(octets)} octets is over the limit of {MAX_RECORD_OCTETS}")
        if self._is_torn:
            self._truncate(self._size)
        try:
            written = _journal.append(self._fd, octets)
        except OSError as error:
            raise StoreError(f"in-flight journal {self.path}: {error.strerror}") from error
        if written != len(octets):
            self._is_torn = True
            self._truncate(self._size)
            raise StoreError(f"in-flight journal {self.path}: {os.strerror(errno.ENOSPC)}")
        self._size += written

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise StoreError(f"in-flight journal {self.path}: {error.strerror}") from error
        self._size = size
        self._is_torn = False

    def _rewrite(self) -> None:
        octets = bytearray(MAGIC)
        by_host: dict[str, list[Flight]] = {}
        for flight, (host, _, _) in self._open.items():
            by_host.setdefault(host, []).append(flight)
        for host, flights in by_host.items():
            for start in range(0, len(flights), 1000):
                octets += _journal.begin_record(host, flights[start : start + 1000])
        known = [(*flight, kind, text) for flight, (_, kind, text) in self._open.items() if kind is not None]
        for start in range(0, len(known), 1000):
            octets += _journal.finish_record(known[start : start + 1000])
        if len(octets) * 2 > self._size:
            self._limit = max(self._limit, self._size * 2)
            return
        replacement = self.path + ".new"
        fd = -1
        try:
            fd = os.open(replacement, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if not _try_lock(fd):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if os.write(fd, octets) != len(octets):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(replacement, self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                _unlink(replacement)
            raise StoreError(f"in-flight journal {self.path}: {error.strerror}") from error
        os.close(self._fd)
        self._fd = fd
        self._size = len(octets)


class DeadJournal:
    """The journal of an engine that is gone; holds the lock so that only one engine clears up after it."""

    def __init__(self, path: str, fd: int | None) -> None:
        self.path = path
        self._fd = fd

    def contents(self) -> JournalContents:
        """What it says; a journal that is not there proves nothing, so it counts as damaged."""
        if self._fd is None:
            return JournalContents(is_damaged=True)
        return _read_fd(self._fd)

    def close(self, *, remove: bool) -> None:
        if remove:
            _unlink(self.path)
            _unlink(self.path + ".new")
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def journal_path(queue_path: str, owner: int) -> str:
    """Where the journal of an engine is."""
    return f"{queue_path}-inflight-{owner}"


def take_dead(path: str) -> DeadJournal | None:
    """The journal at `path` if no living engine holds it, else None.

    Raises:
        StoreError: it is there and cannot be opened.
    """
    for _ in range(10):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return DeadJournal(path, None)
        except OSError as error:
            raise StoreError(f"in-flight journal {path}: {error.strerror}") from error
        if not _try_lock(fd):
            os.close(fd)
            return None
        # the engine may have put a new file in place between our open and our lock
        try:
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return DeadJournal(path, fd)
        except FileNotFoundError:
            pass
        os.close(fd)
    return None


def is_held(path: str) -> bool:
    """Whether a living engine holds the journal at `path`; asked with a shared lock, and nothing is changed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def read_living(path: str) -> JournalContents:
    """What a journal says while its engine lives; damaged if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return JournalContents(is_damaged=True)
    try:
        return _read_fd(fd)
    finally:
        os.close(fd)


def read_untrusted(octets: bytes) -> JournalContents:
    """Parse the octets of a journal, whatever they are."""
    if not octets.startswith(MAGIC):
        return JournalContents(is_damaged=not MAGIC.startswith(octets))
    entries: dict[Flight, Entry] = {}
    position = len(MAGIC)
    while position < len(octets):
        left = len(octets) - position
        if left < _HEADER.size:
            return JournalContents(entries)
        length, complement, checksum = _HEADER.unpack_from(octets, position)
        if length ^ complement != _COMPLEMENT or length > MAX_RECORD_OCTETS:
            return JournalContents(entries, is_damaged=True)
        if left - _HEADER.size < length:
            return JournalContents(entries)
        position += _HEADER.size
        payload = octets[position : position + length]
        position += length
        if zlib.crc32(payload) != checksum or not _apply(payload, entries):
            return JournalContents(entries, is_damaged=True)
    return JournalContents(entries)


def _apply(payload: bytes, entries: dict[Flight, Entry]) -> bool:
    try:
        record: object = msgpack.unpackb(payload)
    except (ValueError, msgpack.exceptions.UnpackException):
        return False
    match record:
        case [0, str() as host, [*flights]]:
            for flight in flights:
                match flight:
                    case [int() as recipient, int() as epoch]:
                        entries[recipient, epoch] = Entry(recipient, epoch, host)
                    case _:
                        return False
            return True
        case [1, [*results]]:
            for result in results:
                match result:
                    case [int() as recipient, int() as epoch, int() as kind, str() as text] if kind in _KINDS:
                        begun = entries.get((recipient, epoch))
                        host = begun.host if begun is not None else ""
                        entries[recipient, epoch] = Entry(recipient, epoch, host, _KINDS[kind], text)
                    case _:
                        return False
            return True
        case _:
            return False


def _read_fd(fd: int) -> JournalContents:
    try:
        if os.fstat(fd).st_size > MAX_FILE_OCTETS:
            return JournalContents(is_damaged=True)
        chunks: list[bytes] = []
        offset = 0
        while offset <= MAX_FILE_OCTETS and (chunk := os.pread(fd, 1 << 20, offset)):
            chunks.append(chunk)
            offset += len(chunk)
    except OSError:
        return JournalContents(is_damaged=True)
    return read_untrusted(b"".join(chunks))


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
