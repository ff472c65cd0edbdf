"""The scheduler: what is claimed when, which site it goes to, and when the run is over.

Layer: orchestration.  Spec: design.md "Two flows", "Speed"; RT-7 to RT-12.

**Facts.**  A queue can hold millions of recipients, memory cannot.  A claim of 500 costs little more than a claim of
one. Most recipients of a bulk job share a few thousand domains, and most domains a few hundred sites.

**What it means.**  Recipients are claimed in batches, only as many as the sites can take up soon: at the high mark
nothing more is asked of the queue.  Routes are found once a domain, and kept; recipients that wait for a route wait in
a list.  What most domains need is asked for ahead, for all of a batch at once (asking.py), and their routes are found
in a plain loop; a task is only made for a domain about which more has to be asked.  A recipient with a known route
costs a dictionary look-up and an append.  Nothing is ever rescanned: a site with nothing to do has no task, and the
claim loop sleeps until the time at which the next recipient is due, or until another process may have added something.
Nothing new begins while too many stored events wait for their actions; what is in flight is settled all the same.

**What we do not do.**  No task, thread or query a recipient; no fairness beyond that of the claims (jobs take turns),
but that a slow site does not fill all that may be held (pacing.py).
Invariants: `held` counts the claims that we have and have not settled; it is never over the high mark by more
than the batches of one turn.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ..errors import DataError
from ..logs.facts import Fact, FactKind
from ..policy.wishes import Wish
from ..queue.model import OutcomeKind
from ..queue.store import QueueFull, QueueLocked
from ..values import parse_address
from .asking import Asking
from .jobs import message_id_of
from .outcome import EXPIRED_TEXT
from .pacing import Pacing
from .routing import Routed, Unrouteable
from .site import Site
from .sts import NO_POLICY
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..net.sts_cache import StsAnswer
    from ..policy.hosts import Host
    from ..queue.model import Claim
    from .core import Core
    from .routing import Route
    from .routing.routes import Group
    from .settlement import Settled
    from .work import JobContext

    Member = tuple[JobContext, Claim]

#: batches held beside the one being claimed; each recipient that is held costs about 1 KiB, and the more are held, the
#: fuller are the connections: 20,000 recipients in random order over 2,000 domains took 12,300 of them with 4 batches
HIGH_WATER_BATCHES: Final = 20
#: the same among several engines: what one holds the others cannot take
HIGH_WATER_SHARED: Final = 6
#: batches claimed in one call of the queue's thread
CLAIMS_A_TURN: Final = 4
#: routes looked up at one time; arbitrary, resolvers start to drop queries at some hundreds
MAX_ROUTING: Final = 100
#: sites kept beyond those with work or a connection
MAX_IDLE_SITES: Final = 20_000
#: seconds between looks for what other processes added to the queue
POLL_S: Final = 1.0
#: what the display says while the queue takes nothing; the log has the reason
TROUBLE: Final = "waiting for the queue: disk full or locked"
#: what it says while nothing is claimed since actions are behind
BACKLOG: Final = "waiting for event actions"
#: seconds between looks at the queue while all that was due is held and is being settled: what ends makes nobody due,
#: each look is three calls of the store, and a connection for each message settles one at a time
LULL_S: Final = POLL_S
#: what makes nobody due
_FINAL: Final = (OutcomeKind.DELIVERED, OutcomeKind.FAILED)
#: seconds between looks while something is due that another engine is about to take, or a list is still being read
MIN_WAIT_S: Final = 0.05


class Scheduler:
    """Claims recipients and hands them to sites.  See the module's text.

    Args:
        job_id: deliver this job only; None for all.
        drain: end when nothing is due any more; otherwise run until stopped.
        wait: with `drain`, stay until everybody is settled.
    """

    def __init__(self, core: Core, *, job_id: int | None, drain: bool, wait: bool) -> None:
        self._core = core
        self._job_id = job_id
        self._drain = drain
        self._wait = wait
        self._routing = trio.CapacityLimiter(MAX_ROUTING)
        self._asking = Asking(core)
        #: domain -> recipients that wait for its route
        self._unrouted: dict[str, list[Member]] = {}
        self._sites: dict[tuple[object, ...], Site] = {}
        #: the same by what domains have in common, for those of which nothing is demanded
        self._sites_of: dict[tuple[Group, Wish], Site] = {}
        #: sites that have got work of which the pool has not been told, with what is to be added to it still
        self._fed: dict[Site, list[Work]] = {}
        self._settled = trio.Event()
        #: monotonic second before which it is not worth while to look for more: there was nobody left who was due
        self._lull_until = 0.0
        self._told = ""
        #: too many stored events wait
        self._is_behind = False
        self._pacing = Pacing(core)
        self.held = 0

    def on_settled(self, settled: Settled) -> None:
        """A commit was done: these claims are no longer held."""
        self.held -= settled.held
        self._core.on_settled(settled)
        is_final = all(kind in _FINAL for _, kind, _, _ in settled.counts)
        if not self.held or not is_final or trio.current_time() >= self._lull_until:
            self._settled.set()

    # the claim loop

    async def run(self, nursery: trio.Nursery) -> None:
        """Claim until there is nothing left to do, or `Core.stopping` is set; `nursery` gets the tasks that route."""
        async with trio.open_nursery() as own:
            own.start_soon(self._route_ready, nursery)
            await self._claim_on()
            own.cancel_scope.cancel()

    async def _claim_on(self) -> None:
        while not self._core.stopping.is_set():
            # made anew before anything is looked at: what is settled from here on wakes the waits below
            self._settled = trio.Event()
            try:
                if await self._step():
                    return
            except (QueueLocked, QueueFull) as error:
                # connections go on meanwhile; nothing was claimed
                self._tell_trouble(error)
                await self._wait_settled(POLL_S)

    async def _step(self) -> bool:
        """Claim once, or wait for a reason to; True when there is nothing left to do."""
        core = self._core
        high = core.config.main.claim_size * (HIGH_WATER_SHARED if core.limits.is_shared else HIGH_WATER_BATCHES)
        if core.settlement.is_stuck:
            self._show_trouble(TROUBLE)
        if self.held >= high or core.settlement.is_stuck:
            if not core.settlement.is_stuck:
                self._pacing.look(self._sites.values(), high)
            await self._wait_settled(POLL_S)
            return False
        claims = await self._claim()
        self._told = ""
        self._show_trouble(BACKLOG if self._is_behind else "")
        if claims:
            self._lull_until = 0.0
            await self._dispatch(claims)
            return False
        if await self.fail_expired():
            return False
        due_at, is_growing = await self._look_ahead()
        if is_growing:
            await self._wait_settled(MIN_WAIT_S)
            return False
        if await self._is_done(due_at):
            return True
        if not self._is_behind:
            self._lull_until = trio.current_time() + LULL_S
        if due_at is None or self._is_behind:
            await self._wait_settled(POLL_S)
        else:
            await self._wait_settled(min(POLL_S, max(MIN_WAIT_S, due_at - core.clock())))
        return False

    def _tell_trouble(self, error: QueueLocked | QueueFull) -> None:
        """Say once what the queue has to say, until it takes a claim again."""
        self._show_trouble(TROUBLE)
        if self._told != str(error):
            self._told = str(error)
            text = f"queue: {error}; will try again"
            self._core.settlement.tell(Fact(FactKind.NOTE, self._core.clock(), text=text))

    def _show_trouble(self, trouble: str) -> None:
        """Let the display say why nothing goes on, or, with "", that it does."""
        progress = self._core.progress
        if progress.phase in ("", TROUBLE, BACKLOG):
            progress.phase = trouble

    def _has_room(self) -> bool:
        """Whether stored events leave room for what a claim would add to them.  In the queue's thread."""
        core = self._core
        if core.events is None:
            return True
        limit = core.config.actions.outbox_limit
        size = core.database.store.outbox_size()
        # a quarter of them has to run first, so that it is not told again every second
        is_behind = size >= (limit - limit // 4 if self._is_behind else limit)
        if is_behind != self._is_behind:
            self._is_behind = is_behind
            what = "nothing new is delivered until some have run" if is_behind else "deliveries go on"
            text = f"{size} stored events wait for their actions (outbox_limit {limit}): {what}"
            core.log.write([Fact(FactKind.NOTE, core.clock(), text=text)])
        return not is_behind

    async def _claim(self) -> list[Claim]:
        core, main = self._core, self._core.config.main
        now = core.clock()

        def claim() -> list[Claim]:
            # a turn of the event loop may take as long as several claims, so one turn is made to bring several
            claims: list[Claim] = []
            if not self._has_room():
                return claims
            for _ in range(CLAIMS_A_TURN):
                try:
                    found = core.database.store.claim(
                        core.engine.owner, main.claim_size, now, main.lease_time, self._job_id
                    )
                except (QueueLocked, QueueFull):
                    if not claims:
                        raise
                    break  # what was claimed is ours
                claims += found
                if len(found) < main.claim_size:
                    break
            return claims

        claims = await core.database.call(claim)
        self._hold(claims)
        return claims

    def _hold(self, claims: Sequence[Claim]) -> None:
        self.held += len(claims)
        self._core.leases.add(claims)

    async def fail_expired(self) -> bool:
        """Fail what is left of jobs that are past their time; whether there was anything."""
        core, main = self._core, self._core.config.main
        store = core.database.store
        found = False
        while not core.stopping.is_set() and not self._is_behind:
            claims = await core.database.call(
                store.claim_expired, core.engine.owner, main.claim_size, core.clock(), main.lease_time, self._job_id
            )
            if not claims:
                break
            found = True
            self._hold(claims)
            for claim in claims:
                core.fail(await core.jobs.load_or_none(claim.job_id), claim, EXPIRED_TEXT)
            await self._wait_settled(POLL_S)
        return found

    async def _is_done(self, due_at: float | None) -> bool:
        if self.held or not self._drain or (due_at is not None and due_at <= self._pacing.until):
            return False
        if not self._wait:
            return due_at is None or due_at > self._core.clock()
        if due_at is not None or self._job_id is None:
            return due_at is None
        # another engine may have the rest in its hands
        counts = await self._core.database.call(self._core.database.store.counts, self._job_id)
        return counts.leased == 0

    async def _look_ahead(self) -> tuple[float | None, bool]:
        """When something is due next, and whether a list is still being read of which some may be due at once."""
        store = self._core.database.store

        def look() -> tuple[float | None, bool]:
            # in this order: what was added before the list came to its end is seen
            is_growing = store.is_growing(self._job_id)
            return store.next_due_at(self._job_id), is_growing

        return await self._core.database.call(look)

    async def _wait_settled(self, seconds: float) -> None:
        """Sleep until something was settled, the engine is to stop, or `seconds` are over."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_then_cancel, self._settled, nursery.cancel_scope)
                nursery.start_soon(_then_cancel, self._core.stopping, nursery.cancel_scope)

    # from claims to sites

    async def _dispatch(self, claims: list[Claim]) -> None:
        core = self._core
        contexts: dict[int, JobContext | str] = {}
        #: domain -> its recipients, where the route is known
        by_domain: dict[str, list[Member]] = {}
        routed: list[tuple[Route, str, list[Member], StsAnswer]] = []
        new: list[str] = []
        for claim in claims:
            job = claim.job_id
            context = contexts.get(job) or await self._context_of(claim, contexts)
            if isinstance(context, str):
                if context:
                    core.fail(None, claim, context)
                else:
                    core.settlement.release(claim)
                continue
            domain = claim.address.rpartition("@")[2]
            members = by_domain.get(domain) or self._unrouted.get(domain)
            if members is not None:
                members.append((context, claim))
                continue
            members = [(context, claim)]
            route = core.routers.shared_or_none(domain)
            sts = core.sts.known_or_none(route, domain) if isinstance(route, Routed) else NO_POLICY
            if route is not None and sts is not None:
                by_domain[domain] = members
                routed.append((route, domain, members, sts))
            else:
                self._unrouted[domain] = members
                new.append(domain)
        for domain in new:
            self._asking.add(domain)
        for route, domain, members, sts in routed:
            self._hand_over(route, domain, members, sts)
        self._tell_pool()
        await trio.lowlevel.checkpoint()

    async def _context_of(self, claim: Claim, contexts: dict[int, JobContext | str]) -> JobContext | str:
        """The context of the job of a claim, or why there is none and never will be; "" if it cannot be had now."""
        jobs, job = self._core.jobs, claim.job_id
        found: JobContext | str
        try:
            found = jobs.get(job) or await jobs.load(job) or "the job of this recipient is gone"
        except DataError as error:
            found = f"the message of this job cannot be composed: {error}"
        except QueueLocked as error:
            self._tell_trouble(error)
            return ""
        contexts[job] = found
        return found

    async def _route_ready(self, nursery: trio.Nursery) -> None:
        """Find the routes of domains about which something is known by now; until cancelled."""
        while True:
            for domain in await self._asking.take():
                if not self._route_now(domain):
                    nursery.start_soon(self._route_domain, domain)
            self._tell_pool()

    def _route_now(self, domain: str) -> bool:
        """Find the route of the recipients that wait for `domain`, if nothing has to be waited for; whether it did."""
        core = self._core
        members = self._unrouted[domain]
        context, claim = members[0]
        try:
            address = parse_address(claim.address)
        except DataError:
            return False
        route = core.routers.route_now(address, partial(core.scope_for, context, claim))
        sts: StsAnswer | None = NO_POLICY
        if isinstance(route, Routed):
            sts = core.sts.find_now(route, domain)
        if route is None or sts is None:
            return False
        del self._unrouted[domain]
        self._hand_over(route, domain, members, sts)
        return True

    async def _route_domain(self, domain: str) -> None:
        """Find the route of the recipients that wait for `domain`; one route for all where no local part mattered."""
        core = self._core
        while members := self._unrouted.get(domain):
            context, claim = members[0]
            try:
                address = parse_address(claim.address)
            except DataError as error:
                del members[0]
                core.fail(context, claim, str(error))
                continue
            async with self._routing:
                route = await core.routers.route(address, core.scope_for(context, claim))
            # a policy host that is slow holds up its own domain, and no other
            sts = await core.sts.look_up(route, domain) if isinstance(route, Routed) else NO_POLICY
            if route.cacheable_by_domain:
                break
            del members[0]
            self._hand_over(route, domain, [(context, claim)], sts)
            self._tell_pool()
        waiting = self._unrouted.pop(domain)
        if waiting:
            self._hand_over(route, domain, waiting, sts)
            self._tell_pool()

    def _tell_pool(self) -> None:
        """Let the pool know of the sites that have got work: once each, for all of a batch."""
        fed, self._fed = self._fed, {}
        for site, works in fed.items():
            site.extend(works)
            self._core.pool.on_work(site)

    def _hand_over(self, route: Route, domain: str, members: list[Member], sts: StsAnswer) -> None:
        if len(members) == 1 and sts is NO_POLICY and self._add_one(route, domain, *members[0]):
            return
        if len(members) == 1 or len({context.wish for context, _ in members}) == 1:
            wish = members[0][0].wish
            self._hand_over_alike(route, domain, members, wish, NO_POLICY if wish is Wish.OPTIONAL else sts)
            return
        for wish in dict.fromkeys([context.wish for context, _ in members]):
            alike = [member for member in members if member[0].wish is wish]
            # RFC 8689 §5: who wants to do without TLS does without the policies that demand it
            self._hand_over_alike(route, domain, alike, wish, NO_POLICY if wish is Wish.OPTIONAL else sts)

    def _add_one(self, route: Route, domain: str, context: JobContext, claim: Claim) -> bool:
        """The usual case among many domains, done soon: one recipient with a message of its own, of a known site."""
        if not context.is_personalised or not isinstance(route, Routed) or route.group is None:
            return False
        site = self._sites_of.get((route.group, context.wish))
        if site is None or site.by_domain or site.slow_until or site.transport.options.message_rate_per_host:
            return False
        site.is_shared = site.is_shared or site.hosts[0].domain != domain
        works = self._fed.get(site)
        if works is None:
            works = self._fed[site] = []
        works.append(Work(context, [claim], context.ids.of(claim.number), domain))
        return True

    def _hand_over_alike(self, route: Route, domain: str, members: list[Member], wish: Wish, sts: StsAnswer) -> None:
        core = self._core
        if isinstance(route, Routed):
            hop = route.next_hop(domain)
            site = self._site(route, hop, wish, sts)
            max_rcpt = site.transport.options.max_rcpt or math.inf
            if site.slow_until or site.transport.options.message_rate_per_host:
                members = self._pacing.keep(site, members)
            own, shared = _pieces(members, max_rcpt, hop)
            site.extend(own)
            for work in shared:
                last = site.last_waiting
                if last is not None and last.can_take(work, max_rcpt):
                    last.take(work)
                else:
                    site.add(work)
            self._fed.setdefault(site, [])
        elif isinstance(route, Unrouteable):
            for context, claim in members:
                core.fail(context, claim, route.message, router=route.router)
        else:
            for context, claim in members:
                core.defer_routing(context, claim, route)

    def _site(self, route: Routed, hop: str, wish: Wish, sts: StsAnswer) -> Site:
        """The site for an address whose next hop is `hop`, which may be another domain of the route's group."""
        group = route.group if sts is NO_POLICY else None
        if group is not None:
            site = self._sites_of.get((group, wish))
            if site is not None and not site.by_domain:
                site.is_shared = site.is_shared or site.hosts[0].domain != hop
                return site
        site = self._find_site(route.for_domain(hop, route.ttl_s), wish, sts)
        if group is not None:
            if len(self._sites_of) >= MAX_IDLE_SITES:
                self._sites_of.clear()
            self._sites_of[group, wish] = site
        return site

    def _find_site(self, route: Routed, wish: Wish, sts: StsAnswer) -> Site:
        hosts = [_identity(host) for host in route.hosts]
        if all(host.preference is not None for host in route.hosts):
            # hosts of one preference stand in an order of chance: domains that differ in nothing else share a site
            hosts.sort(key=repr)
        domain = route.hosts[0].domain
        # R46, R47: what is demanded of one domain or of some messages concerns no others; a new policy is a new site
        demands = (wish, sts, domain if sts is not NO_POLICY else "")
        key: tuple[object, ...] = (route.transport, route.router, tuple(hosts), demands)
        site = self._sites.get(key)
        by_domain = site is not None and site.by_domain and (site.is_shared or site.hosts[0].domain != domain)
        if by_domain:
            # DN-11, R46: what the certificate must name depends on the domain
            key = (*key, domain)
            site = self._sites.get(key)
        elif site is not None and site.hosts[0].domain != domain:
            site.is_shared = True
        if site is None:
            if len(self._sites) >= MAX_IDLE_SITES:
                self._forget_idle_sites()
            site = Site(route.router, self._core.transports[route.transport], route.hosts, wish, sts)
            site.by_domain = by_domain
            self._sites[key] = site
        return site

    def _forget_idle_sites(self) -> None:
        idle = [key for key, site in self._sites.items() if not site.waiting and not site.connections]
        for key in idle[: len(idle) // 2 + 1]:
            del self._sites[key]
        self._sites_of.clear()

    # the end

    def release_waiting(self) -> None:
        """Give back everything that no connection has begun (shutdown)."""
        core = self._core
        for site in self._sites.values():
            for work in site.take_all():
                for claim in work.claims:
                    core.settlement.release(claim)
        for members in self._unrouted.values():
            for _, claim in members:
                core.settlement.release(claim)
        self._unrouted.clear()


def _identity(host: Host) -> tuple[object, ...]:
    """What two hosts must have in common to be the same for a connection: where it goes, and what DNSSEC said."""
    return (
        *(host.name, host.address, host.port, host.preference, host.secure),
        *(host.mx_secure, host.address_secure, host.alias_secure, host.canonical_name),
    )


def _pieces(members: list[Member], max_rcpt: float, next_hop: str) -> tuple[list[Work], list[Work]]:
    """What goes together in one transaction: recipients with a message of their own, one by one; recipients of one
    message, `max_rcpt` at a time."""
    own: list[Work] = []
    shared: dict[int, tuple[JobContext, list[Claim]]] = {}
    for context, claim in members:
        if context.is_personalised:
            own.append(Work(context, [claim], context.ids.of(claim.number), next_hop))
        else:
            shared.setdefault(claim.job_id, (context, []))[1].append(claim)
    pieces: list[Work] = []
    for context, claims in shared.values():
        size = int(min(max_rcpt, len(claims)))
        message_id = message_id_of(context, 0)
        pieces += [
            Work(context, claims[start : start + size], message_id, next_hop) for start in range(0, len(claims), size)
        ]
    return own, pieces


async def _then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
