"""An expander for tests of routing that need no expansion language: what routing asks of one, from simple strings.

A text is itself with ``$name`` replaced; the words FORCED, DEFER and ERROR in it fail as their names say, `slow:` in
front makes it one that may block.  A list is items between colons: ``*``, ``*tail``, ``!item``, or the subject itself.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.delivery.routing.expansion import ListText, Match
from engine.errors import ConfigError, ExpandError, ForcedFailure, LookupDeferral

_NAME = re.compile(r"\$(\w+)")


@dataclass(slots=True)
class PlainText:
    """A text, and how often it was evaluated, in which threads."""

    source: str
    delay_s: float = 0.0
    evaluated: list[str] = field(default_factory=list)

    @property
    def is_pure(self) -> bool:
        return not self.source.startswith("slow:")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(_NAME.findall(self.source))

    def evaluate(self, scope: Any) -> bytes:
        self.evaluated.append(threading.current_thread().name)
        time.sleep(self.delay_s)
        for word, error in (("FORCED", ForcedFailure), ("DEFER", LookupDeferral), ("ERROR", ExpandError)):
            if word in self.source:
                raise error(f"told to: {word}")
        text = self.source.removeprefix("slow:")
        return _NAME.sub(lambda match: str(scope.get(match[1], "")), text).encode()


@dataclass(slots=True)
class PlainList:
    """A list."""

    text: PlainText

    @property
    def is_pure(self) -> bool:
        return self.text.is_pure

    @property
    def reads(self) -> frozenset[str]:
        return self.text.reads

    @property
    def always(self) -> bool | None:
        return {"*": True, "": False}.get(self.text.source)

    def contains(self, scope: Any, subject: str, address: str = "") -> bool:
        for item in self.text.evaluate(scope).decode().split(":"):
            pattern = item.strip()
            wanted = not pattern.startswith("!")
            pattern = pattern.removeprefix("!")
            if pattern in (subject, address) or (pattern[:1] == "*" and subject.endswith(pattern[1:])):
                return wanted
        return False

    def match(self, scope: Any, domain: str) -> Match | None:
        return Match() if self.contains(scope, domain) else None


class PlainExpander:
    """See the module.  `texts` has all that was compiled, by key."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.texts: dict[str, PlainText] = {}
        self._delay_s = delay_s

    def text(self, source: str, *, key: str) -> PlainText:
        if "BAD" in source:
            raise ConfigError("told to: BAD", key=key, column=source.index("BAD"), source=source)
        self.texts[key] = PlainText(source, self._delay_s)
        return self.texts[key]

    def _list(self, source: ListText, *, key: str) -> PlainList:
        return PlainList(self.text(source if isinstance(source, str) else ":".join(source), key=key))

    domains = local_parts = hosts = _list

    def pattern(self, source: str, *, key: str) -> PlainList:
        return self._list(source, key=key)

    def scope(
        self, base: Any, variables: Mapping[str, str], *, value: bytes | None = None, groups: tuple[bytes, ...] = ()
    ) -> dict[str, str]:
        numbered = {str(number): group.decode() for number, group in enumerate(groups)}
        return {**(base or {}), **variables, **numbered, "value": (value or b"").decode()}

    def expand_again(self, text: bytes, scope: Any) -> bytes:
        return _NAME.sub(lambda match: str(scope.get(match[1], "")), text.decode()).encode()
