"""The pool: how many connections each site has, and who gets a free one.

Layer: orchestration.  Spec: issue "First mail out": connections pooled by host and policy, bounded per host and in all;
bulk-sending section 6 (limits with wake times, never rescans).
A connection is a task that serves one site: it is started when work comes and the bounds allow, and ends when the site
has nothing for it.  Sites that want a connection when the engine has all it may have stand in a line and are served in turn.
Invariants: `open_count` never passes `max_connections`; a site with work and no connection stands in the line or waits for a
time (`Site.down`, `no_more_until`) at which it is looked at again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from .connection import serve

if TYPE_CHECKING:
    from .core import Core
    from .site import Site

#: pieces of work that wait for each connection before another one is opened
_WORK_PER_CONNECTION: Final = 2


class Pool:
    """Starts connection tasks within the bounds."""

    def __init__(self, core: Core, nursery: trio.Nursery) -> None:
        self._core = core
        self._nursery = nursery
        self._line: deque[Site] = deque()
        self._in_line: set[int] = set()
        self.open_count = 0

    @property
    def is_contended(self) -> bool:
        """Whether some site stands in line for a connection; idle connections are given up then."""
        return bool(self._line)

    def on_work(self, site: Site) -> None:
        """`site` got work: wake its idle connections, open more where that helps."""
        while site.idlers and site.waiting > len(site.idlers) * 0:
            site.idlers.pop().set()
            if site.waiting <= site.established:
                break
        self._grow(site)

    def _grow(self, site: Site) -> None:
        if self._core.stopping.is_set():
            return
        limit = site.transport.options.connections_per_host
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
        if id(site) not in self._in_line:
            self._in_line.add(id(site))
            self._line.append(site)

    async def _serve(self, site: Site) -> None:
        try:
            await serve(self._core, site)
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
