"""How events are raised: who listens, what is evaluated here and now, what is stored, and what an action worker does.

Layer: orchestration.  Spec: events-dane section 1 (EV-1 to EV-9); design.md "Events and action workers".

    the string of event_action     pure: evaluated here and now, whatever the event
      msg:*   else an `OutboxEvent`, committed with the outcome it tells of, run by delivery/outbox.py
      others  else in an action worker, while its step waits so long at most; without workers in `Core.threads`
    handlers of workers            after the string, and only if they asked for the event
      msg:*   an `OutboxEvent` of its own
      others  sent once; where a step can be refused, and the string has not, those that may veto are asked

Invariants: an event that nobody listens to is never built; `stored` is safe in any thread, and what it logs goes with
the outcome; an expansion that fails is two log lines (main and panic) and changes nothing (EV-5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ..actions._ring import Packed
from ..actions.channel import Outgoing
from ..actions.frames import Status as AnswerStatus
from ..actions.frames import state_frame
from ..errors import ActionError
from ..events import BY_NAME, CATALOGUE, NOTHING, Granularity, Option, Result, run
from ..events.fields import FIELDS, MAKERS
from ..events.happening import CONTACT_VARIABLES, VARIABLES
from ..logs.facts import Fact, FactKind
from ..queue.model import PROGRAM, OutboxEvent
from .stored import REDELIVERED, Layout, join_audience, pack_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from ..actions.frames import ProgramText
    from ..actions.hub import Hub, Refusal
    from ..actions.workers import Workers
    from ..events import Action, Actions, EventRow, Happening
    from ..expand import Scope
    from ..expand.searches import Lookups
    from .core import Core
    from .raised import Raised
    from .stored import Stored

_NO_ACTIONS: Final[dict[str, Action]] = {}


@dataclass(slots=True, eq=False)
class AclVariables:
    """What ACLs set in the events of one connection, for the later ones of the same (EV-8)."""

    acl_c: MutableMapping[str, bytes] = field(default_factory=dict)
    acl_m: MutableMapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens to an event of a transport.

    Attributes:
        action: the string of event_action, unless that does nothing.
        is_handed: a handler of a worker wants it.
        layout: of what the string is told, if it is not evaluated at once; fields: of what handlers are told.
        flat: the layouts that pack an event about a recipient without a `Happening`; empty where one is needed.
    """

    row: EventRow
    action: Action | None
    is_handed: bool
    layout: Layout | None
    fields: Layout
    flat: tuple[Layout, ...]


