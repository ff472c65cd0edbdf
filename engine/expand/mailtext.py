"""Operators on mail texts: addresses, quoting, RFC 2047 words, UTF-8.

Layer: sans-I/O.  Spec: expansion.md 3; RFC 5322 §3.4 (addresses), RFC 2047 §2 and §6.2, RFC 3629 §3 (UTF-8).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

import idna

from ..errors import ExpandError
from .regexes import text as as_text

_ATOM: Final = frozenset(
    b"!#$%&'*+-/0123456789=?ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz{|}~."
) | frozenset(range(128, 256))
_DOMAIN: Final = re.compile(
    rb"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*\.?\Z"
)
_SPACE: Final = b" \t\n\r\v\f"
#: comments inside comments; arbitrary
_COMMENT_LIMIT: Final = 50


class _Mailbox:
    """Reads one mailbox from a header value."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> int:
        return self.text[self.at] if self.at < len(self.text) else -1

    def skip(self) -> int:
        """Go over white space and comments; the octet behind, or -1."""
        while True:
            octet = self.peek()
            if octet == 0x28:
                self._comment()
            elif octet != -1 and octet in _SPACE:
                self.at += 1
            else:
                return octet

    def _comment(self) -> None:
        depth = 0
        while (octet := self.peek()) != -1:
            self.at += 1
            if octet == 0x5C:
                self.at += 1
            elif octet == 0x28:
                depth += 1
            elif octet == 0x29:
                depth -= 1
                if not depth:
                    return
        raise ValueError

    def word(self) -> bytes:
        """An atom with dots, or a quoted string."""
        start = self.at
        if self.peek() == 0x22:
            self.at += 1
            while (octet := self.peek()) != 0x22:
                if octet == -1:
                    raise ValueError
                self.at += 2 if octet == 0x5C else 1
            self.at += 1
            if self.at > len(self.text):
                raise ValueError
        else:
            while self.peek() in _ATOM:
                self.at += 1
        return self.text[start : self.at]

    def local_part(self) -> bytes:
        out = bytearray()
        while True:
            self.skip()
            piece = self.word()
            if not piece:
                break
            out += piece
            if self.skip() != 0x2E and not out.endswith(b"."):
                break
            if self.peek() == 0x2E:
                self.at += 1
                out += b"."
        return bytes(out)

    def domain(self) -> bytes:
        octet = self.skip()
        if octet == 0x5B:
            end = self.text.find(b"]", self.at)
            if end < 0:
                raise ValueError
            literal = self.text[self.at : end + 1]
            self.at = end + 1
            self.skip()
            return literal
        out = self.word()
        while self.skip() == 0x2E or out.endswith(b"."):
            if self.peek() == 0x2E:
                self.at += 1
                out += b"."
            self.skip()
            piece = self.word()
            if not piece:
                break
            out += piece
        if not _DOMAIN.match(out):
            raise ValueError
        return out.removesuffix(b".")

    def address(self) -> tuple[bytes, bytes]:
        """Local part and domain of the one mailbox the text is; the domain is empty when there is none."""
        octet = self.skip()
        if octet == -1:
            raise ValueError
        start = self.at
        phrase = True
        while True:  # look for <, which makes all before it a display name
            octet = self.skip()
            if octet == 0x3C:
                break
            if octet in (-1, 0x40, 0x2C, 0x3A, 0x3B) or not self.word():
                phrase = False
                break
        if phrase:
            self.at += 1
            local, domain = self._spec(bracketed=True)
            if self.peek() != 0x3E:
                raise ValueError
            self.at += 1
            self.skip()
        else:
            self.at = start
            local, domain = self._spec(bracketed=False)
        if self.skip() != -1:
            raise ValueError
        return local, domain

    def _spec(self, *, bracketed: bool) -> tuple[bytes, bytes]:
        if bracketed and self.skip() == 0x40:  # a source route is read and dropped
            while self.skip() in (0x40, 0x2C):
                self.at += 1
                if self.skip() != 0x40:
                    self.domain()
            if self.skip() != 0x3A:
                raise ValueError
            self.at += 1
        local = self.local_part()
        if not local:
            raise ValueError
        if self.skip() != 0x40:
            return local, b""
        self.at += 1
        domain = self.domain()
        if not domain:
            raise ValueError
        return local, domain


def split_address(text: bytes) -> tuple[bytes, bytes] | None:
    """Local part and domain of the one mailbox in `text`, or None."""
    try:
        return _Mailbox(text).address()
    except ValueError:
        return None


def address(text: bytes) -> bytes:
    found = split_address(text)
    if found is None:
        return b""
    return found[0] + b"@" + found[1] if found[1] else found[0]


def local_part(text: bytes) -> bytes:
    found = split_address(text)
    return found[0] if found else b""


def domain(text: bytes) -> bytes:
    found = split_address(text)
    return found[1] if found else b""


