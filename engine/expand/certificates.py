"""Certificates as values of the expansion language, and their fingerprints.

Layer: sans-I/O.  Spec: expansion.md 8 (C-8).
What reads fields of one is in certificate_fields.py, which is imported when somebody wants a field: the library that it
needs takes as long to import as all of an action worker, most of which never see a certificate.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime

    from cryptography import x509


class Certificate:
    """The value of a certificate variable: its DER.

    Attributes:
        parsed: what `certificate_fields.parse` has made of it, or None.
    """

    __slots__ = ("der", "parsed")

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.parsed: x509.Certificate | None = None

    def digest(self, algorithm: str) -> bytes:
        """The fingerprint in upper-case hex (C-8); `base64` gives the DER in base64."""
        if algorithm == "base64":
            return base64.b64encode(self.der)
        return hashlib.new(algorithm, self.der, usedforsecurity=False).hexdigest().upper().encode()


def extract(certificate: Certificate, selector: bytes, timezone: datetime.tzinfo) -> bytes | None:
    """The field that `selector` names, or None when the certificate has none.

    Raises:
        ExpandError: `bad field selector "x" for certextract`; the certificate cannot be read.
    """
    from . import certificate_fields  # noqa: PLC0415  # see the text of this module

    return certificate_fields.extract(certificate, selector, timezone)
