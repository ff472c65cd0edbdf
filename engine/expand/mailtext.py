"""Operators on mail texts: addresses, quoting, folding.

Layer: sans-I/O.  Spec: expansion.md 3; RFC 5322 §3.4 (addresses).
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import ExpandError
from .listsplit import join_list
from .regexes import text as as_text

_SPACE: Final = b" \t\n\r\v\f"
#: octets that end a word that is not in quotes; the dot ends it too, but may stand between two
_SPECIAL: Final = frozenset([*range(33), 127, *b'()<>@,;:\\".[]'])
_LABEL: Final = re.compile(rb"(?:[A-Za-z0-9][A-Za-z0-9-]*)?")
_LITERAL: Final = re.compile(rb"\[[^\[\]\\]*\]")
_COMMA, _COLON, _SEMICOLON, _LESS, _GREATER, _AT, _DOT, _QUOTE, _BACKSLASH, _OPEN, _CLOSE = b',:;<>@."\\()'


class _Mailboxes:
    """Reads the mailboxes of a header value, one after the other.

    Args:
        text: the value.
        groups: whether a mailbox may be part of a group ``name: a@b, c@d;``.
    """

    def __init__(self, text: bytes, *, groups: bool) -> None:
        self.text = text
        self.at = 0
        self.groups = groups
        self.in_group = False

    def peek(self) -> int:
        return self.text[self.at] if self.at < len(self.text) else -1

    def skip(self) -> int:
        """Go over white space and comments; the octet behind, or -1."""
        while True:
            octet = self.peek()
            if octet == _OPEN:
                self._comment()
            elif octet != -1 and octet in _SPACE:
                self.at += 1
            else:
                return octet

    def _comment(self) -> None:
        depth = 0
        while (octet := self.peek()) != -1:
            self.at += 1
            if octet == _BACKSLASH:
                self.at += 1
            elif octet == _OPEN:
                depth += 1
            elif octet == _CLOSE:
                depth -= 1
                if not depth:
                    return

    def _quoted(self) -> bytes:
        start = self.at
        self.at += 1
        while (octet := self.peek()) != _QUOTE:
            if octet == -1:
                raise ValueError
            self.at += 2 if octet == _BACKSLASH else 1
        self.at += 1
        return self.text[start : self.at]

    def _atom(self) -> bytes:
        start = self.at
        while (octet := self.peek()) != -1 and (octet not in _SPECIAL or octet == _BACKSLASH):
            self.at += 2 if octet == _BACKSLASH else 1
        self.at = min(self.at, len(self.text))
        return self.text[start : self.at]

    def local_part(self, *, may_be_empty: bool) -> bytes:
        """Words with dots between them, white space and comments taken out."""
        out = bytearray()
        while True:
            octet = self.skip()
            word = self._quoted() if octet == _QUOTE else self._atom()
            if not word and not (may_be_empty and not out):
                raise ValueError
            out += word
            if self.skip() != _DOT:
                return bytes(out)
            # dots that follow each other, or end the local part, are let through
            while self.skip() == _DOT:
                out += b"."
                self.at += 1
            if (octet := self.peek()) == -1 or (octet in _SPECIAL and octet not in (_QUOTE, _BACKSLASH)):
                return bytes(out)

    def domain(self) -> bytes:
        """A domain or an address literal."""
        if self.skip() == 0x5B:
            match = _LITERAL.match(self.text, self.at)
            if match is None:
                raise ValueError
            self.at = match.end()
            self.skip()
            return match[0]
        out = bytearray()
        while True:
            match = _LABEL.match(self.text, self.at)
            if match is None or not match[0]:
                raise ValueError
            out += match[0]
            self.at = match.end()
            if self.skip() != _DOT:
                return bytes(out)
            out += b"."
            self.at += 1
            self.skip()

    def _route(self) -> None:
        """A source route, which is read and dropped (RFC 1123 §5.3.6)."""
        while True:
            self.at += 1
            self.domain()
            if self.peek() != _COMMA:
                break
            while self.peek() == _COMMA:
                self.at += 1
                self.skip()
            if self.peek() != _AT:
                break
        if self.peek() != _COLON:
            raise ValueError
        self.at += 1

    def _routed(self) -> tuple[bytes, bytes]:
        """What stands in angle brackets, or behind a source route without them."""
        route = self.skip() == _AT
        if route:
            self._route()
        local = self.local_part(may_be_empty=False)
        if self.peek() != _AT:
            if route:
                raise ValueError
            return local, b""
        self.at += 1
        return local, self.domain()

    def one(self) -> tuple[bytes, bytes]:
        """Local part and domain of the one mailbox the text is; the domain is empty when there is none.

        Raises:
            ValueError: it is none.
        """
        local = self.local_part(may_be_empty=True)
        octet = self.peek()
        if octet not in (_AT, _LESS):
            if octet in (-1, _SEMICOLON):
                if not local:
                    raise ValueError
                return self._end(local, b"")
            while (octet := self.peek()) != _LESS and not (self.groups and octet == _COLON):
                self.local_part(may_be_empty=False)
            if octet == _COLON:
                self.at += 1
                self.in_group, self.groups = True, False
                return self.one()
        if octet == _LESS:
            self.at += 1
            local, domain = self._routed()
            if self.peek() != _GREATER:
                raise ValueError
            self.at += 1
            self.skip()
        elif not local:
            local, domain = self._routed()
        else:
            self.at += 1
            domain = self.domain()
        return self._end(local, domain)

    def _end(self, local: bytes, domain: bytes) -> tuple[bytes, bytes]:
        if self.in_group and self.peek() == _SEMICOLON:
            # what stands between the end of a group and the next comma is dropped
            self.in_group, self.groups = False, True
        elif self.peek() != -1:
            raise ValueError
        return local, domain


_NAME_OF_DOMAIN: Final = rb"([A-Za-z0-9][A-Za-z0-9-]*(?:\.[A-Za-z0-9][A-Za-z0-9-]*)*)"
#: what nearly every address is: a mailbox alone, or in brackets behind a name without anything special in it
_SIMPLE: Final = re.compile(
    rb"(?:([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@" + _NAME_OF_DOMAIN + rb"|[A-Za-z0-9_+ -]*"
    rb"<([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@" + _NAME_OF_DOMAIN + rb">)\Z"
)


def split_address(text: bytes) -> tuple[bytes, bytes] | None:
    """Local part and domain of the one mailbox in `text`, or None."""
    simple = _SIMPLE.match(text)
    if simple is not None:
        return simple[1] or simple[3], simple[2] or simple[4]
    try:
        return _Mailboxes(text, groups=False).one()
    except ValueError:
        return None


def address(text: bytes) -> bytes:
    return _joined(split_address(text))


def _joined(found: tuple[bytes, bytes] | None) -> bytes:
    if found is None:
        return b""
    return found[0] + b"@" + found[1] if found[1] else found[0]


def local_part(text: bytes) -> bytes:
    found = split_address(text)
    return found[0] if found else b""


def domain(text: bytes) -> bytes:
    found = split_address(text)
    return found[1] if found else b""


def _address_end(text: bytes, at: int) -> int:
    """Where the mailbox that begins at `at` ends: at a comma outside quotes, comments, brackets and source routes."""
    routed = text[at : at + 1] == b"@"
    inside = int(routed)
    end = len(text)
    while at < end and (text[at] != _COMMA or inside > 0):
        octet = text[at]
        if octet == _BACKSLASH:
            at += 1
        elif octet == _QUOTE:
            at += 1
            while at < end and text[at] != _QUOTE:
                at += 2 if text[at] == _BACKSLASH else 1
        elif octet == _OPEN:
            depth = 1
            while depth and (at := at + 1) < end:
                if text[at] == _BACKSLASH:
                    at += 1
                else:
                    depth += (text[at] == _OPEN) - (text[at] == _CLOSE)
        elif octet == _LESS:
            routed = text[at + 1 : at + 2] == b"@"
            inside = 2 if routed else 1
        elif octet == _GREATER or (routed and octet == _COLON):
            inside -= 1
        at += 1
    return min(at, end)


def addresses(text: bytes) -> bytes:
    """All addresses of a header value as a list; a leading ``>c`` sets the separator of the result.

    Raises:
        ExpandError: `output separator missing in expanding ${addresses:…}`.
    """
    separator = b":"
    text = text.lstrip(_SPACE)
    if text.startswith(b">"):
        separator, rest = text[1:2], text[2:]
        if not separator:
            raise ExpandError(f"output separator missing in expanding ${{addresses:{as_text(text)}}}")
        text = rest
    found = []
    at = 0
    groups, in_group = True, False
    while True:
        end = _address_end(text, at)
        reader = _Mailboxes(text[at:end], groups=groups)
        reader.in_group = in_group
        try:
            one = _joined(reader.one())
        except ValueError:
            one = b""
        groups, in_group = reader.groups, reader.in_group
        if one:
            found.append(one)
        if end >= len(text):
            break
        at = end + 1
    return join_list(found, separator[0])


_PLAIN_QUOTE: Final = re.compile(rb"[A-Za-z0-9_.-]+\Z")
_PLAIN_LOCAL: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
_QUOTED_SPECIAL: Final = re.compile(rb'[\n\r\\"]')
_QUOTED: Final = {0x0A: b"\\n", 0x0D: b"\\r", 0x5C: b"\\\\", 0x22: b'\\"'}


def quote(text: bytes) -> bytes:
    return text if _PLAIN_QUOTE.match(text) else _in_quotes(text)


def quote_local_part(text: bytes) -> bytes:
    return text if _PLAIN_LOCAL.match(text) else _in_quotes(text)


def _in_quotes(text: bytes) -> bytes:
    inner = _QUOTED_SPECIAL.sub(lambda match: _QUOTED[match[0][0]], text)
    return b'"' + inner + b'"'


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
