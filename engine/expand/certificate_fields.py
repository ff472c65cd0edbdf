"""Fields of a certificate, as `certextract` gives them.

Layer: sans-I/O.  Spec: expansion.md 8 (C-1 to C-8); RFC 5280 §4, RFC 4514 §2.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from ..errors import ExpandError
from .regexes import text as as_text

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable

    from .certificates import Certificate

#: recognised by what a selector begins with, in this order (C-2)
FIELDS: Final = (
    *("version", "serial_number", "subject", "notbefore", "notafter", "issuer", "signature", "sig_algorithm"),
    *("subj_altname", "ocsp_uri", "crl_uri"),
)
_TAGS: Final = {
    NameOID.COMMON_NAME: "CN",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COUNTRY_NAME: "C",
    NameOID.STREET_ADDRESS: "STREET",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.USER_ID: "UID",
    NameOID.EMAIL_ADDRESS: "EMAIL",
    NameOID.SERIAL_NUMBER: "serialNumber",
}


#: what cryptography raises for a certificate it cannot make sense of
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    NotImplementedError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def parse(certificate: Certificate) -> x509.Certificate:
    """What the library makes of it; kept with it.

    Raises:
        ExpandError: the DER cannot be read.
    """
    if certificate.parsed is None:
        try:
            certificate.parsed = x509.load_der_x509_certificate(certificate.der)
        except _UNREADABLE as error:
            raise ExpandError(f"certificate cannot be read: {error}") from None
    return certificate.parsed


@functools.lru_cache(maxsize=256)
def _split_selector(selector: bytes) -> tuple[str, str, tuple[str, ...]]:
    """Field, the text it was chosen by, and the modifiers."""
    text = as_text(selector).strip()
    name, _, modifiers = text.partition(",")
    if name[:1].isdigit():
        return "oid", name, tuple(part.strip() for part in modifiers.split(",") if part.strip())
    for field in FIELDS:
        if text.startswith(field):
            rest = text[len(field) :].lstrip(",")
            return field, field, tuple(part.strip() for part in rest.split(",") if part.strip())
    return "", text, ()


def extract(certificate: Certificate, selector: bytes, timezone: datetime.tzinfo) -> bytes | None:
    """The field that `selector` names, or None when the certificate has none.

    Raises:
        ExpandError: `bad field selector "x" for certextract`; the certificate cannot be read.
    """
    field, text, modifiers = _split_selector(selector)
    if not field:
        raise ExpandError(f'bad field selector "{text}" for certextract')
    parsed = parse(certificate)
    try:
        if field == "oid":
            return _extension(parsed, text)
        if field in ("notbefore", "notafter"):
            moment = parsed.not_valid_before_utc if field == "notbefore" else parsed.not_valid_after_utc
            return _time(moment, modifiers, timezone)
        if field in ("subject", "issuer"):
            return _name(parsed.subject if field == "subject" else parsed.issuer, modifiers)
        if field == "subj_altname":
            return _alternative_names(parsed, modifiers)
        return _SIMPLE[field](parsed, modifiers)
    except x509.ExtensionNotFound:
        return None
    except _UNREADABLE as error:
        raise ExpandError(f"certificate cannot be read: {error}") from None


def _extension(parsed: x509.Certificate, dotted: str) -> bytes | None:
    for extension in parsed.extensions:
        if extension.oid.dotted_string == dotted:
            return b" ".join(b"%02x" % octet for octet in extension.value.public_bytes())
    return None


def _time(moment: datetime.datetime, modifiers: tuple[str, ...], timezone: datetime.tzinfo) -> bytes:
    if "int" in modifiers:
        return b"%d" % int(moment.timestamp())
    if "raw" in modifiers:
        return f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S %Y} GMT".encode()
    local = moment.astimezone(timezone)
    return f"{local:%b} {local.day:2d} {local:%H:%M:%S %Y %z}".encode()


def _separator(modifiers: Iterable[str]) -> str:
    for modifier in modifiers:
        if modifier.startswith(">") and len(modifier) > 1:
            return modifier[1]
    return "\n"


def _joined(values: list[str], modifiers: tuple[str, ...]) -> bytes | None:
    if not values:
        return None
    separator = _separator(modifiers)
    if separator != "\n":
        values = [value.replace(separator, separator * 2) for value in values]
    return separator.join(values).encode("utf-8", "surrogateescape")


_ESCAPED: Final = re.compile(r'([,+"\\<>;])|(^[ #])|( $)')


def _name(name: x509.Name, modifiers: tuple[str, ...]) -> bytes | None:
    tags = [modifier for modifier in modifiers if not modifier.startswith(">")]
    relative = [[(_TAGS.get(part.oid, part.oid.dotted_string), _value(part)) for part in rdn] for rdn in name.rdns]
    if modifiers:
        wanted = tags[0].upper() if tags else None
        found = [value for rdn in relative for tag, value in rdn if wanted is None or tag.upper() == wanted]
        return _joined(found, modifiers)
    parts = [
        "+".join(f"{tag}={_ESCAPED.sub(lambda match: chr(92) + match[0], value)}" for tag, value in rdn)
        for rdn in reversed(relative)
    ]
    return ",".join(parts).encode("utf-8", "surrogateescape")


def _value(part: x509.NameAttribute[str | bytes]) -> str:
    value = part.value
    return value if isinstance(value, str) else value.hex()


def _alternative_names(parsed: x509.Certificate, modifiers: tuple[str, ...]) -> bytes | None:
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    kinds = {
        x509.DNSName: ("DNS", "dns"),
        x509.UniformResourceIdentifier: ("URI", "uri"),
        x509.RFC822Name: ("MAIL", "mail"),
    }
    only = next((modifier for modifier in modifiers if modifier in ("dns", "uri", "mail")), None)
    values = []
    for name in reversed(list(names)):
        tag = kinds.get(type(name))
        if tag is None or "\0" in name.value:
            continue
        if only is None:
            values.append(f"{tag[0]}={name.value}")
        elif only == tag[1]:
            values.append(name.value)
    return _joined(values, modifiers)


def _ocsp_uri(parsed: x509.Certificate, modifiers: tuple[str, ...]) -> bytes | None:
    access = parsed.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    uris = [
        one.access_location.value
        for one in access
        if one.access_method == AuthorityInformationAccessOID.OCSP
        and isinstance(one.access_location, x509.UniformResourceIdentifier)
    ]
    return _joined(uris, modifiers)


def _crl_uri(parsed: x509.Certificate, modifiers: tuple[str, ...]) -> bytes | None:
    points = parsed.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    uris = [
        name.value
        for point in points
        for name in point.full_name or ()
        if isinstance(name, x509.UniformResourceIdentifier)
    ]
    return _joined(uris, modifiers)


_SIMPLE: Final[dict[str, Callable[[x509.Certificate, tuple[str, ...]], bytes | None]]] = {
    "version": lambda parsed, _: b"%d" % parsed.version.value,
    "serial_number": lambda parsed, _: _even_hex(parsed.serial_number),
    "signature": lambda parsed, _: b":".join(b"%02x" % octet for octet in parsed.signature),
    "sig_algorithm": lambda parsed, _: parsed.signature_algorithm_oid._name.encode(),
    "ocsp_uri": _ocsp_uri,
    "crl_uri": _crl_uri,
}


def _even_hex(number: int) -> bytes:
    text = f"{number:x}"
    return (text if len(text) % 2 == 0 else f"0{text}").encode()
