"""Read recipients as a stream: CSV, JSON lines, or plain addresses.

Layer: sans-I/O.  Spec: issue text "Message" and "Bad input"; RFC 4180 (CSV).
Input: octets in chunks of any size, or a binary file that is open.  Output: `Recipient` and `BadRow` values, in order.
Invariants: no input ends in anything but values, or a `DataError` where nothing of it can be read; a row is one or the
other, never dropped; memory is bounded by one chunk and one row.  Blank lines are no rows.
"""

from __future__ import annotations

import csv
import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from ..errors import DataError
from ..values import parse_address
from .lines import Line, Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

#: octets of one row, with its quoted line breaks; arbitrary.  Packed for the queue, the worst JSON (``[1.,2.,…``) takes
#: three times what it takes here, and a row must stay below the 1 MiB that the queue keeps of one recipient
MAX_ROW_OCTETS: Final = 256 << 10
#: characters of one CSV field; what Python's csv module takes by default
MAX_FIELD_CHARACTERS: Final = 128 << 10
#: octets of the header line of a CSV
MAX_HEADER_OCTETS: Final = 64 << 10
#: levels of lists and objects in JSON; the queue's packer takes 511
MAX_JSON_DEPTH: Final = 64
#: octets asked of a file at once
CHUNK_OCTETS: Final = 256 << 10

EMAIL: Final = "email"
_INTEGERS: Final = range(-(1 << 63), 1 << 64)


class Format(enum.Enum):
    """How recipients are written."""

    #: a header line with a column `email`, then one recipient a row; comma, double quotes
    CSV = "csv"
    #: one JSON object a line, with a key `email`
    JSON_LINES = "jsonl"
    #: one address a line
    ADDRESSES = "addresses"


