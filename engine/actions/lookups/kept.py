"""Results that stand for a later lookup with the same text.

Layer: adapter.  Spec: expansion 5.2.
Invariants: number, octets and age of what is kept are bounded; the ones kept longest go first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .driver import Result

#: results kept, octets of one with its query, and of all (arbitrary)
MAX_KEPT: Final = 1024
MAX_OCTETS: Final = 64 * 1024
MAX_TOTAL_OCTETS: Final = 8 * 1024 * 1024
#: seconds a result without a lifetime of its own is kept at most (arbitrary)
MAX_AGE_S: Final = 60.0

#: type of the lookup, its options, the query
Place = tuple[str, tuple[tuple[str, bytes], ...], bytes]


class KeptResults:
    """Results by place.

    Args:
        monotonic: a clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._kept: OrderedDict[Place, tuple[float, int, Result | None]] = OrderedDict()
        self._octets = 0

    def get(self, place: Place) -> tuple[Result | None] | None:
        """The result in a tuple ("not found" is one too), or None."""
        known = self._kept.get(place)
        if known is None:
            return None
        expires_at, _, result = known
        if self._monotonic() >= expires_at:
            self._drop(place)
            return None
        return (result,)

    def put(self, place: Place, result: Result | None) -> None:
        """Keep a result, unless it is too long or says that it is not to be kept."""
        self._drop(place)
        octets = len(place[2])
        age_s = MAX_AGE_S
        if result is not None:
            octets += len(result.value)
            if not result.cacheable:
                return
            if result.ttl_s is not None:
                age_s = min(age_s, result.ttl_s)
        if octets > MAX_OCTETS or age_s <= 0:
            return
        self._kept[place] = self._monotonic() + age_s, octets, result
        self._octets += octets
        while len(self._kept) > MAX_KEPT or self._octets > MAX_TOTAL_OCTETS:
            self._drop(next(iter(self._kept)))

    def forget_type(self, name: str) -> None:
        """Drop the results of one type of lookup."""
        for place in [place for place in self._kept if place[0] == name]:
            self._drop(place)

    def forget(self) -> None:
        """Drop all."""
        self._kept.clear()
        self._octets = 0

    def __len__(self) -> int:
        return len(self._kept)

    def _drop(self, place: Place) -> None:
        known = self._kept.pop(place, None)
        if known is not None:
            self._octets -= known[1]
