"""The pool: how many connections each site has, and who gets a free one.

Layer: orchestration.  Spec: issue "First mail out": connections pooled by host and policy, bounded per host and in all;
bulk-sending section 6 (limits with wake times, never rescans).  What there is room for, limits.py says.
A connection is a task that serves one site: it is started when work comes and the bounds allow, waits a little for more
when there is none, and ends.  A site is a transport and its hosts, and the TLS plan of a host follows from these, so
connections of one site and host are alike and none is ever lent to another policy.  Sites that want a connection when
the engine has all it may have stand in a line and are served in turn; connections that only wait are given up for them,
and busy ones when they end.  A host may serve several sites; one that has all its connections keeps a list of
the sites that want it, which look again when one of them ends.  One that has had all the messages or connections that
its rate allows rests until the next are due, and then does the same.
Invariants: `open_count` never passes `max_connections`, nor the connections to a host `connections_per_host`; a site
with work has a connection, stands in the line, is blocked by a host that has connections, rests or waits for leave of
other engines, or waits until `no_more_until` with connections that serve it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from ..values import parse_rate
from .connection import serve
from .hosterrors import place_of, settle_unservable
from .limits import EVERYWHERE

if TYPE_CHECKING:
    from .core import Core
    from .limits import Meter, Place
    from .site import Site

#: pieces of work that wait for each connection before another one is opened; arbitrary: a handshake costs as much CPU
#: as some tens of messages on a warm connection, but a round trip costs time
_WORK_PER_CONNECTION: Final = 4


class Pool:
    """Starts connection tasks within the bounds."""

    def __init__(self, core: Core, nursery: trio.Nursery) -> None:
        self._core = core
        self._nursery = nursery
        self._line: deque[Site] = deque()
        self._in_line: set[int] = set()
        #: sites with connections that wait for work
        self._idle: dict[int, Site] = {}
        #: host -> the sites that it has no room for, over all policies
        self._blocked_by: dict[Place, dict[int, Site]] = {}
        #: hosts that have had all that their rates allow for now
        self._resting: set[Place] = set()
        self._is_short = False
        self._is_over = False
        self.open_count = 0
        self._limits = core.limits
        self._limits.count_wanted = self._count_wanted
        self._limits.on_room = self._on_room
        self._limits.on_surplus = self.wake_all
        core.on_stop.append(self.wake_all)

    @property
    def is_contended(self) -> bool:
        """Whether some site, or another engine, waits for a connection; idle connections are given up then."""
        return bool(self._line) or self._limits.is_crowded

    def on_work(self, site: Site) -> None:
        """`site` got work: wake its idle connections, open more where that helps."""
        for _ in range(min(len(site.idlers), site.waiting)):
            site.idlers.pop().set()
        self._grow(site)

    async def wait_for_work(self, site: Site, number: int, seconds: float) -> None:
        """Wait until `site` may have got work, its connection to a host is needed elsewhere, or `seconds` are over."""
        place = place_of(site, number)
        with trio.move_on_after(seconds):
            while not (self.is_contended or place in self._blocked_by or place in self._limits.over):
                await self._wait_idle(site)
                if site.waiting or self._core.stopping.is_set():
                    return
                # others took what it was woken for

    async def _wait_idle(self, site: Site) -> None:
        event = trio.Event()
        site.idlers.append(event)
        self._idle[id(site)] = site
        try:
            await event.wait()
        finally:
            if not event.is_set():
                site.idlers.remove(event)
            if not site.idlers:
                self._idle.pop(id(site), None)

    # which host

    def take_host(self, site: Site) -> int | None:
        """The host that a connection task of `site` is to connect to; None when there is none with room for it."""
        now, options = self._core.clock(), site.transport.options
        limit = options.connections_per_host
        while True:
            number = site.next_host(now, lambda host: not self._has_room(place_of(site, host), limit))
            if number is None:
                for host in site.wanted_hosts(now):
                    self._blocked_by.setdefault(place_of(site, host), {})[id(site)] = site
                    site.is_blocked = True
                return None
            place = place_of(site, number)
            meter = self._meter(place, "connections", options.connection_rate_per_host)
            if meter is None or meter.try_take(now):
                break
            self.rest(place, meter)
        self._limits.open(place, limit)
        site.connections_to[number] = site.connections_to.get(number, 0) + 1
        return number

    def _has_room(self, place: Place, limit: int) -> bool:
        return place not in self._resting and self._limits.has_room(place, limit)

    def leave_host(self, site: Site, number: int) -> bool:
        """A connection to a host has ended; whether other sites have waited for that."""
        site.connections_to[number] -= 1
        place = place_of(site, number)
        self._limits.close(place)
        return self._on_room(place)

    def _on_room(self, place: Place) -> bool:
        """There is room at a place, or all over: let the sites that wait for it look again; whether there were any."""
        if place == EVERYWHERE:
            self._is_short = False
            self._next_in_line()
            return False
        blocked = self._blocked_by.pop(place, {})
        for other in blocked.values():
            other.is_blocked = False
            self._grow(other)
        return bool(blocked)

    def _count_wanted(self, place: Place) -> int:
        """How many connections more the sites that wait would have, if they could."""
        if place == EVERYWHERE:
            return self._core.config.main.max_connections - self.open_count if self._is_short else 0
        blocked = self._blocked_by.get(place)
        if not blocked or place in self._resting:
            return 0
        return sum(-(-site.waiting // _WORK_PER_CONNECTION) for site in blocked.values())

    # how often

    def message_meter(self, site: Site, place: Place) -> Meter | None:
        """The tokens for messages to a host; None where there is no limit."""
        return self._meter(place, "messages", site.transport.options.message_rate_per_host)

    def _meter(self, place: Place, what: str, rate: str) -> Meter | None:
        return self._limits.meter(f"{what} {place}", parse_rate(rate)) if rate else None

    def rest(self, place: Place, meter: Meter) -> None:
        """Open no connection to a place before there is a token for it."""
        if place not in self._resting:
            self._resting.add(place)
            self._nursery.start_soon(self._wait_for_token, place, meter)

    async def _wait_for_token(self, place: Place, meter: Meter) -> None:
        with self._core.until_stopped():
            await meter.wait(self._core.clock)
        self._resting.discard(place)
        self._on_room(place)

    # how many

    def wake_all(self) -> None:
        """Let every idle connection look at the world again (the engine is stopping)."""
        for site in list(self._idle.values()):
            self._wake_idlers(site)

    def _wake_idlers(self, site: Site) -> None:
        while site.idlers:
            site.idlers.pop().set()

    def _grow(self, site: Site) -> None:
        if self._is_over or self._core.stopping.is_set() or site.is_blocked:
            return
        hosts = site.wanted_hosts(self._core.clock())
        if not hosts:
            settle_unservable(self._core, site)
            return
        limit = self._useful_connections(site) * len(hosts)
        wanted = min(limit, -(-site.waiting // _WORK_PER_CONNECTION))
        if site.connections and trio.current_time() < site.no_more_until:
            return
        while site.connections < wanted:
            if not self._limits.has_room(EVERYWHERE, self._core.config.main.max_connections):
                self._stand_in_line(site)
                return
            site.connections += 1
            self.open_count += 1
            self._limits.open(EVERYWHERE, self._core.config.main.max_connections)
            self._core.progress.connections = self.open_count
            self._nursery.start_soon(self._serve, site)

    def _useful_connections(self, site: Site) -> int:
        """Connections to one host that can have something to do: one does at least one message a second."""
        options = site.transport.options
        if not options.message_rate_per_host:
            return options.connections_per_host
        return min(options.connections_per_host, parse_rate(options.message_rate_per_host).burst)

    def _stand_in_line(self, site: Site) -> None:
        self._is_short = True
        if site.connections == 0 and id(site) not in self._in_line:
            self._in_line.add(id(site))
            self._line.append(site)
            for idle in self._idle.values():
                self._wake_idlers(idle)
                break

    async def _serve(self, site: Site) -> None:
        try:
            await serve(self._core, site)
        except BaseException:
            # cancelled, or an error that ends the engine: whatever is started now would end as this did, for ever
            self._is_over = True
            raise
        finally:
            site.connections -= 1
            self.open_count -= 1
            self._limits.close(EVERYWHERE)
            self._core.progress.connections = self.open_count
        self._next_in_line()
        if site.waiting:
            self._grow(site)

    def _next_in_line(self) -> None:
        while self._line and self._limits.has_room(EVERYWHERE, self._core.config.main.max_connections):
            site = self._line.popleft()
            self._in_line.discard(id(site))
            if site.waiting:
                self._grow(site)
