"""Cut, hash and translate: substr, length, hash, nhash, tr.

Layer: sans-I/O.  Spec: expansion.md 2 (items), 3 (operators).
"""

from __future__ import annotations

import functools
from typing import Final

from ..errors import ExpandError
from . import _evaluate, numbers
from .regexes import text as as_text

#: letters in the alphabet of `hash`
HASH_LETTERS: Final = 62


def substr(text: bytes, start: int, length: int) -> bytes:
    """A part of `text`: `start` from the right when negative, `length` below 0 means it was not given."""
    size = len(text)
    if start < 0:
        start += size
        if start < 0:
            length = max(length + start, 0)
            start = 0
        elif length < 0:
            start, length = 0, start
    elif start > size:
        return b""
    elif length < 0:
        length = size
    return text[start : start + length]


def hash_text(text: bytes, size: int, modulus: int) -> bytes:
    """The `size`-character hash of `text` from the first `modulus` letters of the alphabet (26 when negative).

    Raises:
        ExpandError: the modulus is too big, or zero.
    """
    if modulus < 0:
        modulus = 26
    elif modulus > HASH_LETTERS:
        raise ExpandError(f'hash count "{modulus}" too big')
    if size >= len(text):
        return text
    if size <= 0:
        return b""
    if modulus == 0:
        raise ExpandError("missing or misplaced { or }")
    return _evaluate.hash_text(text, size, modulus)


def nhash(text: bytes, first: int, second: int) -> bytes:
    """The numeric hash: one number below `first`, or two when `second` is not negative."""
    total = _evaluate.prime_sum(text)
    if second < 0:
        if first == 0:
            raise ExpandError("")
        return b"%d" % (total % (first & 0xFFFFFFFFFFFFFFFF))
    if first == 0 or second == 0:
        raise ExpandError("")
    total %= (first * second) & 0xFFFFFFFFFFFFFFFF
    return b"%d/%d" % (total // second, total % second)


def item(name: str, arguments: tuple[bytes, ...]) -> bytes:
    """The items `hash`, `length`, `nhash` and `substr` with two or three arguments.

    Raises:
        ExpandError: an argument is not a number.
    """
    *given, text = arguments
    values = [0, -1]
    where = [1] if name == "length" and len(given) == 1 else [0, 1]
    for index, argument in zip(where, given, strict=False):
        number = numbers.strtol(argument)
        if number is None or (index and number < 0):
            kind = " positive" if index else ""
            raise ExpandError(f'"{as_text(argument)}" is not a{kind} number (in "{name}" expansion)')
        values[index] = number
    if name == "hash":
        return hash_text(text, values[0], values[1])
    if name == "nhash":
        return nhash(text, values[0], values[1])
    return substr(text, values[0], values[1])


def operator(name: str, full: str, text: bytes) -> bytes:
    """The operators `h`, `l`, `nh`, `s` and their long names; `full` has the numbers: ``substr_-3_2``.

    Raises:
        ExpandError: `missing values after x`, `non-digit after underscore in "x"`, `value too large in "x"`.
    """
    start, length = _numbers(name, full)
    if name in ("h", "hash"):
        return hash_text(text, start, length)
    if name in ("nh", "nhash"):
        return nhash(text, start, length)
    return substr(text, start, length)


def prepared(name: str, full: str) -> tuple[int, int] | functools.partial[bytes] | None:
    """What `operator` does when the name is known beforehand: start and length of a part, or a function of the text;
    None where it fails."""
    try:
        start, length = _numbers(name, full)
    except ExpandError:
        return None
    if name in ("h", "hash"):
        return functools.partial(hash_text, size=start, modulus=length)
    if name in ("nh", "nhash"):
        return functools.partial(_evaluate.numeric_hash, start, length)
    return start, length


#: the operators that `operator` and `prepared` know
OPERATORS: Final = frozenset(["h", "hash", "l", "length", "nh", "nhash", "s", "substr"])


@functools.lru_cache(maxsize=256)
def _numbers(name: str, full: str) -> tuple[int, int]:
    """The numbers in the name of an operator; the second is -1 when there is none."""
    _, underscore, argument = full.partition("_")
    if not underscore:
        raise ExpandError(f"missing values after {full}")
    values = [0, -1]
    index = 0
    negative = False
    if name in ("l", "length"):
        index, values[1] = 1, 0
    elif name.startswith("s") and argument.startswith("-"):
        negative, argument = True, argument[1:]
    at = 0
    while at < len(argument):
        char = argument[at]
        if at and char == "_" and index == 0:
            index, values[1] = 1, 0
            if at + 1 < len(argument):
                at += 1
            continue
        if not char.isdigit():
            raise ExpandError(f'non-digit after underscore in "{full}"')
        values[index] = values[index] * 10 + int(char)
        if values[index] >= 1 << 31:
            raise ExpandError(f'value too large in "{full}"')
        at += 1
    return (-values[0] if negative else values[0]), values[1]


def translate(text: bytes, old: bytes, new: bytes) -> bytes:
    """`tr`: the last place of a character in `old` decides; a short `new` goes on with its last character."""
    return text.translate(_table(old, new)) if new else text


@functools.lru_cache(maxsize=64)
def _table(old: bytes, new: bytes) -> bytes:
    table = bytearray(range(256))
    for place, octet in enumerate(old):
        table[octet] = new[min(place, len(new) - 1)]
    return bytes(table)
