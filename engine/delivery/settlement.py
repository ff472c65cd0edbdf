"""Group commit: what the connections decided goes to the queue, the logs and the counters in batches.

Layer: orchestration.  Spec: design.md "Queue" (group commit), "Speed"; store.py "Group commit"; RT-8 to RT-10, RT-15.

While one batch is being committed in the queue's thread the next one gathers, for `GATHER_S` at least, so the fuller
the engine, the larger the batches: many outcomes, one fsync.  What comes after a rest is committed at once.  A deferral
whose time depends on its retry record is worked out in that thread too, since the record is read there, for the whole
batch at once.  Log lines of a batch are written just before its commit: a crash leaves no delivery without its line,
and after one between the two the recovery logs it once more from the in-flight journal.
Invariants: every outcome has its lines in the log, and is counted if and only if the commit said it still was ours; a
store that cannot take a batch now (disk full, locked) gets the same batch again until it can, and nothing new is begun
meanwhile; a damaged queue stops the engine with its error.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import trio

from ..logs.facts import Fact, FactKind
from ..queue.model import Filter, Outcome, OutcomeKind
from ..queue.schedule import TIMED_OUT_TEXT
from ..queue.store import QueueFull, QueueLocked
from .raised import Raised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..logs.writer import LogWriter
    from ..queue.model import Claim, OutboxEvent, RetryRecord, SettleResult
    from ..queue.rules import Failure
    from ..queue.store import Engine, Store
    from .retries import Retries

_T = TypeVar("_T")

#: seconds between two tries to commit a batch to a queue that is full or locked
RETRY_COMMIT_S: Final = 1.0
#: how often that is done once the engine is stopping; the journal then keeps what could not be committed
MAX_LAST_COMMITS: Final = 5
#: most outcomes in one commit; keeps one transaction and its lock short (some 100 ms), and yet takes what a turn of the
#: event loop with hundreds of TLS handshakes in it can bring
MAX_BATCH: Final = 10_000
#: seconds from the beginning of one commit to that of the next, at least: with a connection a message outcomes come one
#: by one, a commit of three or ten costs about as much CPU as one of fifty (0.7 ms), and the journal has them anyway
GATHER_S: Final = 0.05


class StoreThread:
    """Runs the calls of a store one after another in a worker thread, so that the disk never holds up the network."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._limiter = trio.CapacityLimiter(1)

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run a method of the store; not cancelled once begun.  Raises what it raises."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)


@dataclass(slots=True, eq=False)
class Deferral:
    """A claim that is to be tried again when its own retry record says so.

    Attributes:
        fact: its ``==`` line; `key`: of the retry record (11.2).
        failure, subjects: what retry rules are searched with.
        created_at: when the message came; RT-9 measures from it where it is older than the record. None for routing.
        earliest_at: not before this, whatever the rule says.
        in_doubt: the final octet was sent and no reply came.
        on_timeout: raises the events of a recipient whose time is up; called in the queue's thread with the lines that
            tell of it.
        is_frozen: a person has to release it (host_find_failed = freeze).
        own_message_at: when the message came that this recipient alone has; if its time is up, that message is
            complete (LG-6).
    """

    claim: Claim
    fact: Fact
    key: str
    failure: Failure
    subjects: tuple[str, ...]
    created_at: float | None
    earliest_at: float = 0.0
    in_doubt: bool = False
    is_frozen: bool = False
    on_timeout: Callable[[Sequence[Fact]], Raised] | None = None
    own_message_at: float | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    """An outcome, or a deferral that becomes one, with its lines and events; or lines and events alone."""

    outcome: Outcome | None
    facts: Sequence[Fact]
    label: str = ""
    is_retry: bool = False
    deferral: Deferral | None = None
    events: Sequence[OutboxEvent] = ()


class Companion(Protocol):
    """What has something of its own to commit, and does so with the next settlement."""

    def take(self) -> Callable[[Store], None] | None:
        """What to do in the next commit, in the queue's thread; None for nothing."""

    def on_committed(self) -> None:
        """What was taken is committed; called in the trio thread, before `on_stored`."""


