"""Which name servers to ask, and whether their AD bit is to be believed.

Layer: adapter.  Spec: dane-tls R1; resolv.conf(5) (`nameserver`, `options trust-ad`).
Nothing else of resolv.conf is heeded: names are absolute (R9), so `search`, `domain` and `ndots` mean nothing here, and
how long a question may take is our own option.
Invariants: a list with one server that is not loopback is not trusted as a whole; nothing here asks a question.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

TrustAd = Literal["loopback", "always", "never"]

DNS_PORT: Final = 53
#: servers kept of a list; resolv.conf(5) has 3
MAX_SERVERS: Final = 16
#: octets read of resolv.conf; arbitrary
_MAX_FILE_OCTETS: Final = 65536


@dataclass(frozen=True, slots=True)
class Server:
    """A name server; `address` may carry a zone (``fe80::1%eth0``)."""

    address: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.address.partition("%")[0]).is_loopback


@dataclass(frozen=True, slots=True)
class ServerList:
    """Servers in the order to ask them; `trusts_ad` tells that the operator vouches for the way to them."""

    servers: tuple[Server, ...]
    trusts_ad: bool = False

    def is_ad_trusted(self, trust_ad: TrustAd) -> bool:
        """R1: the AD bit counts if all servers are loopback, or the operator says so."""
        if trust_ad != "loopback":
            return trust_ad == "always"
        return self.trusts_ad or all(server.is_loopback for server in self.servers)


def parse_server(text: str, *, key: str = "dns.nameservers") -> Server:
    """Read ``192.0.2.1``, ``192.0.2.1:53``, ``2001:db8::1`` or ``[2001:db8::1]:53``.

    Raises:
        ConfigError: it is none of them.
    """
    text = text.strip()
    address, port = text, ""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError(f"{text!r} is not [address]:port", key=key)
        port = rest[1:] if rest else ""
        if rest == ":":
            raise ConfigError(f"{text!r} has no port after the colon", key=key)
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
        if not port:
            raise ConfigError(f"{text!r} has no port after the colon", key=key)
    host, percent, zone = address.partition("%")
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{text!r} is not the IP address of a name server", key=key) from None
    if percent and (not zone or parsed.version == 4):
        raise ConfigError(f"{text!r} has a bad zone", key=key)
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigError(f"{text!r} has a port that is not 1 to 65535", key=key)
    return Server(f"{parsed}{percent}{zone}", int(port) if port else DNS_PORT)


def configured_servers(nameservers: Sequence[str]) -> ServerList:
    """The servers of the configuration.

    Raises:
        ConfigError: one of them is not an address, or there are more than 16.
    """
    if len(nameservers) > MAX_SERVERS:
        raise ConfigError(f"more than {MAX_SERVERS} name servers", key="dns.nameservers")
    return ServerList(tuple(dict.fromkeys(parse_server(text) for text in nameservers)))


def system_servers(path: str = "/etc/resolv.conf") -> ServerList:
    """The servers of resolv.conf; 127.0.0.1 where it names none, as resolv.conf(5) says."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_FILE_OCTETS).splitlines()
    except OSError:
        lines = []
    servers: list[Server] = []
    trusts_ad = False
    for line in lines:
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] == "nameserver" and len(words) > 1 and len(servers) < MAX_SERVERS:
            try:
                # resolv.conf knows no ports: a colon is IPv6
                servers.append(parse_server(f"[{words[1]}]"))
            except ConfigError:
                continue
        elif words[0] == "options":
            trusts_ad = trusts_ad or "trust-ad" in words[1:]
    return ServerList(tuple(servers) or (Server("127.0.0.1"),), trusts_ad)
