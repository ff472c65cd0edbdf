"""Ask a lookup registry as an expansion would: the type as it is written, and the result as text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import trio

from engine.actions.lookups import LookupRegistry
from engine.errors import ExpandError
from engine.expand.searches import Found, parse_type
from fakes.patience import PATIENCE_S


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


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call something that blocks in a thread of trio's, as a registry is used beside trio."""
    with trio.fail_after(PATIENCE_S):
        return await trio.to_thread.run_sync(functools.partial(function, *args))


def has_live_connection(registry: LookupRegistry, name: str) -> bool:
    """Whether the driver of a type keeps a connection that it would use."""
    driver: Any = registry._query_drivers[name]
    return any(connection.is_alive for connection in driver._kept._connections._kept.values())
