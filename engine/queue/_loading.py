"""Loading a job into the SQLite queue: recipients in a stream, duplicates dropped, memory flat.

Layer: adapter (SQLite).
Duplicates are found in a temporary table of 64-bit hashes, which is neither synced nor logged and spills to disk when
it is large; a hash that is there already is compared by its address, so nothing is dropped by chance.  A temporary
table is not rolled back: hashes go in when their recipients are committed, which is why loading is not part of a group.
Invariants: nothing of a job can be claimed before `finish_loading`, unless it was added with `start_early`; numbers
count the accepted recipients of a job from 1 in the order in which they came.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgpack

from ..errors import DataError, StoreError
from ._database import Database
from ._rows import JOB_COLUMNS, job_from_row
from ._schema import NEVER, TO_BE_REMOVED
from .model import MAX_MERGE_OCTETS, MAX_NUMBER, Added, JobState, NewJob, NewRecipient, recipient_id
from .store import NoSuchJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .model import Job

#: recipients in one commit when the caller hands over a longer stream
CHUNK: Final = 5000
#: rows that one commit of a removal takes away
REMOVE_CHUNK: Final = 20_000
_MIN_HASH: Final = -(1 << 63)
_MAX_HASH: Final = (1 << 63) - 1


def normalised(address: str) -> str:
    """An address as the queue compares it: domain in lower case, local part as it is (RFC 5321 §2.4)."""
    local_part, at, domain = address.rpartition("@")
    return f"{local_part}{at}{domain.lower()}"


@dataclass(slots=True)
class _Load:
    """A job that this store is loading."""

    table: str
    #: recipients of an earlier loading that have not come again
    missed: int = 0
    #: why nothing can be added any more; "" if it can
    broken: str = ""


class Loading(Database):
    """The loading half of the store."""

    _loads: dict[int, _Load]

    def add_job(self, owner: int, job: NewJob, now: float) -> int:
        self._not_in_group("add_job")
        try:
            options: bytes = msgpack.packb(dict(job.options))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the options of the job cannot be stored: {error}") from None
        _check_storable((job.name, job.sender))
        with self._writing():
            cursor = self._db.execute(
                "INSERT INTO jobs (name, sender, state, loader, start_early, is_template, personalised, created_at,"
                " start_at, expires_at, options, serve_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.name,
                    job.sender,
                    int(JobState.ACTIVE),
                    owner,
                    job.start_early,
                    job.is_template,
                    job.personalised,
                    now,
                    job.start_at,
                    job.expires_at,
                    options,
                    NEVER,
                ),
            )
            job_id = cursor.lastrowid
            assert job_id is not None
            self._db.execute("INSERT INTO bodies VALUES (?, ?)", (job_id, job.body))
        self._begin_load(job_id)
        return job_id

    def _begin_load(self, job_id: int) -> _Load:
        load = self._loads[job_id] = _Load(f"temp.seen_{job_id}")
        with self._errors():
            self._db.execute(f"CREATE TABLE {load.table} (hash INTEGER PRIMARY KEY, id INTEGER NOT NULL)")
        return load

    def resume_loading(self, owner: int, job_id: int) -> None:
        self._not_in_group("resume_loading")
        with self._writing():
            row = self._db.execute(
                "UPDATE jobs SET loader = ?, state = ?, cut_off = 0, start_early = 1, completed_at = NULL,"
                " duplicates = 0 WHERE id = ? AND cut_off AND state <> 3 RETURNING last_number",
                (owner, int(JobState.ACTIVE), job_id),
            ).fetchone()
        if row is None:
            raise NoSuchJob(f"job {job_id} is none whose loading was cut off")
        load = self._begin_load(job_id)
        load.missed = row[0]
        first, last = recipient_id(job_id, 1), recipient_id(job_id, row[0])
        while first <= last:
            with self._errors():
                known = self._db.execute(
                    "SELECT id, address FROM recipients WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                    (first, last, CHUNK),
                ).fetchall()
            hashes, _ = self._find_duplicates(load, [address for _, address in known], first)
            self._remember(load, hashes)
            first += CHUNK

    def add_recipients(self, job_id: int, recipients: Iterable[NewRecipient]) -> Added:
        self._not_in_group("add_recipients")
        load = self._load(job_id)
        accepted = duplicates = 0
        stream = iter(recipients)
        while batch := list(itertools.islice(stream, CHUNK)):
            added = self._add_batch(job_id, load, batch)
            accepted += added.accepted
            duplicates += added.duplicates
        return Added(accepted, duplicates)

    def _add_batch(self, job_id: int, load: _Load, batch: Sequence[NewRecipient]) -> Added:
        if load.broken:
            raise StoreError(load.broken)
        addresses = [normalised(recipient.address) for recipient in batch]
        _check_storable(addresses)
        with self._writing():
            row = self._db.execute("SELECT last_number FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise NoSuchJob(f"job {job_id} was removed while it was loaded")
            if row[0] + len(batch) > MAX_NUMBER:
                raise DataError(f"a job holds at most {MAX_NUMBER} recipients")
            first = recipient_id(job_id, row[0] + 1)
            hashes, duplicates = self._find_duplicates(load, addresses, first)
            if duplicates:
                fresh = [
                    pair for number, pair in enumerate(zip(addresses, batch, strict=True)) if number not in duplicates
                ]
                addresses = [address for address, _ in fresh]
                batch = [recipient for _, recipient in fresh]
            self._db.executemany(
                f"INSERT INTO recipients (id, job, address) VALUES (?, {job_id:d}, ?)",
                zip(range(first, first + len(addresses)), addresses, strict=True),
            )
            merges = [
                (first + number, _packed_merge(recipient)) for number, recipient in enumerate(batch) if recipient.merge
            ]
            if merges:
                self._db.executemany("INSERT INTO merges VALUES (?, ?)", merges)
            again = min(load.missed, len(duplicates))
            dropped = len(duplicates) - again
            changed = self._db.execute(
                "UPDATE jobs SET last_number = ?, total = total + ?, waiting = waiting + ?,"
                " duplicates = duplicates + ?, has_merge = has_merge OR ?,"
                " serve_at = CASE WHEN start_early AND ? THEN min(serve_at, start_at) ELSE serve_at END"
                " WHERE id = ? AND loader IS NOT NULL AND state <> 3",
                (
                    row[0] + len(batch),
                    len(batch),
                    len(batch),
                    dropped,
                    bool(merges),
                    bool(batch),
                    job_id,
                ),
            ).rowcount
            if not changed:
                raise NoSuchJob(f"job {job_id} was cancelled while it was loaded")
        load.missed -= again
        self._remember(load, hashes)
        return Added(len(batch), dropped)

    def _remember(self, load: _Load, hashes: list[tuple[int, int]]) -> None:
        """Note the hashes of recipients that are committed; in their order, which touches each page once."""
        hashes.sort()
        load.broken = "the list of addresses that were seen could not be kept: abandon this job"
        with self._errors():
            self._db.execute("BEGIN")
            try:
                self._db.executemany(f"INSERT INTO {load.table} VALUES (?, ?)", hashes)
            finally:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")
        load.broken = ""

    def _find_duplicates(self, load: _Load, addresses: list[str], first: int) -> tuple[list[tuple[int, int]], set[int]]:
        """The hashes of the new ones with the ids that they get, and the positions of those that the job has."""
        hashes = [hash(address) for address in addresses]
        known = dict(
            self._db.execute(
                f"SELECT hash, id FROM {load.table} WHERE hash IN (SELECT value FROM json_each(?))",
                (json.dumps(hashes),),
            ).fetchall()
        )
        if not known and len(set(hashes)) == len(hashes):
            return list(zip(hashes, itertools.count(first), strict=False)), set()
        duplicates: set[int] = set()
        fresh: list[str] = []
        added: list[tuple[int, int]] = []
        for position, (address, key) in enumerate(zip(addresses, hashes, strict=True)):
            while (seen := known.get(key)) is not None:
                if (fresh[seen - first] if seen >= first else self._address(seen)) == address:
                    duplicates.add(position)
                    break
                # another address with the same hash: take the next free one
                key = key + 1 if key < _MAX_HASH else _MIN_HASH
                if key not in known:
                    row = self._db.execute(f"SELECT id FROM {load.table} WHERE hash = ?", (key,)).fetchone()
                    if row is not None:
                        known[key] = row[0]
            else:
                known[key] = first + len(fresh)
                added.append((key, first + len(fresh)))
                fresh.append(address)
        return added, duplicates

    def _address(self, recipient: int) -> str:
        row = self._db.execute("SELECT address FROM recipients WHERE id = ?", (recipient,)).fetchone()
        return "" if row is None else str(row[0])

    def finish_loading(self, job_id: int, now: float) -> Job:
        self._not_in_group("finish_loading")
        self._load(job_id)
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET loader = NULL, serve_at = CASE WHEN waiting > 0 THEN min(serve_at, start_at) ELSE"
                " serve_at END WHERE id = ?",
                (job_id,),
            )
            self._complete_jobs([job_id], now)
            row = self._db.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise NoSuchJob(f"job {job_id} was removed while it was loaded")
        self._forget_load(job_id)
        return job_from_row(row)

    def is_growing(self, job_id: int | None = None) -> bool:
        with self._errors():
            row = self._db.execute(
                "SELECT 1 FROM jobs WHERE loader > 0 AND start_early AND state <> 3 AND (:job IS NULL OR id = :job)"
                " LIMIT 1",
                {"job": job_id},
            ).fetchone()
        return row is not None

    def abandon_loading(self, job_id: int) -> None:
        self._not_in_group("abandon_loading")
        self._load(job_id)
        with self._writing():
            state = self._end_cut_off_load(job_id, None)
        self._forget_load(job_id)
        if state is None:
            self._remove_job(job_id)

    def _end_cut_off_load(self, job_id: int, now: float | None) -> JobState | None:
        """End a loading that did not finish; the state of the job where part of it may have been sent, else None.

        Args:
            now: None where it is not known: then a job that is over ended when it was made.
        """
        row = self._db.execute(
            "SELECT start_early AND total > 0, state, created_at FROM jobs WHERE id = ?", (job_id,)
        ).fetchone()
        if row is None:
            return None
        is_kept, old_state, created_at = row
        state = JobState.HELD if is_kept and old_state != JobState.CANCELLED else JobState.CANCELLED
        loader = None if is_kept else TO_BE_REMOVED
        self._db.execute(
            "UPDATE jobs SET loader = ?, state = ?, cut_off = ? WHERE id = ?", (loader, int(state), is_kept, job_id)
        )
        if not is_kept:
            return None
        self._complete_jobs([job_id], created_at if now is None else now)
        return state

    def _load(self, job_id: int) -> _Load:
        try:
            return self._loads[job_id]
        except KeyError:
            raise NoSuchJob(f"job {job_id} is not being loaded here") from None

    def _forget_load(self, job_id: int) -> None:
        load = self._loads.pop(job_id)
        with self._errors():
            self._db.execute(f"DROP TABLE IF EXISTS {load.table}")

    def _complete_jobs(self, job_ids: Iterable[int], now: float) -> list[int]:
        """Mark those of the jobs whose last recipient is settled; which."""
        completed: list[int] = []
        for job_id in job_ids:
            changed = self._db.execute(
                "UPDATE jobs SET state = CASE WHEN state = 3 THEN 3 ELSE 2 END, completed_at = ? WHERE id = ?"
                " AND waiting + deferred + leased + held = 0 AND loader IS NULL AND completed_at IS NULL",
                (now, job_id),
            ).rowcount
            if changed:
                completed.append(job_id)
        return completed

    def _remove_job(self, job_id: int) -> None:
        """Remove all of a job that nothing can claim any more, in commits of a bounded size."""
        first, last = recipient_id(job_id, 0), recipient_id(job_id, MAX_NUMBER)
        for table in ("merges", "recipients"):
            removed = 1
            while removed:
                with self._writing():
                    removed = self._db.execute(
                        f"DELETE FROM {table} WHERE id IN"
                        f" (SELECT id FROM {table} WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?)",
                        (first, last, REMOVE_CHUNK),
                    ).rowcount
        with self._writing():
            self._db.execute("DELETE FROM bodies WHERE job = ?", (job_id,))
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))


def _check_storable(texts: Sequence[str]) -> None:
    try:
        "\n".join(texts).encode()
    except UnicodeEncodeError:
        bad = next(text for text in texts if any("\ud800" <= char <= "\udfff" for char in text))
        raise DataError(f"{bad!r} is not valid text") from None


def _packed_merge(recipient: NewRecipient) -> bytes:
    try:
        packed: bytes = msgpack.packb(dict(recipient.merge or {}))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the merge data of {recipient.address} cannot be stored: {error}") from None
    if len(packed) > MAX_MERGE_OCTETS:
        raise DataError(f"the merge data of {recipient.address} is over {MAX_MERGE_OCTETS} octets")
    return packed
