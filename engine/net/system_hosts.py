"""What the operating system knows of hosts: names by its own ways, and the addresses of this machine.

Layer: adapter (trio, threads).  Spec: Exim's `byname` (manualroute 20.7) and its idea of the local host.
`SystemHosts` answers as the resolver does, so that routing need not care; its answers are never secure, since
getaddrinfo does not tell.
Invariants: at most `threads` calls run at one time, each is waited for with a deadline; nothing raises for a name that
is not found.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Final

import trio

from ..policy.answers import Answer, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

#: addresses kept of one name; arbitrary
_MAX_ADDRESSES: Final = 64
#: seconds an answer may be kept: getaddrinfo tells no TTL; arbitrary, short enough for a changed hosts file
SYSTEM_TTL_S: Final = 60
#: RFC 5737, RFC 3849, RFC 9637: addresses for documentation; a test network may use one of them, but not all
_NOBODYS: Final = {
    socket.AF_INET: ("192.0.2.254", "198.51.100.254", "203.0.113.254"),
    socket.AF_INET6: ("2001:db8:ffff:ffff::fffe", "3fff:fff:ffff:ffff::fffe"),
}
#: any port will do: nothing is sent
_DISCARD_PORT: Final = 9
_FAMILIES: Final = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}
_NOT_FOUND: Final = tuple(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


class SystemHosts:
    """Look up host names as other programs of this machine do: hosts file, DNS, whatever nsswitch says.

    Args:
        timeout_s: seconds after which a call is given up (its thread ends when the system lets it).
        threads: most calls at one time.
    """

    def __init__(self, *, timeout_s: float = 15.0, threads: int = 8) -> None:
        self._timeout_s = timeout_s
        self._limiter = trio.CapacityLimiter(threads)

    async def query(self, name: str, rdtype: str) -> Answer:
        """The addresses of `name`; `rdtype` is ``A`` or ``AAAA``."""
        family = _FAMILIES[rdtype]
        try:
            with trio.fail_after(self._timeout_s):
                addresses = await trio.to_thread.run_sync(
                    _look_up, name, family, abandon_on_cancel=True, limiter=self._limiter
                )
        except trio.TooSlowError:
            return Answer(name, rdtype, Status.TIMEOUT, canonical_name=name, extended_error="getaddrinfo is too slow")
        except socket.gaierror as error:
            status = Status.NXDOMAIN if error.errno in _NOT_FOUND else Status.SERVFAIL
            ttl_s = 0 if status is Status.SERVFAIL else SYSTEM_TTL_S
            return Answer(name, rdtype, status, canonical_name=name, ttl_s=ttl_s, extended_error=str(error.strerror))
        except (OSError, UnicodeError) as error:
            return Answer(name, rdtype, Status.SERVFAIL, canonical_name=name, extended_error=str(error))
        status = Status.OK if addresses else Status.NODATA
        return Answer(
            name, rdtype, status, addresses=addresses, canonical_name=name, ttl_s=SYSTEM_TTL_S, server="system"
        )

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        """None: nothing is kept here."""

    peek = query_nowait

    def tell(self, answer: Answer) -> None:
        """Nobody wants to know."""


def _look_up(name: str, family: socket.AddressFamily) -> tuple[str, ...]:
    found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(row[4][0]) for row in found))[:_MAX_ADDRESSES]


class LocalAddresses:
    """The addresses of this machine's interfaces, as a container of their texts.

    An address is ours if a socket can be bound to it, which is how the system itself decides; 0.0.0.0 and :: mean
    this machine as well.  Where the system lets programs bind to any address (Linux: net.ipv4.ip_nonlocal_bind, as
    fail-over set-ups have it), binding proves nothing, and an address is ours if the way to it starts at itself.
    What is found is remembered, so make a new one when the configuration is read again.

    Args:
        extra: further addresses that count as ours, such as that of a load balancer in front.
    """

    #: addresses remembered; arbitrary
    MAX_REMEMBERED: Final = 10_000

    def __init__(self, extra: Iterable[str] = ()) -> None:
        self._extra = frozenset(str(ipaddress.ip_address(text)) for text in extra)
        self._known: dict[str, bool] = {}

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, str):
            return False
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= self.MAX_REMEMBERED:
                self._known.clear()
            known = self._known[address] = address in self._extra or _is_ours(address)
        return known


def _is_ours(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if parsed.is_multicast:
        # a socket binds to a group, yet nobody's interface has it
        return False
    if parsed.is_unspecified:
        return True
    if parsed.is_loopback:
        return True
    family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
    if not _can_bind(family, address):
        return False
    binds_any = all(_can_bind(family, nobodys) for nobodys in _NOBODYS[family])
    return not binds_any or _starts_at_itself(family, address)


def _can_bind(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        # anything but "not ours" tells nothing of the address (no IPv6 here, no file left): treat it as another's
        return error.errno == errno.EADDRINUSE
    return True


def _starts_at_itself(family: socket.AddressFamily, address: str) -> bool:
    """Whether packets to the address would have it as their source; connecting a datagram socket sends none."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _DISCARD_PORT))
            source = str(probe.getsockname()[0])
    except OSError:
        return False
    return ipaddress.ip_address(source.partition("%")[0]) == ipaddress.ip_address(address.partition("%")[0])
