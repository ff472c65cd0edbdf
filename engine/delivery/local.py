"""Run the programs of stored events in a thread of the engine, where there are no action workers.

Layer: orchestration.  Spec: issue "Event actions", "Guarantees"; expansion 5.2.
Who has no `[actions]` in the configuration gets everything run all the same, without processes to look after: one after
the other, in the order of their commit, in `Events.threads`, beside the thread that mail may wait for.  A lookup that
cannot be done now keeps its event here: it is tried again later and later, until `give_up` is over.  No event of the
same message overtakes it; those of others do.  Many that fail in a row mean that their server is gone, so a round is
broken off then.
Invariants: an event is told as done only after its program has run, or failed for good; what is left at the end of a
run is nobody's here, and still in the outbox.
"""

from __future__ import annotations

import math
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

    @property
    def message(self) -> str:
        """What its order is kept in: its message; what is of none has no order."""
        return self.stored.message_id or self.event.key


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
        #: messages one of whose events is put off
        self._blocked: set[str] = set()
        #: lookups that failed in a row
        self._failures = 0
        self._backoff_s = 0.0
        #: when what was put off is due, on trio's clock
        self._again_at = math.inf
        #: that a lookup cannot be done has been logged: once until it works again, not once an event
        self._told = False

    def add_nowait(self, event: OutboxEvent, stored: Stored) -> bool:
        """Take an event; False if there are too many already."""
        if len(self._waiting) >= LIMIT:
            return False
        self._waiting.append(Waiting(event, stored))
        self._wake.set()
        return True

    def tried(self) -> list[OutboxEvent]:
        """The events that wait to be tried again."""
        return [waiting.event for waiting in self._waiting if waiting.attempts]

    async def run(self) -> None:
        """Run what comes, until cancelled."""
        while True:
            with trio.move_on_at(self._again_at):
                await self._wake.wait()
            self._wake = trio.Event()
            is_due = trio.current_time() >= self._again_at
            # what is put off holds up nothing but its message, as long as its server seems to be there
            if is_due or self._failures < MAX_DEFERRALS:
                await self.round(is_due=is_due)

    async def round(self, *, is_due: bool = True) -> bool:
        """One round over everything that waits; False if something has to be tried again.

        Args:
            is_due: also over the messages that were put off.
        """
        if is_due:
            self._blocked.clear()
            self._failures = 0
        before = len(self._blocked)
        todo = deque([waiting for waiting in self._waiting if waiting.message not in self._blocked])
        self._waiting = deque([waiting for waiting in self._waiting if waiting.message in self._blocked])
        again: list[Waiting] = []
        try:
            while todo and self._failures < MAX_DEFERRALS:
                batch = [todo.popleft() for _ in range(min(BATCH, len(todo)))]
                # what has run is told, whoever is cancelled meanwhile
                with trio.CancelScope(shield=True):
                    found = await trio.to_thread.run_sync(self._run, batch, limiter=self._events.threads)
                again += found.again
                for fact in found.facts:
                    self._tell(fact)
                for waiting, reason in found.dead:
                    self._on_dead(waiting.event, reason, waiting.attempts)
                self._on_done(found.done)
                await trio.lowlevel.checkpoint()
        finally:
            # those that are put off go behind the others, or a few of them would hold up everything for ever
            rest = [*again, *todo, *self._waiting]
            self._waiting = deque([waiting for waiting in rest if waiting.message not in self._blocked])
            self._waiting += [waiting for waiting in rest if waiting.message in self._blocked]
        if not self._blocked:
            self._backoff_s, self._again_at = 0.0, math.inf
            self._told = False
            return True
        if is_due or not before:
            first, most = BACKOFF_S
            self._backoff_s = min(max(first, 2 * self._backoff_s), most)
            self._again_at = trio.current_time() + self._backoff_s
        return False

    def _run(self, batch: Sequence[Waiting]) -> _Batch:
        """In the thread: run a batch."""
        found = _Batch()
        for waiting in batch:
            message = waiting.message
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
