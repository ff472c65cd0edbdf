"""The threads of a worker: each handler has a desk, where events wait and are batched.

Layer: adapter; threads, no trio.  Spec: issue text "Guarantees".  What fails is the business of patience.py.
Invariants: what one desk gets it handles in order; an event is acknowledged when every desk that got it is done with
it; what is unfinished when the worker stops is not acknowledged, and comes again.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import time
import traceback
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from .frames import ALIVE, DEAD, LOG, ack_frame

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from .api import Backoff

#: seconds between two signs of life of a desk that waits; worker_timeout is a second at least
ALIVE_S: Final = 0.25
#: octets of an error that are worth keeping
_MAX_ERROR = 2000


def failures() -> tuple[type[BaseException], ...]:
    """What the code of users may raise, as a failed attempt.

    `sys.exit` and a task that was cancelled are no Exception, and would end the thread that called it without a word.
    """
    # imported by whoever has tasks
    loaded = sys.modules.get("asyncio")
    return (Exception, SystemExit) if loaded is None else (Exception, SystemExit, loaded.CancelledError)


class Sender(Protocol):
    """Sends a frame to the engine; waits for room, and gives up silently when the engine is gone."""

    def __call__(self, frame: tuple[Any, ...]) -> None: ...


class Ledger:
    """Who is not done yet with which event; sends the acknowledgements."""

    def __init__(self, send: Sender) -> None:
        self._send = send
        self._lock = threading.Lock()
        # only events that more than one desk has
        self._shared: Counter[int] = Counter()

    def expect(self, seq: int, desks: int) -> None:
        """An event went to so many desks; one that went to none is done at once."""
        if desks == 0:
            self.done([seq])
        elif desks > 1:
            with self._lock:
                self._shared[seq] = desks

    def done(self, seqs: Iterable[int]) -> None:
        """One desk is done with these."""
        finished = [seq for seq in seqs if seq]
        if self._shared:
            with self._lock:
                finished = [seq for seq in finished if self._is_last(seq)]
        if finished:
            self._send(ack_frame(finished))

    def dead(self, seq: int, handler: str, attempts: int, error: str) -> None:
        """One desk gives an event up; the engine keeps a dead letter, and the event is done for this desk."""
        self._send((DEAD, seq, handler, attempts, error[:_MAX_ERROR]))
        self.done([seq])

    def _is_last(self, seq: int) -> bool:
        left = self._shared.pop(seq, 1) - 1
        if left:
            self._shared[seq] = left
        return not left


class Desk:
    """A queue and a thread; subclasses handle a batch."""

    def __init__(self, name: str, ledger: Ledger, send: Sender, *, batch: int, linger_s: float) -> None:
        self.name = name
        self._ledger = ledger
        self._send = send
        self._batch = batch
        self._linger_s = linger_s
        self._items: deque[Any] = deque()
        #: held while `_items` is changed; told when there is a first one, a whole batch, or the end
        self._changed = threading.Condition(threading.Lock())
        self._stopping = threading.Event()
        self._abandoned = threading.Event()
        self._nice = 0
        self._thread = threading.Thread(target=self._start, name=f"handler {name}", daemon=True)

    def start(self, nice: int = 0) -> None:
        """Begin.

        Args:
            nice: of the thread, where threads have one of their own (Linux).
        """
        self._nice = nice
        self._thread.start()

    def add(self, item: Any) -> None:
        """Put an item behind the others."""
        with self._changed:
            self._items.append(item)
            if len(self._items) in (1, self._batch):
                # whoever waits for a batch to fill up is not woken for every item
                self._changed.notify()

    def add_all(self, items: list[Any]) -> None:
        """Put items behind the others, in order."""
        with self._changed:
            before = len(self._items)
            self._items.extend(items)
            if not before or before < self._batch <= len(self._items):
                self._changed.notify()

    def _put_back(self, items: list[Any]) -> None:
        """Put items before the others again."""
        with self._changed:
            self._items.extendleft(reversed(items))

    def finish(self) -> None:
        """Stop when everything is handled; whoever waits to try again stops at once."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()

    def abandon(self) -> None:
        """Nobody is there to be told what is done: what is stored and not begun comes again from the next engine."""
        self._abandoned.set()
        with self._changed:
            kept = [item for item in self._items if not self._is_stored(item)]
            self._items.clear()
            self._items.extend(kept)

    def _is_stored(self, item: Any) -> bool:
        """Whether an item comes again when it is not acknowledged."""
        return bool(item.seq)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False if it did not come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _start(self) -> None:
        if self._nice and sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        self._run()

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._handle(batch)
        finally:
            self._close()

    def _next_batch(self, timeout_s: float | None = None) -> list[Any]:
        """What waits, a batch at most, once there is something; empty at the end, or if there is nothing in time."""
        items, stopping = self._items, self._stopping
        with self._changed:
            self._changed.wait_for(lambda: items or stopping.is_set(), timeout_s)
            if self._linger_s:
                self._changed.wait_for(lambda: len(items) >= self._batch or stopping.is_set(), self._linger_s)
            return [items.popleft() for _ in range(min(self._batch, len(items)))]

    def _pause(self, backoff: Backoff, attempt: int) -> bool:
        """Wait before the next attempt; False if the worker stops."""
        end = time.monotonic() + backoff.pause_s(attempt)
        while (left := end - time.monotonic()) > 0:
            self._send((ALIVE,))
            if self._stopping.wait(min(left, ALIVE_S)):
                return False
        return not self._stopping.is_set()

    def _log(self, text: str) -> None:
        self._send((LOG, 0, text.encode("utf-8", "surrogateescape"), ("main",)))

    def _handle(self, batch: list[Any]) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class Caller:
    """Calls functions of users, awaiting what is async in a loop of its own; belongs to one thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result.  Raises whatever the function raises."""
        found = function(*arguments)
        if not inspect.iscoroutine(found):
            return found
        if self._runner is None:
            import asyncio  # noqa: PLC0415  # takes long, and few handlers are async

            self._runner = asyncio.Runner()
        return self._runner.run(found)

    def problem(self, function: Callable[..., Any], *arguments: Any) -> str | None:
        """Call; None if it returned, or what it raised, with the place."""
        try:
            self.call(function, *arguments)
        except failures() as error:
            return describe(error)
        return None

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


def describe(error: BaseException) -> str:
    """An exception of a user's code in one line: its kind, its text and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}".replace("\n", " ")[:_MAX_ERROR]
