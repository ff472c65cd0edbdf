"""What routing says of an address.

Layer: orchestration (values only).  Spec: events-dane LG-2, LG-3 (log lines of the routing stage), 11.6 (errno).
Invariants: a route never changes; `cacheable_by_domain` is True only if neither the local part nor anything of the
message was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...policy.hosts import Host


class Group:
    """Stands for all domains whose mail goes the same way, to the same hosts: one object for all of them.

    Attributes:
        route: that of the first of them, which is kept for all.
    """

    __slots__ = ("route",)

    def __init__(self) -> None:
        self.route: Routed | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """The address goes to `hosts`, best first, by `transport`.

    Attributes:
        ttl_s: seconds for which this holds.
        reasons: the steps that led here, for people.
        group: of the domains for which it would be the same but for their name in `Host.domain`; None for one alone.
    """

    transport: str
    router: str
    hosts: tuple[Host, ...]
    ttl_s: int = 0
    cacheable_by_domain: bool = False
    reasons: tuple[str, ...] = ()
    group: Group | None = field(default=None, compare=False, repr=False)

    def for_domain(self, domain: str, ttl_s: int) -> Routed:
        """The route of another domain of the group; the steps that led there were other ones."""
        if self.group is None or self.hosts[0].domain == domain:
            return self
        hosts = tuple([replace(host, domain=domain, domain_canonical_name=domain) for host in self.hosts])
        return replace(self, hosts=hosts, ttl_s=ttl_s, reasons=())

    def next_hop(self, domain: str) -> str:
        """What was looked up for an address of `domain`."""
        return self.hosts[0].domain if self.group is None else domain


@dataclass(frozen=True, slots=True)
class Unrouteable:
    """The address fails without a transport.

    Attributes:
        message: for the log, ``Unrouteable address`` unless a router knows better.
        router: the one that failed it; "" when all declined.
        code: enhanced status (RFC 3463).
    """

    message: str
    router: str = ""
    code: str = "5.1.2"
    ttl_s: int = 0
    cacheable_by_domain: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteDeferred:
    """Routing has to be tried again later.

    Attributes:
        errno: as in ``defer (n)``.
        code: enhanced status (RFC 3463).
        retry_name: error name for retry rules, such as ``timeout_DNS``, or "".
        is_frozen: a person has to look at it first (host_find_failed = freeze).
    """

    message: str
    errno: int
    router: str
    code: str = "4.4.3"
    retry_name: str = ""
    is_frozen: bool = False
    ttl_s: int = 0
    cacheable_by_domain: bool = False
    reasons: tuple[str, ...] = ()


Route = Routed | Unrouteable | RouteDeferred
