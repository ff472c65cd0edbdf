"""The engine's side of all workers: who wants which event, who gets it, and when it is done.

Layer: adapter, on trio.  Spec: design.md "Events and action workers"; issue text "Guarantees".
Workers of one group share its events; each group gets all it asked for.  An event of a message goes to the worker that
has the earlier ones of that message, as long as it is not done with them: so they stay in order, whatever dies.
A group that is expected (configured) keeps its events until a worker comes; one that came by itself is remembered only
as long as one of its workers is there.  Workers of the group `OBSERVERS` look on: all they get is live.
Invariants: the number of events held here is bounded by `limit`, over all groups; an event is told as done exactly
once, when every group is done with it; an event that nobody wants is done at once; nothing here waits for a worker
without a bound.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from ..errors import ActionError, ActionTimeout, WorkerDied
from .channel import SILENCE_S, WINDOW, Link, Outgoing
from .frames import ProgramText, Shape, Status
from .group import Group, count_at_once

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from ._ring import Packed
    from .endings import Ending
    from .frames import Answer, Log, Ready, Values
    from .group import Counts, OnAgain
    from .transport import Transport

#: the group of the engine's own workers, which evaluate programs and run the built-in handlers
MAIN: Final = "main"
#: the group that only looks on
OBSERVERS: Final = "tail"
#: pairs of event and handlers whose groups are remembered; a configuration has a score
_MAX_WANTING: Final = 1000
#: seconds that workers which have nothing to do get to end
_END_S: Final = 2.0
#: what decides who gets an event
_WHAT: Final = operator.attrgetter("shape", "program", "handlers")
#: events held by default; what is over that stays where it came from
LIMIT: Final = 50_000
#: workers that a question may end
_MAX_ASKED: Final = 2
#: workers that an event may end, alone with them, before it is a dead letter
DEATHS: Final = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a veto says.

    Attributes:
        text: why, never empty.
        group: whose workers say so.
    """

    text: bytes
    group: str


@dataclass(slots=True)
class GroupReport:
    """How a group stands.

    Attributes:
        waiting: events that no worker has; unacknowledged: those that workers have.
    """

    group: str
    workers: int
    waiting: int
    unacknowledged: int
    counts: Counts


class TakeLine(Protocol):
    """Takes a line, the logs it is for, and the event that it is about."""

    def __call__(self, text: bytes, logs: frozenset[str], event: Outgoing | None = None, /) -> None: ...


