"""Run the programs of stored events in a thread of the engine, where there are no action workers.

Layer: orchestration.  Spec: issue "Event actions", "Guarantees"; expansion 5.2.
Who has no `[actions]` in the configuration gets everything run all the same, without processes to look after: one after
the other, in the order of their commit, in `Events.threads`, beside the thread that mail may wait for.  A lookup that
cannot be done now keeps its event here: it is tried again later and later, until `give_up` is over, and no event of the
same message overtakes it.  Many that fail in a row mean that their server is gone, so a round is broken off then.
Invariants: an event is told as done only after its program has run, or failed for good; what is left at the end of a
run is nobody's here, and still in the outbox.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..events import Result
    from ..logs.facts import Fact
    from ..queue.model import OutboxEvent
    from .core import Core
    from .events import Events
    from .stored import Stored

#: events run in one call of the thread, and told as done together: what a crash may run again
BATCH: Final = 100
#: lookups that may fail in a row before a round is broken off: their server is gone
MAX_DEFERRALS: Final = 5
#: seconds to wait after that, at first and at most
BACKOFF_S: Final = (1.0, 60.0)
#: events held at one time
LIMIT: Final = 10_000


@dataclass(slots=True)
class Waiting:
    """An event that waits for its program to be run.

    Attributes:
        attempts: how often it was tried here.
    """

    event: OutboxEvent
    stored: Stored
    attempts: int = 0


@dataclass(slots=True)
class _Batch:
    """What became of a batch: what is done, what is given up and why, what is to be tried again, and lines."""

    done: list[OutboxEvent] = field(default_factory=list)
    dead: list[tuple[Waiting, str]] = field(default_factory=list)
    again: list[Waiting] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)


class LocalRunner:
    """See the module's text.

    Args:
        on_done: told which events are done, in the trio thread.
        on_dead: told of an event that is given up, why, and after how many attempts, likewise.
        tell: takes a line for the log.
    """

    def __init__(
        self,
        core: Core,
        events: Events,
        on_done: Callable[[Sequence[OutboxEvent]], object],
        on_dead: Callable[[OutboxEvent, str, int], object],
        tell: Callable[[Fact], object],
    ) -> None:
        self._core = core
        self._events = events
        self._on_done = on_done
        self._on_dead = on_dead
        self._tell = tell
        self._waiting: deque[Waiting] = deque()
        self._wake = trio.Event()
        #: messages one of whose events waits for a lookup, in this round
        self._blocked: set[str] = set()
        #: lookups that failed in a row
        self._failures = 0
        self._backoff_s = 0.0
        #: that a lookup cannot be done has been logged: once until it works again, not once an event
        self._told = False

    def add_nowait(self, event: OutboxEvent, stored: Stored) -> bool:
        """Take an event; False if there are too many already."""
        if len(self._waiting) >= LIMIT:
            return False
        self._waiting.append(Waiting(event, stored))
        self._wake.set()
        return True

    async def run(self) -> None:
        """Run what comes, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self.round()
            if self._backoff_s:
                await trio.sleep(self._backoff_s)
                self._wake.set()

    async def round(self) -> bool:
        """One round over everything that waits; False if something has to be tried again."""
        self._blocked.clear()
        self._failures = 0
        kept: deque[Waiting] = deque()
        while self._waiting and self._failures < MAX_DEFERRALS:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            # what has run is told, whoever is cancelled meanwhile
            with trio.CancelScope(shield=True):
                found = await trio.to_thread.run_sync(self._run, batch, limiter=self._events.threads)
            kept += found.again
            for fact in found.facts:
                self._tell(fact)
            for waiting, reason in found.dead:
                self._on_dead(waiting.event, reason, waiting.attempts)
            self._on_done(found.done)
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self._waiting.extendleft(reversed(kept))
                raise
        self._waiting.extendleft(reversed(kept))
        if not self._blocked:
            self._backoff_s = 0.0
            self._told = False
            return True
        first, most = BACKOFF_S
        self._backoff_s = min(max(first, 2 * self._backoff_s), most)
        return False

    def _run(self, batch: Sequence[Waiting]) -> _Batch:
        """In the thread: run a batch."""
        found = _Batch()
        for waiting in batch:
            message = waiting.stored.message_id
            if self._failures >= MAX_DEFERRALS or message in self._blocked:
                found.again.append(waiting)
                continue
            result = self._events.run_stored(waiting.event, waiting.stored, found.facts)
            waiting.attempts += 1
            if not result.is_deferral:
                found.done.append(waiting.event)
                self._failures = 0
                continue
            self._tell_deferral(waiting, result, found.facts)
            if self._core.clock() >= self._events.give_up_at(waiting.event):
                # others that are as late get their last chance too, so it does not count
                found.dead.append((waiting, result.error))
                continue
            found.again.append(waiting)
            self._blocked.add(message)
            self._failures += 1
        return found

    def _tell_deferral(self, waiting: Waiting, result: Result, facts: list[Fact]) -> None:
        action = self._events.action(waiting.stored.transport, waiting.event.name)
        if action is not None and not self._told:
            self._told = True
            facts.append(self._events.failure(action, result, waiting.stored.message_id))
