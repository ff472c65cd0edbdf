"""Text from outside, marked as such.

Layer: sans-I/O.  Spec: expansion.md 1.8 (X-24, X-25).
A value that came from outside (an address, a header, an SMTP reply, DNS data) is a `Tainted`; so is text built from it.
`quoter` names the lookup type whose quote operator made the text safe inside a query of that type.
Joining: clean + x = x; quoted for T + quoted for T = quoted for T; any other mix with tainted text is just tainted.
Inside one evaluation the marks are integers beside the slots (engine.expand._evaluate); this class is what crosses
from one evaluation to the next: ACL arguments, `$acl_m_x`, `$value` of an outer item, results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


class Tainted(bytes):
    """Octets from outside; `quoter` is the lookup type they are quoted for, or None.

    What is quoted is of a subclass, one for each quoter: an instance has nothing but its octets, and is cheap.
    """

    __slots__ = ()
    quoter: ClassVar[str | None] = None

    def __reduce__(self) -> tuple[Any, ...]:
        return taint, (bytes(self), self.quoter)


_KINDS: Final[dict[str | None, type[Tainted]]] = {None: Tainted}


def kind_of_taint(quoter: str | None) -> type[Tainted]:
    """The class of tainted text that is quoted for the lookup type `quoter`."""
    kind = _KINDS.get(quoter)
    if kind is None:
        kind = _KINDS[quoter] = type(f"Tainted_{quoter}", (Tainted,), {"__slots__": (), "quoter": quoter})
    return kind


def taint(value: bytes, quoter: str | None = None) -> Tainted:
    """Mark `value` as coming from outside, replacing any mark it has."""
    return Tainted(value) if quoter is None else kind_of_taint(quoter)(value)


def is_tainted(value: object) -> bool:
    """Whether `value` is text from outside, quoted or not."""
    return isinstance(value, Tainted)


def quoter_of(value: object) -> str | None:
    """The lookup type that tainted text is quoted for; None for clean and for unquoted text."""
    return value.quoter if isinstance(value, Tainted) else None


def join(parts: Iterable[bytes]) -> bytes:
    """Concatenate, keeping track of taint and quoting as the rule at the top says."""
    parts = list(parts)
    marked = [part for part in parts if isinstance(part, Tainted) and part]
    text = b"".join(parts)
    if not marked:
        return text
    quoters = {part.quoter for part in marked}
    return taint(text, quoters.pop() if len(quoters) == 1 else None)


def like(value: bytes, *origins: bytes) -> bytes:
    """`value`, tainted when any of the texts it was made from is; quoting does not survive."""
    return taint(value) if any(isinstance(origin, Tainted) for origin in origins) else value
