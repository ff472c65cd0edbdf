"""The desk of a worker for strings of event_action: one after the other, and again later what cannot be done now.

Layer: adapter; a thread, no trio.  Spec: EV-5; issue text "Guarantees".

Facts.  A lookup defers when its server is away, and also when the server does not like this one query (Exim does not
tell the two apart).  The first is over for all at once; the second may stay for ever.

What it means.  What defers must be tried again, the events of its message must stay behind it, and those of others
must not: a row that a table will not take must not hold up a worker for a day.

Our solution.  A message whose event defers is put aside with whatever comes for it, and tried again later and later.
When `MAX_DEFERRALS` events have deferred in a row their server is taken to be away: then the desk pauses before it
tries another one.  What has been tried until its `give_up_at` becomes a dead letter.
Invariants: the events of a message are evaluated in order; what is unfinished when the worker stops is not
acknowledged, and comes again; whoever waits here says now and then that it is alive.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .desks import Desk, Ledger, Sender
from .frames import ALIVE, LOG, ProgramText, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .api import Backoff
    from .programs import Evaluator

#: lookups that may defer in a row before their server is taken to be away
MAX_DEFERRALS: Final = 5
#: programs whose end is told together: what is done again when the worker dies
_ACKNOWLEDGED: Final = 20
#: the logs of an expansion that failed (EV-5)
_BOTH: Final = frozenset(["main", "panic"])


class Run(NamedTuple):
    """A program to be evaluated.

    Attributes:
        message: those of the same one are evaluated in order.
    """

    seq: int
    program: int
    message: bytes
    values: tuple[Any, ...]
    state: Mapping[str, Any]


@dataclass(slots=True)
class _Aside:
    """A message that waits.

    Attributes:
        attempts: how often its first event was tried; at: when that is done again, on the monotonic clock.
    """

    runs: deque[Run] = field(default_factory=deque)
    attempts: int = 1
    at: float = 0.0


class ProgramDesk(Desk):
    """Evaluates programs whose values nobody waits for: items are `Run`, or a program to be learnt.

    A lookup that cannot be done now is tried again until the state's `give_up_at`, or so many `attempts` where it has
    none.
    """

    def __init__(self, evaluator: Evaluator, ledger: Ledger, send: Sender, *, attempts: int, backoff: Backoff) -> None:
        super().__init__("event_action", ledger, send, batch=500, linger_s=0.0)
        self._evaluator = evaluator
        self._attempts = attempts
        self._backoff = backoff
        self._aside: dict[bytes, _Aside] = {}
        #: lookups that deferred in a row
        self._failures = 0
        self._done: list[int] = []

    def _is_stored(self, item: Any) -> bool:
        return isinstance(item, Run)

    def learn(self, text: ProgramText) -> None:
        """A program, to be known before the items that follow."""
        self.add(text)

    @property
    def _is_at_end(self) -> bool:
        """Whether nothing more is to be tried: nobody is there, or a server is away and nobody can wait for it."""
        return self._abandoned.is_set() or (self._stopping.is_set() and self._failures >= MAX_DEFERRALS)

    def _run(self) -> None:
        try:
            while not self._is_at_end:
                batch = self._next_batch(self._until_next())
                if not batch and self._stopping.is_set():
                    break
                self._handle(batch)
                self._try_again()
        finally:
            self._close()

    def _until_next(self) -> float | None:
        """Seconds until something that was put aside is due; None if nothing was."""
        if not self._aside:
            return None
        return max(0.0, min(aside.at for aside in self._aside.values()) - time.monotonic())

    def _handle(self, batch: Sequence[Any]) -> None:
        for item in batch:
            if not isinstance(item, Run):
                self._evaluator.learn(item)
                continue
            if self._is_at_end:
                break
            aside = self._aside.get(item.message)
            if aside is not None:
                aside.runs.append(item)
            elif not self._evaluate(item, 1):
                self._put_aside(item)
        self._tell_done()

    def _put_aside(self, run: Run) -> None:
        at = time.monotonic() + self._backoff.pause_s(1)
        self._aside[run.message] = _Aside(deque([run]), at=at)
        if self._failures >= MAX_DEFERRALS:
            # what is done is told before a long wait
            self._tell_done()
            self._pause(self._backoff, self._failures - MAX_DEFERRALS + 1)
            self._try_again()

    def _try_again(self) -> None:
        """Try what is due of that which was put aside."""
        now = time.monotonic()
        due = [message for message, aside in self._aside.items() if aside.at <= now]
        for message in due:
            if self._stopping.is_set():
                return
            self._send((ALIVE,))
            aside = self._aside[message]
            while aside.runs and self._evaluate(aside.runs[0], aside.attempts + 1):
                aside.runs.popleft()
                aside.attempts = 0
            if not aside.runs:
                del self._aside[message]
                continue
            aside.attempts += 1
            aside.at = time.monotonic() + self._backoff.pause_s(aside.attempts)
            if self._failures >= MAX_DEFERRALS:
                # the others wait for the same server
                break
        self._tell_done()

    def _evaluate(self, run: Run, attempt: int) -> bool:
        """Evaluate once; False if that is to be done again."""
        where = self._evaluator.where(run.program)

        def logwrite(text: bytes, logs: frozenset[str]) -> None:
            self._send((LOG, run.seq, text, tuple(sorted(logs))))

        found = self._evaluator.evaluate(run.program, run.values, run.state, logwrite)
        is_deferred = found.status is Status.DEFERRED
        if not is_deferred and self._failures >= MAX_DEFERRALS:
            # the server is back, for the others too
            for aside in self._aside.values():
                aside.at = 0.0
        self._failures = self._failures + 1 if is_deferred else 0
        if found.status is not Status.DONE and (attempt == 1 or not is_deferred):
            logwrite(b"failed to expand %s: %s" % (where.encode(), found.text), _BOTH)
        if not is_deferred:
            # EV-5: an expansion that fails is like one that gave nothing
            self._done.append(run.seq)
            if len(self._done) >= _ACKNOWLEDGED:
                self._tell_done()
            return True
        give_up_at: float | None = run.state.get("give_up_at")
        if attempt >= self._attempts if give_up_at is None else time.time() >= give_up_at:
            self._ledger.dead(run.seq, where, attempt, found.text.decode("utf-8", "replace"))
            return True
        return False

    def _tell_done(self) -> None:
        if self._done:
            self._ledger.done(self._done)
            self._done = []

    def _close(self) -> None:
        self._evaluator.close()
