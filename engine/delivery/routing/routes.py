"""What routing says of an address.

Layer: orchestration (values only).  Spec: events-dane LG-2, LG-3 (log lines of the routing stage), 11.6 (errno).
Invariants: a route never changes; `cacheable_by_domain` is True only if neither the local part nor anything of the
message was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...policy.hosts import Host


@dataclass(frozen=True, slots=True)
class Routed:
    """The address goes to `hosts`, best first, by `transport`.

    Attributes:
        ttl_s: seconds for which this holds.
        reasons: the steps that led here, for people.
    """

    transport: str
    router: str
    hosts: tuple[Host, ...]
    ttl_s: int = 0
    cacheable_by_domain: bool = False
    reasons: tuple[str, ...] = ()


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
