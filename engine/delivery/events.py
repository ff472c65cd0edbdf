"""Raise events: gather what they want to know, evaluate what is pure, store or run the rest.

Layer: orchestration.  Spec: events-dane sections 1 to 4 (EV-1 to EV-12); design.md "Events and action workers".

    msg:*   a result changes nothing    pure: evaluated here and now      else: an `OutboxEvent`, committed with the
                                                                          outcome it tells of, run by delivery/outbox.py
    others  a result may be a veto      pure: evaluated here and now      else: in `Core.threads`, while its step waits

There is one `Events` a running engine, and none where no `event_action` does anything: then a raising point is a look
at None.
Invariants: an event without an action is never built; `stored` is safe in any thread, and what it logs goes with the
outcome; an expansion that fails is two log lines (main and panic) and changes nothing (EV-5).
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgpack
import trio

from ..errors import DataError
from ..events import NOTHING, Contact, Happening, run
from ..events.happening import NOBODY
from ..expand.certificates import Certificate
from ..logs.facts import Fact, FactKind
from ..policy.answers import Status
from ..queue.model import OutboxEvent, RecoveryKind
from ..queue.schedule import TIMED_OUT_TEXT
from .raised import Raised

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

    from ..events import Action, Actions, Result
    from ..expand import Scope
    from ..expand.searches import Lookups
    from ..policy.answers import Answer
    from ..queue.model import Claim
    from .core import Core
    from .work import JobContext, Work

_NO_ACTIONS: Final[dict[str, Action]] = {}
#: how Exim calls the ends of a lookup; a chain of CNAMEs that fails does so at its end
_DNS_RESULTS: Final = {
    Status.NXDOMAIN: "DNS_NOMATCH",
    Status.NODATA: "DNS_NODATA",
    Status.SERVFAIL: "DNS_AGAIN",
    Status.TIMEOUT: "DNS_AGAIN",
}
#: characters of the confirmation that `msg:delivery` tells
_MAX_CONFIRMATION: Final = 1024
#: variables that hold a certificate; they travel as DER
_CERTIFICATES: Final = frozenset({"tls_out_peercert", "tls_out_ourcert"})


@dataclass(slots=True, eq=False)
class AclVariables:
    """What ACLs set in the events of one connection, for the later ones of the same (EV-8)."""

    acl_c: MutableMapping[str, bytes] = field(default_factory=dict)
    acl_m: MutableMapping[str, bytes] = field(default_factory=dict)


class Events:
    """See the module's text.

    Args:
        actions: transport, "" for [main] -> event -> what is done.
    """

    def __init__(self, core: Core, actions: Mapping[str, Actions]) -> None:
        self._core = core
        self._actions = actions
        self._lookups: Lookups | None = None
        #: runs the programs of stored events, one at a time
        self.threads = core.threads
        #: the transport that this task looks something up for; "" for routers
        self._looks_up: ContextVar[str] = ContextVar("looks_up", default="")

    def use_lookups(self, lookups: Lookups) -> None:
        """Let stored events look up by `lookups`, which nobody else uses, in a thread beside that of the engine."""
        self._lookups = lookups
        self.threads = trio.CapacityLimiter(1)

    def action(self, transport: str, event: str) -> Action | None:
        """What is done at an event of a transport; "" for those of [main]."""
        return self._actions.get(transport, _NO_ACTIONS).get(event)

    def wants_message(self, transport: str, event: str) -> bool:
        """Whether the action of an event may read the message itself."""
        action = self.action(transport, event)
        return action is not None and (action.wants_headers or "message_size" in action.names)

    def has_any(self, transport: str) -> bool:
        """Whether a transport listens to any event at all."""
        return transport in self._actions

    # live events

    async def live(self, action: Action, it: Happening, variables: AclVariables | None = None) -> Result:
        """Raise an event whose step waits for the result.  Never raises for what the string does."""
        facts: list[Fact] = []
        it.now = self._core.clock()
        headers = it.headers() if action.wants_headers else ()
        scope = self._scope(action.gather(it), headers, it.message_id, facts)
        if variables is not None:
            scope.acl_c, scope.acl_m = variables.acl_c, variables.acl_m
        if action.is_pure:
            result = run(action, scope)
        else:
            result = await trio.to_thread.run_sync(run, action, scope, limiter=self._core.threads)
        if result.error:
            facts.append(self.failure(action, result, it.message_id))
        for fact in facts:
            self._core.settlement.tell(fact)
        return result

    # events that tell of an outcome

    def stored(self, transport: str, event: str, it: Happening, key: str, raised: Raised) -> None:
        """Raise an event whose result changes nothing: evaluated now if that cannot block, else added to `raised`.

        Args:
            key: tells it from every other event, and is the same when the same is raised again.
        """
        action = self.action(transport, event)
        if action is None:
            return
        it.now = self._core.clock()
        if action.is_pure:
            headers = it.headers() if action.wants_headers else ()
            result = run(action, self._scope(action.gather(it), headers, it.message_id, raised.facts))
            if result.error:
                raised.facts.append(self.failure(action, result, it.message_id))
            return
        raised.events.append(OutboxEvent(event, key, _pack(action, it)))

    def run_stored(self, event: OutboxEvent, facts: list[Fact]) -> Result:
        """Run the action of a stored event; blocks.  Nothing is done for one that has no action any more."""
        found = _unpack(event.payload)
        if found is None:
            return NOTHING
        transport, message_id, values, headers = found
        action = self.action(transport, event.name)
        if action is None:
            return NOTHING
        scope = self._scope(values, headers, message_id, facts)
        if self._lookups is not None:
            scope.lookups = self._lookups
        result = run(action, scope)
        if result.error and not result.is_deferral:
            facts.append(self.failure(action, result, message_id))
        return result

    def failure_of(self, event: OutboxEvent, result: Result) -> Fact | None:
        """The line of a stored event that failed."""
        found = _unpack(event.payload)
        action = self.action(found[0], event.name) if found is not None else None
        return None if found is None or action is None else self.failure(action, result, found[1])

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
            # EV-7: with the message that it is about
            shown = text.decode("utf-8", "surrogateescape")
            at = self._core.clock()
            facts.append(Fact(FactKind.NOTE, at, message_id=message_id, text=shown, is_panic="panic" in logs))

        scope.logwrite = logwrite
        return scope

    # the DNS

    @contextlib.contextmanager
    def lookups_of(self, transport: str) -> Iterator[None]:
        """What is looked up in the block, by this task, is looked up for a transport."""
        token = self._looks_up.set(transport)
        try:
            yield
        finally:
            self._looks_up.reset(token)

    def on_dns_failed(self, answer: Answer) -> None:
        """`dns:fail`: a lookup found nothing or failed.  Nobody waits for it, so what may block goes to the outbox."""
        name = answer.cnames[-1] if answer.cnames else answer.name
        transport = self._looks_up.get()
        if not name or self.action(transport, "dns:fail") is None:
            return  # the root is only asked to learn whether the resolver validates
        data = f"{_DNS_RESULTS[answer.status]}:{name.replace(':', '::')}:{answer.rdtype}"
        raised = Raised()
        key = f"/{data}/{int(self._core.clock() * 1000)}/dns:fail"
        self.stored(transport, "dns:fail", Happening(Contact(transport=transport), data), key, raised)
        self._core.settlement.store(raised)

    # what is known of a message and a recipient

    def about(
        self,
        contact: Contact,
        context: JobContext | None,
        claim: Claim | None,
        message_id: str,
        data: str = "",
        *,
        errno: int = 0,
        content: bytes = b"",
    ) -> Happening:
        """What an event is told of a recipient and its message."""
        # multi-line replies are one line in a log, and in an event
        it = Happening(contact, data.replace("\n", "\\n"), errno, message_id=message_id, content=content)
        if claim is not None:
            it.address = claim.address
        if context is not None:
            it.sender = context.job.sender
            it.created_at = context.job.created_at
            if not content:
                it.compose = partial(_content_of, context, claim, message_id)
        return it

    def about_batch(self, contact: Contact, work: Work | None, data: bytes | str, *, errno: int = 0) -> Happening:
        """What an event about a host or a connection is told of the batch that it is for (1.1)."""
        it = Happening(contact, data, errno)
        if work is not None:
            context = work.context
            it.address = _shared(work.claims)
            it.message_id = work.message_id
            it.sender = context.job.sender
            it.created_at = context.job.created_at
            it.compose = partial(_content_of, context, work.claims[0], work.message_id)
        return it

    def on_delivered(
        self, contact: Contact, work: Work, claim: Claim, text: str, content: bytes, lines: Sequence[Fact]
    ) -> Raised:
        """A recipient is delivered; `lines` are those that tell of it, and perhaps of the end of its message."""
        raised = Raised()
        row, rest = lines[0], lines[1:]
        raised.facts.append(row)
        self._recipient(contact, "msg:delivery", work, claim, text[:_MAX_CONFIRMATION], raised, content)
        raised.facts += rest
        self._completed_with(work.context, claim, work.message_id, raised, content)
        return raised

    def on_failed(
        self,
        context: JobContext | None,
        claim: Claim,
        text: str,
        contact: Contact,
        message_id: str,
        lines: Sequence[Fact],
        content: bytes = b"",
    ) -> Raised:
        """A recipient fails for good: the transport's event if one was to deliver it, else that of [main] (EV-12)."""
        raised = Raised()
        event = "msg:fail:delivery" if contact.transport else "msg:fail:internal"
        it = self.about(contact, context, claim, message_id, text, content=content)
        self.stored(contact.transport, event, it, _key(message_id, claim, event), raised)
        raised.facts += lines
        if context is not None:
            self._completed_with(context, claim, message_id, raised, content)
        return raised

    def on_timed_out(
        self,
        context: JobContext,
        claim: Claim,
        text: str,
        contact: Contact,
        message_id: str,
        content: bytes,
        lines: Sequence[Fact],
    ) -> Raised:
        """A recipient's time is up: its ``==`` line goes before the event, the rest after it."""
        data = f"{text}: {TIMED_OUT_TEXT}" if text else TIMED_OUT_TEXT
        raised = self.on_failed(context, claim, data, contact, message_id, lines[1:], content)
        raised.facts.insert(0, lines[0])
        return raised

    def on_deferred(self, work: Work, contact: Contact, text: str, errno: int) -> Raised:
        """The last host of a message has been tried, and it has to wait."""
        raised = Raised()
        self._recipient(contact, "msg:defer", work, work.claims[0], text, raised, errno=errno)
        return raised

    def on_recipient_deferred(
        self, contact: Contact, work: Work, claim: Claim, text: str, code: int, content: bytes, *, from_mx: bool | None
    ) -> Raised:
        """A host answered RCPT with 4xx; no other host is tried for this recipient, so it is the last as well."""
        raised = Raised()
        # 11.6: the reply's last two digits, and whether the host came from an MX or an address record
        errno = code % 100 << 8 | ord("M" if from_mx else "A")
        for event in ("msg:rcpt:host:defer", "msg:rcpt:defer"):
            self._recipient(contact, event, work, claim, text, raised, content, errno=errno)
        return raised

    def on_doubt(self, contact: Contact, work: Work, claim: Claim, text: str, content: bytes) -> Raised:
        """A message may have been delivered."""
        raised = Raised()
        owner = contact.transport if self.action(contact.transport, "msg:indoubt") is not None else ""
        self._recipient(contact, "msg:indoubt", work, claim, text, raised, content, owner=owner)
        return raised

    def on_host_deferred(self, contact: Contact, work: Work | None, text: str, errno: int) -> Raised:
        """A host cannot be used for now; `work` is the first of what waits for it."""
        raised = Raised()
        context = work.context if work is not None else None
        claim = work.claims[0] if work is not None else None
        message_id = work.message_id if work is not None else ""
        it = self.about(contact, context, claim, message_id, text, errno=errno)
        at = int(self._core.clock() * 1000)
        key = f"{message_id}/{contact.host}/{contact.host_address}/{at}/msg:host:defer"
        self.stored(contact.transport, "msg:host:defer", it, key, raised)
        return raised

    def on_completed(self, context: JobContext, message_id: str) -> Raised:
        """The last recipient of the message that all of a job share is done."""
        raised = Raised()
        self._completed(context, message_id, raised)
        return raised

    def on_recovered(
        self, kind: RecoveryKind, context: JobContext | None, claim: Claim, message_id: str, where: str, text: str
    ) -> list[OutboxEvent]:
        """What the journal of a dead engine tells of a recipient; `where` is the label that the journal has."""
        host, transport = split_label(where)
        name, _, address = host.partition(" ")
        contact = Contact(transport=transport, host=name, host_address=address.strip("[]"))
        raised = Raised()
        event = {
            RecoveryKind.DELIVERED: "msg:delivery",
            RecoveryKind.FAILED: "msg:fail:delivery" if transport else "msg:fail:internal",
            RecoveryKind.IN_DOUBT: "msg:indoubt",
        }.get(kind)
        if event is None:
            return []
        owner = transport if self.action(transport, event) is not None or event != "msg:indoubt" else ""
        it = self.about(contact, context, claim, message_id, text)
        self.stored(owner, event, it, _key(message_id, claim, event), raised)
        if context is not None and kind is not RecoveryKind.IN_DOUBT:
            self._completed_with(context, claim, message_id, raised)
        return raised.events

    def _recipient(
        self,
        contact: Contact,
        event: str,
        work: Work,
        claim: Claim,
        data: str,
        raised: Raised,
        content: bytes = b"",
        *,
        errno: int = 0,
        owner: str | None = None,
    ) -> None:
        owner = contact.transport if owner is None else owner
        action = self.action(owner, event)
        if action is not None:
            it = self.about(contact, work.context, claim, work.message_id, data, errno=errno, content=content)
            self.stored(owner, event, it, _key(work.message_id, claim, event), raised)

    def _completed_with(
        self, context: JobContext, claim: Claim, message_id: str, raised: Raised, content: bytes = b""
    ) -> None:
        """A recipient that has a message of its own is done, and so is its message."""
        if context.is_personalised:
            self._completed(context, message_id, raised, claim, content)

    def _completed(
        self, context: JobContext, message_id: str, raised: Raised, claim: Claim | None = None, content: bytes = b""
    ) -> None:
        if self.action("", "msg:complete") is not None:
            it = self.about(NOBODY, context, claim, message_id, content=content)
            it.address = ""
            self.stored("", "msg:complete", it, f"{message_id}/msg:complete", raised)


