"""Group commit: what the connections decided goes to the queue, the logs and the counters in batches.

Layer: orchestration.  Spec: design.md "Queue" (group commit), "Speed"; store.py "Group commit".

While one batch is being committed in the queue's thread the next one gathers, so the fuller the engine, the larger the
batches: many outcomes, one fsync.  Log lines of a batch are written after its commit; a crash in between is closed by
the in-flight journal, from which the recovery logs again.
Invariants: an outcome is logged and counted if and only if the commit said it still was ours; a store that cannot
take a batch now (disk full, locked) gets the same batch again until it can, and nothing new is begun meanwhile; a damaged
queue stops the engine with its error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from ..logs.facts import Fact, FactKind
from ..queue.store import QueueFull, QueueLocked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..logs.writer import LogWriter
    from ..queue.model import Outcome, RetryRecord, SettleResult
    from ..queue.store import Engine, Store

_T = TypeVar("_T")

#: seconds between two tries to commit a batch to a queue that is full or locked
RETRY_COMMIT_S: Final = 1.0
#: how often that is done once the engine is stopping; the journal then keeps what could not be committed
MAX_LAST_COMMITS: Final = 5
#: most outcomes in one commit; keeps one transaction and its lock short
MAX_BATCH: Final = 2000


class StoreThread:
    """Runs the calls of a store one after another in a worker thread, so that the disk never holds up the network."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._limiter = trio.CapacityLimiter(1)

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run a method of the store; not cancelled once begun.  Raises what it raises."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)


class Settlement:
    """Collects outcomes and commits them.

    Args:
        clock: UTC epoch seconds.
        on_settled: called in the trio thread after each commit with the number of claims that are no longer held and
            the jobs that are complete by it.
    """

    def __init__(
        self,
        database: StoreThread,
        engine: Engine,
        log: LogWriter,
        clock: Callable[[], float],
        on_settled: Callable[[int, Sequence[int]], None],
    ) -> None:
        self._database = database
        self._engine = engine
        self._log = log
        self._clock = clock
        self._on_settled = on_settled
        self._outcomes: list[Outcome] = []
        #: facts of the outcomes, by their place in `_outcomes`; a fact without outcome has place -1
        self._facts: list[tuple[int, Fact]] = []
        self._retry_updates: dict[str, RetryRecord] = {}
        self._retry_deletes: set[str] = set()
        self._wake = trio.Event()
        self._committing = False
        self._closing = False
        #: a commit is being repeated since the queue would not take it
        self.is_stuck = False

    def settle(self, outcome: Outcome, *facts: Fact) -> None:
        """One claim ended; `facts` are logged if the claim was still ours."""
        place = len(self._outcomes)
        self._outcomes.append(outcome)
        for fact in facts:
            self._facts.append((place, fact))
        self._notify()

    def tell(self, fact: Fact) -> None:
        """Log something that settles nothing, in its place among the rest."""
        self._facts.append((-1, fact))
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

    @property
    def backlog(self) -> int:
        """Outcomes that wait for a commit."""
        return len(self._outcomes)

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
            # a batch is never half done: the shield holds for the commit, which is bounded by the store
            with trio.CancelScope(shield=True):
                while self._outcomes or self._facts or self._retry_updates or self._retry_deletes:
                    await self._commit()
            if self._closing:
                return

    def close(self) -> None:
        """Let `run` end once everything is committed."""
        self._closing = True
        self._notify()

    async def _commit(self) -> None:
        outcomes, self._outcomes = self._outcomes[:MAX_BATCH], self._outcomes[MAX_BATCH:]
        facts, later = [], []
        for place, fact in self._facts:
            if place < MAX_BATCH:
                facts.append((place, fact))
            else:
                later.append((place - MAX_BATCH, fact))
        self._facts = later
        updates, self._retry_updates = self._retry_updates, {}
        deletes, self._retry_deletes = self._retry_deletes, set()
        last_tries = 0
        while True:
            try:
                result = await self._database.call(self._write, outcomes, facts, list(updates.values()), list(deletes))
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
        if outcomes or result.completed:
            self._on_settled(len(outcomes), result.completed)

    def _write(
        self,
        outcomes: list[Outcome],
        facts: list[tuple[int, Fact]],
        updates: list[RetryRecord],
        deletes: list[str],
    ) -> SettleResult:
        """In the queue's thread: commit, then log what was committed."""
        result = self._database.store.settle(
            self._engine.owner, outcomes, self._clock(), retry_updates=updates, retry_deletes=deletes
        )
        if result.lost:
            lost = {id(outcome) for outcome in result.lost}
            dropped = {place for place, outcome in enumerate(outcomes) if id(outcome) in lost}
            lines = [fact for place, fact in facts if place not in dropped]
            text = f"{len(dropped)} outcomes came after their lease was taken over; another engine settles them"
            lines.append(Fact(FactKind.NOTE, self._clock(), text=text))
        else:
            lines = [fact for _, fact in facts]
        self._log.write(lines)
        return result
