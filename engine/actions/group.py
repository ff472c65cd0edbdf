"""The workers of one group: who gets which event, and what becomes of those whose worker has gone.

Layer: adapter, on trio.  Spec: issue text "Workers", "Guarantees".
An event goes to the worker that has the earlier ones of its key, else to the one that has least to do.
Invariants: an event waits here only while no worker can take it, so nothing that comes later overtakes it; what comes
behind an event in custody (custody.py) waits with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from .api import Patterns, is_chosen
from .custody import Custody
from .frames import Dead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .channel import Link, Outgoing
    from .frames import Ready, Veto


@dataclass(slots=True)
class Counts:
    """What a group did, for people and metrics."""

    done: int = 0
    dead: int = 0
    dropped: int = 0
    refused: int = 0
    silent: int = 0


class OnAgain(Protocol):
    """Told of events that are going to be handed on again, as soon as `counted` is called."""

    def __call__(self, events: list[Outgoing], counted: Callable[[], None], /) -> None: ...


def count_at_once(events: list[Outgoing], counted: Callable[[], None], /) -> None:
    """Where nothing is kept that could be counted."""
    del events
    counted()


class Group:
    """The workers of one group.

    Args:
        is_expected: its events are kept while it has no worker.
        is_looking_on: all that it gets is live, whoever is chosen.
        finish: told of events that the group is done with.
        deaths: see `Custody`.
    """

    def __init__(
        self,
        name: str,
        *,
        is_expected: bool,
        is_looking_on: bool,
        finish: Callable[[Group, list[Outgoing]], None],
        deaths: int,
    ) -> None:
        self.name = name
        self.is_expected = is_expected
        self.is_looking_on = is_looking_on
        self._tell_finished = finish
        self._deaths = deaths
        #: what a worker that has gone has left, as long as that is not on its way again
        self.special: Custody | None = None
        self.links: list[Link] = []
        #: events that no link has, in order
        self.waiting: deque[Outgoing] = deque()
        #: key -> the link that has events of it, and how many
        self.places: dict[str | bytes, tuple[Link, int]] = {}
        self.counts = Counts()
        #: None as long as nobody has said
        self.handlers: tuple[tuple[str, Patterns], ...] | None = None
        self.vetoes: tuple[tuple[Patterns, Veto], ...] = ()

    def foretell(self, handlers: tuple[tuple[str, str], ...]) -> None:
        self.handlers = tuple((name, Patterns((pattern,))) for name, pattern in handlers)

    def learn(self, ready: Ready) -> None:
        self.foretell(ready.handlers)
        self.vetoes = tuple((Patterns((veto.pattern,)), veto) for veto in ready.vetoes)

    def wants(self, name: str, handlers: tuple[str, ...] | None) -> bool:
        """Whether it handles this event; a group that is expected and has never said is thought to."""
        if self.is_looking_on:
            handlers = None
        if self.handlers is None:
            return self.is_expected and self.is_named(handlers)
        return any(
            patterns.match(name) and is_chosen(self.name, handler, handlers) for handler, patterns in self.handlers
        )

    def wants_live(self, name: str, handlers: tuple[str, ...] | None) -> bool:
        """Whether somebody is there who handles this event."""
        return bool(self.links) and self.handlers is not None and self.wants(name, handlers)

    def is_named(self, handlers: tuple[str, ...] | None) -> bool:
        """Whether the group, or one of its handlers, is among those chosen."""
        return handlers is None or any(choice.partition(":")[0] == self.name for choice in handlers)

    def veto(self, name: str, handlers: tuple[str, ...] | None) -> Veto | None:
        """The most patient registration that may refuse this event; vetoes are chosen by their group.

        While no worker is there nobody waits for those whose silence is ignored.
        """
        if not self.is_named(handlers):
            return None
        found = [veto for patterns, veto in self.vetoes if patterns.match(name) and (self.links or veto.refuses)]
        return max(found, key=lambda veto: (veto.timeout_s, veto.refuses), default=None)

    def ready_links(self) -> list[Link]:
        return [link for link in self.links if link.is_open and link.ready is not None]

    def least_loaded(self) -> Link | None:
        # for each event: a loop, which costs a third of `min` over a list
        best, least = None, 0
        for link in self.links:
            if link.ready is not None and link.is_open and not link.is_reserved:
                load = link.load
                if best is None or load < least:
                    best, least = link, load
        return best

    def live_link(self) -> Link | None:
        """A link for what is not stored; none if one that is alone with an event is all there is."""
        link = self.least_loaded()
        if link is None and self.special is not None and not self.special.is_alone:
            return next((link for link in self.links if link.is_open and link.ready is not None), None)
        return link

    def asked_link(self) -> Link | None:
        """A link for a question: what is asked meanwhile is not blamed on an event."""
        link = self.least_loaded()
        if link is None and self.special is not None:
            return next((link for link in self.links if link.is_open and link.ready is not None), None)
        return link

    def place(self, events: Sequence[Outgoing]) -> None:
        """Give each event to a link: that of its key, or the one that has least to do."""
        custody = self.special
        if custody is not None:
            events = [event for event in events if not custody.keeps(event)]
        self.place_now(events)

    def place_now(self, events: Iterable[Outgoing]) -> None:
        """As `place`, whether or not earlier events of their keys are in custody."""
        places = self.places
        loads = {link: link.load for link in self.ready_links() if not link.is_reserved}
        only = next(iter(loads)) if len(loads) == 1 else None
        given: dict[Link, list[Outgoing]] = {}
        for event in events:
            key = event.key
            known = places.get(key)
            if known is not None:
                link, count = known
            elif loads:
                link, count = only or min(loads, key=loads.__getitem__), 0
            else:
                self.waiting.append(event)
                continue
            places[key] = link, count + 1
            if only is None and link in loads:
                loads[link] += 1
            if link in given:
                given[link].append(event)
            else:
                given[link] = [event]
        for link, batch in given.items():
            link.submit(batch)

    def place_waiting(self) -> None:
        events, self.waiting = self.waiting, deque()
        self.place(events)

    def forget(self, events: Iterable[Outgoing]) -> None:
        """These are done."""
        places = self.places
        for event in events:
            known = places.get(event.key)
            if known is not None:
                link, count = known
                if count > 1:
                    places[event.key] = link, count - 1
                else:
                    del places[event.key]

    def lose(self, link: Link, on_again: OnAgain) -> int:
        """A link has ended: what it had is handed on again, before everything that came later; how many these are."""
        self.links.remove(link)
        self.places = {key: place for key, place in self.places.items() if place[0] is not link}
        had, others = link.leftover()
        if not self.links and not self.is_expected:
            # the group is over
            self.waiting += [*had, *others]
            return 0
        again = 0
        if had or (self.special is not None and link.is_reserved):
            again = self._take_into_custody(link, had, others, on_again)
        self.place(others)
        return again

    def _take_into_custody(self, link: Link, had: list[Outgoing], others: list[Outgoing], on_again: OnAgain) -> int:
        custody = self.special
        if custody is None:
            custody = self.special = Custody(self, self._deaths, trio.current_time)
        fault = str(link.ending) if link.is_own_fault else ""
        is_certain = not link.unanswered and not others
        if link.is_reserved:
            # all that it was given was suspect
            had += others
            others.clear()
        lost = custody.on_lost(link, had, fault, is_certain=is_certain)
        if lost:
            on_again(lost, custody.on_counted)
        return len(lost)

    def put(self, link: Link, event: Outgoing) -> None:
        """See `custody.Ward`."""
        _, count = self.places.get(event.key, (link, 0))
        self.places[event.key] = link, count + 1
        link.submit([event])

    def idle_link(self) -> Link | None:
        """See `custody.Ward`."""
        return next((link for link in self.links if link.is_idle), None)

    def bury(self, event: Outgoing, reason: str) -> None:
        """See `custody.Ward`."""
        if event.program is None:
            assert event.shape is not None, "an event has a shape or a program"
            names = self.chosen(event.shape.event, event.handlers)
        else:
            names = ["event_action"]
        letters = {f"{self.name}:{name}": Dead(0, name, event.deaths, reason) for name in names}
        event.dead = {**(event.dead or {}), **letters}
        self._tell_finished(self, [event])

    def chosen(self, name: str, handlers: tuple[str, ...] | None) -> list[str]:
        """Its handlers that get this event."""
        found = [
            handler
            for handler, patterns in self.handlers or ()
            if patterns.match(name) and is_chosen(self.name, handler, handlers)
        ]
        return list(dict.fromkeys(found))

    def end_custody(self) -> None:
        """See `custody.Ward`."""
        self.special = None
        self.place_waiting()

    def all_waiting(self) -> int:
        """Events that no worker has."""
        return len(self.waiting) + (self.special.size if self.special is not None else 0)
