"""The value that everything after the policy decision reads: what TLS must prove for one host.

Layer: sans-I/O.  Spec: design.md "Two flows"; RFC 7672 §2.2, RFC 8461, RFC 8689.
Invariants: a plan never changes; two connections may share a pool slot only if their `key` is equal; nothing in a
plan is a secret.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: sole element of `Plan.reference_names` when any name will do (host outside tls_verify_cert_hostnames)
ANY_NAME: Final = "*"


class TlsLevel(enum.IntEnum):
    """How much TLS must prove, weakest first; compare with < and >."""

    #: never STARTTLS (hosts_avoid_tls)
    CLEAR = 0
    #: STARTTLS where offered, clear otherwise (TL-2, TL-3, TL-7)
    OPPORTUNISTIC = 1
    #: STARTTLS or no delivery; the certificate is not checked (hosts_require_tls, R21)
    MANDATORY = 2
    #: STARTTLS with a certificate that verifies against trust anchors and names (tls_verify_hosts, MTA-STS)
    VERIFIED = 3
    #: STARTTLS with a certificate that matches the TLSA records (RFC 7672)
    DANE = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What TLS must prove for one host name, and why.

    Attributes:
        level: what is demanded.
        sni: name for the SNI extension, A-labels, or None to send none.
        reference_names: names of which one must be in the certificate (VERIFIED, DANE-TA), most specific first.
        try_verify: OPPORTUNISTIC or MANDATORY only: verify against trust anchors, tolerate failure (CV=no).
        try_clear: OPPORTUNISTIC only: after a failed handshake reconnect without TLS (tls_tempfail_tryclear, TL-7).
        tlsa: raw TLSA rdata, usable or not, sorted and without repetition (DANE only).
        authenticates: DANE only: a match counts as verified.  False where the MX records were insecure (R13): the
            certificate must match, for what that is worth.
        ciphers: OpenSSL cipher list, or None for the context's default.
        reasons: the steps of the decision in order, each with a text (`str`); not part of `key`.
    """

    level: TlsLevel
    sni: str | None = None
    reference_names: tuple[str, ...] = ()
    try_verify: bool = False
    try_clear: bool = False
    tlsa: tuple[bytes, ...] = ()
    ciphers: str | None = None
    authenticates: bool = True
    reasons: tuple[object, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What pools and session caches are keyed by, beside host name, address and port."""
        return (
            self.level,
            self.sni,
            self.reference_names,
            self.try_verify,
            self.try_clear,
            self.tlsa,
            self.ciphers,
            self.authenticates,
        )


CLEAR: Final = Plan(TlsLevel.CLEAR)
