"""Hand stored events to who runs their actions, and take them out of the outbox once they have run.

Layer: orchestration.  Spec: design.md "Events and action workers"; issue "Event actions", "Guarantees".
Events were committed with the outcome they tell of, and are handed on in the order of their commit: strings and
handlers of workers to the hub, strings where there are no workers to the thread of local.py.  They come here from
their commit as they are; only what there was no room for, and what other engines left, is read from the queue.  Hub and
thread keep the events of one message in order, and try again what fails.  What is done is acknowledged with the next
settlement, or a moment later in a commit of its own; a crash between the two runs some again (at least once).  What a
handler has given up leaves the outbox as a dead letter, in the same commit.  What a worker that has gone may have run
is handed on again when that is on disk, so that each run of an event is told another number (`event_redelivered`).
Invariants: delivery never waits for an action; the events held in memory are bounded; an event leaves the outbox only
after its action has run; what is left at the end of a run is inherited by the next engine.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ..actions._ring import Packed
from ..actions.channel import Outgoing
from ..actions.frames import Dead, state_frame
from ..errors import StoreError
from ..logs.facts import Fact, FactKind
from ..queue.model import ALL, PROGRAM, DeadLetter, OutboxEvent
from ._flat import Told
from .local import LocalRunner
from .stored import REDELIVERED, Stored, add_value, split_audience, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..actions.frames import ProgramText, Shape
    from ..actions.hub import Hub
    from ..queue.store import Store
    from .core import Core
    from .events import Events
    from .stored import Layout

#: layouts whose places are remembered; there are as many as events and transports, and new ones when a worker comes
_MAX_PLACES: Final = 1000
#: events read in one call of the queue's thread; more than a commit usually brings, or reading would never catch up
BATCH: Final = 2000
#: seconds between looks at the outbox when nobody says that there is something
INTERVAL_S: Final = 1.0
#: seconds that what is done waits for a settlement that acknowledges it before there is a commit for it alone
ACKNOWLEDGE_S: Final = 0.05
#: seconds to wait for room at the end of a run before it is looked again
_ROOM_S: Final = 0.01


class _Place(NamedTuple):
    """Where the events of one layout go: what `Outgoing` has of the same name."""

    shape: Shape | None
    program: ProgramText | None
    handlers: tuple[str, ...] | None


#: why nobody is there whom an event was for
_NO_TRANSPORT: Final = "the configuration has no such transport any more"
_NO_ACTION: Final = "its event_action does nothing at this event any more"
_NO_HANDLER: Final = "the configuration has no such handler for this event any more"


class _Again(NamedTuple):
    """Events that are to be handed on again, and who is told when that is counted."""

    events: list[Outgoing]
    counted: Callable[[], None]


class _Taken(NamedTuple):
    """What goes into one commit: what is done, the dead letters of that, and what is handed on again."""

    done: list[int] = []  # noqa: RUF012 - never changed
    dead: list[DeadLetter] = []  # noqa: RUF012
    again: list[_Again] = []  # noqa: RUF012
    tried: list[int] = []  # noqa: RUF012

    def write(self, store: Store) -> None:
        """In the queue's thread."""
        lost = [_event_of(outgoing).id for again in self.again for outgoing in again.events]
        if lost or self.tried:
            store.redeliver_outbox(lost + self.tried)
        store.ack_outbox(self.done, self.dead)


def _handler_of(place: str) -> tuple[str, str]:
    """Handler and group of ``group:handler``."""
    group, _, handler = place.partition(":")
    return handler, group


def _in_one_commit(store: Store, write: Callable[[Store], None]) -> None:
    with store.group():
        write(store)


def _event_of(outgoing: Outgoing) -> OutboxEvent:
    event: OutboxEvent = outgoing.token
    return event


