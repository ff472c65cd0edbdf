"""Where the mail of a domain may go: the hosts, or why there are none, as values.

Layer: sans-I/O (values only).  Spec: events-dane 7.1 (DN-1 to DN-3), 11.6 (error numbers); RFC 3463 (enhanced codes),
RFC 5321 §5.1; dane-tls R8, R12, R36.
Invariants: nothing here changes once it is made; a `HostList` is never empty.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: 11.6 of the behaviour specification
ERRNO_UNKNOWN: Final = -1
ERRNO_UNKNOWN_HOST: Final = -32
ERRNO_DNS_DEFER: Final = -36


@dataclass(frozen=True, slots=True)
class Host:
    """One address of one host that takes mail for a domain.

    Attributes:
        name: as in the MX record or the host list, before CNAMEs; ``[192.0.2.1]`` for an address-literal domain,
            the bare address for an address in a host list.
        address: textual IP address.
        port: 0 means the transport's.
        preference: of the MX record, or None without one.
        secure: MX (or its denial) and address taken together; True secure, False insecure, None unknown (DN-1 to DN-3).
        mx_secure: the MX answer or the denial of MX records; None if unknown or MX was not asked.
        address_secure: the answer that had this address (R8 decides per address).
        alias_secure: the first CNAME of `name` (R3); None if `name` is no alias or this is unknown.
        canonical_name: `name` after CNAMEs.
        from_mx: `preference` comes from an MX record.
        domain: the next hop that was looked up; domain_canonical_name: the same after CNAMEs (R36).
    """

    name: str
    address: str
    port: int = 0
    preference: int | None = None
    secure: bool | None = None
    mx_secure: bool | None = None
    address_secure: bool | None = None
    alias_secure: bool | None = None
    canonical_name: str = ""
    from_mx: bool = False
    domain: str = ""
    domain_canonical_name: str = ""


class FailureKind(enum.Enum):
    """Why there is no host, for good."""

    #: the domain does not exist, or has neither MX nor address records
    NO_DOMAIN = "no such domain"
    #: null MX (RFC 7505)
    NO_SERVICE = "null MX"
    #: no MX records in a domain that must have them (mx_domains)
    NO_MX = "no MX records"
    #: no host has an address
    NO_ADDRESS = "no address"
    #: every address is in ignore_target_hosts
    IGNORED = "ignored"
    #: the best host is this machine, and `self` says that this is an error
    SELF = "self"


@dataclass(frozen=True, slots=True)
class HostList:
    """Hosts in the order to try them; never empty.

    Attributes:
        is_ours: the best of them is this machine: the router's `self` decides.
        ttl_s: seconds for which this holds.
        reasons: the steps that led here, for people.
    """

    hosts: tuple[Host, ...]
    is_ours: bool = False
    ttl_s: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """There is no host.  `code` is the enhanced status (RFC 3463)."""

    message: str
    kind: FailureKind
    code: str
    ttl_s: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deferral:
    """It cannot be said now.

    Attributes:
        errno: as in ``defer (n)``.
        retry_name: error name for retry rules, ``timeout_DNS`` or "".
    """

    message: str
    errno: int = ERRNO_DNS_DEFER
    code: str = "4.4.3"
    retry_name: str = ""
    ttl_s: int = 0
    reasons: tuple[str, ...] = ()


Found = HostList | Failure | Deferral


def apply_self(found: HostList, action: str) -> Found:
    """What the router's `self` makes of hosts of which the best may be this machine.

    Args:
        action: ``defer``, ``fail`` or ``send``.
    """
    if not found.is_ours or action == "send":
        return found
    message = self_message(found.hosts[0])
    if action == "fail":
        return Failure(message, FailureKind.SELF, "5.4.6", found.ttl_s, found.reasons)
    return Deferral(message, ERRNO_UNKNOWN, "4.4.6", "", found.ttl_s, found.reasons)


def self_message(host: Host) -> str:
    """Exim's text for a host that is this machine."""
    return "lowest numbered MX record points to local host" if host.from_mx else "remote host address is the local host"
