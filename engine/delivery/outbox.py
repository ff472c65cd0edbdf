"""Run the actions of stored events, and take them out of the outbox once they have run.

Layer: orchestration.  Spec: design.md "Events and action workers"; issue "Event actions", "Guarantees".
Events were committed with the outcome they tell of.  Their programs run one after the other in `Events.threads`, in the
order of their commit; what has run is acknowledged in batches, so a crash between the two runs some again (at least
once).  A lookup that cannot be done now leaves its event where it is: it is tried again later and later, and no event
of the same message overtakes it.
Invariants: delivery never waits for an action; an event leaves the outbox only after its program has run; what is left
at the end of a run is inherited by the next engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..errors import StoreError
from ..logs.facts import Fact, FactKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..queue.model import OutboxEvent
    from .core import Core
    from .events import Events

#: events run in one call of the thread, and acknowledged together: what a crash may run again
BATCH: Final = 100
#: seconds between looks at the outbox when nobody says that there is something
INTERVAL_S: Final = 1.0
#: lookups that may fail in a row before a round is broken off: their server is gone
MAX_DEFERRALS: Final = 5
#: seconds to wait after that, at first and at most
BACKOFF_S: Final = (1.0, 60.0)


class Outbox:
    """Runs what is in the outbox of one engine."""

    def __init__(self, core: Core, events: Events) -> None:
        self._core = core
        self._events = events
        self._wake = trio.Event()
        #: messages one of whose events waits for a lookup, in this round
        self._blocked: set[str] = set()
        #: lookups that failed in a row
        self._failures = 0
        self._backoff_s = 0.0
        #: that a lookup cannot be done has been logged: once until it works again, not once an event
        self._told = False

    def notify(self) -> None:
        """Events were committed."""
        self._wake.set()

    async def run(self) -> None:
        """Run what comes, until cancelled.  Raises StoreError if the queue cannot be used any more."""
        while True:
            with trio.move_on_after(INTERVAL_S):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self.drain()
            except StoreError as error:
                # the settlement will stop the engine if it has to
                text = f"queue: {error}"
                self._core.settlement.tell(Fact(FactKind.NOTE, self._core.clock(), text=text))
            if self._backoff_s:
                await trio.sleep(self._backoff_s)

    async def finish(self) -> None:
        """The end of a run: one last round; what cannot be run now stays for the next engine."""
        if not await self.drain():
            text = "events wait in the queue for a lookup that cannot be done now"
            fact = Fact(FactKind.NOTE, self._core.clock(), text=text)
            await self._core.database.call(self._core.log.write, [fact])

    async def drain(self) -> bool:
        """One round over everything in the outbox; False if something has to be tried again."""
        self._blocked.clear()
        self._failures = 0
        store, owner, after = self._core.database.store, self._core.engine.owner, 0
        while self._failures < MAX_DEFERRALS:
            events = await self._core.database.call(store.drain_outbox, owner, BATCH, after)
            if not events:
                break
            after = events[-1].id
            # what has run is acknowledged, whoever is cancelled meanwhile
            with trio.CancelScope(shield=True):
                done, facts = await trio.to_thread.run_sync(self._run, events, limiter=self._events.threads)
                if facts:
                    await self._core.database.call(self._core.log.write, facts)
                await self._core.database.call(store.ack_outbox, done)
            await trio.lowlevel.checkpoint()
        if not self._blocked:
            self._backoff_s = 0.0
            self._told = False
            return True
        first, most = BACKOFF_S
        self._backoff_s = min(max(first, 2 * self._backoff_s), most)
        return False

    def _run(self, events: Sequence[OutboxEvent]) -> tuple[list[int], list[Fact]]:
        """In the thread: run a batch; the numbers of what is done, and lines for the log."""
        done: list[int] = []
        facts: list[Fact] = []
        for event in events:
            message = event.key.partition("/")[0]
            if message in self._blocked:
                continue
            result = self._events.run_stored(event, facts)
            if not result.is_deferral:
                done.append(event.id)
                self._failures = 0
                continue
            self._blocked.add(message)
            self._failures += 1
            line = self._events.failure_of(event, result)
            if line is not None and not self._told:
                self._told = True
                facts.append(line)
            if self._failures >= MAX_DEFERRALS:
                break
        return done, facts
