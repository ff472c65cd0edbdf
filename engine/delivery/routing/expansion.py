"""The seam between routing and the expansion language.

Layer: orchestration.  Spec: Exim 4 specification 15 (generic router options), 20.2 and 20.4; expansion.md 4.1.
`Expander` is what routing needs; `EngineExpander` fills it with engine.expand.
A pattern of a route_list is expanded as an item of any domain list; the groups of a regular expression are known to the
host list only if its text is the same for every address.
Invariants: everything is compiled once, when the routers are made; what is wrong is a `ConfigError` with key and
column; `reads` names every variable that a text or list may look at, or `UNKNOWN` among them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import ConfigError, ExpandError
from ...expand import ExpandOptions, compile_text
from ...expand.lists import DomainList, HostList, LocalPartList
from ...expand.regexes import Regex, compile_regex
from ...expand.scope import Scope
from ...expand.taint import is_tainted, taint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...expand import Program
    from ...expand.lists import ItemList, NamedLists

ListText = str | tuple[str, ...]

#: stands in `reads` for variables that cannot be named beforehand
UNKNOWN: Final = "*"


class Text(Protocol):
    """A compiled string.  `evaluate` raises ExpandError and what is below it."""

    @property
    def is_pure(self) -> bool: ...
    @property
    def reads(self) -> frozenset[str]: ...
    def evaluate(self, scope: Any) -> bytes: ...


class Membership(Protocol):
    """A compiled domain, local-part or host list.  `contains` raises ExpandError and what is below it."""

    @property
    def is_pure(self) -> bool: ...
    @property
    def reads(self) -> frozenset[str]: ...
    @property
    def always(self) -> bool | None: ...
    def contains(self, scope: Any, subject: str, address: str = "") -> bool: ...


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern that matched: what a lookup in it gave, and the groups of a regular expression."""

    value: bytes | None = None
    groups: tuple[bytes, ...] = ()


class DomainPattern(Protocol):
    """One item of a domain list.  `match` raises ExpandError and what is below it."""

    @property
    def is_pure(self) -> bool: ...
    @property
    def reads(self) -> frozenset[str]: ...
    def match(self, scope: Any, domain: str) -> Match | None: ...


class Expander(Protocol):
    """Compiles what the configuration of a router holds, and makes the scopes to evaluate it in.

    The compiling methods raise ConfigError with `key` and, where it is known, the column in `source`.
    """

    def text(self, source: str, *, key: str) -> Text: ...
    def domains(self, source: ListText, *, key: str) -> Membership: ...
    def local_parts(self, source: ListText, *, key: str) -> Membership: ...
    def hosts(self, source: ListText, *, key: str) -> Membership: ...
    def pattern(self, source: str, *, key: str) -> DomainPattern: ...
    def scope(
        self, base: Any, variables: Mapping[str, str], *, value: bytes | None = None, groups: tuple[bytes, ...] = ()
    ) -> Any:
        """A scope of its own with `variables` over those of `base` (None: over none)."""

    def expand_again(self, text: bytes, scope: Any) -> bytes:
        """Expand what an expansion gave.  Raises ExpandError, also if text from outside is in it."""


