"""The header lines of a message as variables: `$h_subject:` and its kin.

Layer: sans-I/O.  Spec: expansion.md 7 (headers), X-19.
Input: header lines as they stand in the message, with their line ends.  Output: octets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .charsets import decode_2047

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: octets of one header variable; Exim's header_insert_maxlen
VALUE_LIMIT_OCTETS: Final = 64 << 10
_SPACE: Final = b" \t\n\r\v\f"
#: headers of addresses are joined with a comma
_ADDRESSES: Final = frozenset([b"bcc", b"cc", b"from", b"reply-to", b"sender", b"to"])


def _values(headers: Sequence[bytes], name: bytes) -> Iterator[bytes]:
    wanted = name.lower()
    for line in headers:
        field, colon, value = line.partition(b":")
        if colon and field.rstrip(b" \t").lower() == wanted:
            yield value.replace(b"\r\n", b"\n")


def exists(headers: Sequence[bytes], name: bytes) -> bool:
    """Whether a header line of that name is there."""
    return next(_values(headers, name), None) is not None


def value(headers: Sequence[bytes], style: str, name: bytes) -> bytes:
    """The value of every header line called `name`.

    Args:
        headers: the lines.
        style: `r` as it is; `l` a list, colons doubled; `b` decoded without its character set; `h` decoded.
        name: whatever its case.

    Raises:
        ExpandError: the character set of an encoded word is not known.
    """
    found = list(_values(headers, name))
    if style == "r":
        return b"".join(found)[:VALUE_LIMIT_OCTETS]
    if style == "l":
        return b":".join(one.removesuffix(b"\n").replace(b":", b"::") for one in found)[:VALUE_LIMIT_OCTETS]
    stripped = [one.strip(_SPACE) for one in found]
    joined = (b",\n" if name.lower() in _ADDRESSES else b"\n").join(stripped)[:VALUE_LIMIT_OCTETS]
    return decode_2047(joined, convert=style == "h")


def whole(headers: Sequence[bytes], *, decoded: bool) -> bytes:
    """`$message_headers` and `$message_headers_raw`."""
    text = b"".join(line.replace(b"\r\n", b"\n") for line in headers)[:VALUE_LIMIT_OCTETS]
    return decode_2047(text.removesuffix(b"\n")) if decoded else text
