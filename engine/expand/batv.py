"""Signed return paths: `prvs` and `prvscheck` (BATV).

Layer: sans-I/O.  Spec: expansion.md 2; draft-levine-smtp-batv-01.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from ..errors import ExpandError

_DAY_S: Final = 86400
#: days a signature holds
_LIFETIME_DAYS: Final = 7
_SIGNED: Final = re.compile(rb"prvs=([0-9])([0-9]{3})([A-F0-9]{6})=(.+)@(.+)\Z", re.IGNORECASE)


def _day(now: float, offset: int = 0) -> bytes:
    return b"%03d" % ((int(now) // _DAY_S + offset) % 1000)


def _digest(address: bytes, key: bytes, number: bytes, day: bytes) -> bytes:
    if len(key) > 64:
        raise ExpandError("prvs hmac-sha1 conversion failed")
    return hmac.new(key, number + day + address, hashlib.sha1).hexdigest()[:6].encode()


def sign(now: float, address: bytes, key: bytes, number: bytes = b"0") -> bytes:
    """`address` with a signature that holds for seven days from `now` (UTC epoch seconds).

    Raises:
        ExpandError: no qualified address, no digit, or a key of more than 64 octets.
    """
    local, at, domain = address.rpartition(b"@")
    if not at or not local or not domain:
        raise ExpandError("prvs first argument must be a qualified email address")
    if len(number) != 1 or not number.isdigit():
        raise ExpandError("prvs third argument must be a single digit")
    day = _day(now, _LIFETIME_DAYS)
    return b"prvs=" + number + day + _digest(address, key, number, day) + b"=" + local + b"@" + domain


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed address, taken apart but not checked."""

    address: bytes
    number: bytes
    day: bytes
    digest: bytes

    def is_good(self, now: float, key: bytes) -> bool:
        """Whether the signature was made with `key` and has not run out."""
        if not hmac.compare_digest(_digest(self.address, key, self.number, self.day), self.digest.lower()):
            return False
        today, last = int(_day(now)), int(self.day)
        if last < _LIFETIME_DAYS and today >= 1000 - _LIFETIME_DAYS:
            today = 0  # the three digits went over the top
        return last >= today


def parse(text: bytes) -> Signed | None:
    """The parts of a signed address, or None."""
    match = _SIGNED.match(text)
    return None if match is None else Signed(match[4] + b"@" + match[5], match[1], match[2], match[3])
