"""The ready queue of one site: what waits for its hosts, and which of them may serve it.

Layer: orchestration (no I/O here; time is an argument).  Spec: RT-1 to RT-3 and RT-13 of events-dane section 11;
design.md "Speed": per recipient only table look-ups and appends.

A site is a transport with the ordered hosts of one or more domains.  Work that waits stands in deques by the set of
hosts it has already tried (a bit mask, nearly always 0), so taking the next piece for a host is a look at one or two
deque heads, whatever the length.  A host may serve a piece of work if no host of a better preference could: one that
it has not tried, that is not down, and that hosts_max_try still allows.  How many connections a host may have over all
sites is the pool's business.
Invariants: a piece of work is in one deque or in one connection's hands, never both; `waiting` counts those in deques;
work for which no host is left is taken out by `take_unservable`, so work that waits always has a host.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..net.sts_cache import StsAnswer
from ..policy.wishes import Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import trio

    from ..errors import DeliveryError
    from ..net.session import SessionOptions
    from ..policy.mx import Host
    from ..policy.plan import Plan
    from ..policy.requirement import Decision, TlsChoices
    from ..queue.model import RetryRecord
    from ..smtp import HostMemory
    from ..tls.context import TlsOptions
    from ..tls.ocsp import Demand
    from .transport import HostDecisions, Transport
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


@dataclass(frozen=True, slots=True)
class Policy:
    """What TLS must prove for one host, until which monotonic second that holds, and for which choices."""

    decision: Decision
    until: float
    choices: TlsChoices


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """The options of the connections to one host, and what they were made of."""

    decisions: HostDecisions
    plan: Plan
    ocsp: Demand
    session: SessionOptions
    files: TlsOptions


@dataclass(slots=True, eq=False)
class Site:
    """One transport and the hosts it sends to, with the work that waits for them.

    Attributes:
        hosts: best preference first.
        wish: what its messages ask of TLS (RFC 8689); sts: what is known of the MTA-STS policy of its domain.
        down: host number -> the error that holds; changed by `set_down` only.
        records: host number -> its retry record, once `is_judged` tells that they were read; judged_at: the monotonic
            second at which they were read last.
        memory: host number -> what the pipelining ladder has learned of the host.
        decisions: host number -> what the options say of it, where nothing that can change was looked at.
        policies: host number -> what TLS must prove, until it has to be looked up again.
        ways: host number -> the options of its connections, as made of these last.
        paced_until: UTC epoch seconds at which the last of those is due that were given back for the sake of a pace.
        taken: pieces of work that were taken and not put back.
        slow_until: monotonic second until which no more than `room` pieces may wait, or 0; pace: pieces that it gets
            through in a second, as it was found to.
        is_shared: it has had work of another domain than that of its hosts.
        by_domain: names of the next hop count in the policy of a host (DN-11): no more domains are to be added.
        connections: connection tasks alive; connections_to: the same by host number; established_to: those with a
            session that has been greeted.
        is_blocked: every host that may serve what waits has all the connections that it may have, those of other sites
            included.
        idlers: events of connections that wait for work.
    """

    router: str
    transport: Transport
    hosts: tuple[Host, ...]
    wish: Wish = Wish.USUAL
    sts: StsAnswer = field(default_factory=StsAnswer)
    down: dict[int, Down] = field(default_factory=dict)
    records: dict[int, RetryRecord] = field(default_factory=dict)
    is_judged: bool = False
    judged_at: float = 0.0
    paced_until: float = 0.0
    taken: int = 0
    slow_until: float = 0.0
    room: int = 0
    pace: float = 1.0
    memory: dict[int, HostMemory] = field(default_factory=dict)
    decisions: dict[int, HostDecisions] = field(default_factory=dict)
    policies: dict[int, Policy] = field(default_factory=dict)
    ways: dict[int, Way] = field(default_factory=dict)
    is_shared: bool = False
    by_domain: bool = False
    connections: int = 0
    connections_to: dict[int, int] = field(default_factory=dict)
    established_to: dict[int, int] = field(default_factory=dict)
    is_blocked: bool = False
    idlers: list[trio.Event] = field(default_factory=list)
    waiting: int = 0
    #: monotonic second until which no further connection is opened, after the site refused one it had beside others
    no_more_until: float = 0.0
    _ready: dict[int, deque[Work]] = field(default_factory=dict)
    _allowed: dict[int, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What people know the site by: its best host."""
        return self.hosts[0].name

    def add(self, work: Work) -> None:
        """Let `work` wait at the end."""
        self._queue(work.tried).append(work)
        self.waiting += 1

    def extend(self, works: Sequence[Work]) -> None:
        """Let pieces of work that no host has tried wait at the end."""
        if works:
            self._queue(0).extend(works)
            self.waiting += len(works)

    def put_back(self, work: Work) -> None:
        """Let `work` wait at the front: it was taken and never begun, or goes to its next host."""
        self._queue(work.tried).appendleft(work)
        self.waiting += 1
        self.taken -= 1

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
            if queue and self._allowed_hosts(tried) >> host & 1:
                self.waiting -= 1
                self.taken += 1
                work = queue.popleft()
                if not queue and tried:
                    del self._ready[tried]
                return work
        return None

    def take_last(self, count: int) -> list[Work]:
        """Take out what came last, `count` pieces at most, of what no host has tried."""
        queue = self._queue(0)
        works = [queue.pop() for _ in range(min(count, len(queue)))]
        self.waiting -= len(works)
        works.reverse()
        return works

    def has_work_for(self, host: int) -> bool:
        """Whether `take` would give something."""
        return bool(self.waiting) and any(
            queue and self._allowed_hosts(tried) >> host & 1 for tried, queue in self._ready.items()
        )

    def wanted_hosts(self, now: float) -> list[int]:
        """The hosts that may serve something that waits."""
        self._forget_down(now)
        wanted = 0
        for tried, queue in self._ready.items():
            if queue:
                wanted |= self._allowed_hosts(tried)
        return [number for number in range(len(self.hosts)) if wanted >> number & 1]

    def next_host(self, now: float, is_full: Callable[[int], bool] = lambda _: False) -> int | None:
        """The host to connect to next: of those that may serve what waits, the one with the fewest connections."""
        hosts = [number for number in self.wanted_hosts(now) if not is_full(number)]
        return min(hosts, key=lambda number: (self.connections_to.get(number, 0), number), default=None)

    @property
    def last_waiting(self) -> Work | None:
        """The last of what no host has tried yet."""
        queue = self._ready.get(0)
        return queue[-1] if queue else None

    def set_down(self, host: int, down: Down) -> None:
        """Let nothing go to `host` until `down.until`."""
        self.down[host] = down
        self._allowed.clear()

    def _forget_down(self, now: float) -> None:
        over = [number for number, down in self.down.items() if down.until <= now]
        for number in over:
            del self.down[number]
        if over:
            self._allowed.clear()

    def _allowed_hosts(self, tried: int) -> int:
        """Bit mask of the hosts that may serve work which has tried `tried`."""
        mask = self._allowed.get(tried)
        if mask is None:
            mask = self._allowed[tried] = self._compute_allowed(tried)
        return mask

    def _compute_allowed(self, tried: int) -> int:
        options = self.transport.options
        attempted = [
            number
            for number in range(len(self.hosts))
            if tried >> number & 1 or ((down := self.down.get(number)) is not None and down.error is not None)
        ]
        if len(attempted) >= options.hosts_max_try_hardlimit:
            return 0
        servable = [number for number in range(len(self.hosts)) if not tried >> number & 1 and number not in self.down]
        # RT-13: a host whose time is up is no try, and each further MX level gets one
        counted = [number for number in attempted if (down := self.down.get(number)) is None or not down.expired]
        if len(counted) >= options.hosts_max_try:
            seen = {self.hosts[number].preference for number in attempted}
            servable = [number for number in servable if self.hosts[number].preference not in seen]
        if not servable:
            return 0
        best = self.hosts[servable[0]].preference
        if best is None:
            return 1 << servable[0]
        return sum(1 << number for number in servable if self.hosts[number].preference == best)

    def may_be_served(self, work: Work, now: float) -> bool:
        """Whether some host is left for `work`."""
        self._forget_down(now)
        return self._allowed_hosts(work.tried) != 0

    def take_unservable(self, now: float) -> Iterator[Work]:
        """Take out the work for which no host is left."""
        self._forget_down(now)
        for tried, queue in list(self._ready.items()):
            if queue and not self._allowed_hosts(tried):
                del self._ready[tried]
                self.waiting -= len(queue)
                yield from queue

    def waiting_work(self) -> Iterator[Work]:
        """Everything that waits, left where it is."""
        for queue in self._ready.values():
            yield from queue

    def take_foreign(self) -> Iterator[Work]:
        """Take out what may not be served here, since its next hop is not that of the hosts (`by_domain`)."""
        for tried, queue in list(self._ready.items()):
            foreign = [work for work in queue if self.is_foreign(work)]
            if foreign:
                self._ready[tried] = deque(work for work in queue if not self.is_foreign(work))
                self.waiting -= len(foreign)
                yield from foreign

    def is_foreign(self, work: Work) -> bool:
        """Whether `work` has another next hop than the one that the policy of the hosts is for."""
        return self.by_domain and work.next_hop != self.hosts[0].domain

    def take_all(self) -> Iterator[Work]:
        """Take out everything that waits (shutdown)."""
        for queue in self._ready.values():
            yield from queue
        self._ready.clear()
        self.waiting = 0
