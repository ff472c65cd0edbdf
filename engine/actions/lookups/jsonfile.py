"""json: members of a JSON document in a file, by a path of keys and indexes separated by colons.

Layer: adapter.  Spec: expansion 5.2; RFC 8259.
Input: a key such as ``accounts:2:name``, a list as Exim's lists are; each part is a member of an object or, for an
array, an index from 0.
Invariants: a file is parsed once for as long as it stays the same; depth and size of a document are bounded.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from engine.expand.listsplit import split_list

from .driver import Deferral, Failure, bounded
from .files import MAX_KEPT_OCTETS, ParsedFiles

if TYPE_CHECKING:
    from typing import BinaryIO

    from engine.expand.searches import Search

_PURPOSE: Final = "json search"


class _Number(str):
    """A number as it stands in the document."""

    __slots__ = ()


def _refuse(constant: str) -> None:
    """RFC 8259 §6: numbers that are none, such as Infinity, are not permitted."""
    raise ValueError(f"{constant} is no number of JSON")


def _parse(file: BinaryIO) -> Any:
    if file.seek(0, 2) > MAX_KEPT_OCTETS:
        raise Failure(f"a file of more than {MAX_KEPT_OCTETS} octets is too large for a {_PURPOSE}")
    file.seek(0)
    try:
        return json.loads(file.read(), parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Deferral(f"json: {error}") from None


class JsonFile:
    def __init__(self) -> None:
        self._files: ParsedFiles[Any] = ParsedFiles(_parse, _PURPOSE, "json")

    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        """The member: a string bare, anything else as JSON text."""
        value = self._files.get(path)
        for octets in split_list(key):
            part = octets.decode("utf-8", "surrogateescape")
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isascii() and part.isdigit() and len(part) < 10:
                if int(part) >= len(value):
                    return None
                value = value[int(part)]
            else:
                return None
        try:
            text = value if isinstance(value, str) else _dump(value)
        except RecursionError as error:
            raise Deferral(f"json: {error}") from None
        # a lone surrogate of the document has no octets; it is written as the escape it was
        return bounded(text.encode("utf-8", "backslashreplace"))


def _dump(value: Any) -> str:
    """`value` as JSON text, its numbers as they were written."""
    if isinstance(value, _Number):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_dump(key)}: {_dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
