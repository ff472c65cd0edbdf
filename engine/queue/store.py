"""The store: who owns a recipient, for how long, and what a crash leaves behind.

Layer: adapter (the protocol; no SQL, no files).  Spec: design.md "Queue", bulk-sending sections 4 and 5,
events-dane section 11.

**Facts.**  Mail cannot be taken back, and SMTP cannot be asked afterwards: when the final octet of a message has left
and its reply has not come, nobody can know whether it was delivered (RFC 1047).  A commit that is on disk costs about
a millisecond whether it holds one outcome or a thousand.  Engines are killed, hang, and wake up again.

**What this means.**  At least once is what can be promised; exactly once holds wherever the reply was seen.  The number
of messages that may be sent twice is the number that were in flight, and we can name each of them.  Outcomes are worth
collecting.  An engine that slept must not be able to overwrite what was decided without it.

**Ownership.**  A job belongs to the engine that loads it until `finish_loading`; then to nobody.  A recipient belongs
to nobody until an engine claims it.  A claim is a *lease*: it has an owner (an engine, by the number that `register`
gave it), an *epoch* and an end.  Claims are made in batches; each batch is one epoch, and epochs are never used twice.
The owner alone may settle, and only while the recipient still carries the epoch of its claim (*fencing*): a settlement
that comes too late changes nothing and is returned as lost.  Whoever has a claim must not let a final octet out after
`Claim.lease_until`, and looks at the clock for that *after* the journal's `begin` (before it, another engine could
read the journal in between and hold the recipient for untouched); `extend` moves the end.  A lease whose end has
passed and that nobody took over can still be settled.

**Group commit.**  `settle` takes outcomes, the events that tell of them and the changes of retry records in one commit.
`group` joins several calls into one.  When a call returns, what it did survives the loss of power.  When it raises, it
did nothing, and can be repeated.

**The journal.**  Between the final octet and the commit there is a gap, and the in-flight journal fills it
(`journal.Journal`, one an engine): the engine calls `begin` before the final octet of a message may leave, `finish`
when the reply is known, and `forget` after the settlement is committed.  Calls of `settle` do the last by themselves.

**What a crash leaves.**  `recover`, called after opening and then now and again, finds engines that are gone (their
journal's lock can be taken; no clock is asked) and settles what they left: a reply in the journal is settled as if the
engine had lived; a begin without a reply is *in doubt*: tried again after a delay with the same Message-ID, marked,
reported to be logged, and told of by a `msg:indoubt` event; everything else is given back, or ends where its job was
cancelled meanwhile.  After a power loss (another boot id), and when the journal is gone or damaged, it proves nothing
and every lease of that engine is in doubt.  A lease that ran out under a living engine is treated the same way, from
the journal as it stands.  A job whose loader died is removed, never sent; with `NewJob.start_early` it is held instead.

**Turns.**  Jobs that are due take turns: one claim takes an equal share of each, and a job that was served goes behind
those that wait.  Inside a job what is due longest comes first.

**Events.**  What `settle` and `recover` store stays in the outbox until it is acknowledged: it is run at least once, in
order.  Each event counts how often it was *redelivered*: handed on again although it may have run before.  That is on
disk before the event is handed on again, so no two runs are given the same count, whoever dies; the sum of all that
was ever counted is in `outbox_report`.  What cannot be run for good becomes a *dead letter*, one for each handler that
gave up, in the commit that takes the event out; a person looks at it, and puts it back or drops it.

**Limits.**  What a host takes from us it takes from all engines together, so they ask each other through the store:
`share` for leave to have connections, `reserve` for the times at which something may be done.  An engine takes part
from `join_sharing` until `retire`, or until it is recovered after its death.  One that is told that it is alone need
ask nothing while `has_other_sharers` is false; when that changes it says what it has (`begin_sharing`), and the others
open nothing before it did.

**What we do not do.**  There is no total order of recipients; no delivery to many machines from one file (the locks are
those of one kernel; PostgreSQL will fill this same protocol); no wait inside a call but the bounded one for another
process's transaction.  Every call is synchronous and is made from one thread at a time; the caller gives it one.

**Errors.**  `StoreError` and the subclasses below; whatever is raised, the store is as before the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from ..values import Rate
    from .journal import Journal
    from .limits import Want
    from .model import (
        Added,
        Changed,
        Claim,
        DeadLetter,
        Explanation,
        Filter,
        Job,
        JobCounts,
        NewJob,
        NewRecipient,
        OutboxEvent,
        OutboxReport,
        Outcome,
        RecipientView,
        Recovered,
        Recovery,
        RetryRecord,
        SettleResult,
    )

#: seconds before a recipient in doubt is tried again; arbitrary, time for the other side to settle its own trouble
DEFAULT_IN_DOUBT_DELAY_S: Final = 300.0


class QueueLocked(StoreError):
    """Another process held the queue for too long.  Nothing was done; repeat it later."""


class QueueFull(StoreError):
    """The disk is full.  Nothing was done; keep the outcomes and settle them when there is room."""


class QueueCorrupt(StoreError):
    """The queue file is damaged.  Stop, and restore it; whatever was sent since is in the main log."""


class QueueReadOnly(StoreError):
    """The queue cannot be read or written with the rights that we have."""


class NotAQueue(StoreError):
    """The file is something else, or a queue of another version.  It was not touched."""


class NoSuchJob(StoreError):
    """There is no job of that number, or it is not being loaded by this engine."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A registered engine: its number (the owner of its leases) and its journal."""

    owner: int
    journal: Journal


