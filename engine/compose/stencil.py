"""The short way to a message: the octets of one are ready but for its values, and these can go in as they are.

Layer: sans-I/O.  Spec: design.md "Speed" (what is not per recipient is per job).
A template that only names columns gives the same octets for each recipient but for the values, as long as no value is
quoted, encoded, escaped or folded, and no line becomes too long.  What a value must be like for that is found once: for
each name the characters that are harmless in every place where it stands, and how long the values of a field or a line
may be together.  The octets around the values are cut out of a message that was composed the long way.
Invariants: `fill` gives what the long way gives, octet for octet, or None; whoever gets None goes the long way, which
has the last word on every value.  What it gives is made of CRLF lines: the sample was, and values have no line ends.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING, Final

from ..errors import DataError
from ._stencil import MAX_VALUES, Stencil
from .headers import Kind
from .merging import Place, find_places
from .template import EMAIL
from .transfer import MAX_LINE_OCTETS
from .words import PREFERRED_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .parts import Part
    from .sources import Source
    from .template import Program

#: stands for the message id among the names of values; no column can be called that in a template
MESSAGE_ID: Final = "\0id"

_ALNUM: Final = string.ascii_letters + string.digits
_ALL: Final = frozenset(map(chr, range(32, 127)))
#: harmless in a display name, in quotes, and in any text
_WORDS: Final = frozenset(_ALNUM + " !#$%&'*+/_`{|}~-")
_SAFE: Final = {
    # what could begin an encoded-word has an equals sign
    Kind.TEXT: _ALL - {"="},
    Place.PHRASE: _WORDS,
    Place.QUOTED: _WORDS,
    Place.ANGLE: frozenset(_ALNUM + "._~%/-"),
    # an address of the queue, in one of its usual forms
    Place.ADDRESS: frozenset(_ALNUM + "!#$%&'*+/?^_`{|}~.-@"),
}
_SAFE[Place.MAILBOX] = _SAFE[Place.ADDRESS]
_MARKUP: Final = frozenset("&<>\"'")
_ID: Final = frozenset(_ALNUM + "-.")
_LINE_END = re.compile(r"\r\n|\r|\n")


def names_of(program: Program | None) -> list[str] | None:
    """The names of the values, in the order in which `fill` wants them; None where a template does more than name
    columns.  Address and message id are always the last two."""
    if program is None:
        return [EMAIL, MESSAGE_ID]
    if program.names is None:
        return None
    found = dict.fromkeys(name for names in program.names for name in names if name != EMAIL)
    return [*found, EMAIL, MESSAGE_ID]


def make_stencil(
    source: Source,
    program: Program | None,
    compose: Callable[[dict[str, object], str, str], bytes],
    *,
    eightbit: bool,
) -> Stencil | None:
    """The stencil of a message.

    Args:
        eightbit: whether octets above 127 go over the wire as they are.
        compose: the long way: merge data, address and message id -> octets.

    Returns:
        None if it has none: the template does more than name columns, or a place asks for more than can be told here.
    """
    names = names_of(program)
    if names is None or len(names) > MAX_VALUES:
        return None
    try:
        rules = _Rules(names, eightbit=eightbit)
        if program is not None and program.names is not None:
            for number, inner in enumerate(program.names):
                if inner:
                    rules.add(source, number, program.authors[number] or (), inner)
        first, second = _cut(names, "zq{}qz", compose), _cut(names, "xj{}jx0", compose)
    except (_Unknown, DataError):
        return None
    if first != second or not _has_all(program, names, first[1]):
        return None  # a value changes more than its place, such as a fold
    if not _has_lines(b"x".join(first[0])):
        return None
    tables = tuple(bytes(chr(code) in rules.allowed[name] for code in range(128)) for name in names)
    stencil = Stencil(first[0], first[1], tables, tuple(rules.limits))
    # the sample must pass by its own rules, or the octets were made under others
    return stencil if stencil.fill(list(_samples(names, "zq{}qz"))) is not None else None


class _Unknown(Exception):
    """A place of which it cannot be told what is harmless there."""


class _Rules:
    """What values must be like."""

    def __init__(self, names: list[str], *, eightbit: bool) -> None:
        self._eightbit = eightbit
        self._numbers = {name: number for number, name in enumerate(names)}
        self.allowed = dict.fromkeys(names, _ALL)
        self.allowed[EMAIL] = _SAFE[Place.ADDRESS]
        self.allowed[MESSAGE_ID] = _ID
        self.limits: list[tuple[int, tuple[int, ...]]] = []

    def add(self, source: Source, number: int, author: tuple[str, ...], names: tuple[str, ...]) -> None:
        """Learn from one piece of the template."""
        merger = source.mergers.get(number)
        if merger is None:
            part = next(part for part in _parts(source.part) if part.slot == number)
            self._add_text(part, author, names, is_html=source.pieces[number].is_html)
            return
        if not all(map(str.isascii, author)):
            raise _Unknown
        if merger.kind is Kind.TEXT:
            for name in names:
                self._narrow(name, _SAFE[Kind.TEXT])
        else:
            for place, parts in find_places(author, merger.kind, merger.name):
                self._add_place(place, [names[part] for part in parts if isinstance(part, int)], parts)
        self._limit(PREFERRED_LINE - 2 - len(merger.name) - len("".join(author)), names)

    def _add_place(self, place: Place, names: list[str], parts: tuple[str | int, ...]) -> None:
        if not names:
            return
        safe = _SAFE.get(place)
        alone = len(names) == 1 and not "".join(part for part in parts if isinstance(part, str)).strip(" \t")
        if safe is None or (place in (Place.ADDRESS, Place.MAILBOX) and (names != [EMAIL] or not alone)):
            raise _Unknown
        for name in names:
            self._narrow(name, safe)

    def _add_text(self, part: Part, author: tuple[str, ...], names: tuple[str, ...], *, is_html: bool) -> None:
        if not (self._eightbit or all(map(str.isascii, author))):
            raise _Unknown  # it is encoded as a whole
        waiting = list(names)
        lines = _LINE_END.split("\0".join(author))
        for line in lines:
            count = line.count("\0")
            inside, waiting = tuple(waiting[:count]), waiting[count:]
            if not inside:
                continue
            for name in inside:
                self._narrow(name, _ALL - _MARKUP if is_html else _ALL)
            if part.boundaries:
                # two hyphens at the start of a line may be taken for a delimiter
                if line.startswith("-"):
                    raise _Unknown
                if line.startswith("\0"):
                    self._narrow(inside[0], _ALL - {"-"})
            self._limit(MAX_LINE_OCTETS - len(line.encode()), inside)

    def _narrow(self, name: str, safe: frozenset[str]) -> None:
        self.allowed[name] = self.allowed[name] & safe

    def _limit(self, octets: int, names: tuple[str, ...]) -> None:
        self.limits.append((octets, tuple(self._numbers[name] for name in names)))


def _has_lines(content: bytes) -> bool:
    """Whether it is made of lines that end with CRLF, and no CR or LF stands elsewhere."""
    ends = content.count(b"\r\n")
    return content.endswith(b"\r\n") and content.count(b"\r") == ends and content.count(b"\n") == ends


def _has_all(program: Program | None, names: list[str], holes: tuple[int, ...]) -> bool:
    """Whether every value that the template names has come out."""
    found = Counter(names[hole] for hole in holes)
    named = Counter(name for inner in (program and program.names) or () for name in inner)
    return all(found[name] >= count for name, count in named.items())


def _parts(part: Part) -> Iterator[Part]:
    yield part
    for child in part.children:
        yield from _parts(child)


def _samples(names: list[str], form: str) -> Iterator[str]:
    """A value for each name, none of which is in another or likely in any text."""
    for number, name in enumerate(names):
        text = form.format(number)
        yield f"{text}@{text}.example" if name == EMAIL else text


def _cut(
    names: list[str], form: str, compose: Callable[[dict[str, object], str, str], bytes]
) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """What stands around the values of a sample, and the numbers of these in order."""
    samples = list(_samples(names, form))
    content = compose(dict(zip(names[:-2], samples, strict=False)), samples[-2], samples[-1])
    numbers = {sample.encode(): number for number, sample in enumerate(samples)}
    # the address is longest and holds what a name would look like
    pattern = b"|".join(map(re.escape, sorted(numbers, key=len, reverse=True)))
    pieces = re.split(b"(" + pattern + b")", content)
    return tuple(pieces[::2]), tuple(numbers[piece] for piece in pieces[1::2])