class EngineExpander:
    """The expansion language of the engine.

    Args:
        named: what `+name` means in lists.
    """

    def __init__(self, named: NamedLists | None = None) -> None:
        self._named = named
        self._options = ExpandOptions(lists=named)

    def text(self, source: str, *, key: str) -> Text:
        return self._compile(source, key)

    def domains(self, source: ListText, *, key: str) -> Membership:
        return self._membership(DomainList, source, key)

    def local_parts(self, source: ListText, *, key: str) -> Membership:
        return self._membership(LocalPartList, source, key)

    def hosts(self, source: ListText, *, key: str) -> Membership:
        return self._membership(HostList, source, key)

    def pattern(self, source: str, *, key: str) -> DomainPattern:
        negated = source.startswith("!")
        rest = source[1:].lstrip() if negated else source
        if rest.startswith(("^", "\\N^")):
            # Expanded like all else in a list, so that a digit is \\d there, or \N^…\d…\N: chapter 20.4 writes
            # ^domain(\d+), which Exim takes for a row of the letter d (tests/e2e/test_routing_exim.py)
            text = self._compile(rest, key).program.constant
            if text is not None:
                return _RegexPattern(self._regex(text, key), negated)
        return _ListPattern(self._membership(DomainList, (source,), key))

    def _regex(self, text: bytes, key: str) -> Regex:
        try:
            return compile_regex(text, caseless=True)
        except ExpandError as error:
            raise ConfigError(error.message, key=key) from None

    def scope(
        self, base: Any, variables: Mapping[str, str], *, value: bytes | None = None, groups: tuple[bytes, ...] = ()
    ) -> Scope:
        scope: Scope = Scope() if base is None else copy.copy(base)
        scope.variables = {**scope.variables, **variables}
        scope.value = value
        # the groups are parts of a domain somebody else wrote
        scope.groups = tuple(taint(group) for group in groups)
        return scope

    def expand_again(self, text: bytes, scope: Any) -> bytes:
        if b"$" not in text and b"\\" not in text:
            return bytes(text)
        if is_tainted(text):
            raise ExpandError(f"attempt to expand tainted string '{text.decode('utf-8', 'surrogateescape')}'")
        return compile_text(text, options=self._options).evaluate(scope)

    def _compile(self, source: str, key: str) -> _MarkedText:
        try:
            return _MarkedText(compile_text(source, options=self._options))
        except ExpandError as error:
            raise ConfigError(error.message, key=key, column=_column(source, error.column), source=source) from None

    def _membership(self, kind: type[ItemList], source: ListText, key: str) -> _ListMembership:
        try:
            compiled = kind.compile(source, named=self._named)
        except ExpandError as error:
            column = _column(source, error.column) if isinstance(source, str) else None
            shown = source if isinstance(source, str) and column is not None else None
            raise ConfigError(error.message, key=key, column=column, source=shown) from None
        return _ListMembership(compiled, self._list_reads(kind, source, key))

    def _list_reads(self, kind: type[ItemList], source: str | Sequence[str | bytes], key: str) -> frozenset[str]:
        """The variables that a list looks at; named lists with variables in them count as `UNKNOWN`."""
        reads: frozenset[str] = frozenset()
        for item in (source,) if isinstance(source, str) else source:
            text = item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else item
            if "$" in text:
                reads |= self._compile(text, key).reads
            if "+" in text and self._has_variables(kind):
                reads |= {UNKNOWN}
        return reads

    def _has_variables(self, kind: type[ItemList]) -> bool:
        if self._named is None:
            return False
        tables = {DomainList: self._named.domains, HostList: self._named.hosts, LocalPartList: self._named.local_parts}
        texts = (
            text for value in tables[kind].values() for text in ([value] if isinstance(value, str | bytes) else value)
        )
        return any(("$" if isinstance(text, str) else b"$") in text for text in texts)  # type: ignore[operator]  # both are of one type


def _column(source: str, octets: int | None) -> int | None:
    """The character where an octet offset points to."""
    return None if octets is None else len(source.encode()[:octets].decode("utf-8", "ignore"))


@dataclass(frozen=True, slots=True)
class _MarkedText:
    """A program; its result remembers whether text from outside is in it."""

    program: Program

    @property
    def is_pure(self) -> bool:
        return self.program.is_pure

    @property
    def reads(self) -> frozenset[str]:
        # ${randint:…} reads nothing, and is another number each time all the same
        return self.program.reads | {UNKNOWN} if b"randint" in self.program.source else self.program.reads

    def evaluate(self, scope: Scope) -> bytes:
        return self.program.evaluate(scope)


@dataclass(frozen=True, slots=True)
class _ListMembership:
    items: Any
    reads: frozenset[str]

    @property
    def is_pure(self) -> bool:
        return bool(self.items.is_pure)

    @property
    def always(self) -> bool | None:
        return self.items.always  # type: ignore[no-any-return]  # one of three classes with the same attribute

    def contains(self, scope: Any, subject: str, address: str = "") -> bool:
        if isinstance(self.items, HostList):
            return self.items.matches(name=subject, address=address, scope=scope)
        return bool(self.items.matches(subject, scope))


@dataclass(frozen=True, slots=True)
class _ListPattern:
    membership: _ListMembership

    @property
    def is_pure(self) -> bool:
        return self.membership.is_pure

    @property
    def reads(self) -> frozenset[str]:
        return self.membership.reads

    def match(self, scope: Any, domain: str) -> Match | None:
        found = self.membership.items.match(domain, scope)
        return None if found is None else Match(found or None)


@dataclass(frozen=True, slots=True)
class _RegexPattern:
    regex: Regex
    negated: bool
    is_pure: bool = True
    reads: frozenset[str] = frozenset()

    def match(self, scope: Any, domain: str) -> Match | None:
        found = self.regex.search(domain.encode())
        if self.negated:
            return Match() if found is None else None
        return None if found is None else Match(None, found)