@dataclass(slots=True, eq=False)
class _Batch:
    """What goes into one commit; `frozen` are the recipients to be held until a person looks at them."""

    entries: list[_Entry]
    updates: dict[str, RetryRecord]
    deletes: set[str]
    beside: Callable[[Store], None] | None = None
    frozen: list[Filter] = field(default_factory=list)
    is_logged: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a commit did, told in the trio thread.

    Attributes:
        held: claims that are ours no more.
        completed: jobs that are complete by it.
        counts: (label of the site, kind, whether it was deferred before, in doubt) -> recipients.
        epochs: epoch -> claims of it that are ours no more.
        stored: the events that were committed, in the order of their numbers.
    """

    held: int
    completed: tuple[int, ...]
    counts: Counter[tuple[str, OutcomeKind, bool, bool]] = field(default_factory=Counter)
    epochs: Counter[int] = field(default_factory=Counter)
    stored: Sequence[OutboxEvent] = ()


class Settlement:
    """Collects outcomes and commits them.

    Args:
        clock: UTC epoch seconds.
        on_settled: called in the trio thread after each commit.
        completion: makes the lines that tell that a job is complete (LG-6).
    """

    def __init__(
        self,
        database: StoreThread,
        engine: Engine,
        log: LogWriter,
        retries: Retries,
        clock: Callable[[], float],
        on_settled: Callable[[Settled], None],
        completion: Callable[[int], Fact | None],
    ) -> None:
        self._database = database
        self._engine = engine
        self._log = log
        self._retries = retries
        self._clock = clock
        self._on_settled = on_settled
        self._completion = completion
        self._entries: list[_Entry] = []
        self._retry_updates: dict[str, RetryRecord] = {}
        self._retry_deletes: set[str] = set()
        self._wake = trio.Event()
        self._closing = False
        self._closed = trio.Event()
        #: monotonic second at which the last commit was begun
        self._begun_at = -math.inf
        #: raises the events of a job that is complete, in the queue's thread; gets the events of each commit
        self.on_completed: Callable[[int], Raised] | None = None
        self.on_stored: Callable[[Sequence[OutboxEvent]], object] | None = None
        #: raises the events of what ended since it had been cancelled, and gives the lines, in the queue's thread
        self.on_cancelled: Callable[[Sequence[Outcome]], Raised] | None = None
        #: commits with each batch, or with none if it is told to (`commit_soon`)
        self.companion: Companion | None = None
        self._is_commit_wanted = False
        #: a commit is being repeated since the queue would not take it
        self.is_stuck = False

    def settle(
        self, claim: Claim, outcome: Outcome, label: str = "", *facts: Fact, events: Sequence[OutboxEvent] = ()
    ) -> None:
        """One claim ended; `facts` are logged, and it is counted for the site `label`, if the claim was still ours.

        `events` are committed with it, whosever it is.
        """
        self._entries.append(_Entry(outcome, facts, label, claim.attempts > 0, None, events))
        self._notify()

    def settle_raised(self, claim: Claim, outcome: Outcome, label: str, raised: Raised) -> None:
        """As `settle`, with the lines and events that were raised for it."""
        self._entries.append(_Entry(outcome, raised.facts, label, claim.attempts > 0, None, raised.events))
        self._notify()

    def release(self, claim: Claim, due_at: float | None = None) -> None:
        """Give a claim back that was not tried, to be claimed at its time, or not before `due_at`."""
        self._entries.append(_Entry(claim.outcome(OutcomeKind.RELEASED, next_attempt_at=due_at), ()))
        self._notify()

    def defer(self, deferral: Deferral, label: str = "", events: Sequence[OutboxEvent] = ()) -> None:
        """One claim is to be tried again when its retry record and rule say so, or fails if they say never."""
        self._entries.append(_Entry(None, (), label, deferral.claim.attempts > 0, deferral, events))
        self._notify()

    def tell(self, fact: Fact) -> None:
        """Log something that settles nothing, in its place among the rest."""
        self._entries.append(_Entry(None, (fact,)))
        self._notify()

    def store(self, raised: Raised) -> None:
        """Commit events that settle nothing, and log what they have to say."""
        if raised.events or raised.facts:
            self._entries.append(_Entry(None, raised.facts, events=raised.events))
            self._notify()

    def keep_retry(self, record: RetryRecord) -> None:
        """Write a retry record with the next commit."""
        self._retry_deletes.discard(record.key)
        self._retry_updates[record.key] = record
        self._notify()

    def drop_retry(self, key: str) -> None:
        """Delete a retry record with the next commit (RT-15)."""
        self._retry_updates.pop(key, None)
        self._retry_deletes.add(key)
        self._notify()

    def commit_soon(self) -> None:
        """Make a commit for what the companion has, though nothing else may be to be committed."""
        self._is_commit_wanted = True
        self._notify()

    @property
    def backlog(self) -> int:
        """Outcomes and lines that wait for a commit."""
        return len(self._entries)

    def _notify(self) -> None:
        if not self._wake.is_set():
            self._wake.set()

    async def run(self) -> None:
        """Commit until `close`; then commit what is left and return.

        Raises:
            StoreError: the queue cannot be used any more (damaged, gone).
        """
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._entries or self._retry_updates or self._retry_deletes or self._is_commit_wanted:
                await self._gather()
                await self._commit()
            if self._closing:
                return

    def close(self) -> None:
        """Let `run` end once everything is committed."""
        self._closing = True
        self._closed.set()
        self._notify()

    async def _gather(self) -> None:
        """Let more come while the last commit was begun less than `GATHER_S` ago, unless this is the end."""
        with trio.move_on_at(self._begun_at + GATHER_S):
            await self._closed.wait()
        self._begun_at = trio.current_time()

    async def _commit(self) -> None:
        entries, self._entries = self._entries[:MAX_BATCH], self._entries[MAX_BATCH:]
        batch = _Batch(entries, self._retry_updates, self._retry_deletes)
        self._retry_updates, self._retry_deletes = {}, set()
        self._is_commit_wanted = False
        if self.companion is not None:
            batch.beside = self.companion.take()
        last_tries = 0
        while True:
            try:
                # a batch is never half done: the shield holds for the commit, which is bounded by the store
                with trio.CancelScope(shield=True):
                    settled = await self._database.call(self._write, batch)
                break
            except (QueueFull, QueueLocked) as error:
                if not self.is_stuck:
                    self._log.write([Fact(FactKind.NOTE, self._clock(), text=f"queue: {error}; will try again")])
                self.is_stuck = True
                last_tries += self._closing
                if last_tries > MAX_LAST_COMMITS:
                    raise
                await trio.sleep(RETRY_COMMIT_S)
        self.is_stuck = False
        if settled.held or settled.completed:
            self._on_settled(settled)
        if batch.beside is not None and self.companion is not None:
            self.companion.on_committed()
        if settled.stored and self.on_stored is not None:
            self.on_stored(settled.stored)

    def _write(self, batch: _Batch) -> Settled:
        """In the queue's thread: work out the deferrals, log, commit."""
        now = self._clock()
        store = self._database.store
        if not batch.is_logged:
            self._resolve(batch, now)
            self._log.write([fact for entry in batch.entries for fact in entry.facts])
            batch.is_logged = True
        outcomes = [entry.outcome for entry in batch.entries if entry.outcome is not None]
        listens = self.on_stored is not None
        events = [event for entry in batch.entries for event in entry.events] if listens else []
        with store.group():
            if batch.beside is not None:
                # first: what it takes out makes room for what comes in, so that half as much is written
                batch.beside(store)
            result = store.settle(
                self._engine.owner,
                outcomes,
                now,
                events=events,
                retry_updates=list(batch.updates.values()),
                retry_deletes=[key for key in batch.deletes if key not in batch.updates],
            )
            for where in batch.frozen:
                store.hold(where)
            raised = self._complete(result, now)
        settled = self._conclude(batch, result, now)
        if raised.facts:
            self._log.write(raised.facts)
        return replace(settled, stored=[*events, *raised.events])

    def _complete(self, result: SettleResult, now: float) -> Raised:
        """Raise the events of what was cancelled and of the jobs that are complete, in the same commit."""
        every = Raised()
        if self.on_cancelled is not None and result.cancelled:
            every = self.on_cancelled(result.cancelled)
        if self.on_completed is not None:
            for job in result.completed:
                raised = self.on_completed(job)
                every.events += raised.events
                every.facts += raised.facts
        if every.events:
            self._database.store.settle(self._engine.owner, (), now, events=every.events)
        return every

    def _resolve(self, batch: _Batch, now: float) -> None:
        """Turn every deferral into an outcome."""
        deferred = [(entry, entry.deferral) for entry in batch.entries if entry.deferral is not None]
        if not deferred:
            return
        updates = batch.updates
        keys = {deferral.key for _, deferral in deferred}
        known = self._database.store.retry_records(sorted(keys - updates.keys() - batch.deletes))
        for entry, deferral in deferred:
            claim, fact = deferral.claim, deferral.fact
            previous = updates.get(deferral.key) or known.get(deferral.key)
            # a domain whose routing was put off before it was this recipient's turn stays put off for all alike
            is_shared = deferral.created_at is None and previous is not None and now < previous.next_try_at
            if previous is not None and (is_shared or previous.last_try_at == now):
                postponed = self._retries.as_is(previous)  # others of this batch have failed on the same key
            else:
                postponed = self._retries.postpone(deferral, previous, now)
            if postponed.record is not None:
                updates[deferral.key] = postponed.record
            if postponed.timed_out and not deferral.in_doubt:
                entry.facts = (fact, timed_out_fact(fact))
                if deferral.own_message_at is not None:
                    entry.facts = (*entry.facts, completed_fact(fact, deferral.own_message_at))
                if deferral.on_timeout is not None:
                    raised = deferral.on_timeout(entry.facts)
                    entry.facts, entry.events = raised.facts, [*entry.events, *raised.events]
                entry.outcome = claim.outcome(OutcomeKind.FAILED, errno=fact.errno, text=fact.text)
                continue
            entry.facts = (fact,)
            entry.outcome = claim.outcome(
                OutcomeKind.DEFERRED,
                next_attempt_at=max(postponed.next_try_at, deferral.earliest_at),
                errno=fact.errno,
                text=fact.text,
                retry_key=deferral.key,
                in_doubt=deferral.in_doubt,
            )
            if deferral.is_frozen:
                batch.frozen.append(Filter(recipient_id=claim.recipient_id))

    def _conclude(self, batch: _Batch, result: SettleResult, now: float) -> Settled:
        """After the commit: what is to be counted, and the lines that only now are true."""
        lost = {id(outcome) for outcome in result.lost}
        counts: Counter[tuple[str, OutcomeKind, bool, bool]] = Counter()
        epochs: Counter[int] = Counter()
        for entry in batch.entries:
            outcome = entry.outcome
            if outcome is None:
                continue
            epochs[outcome.epoch] += 1
            if not lost or id(outcome) not in lost:
                counts[entry.label, outcome.kind, entry.is_retry, outcome.in_doubt] += 1
        lines = [fact for fact in map(self._completion, result.completed) if fact is not None]
        if lost:
            text = f"{len(lost)} outcomes came after their lease was taken over; another engine settles them"
            lines.append(Fact(FactKind.NOTE, now, text=text))
        if lines:
            self._log.write(lines)
        return Settled(epochs.total(), result.completed, counts, epochs)


def completed_fact(last: Fact, created_at: float) -> Fact:
    """The line that ends a message, after the `last` of its recipients (LG-6)."""
    return Fact(
        FactKind.COMPLETED, last.at, message_id=last.message_id, queue_time_s=last.at - created_at, job=last.job
    )


def timed_out_fact(deferred: Fact) -> Fact:
    """The ``**`` line that follows the ``==`` line of a recipient whose time is up (LG-4)."""
    return Fact(
        FactKind.FAILED,
        deferred.at,
        message_id=deferred.message_id,
        address=deferred.address,
        sender=deferred.sender,
        text=TIMED_OUT_TEXT,
        job=deferred.job,
    )
