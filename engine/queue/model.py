"""What the queue holds, as values: jobs, recipients, claims, outcomes, retry records, events.

Layer: adapter (values only).  Spec: events-dane section 11 (retry records), design.md "Queue".
Invariants: times named ``*_at`` are UTC epoch seconds as float; a recipient id is ``job id << 32 | number``, so the job
of a recipient is known without asking; `Claim`, `Outcome` and `OutboxEvent` are made once a recipient and are not
frozen for that reason only (a frozen one takes three times as long to make): treat them as values.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgpack

if TYPE_CHECKING:
    from collections.abc import Mapping

#: bits of a recipient id that hold its number inside the job
NUMBER_BITS: Final = 32
#: largest number of a recipient inside its job
MAX_NUMBER: Final = (1 << NUMBER_BITS) - 1
#: largest number of a job, so that the ids of its recipients have 63 bits
MAX_JOB: Final = (1 << 63 - NUMBER_BITS) - 1
#: largest merge data of one recipient, in octets when packed; arbitrary, a row of a CSV is seldom over 4 KiB
MAX_MERGE_OCTETS: Final = 1 << 20


def recipient_id(job_id: int, number: int) -> int:
    """The id of recipient `number` of a job."""
    return job_id << NUMBER_BITS | number


def job_of(recipient: int) -> int:
    """The job that a recipient id belongs to."""
    return recipient >> NUMBER_BITS


def number_of(recipient: int) -> int:
    """The number of a recipient inside its job; 1 for the first."""
    return recipient & MAX_NUMBER


class JobState(enum.IntEnum):
    #: its recipients are claimed when they are due
    ACTIVE = 0
    #: nothing of it is claimed until it is released
    HELD = 1
    #: every recipient is settled
    COMPLETED = 2
    #: taken back; what was in flight then is still settled as it ends
    CANCELLED = 3


class RecipientState(enum.IntEnum):
    """Where a recipient stands; `Status` is what people are told."""

    QUEUED = 0
    LEASED = 1
    DELIVERED = 2
    FAILED = 3
    CANCELLED = 4
    HELD = 5


class Status(enum.StrEnum):
    """State of a recipient with what its job and its history say, for people and filters."""

    #: never tried yet
    WAITING = "waiting"
    #: tried, and will be tried again
    DEFERRED = "deferred"
    #: an engine has it
    IN_FLIGHT = "in-flight"
    #: the recipient or its job is held
    HELD = "held"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OutcomeKind(enum.IntEnum):
    DELIVERED = 0
    #: tried; try again at `Outcome.next_attempt_at`
    DEFERRED = 1
    #: failed for good
    FAILED = 2
    #: not tried at all: no attempt is counted
    RELEASED = 3


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be added.

    Attributes:
        sender: envelope sender, "" for the null one.
        body: the message, or the source of the template; stored once.
        is_template: `body` is a template.
        personalised: one message a recipient; otherwise one message with many recipients.
        name: what people call it, such as the file it came from.
        start_at: not claimed before this; 0 for at once.
        expires_at: from then on nothing of it is sent: what is left is handed out by `claim_expired`; None for never.
        options: anything else the composer needs (DSN parameters, headers); msgpack types only.
        start_early: recipients may be claimed while others are still loaded.  A crash while loading then leaves a job
            that is held, since part of it may have been sent.
    """

    sender: str
    body: bytes
    is_template: bool = False
    personalised: bool = False
    name: str = ""
    start_at: float = 0.0
    expires_at: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    start_early: bool = False


@dataclass(frozen=True, slots=True)
class NewRecipient:
    """A recipient to be added: its address (checked before) and its merge data (msgpack types), if any."""

    address: str
    merge: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a batch of recipients."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many recipients of a job stand where; kept with every commit, so reading them costs nothing.

    Attributes:
        total: all that were accepted.
        duplicates: dropped while loading; not part of `total`.
        waiting: never tried; deferred: waiting for a retry; leased: with an engine; held: held one by one.
    """

    total: int = 0
    duplicates: int = 0
    waiting: int = 0
    deferred: int = 0
    leased: int = 0
    held: int = 0
    delivered: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def unsettled(self) -> int:
        return self.waiting + self.deferred + self.leased + self.held


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands.

    Attributes:
        is_loading: until its last recipient was added.
        is_cut_off: its loading ended before that, and part of it may have been sent; see `Store.resume_loading`.
    """

    id: int
    name: str
    sender: str
    state: JobState
    is_loading: bool
    is_template: bool
    personalised: bool
    created_at: float
    start_at: float
    expires_at: float | None
    completed_at: float | None
    options: Mapping[str, object]
    counts: JobCounts
    is_cut_off: bool = False