class Outbox:
    """Gets the actions of what is in the outbox of one engine run."""

    def __init__(self, core: Core, events: Events) -> None:
        self._core = core
        self._events = events
        self._hub: Hub | None = None
        #: where the events of each layout go
        self._places: dict[Layout, _Place] = {}
        self._local = LocalRunner(core, events, self._on_done_here, self._on_dead_here, self._tell)
        self._wake = trio.Event()
        #: everything up to this number was handed on, but for what other engines left since
        self._after = 0
        #: numbers of what was handed on and is not acknowledged
        self._held: set[int] = set()
        self._is_full = False
        #: numbers of what was acknowledged while the queue was being read: that may have found them still
        self._gone: set[int] = set()
        self._is_reading = False
        #: there may be something in the queue that was not handed on: nothing may overtake it
        self._must_read = True
        #: more has come since the last look into the queue began
        self._has_more = False
        self._done: list[int] = []
        self._dead: list[DeadLetter] = []
        self._again: list[_Again] = []
        #: numbers of what was tried here and is left to the next engine
        self._tried: list[int] = []
        #: whom the configuration has no more, and why -> events that were for them
        self._orphans: Counter[str] = Counter()
        #: what the commit under way takes
        self._taken = _Taken()
        self._to_acknowledge = trio.Event()
        self._acknowledging = trio.Lock()
        self._is_over = False
        core.settlement.companion = self
        workers = events.workers
        if workers is not None:
            self._hub = workers.hub
            workers.on_done, workers.log = self._on_done, self._on_line
            self._hub.on_again = self._on_again

    def notify(self) -> None:
        """Events were committed that have to be read."""
        self._must_read = self._has_more = True
        self._wake.set()

    def on_stored(self, events: Sequence[OutboxEvent]) -> None:
        """Events were committed by this engine, with these numbers."""
        if self._must_read:
            self._has_more = True
            self._wake.set()
            return
        batch: list[Outgoing] = []
        layout: Layout | None = None
        place: _Place | None = None
        of_ours = Packed.of_ours
        # without a call for each: nearly all are like the one before, and all were packed by this process
        for event in events:
            if not isinstance(event, Told):
                layout = place = None
            elif event.layout is not layout:
                layout = event.layout
                place = None if layout is None else self._places.get(layout) or self._place(event.name, layout)
            if place is None or not isinstance(event, Told):
                if not (self._submit(batch) and self._hand_on(event, is_ours=True)):
                    self._is_full = self._must_read = True
                    return
                self._after = event.id
                batch.clear()
                continue
            key, values = event.message_id or event.key, of_ours(event.payload, event.begin)
            outgoing = Outgoing(place.shape, key, event.key.encode(), values, event, place.handlers, place.program)
            if place.program is not None:
                outgoing.state = state_frame(give_up_at=self._events.give_up_at(event))
            batch.append(outgoing)
        if not self._submit(batch):
            self._is_full = self._must_read = True

    async def run(self) -> None:
        """Get everything run that comes, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._local.run)
            nursery.start_soon(self._acknowledge)
            while True:
                try:
                    await self._read()
                except StoreError as error:
                    # the settlement will stop the engine if it has to
                    self._note(f"queue: {error}")
                with trio.move_on_after(INTERVAL_S):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def finish(self, *, timeout_s: float, is_told: bool) -> None:
        """The end of a run: what can be run now is; what cannot stays for the next engine.

        Args:
            timeout_s: how long workers may go without getting anything done.
            is_told: the engine was told to stop: that is how long they have in all.
        """
        self._is_over = True
        with trio.CancelScope() as scope:

            def hurry() -> None:
                scope.deadline = min(scope.deadline, trio.current_time() + timeout_s)

            self._core.on_stop.append(hurry)
            if is_told:
                hurry()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._acknowledge)
                await self._hand_all_on(timeout_s)
                if self._events.workers is not None:
                    await self._events.workers.stop(timeout_s=timeout_s)
                nursery.cancel_scope.cancel()
        self._core.on_stop.remove(hurry)
        if self._hub is not None:
            # who does not end may still run what it has
            self._on_again(self._hub.unacknowledged(), lambda: None)
        self._tried = [event.id for event in self._local.tried()]
        await self._acknowledge_now()
        self._tell_orphans()
        if self._held:
            what = "an action that cannot be done now" if self._events.workers else "a lookup that cannot be done now"
            self._note(f"events wait in the queue for {what}")

    async def _hand_all_on(self, timeout_s: float) -> None:
        """Until there is no more, or nothing is done for so long."""
        deadline, held = trio.current_time() + timeout_s, len(self._held)
        while True:
            is_all = await self._read()
            is_run = await self._local.round()
            await self._acknowledge_now()
            if is_all or not is_run or trio.current_time() > deadline:
                return
            await trio.sleep(_ROOM_S)
            if len(self._held) < held:
                deadline = trio.current_time() + timeout_s
            held = len(self._held)

    # reading

    async def _read(self) -> bool:
        """Hand on what is in the outbox; False if there is no room for all of it."""
        try:
            return await self._read_all()
        finally:
            self._tell_orphans()

    async def _read_all(self) -> bool:
        database, owner = self._core.database, self._core.engine.owner
        if await database.call(database.store.adopt_outbox, owner):
            # what other engines left may be older than all that we have seen
            self._after, self._must_read = 0, True
        self._is_full = False
        while self._must_read:
            self._has_more = False
            self._gone.clear()
            self._is_reading = True
            try:
                events = await database.call(database.store.drain_outbox, owner, BATCH, self._after)
            finally:
                self._is_reading = False
            for event in events:
                if event.id not in self._held and event.id not in self._gone and not self._hand_on(event):
                    self._is_full = self._must_read = True
                    return False
                self._after = max(self._after, event.id)
            if not events:
                self._must_read = self._has_more
        return True

    def look_again(self) -> None:
        """Other engines may have left events."""
        self._after = 0
        self.notify()

    def _place(self, name: str, layout: Layout) -> _Place | None:
        """Where events of a layout go, remembered; None where it is not simply to the hub."""
        hub, events = self._hub, self._events
        if hub is None:
            return None
        if layout.handler != PROGRAM:
            place = _Place(hub.shape(name, layout.names), None, events.choice(layout.transport))
        else:
            action = events.action(layout.transport, name)
            if action is None or not events.runs_in_workers:
                return None
            place = _Place(None, events.program(hub, action, layout.names), None)
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places[layout] = place
        return place

    def _submit(self, batch: list[Outgoing]) -> bool:
        """Give events of ours to the hub; False if there is no room for all of them."""
        if not batch:
            return True
        assert self._hub is not None, "or they would not be here"
        numbers = [event.token.id for event in batch]
        self._held.update(numbers)
        taken = self._hub.submit_many(batch)
        self._held.difference_update(numbers[taken:])
        if taken:
            self._after = numbers[taken - 1]
        return taken == len(batch)

    def _hand_on(self, event: OutboxEvent, *, is_ours: bool = False) -> bool:
        """Hand on one event; False if there is no room for it.

        Args:
            is_ours: this process has just packed it.
        """
        stored = unpack(event.payload, is_ours=is_ours)
        self._held.add(event.id)
        is_taken = True
        if stored is None:
            # nobody here can read it; a person may know another version that does
            self._bury(event, event.handler, event.group, "another version has stored it", 0)
            self._forget(event)
        elif event.handler == PROGRAM:
            is_taken = self._hand_on_program(event, stored)
        else:
            is_taken = self._hand_on_to_handlers(event, stored)
        if not is_taken:
            self._held.discard(event.id)
        return is_taken

    def _hand_on_program(self, event: OutboxEvent, stored: Stored) -> bool:
        action = self._events.action(stored.transport, event.name)
        if action is None:
            is_known = not stored.transport or stored.transport in self._core.transports
            self._bury_orphan(event, PROGRAM, "", stored.transport or "main", _NO_ACTION if is_known else _NO_TRANSPORT)
            self._forget(event)
            return True
        if self._hub is None or not self._events.runs_in_workers:
            return self._local.add_nowait(event, stored)
        outgoing = self._outgoing(event, stored)
        outgoing.program = self._events.program(self._hub, action, stored.names)
        outgoing.state = state_frame(stored.headers, give_up_at=self._events.give_up_at(event))
        if event.redelivered:
            self._tell_number(event, outgoing)
        return self._hub.submit_nowait(outgoing)

    def _hand_on_to_handlers(self, event: OutboxEvent, stored: Stored) -> bool:
        # one that names its handler is a dead letter that is tried again
        choice = self._choice(event, stored)
        missing = self._missing(event, choice)
        if self._hub is None or (missing and (event.handler or len(missing) == len(split_audience(event.group)))):
            # nobody is left; who came later has not been waiting for it
            for place in missing:
                self._bury_orphan(event, *_handler_of(place), place, _NO_HANDLER)
            self._forget(event)
            return True
        outgoing = self._outgoing(event, stored)
        outgoing.shape = self._hub.shape(event.name, stored.names)
        outgoing.handlers = choice
        if missing:
            # others are there, and it is done when they are
            outgoing.dead = {place: Dead(0, "", 0, _NO_HANDLER) for place in missing}
        if event.redelivered:
            self._tell_number(event, outgoing)
        return self._hub.submit_nowait(outgoing)

    def _choice(self, event: OutboxEvent, stored: Stored) -> tuple[str, ...] | None:
        """Whose handlers get an event; see `Outgoing.handlers`."""
        if not event.handler:
            return self._events.choice(stored.transport)
        return (event.group,) if event.handler == ALL else (f"{event.group}:{event.handler}",)

    def _missing(self, event: OutboxEvent, choice: tuple[str, ...] | None) -> list[str]:
        """Who was to get an event and is not there any more: ``group:handler`` each."""
        hub = self._hub
        if event.handler:
            is_there = hub is not None and hub.wants(event.name, choice)
            return [] if is_there else [f"{event.group}:{event.handler}"]
        if hub is None and not event.group:
            # stored by a version that did not note who
            return [f":{ALL}"]
        return [
            place if ":" in place else f"{place}:{ALL}"
            for place in split_audience(event.group)
            if hub is None or not hub.still_expects(place, event.name, choice)
        ]

    def _outgoing(self, event: OutboxEvent, stored: Stored) -> Outgoing:
        # what is of no message has no order to keep
        return Outgoing(None, stored.message_id or event.key, event.key.encode(), Packed(stored.values), event)

    def _number(self, outgoing: Outgoing) -> None:
        """An event is handed on once more: it says how often it was."""
        event = _event_of(outgoing)
        event.redelivered += 1
        self._tell_number(event, outgoing)

    def _tell_number(self, event: OutboxEvent, outgoing: Outgoing) -> None:
        """Give an event that may have run before one field more than others have."""
        stored = unpack(event.payload)
        if stored is None or self._hub is None:
            return
        names = (*stored.names, REDELIVERED)
        if outgoing.program is None:
            outgoing.shape = self._hub.shape(event.name, names)
        else:
            action = self._events.action(stored.transport, event.name)
            if action is None or not (action.reads_anything or REDELIVERED in action.program.reads):
                return
            outgoing.program = self._events.program(self._hub, action, names)
        outgoing.values = Packed(add_value(stored.values, event.redelivered))

    # what is done

    def _on_done(self, outgoing: list[Outgoing]) -> None:
        for one in outgoing:
            if one.dead:
                self._bury_for(one, one.dead)
        self._done += [one.token.id for one in outgoing]
        self._to_acknowledge.set()

    def _bury_for(self, outgoing: Outgoing, dead: Mapping[str, Dead]) -> None:
        for place, letter in dead.items():
            handler, group = _handler_of(place)
            if outgoing.program is not None:
                handler, group = PROGRAM, ""
            if letter.error == _NO_HANDLER:
                self._bury_orphan(outgoing.token, handler, group, place, _NO_HANDLER)
            else:
                self._bury(outgoing.token, handler, group, letter.error, letter.attempts)

    def _on_done_here(self, events: Sequence[OutboxEvent]) -> None:
        for event in events:
            self._forget(event)

    def _on_dead_here(self, event: OutboxEvent, reason: str, attempts: int) -> None:
        self._bury(event, PROGRAM, "", reason, attempts)
        self._forget(event)

    def _bury(self, event: OutboxEvent, handler: str, group: str, reason: str, attempts: int) -> None:
        self._dead.append(self._letter(event, handler, group, reason, attempts))
        self._note(f"{event.name} {event.key} is a dead letter of {handler or 'all handlers'}: {reason}")

    def _bury_orphan(self, event: OutboxEvent, handler: str, group: str, whose: str, reason: str) -> None:
        """The configuration has nobody any more that an event was for: told with others, by `_tell_orphans`."""
        self._dead.append(self._letter(event, handler, group, reason, 0))
        self._orphans[f"{whose.removesuffix(f':{ALL}') or 'handlers'}: {reason}"] += 1

    def _tell_orphans(self) -> None:
        """One line for all that had to be buried for one reason since the last time."""
        orphans, self._orphans = self._orphans, Counter()
        for text, count in orphans.items():
            line = f"{count} stored events are dead letters of {text} (see `outrider events dead list`)"
            self._tell(Fact(FactKind.NOTE, self._core.clock(), text=line, is_panic=True))

    def _letter(self, event: OutboxEvent, handler: str, group: str, reason: str, attempts: int) -> DeadLetter:
        return DeadLetter(
            *(event.name, event.key, event.payload, handler, group, reason, attempts),
            *(event.stored_at, self._core.clock()),
            redelivered=event.redelivered,
        )

    def _forget(self, event: OutboxEvent) -> None:
        self._done.append(event.id)
        self._to_acknowledge.set()

    def _on_again(self, events: list[Outgoing], counted: Callable[[], None]) -> None:
        """Workers that have gone may have run these: they are handed on again when that is on disk."""
        self._again.append(_Again(events, counted))
        self._to_acknowledge.set()

    async def _acknowledge(self) -> None:
        """See that what is done leaves the outbox soon, if no settlement takes it along."""
        while True:
            await self._to_acknowledge.wait()
            if not self._again:
                await trio.sleep(ACKNOWLEDGE_S)
            if not self._to_acknowledge.is_set():
                continue
            if not self._is_over:
                self._core.settlement.commit_soon()
                # until it is taken
                await trio.sleep(ACKNOWLEDGE_S)
                continue
            try:
                await self._acknowledge_now()
            except StoreError as error:
                self._note(f"queue: {error}")
                await trio.sleep(INTERVAL_S)

    async def _acknowledge_now(self) -> None:
        """Take what is done out of the outbox, without a settlement.  Raises StoreError; then it still is to be."""
        # two may want to at the end, and what was taken is kept in one place
        async with self._acknowledging:
            write = self.take()
            if write is None:
                return
            try:
                # not cancelled once begun
                await self._core.database.call(_in_one_commit, self._core.database.store, write)
            except BaseException:
                taken, self._taken = self._taken, _Taken()
                self._done, self._dead, self._again, self._tried = (
                    taken.done + self._done,
                    taken.dead + self._dead,
                    taken.again + self._again,
                    taken.tried + self._tried,
                )
                self._to_acknowledge.set()
                raise
            self.on_committed()

    def take(self) -> Callable[[Store], None] | None:
        """See `settlement.Companion`."""
        if not (self._done or self._dead or self._again or self._tried):
            return None  # the event stays, for who waits for it
        self._to_acknowledge = trio.Event()
        taken = self._taken = _Taken(self._done, self._dead, self._again, self._tried)
        self._done, self._dead, self._again, self._tried = [], [], [], []
        return taken.write

    def on_committed(self) -> None:
        """See `settlement.Companion`."""
        taken, self._taken = self._taken, _Taken()
        self._held.difference_update(taken.done)
        if self._is_reading:
            self._gone.update(taken.done)
        for again in taken.again:
            for outgoing in again.events:
                self._number(outgoing)
            again.counted()
        if taken.done and self._is_full:
            self.notify()

    # lines

    def _on_line(self, text: bytes, logs: frozenset[str], outgoing: Outgoing | None) -> None:
        message_id = ""
        if outgoing is not None and outgoing.token is None:
            # an evaluation, whose key is the id itself
            message_id = str(outgoing.key)
        elif outgoing is not None and outgoing.key != outgoing.token.key:
            message_id = str(outgoing.key)
        self._tell(self._events.line(text, logs, message_id))

    def _note(self, text: str) -> None:
        self._tell(Fact(FactKind.NOTE, self._core.clock(), text=text))

    def _tell(self, fact: Fact) -> None:
        if self._is_over or self._core.settlement.is_stuck:
            # nothing is committed any more, or for long, that it could go with: lines must not gather in memory
            self._core.log.write([fact])
        else:
            self._core.settlement.tell(fact)