def _key(message_id: str, claim: Claim, event: str) -> str:
    """The key of an event about a recipient: message, recipient, attempt, event."""
    return f"{message_id}/{claim.recipient_id}/{claim.attempts + 1}/{event}"


def label_for(host_label: str, transport: str) -> str:
    """What the in-flight journal keeps of a host so that its events find their transport after a crash."""
    return f"{host_label} T={transport}"


def split_label(label: str) -> tuple[str, str]:
    """Host label and transport of what `label_for` made."""
    host, mark, transport = label.partition(" T=")
    return (host, transport) if mark else (label, "")


def _shared(claims: Sequence[Claim]) -> str:
    """What the addresses of a batch have in common: all of it, one side of the ``@``, or nothing."""
    if len(claims) == 1:
        return claims[0].address
    parts = [claim.address.rpartition("@") for claim in claims]
    local_parts, domains = {part[0] for part in parts}, {part[2] for part in parts}
    return f"{''.join(local_parts) if len(local_parts) == 1 else ''}@{''.join(domains) if len(domains) == 1 else ''}"


def _content_of(context: JobContext, claim: Claim | None, message_id: str) -> bytes:
    """A message that is not at hand; b"" for one that cannot be composed.

    May run in the queue's thread, for a message that all recipients share.
    """
    address, merge = ("", {}) if claim is None else (claim.address, claim.merge())
    try:
        return context.composer.content(address, merge, message_id, context.job.created_at)
    except DataError:
        return b""


def _pack(action: Action, it: Happening) -> bytes:
    values = {name: value.der if isinstance(value, Certificate) else value for name, value in action.gather(it).items()}
    headers = it.headers() if action.wants_headers else ()
    packed: bytes = msgpack.packb((action.transport, it.message_id, values, headers), unicode_errors="surrogateescape")
    return packed


def _unpack(payload: bytes) -> tuple[str, str, dict[str, Any], tuple[bytes, ...]] | None:
    """What `_pack` made; None for what another program has put there."""
    try:
        found = msgpack.unpackb(payload, unicode_errors="surrogateescape", use_list=False)
        transport, message_id, values, headers = found
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if not isinstance(values, dict):
        return None
    for name in _CERTIFICATES & values.keys():
        if isinstance(values[name], bytes):
            values[name] = Certificate(values[name])
    return str(transport), str(message_id), values, tuple(headers)