#: makes the events to be committed with something that was recovered
Describe = Callable[["Recovered"], Iterable["OutboxEvent"]]
#: is told of recipients that are about to be settled by a recovery
Witness = Callable[["Sequence[Recovered]"], None]
#: is told of recipients that are about to be cancelled, and makes the events to be committed with that
Tell = Callable[["Sequence[Recovered]"], Iterable["OutboxEvent"]]


class Store(Protocol):
    """A durable queue; the module's text says what it promises.  Every method raises `StoreError`."""

    def close(self) -> None:
        """Close it; leases and the registration stay as they are (see `retire`)."""

    def group(self) -> AbstractContextManager[None]:
        """One commit for all calls inside; what they returned holds once the block ended well."""

    # engines

    def register(self, now: float) -> Engine:
        """Become an engine that can claim; makes its journal."""

    def recover(
        self,
        owner: int,
        now: float,
        *,
        in_doubt_delay_s: float = DEFAULT_IN_DOUBT_DELAY_S,
        describe: Describe | None = None,
        witness: Witness | None = None,
    ) -> Recovery:
        """Clear up after dead engines and leases that ran out; not inside `group`.

        Args:
            owner: who does it; it inherits the events that the dead left in the outbox, as redelivered.
            describe: makes the events of each recovered recipient; none by default.
            witness: is told what a commit is about to settle, just before it: what it writes down is known even if
                this engine dies right after the commit.  After a commit that failed it is told the same again.

        Raises:
            StoreError: the queue was removed or replaced while it was in use, so nobody else sees what is done to it.
        """

    def retire(self, engine: Engine, now: float, *, in_doubt_delay_s: float = DEFAULT_IN_DOUBT_DELAY_S) -> Recovery:
        """Stop being an engine: leases are given back (in doubt where the journal says so), the journal goes."""

    # loading; none of it is part of a group

    def add_job(self, owner: int, job: NewJob, now: float) -> int:
        """Begin to load a job; gives its number."""

    def add_recipients(self, job_id: int, recipients: Iterable[NewRecipient]) -> Added:
        """Add a batch in one commit; a stream of any length goes in commits of some thousands.

        What was committed before an error stays in the job: abandon it, or go on behind it.  Raises DataError for an
        address or merge data that cannot be stored.
        An address that the job has already is dropped and counted; the domain is compared, and stored, in lower case,
        the local part as it is.
        """

    def finish_loading(self, job_id: int, now: float) -> Job:
        """The job is whole and may be claimed from; one without recipients is complete at once."""

    def abandon_loading(self, job_id: int) -> None:
        """Remove a job that is still being loaded; with `start_early` it is held instead, as part may have gone."""

    def is_growing(self, job_id: int | None = None) -> bool:
        """Whether this job, or any, is being loaded and may be claimed from already (`NewJob.start_early`)."""

    def resume_loading(self, owner: int, job_id: int) -> None:
        """Go on loading a job whose loading was cut off: add the same recipients, from the first one.

        Those that the job has are dropped and not counted; the job is active.  Raises NoSuchJob for any other job.
        """

    # delivering

    def job_or_none(self, job_id: int) -> Job | None:
        """The job as it stands."""

    def body(self, job_id: int) -> bytes:
        """The message or template source of a job.  Raises NoSuchJob."""

    def claim(self, owner: int, limit: int, now: float, lease_s: float, job_id: int | None = None) -> list[Claim]:
        """Lease up to `limit` recipients that are due, of one job or of all in turns; empty when none is.

        Jobs that are held, still being loaded (but see `NewJob.start_early`) or expired give none.
        """

    def claim_expired(
        self, owner: int, limit: int, now: float, lease_s: float, job_id: int | None = None
    ) -> list[Claim]:
        """Lease unsettled recipients of jobs past `expires_at`, due or not, held or not: settle them as failed.

        An engine asks this now and again, and whenever `next_expiry_at` has come: `claim` gives nothing of such a job.
        """

    def settle(
        self,
        owner: int,
        outcomes: Sequence[Outcome],
        now: float,
        *,
        events: Sequence[OutboxEvent] = (),
        retry_updates: Sequence[RetryRecord] = (),
        retry_deletes: Sequence[str] = (),
    ) -> SettleResult:
        """Settle a batch, store its events, change retry records: all in one commit.

        Events are stored as given even where an outcome turns out lost; their `id` and `stored_at` are filled in.  A
        deferral or release in a cancelled job ends as cancelled.
        """

    def extend(self, owner: int, epochs: Iterable[int], until: float) -> tuple[int, ...]:
        """Move the end of whole leases; gives the epochs that are lost (all settled, or taken over)."""

    def next_due_at(self, job_id: int | None = None) -> float | None:
        """When the next recipient is (or was) due that nobody has, of one job or of all; None for never.

        It may be earlier than it has to be, until the next `claim`; recipients of expired jobs count.
        """

    def next_expiry_at(self) -> float | None:
        """When the next job with something unsettled expires."""

    def counts(self, job_id: int) -> JobCounts:
        """Where the recipients of a job stand; costs one row.  Raises NoSuchJob."""

    # limits

    def join_sharing(self, owner: int, now: float, *, may_be_alone: bool) -> dict[str, float] | None:
        """Take part; None if there are others, or for one that may not be alone.

        Returns:
            For an engine that is alone now: when the next token of each rate is good, as others have left them.
        """

    def has_other_sharers(self, owner: int) -> bool:
        """Whether others take part."""

    def has_lone_sharer(self, owner: int) -> bool:
        """Whether another engine was told that it is alone and has not said yet what it has."""

    def begin_sharing(self, owner: int, wants: Mapping[str, Want], rates: Mapping[str, float], now: float) -> None:
        """An engine that was alone says what it has open, and when the next token of each of its rates is good."""

    def wanted_by_others(self, owner: int) -> frozenset[str]:
        """The places where others want more than they hold."""

    def share(self, owner: int, wants: Mapping[str, Want], now: float) -> dict[str, int]:
        """Say what is open and wanted at some places; how many connections may be open at each from now on.

        It may be fewer than are open: others have a right to the rest, and get it when they are closed and said to be.
        Until the call returns the engine may open none at these places, and none at all when its last call is
        `limits.LOST_S` seconds past: others do not count it any more then.
        """

    def reserve(self, asks: Mapping[str, tuple[Rate, int]], now: float) -> dict[str, float]:
        """Take some tokens of each rate; when the first of them is good, the others following at its interval."""

    # retry records

    def retry_records(self, keys: Sequence[str]) -> dict[str, RetryRecord]:
        """The records that exist among `keys`."""

    def all_retry_records(self, limit: int, after: str = "") -> list[RetryRecord]:
        """Records in the order of their keys, from behind `after`."""

    def drop_retry_records(self, last_tried_before: float) -> int:
        """Forget records whose last try is older (retry_data_expire, RT-8); how many."""

    # outbox

    def drain_outbox(self, owner: int, limit: int, after: int = 0) -> list[OutboxEvent]:
        """The oldest events of this engine with an id over `after`; they stay until acknowledged."""

    def ack_outbox(self, ids: Sequence[int], dead: Sequence[DeadLetter] = ()) -> None:
        """Remove events, and keep what became of some of them as dead letters, in one commit.

        An id that is not there does no harm.
        """

    def redeliver_outbox(self, ids: Sequence[int]) -> None:
        """Count that these events are going to be handed on again; an id that is not there does no harm."""

    def adopt_outbox(self, owner: int) -> int:
        """Take over the events that no engine has; how many.

        Those that `retry_dead_letters` puts back come behind all others; what a dead engine left may come before what
        was drained already.
        """

    def outbox_size(self) -> int:
        """How many events of all engines wait; costs one row."""

    def outbox_report(self) -> OutboxReport:
        """How many events wait, for how long, and how many dead letters there are; costs two rows."""

    def outbox_audiences(self, limit: int) -> list[tuple[str, str, int]]:
        """Who the oldest `limit` events are for: `handler` and `group` of them, and how many, most first."""

    # dead letters

    def dead_letters(
        self, limit: int, after: int = 0, *, event: str | None = None, ids: Sequence[int] | None = None
    ) -> list[DeadLetter]:
        """Dead letters by number, from behind `after`: those of events that match a glob, and of these numbers."""

    def retry_dead_letters(self, ids: Sequence[int], now: float) -> int:
        """Put the events of dead letters back into the outbox, in the order of their numbers; how many.

        Each has the key that it had, is for just the handler that gave up, and counts as redelivered.  No engine has
        them: see `adopt_outbox`.
        """

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        """Forget dead letters; how many."""

    # administration

    def jobs(self, limit: int, after: int = 0) -> list[Job]:
        """Jobs by number, from behind `after`."""

    def recipients(self, where: Filter, limit: int, after: int = 0) -> list[RecipientView]:
        """Recipients by id, from behind recipient id `after`."""

    def retry(self, where: Filter, now: float) -> Changed:
        """Make deferred recipients due now and forget the retry records that hold them up."""

    def hold(self, where: Filter) -> Changed:
        """Keep recipients from being claimed: a whole job, or those that match one by one."""

    def release(self, where: Filter, now: float) -> Changed:
        """Undo `hold`; a whole job frees also those held one by one."""

    def cancel(self, where: Filter, now: float, *, owner: int = 0, tell: Tell | None = None) -> Changed:
        """Take recipients back for good.

        What is in flight is not touched, but will not be tried again in a job that was cancelled whole: the settlement
        that ends it tells (`SettleResult.cancelled`), or the recovery.

        Args:
            tell: is told what a commit is about to cancel, just before it, and gives the events to store with it, for
                the engine `owner`.  A whole job is held first and then cancelled in commits of a bounded size; if that
                is interrupted it stays held, and can be cancelled again.
        """

    def explain(self, address: str, job_id: int | None = None, *, limit: int = 100) -> list[Explanation]:
        """Everything that decides when a recipient is tried next, newest job first."""

    def purge(self, completed_before: float) -> int:
        """Remove jobs that ended before; how many.  Works in small commits so that engines can go on."""
