"""The scheduler: what is claimed when, which site it goes to, and when the run is over.

Layer: orchestration.  Spec: design.md "Two flows", "Speed"; RT-7 to RT-12.

**Facts.**  A queue can hold millions of recipients, memory cannot.  A claim of 500 costs little more than a claim of one.
Most recipients of a bulk job share a few thousand domains, and most domains a few hundred sites.

**What it means.**  Recipients are claimed in batches, only as many as the sites can take up soon; between `LOW_WATER` and
the high mark nothing is asked of the queue.  Routes are found once a domain, in a task a domain, and kept; recipients
that wait for a route wait in a list.  A recipient with a known route costs a dictionary look-up and an append.  Nothing
is ever rescanned: a site with nothing to do has no task, and the claim loop sleeps until the time at which the next
recipient is due, or until another process may have added something.

**What we do not do.**  No task, thread or query a recipient; no fairness beyond that of the claims (jobs take turns).
Invariants: `held` counts the claims that we have and have not settled; it is never over the high mark plus one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import trio

from ..errors import DataError, EngineError
from ..logs.facts import Fact, FactKind
from ..queue.model import OutcomeKind
from ..values import parse_address
from .routing import Routed, Unrouteable
from .site import Site
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..queue.model import Claim
    from .core import Core
    from .routing import Route
    from .work import JobContext

#: batches held beside the one being claimed
HIGH_WATER_BATCHES: Final = 4
#: routes looked up at one time; arbitrary, resolvers start to drop queries at some hundreds
MAX_ROUTING: Final = 100
#: sites kept beyond those with work or a connection
MAX_IDLE_SITES: Final = 20_000
#: seconds between looks for what other processes added to the queue
POLL_S: Final = 1.0
#: seconds that a recipient waits whose routing router could not say when to come back
_NO_RULE_S: Final = 900.0


class Scheduler:
    """Claims recipients and hands them to sites.  See the module's text."""

    def __init__(self, core: Core, *, job_id: int | None, wait: bool, drain: bool) -> None:
        self._core = core
        self._job_id = job_id
        #: stay for retries of the job; drain: end when nothing is due (else run until stopped)
        self._wait = wait
        self._drain = drain
        self._routing = trio.CapacityLimiter(MAX_ROUTING)
        self._unrouted: dict[str, list[tuple[JobContext, Claim]]] = {}
        self._sites: dict[tuple[object, ...], Site] = {}
        self._settled = trio.Event()
        self.held = 0

    # what the settlement tells

    def on_settled(self, count: int, completed: Sequence[int]) -> None:
        """`count` claims are no longer held."""
        self.held -= count
        self._settled.set()
        for job_id in completed:
            self._core.jobs.forget(job_id)

    # the claim loop

    async def run(self, nursery: trio.Nursery) -> None:
        """Claim until there is nothing left to do, or `Core.stopping` is set."""
        core = self._core
        high = core.config.main.claim_size * HIGH_WATER_BATCHES
        while not core.stopping.is_set():
            if self.held >= high or core.settlement.is_stuck:
                await self._wait_settled(POLL_S)
                continue
            claims = await self._claim()
            if claims:
                self.held += len(claims)
                await self._dispatch(claims, nursery)
                continue
            if await self._is_over():
                return
            await self._wait_settled(await self._idle_s())

    async def _claim(self) -> list[Claim]:
        core, main = self._core, self._core.config.main
        return await core.database.call(
            core.database.store.claim, core.engine.owner, main.claim_size, core.clock(), main.lease_time, self._job_id
        )

    async def _is_over(self) -> bool:
        if self.held or not self._drain:
            return False
        if self._wait:
            return await self._next_due_at() is None
        due = await self._next_due_at()
        return due is None or due > self._core.clock()

    async def _next_due_at(self) -> float | None:
        return await self._core.database.call(self._core.database.store.next_due_at, self._job_id)

    async def _idle_s(self) -> float:
        due = await self._next_due_at()
        return POLL_S if due is None else min(POLL_S, max(0.01, due - self._core.clock()))

    async def _wait_settled(self, seconds: float) -> None:
        """Sleep until something was settled, the engine is to stop, or `seconds` are over."""
        self._settled = trio.Event()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_then_cancel, self._settled, nursery.cancel_scope)
                nursery.start_soon(_then_cancel, self._core.stopping, nursery.cancel_scope)

    # from claims to sites

    async def _dispatch(self, claims: list[Claim], nursery: trio.Nursery) -> None:
        core = self._core
        routed: dict[int, tuple[Route, list[tuple[JobContext, Claim]]]] = {}
        for claim in claims:
            context = core.jobs.get(claim.job_id) or await core.jobs.load(claim.job_id)
            if context is None:
                core.fail(None, claim, "the job of this recipient is gone")
                continue
            domain = claim.address.rpartition("@")[2]
            waiting = self._unrouted.get(domain)
            if waiting is not None:
                waiting.append((context, claim))
                continue
            try:
                address = parse_address(claim.address)
            except DataError as error:
                core.fail(context, claim, str(error))
                continue
            route = core.routers.cached_or_none(address)
            if route is not None:
                routed.setdefault(id(route), (route, []))[1].append((context, claim))
                continue
            self._unrouted[domain] = [(context, claim)]
            nursery.start_soon(self._route_domain, domain)
        for route, members in routed.values():
            self._hand_over(route, members)
        await trio.lowlevel.checkpoint()

    async def _route_domain(self, domain: str) -> None:
        """Find the route of the recipients that wait for `domain`; one route for all where no local part mattered."""
        async with self._routing:
            first, found = True, None
            while members := self._unrouted.get(domain):
                if not first and found is not None and found.cacheable_by_domain:
                    del self._unrouted[domain]
                    self._hand_over(found, members)
                    return
                context, claim = members.pop(0)
                found = await self._route(claim, context)
                first = False
                if found is not None:
                    self._hand_over(found, [(context, claim)])
            self._unrouted.pop(domain, None)

    async def _route(self, claim: Claim, context: JobContext) -> Route | None:
        core = self._core
        try:
            return await core.routers.route(parse_address(claim.address), core.scope_for(context, claim))
        except EngineError as error:
            core.defer_routing(context, claim, f"routing failed: {error}", -1, "", _NO_RULE_S)
            return None

    def _hand_over(self, route: Route, members: list[tuple[JobContext, Claim]]) -> None:
        core = self._core
        if isinstance(route, Routed):
            site = self._site(route)
            by_job: dict[int, tuple[JobContext, list[Claim]]] = {}
            for context, claim in members:
                if context.job.personalised or context.job.is_template:
                    site.add(Work(context, [claim]))
                else:
                    by_job.setdefault(claim.job_id, (context, []))[1].append(claim)
            limit = site.transport.options.max_rcpt or math.inf
            for context, claims in by_job.values():
                size = int(min(limit, len(claims)))
                for start in range(0, len(claims), size):
                    site.add(Work(context, claims[start : start + size]))
            core.pool.on_work(site)
        elif isinstance(route, Unrouteable):
            for context, claim in members:
                core.fail(context, claim, route.message, router=route.router)
        else:
            for context, claim in members:
                core.defer_routing(context, claim, route.message, route.errno, route.router, None)

    def _site(self, route: Routed) -> Site:
        hosts = tuple((host.name, host.address, host.port, host.preference, host.secure) for host in route.hosts)
        key = (route.transport, hosts)
        site = self._sites.get(key)
        if site is None:
            if len(self._sites) >= MAX_IDLE_SITES:
                self._forget_idle_sites()
            site = Site(route.router, self._core.transports[route.transport], route.hosts)
            self._sites[key] = site
        return site

    def _forget_idle_sites(self) -> None:
        idle = [key for key, site in self._sites.items() if not site.waiting and not site.connections]
        for key in idle[: len(idle) // 2 + 1]:
            del self._sites[key]

    # the end

    def release_waiting(self) -> None:
        """Give back everything that no connection has begun (shutdown)."""
        settle = self._core.settlement.settle
        for site in self._sites.values():
            for work in site.take_all():
                for claim in work.claims:
                    settle(claim.outcome(OutcomeKind.RELEASED))
        for members in self._unrouted.values():
            for _, claim in members:
                settle(claim.outcome(OutcomeKind.RELEASED))
        self._unrouted.clear()

    def waiting_by_site(self) -> dict[str, int]:
        """First host -> pieces of work that wait for it, for the display."""
        counts: defaultdict[str, int] = defaultdict(int)
        for site in self._sites.values():
            if site.waiting:
                counts[site.hosts[0].name] += site.waiting
        return dict(counts)


async def _then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
