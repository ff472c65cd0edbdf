"""Split a list into items and write items back as a list.

Layer: sans-I/O.  Spec: expansion.md 1.7 (X-21, X-22, X-23).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SPACE = b" \t\n\r\v\f"
_PUNCTUATION = frozenset(b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_CONTROL = frozenset([*range(32), 127])
_COLON = 0x3A
_LESS = 0x3C
_BACKSLASH = 0x5C


def is_separator(octet: int) -> bool:
    """Whether `octet` may follow `<` to become the separator of a list."""
    return octet in _PUNCTUATION or octet in _CONTROL


def leading_separator(text: bytes) -> tuple[int | None, bytes]:
    """The separator that a leading ``<c`` names, or None, and what stands after it (X-21)."""
    start = 0
    while start < len(text) and text[start] in SPACE:
        start += 1
    if len(text) > start + 1 and text[start] == _LESS and is_separator(text[start + 1]):
        return text[start + 1], text[start + 2 :]
    return None, text


def split_list(text: bytes, separator: int | None = None) -> list[bytes]:
    """The items of a list.

    Args:
        text: the list; a leading ``<c`` changes the separator unless one is given.
        separator: octet that separates, when it is known already.

    White space around an item goes, a doubled separator stands for itself, and one separator at the end makes no item.
    """
    if separator is None:
        separator, text = leading_separator(text)
        if separator is None:
            separator = _COLON
    special = separator in _CONTROL
    if b"%c%c" % (separator, separator) not in text or special:
        return _split_plain(text, separator)
    items: list[bytes] = []
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in SPACE and text[at] != separator:
            at += 1
        if at == end:
            return items
        if text[at] == separator:
            at += 1
            if at == end or text[at] != separator:
                items.append(b"")
                continue
        item = bytearray()
        while True:
            stop = text.find(separator, at + 1)
            if stop < 0:
                stop = end
            item += text[at:stop]
            at = stop + 1
            if at >= end or text[at] != separator:
                at = min(at, end)
                break
        items.append(_strip_end(bytes(item)))


def _split_plain(text: bytes, separator: int) -> list[bytes]:
    space = SPACE.replace(bytes([separator]), b"")
    pieces = text.split(bytes([separator]))
    if not pieces[-1].lstrip(space):
        pieces.pop()
    return [_strip_end(piece.lstrip(space)) for piece in pieces]


def _strip_end(item: bytes) -> bytes:
    stripped = item.rstrip(SPACE)
    if stripped.endswith(b"\\") and len(stripped) < len(item):
        return item[: len(stripped) + 1]
    return stripped


def quote_item(item: bytes, separator: int) -> bytes:
    """One item as it stands in a list: separators doubled, one space for nothing (X-23)."""
    sep = bytes([separator])
    return item.replace(sep, sep + sep) if item else b" "


def join_list(items: Iterable[bytes], separator: int) -> bytes:
    """A list as `filter` and `map` write it (X-23): a space goes before a later item that is empty or begins with the
    separator, so that the list reads back as it was."""
    sep = bytes([separator])
    out = bytearray()
    for number, item in enumerate(items):
        if number:
            out += sep
            if not item or item.startswith(sep):
                out += b" "
        out += item.replace(sep, sep + sep)
    # a list of one empty item needs its separator to be seen
    return bytes(out)