def _header_items(text: bytes) -> list[bytes]:
    """The mailboxes of a header value, split at commas that stand outside quotes, comments and brackets."""
    items = []
    start = at = 0
    comment = 0
    while at < len(text):
        octet = text[at]
        if octet == 0x5C:
            at += 1
        elif comment:
            comment += (octet == 0x28) - (octet == 0x29)
        elif octet == 0x28:
            comment = 1
        elif octet == 0x22:
            end = at + 1
            while end < len(text) and text[end] != 0x22:
                end += 2 if text[end] == 0x5C else 1
            at = end
        elif octet == 0x5B:
            at = max(text.find(b"]", at), at)
        elif octet == 0x3A:
            start = at + 1  # a group's name
        elif octet in b",;":
            items.append(text[start:at])
            start = at + 1
        at += 1
    items.append(text[start:])
    return items


def addresses(text: bytes) -> bytes:
    """All addresses of a header value as a list; a leading ``>c`` sets the separator of the result.

    Raises:
        ExpandError: `output separator missing in expanding ${addresses:…}`.
    """
    separator = b":"
    stripped = text.lstrip(_SPACE)
    if stripped.startswith(b">"):
        separator, rest = stripped[1:2], stripped[2:]
        if not separator or separator.isspace():
            raise ExpandError(f"output separator missing in expanding ${{addresses:{as_text(stripped)}}}")
        text = rest
    found = [one for item in _header_items(text) if (one := address(item))]
    return separator.join(item.replace(separator, separator * 2) for item in found)


_PLAIN_QUOTE: Final = re.compile(rb"[A-Za-z0-9_.-]+\Z")
_PLAIN_LOCAL: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
_QUOTED: Final = {0x0A: b"\\n", 0x0D: b"\\r", 0x5C: b"\\\\", 0x22: b'\\"'}


def quote(text: bytes) -> bytes:
    return text if _PLAIN_QUOTE.match(text) else _in_quotes(text)


def quote_local_part(text: bytes) -> bytes:
    if _PLAIN_LOCAL.match(text):
        return text
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _in_quotes(text: bytes) -> bytes:
    return b'"' + b"".join(_QUOTED.get(octet) or b"%c" % octet for octet in text) + b'"'


# -- RFC 2047 -------------------------------------------------------------------------------------------------------

_SPECIAL_2047: Final = frozenset(b'?=()<>@,;:\\".[]_')


def encode_2047(text: bytes) -> bytes:
    """Q-encoded words when an octet does not print, else the text itself."""
    if all(32 <= octet <= 126 for octet in text):
        return text
    head = b"=?UTF-8?Q?"
    words = [bytearray(head)]
    first_of_pair = False
    for octet in text:
        if len(words[-1]) > 67 and not first_of_pair:
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


_WORD_2047: Final = re.compile(rb"=\?([^?\s]{1,40})\?([QqBb])\?([^?]*)\?=")


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
    name = charset.partition(b"*")[0].decode("ascii", "replace")
    if name.lower() in ("utf-8", "us-ascii"):
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


_FOLD_AT: Final = b" \t"


def header_wrap(text: bytes, columns: int, most: int) -> bytes:
    """`headerwrap`: lines of at most `columns`, folded with a newline and a tab at white space; no line over `most`."""
    out = bytearray()
    rest = text
    first = True
    while len(rest) > columns:
        cut = max(rest.rfind(space, 1, columns) for space in (b" ", b"\t"))
        if cut < 1:
            after = [place for space in (b" ", b"\t") if (place := rest.find(space, columns)) >= 0]
            cut = min(after) if after else len(rest)
        if cut >= len(rest):
            break
        out += (b"" if first else b"\n\t") + rest[: min(cut, most)]
        rest = rest[cut:].lstrip(_FOLD_AT)
        first = False
    return bytes(out + (b"" if first else b"\n\t") + rest[:most])


# -- UTF-8 ----------------------------------------------------------------------------------------------------------

_UTF8: Final = re.compile(
    rb"[\x00-\x7f]+|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
_BROKEN: Final = re.compile(rb"[\xc2-\xf4][\x80-\xbf]*|[\x80-\xff]", re.DOTALL)


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
    """UTF-8 as Latin-1; what Latin-1 does not have becomes `_`."""
    return bytes(ord(char) if char < "\u0100" else 0x5F for char in text.decode("utf-8", "replace"))


def domain_to_alabel(text: bytes) -> bytes:
    if text.isascii():
        return text
    try:
        return idna.encode(text.decode("utf-8"), uts46=True)
    except (idna.IDNAError, UnicodeError) as error:
        raise ExpandError(f"error converting utf8 ({as_text(text)}) to alabel: {error}") from None


def domain_from_alabel(text: bytes) -> bytes:
    try:
        return idna.decode(text.decode("ascii")).encode("utf-8") if b"xn--" in text.lower() else text
    except (idna.IDNAError, UnicodeError) as error:
        raise ExpandError(f"error converting alabel ({as_text(text)}) to utf8: {error}") from None


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
    return bytes(out.replace(separator, b"/") if separator != b"/" else out)
