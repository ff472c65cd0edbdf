"""Put a job into the queue: all of its recipients, or none.

Layer: orchestration.  Spec: issue "First mail out", "Queue" and "Bad input".
Recipients are read, checked and stored as a stream, a batch a commit, so memory does not depend on how many there are.
A job is not delivered from before it is whole; a row that cannot be used ends the loading and nothing stays queued,
unless bad rows are to be skipped: then each is handed to `on_bad` with its reason.
Invariant: when `load` raises, the queue is as it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from ..compose import BadRow, message_id
from ..errors import DataError, StoreError
from ..queue.model import JobState, NewRecipient
from .jobs import JobOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    from ..compose import Composer, Recipient
    from ..queue.model import Job, NewJob
    from ..queue.store import Store
    from .progress import Progress

#: recipients in one commit
BATCH: Final = 5000
#: jobs looked at in one step when an earlier one is searched
_PAGE: Final = 500
_HASH_OCTETS: Final = 1 << 20


class LoadingStopped(StoreError):
    """Somebody asked to stop while a job was being loaded.  Nothing of it is queued; start again."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of the recipients of a job."""

    job: Job
    accepted: int
    duplicates: int
    skipped: int


def load(
    store: Store,
    owner: int,
    job: NewJob,
    composer: Composer,
    rows: Iterable[Recipient | BadRow],
    *,
    now: Callable[[], float],
    on_bad: Callable[[BadRow], None] | None = None,
    progress: Progress | None = None,
    is_only: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Loaded:
    """Queue a job with its recipients.  Blocks; call it in a thread.

    Args:
        is_only: refuse if another process has meanwhile begun to queue the same (see `fingerprint`).
        is_stopped: asked before each batch; once it says yes, nothing stays queued.
        composer: of this job; a row that lacks a column is a bad row, and so is one that cannot be composed as long
            as none could be: an error of the template itself is found with the first row.
        on_bad: takes the rows that are left out; None: the first bad row is an error.
        progress: counts what was loaded.

    Raises:
        DataError: a row cannot be used, or there is no recipient at all; nothing is queued.
        StoreError: the queue cannot take it; nothing is queued.
        LoadingStopped: `is_stopped` said so.
    """
    job_id = store.add_job(owner, job, now())
    try:
        if is_only:
            _refuse_second(store, JobOptions.from_mapping(job.options).fingerprint, job_id)
        accepted = duplicates = skipped = 0
        check = _Check(composer, job.is_template)

        def good_rows() -> Iterator[NewRecipient]:
            nonlocal skipped
            for row in rows:
                bad = row if isinstance(row, BadRow) else None
                if bad is None and not isinstance(row, BadRow):
                    reason = check.reason(row)
                    if not reason:
                        yield NewRecipient(row.address, row.merge)
                        continue
                    bad = BadRow(row.line, reason, row.address)
                assert bad is not None
                if on_bad is None:
                    raise DataError(f"{bad.reason}: {bad.text}" if bad.text else bad.reason, line=bad.line or None)
                on_bad(bad)
                skipped += 1

        source = good_rows()
        while batch := list(islice(source, BATCH)):
            if is_stopped():
                raise LoadingStopped("stopped while the list was being queued: nothing is queued")
            added = store.add_recipients(job_id, batch)
            accepted += added.accepted
            duplicates += added.duplicates
            if progress is not None:
                progress.loaded = accepted
        if not accepted:
            raise DataError("there is no recipient to send to")
    except BaseException:
        store.abandon_loading(job_id)
        raise
    return Loaded(store.finish_loading(job_id, now()), accepted, duplicates, skipped)


class _Check:
    """Says why a row is of no use for the message of its job."""

    def __init__(self, composer: Composer, is_template: bool) -> None:
        self._composer = composer
        self._is_template = is_template
        self._is_proven = False

    def reason(self, row: Recipient) -> str:
        """Why `row` cannot be used; "" if it can."""
        if not self._is_template:
            return ""
        merge = row.merge or {}
        try:
            self._composer.check(merge.keys())
            if not self._is_proven:
                self._composer.compose(row.address, merge, message_id(0.0, b"", 0, 0), 0.0)
                self._is_proven = True
        except DataError as error:
            return str(error)
        return ""


def fingerprint(*parts: str | bytes, recipients: BinaryIO) -> bytes:
    """What is the same for two sends only if they send the same to the same.

    Args:
        parts: sender, message and whatever else makes a job.
        recipients: is read to its end and put back to its start.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        octets = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(octets).to_bytes(8))
        digest.update(octets)
    while block := recipients.read(_HASH_OCTETS):
        digest.update(block)
    recipients.seek(0)
    return digest.digest()


def find_same(store: Store, wanted: bytes) -> Job | None:
    """The newest job with this fingerprint that is whole and was not cancelled, or None."""
    return max((job for job in _same(store, wanted) if not job.is_loading), key=lambda job: job.id, default=None)


def _refuse_second(store: Store, wanted: bytes, job_id: int) -> None:
    """Of two processes that queue the same at once the first goes on; both have their job in the queue by now."""
    for job in _same(store, wanted):
        if job.id < job_id:
            raise StoreError(f"the same is being queued by another process, as job {job.id}; start again to join it")


def _same(store: Store, wanted: bytes) -> Iterator[Job]:
    after = 0
    while page := store.jobs(_PAGE, after):
        for job in page:
            if job.state is not JobState.CANCELLED and JobOptions.from_mapping(job.options).fingerprint == wanted:
                yield job
        after = page[-1].id
