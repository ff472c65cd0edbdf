"""Header fields: reading a header section, and writing each field so that it may go over the wire.

Layer: sans-I/O.  Spec: RFC 5322 §2.2 (fields), §3.6 (which occur once), RFC 2047, RFC 6532.
Invariants: a field that is ASCII and has lines of at most 998 octets is written as it stood; one that is not becomes
ASCII wherever that is possible.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from ..errors import DataError
from .addresses import encode_structured
from .parameters import encode_parameters
from .transfer import MAX_LINE_OCTETS
from .words import MARK, encode_text, fold


class Kind(enum.Enum):
    """How the value of a field is built."""

    #: free text
    TEXT = "text"
    #: addresses with display names, groups and comments
    ADDRESSES = "addresses"
    #: other structured text: identifiers, addresses of the web in angle brackets, dates, phrases
    STRUCTURED = "structured"
    #: a value with parameters
    PARAMETERS = "parameters"


_KINDS: Final = {
    name: kind
    for kind, names in {
        Kind.ADDRESSES: """from sender reply-to to cc bcc resent-from resent-sender resent-to resent-cc resent-bcc
            resent-reply-to mail-followup-to mail-reply-to errors-to return-receipt-to disposition-notification-to""",
        Kind.STRUCTURED: """date message-id in-reply-to references resent-date resent-message-id received return-path
            keywords mime-version content-transfer-encoding content-id content-location list-id list-help list-owner
            list-post list-subscribe list-unsubscribe list-unsubscribe-post list-archive dkim-signature
            authentication-results auto-submitted""",
        Kind.PARAMETERS: "content-type content-disposition",
    }.items()
    for name in names.split()
}

#: fields that occur at most once, RFC 5322 §3.6, RFC 2045 §3, RFC 2183 §2, RFC 2369 §3
_ONCE_ONLY_NAMES: Final = """
    date from sender reply-to to cc bcc message-id in-reply-to references subject mime-version content-type
    content-transfer-encoding content-id content-disposition content-description list-id list-help list-owner list-post
    list-subscribe list-unsubscribe list-unsubscribe-post list-archive"""
ONCE_ONLY: Final = frozenset(_ONCE_ONLY_NAMES.split())

_LINE_END = re.compile(rb"\r\n|\r|\n")
# RFC 5322 §2.2: printable ASCII without the colon; white space before the colon is the obsolete form (§4.5)
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_UNFOLD = re.compile(r"\r\n(?=[ \t])")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a header section.

    Attributes:
        name: as written.
        raw: what follows the colon, with its folding (CRLF) and without the last CRLF.
        line: one-based line of the source it begins in.
    """

    name: str
    raw: bytes
    line: int

    @property
    def key(self) -> str:
        return self.name.lower()

    def value(self) -> str:
        """The value in one line.

        Raises:
            DataError: it is neither ASCII nor UTF-8.
        """
        try:
            text = self.raw.decode()
        except UnicodeDecodeError:
            raise DataError(f"header field {self.name} is neither ASCII nor UTF-8", line=self.line) from None
        return _UNFOLD.sub("", text).strip(" \t")


def kind_of(key: str) -> Kind:
    return _KINDS.get(key, Kind.TEXT)


def split_header(source: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Cut a message at its first empty line.

    Returns:
        The logical lines of the header section, each with its one-based line number and with CRLF before what was
        folded, and the octets of the body.
    """
    found: list[tuple[int, list[bytes]]] = []
    number = at = 0
    while at < len(source):
        match = _LINE_END.search(source, at)
        start, end = (match.start(), match.end()) if match else (len(source), len(source))
        line = source[at:start]
        number += 1
        at = end
        if not line:
            break
        if line[:1] in (b" ", b"\t") and found:
            # a continuation of white space alone is obsolete (RFC 5322 §4.2) and taken for the empty line by some
            if line.strip(b" \t"):
                found[-1][1].append(line)
        else:
            found.append((number, [line]))
    return [(first, b"\r\n".join(folded)) for first, folded in found], source[at:]


def parse_field(number: int, line: bytes) -> Field:
    """Read one logical line of a header section.

    Raises:
        DataError: it is no header field.
    """
    match = _FIELD.match(line)
    if match is None:
        shown = line[:60].decode(errors="replace")
        hint = ""
        if line.startswith(b"From "):
            hint = ": remove the first line of a mailbox file"
        raise DataError(f"not a header field: {shown!r}{hint}", line=number)
    name = match[1].decode()
    if b"\0" in line:
        raise DataError(f"header field {name} holds a NUL", line=number)
    if len(name) > 256:
        raise DataError(f"header field name of {len(name)} characters", line=number)
    return Field(name, line[match.end() :], number)


def require_once(fields: list[Field]) -> None:
    """Refuse a header section in which a field occurs twice that may occur once.

    Raises:
        DataError: naming the field.
    """
    seen: dict[str, int] = {}
    for field in fields:
        if field.key in ONCE_ONLY and field.key in seen:
            raise DataError(
                f"second header field {field.name} (the first is in line {seen[field.key]})", line=field.line
            )
        seen[field.key] = field.line


def write_field(field: Field) -> tuple[str, bool]:
    """A field of the source with its CRLF, and whether it can only be written in UTF-8.

    Raises:
        DataError: it cannot be written at all.
    """
    if field.raw.isascii():
        lines = f"{field.name}:{field.raw.decode()}"
        if all(len(line) <= MAX_LINE_OCTETS for line in lines.split("\r\n")):
            return lines + "\r\n", False
    try:
        return encode_field(field.name, field.value())
    except DataError as error:
        raise DataError(error.message, line=field.line) from None


def encode_field(name: str, value: str) -> tuple[str, bool]:
    """A field with its CRLF, in ASCII where that is possible, and whether it is in UTF-8.

    Args:
        value: in one line.

    Raises:
        DataError: it has no form, such as text that is not ASCII where a field has no room for it.
    """
    kind = kind_of(name.lower())
    needs_utf8 = False
    if kind is Kind.TEXT:
        value = encode_text(value, len(name) + 2)
    elif not value.isascii():
        try:
            if kind is Kind.PARAMETERS:
                value = encode_parameters(value)
            else:
                value, needs_utf8 = encode_structured(value, is_addresses=kind is Kind.ADDRESSES)
        except DataError as error:
            raise DataError(f"header field {name}: {error.message}") from None
    return fold(name, value.replace(MARK, "")), needs_utf8
