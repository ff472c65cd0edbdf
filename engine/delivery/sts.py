"""Which recipients MTA-STS is for, and what is known of their domains.

Layer: orchestration.  Spec: RFC 8461 §5.1; dane-tls R46 to R50.
A policy is that of the recipients' domain, and counts where the hosts come from the MX records of that domain: a host
that the configuration names is not the domain's to name.  Domains share connections unless one of them has a policy,
so the broken policy of one never holds up another's mail.
Invariants: `known_or_none` waits for nothing; an option that cannot be expanded makes mail wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..errors import ExpandError
from ..net.expiring import Expiring
from ..net.sts_cache import NO_POLICY, StsAnswer, record_name
from ..policy.mta_sts import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config import RouterOptions
    from ..expand import Scope
    from ..net.sts_cache import StsPolicies
    from .routing import Routed
    from .transport import Transport

#: seconds for which a look at mta_sts_domains holds
_LISTED_TTL_S: Final = 300.0
_SIZE: Final = 50_000


class StsGate:
    """Looks policies up for whom they are for.

    Args:
        routers: by which hosts were found; those of driver ``dnslookup`` ask the domain.
        threads: runs expansions that may block, one at a time.
    """

    def __init__(
        self,
        policies: StsPolicies,
        routers: tuple[RouterOptions, ...],
        transports: Mapping[str, Transport],
        make_scope: Callable[[dict[str, object]], Scope],
        threads: trio.CapacityLimiter,
    ) -> None:
        self._policies = policies
        self._by_dns = frozenset(router.name for router in routers if router.driver == "dnslookup")
        self._transports = transports
        self._domains = {name: transport.options.mta_sts_domains for name, transport in transports.items()}
        self._make_scope = make_scope
        self._threads = threads
        self._listed: Expiring[tuple[str, str], bool] = Expiring(_SIZE, trio.current_time)

    def is_by_dns(self, router: str) -> bool:
        """Whether the hosts that `router` finds are those that the recipients' domain names."""
        return router in self._by_dns

    def known_or_none(self, route: Routed, domain: str) -> StsAnswer | None:
        """What is demanded for `domain` on this way, if that is known already."""
        if route.router not in self._by_dns or domain.startswith("["):
            return NO_POLICY
        domains = self._domains[route.transport]
        if not domains:
            return NO_POLICY
        if domains != "*":
            listed = self._listed.get_or_none((route.transport, domain))
            if not listed:
                return None if listed is None else NO_POLICY
        return _in_force(self._policies.known_or_none(domain))

    def find_now(self, route: Routed, domain: str) -> StsAnswer | None:
        """As `look_up`, where nothing has to be waited for and there is no policy; None otherwise."""
        known = self.known_or_none(route, domain)
        if known is None and self._domains[route.transport] == "*":
            known = _in_force(self._policies.find_now(domain))
        return known

    def record_or_none(self, router: RouterOptions, domain: str) -> str | None:
        """The name of the TXT record that will be asked for if `router` finds the hosts; None for none."""
        if self._domains[router.transport] != "*":
            return None
        return None if self._policies.known_or_none(domain) is not None else record_name(domain)

    async def look_up(self, route: Routed, domain: str) -> StsAnswer:
        """As `known_or_none`, asking whoever has to be asked."""
        known = self.known_or_none(route, domain)
        if known is not None:
            return known
        transport = self._transports[route.transport]
        if self._domains[route.transport] != "*":
            try:
                listed = await self._is_listed(transport, domain)
            except ExpandError as error:
                return StsAnswer(must_wait=f"mta_sts_domains: {error.message}")
            self._listed.put((route.transport, domain), listed, _LISTED_TTL_S)
            if not listed:
                return NO_POLICY
        found = _in_force(await self._policies.look_up(domain))
        assert found is not None, "there is an answer"
        policy = found.policy
        if policy is not None and not all(policy.names(host.name.lower()) for host in route.hosts):
            # R49: before an old policy keeps mail from a new host, see whether there is a newer one
            found = _in_force(await self._policies.look_up(domain, recheck=True)) or found
        return found

    async def _is_listed(self, transport: Transport, domain: str) -> bool:
        scope = self._make_scope({"domain": domain, "transport_name": transport.name})
        return await trio.to_thread.run_sync(transport.wants_sts, domain, scope, limiter=self._threads)


def _in_force(found: StsAnswer | None) -> StsAnswer | None:
    """A policy of mode none is none; what is left of an answer that demands and reports nothing is `NO_POLICY`."""
    if found is None or found is NO_POLICY:
        return found
    if found.must_wait or found.problem or (found.policy is not None and found.policy.mode is not Mode.NONE):
        return found
    return NO_POLICY


__all__ = ["NO_POLICY", "StsGate"]
