"""What the expansion language knows of lookups: the table of types, the syntax of one, and the seam to who does them.

Layer: sans-I/O.  Spec: expansion 5.1, 5.2; X-24, X-25.
Input: the text between `lookup` (or the key) and the file or query.  Output: a `Search`, kept by the program.
Invariants: a type that is in the table but not built in reads as unknown in a lookup, as it does in Exim; nothing here
opens, asks or waits.  The `Lookups` of a scope do, and they block: they are called only where blocking is allowed.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from engine.errors import ExpandError, LookupDeferral

if TYPE_CHECKING:
    from collections.abc import Mapping


class Style(enum.Enum):
    """How a type is asked."""

    #: a key in a file or directory: ``${lookup{key}lsearch{/file}}``
    SINGLE_KEY = "single-key"
    #: a query in the type's own language: ``${lookup pgsql{SELECT …}}``
    QUERY = "query"


class Star(enum.Flag):
    """The defaults asked for after the name of a type."""

    NONE = 0
    #: ``*``: the key ``*`` when nothing else matches
    STAR = enum.auto()
    #: ``*@``: before that, ``*@domain`` when the key has an @
    STAR_AT = enum.auto()


@dataclass(frozen=True, slots=True)
class LookupType:
    """A row of the table of lookup types.

    Attributes:
        name: as it is written.
        style: how it is asked.
        quoter: whose quoting its queries need for tainted text (X-25), or None.
        options: what may follow a comma, beside ``cache``.
        built_in: False: the name is known (its `quote_` operator works), a lookup of it is not.
    """

    name: str
    style: Style
    quoter: str | None = None
    options: frozenset[str] = frozenset()
    built_in: bool = True


def _single_key(*names: str, options: str = "", built_in: bool = True) -> list[LookupType]:
    known = frozenset(["ret", *options.split()])
    return [LookupType(name, Style.SINGLE_KEY, options=known, built_in=built_in) for name in names]


def _query(*names: str, quoter: str | None = None, options: str = "", built_in: bool = True) -> list[LookupType]:
    known = frozenset(options.split())
    return [LookupType(name, Style.QUERY, quoter, known, built_in) for name in names]


#: every lookup type by name
LOOKUP_TYPES: Final[Mapping[str, LookupType]] = {
    lookup.name: lookup
    for lookup in (
        *_single_key("lsearch", "wildlsearch", "nwildlsearch", "iplsearch", "cdb", "json"),
        *_single_key("dsearch", options="filter key"),
        *_query("mysql", quoter="mysql", options="servers"),
        *_query("pgsql", quoter="pgsql", options="servers"),
        *_query("redis", quoter="redis", options="servers"),
        *_query("sqlite", quoter="sqlite", options="file"),
        *_query("dnsdb"),
        *_query("passwd"),
        *_single_key("dbm", "dbmnz", "dbmjz", "lmdb", "nis", "nis0", built_in=False),
        *_query("oracle", quoter="oracle", built_in=False),
        *_query("nisplus", quoter="nisplus", built_in=False),
        *_query("ldap", "ldapdn", "ldapm", quoter="ldap", built_in=False),
    )
}


@dataclass(frozen=True, slots=True)
class Search:
    """A lookup type as it is used in one place.

    Attributes:
        type: the row of the table.
        partial: None, or how many components of the key must stay when leading ones are taken off (5.2).
        affix: what stands for the components taken off.
        star: the defaults.
        options: name and value of each option in the order written, ``cache`` left out.
        reads_cache: whether an earlier result may be used.
        writes_cache: whether the result may be used later.
    """

    type: LookupType
    partial: int | None = None
    affix: bytes = b""
    star: Star = Star.NONE
    options: tuple[tuple[str, bytes], ...] = ()
    reads_cache: bool = True
    writes_cache: bool = True

    def option(self, name: str) -> bytes | None:
        """The value of the last option called `name`."""
        for key, value in reversed(self.options):
            if key == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a lookup that found something.

    Attributes:
        value: what ``$value`` becomes.
        tainted: whether it comes from outside (X-24): of the types here, DNS data only.
        groups: ``()``, or what ``$1`` and ``$2`` become: the wild and the fixed part of a partial or default match.
        authenticated: what ``$lookup_dnssec_authenticated`` says; None for a lookup that says nothing about it.
    """

    value: bytes
    tainted: bool = False
    groups: tuple[bytes, ...] = ()
    authenticated: bool | None = None


class SearchDeferral(LookupDeferral):
    """A lookup could not be done now.

    Args:
        subject: the key or the query.
        reason: the driver's words, which other messages than this one's quote too.
    """

    def __init__(self, subject: bytes, reason: str) -> None:
        super().__init__(f'lookup of "{printable(subject)}" gave DEFER: {reason}')
        self.reason = reason


