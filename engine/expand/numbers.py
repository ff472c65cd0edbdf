"""Integers as the expansion language reads and counts them.

Layer: sans-I/O.  Spec: expansion.md 1.6 (X-20), 3.1 (eval), 3 (base62, time_interval).
All numbers are 64-bit, signed, and wrap around.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import ExpandError
from .regexes import text as as_text

_SPACE: Final = b" \t\n\v\f\r"
MAXIMUM: Final = (1 << 63) - 1
MINIMUM: Final = -(1 << 63)
_SUFFIX: Final = {0x6B: 1 << 10, 0x6D: 1 << 20, 0x67: 1 << 30}
_INTEGER: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)")
#: digits that are looked at; more overflow anyway, and int() of very many is slow
_DIGITS_LIMIT: Final = 40
#: parentheses and signs inside each other in `eval`; arbitrary
_NESTING_LIMIT: Final = 100


def wrap(number: int) -> int:
    """`number` as a signed 64-bit integer."""
    number &= 0xFFFFFFFFFFFFFFFF
    return number - (1 << 64) if number > MAXIMUM else number


def integer(text: bytes, *, non_negative: bool = False) -> int:
    """The integer written in `text` (X-20).

    Raises:
        ExpandError: with Exim's text.
    """
    if text.isdigit() and len(text) < 19:
        return int(text)
    match = _INTEGER.match(text)
    if not match:
        if not text.strip(_SPACE):
            return 0
        raise ExpandError(f'integer expected but "{as_text(text.lstrip(_SPACE))}" found')
    text = text.lstrip(_SPACE)
    digits = match[1]
    number = int(digits) if len(digits) < _DIGITS_LIMIT else (MINIMUM - 1 if digits[:1] == b"-" else MAXIMUM + 1)
    overflow = not MINIMUM <= number <= MAXIMUM
    rest = text[len(digits) :]
    if not overflow:
        if number < 0 and non_negative:
            raise ExpandError(f'non-negative integer expected but "{as_text(text)}" found')
        factor = _SUFFIX.get(rest[0] | 0x20) if rest else None
        if factor:
            rest = rest[1:]
            number *= factor
            overflow = not MINIMUM <= number <= MAXIMUM
    if overflow:
        raise ExpandError(f'absolute value of integer "{as_text(text)}" is too large (overflow)')
    if rest.lstrip(b" \t\n\v\f\r"):
        raise ExpandError(f'invalid integer "{as_text(text)}"')
    return number


def strtol(text: bytes) -> int | None:
    """What C's strtol makes of the whole of `text`, in 32 bits; None when something is left over."""
    if not text:
        return 0
    match = _INTEGER.match(text)
    if not match or match.end() != len(text):
        return None
    number = int(match[1][:_DIGITS_LIMIT])
    number = max(MINIMUM, min(MAXIMUM, number)) & 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


