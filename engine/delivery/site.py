"""The ready queue of one site: what waits for its hosts, and which of them may serve it.

Layer: orchestration (no I/O here; time is an argument).  Spec: RT-1 to RT-3 and RT-13 of events-dane section 11;
design.md "Speed": per recipient only table look-ups and appends.

A site is a transport with the ordered hosts of one or more domains.  Work that waits stands in deques by the set of
hosts it has already tried (a bit mask, nearly always 0), so taking the next piece for a host is a look at one or two
deque heads, whatever the length.  A host may serve a piece of work when every host of a better preference has either
been tried by it or is down for now: MX preference wins over load.
Invariants: a piece of work is in one deque or in one connection's hands, never both; `waiting` counts those in deques.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..errors import DeliveryError
    from ..policy.mx import Host
    from ..smtp import HostMemory
    from .transport import Transport
    from .work import Work


@dataclass(slots=True)
class Down:
    """A host error that still holds.

    Attributes:
        until: UTC epoch seconds at which the host may be tried again.
        error: what happened, for the log lines of those who wait for it; None when it is known from an earlier run.
        expired: past the last cut-off of its retry rule (RT-9).
    """

    until: float
    error: DeliveryError | None
    expired: bool = False


@dataclass(slots=True, eq=False)
class Site:
    """One transport and the hosts it sends to, with the work that waits for them.

    Attributes:
        hosts: best preference first.
        down: host number -> the error that holds.
        connections: connection tasks alive; established: those with a session that has been greeted.
        memory: host number -> what the pipelining ladder has learned of the host.
        plain: host numbers whose TLS start failed and that may be spoken to in clear (TL-7).
    """

    router: str
    transport: Transport
    hosts: tuple[Host, ...]
    down: dict[int, Down] = field(default_factory=dict)
    memory: dict[int, HostMemory] = field(default_factory=dict)
    plain: set[int] = field(default_factory=set)
    connections: int = 0
    established: int = 0
    waiting: int = 0
    #: monotonic second until which no further connection is opened, after the site refused one it had beside others
    no_more_until: float = 0.0
    last_used: float = 0.0
    _ready: dict[int, deque[Work]] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        """Let `work` wait at the end."""
        self._queue(work.tried).append(work)
        self.waiting += 1

    def put_back(self, work: Work) -> None:
        """Let `work` wait at the front: it was taken and never begun."""
        self._queue(work.tried).appendleft(work)
        self.waiting += 1

    def _queue(self, tried: int) -> deque[Work]:
        queue = self._ready.get(tried)
        if queue is None:
            queue = self._ready[tried] = deque()
        return queue

    def take(self, host: int) -> Work | None:
        """The next piece of work that `host` may serve, or None."""
        if not self.waiting:
            return None
        for tried, queue in self._ready.items():
            if queue and self._may_serve(host, tried):
                self.waiting -= 1
                work = queue.popleft()
                if not queue and tried:
                    del self._ready[tried]
                return work
        return None

    def has_work_for(self, host: int) -> bool:
        return bool(self.waiting) and any(
            queue and self._may_serve(host, tried) for tried, queue in self._ready.items()
        )

    def next_host(self, now: float) -> int | None:
        """The host to connect to next: the best one that is not down and has work it may serve.

        Among hosts of one preference the one with the fewest failures behind it comes first in `hosts` order; their
        order was shuffled when the route was made.
        """
        self._forget_down(now)
        for number in range(len(self.hosts)):
            if number not in self.down and self.has_work_for(number):
                return number
        return None

    def _forget_down(self, now: float) -> None:
        for number in [number for number, down in self.down.items() if down.until <= now]:
            del self.down[number]

    def _may_serve(self, host: int, tried: int) -> bool:
        if tried >> host & 1:
            return False
        if host == 0 and not tried:
            return True
        preference = self.hosts[host].preference
        for number, other in enumerate(self.hosts):
            if number == host:
                continue
            better = number < host if preference is None or other.preference is None else other.preference < preference
            if better and not tried >> number & 1 and number not in self.down:
                return False
        return True

    def has_host_left(self, work: Work, now: float) -> bool:
        """Whether some host that is not down has not been tried by `work` yet."""
        self._forget_down(now)
        return any(not work.tried >> number & 1 and number not in self.down for number in range(len(self.hosts)))

    def take_unservable(self, now: float) -> Iterator[Work]:
        """Take out the work for which every host has been tried or is down."""
        self._forget_down(now)
        for tried, queue in list(self._ready.items()):
            if any(not tried >> number & 1 and number not in self.down for number in range(len(self.hosts))):
                continue
            del self._ready[tried]
            self.waiting -= len(queue)
            yield from queue

    def take_all(self) -> Iterator[Work]:
        """Take out everything that waits (shutdown)."""
        for queue in self._ready.values():
            yield from queue
        self._ready.clear()
        self.waiting = 0