@dataclass(frozen=True, slots=True)
class Recipient:
    """A recipient as read.

    Attributes:
        address: ``local@domain``, domain as lower-case A-labels.
        merge: the merge data, without the address; None when there are none.
        line: one-based number of its first line, 0 if it was not read from lines; makes no difference to equality.
    """

    address: str
    merge: Mapping[str, object] | None = None
    line: int = field(default=0, compare=False)

    @property
    def needs_smtputf8(self) -> bool:
        """Its local part can only be given to a server that offers SMTPUTF8."""
        return not self.address.isascii()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        line: one-based number of its first line.
        reason: in words, without the line number.
        text: the row as it stands in the input, undecodable octets as backslash escapes; of a row that is too long, the
            part that was kept.
    """

    line: int
    reason: str
    text: str


@runtime_checkable
class BinaryReader(Protocol):
    """A binary file, as far as it is needed here."""

    def read(self, size: int, /) -> bytes: ...


class RecipientReader:
    """An iterator over the rows of one input, to be used once.

    Attributes:
        format: what it is, given or found.
        columns: names of the merge data in CSV; empty for plain addresses; None for JSON lines, whose rows name their
            own.
    """

    def __init__(self, lines: Lines, format: Format, header: Line | None) -> None:
        """Made by `read_recipients`."""
        self.format = format
        self.columns: frozenset[str] | None = None if format is Format.JSON_LINES else frozenset()
        self._lines = lines
        self._names: list[str] = []
        self._email = 0
        if format is Format.CSV:
            self._read_header(header)

    def __iter__(self) -> Iterator[Recipient | BadRow]:
        if self.format is Format.CSV:
            return self._csv_rows()
        return self._rows(_read_object if self.format is Format.JSON_LINES else _read_address)

    def _rows(self, read: Callable[[Line], Recipient]) -> Iterator[Recipient | BadRow]:
        for line in self._lines:
            if line.error:
                yield BadRow(line.number, line.error, line.text)
                continue
            if not line.text or line.text.isspace():
                continue
            try:
                yield read(line)
            except DataError as error:
                yield BadRow(line.number, error.message, line.text)

    def _read_header(self, line: Line | None) -> None:
        if line is None:
            raise DataError("the recipients are empty: no header line with a column `email`")
        if line.error:
            raise DataError(line.error, line=line.number)
        if len(line.text) > MAX_HEADER_OCTETS:
            raise DataError(f"the header line has more than {MAX_HEADER_OCTETS:,} characters", line=line.number)
        names, error = self._split(line, [line])
        if error:
            raise DataError(f"the header line cannot be read: {error}", line=line.number)
        names = [name.strip() for name in names]
        emails = [place for place, name in enumerate(names) if name.casefold() == EMAIL]
        if not emails:
            hint = ""
            for separator, called in ((";", "semicolons"), ("\t", "tabs")):
                if any(part.strip().strip('"').casefold() == EMAIL for part in line.text.split(separator)):
                    hint = f": the columns are separated by {called}, and must be by commas"
            raise DataError(f"the header line has no column `email`{hint}", line=line.number)
        for place, name in enumerate(names):
            if not name:
                raise DataError(f"column {place + 1} has no name", line=line.number)
            if name in names[:place] or (place != emails[0] and place in emails):
                raise DataError(f"two columns are named {name!r}", line=line.number)
        self._email = emails[0]
        self._names = names
        self.columns = frozenset(names) - {names[self._email]}

    def _csv_rows(self) -> Iterator[Recipient | BadRow]:
        names, email, count = self._names, self._email, len(self._names)
        rest = names[:email] + names[email + 1 :]
        for line in self._lines:
            text = line.text
            if line.error:
                yield BadRow(line.number, line.error, text)
                continue
            raw = [line]
            if '"' in text:
                fields, error = self._split(line, raw)
                if error:
                    yield BadRow(line.number, error, "\n".join([part.text for part in raw]))
                    continue
            else:
                fields = text.split(",")
            if len(fields) != count:
                if not text or text.isspace():
                    continue
                reason = f"the row has {len(fields)} fields, the header line has {count}"
                yield BadRow(line.number, reason, "\n".join([part.text for part in raw]))
                continue
            written = fields.pop(email).strip()
            if not written and len(raw) == 1 and (not text or text.isspace()):
                continue
            try:
                address = str(parse_address(written))
            except DataError as error_of_address:
                yield BadRow(line.number, error_of_address.message, "\n".join([part.text for part in raw]))
                continue
            yield Recipient(address, dict(zip(rest, fields, strict=True)) if rest else None, line.number)

    def _split(self, line: Line, raw: list[Line]) -> tuple[list[str], str]:
        """The fields of a row that has quotes, and what is wrong with it; lines it goes on in are added to `raw`."""
        size = len(line.text)
        fault = ""

        def pull() -> Iterator[str]:
            nonlocal size, fault
            yield line.text + "\n"
            for more in self._lines:
                raw.append(more)
                size += len(more.text) + 1
                fault = more.error
                if not fault and size > MAX_ROW_OCTETS:
                    fault = f"a quoted field that begins here goes on for more than {MAX_ROW_OCTETS:,} characters"
                if fault:
                    return
                yield more.text + "\n"

        try:
            fields = next(csv.reader(pull(), strict=True), [])
        except csv.Error as error:
            return [], fault or _CSV_WORDS.get(str(error), str(error))
        # a line break at the end belongs to the row, those inside to its fields
        return fields, fault


_CSV_WORDS: Final = {
    "unexpected end of data": "a quoted field is not closed before the end",
    f"field larger than field limit ({MAX_FIELD_CHARACTERS})": (
        f"a field has more than {MAX_FIELD_CHARACTERS:,} characters; is a quote not closed?"
    ),
    "',' expected after '\"'": "a quoted field is followed by something else than a comma",
}


def _read_address(line: Line) -> Recipient:
    return Recipient(str(parse_address(line.text.strip())), None, line.number)


def _read_object(line: Line) -> Recipient:
    text = line.text
    try:
        found = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise DataError("the JSON is nested too deep") from None
    except ValueError as error:
        raise DataError(f"not JSON that can be used: {error}") from None
    if not isinstance(found, dict):
        raise DataError("the row is no JSON object")
    keys = [key for key in found if key.casefold() == EMAIL]
    if len(keys) != 1:
        raise DataError("the object has no key `email`" if not keys else "the object has two keys `email`")
    address = found.pop(keys[0])
    if not isinstance(address, str):
        raise DataError("`email` is no text")
    for value in found.values():
        if isinstance(value, (dict, list)):
            _check_depth(value, 1)
    if "\\u" in text:
        _check_surrogates(found)
    return Recipient(str(parse_address(address.strip())), found or None, line.number)


def _check_depth(value: object, depth: int) -> None:
    if depth > MAX_JSON_DEPTH:
        raise DataError(f"the JSON is nested more than {MAX_JSON_DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for element in inner:
        if isinstance(element, (dict, list)):
            _check_depth(element, depth + 1)


def _check_surrogates(value: object) -> None:
    """An escape may name half a character, which has no octets."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("the JSON names half of a surrogate pair, which is no character") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one key twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) < 19:
        return int(digits)
    if len(digits) > 20 or int(digits) not in _INTEGERS:
        raise ValueError("an integer has more than 64 bits")
    return int(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_constant=_no_constant)


def read_recipients(source: Iterable[bytes] | BinaryReader, format: Format | None = None) -> RecipientReader:
    """Read recipients from chunks of octets or a binary file that is open.

    Args:
        format: None to tell it by the first line: ``{`` begins JSON lines, a header with a column `email` is CSV,
            anything else is plain addresses.

    Raises:
        DataError: nothing of it can be read: no column `email`, two columns of one name, not UTF-8 at all, …
    """
    chunks = iter(lambda: source.read(CHUNK_OCTETS), b"") if isinstance(source, BinaryReader) else iter(source)
    lines = Lines(chunks, MAX_ROW_OCTETS)
    first = next((line for line in lines if line.error or (line.text and not line.text.isspace())), None)
    if format is None:
        format = _tell_format(first)
    if format is not Format.CSV and first is not None:
        lines.give_back(first)
    return RecipientReader(lines, format, first)


def _tell_format(first: Line | None) -> Format:
    if first is None or first.error:
        return Format.ADDRESSES
    if first.text.lstrip().startswith("{"):
        return Format.JSON_LINES
    names = [part.strip().strip('"').strip().casefold() for part in first.text.split(",")]
    if EMAIL in names:
        return Format.CSV
    if "@" not in first.text:
        # neither an address nor a header that can be used; the header's error says more of it
        return Format.CSV
    return Format.ADDRESSES
