"""The desk of a worker for strings of event_action: what can go together does, the rest one after the other.

Layer: adapter; a thread, no trio.  Spec: EV-5; issue text "Guarantees".
A lookup that defers may be done later (Exim does not tell whether a server is away or does not like the query): see
patience.py.  What has been tried until its `give_up_at` becomes a dead letter.

Lookups whose results nobody reads (postponing.py) are collected and sent together, one transaction for up to `most`
events; when that is committed they are acknowledged.  Where one fails, nothing of its transaction is left (or what came
before it is committed, as the driver likes): those before it are done again together, it itself alone, with everything
that happens to a lookup which fails, and those behind it together again.  Where nobody knows which one it was, all are
done alone.
What is done again when a worker dies are `most` events that went together, and `_ACKNOWLEDGED` that were evaluated one
by one.
Invariants: an expansion that fails is like one that gave nothing (EV-5); the events of a message are evaluated in
order; nothing is acknowledged before it is committed.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .frames import LOG, Status
from .patience import PatientDesk
from .programs import TOGETHER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .api import Backoff
    from .desks import Ledger, Sender
    from .lookups import Place, Statement
    from .programs import Evaluator

#: programs, evaluated one by one, whose end is told together: what is done again when the worker dies
_ACKNOWLEDGED: Final = 20
#: the logs of an expansion that failed (EV-5)
_BOTH: Final = frozenset(["main", "panic"])
#: octets of the statements of a transaction, but for its first event (arbitrary; those of the documentation's example
#: have 250 each)
_OCTETS: Final = 256 * 1024
#: seconds that a program is evaluated by itself after it failed together with others but not alone, and at most, four
#: times as long each time
_APART_S: Final = 1.0
_APART_MOST_S: Final = 1024.0


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


class _Postponed(NamedTuple):
    """A program whose lookups were not done yet."""

    run: Run
    statements: tuple[Statement, ...]


class ProgramDesk(PatientDesk):
    """Evaluates programs whose values nobody waits for: items are `Run`, or a program to be known for what follows.

    A lookup that cannot be done now is tried again until the state's `give_up_at`, or so many `attempts` where it has
    none.

    Args:
        most: events whose lookups share a transaction; 1: none.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        ledger: Ledger,
        send: Sender,
        *,
        attempts: int,
        backoff: Backoff,
        most: int = TOGETHER,
    ) -> None:
        super().__init__("event_action", ledger, send, batch=500, linger_s=0.0, attempts=attempts, backoff=backoff)
        self._evaluator = evaluator
        self._most = most
        self._done: list[int] = []
        #: programs that do not get on with others: until when each is evaluated by itself, and for how long that was
        self._apart: dict[int, tuple[float, float]] = {}

    def _is_stored(self, item: Any) -> bool:
        return isinstance(item, Run)

    def _handle(self, batch: Sequence[Any]) -> None:
        alone: list[Run] = []
        places: dict[Place, list[_Postponed]] = {}
        #: where the events of a message are, None for `alone`
        order: dict[bytes, Place | None] = {}
        now = time.monotonic()
        for item in batch:
            if not isinstance(item, Run):
                self._evaluator.learn(item)
                continue
            if self._is_behind(item.message, item):
                continue
            place, statements = self._postponed(item, now)
            if order.setdefault(item.message, place) != place:
                # behind what is done at another place, so after all of that
                order[item.message] = place = None
            if place is None:
                alone.append(item)
            else:
                places.setdefault(place, []).append(_Postponed(item, statements))
        for known, waiting in places.items():
            self._do_together(known, deque(waiting))
        for item in alone:
            if self._is_at_end:
                break
            self._do_alone(item)
        self._tell_done()

    # -- alone --

    def _do_alone(self, item: Run) -> bool:
        """Evaluate one, unless its message is aside; False if that is aside now."""
        if self._is_behind(item.message, item):
            return False
        if self._try_one(item, 1):
            return True
        self._put_aside(item.message, item, 1)
        if self._is_away:
            self._wait_for_server()
        return False

    def _try_one(self, item: Run, attempt: int) -> bool:
        where = self._evaluator.where(item.program)

        def logwrite(text: bytes, logs: frozenset[str]) -> None:
            self._send((LOG, item.seq, text, tuple(sorted(logs))))

        found = self._evaluator.evaluate(item.program, item.values, item.state, logwrite)
        is_deferred = found.status is Status.DEFERRED
        self._count(is_failure=is_deferred)
        if found.status is not Status.DONE and (attempt == 1 or not is_deferred):
            logwrite(b"failed to expand %s: %s" % (where.encode(), found.text), _BOTH)
        if not is_deferred:
            self._done.append(item.seq)
            if len(self._done) >= _ACKNOWLEDGED:
                self._tell_done()
            return True
        give_up_at: float | None = item.state.get("give_up_at")
        if attempt >= self._attempts if give_up_at is None else time.time() >= give_up_at:
            self._ledger.dead(item.seq, where, attempt, found.text.decode("utf-8", "replace"))
            return True
        return False

    # -- together --

    def _postponed(self, item: Run, now: float) -> tuple[Place | None, tuple[Statement, ...]]:
        """Where the lookups of a program are done, and its statements; None if it is to be evaluated by itself."""
        if self._most == 1 or self._failures:
            return None, ()
        if self._apart and self._apart.get(item.program, (0.0, 0.0))[0] > now:
            return None, ()
        asked = self._evaluator.postpone(item.program, item.values, item.state)
        if not asked:
            return None, ()
        place = asked[0].place
        if len(asked) == 1:
            return place, (asked[0].statement,)
        if any(other.place != place for other in asked):
            return None, ()
        return place, tuple(one.statement for one in asked)

    def _do_together(self, place: Place, waiting: deque[_Postponed]) -> None:
        #: how many of the first are to be done before one that is to be done alone; None if there is no such one
        before: int | None = None
        while waiting and not self._is_at_end:
            if before == 0:
                before = None
                suspect = waiting.popleft().run
                if self._do_alone(suspect) and not self._failures:
                    # nothing is wrong with it but that it does not like company
                    self._keep_apart(suspect.program)
                    self._do_each(waiting)
                    return
            if self._failures:
                # perhaps the server is away
                before = None
                if waiting:
                    self._do_alone(waiting.popleft().run)
                continue
            some = self._first_of(waiting, self._most if before is None else before)
            if not some:
                continue
            progress = self._evaluator.run_together(place, [one.statements for one in some])
            for _ in range(progress.done):
                waiting.popleft()
            if progress.done:
                self._count(is_failure=False)
                self._ledger.done([one.run.seq for one in some[: progress.done]])
                for one in some[: progress.done]:
                    self._apart.pop(one.run.program, None)
            if before is not None:
                before -= progress.done
            if progress.failed is not None:
                before = progress.failed - progress.done
            elif progress.reason:
                # nobody knows which one it was
                if progress.is_in_doubt:
                    self._tell_doubt(len(some), progress.reason)
                for program in {one.run.program for one in some}:
                    self._keep_apart(program)
                self._do_each(waiting)
                return

    def _first_of(self, waiting: deque[_Postponed], most: int) -> list[_Postponed]:
        """What the next transaction has; what belongs to messages that are aside is put there."""
        if self._aside:
            kept = [one for one in waiting if not self._is_behind(one.run.message, one.run)]
            waiting.clear()
            waiting.extend(kept)
        some: list[_Postponed] = []
        octets = 0
        for one in islice(waiting, most):
            octets += sum(map(_octets, one.statements))
            if some and octets > _OCTETS:
                break
            some.append(one)
        return some

    def _do_each(self, waiting: deque[_Postponed]) -> None:
        """Do all of them alone."""
        for one in waiting:
            if self._is_at_end:
                return
            self._do_alone(one.run)

    def _tell_doubt(self, count: int, reason: str) -> None:
        self._log(f"{count} events of event_action may be done twice: no answer to their commit: {reason}")

    def _keep_apart(self, program: int) -> None:
        """A program that failed with others was done alone: let it be so for a while."""
        length = min(4 * self._apart.get(program, (0.0, _APART_S / 4))[1], _APART_MOST_S)
        self._apart[program] = time.monotonic() + length, length

    def _tell_done(self) -> None:
        if self._done:
            self._ledger.done(self._done)
            self._done = []

    def _close(self) -> None:
        self._evaluator.close()


def _octets(statement: Statement) -> int:
    return len(statement.text) + sum(map(len, filter(None, statement.values or ())))
