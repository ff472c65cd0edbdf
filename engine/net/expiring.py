"""A store of things that hold for a while, and of no more of them than it may keep.

Layer: adapter (no I/O).  Spec: none; `Resolver` keeps answers in it, `RouterChain` keeps routes.
It is a plain dictionary, in the order of use: an ordered one takes a hundred octets more for each key, which is as much
as what is kept of most domains.  A dictionary finds its first key by going over those that were taken out before it; so
a large store makes room for many at once, and each removal still takes the same time however much is kept.
Invariants: nothing is given out after its time; the units of what is kept never exceed the bound; what was used
longest ago goes first.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")

#: the part of a store that makes room at once, so that going over it is shared by so many removals
_SHARE: Final = 64


class Expiring(Generic[K, V]):
    """Keys with values and a time to live.

    Args:
        units: most that is kept; a value counts as one or, when it is large, as several.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, units: int, clock: Callable[[], float]) -> None:
        self.used_units = 0
        self._units = units
        self._clock = clock
        self._kept: dict[K, tuple[float, V]] = {}
        #: the units of those that count as several
        self._large: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get_or_none(self, key: K) -> V | None:
        """The value, if it is here and its time is not over."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if kept[0] <= self._clock():
            self._release(key)
            return None
        self._kept[key] = kept
        return kept[1]

    def seconds_left(self, key: K) -> float:
        """How much longer a value holds that `get_or_none` has just given."""
        return self._kept[key][0] - self._clock()

    def put(self, key: K, value: V, ttl_s: float, units: int = 1) -> None:
        """Keep a value for `ttl_s` seconds, or not at all if that is no time; it replaces what was there."""
        self.discard(key)
        if ttl_s <= 0:
            return
        self._kept[key] = self._clock() + ttl_s, value
        if units != 1:
            self._large[key] = units
        self.used_units += units
        if self.used_units > self._units:
            self._make_room()

    def _make_room(self) -> None:
        first = list(islice(self._kept, len(self._kept) // _SHARE + 1))
        for key in first:
            self.discard(key)
        while self.used_units > self._units:
            self.discard(next(iter(self._kept)))

    def discard(self, key: K) -> None:
        """Forget a key, whether it is here or not."""
        if self._kept.pop(key, None) is not None:
            self._release(key)

    def _release(self, key: K) -> None:
        self.used_units -= self._large.pop(key, 1) if self._large else 1

    def clear(self) -> None:
        self._kept.clear()
        self._large.clear()
        self.used_units = 0