class Hub:
    """Hands events out.

    Args:
        on_done: told of events that every group is done with, in the order they got done; `Outgoing.dead` has the dead
            letters that must be stored before the event is forgotten.
        log: takes a line, the logs it is for, and the event that it is about or None.
        expected: groups whose events are kept until a worker comes.
        limit: events held at one time.
        deaths: workers that an event may end, alone with them, before it is a dead letter.
    """

    def __init__(
        self,
        *,
        on_done: Callable[[list[Outgoing]], None],
        log: TakeLine,
        expected: tuple[str, ...] = (),
        limit: int = LIMIT,
        window: int = WINDOW,
        silence_s: float = SILENCE_S,
        deaths: int = DEATHS,
    ) -> None:
        self._on_done = on_done
        self._log = log
        #: told of events that workers which have gone may have run
        self.on_again: OnAgain = count_at_once
        self._deaths = deaths
        #: told when somebody comes, goes or says what it wants: what `wants` and `may_refuse` said may change
        self.on_change: Callable[[], object] = lambda: None
        self._limit = limit
        self._window = window
        self._silence_s = silence_s
        self._groups: dict[str, Group] = {}
        for name in expected:
            self._groups[name] = self._make_group(name, is_expected=True)
        self._shapes: dict[tuple[str, tuple[str, ...]], Shape] = {}
        self._programs: dict[tuple[object, ...], ProgramText] = {}
        self._wanting: dict[tuple[str, tuple[str, ...] | None], tuple[Group, ...]] = {}
        self._held = 0
        self._room = trio.Event()
        self._changed = trio.Event()

    # -- what events are --

    def shape(self, event: str, fields: tuple[str, ...]) -> Shape:
        """The shape of an event's values; the same one each time."""
        place = (event, fields)
        found = self._shapes.get(place)
        if found is None:
            found = self._shapes[place] = Shape(len(self._shapes) + 1, event, fields)
        return found

    def program(
        self, source: bytes, where: str, variables: tuple[str, ...], constants: Mapping[str, bytes] | None = None
    ) -> ProgramText:
        """A program for workers; the same one each time.  `where` begins with ``event_action``, for messages."""
        same = dict(constants or {})
        place = (source, where, variables, tuple(same.items()))
        found = self._programs.get(place)
        if found is None:
            found = self._programs[place] = ProgramText(len(self._programs) + 1, source, where, variables, same)
        return found

    # -- events that must be handled --

    def foretell(self, group: str, handlers: tuple[tuple[str, str], ...]) -> None:
        """What an expected group will want, as READY has it, so that nothing else is kept for it until it comes."""
        self._group(group, is_expected=True).foretell(handlers)
        self._change()

    def wants(self, name: str, handlers: tuple[str, ...] | None = None) -> bool:
        """Whether anybody would get this event of an outcome; if not it need not be built."""
        return any(group.wants(name, handlers) for group in self._groups.values())

    def wants_live(self, name: str, handlers: tuple[str, ...] | None = None) -> bool:
        """As `wants`, for an event that is sent at once or not at all."""
        return any(group.wants_live(name, handlers) for group in self._groups.values())

    def audience(self, name: str, handlers: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Who would get this event of an outcome and is expected to: ``main:handler`` each, else ``group``.

        What handlers other groups have is their own business.
        """
        found: list[str] = []
        for group in self._groups.values():
            if not group.is_expected or group.is_looking_on or not group.wants(name, handlers):
                continue
            if group.name == MAIN:
                found += [f"{MAIN}:{handler}" for handler in group.chosen(name, handlers)]
            else:
                found.append(group.name)
        return tuple(found)

    def still_expects(self, place: str, name: str, handlers: tuple[str, ...] | None = None) -> bool:
        """Whether one of an `audience` is there, and may be given the event."""
        group_name, _, handler = place.partition(":")
        group = self._groups.get(group_name)
        if group is None or not group.is_expected:
            return False
        return group.is_named(handlers) if not handler else handler in group.chosen(name, handlers)

    @property
    def held(self) -> int:
        """Events that are not done."""
        return self._held

    def submit_nowait(self, event: Outgoing) -> bool:
        """Take an event; False if there are too many already.  `on_done` is told of it exactly once, if it is taken."""
        return bool(self.submit_many([event]))

    def submit_many(self, events: Sequence[Outgoing]) -> int:
        """As `submit_nowait`, of events in their order; how many, the first ones, were taken."""
        given: dict[str, list[Outgoing]] = {}
        unwanted: list[Outgoing] = []
        taken = 0
        while taken < len(events) and self._held < self._limit:
            part = events[taken : taken + self._limit - self._held]
            taken += len(part)
            for (shape, program, handlers), like in itertools.groupby(part, _WHAT):
                batch = list(like)
                wanting = self._wanted_by(shape, program, handlers)
                if program is None and OBSERVERS in self._groups:
                    for event in batch:
                        self._observe(shape, event.id, event.values)
                if not wanting:
                    unwanted += batch
                    continue
                self._held += len(batch)
                for event in batch:
                    event.open_groups = len(wanting)
                for group in wanting:
                    given.setdefault(group.name, []).extend(batch)
        for name, batch in given.items():
            self._groups[name].place(batch)
        if unwanted:
            self._on_done(unwanted)
        return taken

    def _wanted_by(
        self, shape: Shape | None, program: ProgramText | None, handlers: tuple[str, ...] | None
    ) -> tuple[Group, ...]:
        if program is not None:
            return (self._group(MAIN, is_expected=True),)
        assert shape is not None, "an event has a shape or a program"
        known = self._wanting.get((shape.event, handlers))
        return self._find_wanting(shape.event, handlers) if known is None else known

    def _find_wanting(self, name: str, handlers: tuple[str, ...] | None) -> tuple[Group, ...]:
        """The groups that want an event; remembered until one of them comes, goes or says what it wants."""
        groups = self._groups.values()
        found = tuple(group for group in groups if group.name != OBSERVERS and group.wants(name, handlers))
        if len(self._wanting) < _MAX_WANTING:
            self._wanting[name, handlers] = found
        return found

    async def submit(self, event: Outgoing, *, timeout_s: float) -> bool:
        """As `submit_nowait`, but wait for room so long at most."""
        with trio.move_on_after(timeout_s):
            while not self.submit_nowait(event):
                await self._room.wait()
            return True
        return False

    # -- live events --

    def publish(
        self, shape: Shape, values: Values | Packed, *, id: bytes = b"", handlers: tuple[str, ...] | None = None
    ) -> None:
        """Send a live event to a worker of each group that wants it; where there is no room it is lost, and counted."""
        for group in self._groups.values():
            if group.name != OBSERVERS and group.wants_live(shape.event, handlers):
                link = group.live_link()
                if link is None or not link.publish(shape, id, values, handlers):
                    group.counts.dropped += 1
        self._observe(shape, id, values)

    def _observe(self, shape: Shape, id: bytes, values: Values | Packed) -> None:
        group = self._groups.get(OBSERVERS)
        if group is not None and group.links and group.wants(shape.event, None):
            for link in group.ready_links():
                if not link.publish(shape, id, values, None):
                    group.counts.dropped += 1

    # -- questions --

    def may_refuse(self, name: str, handlers: tuple[str, ...] | None = None) -> bool:
        """Whether anybody has a veto on this event."""
        return any(group.veto(name, handlers) is not None for group in self._groups.values())

    async def ask(
        self, shape: Shape, values: Values | Packed, *, id: bytes = b"", handlers: tuple[str, ...] | None = None
    ) -> Refusal | None:
        """Ask every group that has a veto on an event, one after the other, until one refuses.

        Each is waited for as long as it asked for; what its silence means is what it said it means.
        """
        for group in list(self._groups.values()):
            veto = group.veto(shape.event, handlers)
            if veto is None:
                continue
            try:
                answer = await self._ask_group(group, shape, values, id, veto.timeout_s)
            except ActionError as error:
                group.counts.silent += 1
                self._log(f"{shape.event}: {error}".encode(), frozenset(["main"]))
                if veto.refuses:
                    return Refusal(f"no answer from {group.name}".encode(), group.name)
                continue
            if answer.status is Status.FAILED:
                self._log(b"%s: %s" % (shape.event.encode(), answer.text), frozenset(["main", "panic"]))
            elif answer.status is Status.DONE and answer.text:
                group.counts.refused += 1
                return Refusal(answer.text, group.name)
        return None

    async def _ask_group(
        self, group: Group, shape: Shape, values: Values | Packed, id: bytes, timeout_s: float
    ) -> Answer:
        deadline = trio.current_time() + timeout_s
        died = 0
        while True:
            link = await self._wait_for_link(group, deadline)
            try:
                return await link.ask(shape, id, values, deadline - trio.current_time())
            except WorkerDied:
                died += 1
                # a question changes nothing, so another worker may be asked in the time that is left; but no third one,
                # if it was the question
                if trio.current_time() >= deadline or died == _MAX_ASKED:
                    raise
                # its link is about to end
                await trio.lowlevel.checkpoint()

    async def evaluate(
        self,
        program: ProgramText,
        values: Values | Packed,
        state: Mapping[str, Any],
        *,
        timeout_s: float,
        about: Outgoing | None = None,
    ) -> Answer:
        """Evaluate a program in one of the engine's own workers.

        Args:
            about: for the lines that it logs.

        Raises:
            ActionTimeout: there was no worker, or no answer, in time.
            WorkerDied: the worker died; the program may have done what it does.
        """
        deadline = trio.current_time() + timeout_s
        link = await self._wait_for_link(self._group(MAIN, is_expected=True), deadline)
        return await link.evaluate(program, values, state, deadline - trio.current_time(), about)

    async def _wait_for_link(self, group: Group, deadline: float) -> Link:
        link = group.asked_link()
        if link is not None:
            return link
        with trio.move_on_at(deadline):
            while (link := group.asked_link()) is None:
                await self._changed.wait()
            return link
        raise ActionTimeout(f"there is no worker of {group.name}")

    # -- workers --

    async def serve(
        self,
        transport: Transport,
        control: socket.socket,
        *,
        group: str,
        settings: Mapping[str, Any] | None = None,
        on_link: Callable[[Link], None] | None = None,
        wait_ended: Callable[[], Awaitable[Ending | None]] | None = None,
    ) -> str:
        """Serve one worker until it is gone; returns why.  What it was not done with goes to others, or waits.

        Args:
            transport, control: see `Link`; owned from now on.
            on_link: told of the link before it begins.
            wait_ended: waits, not for long, until it is known how the process has ended.
        """
        link = Link(
            transport,
            control,
            self,
            group=group,
            settings=settings,
            window=self._window if group != OBSERVERS else 0,
            silence_s=self._silence_s,
        )
        where = self._group(group)
        where.links.append(link)
        if on_link is not None:
            on_link(link)
        try:
            why = await link.run()
            if link.has_died and link.ending is None and wait_ended is not None:
                # what it had waits for that: it decides what is done with it
                link.ending = await wait_ended()
            return why
        finally:
            again = where.lose(link, self.on_again)
            if again:
                text = f"{again} events that a worker of {group} had not acknowledged are handed on again"
                self._log(text.encode(), frozenset(["main"]), None)
            if not where.links:
                self._change()
                if not where.is_expected:
                    self._dissolve(where)

    def report(self) -> list[GroupReport]:
        """How each group stands."""
        return [
            GroupReport(
                group.name,
                len(group.ready_links()),
                group.all_waiting() + sum(link.load - link.unacknowledged for link in group.links),
                sum(link.unacknowledged for link in group.links),
                group.counts,
            )
            for group in self._groups.values()
        ]

    async def drain(self, *, timeout_s: float) -> bool:
        """Let every worker have what waits for it, finish, and end; False if for so long nothing was done.

        Nothing may be submitted any more.  What a handler is retrying is left; it stays where it came from.
        """
        links = [link for group in self._groups.values() for link in group.links]
        ended = trio.Event()

        async def drain_all() -> None:
            async with trio.open_nursery() as each:
                for link in links:
                    each.start_soon(link.drain)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain_all)
            while not ended.is_set():
                held = self._held
                # who has nothing to do and does not end is not worth waiting for
                with trio.move_on_after(timeout_s if held else min(timeout_s, _END_S)):
                    await ended.wait()
                if not ended.is_set() and self._held >= held:
                    for link in links:
                        link.dismiss()
                    nursery.cancel_scope.cancel()
                    return False
        return True

    async def wait_ready(self, group: str, *, timeout_s: float) -> bool:
        """Wait until a group has a worker; False if none came in time."""
        with trio.move_on_after(timeout_s):
            while not self._group(group).ready_links():
                await self._changed.wait()
            return True
        return False

    async def wait_done(self, group: str, *, timeout_s: float, patience_s: float) -> None:
        """Wait until workers are done with all they have, as long as some of it gets done.

        Args:
            group: one whose workers come again when they die: what waits for them is waited for.
            timeout_s: how long they may take to come; patience_s: how long they may get nothing done.
        """
        where = self._group(group)
        while any(link.load for each in self._groups.values() for link in each.links) or where.all_waiting():
            if where.all_waiting() and not where.ready_links():
                with trio.move_on_after(timeout_s) as waiting:
                    await self._changed.wait()
                if waiting.cancelled_caught:
                    return
                continue
            with trio.move_on_after(patience_s) as working:
                await self._room.wait()
            if working.cancelled_caught and where.ready_links():
                return

    def unacknowledged(self) -> list[Outgoing]:
        """The events that workers have now, of all groups."""
        return [event for group in self._groups.values() for link in group.links for event in link.sent()]

    def forget(self) -> None:
        """Forget every event that is held; no link may be left."""
        for group in self._groups.values():
            group.waiting.clear()
            group.places.clear()
            group.special = None
        self._held = 0

    def _group(self, name: str, *, is_expected: bool = False) -> Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = self._make_group(name, is_expected=is_expected)
            self._change()
        return group

    def _make_group(self, name: str, *, is_expected: bool) -> Group:
        return Group(
            name,
            is_expected=is_expected,
            is_looking_on=name == OBSERVERS,
            finish=self._finish,
            deaths=self._deaths,
        )

    def _change(self) -> None:
        self._wanting.clear()
        self.on_change()

    def _dissolve(self, group: Group) -> None:
        """Nobody is left of a group that came by itself: what it has not handled is not waited for."""
        del self._groups[group.name]
        self._change()
        left = group.special.dissolve() if group.special is not None else []
        self._finish(group, [*left, *group.waiting])

    def on_ready(self, link: Link, ready: Ready) -> None:
        """See `channel.Owner`."""
        group = self._groups[link.group]
        group.learn(ready)
        self._change()
        # what was kept in case it is wanted, and is not
        unwanted = [
            event
            for event in group.waiting
            if event.shape is not None and not group.wants(event.shape.event, event.handlers)
        ]
        if unwanted:
            gone = set(map(id, unwanted))
            group.waiting = deque(event for event in group.waiting if id(event) not in gone)
            self._finish(group, unwanted)
        if group.special is not None:
            group.special.on_idle_link()
        group.place_waiting()
        self._changed.set()
        self._changed = trio.Event()

    def on_done(self, link: Link, events: list[Outgoing]) -> None:
        """See `channel.Owner`."""
        group = self._groups[link.group]
        group.forget(events)
        if group.special is not None:
            group.special.on_done(events)
        self._finish(group, events)

    def on_log(self, link: Link, line: Log, event: Outgoing | None) -> None:
        """See `channel.Owner`."""
        self._log(line.text, line.logs, event)

    def on_tick(self, link: Link) -> None:
        """See `channel.Owner`."""
        custody = self._groups[link.group].special
        if custody is not None:
            custody.on_tick()

    def _finish(self, group: Group, events: list[Outgoing]) -> None:
        """One group is done with these."""
        group.counts.done += len(events)
        done = []
        for event in events:
            event.open_groups -= 1
            if not event.open_groups:
                done.append(event)
        if done:
            group.counts.dead += sum([event.dead is not None for event in done])
            self._held -= len(done)
            self._on_done(done)
            self._room.set()
            self._room = trio.Event()
