"""Give back the recipients of a site that it will not get to soon, so that they do not stand before others.

Layer: orchestration.  Spec: bulk-sending section 6 (limits come with a time to wake up at); RT-13's neighbours: nothing
here is a try.
An engine holds as many claims as its sites can take up soon.  What a rate of the configuration holds up for long goes
back to the queue until its turn is near.  Where there is no such rate, a site may still be slow: a host that takes ten
seconds for a message would in time fill all that the engine may hold, and everybody else's mail would wait for it.  So
while the engine holds all it may, it looks now and then at the sites with much work; of a site that has more than it
gets through in `PACED_S`, and more than its share, what is beyond that goes back, and so does what is claimed for it in
the next `SLOW_S` seconds.
Invariants: what is given back is due again within `MAX_BACK_S`, at about the pace at which the site works; a site keeps
enough to go on with; nothing that a connection has begun, or a host has tried, is given back here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from ..values import parse_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..queue.model import Claim
    from .core import Core
    from .site import Site
    from .work import JobContext

    Member = tuple[JobContext, Claim]

#: seconds' worth of messages held for a site; the others go back until their turn is near
PACED_S: Final = 30.0
#: seconds between looks at the sites with much work, while the engine holds all it may
LOOK_S: Final = 5.0
#: seconds for which a site is taken for slow that was found to be
SLOW_S: Final = 60.0
#: seconds after which what a slow site could not take is due again at the latest: it may be quick by then
MAX_BACK_S: Final = 900.0
#: what of all that may be held a slow site keeps at least: one part of so many; of the usual 10,000 it is as much as 20
#: connections take up at twice the widest window
_SHARES: Final = 32
#: what was seen before so many times between looks says nothing any more: the engine was not full meanwhile
_STALE_LOOKS: Final = 6
#: messages a second below which a pace is not told apart from none
_LEAST_PACE: Final = 0.1


class Pacing:
    """What is given back.

    Attributes:
        until: UTC epoch seconds at which the last of it is due.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self.until = 0.0
        self._look_at = 0.0
        #: the sites that had much work at the last look, with what they had taken up by then, and when that was
        self._watched: dict[Site, int] = {}
        self._looked_at = -math.inf

    def keep(self, site: Site, members: list[Member]) -> list[Member]:
        """Give back those of `members` whose turn will not come soon, and return the rest."""
        options = site.transport.options
        a_message = 1 if members[0][0].is_personalised else options.max_rcpt or len(members)
        if options.message_rate_per_host:
            rate = parse_rate(options.message_rate_per_host)
            hosts = sum(host.preference == site.hosts[0].preference for host in site.hosts)
            interval_s = rate.interval_s / hosts
            room, latest = math.ceil(PACED_S / interval_s) + rate.burst, math.inf
        elif trio.current_time() < site.slow_until:
            interval_s, room, latest = 1 / site.pace, site.room, self._core.clock() + MAX_BACK_S
        else:
            site.slow_until = 0.0
            return members
        kept = members[: max(0, room - site.waiting) * a_message]
        self._give_back(site, [claim for _, claim in members[len(kept) :]], interval_s / a_message, latest)
        return kept

    def look(self, sites: Iterable[Site], most: int) -> None:
        """See which sites are slow and stand before others; called while the engine holds all that it may, `most`."""
        now = trio.current_time()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        before, self._watched = self._watched, {}
        since, self._looked_at = now - self._looked_at, now
        least = max(1, most // _SHARES)
        for site in sites:
            if site.waiting <= least or site.transport.options.message_rate_per_host:
                continue
            self._watched[site] = site.taken
            taken = before.get(site)
            if taken is not None and since <= _STALE_LOOKS * LOOK_S:
                self._trim(site, max((site.taken - taken) / since, _LEAST_PACE), least)

    def _trim(self, site: Site, pace: float, least: int) -> None:
        """Give back what a site will not get through in `PACED_S` seconds at this pace."""
        room = max(math.ceil(pace * PACED_S), least)
        if room >= site.waiting:
            return
        site.slow_until, site.room, site.pace = trio.current_time() + SLOW_S, room, pace
        works = site.take_last(site.waiting - room)
        claims = [claim for work in works for claim in work.claims]
        interval_s = len(works) / pace / max(1, len(claims))
        self._give_back(site, claims, interval_s, self._core.clock() + MAX_BACK_S)

    def _give_back(self, site: Site, claims: Sequence[Claim], interval_s: float, latest: float) -> None:
        """Let claims go until their turn is near: one each `interval_s` seconds, none later than `latest`."""
        if not claims:
            return
        due_at = max(site.paced_until, self._core.clock() + PACED_S)
        for claim in claims:
            due_at += interval_s
            self._core.settlement.release(claim, min(due_at, latest))
        site.paced_until = min(due_at, latest)
        self.until = max(self.until, site.paced_until)