class Raiser:
    """See the module's text.

    Args:
        actions: transport, "" for [main] -> event -> what its string does.
        choices: transport, "" for [main] -> whose handlers get its events (`events.choice`); all where it is not there.
        workers: run what may block, unless there are none.
    """

    def __init__(
        self,
        core: Core,
        actions: Mapping[str, Actions],
        choices: Mapping[str, tuple[str, ...]] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._core = core
        self._actions = actions
        self._choices = choices or {}
        self.workers = workers
        self._lookups: Lookups | None = None
        #: runs the programs of stored events where there are no workers, one at a time
        self.threads = core.threads
        self._listeners: dict[tuple[str, str], Listener | None] = {}
        self._watched: dict[str, bool] = {}
        if workers is not None:
            workers.hub.on_change = self._forget_listeners

    def use_lookups(self, lookups: Lookups) -> None:
        """Let stored events look up by `lookups`, which nobody else uses, in a thread beside that of the engine."""
        self._lookups = lookups
        self.threads = trio.CapacityLimiter(1)

    # who listens

    @property
    def runs_in_workers(self) -> bool:
        """Whether programs that may block run in action workers."""
        return self.workers is not None and self.workers.count > 0

    def action(self, transport: str, event: str) -> Action | None:
        """What the string does at an event of a transport; "" for those of [main]."""
        return self._actions.get(transport, _NO_ACTIONS).get(event)

    def choice(self, transport: str) -> tuple[str, ...] | None:
        """Whose handlers get the events of a transport; None for all that ask for them."""
        return self._choices.get(transport)

    def listens(self, transport: str, event: str) -> Listener | None:
        """Who listens to an event of a transport, "" for those of [main]; None for nobody."""
        known = self._listeners
        place = (transport, event)
        try:
            return known[place]
        except KeyError:
            # `known` is of before what may change meanwhile
            found = known[place] = self._find_listener(transport, BY_NAME[event])
            return found

    def _find_listener(self, transport: str, row: EventRow) -> Listener | None:
        if row.option is (Option.MAIN if transport else Option.TRANSPORT):
            return None
        action = self.action(transport, row.name)
        is_handed, audience = False, ""
        if self.workers is not None:
            hub, choice = self.workers.hub, self.choice(transport)
            if _is_kept(row):
                is_handed = hub.wants(row.name, choice)
                audience = join_audience(hub.audience(row.name, choice))
            else:
                is_handed = hub.wants_live(row.name, choice) or (row.is_veto and hub.may_refuse(row.name, choice))
        if action is None and not is_handed:
            return None
        layout = None
        if action is not None and not action.is_pure:
            makers = {**VARIABLES, "event_name": lambda _: row.name}
            names, headers = action.scope_names, action.wants_headers
            layout = _layout(row.name, transport, names, makers, handler=PROGRAM, wants_headers=headers)
        fields = _layout(row.name, transport, FIELDS[row.name], MAKERS, group=audience)
        told = tuple([each for each in (layout, fields if is_handed else None) if each is not None])
        # a string that is evaluated at once reads a `Happening`
        is_flat = all(each.is_flat for each in told) and (layout is not None or action is None)
        return Listener(row, action, is_handed, layout, fields, told if is_flat else ())

    def _forget_listeners(self) -> None:
        # new ones, since another thread may be adding to these
        self._listeners = {}
        self._watched = {}

    def wants_message(self, transport: str, event: str) -> bool:
        """Whether the action of an event may read the message itself."""
        action = self.action(transport, event)
        return action is not None and (action.wants_headers or "message_size" in action.names)

    def has_any(self, transport: str) -> bool:
        """Whether anybody listens to any event of a transport at all."""
        known = self._watched
        if transport not in known:
            known[transport] = any(self.listens(transport, row.name) is not None for row in CATALOGUE)
        return known[transport]

    # live events

    async def live(self, transport: str, event: str, it: Happening, variables: AclVariables | None = None) -> Result:
        """Raise an event whose step waits for the result.  Never raises for what the string, or a handler, does."""
        listener = self.listens(transport, event)
        if listener is None:
            return NOTHING
        it.now = self._core.clock()
        result = NOTHING
        if listener.action is not None:
            result = await self._expand(listener.action, it, variables or AclVariables())
        if listener.is_handed and self.workers is not None:
            refusal = await self._hand_over(self.workers.hub, listener, self.choice(transport), it, bool(result.text))
            result = result if refusal is None else Result(refusal.text)
        return result

    async def _expand(self, action: Action, it: Happening, variables: AclVariables) -> Result:
        facts: list[Fact] = []
        if not action.is_pure and self.workers is not None and self.runs_in_workers:
            result = await self._evaluate(self.workers.hub, action, it, variables)
        else:
            headers = it.headers() if action.wants_headers else ()
            scope = self._scope(action.gather(it), headers, it.message_id, facts)
            scope.acl_c, scope.acl_m = variables.acl_c, variables.acl_m
            if action.is_pure:
                result = run(action, scope)
            else:
                result = await self._run_in_thread(action, scope)
        if result.error:
            facts.append(self.failure(action, result, it.message_id))
        for fact in facts:
            self._core.settlement.tell(fact)
        return result

    async def _evaluate(self, hub: Hub, action: Action, it: Happening, variables: AclVariables) -> Result:
        options = self._core.config.actions
        headers = it.headers() if action.wants_headers else ()
        state = state_frame(headers, variables.acl_m, variables.acl_c)
        values = action.gather(it)
        program = self.program(hub, action, tuple(values))
        try:
            packed = Packed(pack_values(values.values()))
            about = Outgoing(None, it.message_id, b"", ())
            answer = await hub.evaluate(program, packed, state, timeout_s=options.event_timeout, about=about)
        except ActionError as error:
            return self._silence(action, str(error))
        variables.acl_m.update(answer.state.get("acl_m", {}))
        variables.acl_c.update(answer.state.get("acl_c", {}))
        if answer.status is AnswerStatus.DONE:
            return Result(answer.text)
        return Result(b"", answer.text.decode("utf-8", "surrogateescape"), answer.status is AnswerStatus.DEFERRED)

    async def _run_in_thread(self, action: Action, scope: Scope) -> Result:
        """Run a string that may block, where there are no workers."""
        timeout_s = self._core.config.actions.event_timeout
        with trio.move_on_after(timeout_s):
            # what is too late goes on without us, and nothing else is run in its thread meanwhile
            return await trio.to_thread.run_sync(run, action, scope, limiter=self._core.threads, abandon_on_cancel=True)
        return self._silence(action, f"no answer in {timeout_s}s")

    def _silence(self, action: Action, error: str) -> Result:
        """What it means that a string has not been expanded in time (`event_timeout_action`)."""
        options = self._core.config.actions
        if options.event_timeout_action == "refuse" and action.row.is_veto:
            return Result(f"no answer in {options.event_timeout}s".encode())
        return Result(b"", error)

    async def _hand_over(
        self, hub: Hub, listener: Listener, choice: tuple[str, ...] | None, it: Happening, is_refused: bool
    ) -> Refusal | None:
        """Send a live event to who wants it, and ask who may refuse it."""
        row = listener.row
        shape = hub.shape(row.name, FIELDS[row.name])
        values = Packed(listener.fields.values(it))
        hub.publish(shape, values, handlers=choice)
        if is_refused or not row.is_veto or not hub.may_refuse(row.name, choice):
            return None
        return await hub.ask(shape, values, handlers=choice)

    def program(self, hub: Hub, action: Action, names: tuple[str, ...]) -> ProgramText:
        """The string of an action for workers, given values of these names."""
        constants = {
            **action.constants,
            "event_name": action.row.name.encode(),
            "primary_hostname": self._core.host_name.encode(),
        }
        return hub.program(action.program.source, action.where, names, constants)

    # events that tell of an outcome

    def stored(self, transport: str, event: str, it: Happening, key: str, raised: Raised) -> None:
        """Raise an event whose result changes nothing: evaluated now if that cannot block, else added to `raised`.

        Args:
            key: tells it from every other event, and is the same when the same is raised again.
        """
        listener = self.listens(transport, event)
        if listener is not None:
            self._store(listener, it, key, raised)

    def _store(self, listener: Listener, it: Happening, key: str, raised: Raised) -> None:
        """As `stored`, for those who listen."""
        action = listener.action
        it.now = self._core.clock()
        if listener.layout is not None:
            raised.events.append(listener.layout.told(key, it))
        elif action is not None:
            headers = it.headers() if action.wants_headers else ()
            result = run(action, self._scope(action.gather(it), headers, it.message_id, raised.facts))
            if result.error:
                raised.facts.append(self.failure(action, result, it.message_id))
        if listener.is_handed:
            raised.events.append(listener.fields.told(key, it))

    def run_stored(self, event: OutboxEvent, stored: Stored, facts: list[Fact]) -> Result:
        """Run the string of a stored event; blocks.  Nothing is done for one that has no action any more."""
        action = self.action(stored.transport, event.name)
        if action is None:
            return NOTHING
        variables = {**stored.variables(), REDELIVERED: event.redelivered}
        scope = self._scope(variables, stored.headers, stored.message_id, facts)
        if self._lookups is not None:
            scope.lookups = self._lookups
        result = run(action, scope)
        if result.error and not result.is_deferral:
            facts.append(self.failure(action, result, stored.message_id))
        return result

    def give_up_at(self, event: OutboxEvent) -> float:
        """Until when a lookup of a stored event that cannot be done is tried again, in UTC epoch seconds."""
        return event.stored_at + self._core.config.actions.give_up

    def failure(self, action: Action, result: Result, message_id: str) -> Fact:
        """The line of an expansion that failed (EV-5)."""
        text = action.failure_text(result.error)
        return Fact(FactKind.NOTE, self._core.clock(), message_id=message_id, text=text, is_panic=True)

    def _scope(
        self, values: Mapping[str, object], headers: tuple[bytes, ...], message_id: str, facts: list[Fact]
    ) -> Scope:
        scope = self._core.make_scope(dict(values))
        scope.headers = headers

        def logwrite(text: bytes, logs: frozenset[str]) -> None:
            facts.append(self.line(text, logs, message_id))

        scope.logwrite = logwrite
        return scope

    def line(self, text: bytes, logs: frozenset[str], message_id: str) -> Fact:
        """A line that an action writes: with the message that it is about (EV-7)."""
        shown = text.decode("utf-8", "surrogateescape")
        return Fact(FactKind.NOTE, self._core.clock(), message_id=message_id, text=shown, is_panic="panic" in logs)


def _layout(
    event: str,
    transport: str,
    names: tuple[str, ...],
    makers: Mapping[str, Callable[[Happening], object]],
    *,
    handler: str = "",
    group: str = "",
    wants_headers: bool = False,
) -> Layout:
    kept = next((number for number, name in enumerate(names) if name not in CONTACT_VARIABLES), len(names))
    chosen = [makers[name] for name in names]
    return Layout(event, transport, names, chosen, kept, handler=handler, group=group, wants_headers=wants_headers)


def _is_kept(row: EventRow) -> bool:
    """Whether it goes to the outbox: nobody waits for it."""
    return row.is_stored or row.granularity is Granularity.LOOKUP