class _Evaluation:
    """One arithmetic expression, read from left to right."""

    def __init__(self, text: bytes, decimal: bool) -> None:
        self.text = text
        self.decimal = decimal
        self.at = 0
        self.depth = 0

    def peek(self, ahead: int = 0) -> int:
        place = self.at + ahead
        return self.text[place] if place < len(self.text) else 0

    def skip(self) -> int:
        while self.at < len(self.text) and self.text[self.at] in b" \t\n\v\f\r":
            self.at += 1
        return self.peek()

    def fail(self, why: str) -> ExpandError:
        done = as_text(self.text[: self.at])
        return ExpandError(f'error in expression evaluation: {why} (after processing "{done}")')

    def whole(self) -> int:
        number = self.alternatives()
        if self.at < len(self.text):
            raise self.fail("expecting operator")
        return number

    def alternatives(self) -> int:
        number = self.exclusive()
        while self.peek() == 0x7C:
            self.at += 1
            number |= self.exclusive()
        return number

    def exclusive(self) -> int:
        number = self.conjunction()
        while self.peek() == 0x5E:
            self.at += 1
            number ^= self.conjunction()
        return number

    def conjunction(self) -> int:
        number = self.shift()
        while self.peek() == 0x26:
            self.at += 1
            number &= self.shift()
        return number

    def shift(self) -> int:
        number = self.sum()
        while (octet := self.peek()) in (0x3C, 0x3E) and self.peek(1) == octet:
            self.at += 2
            count = self.sum() & 63
            number = wrap(number << count) if octet == 0x3C else number >> count
        return number

    def sum(self) -> int:
        number = self.product()
        while (octet := self.peek()) in (0x2B, 0x2D):
            self.at += 1
            second = self.product()
            # the rule is Exim's: it looks at the left side only, and is careful by half
            if number >= MAXIMUM // 2:
                raise self.fail("overflow in sum" if octet == 0x2B else "overflow in difference")
            number = wrap(number + second if octet == 0x2B else number - second)
        return number

    def product(self) -> int:
        number = self.unary()
        while (octet := self.peek()) in (0x2A, 0x2F, 0x25):
            self.at += 1
            second = self.unary()
            if octet == 0x2A:
                number = wrap(number * second)
            elif second == 0:
                raise self.fail("divide by zero" if octet == 0x2F else "modulo by zero")
            elif number == MINIMUM and second == -1:
                number = MAXIMUM
            else:
                quotient = abs(number) // abs(second)
                quotient = -quotient if (number < 0) != (second < 0) else quotient
                number = quotient if octet == 0x2F else number - quotient * second
        return number

    def unary(self) -> int:
        octet = self.skip()
        if octet not in (0x2B, 0x2D, 0x7E):
            return self.number()
        self.depth += 1
        if self.depth > _NESTING_LIMIT:
            raise self.fail("nested too deep")
        self.at += 1
        number = self.unary()
        self.depth -= 1
        if octet == 0x2D:
            return wrap(-number)
        return ~number if octet == 0x7E else number

    def number(self) -> int:
        octet = self.skip()
        if octet == 0x28:
            self.depth += 1
            if self.depth > _NESTING_LIMIT:
                raise self.fail("nested too deep")
            self.at += 1
            number = self.alternatives()
            if self.peek() != 0x29:
                raise self.fail("expecting closing parenthesis")
            self.at += 1
            self.depth -= 1
        elif 0x30 <= octet <= 0x39:
            number = self.literal()
            factor = _SUFFIX.get(self.peek() | 0x20)
            if factor:
                self.at += 1
                number = wrap(number * factor)
        else:
            raise self.fail("expecting number or opening parenthesis")
        self.skip()
        return number

    def literal(self) -> int:
        pattern, base = rb"[0-9]+", 10
        if not self.decimal and self.peek() == 0x30:
            pattern, base = rb"0[xX][0-9a-fA-F]+|0[0-7]*", 8
        match = re.compile(pattern).match(self.text, self.at)
        assert match is not None
        digits = match[0]
        if digits[:2] in (b"0x", b"0X"):
            base = 16
        self.at = match.end()
        return MAXIMUM if len(digits) > 100 else min(int(digits, base), MAXIMUM)


def evaluate(text: bytes, *, decimal: bool) -> int:
    """The value of an arithmetic expression (3.1); `decimal`: numbers are decimal only.

    Raises:
        ExpandError: `error in expression evaluation: …`.
    """
    return _Evaluation(text, decimal).whole()


BASE62: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BASE32: Final = b"abcdefghijklmnopqrstuvwxyz234567"


def to_base(number: int, digits: bytes, width: int = 0) -> bytes:
    """A number from 0 in another base, filled up with the zero digit to `width`."""
    out = bytearray()
    while number:
        number, digit = divmod(number, len(digits))
        out.append(digits[digit])
    out.extend(digits[:1] * (width - len(out)))
    out.reverse()
    return bytes(out)


def from_base(text: bytes, digits: bytes) -> int | None:
    """The number that `to_base` wrote, modulo 2**64; None when a character is none of the digits."""
    number = 0
    for octet in text:
        value = digits.find(octet)
        if value < 0:
            return None
        number = (number * len(digits) + value) & 0xFFFFFFFFFFFFFFFF
    return number
