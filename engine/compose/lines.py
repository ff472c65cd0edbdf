"""Cut octets that come in chunks into numbered lines of text.

Layer: sans-I/O.  Spec: issue text "Bad input" (a malformed row with its line number).
Invariants: every line comes once, with its number; one that is too long, not UTF-8, or holds a NUL says so and hides no
other; memory is bounded by two chunks and one line.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Line(NamedTuple):
    """A line without its line end.

    Attributes:
        number: one-based.
        error: what is wrong with it, "" for nothing.
    """

    number: int
    text: str
    error: str = ""


class Lines:
    """An iterator over the lines of chunks; LF or CRLF ends a line, a byte order mark of UTF-8 at the start is dropped.

    Raises:
        DataError: while iterating, when the octets are UTF-16.
    """

    def __init__(self, chunks: Iterator[bytes], max_octets: int) -> None:
        self._max_octets = max_octets
        self._given_back: Line | None = None
        self._cut_lines = self._cut(_without_mark(chunks))

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        if self._given_back is not None:
            line, self._given_back = self._given_back, None
            return line
        return next(self._cut_lines)

    def give_back(self, line: Line) -> None:
        """Let the line that was taken last come again."""
        self._given_back = line

    def _cut(self, chunks: Iterator[bytes]) -> Iterator[Line]:
        number = 1
        # the beginning of a line whose end has not come yet; one that is too long stops growing
        begun = bytearray()
        for chunk in chunks:
            end = chunk.rfind(b"\n") + 1
            if not end:
                if len(begun) <= self._max_octets + 1:
                    begun += chunk
                continue
            begun += chunk[:end]
            block = bytes(begun)
            begun = bytearray(chunk[end:])
            yield from self._lines_of(block, number)
            number += block.count(b"\n")
        if begun:
            yield from self._lines_of(bytes(begun) + b"\n", number)

    def _lines_of(self, block: bytes, number: int) -> Iterator[Line]:
        if len(block) <= self._max_octets or self._longest(block) <= self._max_octets:
            try:
                text = block.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" not in text:
                lines = text.replace("\r\n", "\n").split("\n")
                lines.pop()
                for place, line in enumerate(lines, number):
                    yield Line(place, line)
                return
        for place, octets in enumerate(block.split(b"\n")[:-1], number):
            yield self._line(place, octets.removesuffix(b"\r"))

    def _longest(self, block: bytes) -> int:
        """Octets of the longest line, or less than allowed if none is longer than that."""
        start = 0
        while len(block) - start > self._max_octets:
            end = block.rfind(b"\n", start, start + self._max_octets + 1)
            if end < 0:
                return self._max_octets + 1
            start = end + 1
        return 0

    def _line(self, number: int, octets: bytes) -> Line:
        if len(octets) > self._max_octets:
            kept = octets[: self._max_octets].decode(errors="backslashreplace")
            return Line(number, kept, f"the line has more than {self._max_octets:,} octets")
        try:
            text = octets.decode()
        except UnicodeDecodeError as error:
            kept = octets.decode(errors="backslashreplace")
            return Line(number, kept, f"not UTF-8 at octet {error.start + 1} of the line")
        return Line(number, text, "the line holds a NUL" if "\0" in text else "")


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks without a byte order mark before them."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= len(codecs.BOM_UTF8):
            break
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the recipients are in UTF-16: save them as UTF-8")
    yield start.removeprefix(codecs.BOM_UTF8)
    yield from chunks
