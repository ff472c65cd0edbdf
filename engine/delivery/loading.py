"""Put a job into the queue: all of its recipients, or none.

Layer: orchestration.  Spec: issue "First mail out", "Queue" and "Bad input".
Recipients are read, checked and stored as a stream, a batch a commit, so memory does not depend on how many there are.
A job is not delivered from before it is whole; a row that cannot be used ends the loading and nothing stays queued,
unless bad rows are to be skipped: then each is handed to `on_bad` with its reason.
With `NewJob.start_early` it is delivered from while it is loaded.  A loading that is cut off then leaves the job held,
and the same loading once more goes on with it: recipients that it has already are dropped.
Invariant: when `load` raises, the queue is as it was; but see above.
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
    """Somebody asked to stop while a job was being loaded, and none of it was sent meanwhile; start again."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of the recipients of a job."""

    job: Job
    accepted: int
    duplicates: int
    skipped: int


class Loader:
    """Queues one job, a batch a call of `step`; every method blocks: call them in the queue's thread.

    Args:
        composer: of this job; a row that lacks a column is a bad row, and so is one that cannot be composed as long
            as none could be: an error of the template itself is found with the first row.
        on_bad: takes the rows that are left out; None: the first bad row is an error.
        progress: counts what was loaded.
        is_only: refuse if another process has meanwhile begun to queue the same (see `fingerprint`).
        resumed: a job whose loading was cut off, to be gone on with; `rows` are the same, from the first one.

    Attributes:
        job_id: once `begin` was called.
    """

    def __init__(
        self,
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
        resumed: Job | None = None,
    ) -> None:
        self._store = store
        self._owner = owner
        self._job = job
        self._now = now
        self._on_bad = on_bad
        self._progress = progress
        self._is_only = is_only
        self._resumed = resumed
        self._check = _Check(composer, job.is_template)
        self._source = self._good_rows(rows)
        #: read, and not in the queue yet
        self._batch: list[NewRecipient] = []
        self._accepted = 0 if resumed is None else resumed.counts.total
        self._duplicates = 0
        self._skipped = 0
        self.job_id = 0

    def begin(self) -> None:
        """Make the job, or take up that of before.  Raises StoreError."""
        if self._resumed is not None:
            self.job_id = self._resumed.id
            self._store.resume_loading(self._owner, self.job_id)
            return
        self.job_id = self._store.add_job(self._owner, self._job, self._now())
        if self._is_only:
            try:
                _refuse_second(self._store, JobOptions.from_mapping(self._job.options).fingerprint, self.job_id)
            except BaseException:
                self.abandon()
                raise

    def step(self, size: int = BATCH) -> bool:
        """Read and commit up to `size` recipients; False once there are no more.

        After a StoreError it may be called again: nothing that was read is lost.

        Raises:
            DataError: a row cannot be used.
            StoreError: the queue cannot take the batch.
        """
        if not self._batch:
            self._batch = list(islice(self._source, size))
        if not self._batch:
            return False
        added = self._store.add_recipients(self.job_id, self._batch)
        self._batch = []
        self._accepted += added.accepted
        self._duplicates += added.duplicates
        if self._progress is not None:
            self._progress.loaded = self._accepted
        return True

    def finish(self) -> Loaded:
        """The job is whole.  Raises DataError if nobody is in it."""
        if not self._accepted:
            raise DataError("there is no recipient to send to")
        job = self._store.finish_loading(self.job_id, self._now())
        return Loaded(job, self._accepted, self._duplicates, self._skipped)

    @property
    def what_stays(self) -> str:
        """What `abandon` leaves of the job, for people."""
        if self._resumed is None and not (self._job.start_early and self._accepted):
            return "nothing is queued"
        return (
            f"{self._accepted:,} recipients are in the queue; job {self.job_id} is held, and the same command goes on"
            " with it"
        )

    def abandon(self) -> None:
        """Take the job out of the queue again, or hold it if part of it may have been sent."""
        self._store.abandon_loading(self.job_id)

    def _good_rows(self, rows: Iterable[Recipient | BadRow]) -> Iterator[NewRecipient]:
        for row in rows:
            bad = row if isinstance(row, BadRow) else None
            if bad is None and not isinstance(row, BadRow):
                reason = self._check.reason(row)
                if not reason:
                    yield NewRecipient(row.address, row.merge)
                    continue
                bad = BadRow(row.line, reason, row.address)
            assert bad is not None
            if self._on_bad is None:
                raise DataError(f"{bad.reason}: {bad.text}" if bad.text else bad.reason, line=bad.line or None)
            self._on_bad(bad)
            self._skipped += 1


def load(loader: Loader, *, is_stopped: Callable[[], bool] = lambda: False) -> Loaded:
    """Queue a job with all of its recipients, or nothing.  Blocks.

    Args:
        is_stopped: asked before each batch; once it says yes, nothing stays queued.

    Raises:
        DataError: a row cannot be used, or there is no recipient at all; nothing is queued.
        StoreError: the queue cannot take it; nothing is queued.
        LoadingStopped: `is_stopped` said so.
    """
    loader.begin()
    try:
        while loader.step():
            if is_stopped():
                raise LoadingStopped(f"stopped while the list was being queued: {loader.what_stays}")
        return loader.finish()
    except BaseException:
        loader.abandon()
        raise


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
    """The newest job with this fingerprint that nobody is loading and that was not cancelled, or None.

    Its loading may have been cut off (`Job.is_cut_off`).
    """
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
