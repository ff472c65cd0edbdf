"""Whose handlers an `event_action` names, beside the string that is expanded.

Layer: sans-I/O.  Spec: issue "Event actions": as a string, or as a list of handler names, or both.

    event_action = "${if …}"                    the string; and every handler that asked for the event
    event_action = ["audit", "crm:record"]      these handlers, and no others
    event_action = ["audit", "${if …}"]         both

A name is that of a table `[handlers.NAME]`, of a group of workers that attach themselves (all of its handlers), or
`group:handler`.  What is none is the string.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..config import ListText

#: the group of workers that have the handlers of the configuration
MAIN_GROUP: Final = "main"
_NAME: Final = re.compile(r"[A-Za-z_][\w.-]*(:[A-Za-z_][\w.-]*)?", re.ASCII)


def split(
    value: ListText, *, key: str, file: str = "", handlers: Collection[str] = (), groups: Collection[str] = ()
) -> tuple[str, tuple[str, ...] | None]:
    """The string of an `event_action`, "" for none, and who is chosen: ``group`` or ``group:handler`` each; None: all.

    Args:
        handlers: names of the tables `[handlers.NAME]`; groups: of workers that attach themselves.

    Raises:
        ConfigError: there is no such handler, or a second string.
    """
    if isinstance(value, str):
        return value, None
    texts = [item for item in value if not _NAME.fullmatch(item)]
    if len(texts) > 1:
        raise ConfigError("an array has one string to expand at most", file=file or None, key=key)
    chosen = [_resolve(item, key, file, handlers, groups) for item in value if item not in texts]
    return "".join(texts), tuple(dict.fromkeys(chosen))


def _resolve(name: str, key: str, file: str, handlers: Collection[str], groups: Collection[str]) -> str:
    if name in handlers and name in groups:
        problem = f"{name!r} is a handler and a group; write {MAIN_GROUP}:{name}, or rename one"
        raise ConfigError(problem, file=file or None, key=key)
    if name in handlers:
        return f"{MAIN_GROUP}:{name}"
    group, _, handler = name.partition(":")
    if group in groups or (group == MAIN_GROUP and handler in handlers):
        return name
    known = [*handlers, *groups]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known) or 'none'}"
    raise ConfigError(f"unknown handler {name!r}{hint}", file=file or None, key=key)
