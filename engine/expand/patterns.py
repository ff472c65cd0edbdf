"""The patterns that stand in domain, host, address and local-part lists.

Layer: sans-I/O.  Spec: expansion.md 4.1; RFC 4632 §3.1 (prefixes), RFC 4291 §2.3.
Input: one item of a list, and a subject.  Output: the value of the match or None.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import ExpandError
from . import searches
from .regexes import Regex, compile_regex
from .regexes import text as as_text
from .taint import is_tainted, taint

if TYPE_CHECKING:
    from .scope import Scope

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(slots=True)  # not frozen, which would make it three times as slow to make
class Subject:
    """What is looked for in a list.  Nobody changes it.

    Attributes:
        text: the domain, local part, address or host name as it came; it may be `Tainted`.
        folded: `text` in lower case; None for a host without a name.
        address: the IP address of a host.
        at: place of the last @ in an address, or -1.
    """

    text: bytes
    folded: bytes | None
    address: IpAddress | None = None
    at: int = -1

    @property
    def domain(self) -> bytes:
        return self.text[self.at + 1 :]


def text_subject(text: bytes) -> Subject:
    return Subject(text, text.lower())


def address_subject(text: bytes) -> Subject:
    return Subject(text, text.lower(), at=text.rfind(b"@"))


def host_subject(name: bytes | None, address: bytes | None) -> Subject:
    return Subject(
        name or b"", None if name is None else name.lower().removesuffix(b"."), _host_ip(address) if address else None
    )


def _host_ip(text: bytes) -> IpAddress | None:
    """The address of a host; one of IPv4 inside IPv6 counts as what it is."""
    address = parse_ip(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_ip(text: bytes) -> IpAddress | None:
    """The IP address written in `text`, without brackets, or None."""
    try:
        return ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        return None


class Pattern:
    """One item of a list; `match` gives a value or None, and raises as the lists say."""

    __slots__ = ()
    is_pure = True

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        raise NotImplementedError

    def shown(self, source: bytes, found: bytes) -> bytes:
        """What `$value` becomes in a condition; `source` is the item as written, `found` what `match` gave."""
        return found or source

    def groups(self, subject: Subject) -> tuple[bytes, ...]:
        """What `$0`, `$1` … become in a condition when this matched."""
        return _marked(subject, subject.folded or b"")


def _marked(subject: Subject, *parts: bytes) -> tuple[bytes, ...]:
    """Parts of a subject, which are as tainted as that."""
    return tuple([taint(part) for part in parts]) if is_tainted(subject.text) else parts


class Anything(Pattern):
    """`*`"""

    __slots__ = ()

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        return b""

    def groups(self, subject: Subject) -> tuple[bytes, ...]:
        text = subject.folded or b""
        return _marked(subject, text, text)


class Nothing(Pattern):
    """What can never match"""

    __slots__ = ()

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        return None


class Exact(Pattern):
    """The same text without case; the value is the pattern as it is written, which is not tainted."""

    __slots__ = ("folded", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.folded = text.lower()

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        return self.text if subject.folded == self.folded else None


class Tail(Pattern):
    """`*tail`"""

    __slots__ = ("tail",)

    def __init__(self, tail: bytes) -> None:
        self.tail = tail.lower()

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        return b"" if subject.folded is not None and subject.folded.endswith(self.tail) else None

    def groups(self, subject: Subject) -> tuple[bytes, ...]:
        text = subject.folded or b""
        return _marked(subject, text, text[: len(text) - len(self.tail)])


class Matching(Pattern):
    """`^regex`, without case"""

    __slots__ = ("_regex",)

    def __init__(self, regex: Regex) -> None:
        self._regex = regex

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        if subject.folded is None:
            return None
        return b"" if self._regex.search(subject.text) is not None else None

    def groups(self, subject: Subject) -> tuple[bytes, ...]:
        found = self._regex.search(subject.text) or ()
        return _marked(subject, subject.text, *found[1:])


class Network(Pattern):
    """An address or `net/bits`"""

    __slots__ = ("_network",)

    def __init__(self, network: IpNetwork) -> None:
        self._network = network

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        address = subject.address
        return b"" if address is not None and address in self._network else None


class NullSender(Pattern):
    """An empty item of an address list"""

    __slots__ = ()

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        return b"" if not subject.text else None


class DomainOfAddress(Pattern):
    """A domain pattern in an address list, alone or behind `*@`"""

    __slots__ = ("is_pure", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.is_pure = pattern.is_pure

    def shown(self, source: bytes, found: bytes) -> bytes:
        local, at, domain = source.rpartition(b"@")
        shown = self.pattern.shown(domain, found)
        return (b"*@" if at and local else b"@") + shown

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        if subject.at < 0:
            return None
        domain = subject.domain
        if is_tainted(subject.text):
            domain = taint(domain)
        return self.pattern.match(text_subject(domain), scope)


class LocalAtDomain(Pattern):
    """`local@pattern`; `*tail@pattern`"""

    __slots__ = ("domain", "is_pure", "local")

    def __init__(self, local: bytes, domain: Pattern) -> None:
        self.local = local_part_pattern(local)
        self.domain = DomainOfAddress(domain)
        self.is_pure = domain.is_pure

    def shown(self, source: bytes, found: bytes) -> bytes:
        local = source.rpartition(b"@")[0]
        return (b"*" if local.startswith(b"*") else local) + self.domain.shown(source.rpartition(b"@")[2], found)

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        if subject.at < 0:
            return None
        if self.local.match(text_subject(subject.text[: subject.at]), scope) is None:
            return None
        return self.domain.match(subject, scope)


class PlainRow(NamedTuple):
    """A pattern without a rule of its own, as the evaluator looks at it; see match_list in engine.expand._evaluate.

    Attributes:
        local, local_is_tail: the local part in lower case, None when any will do.
        name, is_tail: the domain, or the whole subject where that is no address.
        value: what `$value` becomes.
    """

    local: bytes | None
    local_is_tail: bool
    name: bytes
    is_tail: bool
    value: bytes | None


def _plain(pattern: Pattern) -> tuple[bytes, bool] | None:
    """The text that a subject must be or end with, and which of the two; None when that is not all."""
    if type(pattern) is Exact:
        return pattern.folded, False
    if type(pattern) is Tail:
        return pattern.tail, True
    return (b"", True) if type(pattern) is Anything else None


def plain_row(pattern: Pattern, source: bytes, *, address: bool) -> PlainRow | None:
    """`pattern`, written `source` in a list, as a row; None when it cannot be one.

    Args:
        address: whether it stands in an address list.
    """
    local: tuple[bytes | None, bool] | None = (None, False)
    inner = pattern
    if type(pattern) is LocalAtDomain:
        local = _plain(pattern.local)
        inner = pattern.domain.pattern
    elif type(pattern) is DomainOfAddress:
        inner = pattern.pattern
    elif address:
        return None
    name = _plain(inner)
    if local is None or name is None:
        return None
    found = inner.text if type(inner) is Exact else b""
    return PlainRow(*local, *name, pattern.shown(source, found) or None)


class PrimaryHost(Pattern):
    """`@`: the name of this host"""

    __slots__ = ()

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        name = scope.variables.get("primary_hostname") if scope is not None else None
        octets = name.encode() if isinstance(name, str) else name
        return octets if octets and subject.folded == octets.lower() else None


class Looked(Pattern):
    """`type;file-or-query`: the subject is the key"""

    __slots__ = ("_search", "_text")
    is_pure = False

    def __init__(self, search: searches.Search, text: bytes) -> None:
        self._search = search
        self._text = text

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        if subject.folded is None:
            return None
        return look_up(self._search, self._text, subject.text, is_tainted(subject.text), scope)


class NetLooked(Pattern):
    """`net-type;file`, `net24-type;file`: the address, masked, is the key"""

    __slots__ = ("_bits", "_search", "_text")
    is_pure = False

    def __init__(self, bits: int | None, search: searches.Search, text: bytes) -> None:
        self._bits = bits
        self._search = search
        self._text = text

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        if subject.address is None:
            return None
        key = str(subject.address)
        if self._bits is not None:
            key = str(
                ipaddress.ip_network((subject.address, min(self._bits, subject.address.max_prefixlen)), strict=False)
            )
        return look_up(self._search, self._text, key.encode(), False, scope)


class MatchingAddress(Matching):
    """`^regex` in an address list"""

    __slots__ = ()

    def shown(self, source: bytes, found: bytes) -> bytes:
        return found


class AddressesOfDomain(Pattern):
    """`@@lookup`: the domain is the key, what is found is a list of local parts"""

    __slots__ = ("_pattern",)
    is_pure = False

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        from .lists import LocalPartList  # noqa: PLC0415  # lists are made of patterns

        if subject.at < 0:
            return None
        found = self._pattern.match(text_subject(subject.domain), scope)
        if not found:
            return None
        return LocalPartList.compile(bytes(found)).match(subject.text[: subject.at], scope)


def look_up(search: searches.Search, text: bytes, key: bytes, tainted: bool, scope: Scope | None) -> bytes | None:
    """The value of a lookup of `key`, or None."""
    if scope is None or scope.lookups is None:
        raise ExpandError("no lookups can be done here")
    if search.type.style is searches.Style.QUERY:
        found = scope.lookups.find(search, key=None, text=text, cached=scope.cached, scope=scope)
    else:
        found = scope.lookups.find(search, key=key, text=text, tainted=tainted, cached=scope.cached, scope=scope)
    return None if found is None else (taint(found.value) if found.tainted else found.value)


_LOOKUP: Final = re.compile(rb"((?:partial[^;]*)?[a-z0-9]+[^;/\s]*)\s*;\s*(.*)\Z", re.DOTALL)


def lookup_pattern(item: bytes) -> Pattern | None:
    """`type;file` or `type;query`, or None.  Raises ExpandError for a type that is none."""
    match = _LOOKUP.match(item)
    if not match:
        return None
    return Looked(searches.parse_type(match[1], has_key=None), match[2])


def _string_pattern(item: bytes) -> Pattern:
    if item == b"*":
        return Anything()
    if item.startswith(b"^"):
        return Matching(compile_regex(item, caseless=True))
    if item.startswith(b"*"):
        return Tail(item[1:])
    if item.startswith(b"/"):
        raise ExpandError(f'file name "{as_text(item)}" in a list: put the items here, or use a lookup')
    return lookup_pattern(item) or Exact(item)


def domain_pattern(item: bytes) -> Pattern:
    """A pattern of a domain list (4.1).

    Raises:
        ExpandError: bad regular expression or lookup, or `@` forms that need this host's own addresses.
    """
    if item == b"@":
        return PrimaryHost()
    if item.startswith(b"@"):
        raise ExpandError(f'"{as_text(item)}" in a domain list needs the addresses of this host; name the domains')
    return _string_pattern(item)


def local_part_pattern(item: bytes) -> Pattern:
    """A pattern of a local-part list (4.1)."""
    return _string_pattern(item)


def address_pattern(item: bytes) -> Pattern:
    """A pattern of an address list (4.1)."""
    if not item:
        return NullSender()
    if item.startswith(b"@@"):
        return AddressesOfDomain(lookup_pattern(item[2:]) or _string_pattern(item[2:]))
    if item.startswith(b"^"):
        return MatchingAddress(compile_regex(item, caseless=True))
    if pattern := lookup_pattern(item):
        return pattern
    local, at, domain = item.rpartition(b"@")
    if not at:
        return DomainOfAddress(domain_pattern(item))
    if local == b"*":
        return DomainOfAddress(domain_pattern(domain))
    return LocalAtDomain(local, domain_pattern(domain))


_NET_LOOKUP: Final = re.compile(rb"net(\d{0,3})-([^;]+);\s*(.*)\Z", re.DOTALL)


def ip_pattern(item: bytes) -> Pattern | None:
    """A pattern that is held against an IP address, or None when `item` is none."""
    if item == b"*":
        return Anything()
    if match := _NET_LOOKUP.match(item):
        return NetLooked(int(match[1]) if match[1] else None, searches.parse_type(match[2], has_key=None), match[3])
    if item.endswith(b"/"):
        item += b"0"  # no bits are no condition, as Exim has it
    inner = item[1:-1] if item.startswith(b"[") and item.endswith(b"]") else item
    try:
        return Network(ipaddress.ip_network(inner.decode("ascii"), strict=False))
    except ValueError:
        return None


def host_pattern(item: bytes) -> Pattern:
    """A pattern of a host list (4.1)."""
    if item.startswith(b"@"):
        raise ExpandError(f'"{as_text(item)}" in a host list needs the addresses of this host; name the hosts')
    return ip_pattern(item) or _string_pattern(item)
