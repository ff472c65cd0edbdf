"""A DNS answer as a value: what policy and routing read, whoever asked the question.

Layer: sans-I/O.  Spec: RFC 1034 §3.7, RFC 2308 (negative answers), RFC 4035 §3.2.3 (AD bit); dane-tls R2 to R6.
Invariants: `ad` is already False when the path to the resolver is not trusted (R1); records are raw rdata for types
we parse ourselves and presentation values for the rest; nothing here asks a question.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.Enum):
    """How a question ended.  Only OK, NODATA and NXDOMAIN are answers; the rest are temporary errors (R4)."""

    OK = "ok"
    #: NOERROR without a record of the type (RFC 2308 §2.2)
    NODATA = "nodata"
    #: the name does not exist (RFC 2308 §2.1)
    NXDOMAIN = "nxdomain"
    #: SERVFAIL, REFUSED, NOTIMP, bogus, garbled, a CNAME loop: the question has no answer for now
    SERVFAIL = "servfail"
    #: no server replied within the deadline
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Mx:
    preference: int
    #: lower-case A-label name without trailing dot; "" is the null MX target "." (RFC 7505)
    exchange: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one question.

    Attributes:
        name: the name asked, lower-case, no trailing dot.
        rdtype: ``MX``, ``A``, ``AAAA``, ``TLSA``, ``CNAME``, ``TXT``, ``PTR`` or ``SRV``.
        status: how it ended.
        ad: the answer was DNSSEC-validated by a resolver we trust.
        is_ad_trusted: the way to the resolver is trusted (R1), so that `ad` False means insecure and not "unknown".
        mx: records of an MX answer.
        addresses: textual addresses of an A or AAAA answer.
        rdata: raw rdata of every other type (TLSA always raw; names in CNAME, PTR and SRV without compression).
        canonical_name: the name after following CNAMEs; equals `name` without any.
        cnames: the CNAME targets in the order of the chain; the last one is `canonical_name`.
        ttl_s: seconds this may be cached, already bounded; 0 for errors.
        extended_error: EDE code and text (RFC 8914), or "".
        server: ``address:port`` that answered, or "".
    """

    name: str
    rdtype: str
    status: Status
    ad: bool = False
    is_ad_trusted: bool = False
    mx: tuple[Mx, ...] = ()
    addresses: tuple[str, ...] = ()
    rdata: tuple[bytes, ...] = ()
    canonical_name: str = ""
    cnames: tuple[str, ...] = ()
    ttl_s: int = 0
    extended_error: str = ""
    server: str = ""

    def with_ttl(self, ttl_s: int) -> Answer:
        """The same, to be cached for so many seconds."""
        if ttl_s == self.ttl_s:
            return self
        return Answer(
            self.name,
            self.rdtype,
            self.status,
            self.ad,
            self.is_ad_trusted,
            self.mx,
            self.addresses,
            self.rdata,
            self.canonical_name,
            self.cnames,
            ttl_s,
            self.extended_error,
            self.server,
        )

    @property
    def secure(self) -> bool | None:
        """True for secure, False for insecure, None where the AD bit is not to be believed (DN-3)."""
        return self.ad if self.is_ad_trusted else None

    @property
    def is_error(self) -> bool:
        return self.status in (Status.SERVFAIL, Status.TIMEOUT)
