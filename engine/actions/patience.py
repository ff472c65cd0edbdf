"""What a desk does with events that cannot be handled now: it puts their message aside, and goes on with the others.

Layer: adapter; a thread, no trio.  Spec: issue text "Guarantees".

Facts.  What fails may fail since a server is away, which is over for all at once, or since nobody likes this one event
(a row that a table will not take, a bug of a handler), which may stay for ever.  Mostly nobody tells the two apart.

What it means.  What fails must be tried again, the events of its message must stay behind it, and those of others must
not: one event must not hold up a worker for hours.

Our solution.  A message whose event fails is put aside with whatever comes for it, and tried again later and later.
When `MAX_FAILURES` have failed in a row their server is taken to be away: then the desk pauses before it tries another
one, and nobody waits for it when the worker is to end.
Invariants: the events of a message are handled in order; what is unfinished when the worker stops is not acknowledged,
and comes again; whoever waits here says now and then that it is alive.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .desks import ALIVE_S, Desk, Ledger, Sender
from .frames import ALIVE

if TYPE_CHECKING:
    from .api import Backoff

#: events that may fail in a row before their server is taken to be away
MAX_FAILURES: Final = 5


def message_of(id: bytes) -> bytes:
    """What stands first in the id of an event: its message; what is of no message has no order to keep."""
    return id.partition(b"/")[0] or id


@dataclass(slots=True)
class _Aside:
    """A message that waits.

    Attributes:
        attempts: how often its first event was tried; at: when that is done again, on the monotonic clock.
    """

    items: deque[Any]
    attempts: int
    at: float


class PatientDesk(Desk):
    """See the module's text; subclasses handle a batch and try one item."""

    def __init__(
        self, name: str, ledger: Ledger, send: Sender, *, batch: int, linger_s: float, attempts: int, backoff: Backoff
    ) -> None:
        super().__init__(name, ledger, send, batch=batch, linger_s=linger_s)
        self._attempts = attempts
        self._backoff = backoff
        self._aside: dict[bytes, _Aside] = {}
        #: attempts that failed in a row
        self._failures = 0

    def _try_one(self, item: Any, attempt: int) -> bool:
        """Handle one item, which has failed before; False if that is to be done again.  It counts as `_count` says."""
        raise NotImplementedError

    def _tell_done(self) -> None:
        """Acknowledge what is done, before a long wait."""

    def _count(self, *, is_failure: bool) -> None:
        """An attempt has ended."""
        if not is_failure and self._failures >= MAX_FAILURES:
            # the server is back, for the others too
            for aside in self._aside.values():
                aside.at = 0.0
        self._failures = self._failures + 1 if is_failure else 0

    @property
    def _is_away(self) -> bool:
        """Whether the server seems to be away."""
        return self._failures >= MAX_FAILURES

    @property
    def _is_at_end(self) -> bool:
        """Whether nothing more is to be tried: nobody is there, or a server is away and nobody can wait for it."""
        return self._abandoned.is_set() or (self._stopping.is_set() and self._is_away)

    def _run(self) -> None:
        try:
            while not self._is_at_end:
                batch = self._next_batch(self._until_next())
                if not batch and self._stopping.is_set():
                    break
                if batch:
                    self._handle(batch)
                elif self._aside:
                    self._send((ALIVE,))
                self._try_again()
        finally:
            self._close()

    def _until_next(self) -> float | None:
        """Seconds until something that was put aside is due, or is to be told alive; None if nothing was."""
        if not self._aside:
            return None
        left = min(aside.at for aside in self._aside.values()) - time.monotonic()
        return min(max(0.0, left), ALIVE_S)

    def _is_behind(self, message: bytes, item: Any) -> bool:
        """Put an item behind its message, if that is aside; whether it is."""
        aside = self._aside.get(message)
        if aside is not None:
            aside.items.append(item)
        return aside is not None

    def _put_aside(self, message: bytes, item: Any, attempts: int) -> None:
        """An item has failed so often."""
        at = time.monotonic() + self._backoff.pause_s(attempts)
        self._aside[message] = _Aside(deque([item]), attempts, at)

    def _wait_for_server(self) -> None:
        """Wait before more is tried of a server that is away."""
        self._tell_done()
        self._pause(self._backoff, self._failures - MAX_FAILURES + 1)
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
            while aside.items and self._try_one(aside.items[0], aside.attempts + 1):
                aside.items.popleft()
                aside.attempts = 0
            if not aside.items:
                del self._aside[message]
                continue
            aside.attempts += 1
            aside.at = time.monotonic() + self._backoff.pause_s(aside.attempts)
            if self._is_away:
                # the others wait for the same server
                break
        self._tell_done()
