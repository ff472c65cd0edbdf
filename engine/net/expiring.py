"""A store of things that hold for a while, and of no more of them than it may keep.

Layer: adapter (no I/O).  Spec: none; `Resolver` keeps answers in it, `RouterChain` keeps routes.
Invariants: nothing is given out after its time; the units of what is kept never exceed the bound; what was used
longest ago goes first.  Every operation takes the same time however much is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")


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
        self._kept: OrderedDict[K, tuple[float, V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get_or_none(self, key: K) -> V | None:
        """The value, if it is here and its time is not over."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept[0] <= self._clock():
            self.discard(key)
            return None
        self._kept.move_to_end(key)
        return kept[1]

    def seconds_left(self, key: K) -> float:
        """How much longer a value holds that `get_or_none` has just given."""
        return self._kept[key][0] - self._clock()

    def put(self, key: K, value: V, ttl_s: float, units: int = 1) -> None:
        """Keep a value for `ttl_s` seconds, or not at all if that is no time; it replaces what was there."""
        self.discard(key)
        if ttl_s <= 0:
            return
        self._kept[key] = (self._clock() + ttl_s, value, units)
        self.used_units += units
        while self.used_units > self._units:
            self.discard(next(iter(self._kept)))

    def discard(self, key: K) -> None:
        """Forget a key, whether it is here or not."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used_units -= kept[2]

    def clear(self) -> None:
        self._kept.clear()
        self.used_units = 0
