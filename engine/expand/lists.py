"""Domain, host, address and local-part lists: which subject is in which list.

Layer: sans-I/O.  Spec: expansion.md 4.1, 1.7 (X-21, X-22).
A list is text with separators or a sequence with an item each.  An item that has a `$` or a backslash is an expansion;
it is expanded for each match and its result is a list of its own.  Items are tried left to right, the first that
matches decides; `!` before it makes the answer no.  When none matches the answer is no, unless the last item began
with `!`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..errors import ExpandError, ForcedFailure, LookupDeferral
from . import patterns
from .listsplit import split_list
from .regexes import text as as_text
from .taint import Tainted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .patterns import Pattern, Subject
    from .program import Program
    from .scope import Scope

__all__ = ["AddressList", "DomainList", "HostList", "ItemList", "LocalPartList", "NamedLists", "split_list"]

ListText = str | bytes | Sequence[str | bytes]
#: how deep named lists may stand in named lists
NESTING_LIMIT = 20
#: items of a list that is faster looked through than looked up in
_PLAIN_LIMIT = 24


@dataclass(frozen=True, slots=True)
class NamedLists:
    """The lists that `+name` means, by kind; a value is a list as text or as a sequence."""

    domains: Mapping[str, ListText] = field(default_factory=dict)
    hosts: Mapping[str, ListText] = field(default_factory=dict)
    addresses: Mapping[str, ListText] = field(default_factory=dict)
    local_parts: Mapping[str, ListText] = field(default_factory=dict)

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True, slots=True)
class _Item:
    negated: bool
    #: what decides: a pattern, a list of the same kind, or a text to expand first
    test: Pattern | ItemList | Program
    source: bytes


class _Index:
    """Finds the first item that matches in a list of names and `*tails`, however long it is."""

    __slots__ = ("_exact", "_items", "_tails")

    def __init__(self, items: tuple[_Item, ...], exact: dict[bytes, int], tails: list[tuple[int, bytes]]) -> None:
        # a tuple of each item alone, and nothing behind the last
        self._items: list[tuple[_Item, ...]] = [*((item,) for item in items), ()]
        self._exact = exact
        self._tails = tails

    @classmethod
    def of(cls, items: tuple[_Item, ...]) -> _Index | None:
        """An index of the items, or None when one of them is something else or negated."""
        exact: dict[bytes, int] = {}
        tails: list[tuple[int, bytes]] = []
        for place, item in enumerate(items):
            if item.negated or not isinstance(item.test, patterns.Exact | patterns.Tail):
                return None
            if isinstance(item.test, patterns.Exact):
                exact.setdefault(item.test.folded, place)
            else:
                tails.append((place, item.test.tail))
        return cls(items, exact, tails)

    def first(self, folded: bytes) -> tuple[_Item, ...]:
        """The first item that matches a subject in lower case, alone, or nothing."""
        found = self._exact.get(folded, len(self._items) - 1)
        for place, tail in self._tails:
            if place > found:
                break
            if folded.endswith(tail):
                found = place
                break
        return self._items[found]


class ItemList:
    """A compiled list; see the four kinds below.

    Attributes:
        is_pure: no item needs a lookup, so matching never blocks.
        always: True when every subject matches, False when none does, None when it depends.
        source: the text, for messages.
    """

    kind: ClassVar[str] = ""
    #: whether a match sets `$0`, `$1` … in a condition
    sets_groups: ClassVar[bool] = False
    __slots__ = ("_index", "_items", "_named", "always", "is_pure", "source")

    def __init__(self, items: tuple[_Item, ...], named: NamedLists | None, source: bytes) -> None:
        self._items = items
        self._named = named
        self.source = source
        self.is_pure: bool = all(item.test.is_pure for item in items)
        self.always = self._fixed_answer()
        self._index = _Index.of(items)

    def _fixed_answer(self) -> bool | None:
        if not self._items:
            return False
        first = self._items[0]
        if isinstance(first.test, patterns.Anything):
            return not first.negated
        return None

    @classmethod
    def compile(cls, text: ListText, *, named: NamedLists | None = None) -> Self:
        """Compile a list.

        Args:
            text: one string with separators, or a sequence with an item each.
            named: what `+name` means.

        Raises:
            ExpandError: an item cannot be used; `column` is its place when `text` is one string.
        """
        return cls._compile(text, named, 0)

    @classmethod
    def _compile(cls, text: ListText, named: NamedLists | None, depth: int) -> Self:
        if isinstance(text, str | bytes):
            source = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
            if b"$" in source or b"\\" in source:
                return cls((cls._expansion(source, named),), named, source)
            return cls.of_items(split_list(source), named, source, depth)
        items: list[_Item] = []
        pieces = [item.encode("utf-8", "surrogateescape") if isinstance(item, str) else item for item in text]
        for piece in pieces:
            if b"$" in piece or b"\\" in piece:
                items.append(cls._expansion(piece, named))
            else:
                items.append(cls._item(piece.strip(), named, depth))
        return cls(tuple(items), named, b" : ".join(pieces))

    @classmethod
    def of_items(cls, items: Sequence[bytes], named: NamedLists | None, source: bytes, depth: int = 0) -> Self:
        """A list of items that are not expanded any more."""
        compiled = []
        at = 0
        for item in items:
            at = max(source.find(item, at), 0)
            try:
                compiled.append(cls._item(item, named, depth))
            except ExpandError as error:
                if error.column is None:
                    error.column = at
                raise
            at += len(item)
        return cls(tuple(compiled), named, source)

    @classmethod
    def _expansion(cls, source: bytes, named: NamedLists | None) -> _Item:
        from . import ExpandOptions, compile_text  # noqa: PLC0415  # the compiler knows lists, too

        return _Item(False, compile_text(source, options=ExpandOptions(lists=named)), source)

    @classmethod
    def _item(cls, item: bytes, named: NamedLists | None, depth: int) -> _Item:
        source = item
        negated = item.startswith(b"!")
        if negated:
            item = item[1:].lstrip()
        if item.startswith(b"+"):
            return _Item(negated, cls._named_list(item, named, depth), source)
        return _Item(negated, cls._pattern(item, named, depth), item if negated else source)

    @classmethod
    def _named_list(cls, item: bytes, named: NamedLists | None, depth: int) -> ItemList:
        name = as_text(item[1:])
        table: Mapping[str, ListText] = getattr(named, _TABLES[cls.kind]) if named is not None else {}
        if name not in table:
            raise ExpandError(f'unknown named {cls.kind} list "+{name}"')
        if depth >= NESTING_LIMIT:
            raise ExpandError(f'named {cls.kind} list "+{name}" is nested too deep')
        return cls._compile(table[name], named, depth + 1)

    @classmethod
    def _pattern(cls, item: bytes, named: NamedLists | None, depth: int) -> Pattern:
        raise NotImplementedError

    def plain_rows(self) -> tuple[tuple[Any, ...], ...] | None:
        """The items of a list that is short and has nothing but names and `*tails`, each a `PlainRow`; else None."""
        if len(self._items) > _PLAIN_LIMIT:
            return None
        rows = []
        for item in self._items:
            if item.negated or not isinstance(item.test, patterns.Pattern):
                return None
            row = patterns.plain_row(item.test, item.source, address=self.kind == "address")
            if row is None:
                return None
            rows.append(tuple(row))
        return tuple(rows)

    def shown(self, subject: Subject, scope: Scope | None) -> bytes | None:
        """What `$value` becomes in a condition: lookup data, else the item that matched; None for no match.

        `$0`, `$1` … of the scope become the parts that wildcards and regular expressions stand for.
        """
        return self._match(subject, scope, show=True, groups=self.sets_groups)

    def found(self, subject: Subject, scope: Scope | None) -> bytes | None:
        """Lookup data, nothing for another match, None for no match."""
        return self._match(subject, scope)

    def _match(
        self, subject: Subject, scope: Scope | None, *, show: bool = False, groups: bool = False
    ) -> bytes | None:
        """The value of the match (lookup data, or nothing worth having), or None.

        Args:
            show: where there is no lookup data, the item that matched instead.
            groups: whether to set `$0`, `$1` …
        """
        negated = False
        items = self._items
        if self._index is not None and subject.folded is not None:
            items = self._index.first(subject.folded)
        for item in items:
            negated = item.negated
            test = item.test
            if isinstance(test, patterns.Pattern):
                found = test.match(subject, scope)
                if found is not None and show:
                    found = test.shown(item.source, found)
                    if groups and scope is not None:
                        scope.groups = test.groups(subject)
            elif isinstance(test, ItemList):
                found = test._match(subject, scope, show=show, groups=groups)
            else:
                expanded = self._expanded(test, scope)
                found = None if expanded is None else expanded._match(subject, scope, show=show, groups=groups)
            if found is not None:
                return None if negated else found
        return b"" if negated else None

    def _expanded(self, program: Program, scope: Scope | None) -> ItemList | None:
        try:
            result = program.evaluate(_EMPTY_SCOPE() if scope is None else scope)
        except ForcedFailure:
            return None
        except LookupDeferral:
            raise
        if isinstance(result, Tainted):
            # what comes from outside may be looked for in a list, never be one
            raise ExpandError(f"attempt to use tainted string '{as_text(result)}' for list")
        return _compiled(type(self), bytes(result), self._named)  # type: ignore[arg-type]  # classes do hash


@functools.lru_cache(maxsize=1024)
def _compiled(kind: Any, text: bytes, named: NamedLists | None) -> ItemList:
    return kind.of_items(split_list(text), named, text)  # type: ignore[no-any-return]  # a class of lists


def _EMPTY_SCOPE() -> Scope:
    from .scope import Scope  # noqa: PLC0415  # scope names types of modules that import this one

    return Scope()


def _octets(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


class DomainList(ItemList):
    """Domains: `*`, `*tail`, `^regex`, `name`, `type;lookup`; letters are compared without case."""

    kind = "domain"
    sets_groups = True
    __slots__ = ()

    def match(self, domain: str | bytes, scope: Scope | None = None) -> bytes | None:
        """What the matching lookup gave (empty for other patterns), or None for no match.

        Raises:
            LookupDeferral: a lookup could not be done now.
            ExpandError: an item cannot be expanded or used.
        """
        return self._match(patterns.text_subject(_octets(domain)), scope)

    def matches(self, domain: str | bytes, scope: Scope | None = None) -> bool:
        """Whether `domain` is in the list; raises as `match` does."""
        return self.always if self.always is not None else self.match(domain, scope) is not None

    @classmethod
    def _pattern(cls, item: bytes, named: NamedLists | None, depth: int) -> Pattern:
        return patterns.domain_pattern(item)


class _InNamedList(patterns.Pattern):
    """`+name` behind the @ of an address pattern"""

    __slots__ = ("_items", "is_pure")

    def __init__(self, items: ItemList) -> None:
        self._items = items
        self.is_pure = items.is_pure

    def match(self, subject: Subject, scope: Scope | None) -> bytes | None:
        return self._items._match(subject, scope, show=True)


class LocalPartList(ItemList):
    """Local parts: `*`, `*tail`, `^regex`, `name`, `type;lookup`; letters are compared without case."""

    kind = "local_part"
    sets_groups = True
    __slots__ = ()

    def match(self, local_part: str | bytes, scope: Scope | None = None) -> bytes | None:
        """As `DomainList.match`."""
        return self._match(patterns.text_subject(_octets(local_part)), scope)

    def matches(self, local_part: str | bytes, scope: Scope | None = None) -> bool:
        """Whether `local_part` is in the list; raises as `match` does."""
        return self.always if self.always is not None else self.match(local_part, scope) is not None

    @classmethod
    def _pattern(cls, item: bytes, named: NamedLists | None, depth: int) -> Pattern:
        return patterns.local_part_pattern(item)


class AddressList(ItemList):
    """Addresses: `*`, `*@domain`, `local@pattern`, a domain pattern alone, `@@lookup`, `^regex`; an empty item is the
    null sender."""

    kind = "address"
    __slots__ = ()

    def match(self, address: str | bytes, scope: Scope | None = None) -> bytes | None:
        """As `DomainList.match`."""
        return self._match(patterns.address_subject(_octets(address)), scope)

    def matches(self, address: str | bytes, scope: Scope | None = None) -> bool:
        """Whether `address` is in the list; raises as `match` does."""
        return self.always if self.always is not None else self.match(address, scope) is not None

    @classmethod
    def _pattern(cls, item: bytes, named: NamedLists | None, depth: int) -> Pattern:
        local, at, domain = item.rpartition(b"@")
        if at and local and domain.startswith(b"+"):
            return patterns.LocalAtDomain(local, _InNamedList(DomainList._named_list(domain, named, depth)))
        return patterns.address_pattern(item)


class HostList(ItemList):
    """Hosts by name and address: `*`, `*.tail`, `^regex` and `name` are held against the name, `192.0.2.1`,
    `2001:db8::/32` and `net-type;file` against the address.  A plain name means the host of that name; it is not
    looked up in DNS, because the name of a host we deliver to is known."""

    kind = "host"
    __slots__ = ()

    def match(
        self, *, name: str | bytes | None = None, address: str | bytes | None = None, scope: Scope | None = None
    ) -> bytes | None:
        """As `DomainList.match`; what is None matches no pattern that needs it."""
        name = None if name is None else _octets(name)
        address = None if address is None else _octets(address)
        return self._match(patterns.host_subject(name, address), scope)

    def matches(
        self, *, name: str | bytes | None = None, address: str | bytes | None = None, scope: Scope | None = None
    ) -> bool:
        """Whether the host is in the list; raises as `match` does."""
        return (
            self.always if self.always is not None else self.match(name=name, address=address, scope=scope) is not None
        )

    @classmethod
    def _pattern(cls, item: bytes, named: NamedLists | None, depth: int) -> Pattern:
        return patterns.host_pattern(item)


_TABLES = {"domain": "domains", "host": "hosts", "address": "addresses", "local_part": "local_parts"}
