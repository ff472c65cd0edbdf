"""What becomes of events whose worker has gone: they are counted, and one that ends each worker it gets is found.

Layer: adapter; no trio.  Spec: issue text "Guarantees".

Facts.  A worker that dies leaves events that it had not acknowledged; some may have run, and nobody knows which.  An
event may be the reason: its handler crashes the process, or takes all memory.  Handed on again it ends the next worker,
and its group with it, for ever.  A worker has thousands of events, and works at a batch of them at a time.

What it means.  Before an event is handed on again that must be on disk (`Store.redeliver_outbox`), or a crash of the
engine could give two runs the same count.  And an event must be blamed for an end only if it cannot have been another.

Our solution.  A group whose worker has gone has a `Custody` until all is well again.  Events wait there until they are
counted.  Then they go on as if nothing had happened, unless the worker's own code ended it (endings.py): then they are
*suspects*, and go to one worker that gets nothing else meanwhile, a part of them at a time, in order.  If it handles
the part they are clear; if its code ends it again, the suspects are those of the part that are left, and the parts get
smaller (`_PARTS`) until one event is alone.  An event that has ended so many workers alone is buried: a dead letter
that says why.  All others of the group go on meanwhile, to its other workers, if it has any.
An end counts against an event only if the worker was asked nothing that it has not answered, and told nothing live: a
veto may crash, too.  Suspects that are handled, slowly or again and again since a server is away, do not end anybody:
after `_PATIENCE_S` they are clear.

Invariants: the events of a message stay in order: what comes later of a message that has an event here waits behind it;
who ends a worker from outside, however often, has no event buried; everything ends, by time if by nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .channel import Link, Outgoing

#: parts that suspects are split into each time a part of them has ended a worker; of 10,000 one is alone at the third
_PARTS: Final = 32
#: seconds after which a part that has ended nobody is clear: of a worker that tells that it is waiting, and of any
_PATIENCE_S: Final = (5.0, 60.0)


class Ward(Protocol):
    """The group whose events these are."""

    def place_now(self, events: Iterable[Outgoing]) -> None:
        """Give each event to a link, or let it wait for one."""

    def put(self, link: Link, event: Outgoing) -> None:
        """Give an event to this link."""

    def idle_link(self) -> Link | None:
        """A worker that has no event."""

    def bury(self, event: Outgoing, reason: str) -> None:
        """Make an event a dead letter of this group."""

    def end_custody(self) -> None:
        """All is well again."""


@dataclass(slots=True)
class _Suspects:
    """Events one of which may have ended a worker, in order; so many are handed on at a time."""

    events: deque[Outgoing]
    width: int


@dataclass(slots=True)
class _Part:
    """Suspects that a worker has, and nothing else with them.

    Attributes:
        events: by `id`, those that it has not handled; size: how many there were.
        since: when it got them, or when it was looked for, on trio's clock.
    """

    link: Link | None = None
    events: dict[int, Outgoing] = field(default_factory=dict)
    size: int = 0
    since: float = 0.0


class Custody:
    """See the module's text.

    Args:
        limit: workers that an event may end, alone, before it is buried.
        clock: trio's.
    """

    def __init__(self, ward: Ward, limit: int, clock: Callable[[], float]) -> None:
        self._ward = ward
        self._limit = limit
        self._clock = clock
        #: what is to be counted, and whether it comes before all others; in the order in which that will be told
        self._counting: deque[tuple[list[Outgoing], _Suspects | None]] = deque()
        self._suspects: deque[_Suspects] = deque()
        self._part = _Part()
        #: message -> how many of its events are here, those behind them not counted
        self._keys: dict[object, int] = {}
        self._behind: dict[object, deque[Outgoing]] = {}

    @property
    def size(self) -> int:
        """Events that wait here; those that a worker has are not among them."""
        waiting = sum(len(events) for events, _ in self._counting) + sum(len(each.events) for each in self._suspects)
        return waiting + sum(map(len, self._behind.values()))

    @property
    def is_hunting(self) -> bool:
        """Whether some events are under suspicion."""
        return bool(self._suspects or self._part.events)

    @property
    def is_alone(self) -> bool:
        """Whether one event is alone with a worker: then nothing else must be there that could end it."""
        return self._part.size == 1 and bool(self._part.events)

    def keeps(self, event: Outgoing) -> bool:
        """Keep an event that came later if one of its message is here; whether it is kept."""
        if event.key not in self._keys:
            return False
        self._behind.setdefault(event.key, deque()).append(event)
        return True

    # what happens to workers

    def on_lost(self, link: Link, events: Sequence[Outgoing], fault: str, *, is_certain: bool) -> list[Outgoing]:
        """A worker has gone and left these; gives those that are to be counted (`on_counted`).

        Args:
            fault: how its own code ended it; "" if it did not, or if nobody knows.
            is_certain: nothing but its events can have been the reason.
        """
        left = list(events)
        part = self._part
        suspects: _Suspects | None = None
        if link is part.link:
            self._part = _Part(since=self._clock())
            if fault and part.size == 1 and left and is_certain:
                (event,) = left
                event.deaths += 1
                if event.deaths >= self._limit:
                    times = f"{event.deaths} times, alone with it" if event.deaths > 1 else "alone with it"
                    self._ward.bury(event, f"its worker ended {times}: {fault}")
                    self._drop_key(event.key)
                    left = []
            # also of an end that was no fault: they are as suspect as before
            suspects = _Suspects(deque(left), _width(len(left)) if fault else max(1, part.size))
        else:
            for event in left:
                self._keys[event.key] = self._keys.get(event.key, 0) + 1
            if fault:
                suspects = _Suspects(deque(left), _width(len(left)))
        if not left:
            self._go_on()
            return left
        if suspects is not None and link is part.link:
            # before all others: they are older than what comes later of their messages
            self._suspects.appendleft(suspects)
            suspects = None
            self._counting.append(([], None))
        else:
            self._counting.append((left if suspects is None else [], suspects))
        return left

    def on_counted(self) -> None:
        """What was lost first is counted, and may be handed on."""
        if not self._counting:
            return
        events, suspects = self._counting.popleft()
        if suspects is not None:
            if not self._suspects:
                self._part.since = self._clock()
            self._suspects.append(suspects)
        for event in events:
            self._ward.place_now([event])
            self._drop_key(event.key)
        self._go_on()

    def on_done(self, events: Iterable[Outgoing]) -> None:
        """Workers of the group are done with these."""
        part = self._part.events
        if part:
            for event in events:
                if part.pop(id(event), None) is not None:
                    self._drop_key(event.key)
        if not part:
            self._go_on()

    def on_idle_link(self) -> None:
        """There is a worker that may have nothing to do."""
        self._go_on()

    def on_tick(self) -> None:
        """Some time has passed."""
        if not self.is_hunting:
            return
        part, passed = self._part, self._clock() - self._part.since
        waits = part.link is not None and part.link.waited_at > part.since
        if passed > _PATIENCE_S[0 if waits else 1]:
            self._clear_all()

    def dissolve(self) -> list[Outgoing]:
        """The group is no more: what was here."""
        found = [
            event for events, suspects in self._counting for event in (*events, *(suspects.events if suspects else ()))
        ]
        found += [event for each in self._suspects for event in each.events]
        found += [event for events in self._behind.values() for event in events]
        self._counting.clear()
        self._suspects.clear()
        self._behind.clear()
        self._keys.clear()
        return found

    # what is done about it

    def _go_on(self) -> None:
        """Hand on the next part, or end."""
        if self._part.events or self._counting:
            return
        while self._suspects and not self._suspects[0].events:
            self._suspects.popleft()
        if self._suspects:
            self._hand_on_part(self._suspects[0])
        else:
            self._let_go()
            if not self._keys:
                self._ward.end_custody()

    def _hand_on_part(self, suspects: _Suspects) -> None:
        link = self._part.link
        if link is None or not link.is_open:
            link = self._ward.idle_link()
            if link is None:
                return
            link.is_reserved = True
        events = [suspects.events.popleft() for _ in range(min(suspects.width, len(suspects.events)))]
        self._part = _Part(link, {id(event): event for event in events}, len(events), self._clock())
        for event in events:
            self._ward.put(link, event)

    def _clear_all(self) -> None:
        """Suspect nobody any more."""
        suspects = [event for each in self._suspects for event in each.events]
        part = list(self._part.events.values())
        self._suspects.clear()
        self._let_go()
        for event in part:
            self._drop_key(event.key)
        for event in suspects:
            self._ward.place_now([event])
            self._drop_key(event.key)
        self._go_on()

    def _let_go(self) -> None:
        """Let the worker that had a part have other events again."""
        if self._part.link is not None:
            self._part.link.is_reserved = False
        self._part = _Part()

    def _drop_key(self, key: object) -> None:
        """An event is not here any more; if it was the last of its message, what came behind it goes on."""
        count = self._keys[key] - 1
        if count:
            self._keys[key] = count
            return
        del self._keys[key]
        self._ward.place_now(self._behind.pop(key, ()))


def _width(count: int) -> int:
    return max(1, -(-count // _PARTS))
