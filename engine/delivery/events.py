"""Raise events: what is known at each step of a delivery, and of its message and recipient, becomes an event.

Layer: orchestration.  Spec: events-dane sections 1 to 3 (EV-11, EV-12); design.md "Events and action workers".
There is one `Events` a running engine, and none where nobody can listen: then a raising point is a look at None.  How
an event is raised, and who gets it, is told in raiser.py; those of a connection are raised in watch.py.
Invariants: what is told of an outcome is committed with it; everything here but `lookups_of` is safe in any thread.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Final

from ..errors import DataError
from ..events import Contact, Happening
from ..policy.answers import Status
from ..queue.model import OutboxEvent, RecoveryKind
from ..queue.schedule import TIMED_OUT_TEXT
from ..smtp import Content
from .raised import Raised
from .raiser import Listener, Raiser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..actions.workers import Workers
    from ..events import Actions
    from ..logs.facts import Fact
    from ..policy.answers import Answer
    from ..queue.model import Claim
    from .core import Core
    from .work import JobContext, Work

#: how Exim calls the ends of a lookup; a chain of CNAMEs that fails does so at its end
_DNS_RESULTS: Final = {
    Status.NXDOMAIN: "DNS_NOMATCH",
    Status.NODATA: "DNS_NODATA",
    Status.SERVFAIL: "DNS_AGAIN",
    Status.TIMEOUT: "DNS_AGAIN",
}
#: characters of the confirmation that `msg:delivery` tells
_MAX_CONFIRMATION: Final = 1024


class Events(Raiser):
    """See the module's text; how it raises them is told in raiser.py."""

    def __init__(
        self,
        core: Core,
        actions: Mapping[str, Actions],
        choices: Mapping[str, tuple[str, ...]] | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(core, actions, choices, workers)
        #: the transport that this task looks something up for; "" for routers
        self._looks_up: ContextVar[str] = ContextVar("looks_up", default="")
        #: the contact of what is not about a host
        self._nobody = Contact()

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
        if not name or self.listens(transport, "dns:fail") is None:
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
        content: bytes | Content = b"",
    ) -> Happening:
        """What an event is told of a recipient and its message."""
        address = "" if claim is None else claim.address
        data = _one_line(data)
        if context is None:
            return Happening(contact, data, errno, address, message_id=message_id)
        job = context.job
        it = Happening(contact, data, errno, address, job.sender, message_id, job.created_at)
        if isinstance(content, Content):
            # in pieces, which are joined if somebody asks
            it.compose = partial(getattr, content, "octets")
        elif content:
            it.content = content
        else:
            it.compose = partial(_content_of, context, claim, message_id)
        return it

    def about_batch(self, contact: Contact, work: Work | None) -> Happening:
        """What an event about a connection is told of the batch that it is for (1.1)."""
        it = Happening(contact)
        if work is not None:
            context = work.context
            it.address = _shared(work.claims)
            it.message_id = work.message_id
            it.sender = context.job.sender
            it.created_at = context.job.created_at
            it.compose = partial(_content_of, context, work.claims[0], work.message_id)
        return it

    def on_delivered(
        self, contact: Contact, work: Work, claim: Claim, text: str, content: Content, line: Fact
    ) -> Raised:
        """A recipient is delivered; `line` tells of it, and perhaps of the end of its message."""
        raised = Raised([], [line])
        listener = self.listens(contact.transport, "msg:delivery")
        if listener is not None:
            self._tell(listener, contact, work, claim, text[:_MAX_CONFIRMATION], raised, content, 0, line.at)
        if line.completes:
            if len(raised.facts) > 1:
                # the message ends after what the action wrote
                line.completes = False
                raised.facts.append(line.completion())
            if self.listens("", "msg:complete") is not None:
                self._completed(work.context, work.message_id, raised, claim, content)
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
        owner = contact.transport if self.listens(contact.transport, "msg:indoubt") is not None else ""
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
        owner = transport if event != "msg:indoubt" or self.listens(transport, event) is not None else ""
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
        content: bytes | Content = b"",
        *,
        errno: int = 0,
        owner: str | None = None,
    ) -> None:
        listener = self.listens(contact.transport if owner is None else owner, event)
        if listener is not None:
            self._tell(listener, contact, work, claim, data, raised, content, errno, self._core.clock())

    def _tell(
        self,
        listener: Listener,
        contact: Contact,
        work: Work,
        claim: Claim,
        data: str,
        raised: Raised,
        content: bytes | Content,
        errno: int,
        at: float,
    ) -> None:
        """Raise an event about a recipient for those who listen to it."""
        context, message_id = work.context, work.message_id
        for layout in listener.flat:
            raised.events.append(layout.flat(contact, context.job, message_id, claim, data, errno, at))
        if not listener.flat:
            it = self.about(contact, context, claim, message_id, data, errno=errno, content=content)
            self._store(listener, it, _key(message_id, claim, listener.row.name), raised)

    def _completed_with(
        self, context: JobContext, claim: Claim, message_id: str, raised: Raised, content: bytes = b""
    ) -> None:
        """A recipient that has a message of its own is done, and so is its message."""
        if context.is_personalised:
            self._completed(context, message_id, raised, claim, content)

    def _completed(
        self,
        context: JobContext,
        message_id: str,
        raised: Raised,
        claim: Claim | None = None,
        content: bytes | Content = b"",
    ) -> None:
        listener = self.listens("", "msg:complete")
        if listener is not None:
            it = self.about(self._nobody, context, claim, message_id, content=content)
            it.address = ""
            self._store(listener, it, f"{message_id}/msg:complete", raised)


def _one_line(text: str) -> str:
    """Multi-line replies are one line in a log, and in an event."""
    return text.replace("\n", "\\n")


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
