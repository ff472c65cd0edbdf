"""Ask ahead what the routes of new domains need, many questions at a time.

Layer: orchestration.  Spec: RFC 5321 §5.1 (MX), RFC 8461 §3.1 (the record of MTA-STS).
A task that asks, waits and asks on costs more than the questions.  So the MX and MTA-STS questions of a batch of
domains go out at once, without a task; domains whose answers have come are collected, and whoever waits for them takes
all that there are.  What else has to be asked (hosts that nobody has been sent to yet, a policy, whatever other routers
want) is for a task of its own: see `Scheduler`.
Bounds: the questions of `MAX_ASKED` domains are on the way; the other domains stand in line.
Invariant: each domain that was added is taken once, whatever DNS does.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from .core import Core

#: domains asked about at one time; arbitrary: two questions each, and resolvers start to drop queries at some hundreds
MAX_ASKED: Final = 100


class Asking:
    """The domains whose routes are to be found."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._line: deque[str] = deque()
        #: domain -> questions that have no answer yet
        self._open: dict[str, int] = {}
        self._ready: list[str] = []
        self._has_ready = trio.Event()

    def add(self, domain: str) -> None:
        """Find out about `domain`."""
        if len(self._open) < MAX_ASKED:
            self._ask(domain)
        else:
            self._line.append(domain)

    async def take(self) -> list[str]:
        """Wait until something is known about some domains, and take them."""
        await self._has_ready.wait()
        self._has_ready = trio.Event()
        ready, self._ready = self._ready, []
        return ready

    def _ask(self, domain: str) -> None:
        routers, sts = self._core.routers, self._core.sts
        router = routers.first_lookup
        count = 0
        if router is not None and not domain.startswith("["):
            on_end = partial(self._on_answer, domain)
            count = routers.ask_ahead(domain, "MX", on_end)
            record = sts.record_or_none(router, domain)
            if record is not None:
                count += routers.ask_ahead(record, "TXT", on_end)
        if count:
            self._open[domain] = count
        else:
            self._set_ready(domain)

    def _on_answer(self, domain: str) -> None:
        left = self._open[domain] - 1
        if left:
            self._open[domain] = left
            return
        del self._open[domain]
        self._set_ready(domain)
        while self._line and len(self._open) < MAX_ASKED:
            self._ask(self._line.popleft())

    def _set_ready(self, domain: str) -> None:
        self._ready.append(domain)
        self._has_ready.set()