@dataclass(slots=True, eq=False)
class Claim:
    """A lease on one recipient: ours to deliver until `lease_until`, and ours to settle while nobody took it over.

    Attributes:
        recipient_id: see `job_of` and `number_of`.
        epoch: number of the claim; no two claims of a queue ever share one (fencing).
        address: ``local@domain``, domain in lower case.
        attempts: how often it was tried before.
        in_doubt: an earlier attempt may have delivered it; use the same Message-ID.
        lease_until: do not start to send after this.
        packed_merge: merge data as msgpack, or None.
    """

    recipient_id: int
    epoch: int
    address: str
    attempts: int
    in_doubt: bool
    lease_until: float
    packed_merge: bytes | None = None

    @property
    def job_id(self) -> int:
        return self.recipient_id >> NUMBER_BITS

    @property
    def number(self) -> int:
        return self.recipient_id & MAX_NUMBER

    def merge(self) -> dict[str, object]:
        """The merge data, unpacked anew at each call; empty when there is none."""
        if self.packed_merge is None:
            return {}
        unpacked: dict[str, object] = msgpack.unpackb(self.packed_merge)
        return unpacked

    def outcome(
        self,
        kind: OutcomeKind,
        *,
        next_attempt_at: float | None = None,
        errno: int = 0,
        text: str = "",
        retry_key: str = "",
        in_doubt: bool = False,
    ) -> Outcome:
        """How this claim ended; see `Outcome`."""
        return Outcome(self.recipient_id, self.epoch, kind, next_attempt_at, errno, text, retry_key, in_doubt)


@dataclass(slots=True, eq=False)
class Outcome:
    """How one claim ended.

    Attributes:
        next_attempt_at: for a deferral, when to try again; for a release, None keeps the time that it had.
        errno: Exim's or the system's number (11.6); text: the reply or error, at most 1,000 characters are kept.
        retry_key: key of the retry record that holds it up, for `explain`.
        in_doubt: a deferral whose final octet was sent and whose reply never came.
    """

    recipient_id: int
    epoch: int
    kind: OutcomeKind
    next_attempt_at: float | None = None
    errno: int = 0
    text: str = ""
    retry_key: str = ""
    in_doubt: bool = False


#: what `OutboxEvent.handler` and `DeadLetter.handler` say for the string of `event_action`; no handler is called so
PROGRAM: Final = "event_action"
#: and for all handlers of a group
ALL: Final = "*"


