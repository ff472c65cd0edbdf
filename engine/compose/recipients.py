"""Read recipients as a stream: CSV, JSON lines, or plain addresses.

Layer: sans-I/O.  Spec: issue text "Message" and "Bad input"; RFC 4180 (CSV).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


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
    """A recipient as read: ``local@domain`` (domain as lower-case A-labels) and its merge data, None when there are none."""

    address: str
    merge: Mapping[str, object] | None = None

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
        text: the row as it stands in the input, undecodable octets as backslash escapes; cut when it is very long.
    """

    line: int
    reason: str
    text: str


class BinaryReader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class RecipientReader:
    """An iterator over the rows of one input.

    Attributes:
        format: what it is, given or found.
        columns: names of the merge data in CSV; empty for plain addresses; None for JSON lines, whose rows name their own.
    """

    format: Format
    columns: frozenset[str] | None

    def __iter__(self) -> Iterator[Recipient | BadRow]:
        raise NotImplementedError


def read_recipients(source: Iterable[bytes] | BinaryReader, format: Format | None = None) -> RecipientReader:
    """Read recipients from chunks of octets or a binary file that is open.

    Args:
        format: None to tell it by the first line: ``{`` begins JSON lines, a header with a column `email` is CSV,
            anything else is plain addresses.

    Raises:
        DataError: nothing of it can be read: no column `email`, two columns of one name, not UTF-8 at all, …
    """
    raise NotImplementedError
