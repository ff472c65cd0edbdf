"""What a TLS handshake showed, and what was decided about it.

Layer: sans-I/O.  Spec: behaviour specification section 10 (LG-1: `X=`, `CV=`, `DN=`), R45 (a resumed session carries
the verdict it was stored with). Invariants: facts never change; `verified` and `dane` are True only if the check ran
and passed, on this connection or on the one whose session it resumes.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from .names import load_certificate


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """The answer of whoever was asked about a certificate chain, before any SMTP octet follows it.

    Attributes:
        accepted: False ends the connection with `TlsPolicyError`.
        dane: the chain matched a TLSA record (`CV=dane`, LG-7).
        message: for a refusal, the text after ``TLS session: ``; a person must be able to read it.
    """

    accepted: bool
    dane: bool = False
    message: str = ""


#: Gets the DER certificates as the peer sent them, leaf first; is called for full and for resumed handshakes.
Decide = Callable[[tuple[bytes, ...]], ChainVerdict]


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """A finished handshake.

    Attributes:
        version: as Exim writes it: ``TLS1.3``, ``TLS1.2``.
        cipher: OpenSSL's name of the suite, such as ``TLS_AES_256_GCM_SHA384``.
        bits: secret bits of the cipher.
        peer_der: DER certificates as the peer sent them, leaf first; empty if it sent none.
        verified: the chain verified against the trust anchors and one reference name (TL-14), or matched DANE.
        dane: the chain matched a TLSA record.
        resumed: the handshake resumed an earlier session; the verdict is the one of that session.
        sni: the name sent in the SNI extension, or None.
        verify_message: why `verified` is False although verification ran (TL-11), else empty.
        ocsp: `$tls_out_ocsp`: 0 not requested, 1 no response, 2 not tried, 3 failed, 4 verified; ocsp_log: a line
            about it for the log, or "".
    """

    version: str
    cipher: str
    bits: int
    peer_der: tuple[bytes, ...] = ()
    verified: bool = False
    dane: bool = False
    resumed: bool = False
    sni: str | None = None
    verify_message: str = ""
    ocsp: int = 0
    ocsp_log: str = ""

    @property
    def log_text(self) -> str:
        """The value of `X=` in the log (LG-1)."""
        return f"{self.version}:{self.cipher}:{self.bits}"

    @property
    def peer_dn(self) -> str:
        """Subject of the leaf in one line, ``/C=DE/O=Example/CN=mx.example.org``; empty if it cannot be read.

        Only logs and variables that were asked for need it.
        """
        return distinguished_name(self.peer_der[0]) if self.peer_der else ""


#: Gets the facts of a handshake that would do, and what gives the path that the library built, leaf first, or nothing;
#: gives the facts with its own judgement, or raises TlsPolicyError.
Examine = Callable[[TlsFacts, Callable[[], tuple[bytes, ...]]], Awaitable[TlsFacts]]


#: names of certificates kept: each connection to a host shows the same one; arbitrary, at most 2 MiB in all
_KEPT_NAMES: Final = 512
_KEPT_OCTETS: Final = 4096
#: attribute types that OpenSSL's one-line form abbreviates
_SHORT_NAMES = {
    x509.NameOID.COMMON_NAME: "CN",
    x509.NameOID.COUNTRY_NAME: "C",
    x509.NameOID.DOMAIN_COMPONENT: "DC",
    x509.NameOID.EMAIL_ADDRESS: "emailAddress",
    x509.NameOID.GIVEN_NAME: "GN",
    x509.NameOID.LOCALITY_NAME: "L",
    x509.NameOID.ORGANIZATION_NAME: "O",
    x509.NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    x509.NameOID.SERIAL_NUMBER: "serialNumber",
    x509.NameOID.STATE_OR_PROVINCE_NAME: "ST",
    x509.NameOID.STREET_ADDRESS: "street",
    x509.NameOID.SURNAME: "SN",
    x509.NameOID.TITLE: "title",
    x509.NameOID.USER_ID: "UID",
}


def distinguished_name(der: bytes) -> str:
    """Subject of a DER certificate in OpenSSL's one-line form; empty if the certificate cannot be parsed.

    Everything outside printable ASCII is written ``\\xHH`` an octet, so the text is safe in a log line.
    """
    return _subject(der) if len(der) <= _KEPT_OCTETS else _subject.__wrapped__(der)


@functools.lru_cache(maxsize=_KEPT_NAMES)
def _subject(der: bytes) -> str:
    try:
        return name_text(load_certificate(der).subject)
    except (ValueError, x509.InvalidVersion):
        return ""


def name_text(name: x509.Name) -> str:
    """A distinguished name in OpenSSL's one-line form, safe in a log line.

    Raises:
        ValueError: an attribute cannot be read.
    """
    parts = []
    for attribute in name:
        value = attribute.value
        octets = value.encode() if isinstance(value, str) else value
        text = "".join(chr(octet) if 0x20 <= octet < 0x7F else f"\\x{octet:02X}" for octet in octets)
        parts.append(f"/{_SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string)}={text}")
    return "".join(parts)
