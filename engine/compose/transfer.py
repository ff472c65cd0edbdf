"""Line ends, line lengths and the two transfer encodings.

Layer: sans-I/O.  Spec: RFC 5321 §2.3.8 (only CRLF ends a line), §4.5.3.1.6 (998 octets and CRLF), RFC 2045 §6.7, §6.8.
Invariants: whatever an encoder here returns is ASCII without NUL, has CRLF line ends only and no line over 76 octets;
it decodes to what was encoded.  A repair changes how a body is written and not what it decodes to.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

#: octets without the CRLF, RFC 5322 §2.1.1
MAX_LINE_OCTETS: Final = 998
#: octets of an encoded line, RFC 2045 §6.7 (5) and §6.8
MAX_ENCODED_LINE_OCTETS: Final = 76

_LINE_END = re.compile(rb"\r\n|\r|\n")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]+")
_NOT_PRINTABLE = re.compile(rb"[^\t\r\n -~]")
# what a line of text may not hold in quoted-printable, and white space at its end (RFC 2045 §6.7 (3))
_UNSAFE_IN_QUOTED = re.compile(rb"[^\t\r\n -<>-~]|[\t ](?=\r\n|\Z)")
_HEX = tuple(b"=%02X" % code for code in range(256))
_QUOTED_UNIT = re.compile(rb"=..|.", re.DOTALL)
_PLAIN_IN_QUOTED = bytes([9, 10, 13, *(code for code in range(32, 127) if code != ord("="))])


def to_crlf(data: bytes) -> bytes:
    """Make every line end, bare CR and bare LF included, a CRLF."""
    if b"\r" not in data:
        return data.replace(b"\n", b"\r\n")
    if data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n"):
        return data
    return _LINE_END.sub(b"\r\n", data)


def has_bare_cr(data: bytes) -> bool:
    return data.count(b"\r") != data.count(b"\r\n")


def has_long_line(data: bytes) -> bool:
    """Whether a line has more than `MAX_LINE_OCTETS`; lines end with CRLF.

    It looks backwards from the farthest place at which a line may end, so that most lines are never looked at.
    """
    start, size = 0, len(data)
    while size - start > MAX_LINE_OCTETS:
        end = data.rfind(b"\n", start, start + MAX_LINE_OCTETS + 2)
        if end < 0:
            # what is left has no line end: it may be as long as a line, no longer
            return True
        start = end + 1
    return False


def is_wire_ready(data: bytes, *, eightbit: bool) -> bool:
    """Whether octets with CRLF line ends may go over the wire as they are."""
    return (eightbit or data.isascii()) and b"\0" not in data and not has_long_line(data)


def encode(data: bytes, *, is_text: bool) -> tuple[str, bytes]:
    """Write octets in the shorter of the two encodings; what is no text is always base64.

    Args:
        data: for text with CRLF line ends.

    Returns:
        The name of the encoding and the encoded octets.
    """
    if is_text and 6 * len(data.translate(None, _PLAIN_IN_QUOTED)) <= len(data):
        return "quoted-printable", encode_quoted_printable(data)
    return "base64", encode_base64(data)


def encode_quoted_printable(text: bytes) -> bytes:
    """Quoted-printable of text with CRLF line ends."""
    quoted = _UNSAFE_IN_QUOTED.sub(lambda match: _HEX[match[0][0]], text)
    return b"\r\n".join([_break(line) for line in quoted.split(b"\r\n")])


def _break(line: bytes) -> bytes:
    """A line of quoted-printable with soft line breaks, none of them inside an escape."""
    if len(line) <= MAX_ENCODED_LINE_OCTETS:
        return line
    pieces, start = [], 0
    while len(line) - start > MAX_ENCODED_LINE_OCTETS:
        end = start + MAX_ENCODED_LINE_OCTETS - 1
        escape = line.find(b"=", end - 2, end)
        if escape >= 0:
            end = escape
        pieces.append(line[start:end])
        start = end
    pieces.append(line[start:])
    return b"=\r\n".join(pieces)


def encode_base64(data: bytes) -> bytes:
    return _wrap_base64(binascii.b2a_base64(data, newline=False))


def repair_base64(body: bytes) -> bytes:
    """Base64 in lines of the right length, without what is outside its alphabet (decoders ignore that)."""
    return _wrap_base64(_NOT_BASE64.sub(b"", body))


def _wrap_base64(digits: bytes) -> bytes:
    step = MAX_ENCODED_LINE_OCTETS
    return b"\r\n".join([digits[at : at + step] for at in range(0, len(digits), step)])


def repair_quoted_printable(body: bytes) -> bytes:
    """Quoted-printable without raw octets outside ASCII and with soft line breaks where lines are too long.

    Args:
        body: with CRLF line ends.
    """
    body = _NOT_PRINTABLE.sub(lambda match: _HEX[match[0][0]], body)
    return b"\r\n".join([_break_anything(line) for line in body.split(b"\r\n")])


def _break_anything(line: bytes) -> bytes:
    """As `_break`, for a line in which an equals sign need not begin an escape."""
    if len(line) <= MAX_ENCODED_LINE_OCTETS:
        return line
    room = MAX_ENCODED_LINE_OCTETS - 1
    lines, current = [], bytearray()
    for unit in _QUOTED_UNIT.findall(line):
        if len(current) + len(unit) > room:
            lines.append(bytes(current))
            current.clear()
        current += unit
    lines.append(bytes(current))
    return b"=\r\n".join(lines)


def decode(body: bytes, encoding: str) -> bytes:
    """The octets that a body in quoted-printable or base64 stands for; broken base64 gives what can be read of it."""
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body)
    whole, _, _ = _NOT_BASE64.sub(b"", body).partition(b"=")
    if len(whole) % 4 == 1:
        whole = whole[:-1]
    return binascii.a2b_base64(whole + b"=" * (-len(whole) % 4))
