"""What a server offers in its reply to EHLO.

Layer: sans-I/O.  Spec: RFC 5321 §4.1.1.1, RFC 1870, RFC 2034, RFC 2920, RFC 3030, RFC 3207, RFC 3461, RFC 4954,
RFC 6152, RFC 6531, RFC 8689, RFC 9422.
Invariants: everything a server says is accepted; what does not parse counts as not offered.  Capabilities are forgotten
after STARTTLS (RFC 3207 §4.2): the caller asks again.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .replies import Reply

_KEYWORD: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
#: what hosts offer, kept once taken apart: so many different offers of at most so many octets; arbitrary
_KEPT_OFFERS: Final = 512
_KEPT_OCTETS: Final = 1024
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one EHLO offered.

    Attributes:
        keywords: upper-case keyword -> its parameters as text; the last line of a keyword wins.  Not to be changed:
            hosts that offer the same share it.
        auth: upper-case names of the mechanisms of AUTH.
        size_limit: octets of the largest message, or None if the server names no limit.
        mail_max: messages on this connection; rcpt_max: recipients of a message; rcpt_domain_max: different domains of
            one message's recipients (RFC 9422); None without limit.
    """

    keywords: dict[str, str]
    pipelining: bool = False
    chunking: bool = False
    starttls: bool = False
    eightbitmime: bool = False
    smtputf8: bool = False
    dsn: bool = False
    requiretls: bool = False
    size: bool = False
    enhanced_status_codes: bool = False
    auth: tuple[str, ...] = ()
    size_limit: int | None = None
    mail_max: int | None = None
    rcpt_max: int | None = None
    rcpt_domain_max: int | None = None


#: after HELO: nothing
NONE: Final = Capabilities({})


def parse_capabilities(reply: Reply) -> Capabilities:
    """Read a positive reply to EHLO.  Never raises; at most the first 200 lines are looked at."""
    # the first line has names; the others are the same for many hosts
    _, _, offers = reply.raw.partition(b"\n")
    return _parse_offers(offers) if len(offers) <= _KEPT_OCTETS else _parse_offers.__wrapped__(offers)


@functools.lru_cache(maxsize=_KEPT_OFFERS)
def _parse_offers(offers: bytes) -> Capabilities:
    keywords: dict[str, str] = {}
    mechanisms: dict[str, None] = {}
    for coded_line in offers.split(b"\n", 199)[:199]:
        line = coded_line[4:]
        found = _KEYWORD.match(line)
        if not found:
            continue
        keyword = found[0].decode("ascii").upper()
        rest = line[found.end() :]
        # "AUTH=LOGIN" is what servers of the last century say beside or instead of "AUTH LOGIN"
        if rest and rest[:1] not in b" \t" and not (keyword == "AUTH" and rest[:1] == b"="):
            continue
        parameters = rest[1:].decode("utf-8", "backslashreplace").strip()
        if keyword == "AUTH":
            mechanisms.update(dict.fromkeys(parameters.upper().split()[:50]))
        keywords[keyword] = parameters
    limits = _limits(keywords.get("LIMITS", ""))
    return Capabilities(
        keywords,
        pipelining="PIPELINING" in keywords,
        chunking="CHUNKING" in keywords,
        starttls="STARTTLS" in keywords,
        eightbitmime="8BITMIME" in keywords,
        smtputf8="SMTPUTF8" in keywords,
        dsn="DSN" in keywords,
        requiretls="REQUIRETLS" in keywords,
        size="SIZE" in keywords,
        enhanced_status_codes="ENHANCEDSTATUSCODES" in keywords,
        auth=tuple(mechanisms),
        size_limit=_number(keywords.get("SIZE", "")),
        mail_max=limits.get("MAILMAX"),
        rcpt_max=limits.get("RCPTMAX"),
        rcpt_domain_max=limits.get("RCPTDOMAINMAX"),
    )


def _limits(text: str) -> dict[str, int]:
    """RFC 9422 §3: ``NAME=number`` separated by spaces; a limit of 0 makes no sense and is none."""
    limits: dict[str, int] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        number = _number(value)
        if number is not None:
            limits[name.upper()] = number
    return limits


def _number(text: str) -> int | None:
    word = text.split(" ", 1)[0]
    return int(word) or None if _NUMBER.fullmatch(word) else None