@dataclass(slots=True)
class OutboxEvent:
    """An event that is committed with the outcome it tells of and leaves when a worker acknowledged it.

    The store fills in `id` and `stored_at` when it stores it; otherwise treat it as a value.

    Attributes:
        name: such as ``msg:delivery``.
        key: the same for every repetition of this event, so that a consumer can drop repetitions.
        payload: msgpack; opaque to the queue.
        id: number in the outbox, 0 before it is stored; stored_at: UTC epoch seconds.
        handler: who it is for: a handler, `PROGRAM` for the string of `event_action`, "" for all that want it.
        group: the group of workers that has the handler; of an event for all that want it those who did when it was
            stored, in the engine's own words, "" if that is not known.
        redelivered: how often it was handed on again, as far as its action may have run before.
    """

    name: str
    key: str
    payload: bytes
    id: int = 0
    stored_at: float = 0.0
    handler: str = ""
    group: str = ""
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that one handler, or the string of `event_action`, could not be made to take.

    Attributes:
        name, key, payload: those of the event.
        handler: the one that gave up, or `PROGRAM`; group: the group of its workers, "" if it has none.
        reason: the last error.
        attempts: how often it was tried.
        stored_at: when the event was stored; died_at: when it was given up (UTC epoch seconds).
        id: its number, 0 before it is stored.
        redelivered: that of the event.
    """

    name: str
    key: str
    payload: bytes
    handler: str
    group: str
    reason: str
    attempts: int
    stored_at: float
    died_at: float
    id: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class OutboxReport:
    """How the outbox stands.

    Attributes:
        waiting: events of all engines.
        oldest_at: when the oldest was stored, in UTC epoch seconds; None when there is none.
        dead: dead letters.
        redelivered: how often events were handed on again since the queue was made, all together.
    """

    waiting: int = 0
    oldest_at: float | None = None
    dead: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """What is known of a host, of a message on a host, or of a recipient that failed for now (11.2).

    Attributes:
        key: see `schedule.host_key` and its neighbours.
        expired: past the last cut-off of its rule (RT-9).
    """

    key: str
    first_failed_at: float
    last_try_at: float
    next_try_at: float
    errno: int = 0
    more_errno: int = 0
    text: str = ""
    expired: bool = False


@dataclass(frozen=True, slots=True)
class SettleResult:
    """What a settlement did.

    Attributes:
        lost: the outcomes that came too late (drop them).
        completed: the jobs it completed.
        cancelled: deferrals and releases that ended their recipients, since their jobs were cancelled meanwhile.
    """

    lost: tuple[Outcome, ...] = ()
    completed: tuple[int, ...] = ()
    cancelled: tuple[Outcome, ...] = ()


class RecoveryKind(enum.Enum):
    #: the final octet may have been sent and no reply is known; it will be tried again
    IN_DOUBT = "in doubt"
    #: the reply was known and is settled now
    DELIVERED = "delivered"
    FAILED = "failed"
    #: the reply was a deferral; it will be tried again
    DEFERRED = "deferred"
    #: it was given back, in a job that was cancelled meanwhile; or a person cancelled it
    CANCELLED = "cancelled"


#: why a recipient was cancelled; Exim's words for its ``-Mg``
CANCELLED_TEXT: Final = "delivery cancelled by administrator"


@dataclass(frozen=True, slots=True)
class Recovered:
    """A recipient whose lease outlived its engine in the middle of an attempt, or that was cancelled."""

    kind: RecoveryKind
    recipient_id: int
    epoch: int
    address: str
    attempts: int
    engine: int
    host: str
    text: str

    @property
    def job_id(self) -> int:
        return self.recipient_id >> NUMBER_BITS

    @property
    def number(self) -> int:
        return self.recipient_id & MAX_NUMBER


def cancelled(recipient: int, epoch: int, address: str, attempts: int, *, engine: int = 0) -> Recovered:
    """A recipient that was cancelled."""
    return Recovered(RecoveryKind.CANCELLED, recipient, epoch, address, attempts, engine, "", CANCELLED_TEXT)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` found.

    Attributes:
        recipients: those that were being tried, or that ended as cancelled; each is to be logged.
        released: how many more leases were simply given back.
        engines: owner numbers of the dead engines that were cleared away.
        completed: jobs that are complete by it.
        removed_jobs: jobs whose loading was cut off and that are gone.
        held_jobs: jobs whose loading was cut off after part of them could have been sent (`NewJob.start_early`).
        events: how many of the dead engines' events wait in the outbox; some may have been run.
    """

    recipients: tuple[Recovered, ...] = ()
    released: int = 0
    engines: tuple[int, ...] = ()
    completed: tuple[int, ...] = ()
    removed_jobs: tuple[int, ...] = ()
    held_jobs: tuple[int, ...] = ()
    events: int = 0


@dataclass(frozen=True, slots=True)
class Filter:
    """Which recipients an operation is about; all that is set must hold, nothing set means every one."""

    job_id: int | None = None
    domain: str | None = None
    address: str | None = None
    status: Status | None = None
    #: one recipient, found without a search
    recipient_id: int | None = None

    @property
    def is_whole_job(self) -> bool:
        return self.job_id is not None and self == Filter(job_id=self.job_id)


@dataclass(frozen=True, slots=True)
class Changed:
    """What an operation did.

    Attributes:
        changed: recipients that it changed.
        in_flight: recipients that it could not, since an engine has them.
        completed: jobs that are complete by it.
    """

    changed: int = 0
    in_flight: int = 0
    completed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipientView:
    """One recipient for people: `status` already takes the job into account."""

    recipient_id: int
    address: str
    status: Status
    attempts: int
    next_attempt_at: float
    in_doubt: bool
    last_attempt_at: float | None
    errno: int
    text: str

    @property
    def job_id(self) -> int:
        return self.recipient_id >> NUMBER_BITS

    @property
    def number(self) -> int:
        return self.recipient_id & MAX_NUMBER


@dataclass(frozen=True, slots=True)
class LeaseView:
    """Who has a recipient: the engine's number and process, since when and until when.

    `is_alive` is None when it cannot be told (another machine).
    """

    owner: int
    pid: int
    since: float
    until: float
    is_alive: bool | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that decides when a recipient is tried next."""

    recipient: RecipientView
    job: Job
    lease: LeaseView | None = None
    retry_records: tuple[RetryRecord, ...] = ()
