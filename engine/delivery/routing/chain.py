"""The routers of the configuration, tried in order, and what they decided kept by domain.

Layer: orchestration (trio).  Spec: Exim 4 specification 3.8 to 3.12 (how an address is routed), 15 (`more`).
The first router that gives a route decides.  One that skips or declines leaves the address to the next, unless `more`
is false; when none is left the address is unrouteable.
Invariants: a route is kept by domain only if nothing but the domain was looked at on the way; what is kept ends with
its TTL; while one address of a domain is being routed, others of the same domain wait for it rather than ask the same;
a task that is cancelled takes nobody with it.
Where chance decides the order of hosts, that order holds as long as the route: the mail of one domain keeps to the
connections that are warm, and domains spread over the hosts.
Bounds: `cache_size` routes, of which one with very many hosts counts as several; a domain that is being routed is one
of the caller's tasks, so there are never more flights than tasks that ask.
Domains with the same mail hosts share a route (`Group`): what is kept of each is little more than its name.
Speed: `shared_or_none` is one dictionary look-up and no await, so that a batch of recipients is routed in a plain loop;
and so is `route_now`, which routes a domain whose answers were asked for ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from ...errors import ConfigError
from ...net.expiring import Expiring
from .router import LOOKUP_TTL_S, STATIC_TTL_S, Decline, Pass, Router, Skip, Surroundings, Walk
from .routes import Route, Routed, RouteDeferred, Unrouteable
from .search import MustWait

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Sequence

    from ...config import RouterOptions
    from ...values import Address
    from .expansion import Expander
    from .search import Asks, AsksAhead

#: seconds for which a route serves at least, whatever its TTL: one transaction of a batch, in RFC 1035's terms
MIN_ROUTE_TTL_S: Final = 10
#: domains whose routes are kept: those of a long list that goes round them; each takes about 200 octets
CACHE_SIZE: Final = 120_000
#: hosts and reasons that count as one of `cache_size`, some 8 KiB; the usual route has a dozen of both
UNIT_HOSTS: Final = 32
#: what a route may depend on and still hold for every address of the domain
_OF_DOMAIN: Final = frozenset(
    {"domain", "router_name", "transport_name", "primary_hostname", "host_address", "value", "spool_directory"}
)


@dataclass(slots=True, eq=False)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)
    route: Route | None = None


class RouterChain:
    """All routers.

    Args:
        routers: in order; names are unique.
        resolver: asks DNS questions.
        expander: compiles expansions and lists, see `routing.expansion.EngineExpander`.
        system_hosts: looks up names by the system's own ways (byname).
        transports: names of the configured transports.
        local_addresses: the addresses that are ourselves; see `net.system_hosts.LocalAddresses`.
        families: address families in the order to try them, of ``AAAA`` and ``A``.
        random: shuffles hosts.
        cache_size: most domains kept; one with more than `UNIT_HOSTS` hosts and steps counts as several.
        clock: seconds of a monotonic clock.

    Raises:
        ConfigError: an option of a router cannot be used.
    """

    def __init__(
        self,
        routers: Sequence[RouterOptions],
        resolver: AsksAhead,
        *,
        expander: Expander,
        system_hosts: Asks,
        transports: Collection[str],
        local_addresses: Container[str] = frozenset(),
        families: tuple[str, ...] = ("AAAA", "A"),
        random: Random | None = None,
        cache_size: int = CACHE_SIZE,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        for router in routers:
            if router.transport not in transports:
                raise ConfigError(f"unknown transport {router.transport!r}", key=f"routers.{router.name}.transport")
        #: runs what may block in expansions, one at a time: lookups are not made for two threads at once, so whoever
        #: else evaluates in the same scopes has to wait for it, too
        self.threads = trio.CapacityLimiter(1)
        around = Surroundings(
            resolver,
            system_hosts,
            expander,
            transports,
            local_addresses,
            families,
            random or Random(),
            self.threads,
            clock,
        )
        self._resolver = resolver
        self.routers = tuple(Router(options, around) for options in routers)
        first = self.routers[0] if self.routers else None
        #: the router that looks up the MX records of every domain, if there is one
        self.first_lookup = first.options if first is not None and first.looks_up_all else None
        self._kept: Expiring[str, Route] = Expiring(cache_size, clock)
        self._flights: dict[str, _Flight] = {}

    def cached_or_none(self, domain: str) -> Route | None:
        """The route that is kept for a domain, or None."""
        route = self._kept.get_or_none(domain)
        if isinstance(route, Routed):
            return route.for_domain(domain, int(self._kept.seconds_left(domain)))
        return route

    def shared_or_none(self, domain: str) -> Route | None:
        """The same, or that of another domain of its group."""
        return self._kept.get_or_none(domain)

    def ask_ahead(self, name: str, rdtype: str, on_end: Callable[[], object]) -> bool:
        """See `Resolver.ask_ahead`."""
        return self._resolver.ask_ahead(name, rdtype, on_end)

    def forget(self, domain: str) -> None:
        """Route the domain anew next time (a person asked for a retry)."""
        self._kept.discard(domain)

    async def route(self, address: Address, scope: Any = None) -> Route:
        """Say where an address goes; never raises for DNS, lookups or expansions that fail.

        Args:
            scope: `engine.expand.Scope` with the variables of the message and the lookups, or None.
        """
        route = self.cached_or_none(address.domain)
        if route is not None:
            await trio.lowlevel.checkpoint()
            return route
        flight = self._flights.get(address.domain)
        while flight is not None:
            await flight.done.wait()
            if flight.route is not None:
                if flight.route.cacheable_by_domain:
                    return flight.route
                return await self._walk(address, scope)
            # whoever routed it was cancelled
            flight = self._flights.get(address.domain)
        flight = self._flights[address.domain] = _Flight()
        try:
            flight.route = await self._walk(address, scope)
            return flight.route
        finally:
            del self._flights[address.domain]
            flight.done.set()

    def route_now(self, address: Address, make_scope: Callable[[], Any]) -> Route | None:
        """The route of an address, or that of another domain of its group, where nothing has to be waited for.

        Returns:
            None where something has to, or where more than the domain decides: that is for `route`.
        """
        if address.domain in self._flights:
            return None
        walk = Walk(address, make_scope, is_quick=True)
        steps = self._finish(walk)
        try:
            steps.send(None)
        except StopIteration as end:
            route: Route = end.value
        except MustWait:
            return None
        else:
            steps.close()
            raise AssertionError("a walk that must not wait has waited")
        if not route.cacheable_by_domain:
            return None
        for answer in walk.untold:
            self._resolver.tell(answer)
        return route

    async def _walk(self, address: Address, scope: Any) -> Route:
        return await self._finish(Walk(address, lambda: scope))

    async def _finish(self, walk: Walk) -> Route:
        domain = walk.address.domain
        route = await self._first_route(walk)
        cacheable = all(name in _OF_DOMAIN or name.isdigit() for name in walk.reads)
        ttl_s = route.ttl_s if walk.shared_ttl_s is None else walk.shared_ttl_s
        ttl_s = max(min(ttl_s, LOOKUP_TTL_S) if walk.blocks else ttl_s, MIN_ROUTE_TTL_S)
        group = route.group if isinstance(route, Routed) else None
        kept: Route | None = group.route if group is not None else None
        if kept is None or not walk.is_quick or not cacheable:
            route = replace(route, cacheable_by_domain=cacheable, ttl_s=ttl_s)
            kept = kept or route
        else:
            route = kept
        if cacheable:
            if group is not None and group.route is None and isinstance(route, Routed):
                group.route = route
            hosts = len(route.hosts) if isinstance(route, Routed) else 0
            self._kept.put(domain, kept, ttl_s, 1 + (hosts + len(route.reasons)) // UNIT_HOSTS)
        return route

    async def _first_route(self, walk: Walk) -> Route:
        message, code = "Unrouteable address", "5.1.2"
        ttl_s = STATIC_TTL_S
        reasons: list[str] = []
        passed: RouteDeferred | None = None
        for router in self.routers:
            verdict = await router.route(walk)
            match verdict:
                case Skip():
                    reasons.append(f"router {router.name}: skipped")
                case Pass():
                    passed = passed or verdict.deferral
                    ttl_s = 0
                    reasons.append(f"router {router.name}: passed")
                case Decline():
                    message, code = verdict.message or message, verdict.code
                    ttl_s = min(ttl_s, verdict.ttl_s)
                    reasons += [*verdict.reasons, f"router {router.name}: declined"]
                    if not router.options.more:
                        break
                case _:
                    return replace(verdict, reasons=(*reasons, *verdict.reasons)) if reasons else verdict
        if passed is not None:
            # an error in DNS must not become a failure because no router was left to pass to
            return replace(passed, reasons=(*reasons, *passed.reasons))
        return Unrouteable(message, "", code, ttl_s, reasons=tuple(reasons))
