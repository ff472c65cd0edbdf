"""What every lookup driver is: the seam between the registry and one type of lookup.

Layer: adapter.  Spec: expansion 5.
Invariants: a driver blocks, with a deadline; it is used from one thread at a time; it raises `Deferral` or `Failure`
and nothing else on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.expand.searches import LookupType, Search

#: octets of one result; what is longer is refused, since it would be copied many times (arbitrary)
MAX_RESULT_OCTETS: Final = 8 * 1024 * 1024
#: seconds after which a transaction of many statements is committed with what it has, since it holds locks
TOGETHER_S: Final = 0.5


class Deferral(EngineError):
    """The server or file cannot answer now; the text is what Exim shows after ``DEFER: ``."""


class Failure(EngineError):
    """The lookup can never be done as it stands (no such file); the text is the whole message."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a driver found.

    Attributes:
        value: the text of the result.
        cacheable: False: not to be kept even when the query only reads.
        ttl_s: seconds it may be kept, or None for as long as the cache likes.
        authenticated: whether DNSSEC proved it; None for what is no DNS data.
    """

    value: bytes
    cacheable: bool = True
    ttl_s: float | None = None
    authenticated: bool | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far statements came that were to be committed together.

    Attributes:
        done: units from the first one on that are committed; nothing is left of the others, unless it is in doubt.
        failed: the unit that cannot be done, where that is known; none was tried behind it.
        reason: why not all are done; empty where it only took too long for one transaction.
        is_in_doubt: the server was told to commit and did not answer, so that the others may be done too.
    """

    done: int
    failed: int | None = None
    reason: str = ""
    is_in_doubt: bool = False


class KeyDriver(Protocol):
    """A single-key type: looks a key up in a file or directory."""

    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        """The data of `key`, or None."""


class QueryDriver(Protocol):
    """A query-style type."""

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        """The result of `query`, or None when it found nothing."""

    def is_cacheable(self, query: bytes) -> bool:
        """Whether a result of this query, also "not found", may stand for a later one."""

    def close(self) -> None:
        """Close connections and files; the driver can be used again and opens new ones."""


@dataclass(frozen=True, slots=True)
class Template:
    """A statement whose literals change.

    Attributes:
        pieces: what stands between them.
        quoted: makes the inside of a literal of a value.
        text: with ``$1``, ``$2`` … in place of them.
    """

    pieces: tuple[bytes, ...]
    quoted: Callable[[bytes], bytes]
    text: bytes = b""

    def filled(self, values: Sequence[bytes]) -> bytes:
        """With literals."""
        literals = (b"'" + self.quoted(value) + b"'" for value in values)
        return self.pieces[0] + b"".join(
            literal + piece for literal, piece in zip(literals, self.pieces[1:], strict=True)
        )


class Statement(NamedTuple):
    """A statement that is ready to be done.

    Attributes:
        values: of ``$1``, ``$2`` …; None: the text is all there is.
        types: of the values, as PostgreSQL numbers them; (): it finds out.
        template: what to fill where the server does not take the values by themselves.
    """

    text: bytes
    values: Sequence[bytes | None] | None = None
    types: tuple[int, ...] = ()
    template: Template | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A lookup in a program whose query became a template: instead of the query it is asked its values, NUL between."""

    search: Search
    template: Template

    @property
    def type(self) -> LookupType:
        """Of the lookup."""
        return self.search.type


#: statements, one or more, that are done together or not at all
Unit = tuple[Statement, ...]


class TogetherDriver(QueryDriver, Protocol):
    """A query-style type whose statements can share a transaction."""

    def postpone(self, search: Search, query: bytes, *, tainted: bool) -> tuple[str, bytes] | None:
        """The server that `ask` would ask first, and the statement for it; None if it should have its own transaction.

        Raises:
            Deferral, Failure: as `ask`.
        """

    def run_together(self, server: str, units: Sequence[Unit]) -> Progress:
        """Run units of what `postpone` gave in order, as one transaction, whose results nobody reads.

        One that has taken a while is committed with what it has, and the rest is left.
        """


def bounded(value: bytes) -> bytes:
    """`value`, unless it is too long to be handed on.

    Raises:
        Deferral: it is.
    """
    if len(value) > MAX_RESULT_OCTETS:
        raise Deferral(f"result of more than {MAX_RESULT_OCTETS} octets")
    return value
