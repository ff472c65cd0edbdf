"""Operators on characters: RFC 2047 words, UTF-8, internationalised names, modified UTF-7.

Layer: sans-I/O.  Spec: expansion.md 3; RFC 2047 §2 and §6.2, RFC 3629 §3 (UTF-8), RFC 5891 (A-labels), RFC 3492
(punycode), RFC 3461 §4 (xtext), RFC 3501 §5.1.3 (mailbox names).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

import idna

from ..errors import ExpandError
from .regexes import text as as_text
from .searches import printable

_SPACE: Final = b" \t\n\r\v\f"

# -- RFC 2047 -------------------------------------------------------------------------------------------------------

_SPECIAL_2047: Final = frozenset(b'?=()<>@,;:\\".[]_')

_PLAIN_2047: Final = re.compile(rb"[ !#-'*+\-/0-9A-Z^`a-z{|}~]*\Z")


def encode_2047(text: bytes) -> bytes:
    """Q-encoded words when an octet does not print, else the text itself."""
    if _PLAIN_2047.match(text):
        return text
    head = b"=?UTF-8?Q?"
    words = [bytearray(head)]
    first_of_pair = False
    for octet in text:
        if len(words[-1]) - len(head) > 67 and not first_of_pair:
            words[-1] += b"?="
            words.append(bytearray(head))
        if octet == 0x20:
            words[-1] += b"_"
            first_of_pair = False
        elif octet < 33 or octet > 126 or octet in _SPECIAL_2047:
            words[-1] += b"=%02X" % octet
            first_of_pair = not first_of_pair
        else:
            words[-1].append(octet)
            first_of_pair = False
    words[-1] += b"?="
    return b" ".join(bytes(word) for word in words)


_WORD_2047: Final = re.compile(rb"=\?([^?\s]{0,40})\?([QqBb])\?([^?]*)\?=")


def decode_2047(text: bytes, *, convert: bool = True) -> bytes:
    """Encoded words as what they stand for, in UTF-8; what is not well-formed stays.

    Raises:
        ExpandError: the charset of a word is not known (iconv's text).
    """
    out = bytearray()
    last = 0
    after_word = False
    for match in _WORD_2047.finditer(text):
        decoded = _decode_word(match[1], match[2], match[3], convert)
        between = text[last : match.start()]
        if decoded is None:
            out += between + match[0]
            after_word = False
        else:
            if not (after_word and not between.strip(_SPACE)):
                out += between
            out += decoded
            after_word = True
        last = match.end()
    return bytes(out + text[last:])


def _decode_word(charset: bytes, encoding: bytes, body: bytes, convert: bool) -> bytes | None:
    if encoding in b"Qq":
        octets = _decode_q(body)
    else:
        try:
            octets = base64.b64decode(body, validate=True)
        except binascii.Error:
            return None
    if octets is None or not convert:
        return octets
    name = charset.decode("ascii", "replace")
    if name.lower() in ("", "utf-8", "us-ascii"):
        return octets
    try:
        return octets.decode(name).encode("utf-8")
    except LookupError:
        raise ExpandError(
            f'iconv_open("UTF-8", "{name}") failed: Invalid argument (maybe unsupported conversion)'
        ) from None
    except UnicodeError:
        return octets


def _decode_q(body: bytes) -> bytes | None:
    out = bytearray()
    at = 0
    while at < len(body):
        octet = body[at]
        if octet == 0x5F:
            out += b" "
        elif octet == 0x3D:
            try:
                out += bytes.fromhex(body[at + 1 : at + 3].decode("ascii"))
            except ValueError:
                return None
            if len(body) < at + 3:
                return None
            at += 2
        elif octet in b" \t":
            return None
        else:
            out.append(octet)
        at += 1
    return bytes(out)


# -- UTF-8 ----------------------------------------------------------------------------------------------------------

_UTF8: Final = re.compile(
    rb"[\x00-\x7f]+|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)


def utf8_clean(text: bytes) -> bytes:
    """Each sequence that is not UTF-8 becomes one question mark."""
    out = bytearray()
    at = 0
    while at < len(text):
        match = _UTF8.match(text, at)
        if match:
            out += match[0]
            at = match.end()
            continue
        out += b"?"
        octet = text[at]
        wanted = 1 if 0xC2 <= octet <= 0xDF else 2 if 0xE0 <= octet <= 0xEF else 3 if 0xF0 <= octet <= 0xF4 else 0
        at += 1
        while wanted and at < len(text) and 0x80 <= text[at] <= 0xBF:
            at += 1
            wanted -= 1
    return bytes(out)


def from_utf8(text: bytes) -> bytes:
    """UTF-8 as Latin-1; what Latin-1 does not have becomes `_`.  What is not UTF-8 is read as if it were."""
    out = bytearray()
    at = 0
    while at < len(text):
        octet = text[at]
        at += 1
        if octet & 0xC0 == 0xC0:
            extra = next(count for count in (1, 2, 3, 4, 5) if count == 5 or not octet & (0x40 >> count))
            character = octet & (0x3F >> extra)
            for number in range(at, at + extra):
                character = character << 6 | (text[number] & 0x3F if number < len(text) else 0)
            at += extra
            octet = character if character < 0x100 else 0x5F
        out.append(octet)
    return bytes(out).partition(b"\0")[0]


def domain_to_alabel(text: bytes) -> bytes:
    if text.isascii():
        return text
    try:
        return idna.encode(text.decode("utf-8"), uts46=True)
    except UnicodeDecodeError:
        raise ExpandError(f"error converting utf8 ({printable(text)}) to alabel: string encoding error") from None
    except (idna.IDNAError, UnicodeError) as error:
        raise ExpandError(f"error converting utf8 ({printable(text)}) to alabel: {error}") from None


def domain_from_alabel(text: bytes) -> bytes:
    try:
        return idna.decode(text.decode("ascii")).encode("utf-8") if b"xn--" in text.lower() else text
    except (idna.IDNAError, UnicodeError) as error:
        raise ExpandError(f"error converting alabel ({printable(text)}) to utf8: {error}") from None


def local_part_to_alabel(text: bytes) -> bytes:
    """The punycode of a local part behind `xn--`, as if it were a label."""
    if text.isascii():
        return text
    try:
        return b"xn--" + text.decode("utf-8").encode("punycode")
    except UnicodeError:
        raise ExpandError(f"error converting utf8 ({printable(text)}) to alabel: l_u2a: bad UTF-8 input") from None


def local_part_from_alabel(text: bytes) -> bytes:
    if not text.startswith(b"xn--"):
        raise ExpandError(f"error converting alabel ({printable(text)}) to utf8: bad alabel prefix")
    try:
        return text[4:].decode("punycode").encode("utf-8")
    except (UnicodeError, ValueError, OverflowError):
        raise ExpandError(f"error converting alabel ({printable(text)}) to utf8: l_a2u: punycode") from None


_XTEXT: Final = re.compile(rb"\+([0-9A-Fa-f]{2})")


def xtext_decode(text: bytes) -> bytes:
    """``+HH`` back to octets (RFC 3461 §4)."""
    return _XTEXT.sub(lambda match: bytes.fromhex(match[1].decode()), text)


_FOLDER_PLAIN: Final = frozenset(range(0x20, 0x7F))


def imap_folder(text: bytes, separator: bytes, specials: bytes) -> bytes:
    """A folder name in modified UTF-7 (RFC 3501 §5.1.3).

    Raises:
        ExpandError: with Exim's text.
    """
    if len(separator) != 1:
        raise ExpandError(f'IMAP folder separator must be one character, found "{as_text(separator)}"')
    out = bytearray()
    waiting = ""

    def flush() -> None:
        nonlocal waiting
        if waiting:
            encoded = base64.b64encode(waiting.encode("utf-16-be"), b"+,").rstrip(b"=")
            out.extend(b"&" + encoded + b"-")
            waiting = ""

    for char in text.decode("utf-8", "replace"):
        if char == "/" and separator != b"/":
            raise ExpandError("imapfolder: illegal character '/'")
        octet = ord(char)
        if octet in _FOLDER_PLAIN and octet not in specials:
            flush()
            out += b"&-" if char == "&" else b"%c" % octet
        else:
            waiting += char
    flush()
    return bytes(out)
