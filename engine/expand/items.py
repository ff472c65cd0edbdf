"""What the items `${name{…}…}` do that are functions of their strings.

Layer: sans-I/O.  Spec: expansion.md 2, 1.7.
`CALLS` are items that always give a string, `CHOICES` those that find one or do not (None) and have yes and no strings.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import TYPE_CHECKING, Final

from ..errors import ExpandError
from . import _evaluate, charsets, jsontext, pieces
from ._evaluate import split_list
from .listsplit import quote_item
from .regexes import text as as_text

if TYPE_CHECKING:
    from collections.abc import Callable

_SPACE: Final = b" \t\n\r\v\f"
_FIELD_NUMBER: Final = re.compile(rb"[ \t\n\r\v\f]*-?[0-9]*[ \t\n\r\v\f]*\Z")


def is_field_number(text: bytes) -> bool:
    """Whether the first argument of `extract` counts fields instead of naming one."""
    return _FIELD_NUMBER.match(text) is not None and bool(text.strip(_SPACE))


def _field_number(text: bytes) -> int:
    """The value of digits with a minus; huge ones are as good as none."""
    digits = text.strip(_SPACE)
    return 0 if digits == b"-" else int(digits[:12])


@functools.lru_cache(maxsize=64)
def _separator_table(separators: bytes) -> bytes:
    return bytes(separators[0] if octet in separators else octet for octet in range(256))


def extract_number(field: bytes, separators: bytes, text: bytes) -> bytes | None:
    """The field of `text` with that number, counted from the right when negative; 0 is all of it."""
    number = _field_number(field)
    if number == 0:
        return text
    if not separators:
        return text if number in (1, -1) else None
    if len(separators) > 1:
        # every separator as the first, which then is the only one
        text = text.translate(_separator_table(separators))
    fields = text.split(separators[:1])
    if number < 0:
        number += len(fields) + 1
    return fields[number - 1] if 1 <= number <= len(fields) else None


_ESCAPES: Final = {0x62: b"\b", 0x66: b"\f", 0x6E: b"\n", 0x72: b"\r", 0x74: b"\t", 0x76: b"\v"}
_ESCAPE: Final = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)


def _unescape(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return b"%c" % (int(match[1], 8) & 0xFF)
    if match[2]:
        return b"%c" % int(match[2], 16)
    return _ESCAPES.get(match[3][0], match[3])


def unescape(text: bytes) -> bytes:
    """What stands between double quotes, its escapes undone."""
    return _ESCAPE.sub(_unescape, text)


_PAIR: Final = re.compile(
    rb'[ \t\n\r\v\f]*([^= \t\n\r\v\f]*)[ \t\n\r\v\f]*(?:=[ \t\n\r\v\f]*)?(?:"((?:[^"\\]|\\.)*)"?|([^ \t\n\r\v\f]*))',
    re.DOTALL,
)


def check_key(key: bytes) -> None:
    """Raises ExpandError when the key of `extract` is empty."""
    if not key.strip(_SPACE):
        raise ExpandError('first argument of "extract" must not be empty')


def extract_key(key: bytes, text: bytes) -> bytes | None:
    """The value of the first ``key=value`` in `text` with that key, whatever the case of its letters.

    Raises:
        ExpandError: the key is empty.
    """
    check_key(key)
    wanted = key.strip(_SPACE).lower()
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in _SPACE:
            at += 1
        if at == end:
            return None
        match = _PAIR.match(text, at)
        if match is None or match.end() == at:
            return None
        if match[1].lower() == wanted:
            return match[3] if match[2] is None else unescape(match[2])
        at = match.end()


_DIGITS: Final = re.compile(rb"-?[0-9]*\Z")


def check_number(number: bytes) -> None:
    """Raises ExpandError when the first argument of `listextract` is no number."""
    digits = number.strip(_SPACE)
    if not digits:
        raise ExpandError('first argument of "listextract" must not be empty')
    if not _DIGITS.match(digits):
        raise ExpandError('first argument of "listextract" must be numeric')


def list_extract(number: bytes, text: bytes) -> bytes | None:
    """The item of a list with that number, counted from the right when negative.

    Raises:
        ExpandError: the number is none.
    """
    check_number(number)
    wanted = _field_number(number)
    found = split_list(text)
    if wanted < 0:
        wanted += len(found) + 1
    return found[wanted - 1] if 1 <= wanted <= len(found) else None


def hmac(algorithm: bytes, key: bytes, text: bytes) -> bytes:
    """`hmac`: lower-case hex.

    Raises:
        ExpandError: `hmac algorithm "x" is not recognised`.
    """
    if algorithm not in (b"md5", b"sha1"):
        raise ExpandError(f'hmac algorithm "{as_text(algorithm)}" is not recognised')
    make = hashlib.md5 if algorithm == b"md5" else hashlib.sha1
    first, second = _hmac_pads(algorithm, key)
    inner = make(first + text, usedforsecurity=False).digest()
    return make(second + inner, usedforsecurity=False).hexdigest().encode()


@functools.lru_cache(maxsize=64)
def _hmac_pads(algorithm: bytes, key: bytes) -> tuple[bytes, bytes]:
    """The first blocks of the inner and the outer digest (RFC 2104 §2)."""
    if len(key) > _HMAC_BLOCK:
        key = hashlib.new(algorithm.decode("ascii"), key, usedforsecurity=False).digest()
    key = key.ljust(_HMAC_BLOCK, b"\0")
    return bytes(octet ^ 0x36 for octet in key), bytes(octet ^ 0x5C for octet in key)


#: octets, of both digests
_HMAC_BLOCK: Final = 64


def list_quote(separator: bytes, text: bytes) -> bytes:
    """`listquote`: the item with its separators doubled."""
    return quote_item(text, separator[0]) if separator else text


def imap_folder(name: bytes, separator: bytes = b"/", specials: bytes = b"") -> bytes:
    return charsets.imap_folder(name, separator, specials)


def _pieces(name: str) -> Callable[..., bytes]:
    return lambda *arguments: pieces.item(name, arguments)


CALLS: Final[dict[str, Callable[..., bytes]]] = {
    "hash": _pieces("hash"),
    "hmac": hmac,
    "imapfolder": imap_folder,
    "length": _pieces("length"),
    "listquote": list_quote,
    "nhash": _pieces("nhash"),
    "substr": _pieces("substr"),
    "tr": pieces.translate,
}
#: items whose numeric arguments must not come from outside, and how many of them are text (X-24)
NUMERIC: Final = frozenset(["hash", "length", "nhash", "substr"])
#: items whose result is clean whatever went in (X-24)
CLEANING: Final = frozenset(["hash", "nhash"])

#: items whose first argument is looked at before the others are evaluated
CHECKS: Final[dict[str, Callable[[bytes], None]]] = {"extract_key": check_key, "listextract": check_number}

CHOICES: Final[dict[str, Callable[..., bytes | None]]] = {
    "extract_json": functools.partial(jsontext.extract, strings=False),
    "extract_jsons": functools.partial(jsontext.extract, strings=True),
    "extract_key": extract_key,
    "extract_number": extract_number,
    "listextract": list_extract,
}

#: the same functions in C, for programs; the tests hold the two against each other
FAST_CHOICES: Final[dict[str, Callable[..., bytes | None]]] = {
    **CHOICES,
    "extract_key": _evaluate.extract_key,
    "extract_number": _evaluate.extract_number,
    "listextract": _evaluate.list_extract,
}
