"""Small values that every layer speaks: domains, addresses, intervals.

Layer: leaf.  Spec: RFC 5321 §4.1.2 (Mailbox), §2.3.5 (domain names), RFC 6531 §3.3 (internationalised mailboxes),
RFC 5891 (A-labels).
Invariants: a `Domain` is a lower-case A-label name without trailing dot, or an address literal in brackets; text
becomes a domain only here.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import re
from dataclasses import dataclass
from typing import NewType

import idna

from .errors import DataError

#: lower-case A-label domain name without trailing dot, or an address literal such as ``[192.0.2.1]``
Domain = NewType("Domain", str)

#: octets, RFC 5321 §4.5.3.1.1
MAX_LOCAL_PART_OCTETS = 64
#: octets, RFC 5321 §4.5.3.1.3 (a path is 256 with its brackets)
MAX_ADDRESS_OCTETS = 254

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
# RFC 5321 §4.1.2: Dot-string = Atom *("." Atom), with RFC 6531 §3.3 adding every non-ASCII character to atext
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*\Z")
_QUOTED_STRING = re.compile(r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e\u0080-\U0010ffff]|\\[\x20-\x7e])*"\Z')


@functools.lru_cache(maxsize=16384)
def parse_domain(text: str) -> Domain:
    """Turn a domain name or an address literal as a person writes it into a `Domain`.

    Raises:
        DataError: it is not a domain name of RFC 5321 §2.3.5 (after IDNA) nor a valid literal of §4.1.3.
    """
    if text.startswith("["):
        return _parse_literal(text)
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise DataError(f"domain {text!r} is not valid: {error}") from None
    name = name.lower()
    if not name or len(name) > 253:
        raise DataError(f"domain {text!r} is {'empty' if not name else 'longer than 253 octets'}")
    for label in name.split("."):
        if not _LABEL.match(label):
            raise DataError(f"domain {text!r} is not valid: bad label {label!r}")
    return Domain(name)


def _parse_literal(text: str) -> Domain:
    if not text.endswith("]"):
        raise DataError(f"address literal {text!r} does not end with ]")
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            return Domain(f"[IPv6:{ipaddress.IPv6Address(inner[5:])}]")
        return Domain(f"[{ipaddress.IPv4Address(inner)}]")
    except ValueError:
        raise DataError(f"address literal {text!r} is not valid") from None


def literal_address(domain: str) -> str | None:
    """The IP address inside an address-literal domain, or None when `domain` is a name."""
    if not domain.startswith("["):
        return None
    inner = domain[1:-1]
    return inner[5:] if inner[:5].lower() == "ipv6:" else inner


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: local part as written (quotes included), domain as `Domain`.

    `needs_smtputf8` tells that the local part has characters that only RFC 6531 can carry; a non-ASCII domain never
    does, since it is held as A-labels.
    """

    local_part: str
    domain: Domain

    @property
    def needs_smtputf8(self) -> bool:
        return not self.local_part.isascii()

    def __str__(self) -> str:
        return f"{self.local_part}@{self.domain}"

    def to_bytes(self) -> bytes:
        """The octets that stand between the angle brackets on the wire."""
        return f"{self.local_part}@{self.domain}".encode()


def parse_address(text: str) -> Address:
    """Parse one mailbox, without display name or angle brackets.

    Raises:
        DataError: with the reason in words; a control character, space outside quotes, CR or LF is always refused.
    """
    local_part, at, domain = text.rpartition("@")
    if not at:
        raise DataError(f"address {text!r} has no @")
    if not local_part:
        raise DataError(f"address {text!r} has no local part")
    pattern = _QUOTED_STRING if local_part.startswith('"') else _DOT_STRING
    if not pattern.match(local_part):
        raise DataError(f"address {text!r} has an invalid local part")
    size = len(local_part)
    if not local_part.isascii():
        if any("\x80" <= char <= "\x9f" for char in local_part):
            raise DataError(f"address {text!r} has an invalid local part")
        try:
            size = len(local_part.encode())
        except UnicodeEncodeError:
            raise DataError(f"address {text!r} has an invalid local part") from None
    if size > MAX_LOCAL_PART_OCTETS:
        raise DataError(f"address {text!r} has a local part of more than {MAX_LOCAL_PART_OCTETS} octets")
    parsed = Address(local_part, parse_domain(domain))
    if size + 1 + len(parsed.domain) > MAX_ADDRESS_OCTETS:
        raise DataError(f"address {text!r} is longer than {MAX_ADDRESS_OCTETS} octets")
    return parsed


_INTERVAL_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_INTERVAL = re.compile(r"(?:(\d{1,9})w)?(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?\Z")


def parse_interval(text: str) -> int:
    """Seconds of an interval in Exim's form: ``1w2d3h4m5s``, units in that order, a bare number is seconds.

    Raises:
        ValueError: it has another form.
    """
    match = _INTERVAL.match(text)
    if not text or not match:
        raise ValueError(f"{text!r} is not a time interval such as 30s, 15m or 1d12h")
    return sum(int(count) * _INTERVAL_UNITS[unit] for count, unit in zip(match.groups(), "wdhms", strict=True) if count)


def format_interval(seconds: int) -> str:
    """The shortest interval text in Exim's form; ``0s`` for nothing."""
    text = ""
    for unit, size in _INTERVAL_UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            text += f"{count}{unit}"
    return text or "0s"


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may be done.

    Attributes:
        interval_s: seconds from one time to the next, on average.
        burst: how often at once after a rest.
    """

    interval_s: float
    burst: int

    @classmethod
    def of(cls, count: int, period_s: float) -> Rate:
        """`count` times in `period_s` seconds, spread: never more than a second's worth at once."""
        return cls(period_s / count, max(1, math.ceil(count / period_s)))

    @property
    def memory_s(self) -> float:
        """Seconds after which a time that was not used is lost."""
        return self.interval_s * self.burst


_RATE = re.compile(r"(\d{1,9}) */ *([1-9]\d{0,8})? *([wdhms])\Z")


@functools.lru_cache(maxsize=64)
def parse_rate(text: str) -> Rate:
    """A rate such as ``100/s``, ``1000/h`` or ``1/10s``: a count, and the time in which that may be done.

    Raises:
        ValueError: it has another form, or says never.
    """
    match = _RATE.match(text)
    if not match or not int(match[1]):
        raise ValueError(f"{text!r} is not a rate such as 100/s, 1000/h or 1/10s")
    return Rate.of(int(match[1]), int(match[2] or 1) * _INTERVAL_UNITS[match[3]])
