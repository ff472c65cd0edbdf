"""Merge data in a header field: each value is quoted for the place it stands in.

Layer: sans-I/O.  Spec: RFC 5322 §3.2 and §3.4 (what needs quoting where), issue text "Message" (header injection is
impossible).
Invariants: the structure of a field (its addresses, commas, brackets, quotes) is what its author wrote; a value can
only be what the place allows, or the recipient fails with a reason.  No value brings a line break or another control
character into a header.

A rendered field comes as pieces: what the author wrote at even places, merge data at odd ones.  What the author wrote
decides the places, and is nearly always the same for every recipient, so they are found once and kept (`find_places`).

| where a value stands                   | what becomes of it                                                        |
|----------------------------------------|---------------------------------------------------------------------------|
| free text (Subject, X-…)               | as it is; text that reads as an encoded-word is encoded                    |
| before ``<``: a display name           | quoted together with the words around it, if it needs to be                |
| inside ``"…"`` or ``(…)``              | with backslashes                                                           |
| an address or part of one              | the whole must be one valid address                                        |
| a whole mailbox (``To: {{ sender }}``) | one valid address, or one name with an address, written anew               |
| inside ``<…>`` of other fields         | no white space, brackets or quotes, ASCII only                             |
| a parameter of Content-…               | quoted, if it needs to be                                                  |
| anywhere else in a structured field    | ASCII without brackets, quotes, commas, or one ``<…>`` by itself           |
"""

from __future__ import annotations

import enum
import itertools
import re
from typing import Final, NamedTuple

from ..errors import DataError
from .addresses import SPECIAL, escape_comment, escape_quoted, for_header, quote, tokens, unquote
from .headers import Kind
from .words import LONG_WORD, MARK, encode_words

#: sets of places kept for one field; a template whose conditions write more different structures than that is slower
MAX_KEPT: Final = 64

_CONTROL = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")
# words of a display name that need no quotes (RFC 5322 §3.2.3, RFC 6532 §3.2)
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ \-\u00a0-\U0010ffff]*\Z")
_IN_ANGLE = re.compile(r"[!#-;=?-~]*\Z")
_ELSEWHERE = re.compile(r"[!#-'*+\-./0-9:=?@A-Z^_`a-z{|}~ ]*\Z|<[!#-;=?-~]+>\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]+\Z")


class Place(enum.Enum):
    """Where a piece of a field stands."""

    #: written by the author
    AUTHOR = enum.auto()
    #: a display name
    PHRASE = enum.auto()
    #: in a display name that has quotes, comments or encoded-words of the author
    WORDS = enum.auto()
    QUOTED = enum.auto()
    COMMENT = enum.auto()
    ADDRESS = enum.auto()
    MAILBOX = enum.auto()
    ANGLE = enum.auto()
    PARAMETER = enum.auto()
    ELSEWHERE = enum.auto()


class Item(NamedTuple):
    """A run of pieces that are looked at together: texts of the author, and numbers of values."""

    place: Place
    parts: tuple[str | int, ...]


