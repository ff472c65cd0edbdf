"""The answers that a resolver keeps, each for its time and in little room.

Layer: adapter (no I/O).  Spec: RFC 1035 §3.2.1 (TTL), dane-tls R6 (an error is never kept as a denial).
Of an answer its shape is kept: everything but the name that was asked and the seconds that it holds.  Answers with the
same shape, as those of all domains with the same mail hosts and of all that have no MTA-STS, share it.
Invariants: what comes out is what was put in, with what is left of its TTL; `size` bounds the answers, where one of
more than `UNIT_OCTETS` counts as several, so that a cache full of answers made to be large is no larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..policy.answers import Answer
from .expiring import Expiring

if TYPE_CHECKING:
    from collections.abc import Callable

#: name in lower case without trailing dot, and type
Key = tuple[str, str]
#: octets of names and data in an answer that count as one of the size; the usual answer has far less
UNIT_OCTETS: Final = 1024
#: octets that each record takes beside its data; about what CPython needs
_RECORD_OCTETS: Final = 64
#: shapes remembered so that others may share them
_MAX_SHAPES: Final = 4096


class AnswerCache:
    """See the module's text.

    Args:
        size: most answers kept.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._kept: Expiring[Key, Answer] = Expiring(size, clock)
        self._shapes: dict[Answer, Answer] = {}

    @property
    def used_units(self) -> int:
        return self._kept.used_units

    def __contains__(self, key: Key) -> bool:
        return self._kept.get_or_none(key) is not None

    def get_or_none(self, key: Key) -> Answer | None:
        """The answer, to be cached for what is left of its time."""
        shape = self._kept.get_or_none(key)
        if shape is None:
            return None
        return _named(shape, key[0], 0 if shape.is_error else int(self._kept.seconds_left(key)))

    def put(self, key: Key, answer: Answer, ttl_s: float) -> None:
        """Keep an answer for `ttl_s` seconds, or not at all if that is no time."""
        if ttl_s > 0:
            self._kept.put(key, self._shape(answer), ttl_s, 1 + _octets(answer) // UNIT_OCTETS)

    def discard(self, key: Key) -> None:
        self._kept.discard(key)

    def clear(self) -> None:
        self._kept.clear()

    def _shape(self, answer: Answer) -> Answer:
        shape = _shaped(answer)
        known = self._shapes.get(shape)
        if known is not None:
            return known
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        self._shapes[shape] = shape
        return shape


def _shaped(answer: Answer) -> Answer:
    """What an answer is but for its name and the seconds that it holds."""
    return Answer(
        "",
        answer.rdtype,
        answer.status,
        answer.ad,
        answer.is_ad_trusted,
        answer.mx,
        answer.addresses,
        answer.rdata,
        "" if answer.canonical_name == answer.name else answer.canonical_name,
        answer.cnames,
        0,
        answer.extended_error,
        answer.server,
    )


def _named(shape: Answer, name: str, ttl_s: int) -> Answer:
    """The answer of which `shape` is left."""
    return Answer(
        name,
        shape.rdtype,
        shape.status,
        shape.ad,
        shape.is_ad_trusted,
        shape.mx,
        shape.addresses,
        shape.rdata,
        shape.canonical_name or name,
        shape.cnames,
        ttl_s,
        shape.extended_error,
        shape.server,
    )


def _octets(answer: Answer) -> int:
    """About how many octets an answer takes, beside the few that every one does."""
    texts = (*answer.addresses, *answer.rdata, *answer.cnames, answer.extended_error)
    records = len(texts) + len(answer.mx)
    return records * _RECORD_OCTETS + sum(map(len, texts)) + sum(len(mx.exchange) for mx in answer.mx)
