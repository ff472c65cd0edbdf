"""Match reference names against a certificate as the transport's own options want it.

Layer: sans-I/O.  Spec: TL-13: DNS entries of the subject alternative name if there are any, else the common name; a
wildcard only as the complete leftmost label of a name with three or more components, matching exactly one label.
Invariants: comparison is of A-labels, without case; a name with an octet outside letters, digits, hyphen, underscore
and dot never matches.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z")


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse a certificate that a peer sent.

    What `cryptography` only warns of, such as a serial number that is not positive, is not ours to complain about.

    Raises:
        ValueError, x509.InvalidVersion: it cannot be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return x509.load_der_x509_certificate(der)


def certificate_names(der: bytes) -> tuple[str, ...]:
    """The names of a DER certificate that may be matched (TL-13), lower case; empty if it cannot be parsed."""
    try:
        certificate = load_certificate(der)
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            names: list[str] = []
        else:
            names = extension.value.get_values_for_type(x509.DNSName)
        if not names:
            values = [item.value for item in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
            names = [value for value in values if isinstance(value, str)]
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return ()
    # The lower case of some letters outside ASCII is inside: U+212A is no k.
    return tuple(name.lower() for name in names if name.isascii())


def has_dns_names(der: bytes) -> bool:
    """Whether a DER certificate says in the subject alternative name what it is for; the common name is not enough for
    everybody (RFC 8461 §3.3, §4.2)."""
    try:
        extension = load_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (
        *(ValueError, x509.InvalidVersion, x509.DuplicateExtension),
        *(x509.UnsupportedGeneralNameType, x509.ExtensionNotFound),
    ):
        return False
    return bool(extension.value.get_values_for_type(x509.DNSName))


def name_matches(pattern: str, name: str) -> bool:
    """Whether `pattern`, a name out of a certificate, covers the reference name `name` (TL-13)."""
    pattern = pattern.lower().removesuffix(".")
    name = name.lower().removesuffix(".")
    if not _HOST_NAME.match(pattern) or not _HOST_NAME.match(name) or name.startswith("*"):
        return False
    if not pattern.startswith("*."):
        return pattern == name
    label, dot, parent = name.partition(".")
    return bool(label) and bool(dot) and parent == pattern[2:] and "." in parent


def certificate_matches(der: bytes, reference_names: Iterable[str]) -> bool:
    """Whether the certificate names at least one of `reference_names` (TL-13)."""
    patterns = certificate_names(der)
    return any(name_matches(pattern, name) for name in reference_names for pattern in patterns)
