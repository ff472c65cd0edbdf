"""The desk of a worker for one handler: it is called with batches, again with what failed, and with each alone at last.

Layer: adapter; a thread, no trio.  Spec: issue text "Workers" and "Guarantees".
A batch that fails is handled again as it is `TOGETHER` times at most: a server that restarts is back by then.  After
that each of its events is tried alone, so that one that cannot be handled does not take the others with it; what fails
alone is put aside (patience.py) until it has been tried `attempts` times, and then it is a dead letter.
Invariants: nothing of a message is handled before its earlier events are done or given up; a live event is tried once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .desks import Caller
from .patience import PatientDesk, message_of

if TYPE_CHECKING:
    from .api import Event, Registration
    from .desks import Ledger, Sender

#: calls with one batch before its events are tried alone
TOGETHER: Final = 4


class HandlerDesk(PatientDesk):
    """Calls a handler of events."""

    def __init__(self, registration: Registration, ledger: Ledger, send: Sender) -> None:
        super().__init__(
            registration.name,
            ledger,
            send,
            batch=registration.batch,
            linger_s=registration.linger_s,
            attempts=registration.attempts,
            backoff=registration.backoff,
        )
        self.registration = registration
        self._caller = Caller()

    def _handle(self, batch: list[Event]) -> None:
        if self._aside:
            batch = [event for event in batch if not (event.seq and self._is_behind(message_of(event.id), event))]
        if not batch:
            return
        most = min(self._attempts, TOGETHER)
        for attempt in range(1, most + 1):
            error = self._caller.problem(self.registration.function, batch)
            if error is None:
                self._count(is_failure=False)
                self._ledger.done(event.seq for event in batch)
                return
            self._log(f"handler {self.name} failed with {len(batch)} events (attempt {attempt}): {error}")
            batch = [event for event in batch if event.seq]
            if not batch:
                return
            if attempt == 1:
                self._count(is_failure=True)
            if attempt < most and not self._pause(self._backoff, attempt):
                return
        self._try_each(batch, most, error or "")

    def _try_each(self, batch: list[Event], attempts: int, error: str) -> None:
        """Each alone, after so many attempts with all of them; the last one failed so."""
        if len(batch) == 1 and attempts >= self._attempts:
            self._ledger.dead(batch[0].seq, self.name, attempts, error)
            return
        for number, event in enumerate(batch):
            message = message_of(event.id)
            if self._is_behind(message, event):
                continue
            if len(batch) == 1:
                self._put_aside(message, event, attempts)
            elif not self._try_one(event, attempts + 1):
                self._put_aside(message, event, attempts + 1)
                if self._is_away:
                    self._put_back(batch[number + 1 :])
                    self._wait_for_server()
                    return

    def _try_one(self, item: Event, attempt: int) -> bool:
        error = self._caller.problem(self.registration.function, [item])
        self._count(is_failure=error is not None)
        if error is None:
            self._ledger.done([item.seq])
            return True
        if attempt >= self._attempts:
            self._ledger.dead(item.seq, self.name, attempt, error)
            return True
        return False

    def _close(self) -> None:
        self._caller.close()
        if self.registration.close is not None:
            self.registration.close()
