"""The pool: how many connections each site has, and who gets a free one.

Layer: orchestration.  Spec: issue "First mail out": connections pooled by host and policy, bounded per host and in all;
bulk-sending section 6 (limits with wake times, never rescans).
A connection is a task that serves one site: it is started when work comes and the bounds allow, waits a little for more
when there is none, and ends.  A site is a transport and its hosts, and the TLS plan of a host follows from these, so
connections of one site and host are alike and none is ever lent to another policy.  Sites that want a connection when
the engine has all it may have stand in a line and are served in turn; connections that only wait are given up for them,
and busy ones when they end.  A host may serve several sites; one that has all its connections keeps a list of
the sites that want it, which look again when one of them ends.
Invariants: `open_count` never passes `max_connections`, nor the connections to a host `connections_per_host`; a site
with work has a connection, stands in the line, is blocked by a host that has connections, or waits until
`no_more_until` with connections that serve it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from .connection import serve
from .hosterrors import port_of, settle_unservable

if TYPE_CHECKING:
    from .core import Core
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
        #: host -> its connections, over all sites and policies; and the sites that it has no room for
        self._open_to: dict[_Place, int] = {}
        self._blocked_by: dict[_Place, dict[int, Site]] = {}
        self._is_over = False
        self.open_count = 0
        core.on_stop.append(self.wake_all)

    @property
    def is_contended(self) -> bool:
        """Whether some site stands in line for a connection; idle connections are given up then."""
        return bool(self._line)

    def on_work(self, site: Site) -> None:
        """`site` got work: wake its idle connections, open more where that helps."""
        for _ in range(min(len(site.idlers), site.waiting)):
            site.idlers.pop().set()
        self._grow(site)

    async def wait_for_work(self, site: Site, number: int, seconds: float) -> None:
        """Wait until `site` may have got work, its connection to a host is needed elsewhere, or `seconds` are over."""
        if self.is_contended or _place(site, number) in self._blocked_by:
            return
        event = trio.Event()
        site.idlers.append(event)
        self._idle[id(site)] = site
        try:
            with trio.move_on_after(seconds):
                await event.wait()
        finally:
            if not event.is_set():
                site.idlers.remove(event)
            if not site.idlers:
                self._idle.pop(id(site), None)

    # which host

    def take_host(self, site: Site) -> int | None:
        """The host that a connection task of `site` is to connect to; None when there is none with room for it."""
        now = self._core.clock()
        limit = site.transport.options.connections_per_host
        number = site.next_host(now, lambda host: self._open_to.get(_place(site, host), 0) >= limit)
        if number is None:
            for host in site.wanted_hosts(now):
                self._blocked_by.setdefault(_place(site, host), {})[id(site)] = site
                site.is_blocked = True
            return None
        key = _place(site, number)
        self._open_to[key] = self._open_to.get(key, 0) + 1
        site.connections_to[number] = site.connections_to.get(number, 0) + 1
        return number

    def leave_host(self, site: Site, number: int) -> bool:
        """A connection to a host has ended; whether other sites have waited for that."""
        site.connections_to[number] -= 1
        key = _place(site, number)
        self._open_to[key] -= 1
        if not self._open_to[key]:
            del self._open_to[key]
        blocked = self._blocked_by.pop(key, {})
        for other in blocked.values():
            other.is_blocked = False
            self._grow(other)
        return bool(blocked)

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
        limit = site.transport.options.connections_per_host * len(hosts)
        wanted = min(limit, -(-site.waiting // _WORK_PER_CONNECTION))
        if site.connections and trio.current_time() < site.no_more_until:
            return
        while site.connections < wanted:
            if self.open_count >= self._core.config.main.max_connections:
                self._stand_in_line(site)
                return
            site.connections += 1
            self.open_count += 1
            self._core.progress.connections = self.open_count
            self._nursery.start_soon(self._serve, site)

    def _stand_in_line(self, site: Site) -> None:
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
            self._core.progress.connections = self.open_count
        self._next_in_line()
        if site.waiting:
            self._grow(site)

    def _next_in_line(self) -> None:
        while self._line and self.open_count < self._core.config.main.max_connections:
            site = self._line.popleft()
            self._in_line.discard(id(site))
            if site.waiting:
                self._grow(site)


#: name, address and port of a host
_Place = tuple[str, str, int]


def _place(site: Site, number: int) -> _Place:
    host = site.hosts[number]
    return host.name, host.address, port_of(site, number)