class Lookups(Protocol):
    """Who does the lookups of a scope.  Every call may block for as long as the timeouts of its drivers add up to."""

    def find(
        self,
        search: Search,
        *,
        key: bytes | None,
        text: bytes,
        tainted: bool = False,
        quoted_for: str | None = None,
        text_tainted: bool = False,
        cached: bool = True,
        scope: object = None,
    ) -> Found | None:
        """Do one lookup.

        Args:
            search: what `parse_type` made of the type.
            key: the key of a single-key lookup, None for a query.
            text: the file name of a single-key lookup, or the query.
            tainted: whether the key or the query has text from outside.
            quoted_for: the quoter all of that text went through (`quoting.quoter_name`), if it was one and the same.
            text_tainted: whether the file name has text from outside; it is refused then.
            cached: False where each evaluation must reach the server.
            scope: what the strings inside a wildlsearch file are expanded with.

        Returns:
            What was found, or None.  An empty key or query finds nothing.

        Raises:
            SearchDeferral: it cannot be told now: the server is down or refuses the query.
            ExpandError: it can never be told: no such file, a tainted file name, a tainted query without quoting.
        """


_PRINTED: Final = {7: r"\a", 8: r"\b", 9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r", 92: r"\\"}


def printable(text: bytes) -> str:
    """`text` with what does not print as backslash escapes, as Exim shows a key or query in a message."""
    return "".join(
        chr(octet) if 32 <= octet < 127 and octet != 92 else _PRINTED.get(octet, f"\\{octet:03o}") for octet in text
    )


_PARTIAL: Final = re.compile(rb"partial(\d*)(?:-|\(([!-/:-@\[-`{-~]*?)\))", re.DOTALL)
_MAX_PARTIAL: Final = 1000  # a domain has at most 127 labels; more digits than that are not a number worth keeping
_VALUES: Final = {"ret": (b"key", b"full"), "filter": (b"file", b"dir", b"subdir"), "key": (b"path",)}
_CACHE: Final = {b"no": (False, False), b"no_rd": (False, True), b"no_wr": (True, False)}


def parse_type(text: bytes, *, has_key: bool | None) -> Search:
    """Parse the type of a lookup: ``partial2-lsearch*@,ret=key``.

    Args:
        text: everything but white space and `{` between the key and the file or query.
        has_key: whether a ``{key}`` stood before it; None in a list pattern, where nobody can tell.

    Raises:
        ExpandError: with the text Exim gives.
    """
    if not text:
        raise ExpandError("missing lookup type")
    partial, affix, rest = None, b"", text
    if text.startswith(b"partial"):
        match = _PARTIAL.match(text)
        if not match:
            raise ExpandError(f'format error in lookup type "{printable(text)}"')
        partial = min(int(match[1][:4]), _MAX_PARTIAL) if match[1] else 2
        affix = b"*." if match[2] is None else match[2]
        rest = text[match.end() :]
    full = rest
    name, star_text, after = rest.partition(b"*")
    star = Star.NONE
    if star_text:
        star = Star.STAR | Star.STAR_AT if after.startswith(b"@") else Star.STAR
        rest = b"," + after.partition(b",")[2]
    else:
        name, _, rest = rest.partition(b",")
        rest = b"," + rest
    lookup = LOOKUP_TYPES.get(name.decode("latin-1"))
    if lookup is None or not lookup.built_in:
        raise ExpandError(f'unknown lookup type "{printable(name)}"')
    if lookup.style is Style.QUERY:
        if partial is not None:
            shown = printable(full.partition(b",")[0])
            raise ExpandError(f'"partial" is not permitted for lookup type "{shown}"')
        if star is not Star.NONE:
            raise ExpandError(f'defaults using "*" or "*@" are not permitted for lookup type "{printable(full)}"')
        if has_key:
            raise ExpandError(
                f'a single key was given for lookup type "{printable(text)}", which is not a single-key lookup type'
            )
    elif has_key is False:
        raise ExpandError(f'missing {{key}} for single-key "{printable(text)}" lookup')
    options, reads_cache, writes_cache = _parse_options(lookup, rest[1:])
    return Search(lookup, partial, affix, star, options, reads_cache, writes_cache)


def _parse_options(lookup: LookupType, text: bytes) -> tuple[tuple[tuple[str, bytes], ...], bool, bool]:
    options: list[tuple[str, bytes]] = []
    reads_cache = writes_cache = True
    for item in filter(None, text.split(b",")):
        name, _, value = item.partition(b"=")
        if name == b"cache" and value in _CACHE:
            reads, writes = _CACHE[value]
            reads_cache &= reads
            writes_cache &= writes
        elif (known := name.decode("latin-1")) in lookup.options and value in _VALUES.get(known, (value,)):
            options.append((known, value))
        else:
            # Exim ignores what it does not know; a misspelt `cache=no` or `servers=` is worth an error instead
            raise ExpandError(f'unknown option "{printable(item)}" for lookup type "{lookup.name}"')
    return tuple(options), reads_cache, writes_cache
