"""The desk of a worker for strings of event_action: one after the other, and again later what cannot be done now.

Layer: adapter; a thread, no trio.  Spec: EV-5; issue text "Guarantees".
A lookup that defers may be done later (Exim does not tell whether a server is away or does not like the query): see
patience.py.  What has been tried until its `give_up_at` becomes a dead letter.
Invariants: an expansion that fails is like one that gave nothing (EV-5).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .frames import LOG, ProgramText, Status
from .patience import PatientDesk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .api import Backoff
    from .desks import Ledger, Sender
    from .programs import Evaluator

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


class ProgramDesk(PatientDesk):
    """Evaluates programs whose values nobody waits for: items are `Run`, or a program to be learnt.

    A lookup that cannot be done now is tried again until the state's `give_up_at`, or so many `attempts` where it has
    none.
    """

    def __init__(self, evaluator: Evaluator, ledger: Ledger, send: Sender, *, attempts: int, backoff: Backoff) -> None:
        super().__init__("event_action", ledger, send, batch=500, linger_s=0.0, attempts=attempts, backoff=backoff)
        self._evaluator = evaluator
        self._done: list[int] = []

    def _is_stored(self, item: Any) -> bool:
        return isinstance(item, Run)

    def learn(self, text: ProgramText) -> None:
        """A program, to be known before the items that follow."""
        self.add(text)

    def _handle(self, batch: Sequence[Any]) -> None:
        for item in batch:
            if not isinstance(item, Run):
                self._evaluator.learn(item)
                continue
            if self._is_at_end:
                break
            if not self._is_behind(item.message, item) and not self._try_one(item, 1):
                self._put_aside(item.message, item, 1)
                if self._is_away:
                    self._wait_for_server()
        self._tell_done()

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

    def _tell_done(self) -> None:
        if self._done:
            self._ledger.done(self._done)
            self._done = []

    def _close(self) -> None:
        self._evaluator.close()
