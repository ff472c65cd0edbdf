"""Ask a lookup registry as an expansion would: the type as it is written, and the result as text."""

from __future__ import annotations

from typing import Any

from engine.actions.lookups import LookupRegistry
from engine.errors import ExpandError
from engine.expand.searches import Found, parse_type


def find(
    registry: LookupRegistry, kind: str, text: str | bytes, key: str | bytes | None = None, **more: Any
) -> Found | None:
    """One lookup of the type `kind` with its options: a query, or a key in the file `text`."""
    search = parse_type(kind.encode(), has_key=key is not None)
    octets = text.encode() if isinstance(text, str) else text
    wanted = key.encode() if isinstance(key, str) else key
    return registry.find(search, key=wanted, text=octets, **more)


def look(
    registry: LookupRegistry, kind: str, text: str | bytes, key: str | bytes | None = None, **more: Any
) -> bytes | None:
    """The value that `find` finds, or None."""
    found = find(registry, kind, text, key, **more)
    return None if found is None else found.value


def failure(registry: LookupRegistry, kind: str, text: str | bytes, key: str | bytes | None = None, **more: Any) -> str:
    """The message of a lookup that must fail, or after ``found`` what it found instead."""
    try:
        return f"found {look(registry, kind, text, key, **more)!r}"
    except ExpandError as error:
        return error.message