class Merger:
    """Puts merge data into one header field of a template."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.key = name.lower()
        self.kind = kind
        self._kept: dict[tuple[str, ...], list[Item]] = {}

    def merge(self, pieces: list[str]) -> str:
        """The value of the field in one line; `MARK` is left where a word must become an encoded-word.

        Args:
            pieces: texts of the author at even places, values at odd ones.

        Returns:
            "" if nothing but white space came out.

        Raises:
            DataError: a value does not fit its place.
        """
        for value in pieces:
            if (value.isascii() and value.isprintable()) or not (found := _CONTROL.search(value)):
                continue
            what = "a line break" if found[0] in "\r\n" else f"the control character {found[0]!r}"
            raise DataError(f"header field {self.name} would get {what} from {value[:60]!r}")
        if not any(text.strip(" \t") for text in pieces):
            return ""
        if self.kind is Kind.TEXT:
            if any("=?" in value for value in pieces[1::2]):
                pieces[1::2] = [_guard(value) for value in pieces[1::2]]
            return "".join(pieces).strip()
        author = tuple(pieces[::2])
        items = self._kept.get(author)
        if items is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            items = self._kept[author] = find_places(author, self.kind, self.name)
        values = pieces[1::2]
        return "".join([self._fill(item, values) for item in items]).strip()

    def prove(self, author: tuple[str, ...]) -> None:
        """See that values can stand between these texts of the author.

        Raises:
            DataError: a quote or bracket is not closed, or a value stands where none can.
        """
        if self.kind is not Kind.TEXT:
            find_places(author, self.kind, self.name)

    def _fill(self, item: Item, values: list[str]) -> str:
        place, parts = item
        if place is Place.AUTHOR:
            return "".join([str(part) for part in parts])
        if place is Place.PHRASE or place is Place.WORDS:
            return _phrase(parts, values, is_whole=place is Place.PHRASE)
        texts = [values[part] if isinstance(part, int) else part for part in parts]
        text = "".join(texts)
        if place is Place.QUOTED:
            return _guard(escape_quoted(text))
        if place is Place.COMMENT:
            return _guard(escape_comment(text))
        if place is Place.ADDRESS:
            return _space_before(text) + self._address(text) + _space_after(text)
        if place is Place.MAILBOX:
            return _space_before(text) + self._mailbox(text) + _space_after(text)
        if place is Place.PARAMETER:
            return text if _TOKEN.match(text) else quote(text)
        pattern = _IN_ANGLE if place is Place.ANGLE else _ELSEWHERE
        if not pattern.match(text):
            raise DataError(f"header field {self.name} cannot hold {text[:60]!r}")
        return text

    def _address(self, text: str) -> str:
        try:
            return for_header(text.strip(" \t"))
        except DataError as error:
            raise DataError(f"header field {self.name}: {error.message}") from None

    def _mailbox(self, text: str) -> str:
        text = text.strip(" \t")
        if "<" not in text:
            return self._address(text)
        try:
            found = tokens(text)
        except DataError as error:
            raise DataError(f"header field {self.name}: {text[:60]!r} is not one mailbox: {error.message}") from None
        opening = next((at for at, token in enumerate(found) if token.text == "<"), len(found))
        if found[-1].text != ">" or any(token.kind == SPECIAL and token.text != "." for token in found[:opening]):
            raise DataError(f"header field {self.name}: {text[:60]!r} is not one mailbox")
        name = "".join([unquote(token) for token in found[:opening]]).strip()
        address = self._address("".join([token.text for token in found[opening + 1 : -1]]))
        return f"{_write_phrase(name, is_whole=True)} <{address}>" if name else address


def _guard(text: str) -> str:
    """Keep merge data from being read as an encoded-word: the mark makes the word be encoded."""
    return text.replace("=?", f"={MARK}?")


def _space_before(text: str) -> str:
    return " " if text.startswith((" ", "\t")) else ""


def _space_after(text: str) -> str:
    return " " if text.endswith((" ", "\t")) else ""


def _write_phrase(text: str, *, is_whole: bool) -> str:
    """A display name, quoted or encoded as it needs to be.

    Args:
        is_whole: no other words stand beside it; those would have to be encoded together with it, later.
    """
    if text.isascii() and len(text) <= LONG_WORD and "=?" not in text:
        return text if _PLAIN_PHRASE.match(text) else quote(text)
    if is_whole:
        return encode_words(text)
    text = _guard(text)
    if len(text) > LONG_WORD:
        text = MARK + text
    return text if _PLAIN_PHRASE.match(text.replace(MARK, "")) else quote(text)


def _phrase(parts: tuple[str | int, ...], values: list[str], *, is_whole: bool) -> str:
    """A display name; the white space around it stays outside of its quotes."""
    text = "".join([values[part] if isinstance(part, int) else part for part in parts])
    inner = text.strip(" \t")
    if not inner:
        return " " if text else ""
    start = text.index(inner)
    return text[:start] + _write_phrase(inner, is_whole=is_whole) + text[start + len(inner) :]


class _Finder:
    """Walks through what the author wrote, once, with the values as places in it."""

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind = kind
        self.name = name
        self.items: list[Item] = []
        # the run of parts since the last comma, bracket or the like: (text or number, how it stands there)
        self.run: list[tuple[str | int, Place]] = []
        self.quoted = False
        self.depth = 0
        self.in_angle = False
        self.after_angle = False

    def walk(self, author: tuple[str, ...]) -> list[Item]:
        for number, text in enumerate(author):
            self._walk_text(text)
            if number < len(author) - 1:
                self.run.append((number, self._inner_place()))
        if self.quoted or self.depth or self.in_angle:
            raise DataError(f"header field {self.name} has a quote, comment or bracket that is not closed")
        self._end_run("")
        return self.items

    def _inner_place(self) -> Place:
        if self.quoted:
            return Place.QUOTED
        return Place.COMMENT if self.depth else Place.AUTHOR

    def _walk_text(self, text: str) -> None:
        at = 0
        while at < len(text):
            char = text[at]
            was_inside = self._inner_place()
            if char == "\\" and was_inside is not Place.AUTHOR:
                if at + 1 == len(text):
                    raise DataError(f"header field {self.name} has a backslash before an expression")
                self._add(text[at : at + 2], was_inside)
                at += 2
                continue
            if self.quoted:
                self.quoted = char != '"'
            elif char == '"' and not self.depth:
                self.quoted = True
            elif char == "(":
                self.depth += 1
            elif char == ")" and self.depth:
                self.depth -= 1
            elif not self.depth and char in self._separators():
                self._end_run(char)
                at += 1
                continue
            is_comment = Place.COMMENT in (was_inside, self._inner_place())
            self._add(char, Place.COMMENT if is_comment else Place.AUTHOR)
            at += 1

    def _separators(self) -> str:
        if self.in_angle:
            return ">"
        return {Kind.ADDRESSES: "<,;:", Kind.PARAMETERS: ";"}.get(self.kind, "<,")

    def _add(self, text: str, place: Place) -> None:
        place = Place.COMMENT if place is Place.COMMENT else Place.AUTHOR
        if self.run:
            last, last_place = self.run[-1]
            if isinstance(last, str) and last_place is place:
                self.run[-1] = (last + text, place)
                return
        self.run.append((text, place))

    def _end_run(self, separator: str) -> None:
        """Decide on the run that ends here; comments in it stand for themselves, whatever is around them."""
        run, self.run = self.run, []
        for is_comment, group in itertools.groupby(run, lambda part: part[1] is Place.COMMENT):
            if is_comment:
                self._one_by_one(list(group), Place.COMMENT)
            else:
                self._decide(list(group), separator)
        if separator:
            self._author(separator)
        self.after_angle = self.in_angle
        self.in_angle = separator == "<"

    def _decide(self, run: list[tuple[str | int, Place]], separator: str) -> None:
        place = self._place_of(run, separator)
        if not any(isinstance(part, int) for part, _ in run):
            self._one_by_one(run, place)
        elif self.after_angle:
            raise DataError(f"header field {self.name} has an expression after an address")
        elif place is Place.PHRASE and not all(
            isinstance(part, int) or (_PLAIN_PHRASE.match(part) and "=?" not in part) for part, _ in run
        ):
            # the author's part of it is more than words: each value stands for itself
            self._one_by_one(run, Place.WORDS)
        elif place in (Place.PHRASE, Place.ADDRESS, Place.ANGLE, Place.MAILBOX):
            self.items.append(Item(place, tuple([part for part, _ in run])))
        else:
            self._one_by_one(run, place)

    def _place_of(self, run: list[tuple[str | int, Place]], separator: str) -> Place:
        if self.kind is Kind.PARAMETERS:
            return Place.PARAMETER
        if self.in_angle:
            return Place.ADDRESS if self.kind is Kind.ADDRESSES else Place.ANGLE
        if separator == "<" or (separator == ":" and self.kind is Kind.ADDRESSES):
            return Place.PHRASE
        if self.kind is not Kind.ADDRESSES:
            return Place.ELSEWHERE
        bare = [part for part, _ in run if isinstance(part, int) or part.strip(" \t")]
        return Place.MAILBOX if len(bare) == 1 else Place.ADDRESS

    def _one_by_one(self, run: list[tuple[str | int, Place]], place: Place) -> None:
        for part, inner in run:
            if isinstance(part, str):
                self._author(part)
            else:
                self.items.append(Item(place if inner is Place.AUTHOR else inner, (part,)))

    def _author(self, text: str) -> None:
        if self.items and self.items[-1].place is Place.AUTHOR:
            text = str(self.items.pop().parts[0]) + text
        self.items.append(Item(Place.AUTHOR, (text,)))


def find_places(author: tuple[str, ...], kind: Kind, name: str) -> list[Item]:
    """Find where the values of a field stand.

    Args:
        author: what the author wrote before, between and after the values.

    Raises:
        DataError: a quote or bracket is not closed, or a value stands where none can.
    """
    return _Finder(kind, name).walk(author)
