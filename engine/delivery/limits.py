"""Limits on connections and rates, kept by all engines of one queue together.

Layer: orchestration.  Spec: bulk-sending section 6, rows 1 and 3: limits hold for the host, whoever sends to it, and a
limit that is reached tells when to wake up; queue/_limits.py says how engines share them and why in that way.

An engine that is alone asks nobody: `has_room` is a comparison, `Meter.try_take` an addition, and the only cost is a
look at one row of the queue four times a second.  When another engine comes, this one says what it has open, and from
then on what it may have is what the store grants.  The pool asks as before; where it is told that there is no room, the
place is asked for in the next exchange with the store, and the pool hears of what it got.
Invariants: what is open at a place and what is about to be opened is counted from before the connection is begun until
after it is closed; while a place is being asked for, nothing is opened there; a token is used once, by one engine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from ..queue.limits import LOST_S, SEEN_S, Want, reserve
from ..queue.store import QueueFull, QueueLocked

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..queue.store import Engine
    from ..values import Rate
    from .settlement import StoreThread

#: name, address and port of a host
Place = tuple[str, str, int]
#: all hosts together: `max_connections`
EVERYWHERE: Final[Place] = ("", "", 0)
#: seconds between looks at what other engines want, or whether there are any
LOOK_S: Final = 0.25
#: seconds to wait for an engine that says it is alone, and does not see that it is not
GRACE_S: Final = 10.0
#: seconds before its end at which a grant is taken for over
_MARGIN_S: Final = 30.0
#: seconds' worth of tokens that are reserved at one time among several engines
_AHEAD_S: Final = 0.5
#: meters kept; a meter that is at rest is forgotten first
_MAX_METERS: Final = 20_000


class Meter:
    """The tokens of one rate at one host, as far as this engine has them; time is UTC epoch seconds.

    Attributes:
        name: what the store knows the rate by.
        changed: set, and made anew, when tokens have come from the store.
    """

    __slots__ = ("_is_asked", "_is_shared", "_left", "_next_at", "_notify", "_spare", "changed", "name", "rate")

    def __init__(self, name: str, rate: Rate, notify: Callable[[Meter], None], *, is_shared: bool) -> None:
        self.name = name
        self.rate = rate
        self.changed = trio.Event()
        self._notify = notify
        self._is_shared = is_shared
        self._next_at = 0.0
        #: tokens of ours from `_next_at` on; not counted while we are alone, when all of them are
        self._left = 0
        #: when the first token of the block behind them is good
        self._spare: float | None = None
        self._is_asked = False

    def try_take(self, now: float) -> bool:
        """Take a token that is good now; False if there is none."""
        if self.wait_s(now) > 0:
            return False
        if self._is_shared:
            self._next_at += self.rate.interval_s
            self._left -= 1
        else:
            _, self._next_at = reserve(self._next_at, now, 1, self.rate)
        return True

    def wait_s(self, now: float) -> float:
        """Seconds until there is a token, 0 if there is one; infinite until the store has given an answer."""
        if not self._is_shared:
            # further ahead than that only where the clock was set back, or engines that are gone had reserved some
            self._next_at = min(self._next_at, now + self.rate.interval_s)
            return max(0.0, reserve(self._next_at, now, 1, self.rate)[0] - now)
        self._drop_void(now)
        if self._left * 2 <= self.block and self._spare is None and not self._is_asked:
            if self._left and self.block == 1:
                return max(0.0, self._next_at - now)  # one at a time is not reserved before the last one is gone
            self._is_asked = True
            self._notify(self)
        return max(0.0, self._next_at - now) if self._left else math.inf

    def _drop_void(self, now: float) -> None:
        """Forget tokens that came too early to be used still, and go on to the next block when one is gone."""
        while True:
            void = math.ceil((now - self.rate.memory_s - self._next_at) / self.rate.interval_s)
            if self._left and void > 0:
                void = min(void, self._left)
                self._left -= void
                self._next_at += void * self.rate.interval_s
            if self._left or self._spare is None:
                return
            self._next_at, self._left, self._spare = self._spare, self.block, None

    @property
    def block(self) -> int:
        """Tokens that are reserved at one time."""
        return max(1, math.ceil(_AHEAD_S / self.rate.interval_s))

    def give(self, first_at: float) -> None:
        """The store has reserved a block, of which the first token is good at `first_at`."""
        if not self._is_asked:
            return  # we have become alone meanwhile
        self._is_asked = False
        self._spare = first_at
        self._tell()

    async def wait(self, clock: Callable[[], float]) -> None:
        """Wait until there is a token."""
        while (seconds := self.wait_s(clock())) > 0:
            with trio.move_on_after(seconds):
                await self.changed.wait()

    def is_at_rest(self, now: float) -> bool:
        """Whether it is as good as new."""
        return not self._is_shared and self._next_at <= now - self.rate.memory_s

    def begin_sharing(self) -> float:
        """Ask the store from now on; gives when the next token would have been good."""
        next_at, self._is_shared, self._left = self._next_at, True, 0
        self._tell()
        return next_at

    def end_sharing(self, next_at: float) -> None:
        """All tokens are ours again, from `next_at` on."""
        self._is_shared, self._is_asked, self._spare, self._next_at = False, False, None, next_at
        self._tell()

    def _tell(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


class Limits:
    """What this engine may have open, and how often it may do what has a rate.  See the module's text.

    Args:
        clock: UTC epoch seconds.
        may_be_alone: whether there may be no other engine; False where a parent has started several.

    Attributes:
        is_shared: there are other engines, and the store is asked.
        over: places where more is open than may be, even when what has been told to end has ended.
        count_wanted: how many connections more are wanted at a place; set by the pool, as are
        on_room: called when more may be opened at a place, and
        on_surplus: called when some have to end.
    """

    def __init__(
        self, database: StoreThread, engine: Engine, clock: Callable[[], float], *, may_be_alone: bool = True
    ) -> None:
        self._database = database
        self._owner = engine.owner
        self._clock = clock
        self._may_be_alone = may_be_alone
        #: what is open, or about to be, and the limit it was opened under
        self._open: dict[Place, int] = {}
        self._limits: dict[Place, int] = {}
        #: among several engines: what may be open, and what of it ends soon
        self._granted: dict[Place, int] = {}
        self._leaving: dict[Place, int] = {}
        #: what the next exchange asks for
        self._asked: set[Place] = set()
        self._asked_meters: dict[str, Meter] = {}
        self._meters: dict[str, Meter] = {}
        self._wake = trio.Event()
        #: monotonic second until which an engine that says it is alone is waited for; 0 when there is none any more
        self._grace_until = 0.0
        #: monotonic second at which we said something last
        self._said_at = 0.0
        self.is_shared = False
        self.over: set[Place] = set()
        self.count_wanted: Callable[[Place], int] = lambda _: 0
        self.on_room: Callable[[Place], object] = lambda _: None
        self.on_surplus: Callable[[], object] = lambda: None

    # slots

    def has_room(self, place: Place, limit: int) -> bool:
        """Whether one more connection may be opened; if it may not for the sake of others, it is asked for."""
        count = self._open.get(place, 0)
        if count >= limit:
            return False
        if not self.is_shared or (count < self._granted.get(place, 0) and self._is_in_time()):
            return True
        self._limits[place] = limit
        self._asked.add(place)
        self._wake.set()
        return False

    def _is_in_time(self) -> bool:
        """Whether others still count us, as they do not when this process has slept for long."""
        return trio.current_time() < self._said_at + LOST_S - _MARGIN_S

    def open(self, place: Place, limit: int) -> None:
        """One more connection is about to be opened."""
        self._open[place] = self._open.get(place, 0) + 1
        self._limits[place] = limit

    def close(self, place: Place) -> None:
        """One connection is closed."""
        left = self._open[place] - 1
        if left:
            self._open[place] = left
        else:
            del self._open[place]
            if not self.is_shared:
                del self._limits[place]
        if self.is_shared:
            leaving = self._leaving.pop(place, 0) - 1
            if leaving > 0:
                self._leaving[place] = leaving
            self._check_surplus(place)
            # what is free is given back at the next exchange, if it is not taken again before
            self._asked.add(place)

    @property
    def is_crowded(self) -> bool:
        """Whether this engine has more connections than it may have, all hosts together."""
        return EVERYWHERE in self.over or EVERYWHERE in self._leaving

    def must_leave(self, place: Place) -> bool:
        """Whether a connection to `place` has to end for the sake of other engines; one that is told so does end."""
        if EVERYWHERE in self.over:
            self._let_leave(EVERYWHERE)
        elif place not in self.over:
            return False
        self._let_leave(place)
        return True

    def _let_leave(self, place: Place) -> None:
        self._leaving[place] = self._leaving.get(place, 0) + 1
        self._check_surplus(place)

    def _check_surplus(self, place: Place) -> None:
        if self._open.get(place, 0) - self._leaving.get(place, 0) > self._granted.get(place, 0):
            self.over.add(place)
        else:
            self.over.discard(place)

    # rates

    def meter(self, name: str, rate: Rate) -> Meter:
        """The tokens of a rate; `name` tells the host and what is done there."""
        meter = self._meters.get(name)
        if meter is None or meter.rate != rate:
            if len(self._meters) >= _MAX_METERS:
                self._forget_meters()
            meter = self._meters[name] = Meter(name, rate, self._ask_tokens, is_shared=self.is_shared)
        return meter

    def _forget_meters(self) -> None:
        """Forget those of which everything may be used at once, as of a new one; all if there is none."""
        now = self._clock()
        idle = [name for name, meter in self._meters.items() if meter.is_at_rest(now)]
        for name in idle or list(self._meters):
            del self._meters[name]

    def _ask_tokens(self, meter: Meter) -> None:
        self._asked_meters[meter.name] = meter
        self._wake.set()

    # the exchange with the store

    async def begin(self) -> None:
        """Take part.  Raises StoreError."""
        self.is_shared = await self._database.call(self._join) is None
        if self.is_shared:
            self._grace_until = trio.current_time() + GRACE_S

    def _join(self) -> dict[str, float] | None:
        return self._database.store.join_sharing(self._owner, self._clock(), may_be_alone=self._may_be_alone)

    async def run(self) -> None:
        """Exchange with the store what is wanted and what is granted, until cancelled.  Raises StoreError."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._wake.wait()
            try:
                if not self._wake.is_set():
                    await self._look()
                self._wake = trio.Event()
                has_been_silent = self.is_shared and trio.current_time() >= self._said_at + SEEN_S
                if self._asked or self._asked_meters or has_been_silent:
                    await self._exchange()
            except (QueueLocked, QueueFull):
                await trio.sleep(LOOK_S)  # the settlement tells of it

    async def _look(self) -> None:
        """See whether there are other engines, and what they want that we have."""
        store = self._database.store
        if not self.is_shared:
            if await self._database.call(store.has_other_sharers, self._owner):
                await self._begin_sharing()
            return

        def look() -> tuple[frozenset[str], dict[str, float] | None]:
            wanted = store.wanted_by_others(self._owner)
            is_left = self._may_be_alone and not wanted and not store.has_other_sharers(self._owner)
            return wanted, self._join() if is_left else None

        wanted, known = await self._database.call(look)
        if known is not None:
            self._end_sharing(known)
            return
        for place, limit in self._limits.items():
            may_have_more = self._granted.get(place, 0) < limit and self.count_wanted(place)
            if may_have_more or (wanted and _name(place) in wanted):
                self._asked.add(place)

    async def _begin_sharing(self) -> None:
        """Others have come: say what is open here, and ask from now on."""
        self.is_shared = True
        self._granted = dict(self._open)
        self._said_at = trio.current_time()
        wants = {_name(place): self._want(place) for place in self._open}
        rates = {name: meter.begin_sharing() for name, meter in self._meters.items()}
        try:
            await self._database.call(self._database.store.begin_sharing, self._owner, wants, rates, self._clock())
        except BaseException:
            # others have not heard of it: they wait for us still
            self._end_sharing(rates)
            raise
        self._asked |= self._open.keys()

    def _end_sharing(self, rates: dict[str, float]) -> None:
        """Everything is ours again."""
        self.is_shared = False
        places = list(self._limits)
        self._limits = {place: self._limits[place] for place in self._open}
        for kept in (self._granted, self._leaving, self.over, self._asked, self._asked_meters):
            kept.clear()
        for name, meter in self._meters.items():
            meter.end_sharing(rates.get(name, 0.0))
        for place in places:
            self.on_room(place)

    async def _exchange(self) -> None:
        asked, self._asked = self._asked, set()
        meters, self._asked_meters = self._asked_meters, {}
        for place in asked:
            # nothing more is opened there until the answer has come
            self._granted[place] = min(self._granted.get(place, 0), self._open.get(place, 0))
        wants = {_name(place): self._want(place) for place in asked}
        asks = {name: (meter.rate, meter.block) for name, meter in meters.items()}
        asked_at = trio.current_time()
        must_wait = asked_at < self._grace_until
        try:
            answer = await self._database.call(self._ask_store, wants, asks, must_wait)
        except BaseException:
            self._asked |= asked
            self._asked_meters = {**meters, **self._asked_meters}
            raise
        if answer is None:
            self._asked |= asked
            self._asked_meters = {**meters, **self._asked_meters}
            await trio.sleep(LOOK_S / 4)
            self._wake.set()
            return
        self._grace_until, self._said_at = 0.0, asked_at
        granted, first_at = answer
        for name, at in first_at.items():
            meters[name].give(at)
        self._take(asked, granted)

    def _ask_store(
        self, wants: dict[str, Want], asks: dict[str, tuple[Rate, int]], must_wait: bool
    ) -> tuple[dict[str, int], dict[str, float]] | None:
        """What is granted, and when tokens are good; None while somebody is alone still.  In the queue's thread."""
        store, now = self._database.store, self._clock()
        if must_wait and store.has_lone_sharer(self._owner):
            return None
        with store.group():
            return store.share(self._owner, wants, now), store.reserve(asks, now)

    def _take(self, asked: set[Place], granted: dict[str, int]) -> None:
        has_surplus = False
        for place in asked:
            count = granted[_name(place)]
            self._granted[place] = count
            self._check_surplus(place)
            has_surplus = has_surplus or place in self.over
            if count > self._open.get(place, 0):
                self.on_room(place)
            if not count and place not in self._open and place not in self._asked and not self.count_wanted(place):
                del self._granted[place], self._limits[place]
        if has_surplus:
            self.on_surplus()

    def _want(self, place: Place) -> Want:
        count = self._open.get(place, 0)
        limit = self._limits[place]
        return Want(limit, count, min(limit, count + self.count_wanted(place)))


def _name(place: Place) -> str:
    """What the store knows a place by."""
    name, address, port = place
    return f"{name} [{address}]:{port}"
