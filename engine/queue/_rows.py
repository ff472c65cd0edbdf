"""Rows of the SQLite queue as values of the model.

Layer: adapter (SQLite).
Invariant: the column lists here and the functions beside them agree.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import msgpack

from .model import Job, JobCounts, JobState, RecipientView, RetryRecord, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

JOB_COLUMNS: Final = (
    "id, name, sender, state, loader IS NOT NULL, cut_off, is_template, personalised, created_at, start_at, expires_at,"
    " completed_at, options, total, duplicates, waiting, deferred, leased, held, delivered, failed, cancelled"
)
COUNT_COLUMNS: Final = "total, duplicates, waiting, deferred, leased, held, delivered, failed, cancelled"
#: the status of recipient r in job j; the order decides
STATUS: Final = (
    "CASE WHEN r.state = 2 THEN 'delivered' WHEN r.state = 3 THEN 'failed' WHEN r.state = 1 THEN 'in-flight'"
    " WHEN r.state = 4 OR j.state = 3 THEN 'cancelled' WHEN r.state = 5 OR j.state = 1 THEN 'held'"
    " WHEN r.attempts = 0 THEN 'waiting' ELSE 'deferred' END"
)
VIEW_COLUMNS: Final = f"r.id, r.address, {STATUS}, r.attempts, r.next_at, r.in_doubt, r.last_at, r.errno, r.text"
RETRY_COLUMNS: Final = "key, first_failed_at, last_try_at, next_try_at, errno, more_errno, text, expired"

#: a row as sqlite3 gives it: its types are those of the schema
Row = tuple[Any, ...]


def pack_members(ids: Iterable[int]) -> bytes:
    """Recipient ids of a lease as msgpack: the least, then differences, so that most take an octet and not nine."""
    ordered = sorted(ids)
    packed: bytes = msgpack.packb([after - before for before, after in itertools.pairwise([0, *ordered])])
    return packed


def unpack_members(packed: bytes) -> list[int]:
    """The ids, in order."""
    return list(itertools.accumulate(msgpack.unpackb(packed)))


def job_from_row(row: Row) -> Job:
    """A job from JOB_COLUMNS."""
    return Job(
        id=row[0],
        name=row[1],
        sender=row[2],
        state=JobState(row[3]),
        is_loading=bool(row[4]),
        is_cut_off=bool(row[5]),
        is_template=bool(row[6]),
        personalised=bool(row[7]),
        created_at=row[8],
        start_at=row[9],
        expires_at=row[10],
        completed_at=row[11],
        options=msgpack.unpackb(row[12]),
        counts=JobCounts(*row[13:]),
    )


def view_from_row(row: Row) -> RecipientView:
    """A recipient from VIEW_COLUMNS."""
    return RecipientView(
        recipient_id=row[0],
        address=row[1],
        status=Status(row[2]),
        attempts=row[3],
        next_attempt_at=row[4],
        in_doubt=bool(row[5]),
        last_attempt_at=row[6],
        errno=row[7] or 0,
        text=row[8] or "",
    )


def retry_from_row(row: Row) -> RetryRecord:
    """A retry record from RETRY_COLUMNS."""
    return RetryRecord(row[0], row[1], row[2], row[3], row[4], row[5], row[6], bool(row[7]))
