"""What all parts of a running engine share, and how one of its claims ends.

Layer: orchestration.  Spec: design.md "Two flows", "Nothing global".
A `Core` is made by the composition root (app.py) and lives as long as one run; it owns nothing that outlives the run
but closes nothing either.  The endings of a claim stand here, in one place, because scheduler and connections both
come to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from ..events import Contact
from ..logs.facts import Fact, FactKind
from ..queue.model import OutcomeKind
from ..queue.rules import Failure
from ..queue.schedule import routing_key
from .jobs import message_id_of
from .progress import NO_SITE
from .raised import Raised
from .retry_reader import RetryReader
from .settlement import Deferral, completed_fact

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ..config import Config
    from ..expand import Scope
    from ..logs.facts import ConnectionFacts
    from ..logs.writer import LogWriter
    from ..net.tlsa_lookup import TlsaLookup
    from ..queue.model import Claim
    from ..queue.store import Engine
    from ..tls.context import TlsContexts
    from .events import Events
    from .jobs import Jobs
    from .leases import Leases
    from .limits import Limits
    from .pool import Pool
    from .progress import Progress
    from .reporting import Reporting
    from .retries import Retries
    from .routing import RouteDeferred, RouterChain
    from .settlement import Settled, Settlement, StoreThread
    from .sts import StsGate
    from .transport import Transport
    from .work import JobContext


class UntilStopped:
    """What `Core.until_stopped` gives; no generator, since each connection enters one."""

    __slots__ = ("_core", "_scope")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._scope = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        scope = self._scope
        scope.__enter__()
        if self._core.stopping.is_set():
            scope.cancel()
        self._core.waits.add(scope)
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._core.waits.discard(self._scope)
        return self._scope.__exit__(kind, error, traceback)


@dataclass(slots=True, eq=False)
class Core:
    """See the module's text.

    Attributes:
        host_name: `$primary_hostname`.
        clock: UTC epoch seconds.
        make_scope: variables -> the scope to expand options in.
        threads: runs what may block in expansions (lookups), one at a time.
        stopping: set when nothing new may begin.
        on_stop: what is called when that happens; waits: what is cancelled then (`until_stopped`).
        events: raises events; None where nobody listens to any.
    """

    config: Config
    host_name: str
    clock: Callable[[], float]
    database: StoreThread
    engine: Engine
    log: LogWriter
    retries: Retries
    routers: RouterChain
    transports: dict[str, Transport]
    contexts: TlsContexts
    tlsa: TlsaLookup
    sts: StsGate
    reporting: Reporting
    jobs: Jobs
    leases: Leases
    limits: Limits
    progress: Progress
    make_scope: Callable[[dict[str, object]], Scope]
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    stopping: trio.Event = field(default_factory=trio.Event)
    on_stop: list[Callable[[], object]] = field(default_factory=list)
    waits: set[trio.CancelScope] = field(default_factory=set)
    events: Events | None = None
    settlement: Settlement = field(init=False)
    pool: Pool = field(init=False)
    retry_reader: RetryReader = field(init=False)

    def __post_init__(self) -> None:
        self.retry_reader = RetryReader(self.database)

    def stop(self) -> None:
        """Begin nothing new; what is in flight ends in its own time."""
        self.stopping.set()
        for notify in self.on_stop:
            notify()
        for scope in self.waits:
            scope.cancel()

    def scope_for(self, context: JobContext, claim: Claim) -> Scope:
        """The scope in which the options that concern one recipient are expanded."""
        local_part, _, domain = claim.address.rpartition("@")
        sender = context.job.sender
        sender_local_part, _, sender_domain = sender.rpartition("@")
        return self.make_scope(
            {
                "local_part": local_part,
                "domain": domain,
                "sender_address": sender,
                "sender_address_local_part": sender_local_part,
                "sender_address_domain": sender_domain,
                "return_path": sender,
                "message_exim_id": message_id_of(context, claim.number),
                "message_id": message_id_of(context, claim.number),
            }
        )

    def until_stopped(self) -> UntilStopped:
        """A scope that is cancelled when the engine is to stop: for waits in which nothing is in flight."""
        return UntilStopped(self)

    # how a claim ends

    def fact(self, kind: FactKind, context: JobContext | None, claim: Claim, **values: object) -> Fact:
        """A line about one recipient; `values` are fields of `Fact`."""
        at = self.clock()
        fact = Fact(kind, at, address=claim.address, job=str(claim.job_id), **values)  # type: ignore[arg-type]  # fields
        if context is not None:
            fact.sender = context.job.sender
            if not fact.message_id:
                fact.message_id = message_id_of(context, claim.number)
        return fact

    def completed(self, fact: Fact, context: JobContext | None) -> tuple[Fact, ...]:
        """`fact`, and the line that ends its message if the recipient has a message of its own (LG-6)."""
        if context is None or not context.is_personalised:
            return (fact,)
        return fact, completed_fact(fact, context.job.created_at)

    def completion_of_job(self, job_id: int) -> Fact | None:
        """The line that ends the message that all recipients of a job share; None for other jobs.

        Called in the queue's thread.
        """
        context = self.jobs.load_now_or_none(job_id)
        if context is None or context.is_personalised:
            return None
        now = self.clock()
        created_at = context.job.created_at
        message_id = message_id_of(context, 0)
        return Fact(FactKind.COMPLETED, now, message_id=message_id, queue_time_s=now - created_at, job=str(job_id))

    def raise_completion_of_job(self, job_id: int) -> Raised:
        """The events of a job whose last recipient is done; for those of `completion_of_job`, and in its thread."""
        context = self.jobs.load_now_or_none(job_id)
        if self.events is None or context is None or context.is_personalised:
            return Raised()
        return self.events.on_completed(context, message_id_of(context, 0))

    def fail(
        self,
        context: JobContext | None,
        claim: Claim,
        text: str,
        *,
        errno: int = 0,
        router: str = "",
        transport: str = "",
        label: str = NO_SITE,
        connection: ConnectionFacts | None = None,
        log_text: str | None = None,
        contact: Contact | None = None,
        content: bytes = b"",
    ) -> None:
        """One recipient fails for good.

        Args:
            text: why, as the queue keeps it and, unless `log_text` is given, as the log tells it.
            contact: what events are told of the host, if a host is at fault; content: of the message, if it is at hand.
        """
        fact = self.fact(
            FactKind.FAILED,
            context,
            claim,
            router=router,
            transport=transport,
            connection=connection,
            errno=errno,
            text=text if log_text is None else log_text,
        )
        outcome = claim.outcome(OutcomeKind.FAILED, errno=errno, text=text)
        facts = self.completed(fact, context)
        if self.events is None:
            self.settlement.settle(claim, outcome, label, *facts)
            return
        if contact is None:
            contact = Contact(router=router, transport=transport)
        raised = self.events.on_failed(context, claim, text, contact, fact.message_id, facts, content)
        self.settlement.settle_raised(claim, outcome, label, raised)

    def defer_routing(self, context: JobContext, claim: Claim, route: RouteDeferred) -> None:
        """Routing one recipient has to wait (LG-2)."""
        domain = claim.address.rpartition("@")[2]
        fact = self.fact(FactKind.DEFERRED, context, claim, router=route.router, errno=route.errno, text=route.message)
        self.settlement.defer(
            Deferral(
                claim,
                fact,
                routing_key(domain),
                Failure(route.retry_name),
                (domain,),
                None,
                is_frozen=route.is_frozen,
                own_message_at=context.job.created_at if context.is_personalised else None,
            ),
            NO_SITE,
        )

    def on_settled(self, settled: Settled) -> None:
        """Count what a commit did."""
        count = self.progress.count
        for (label, kind, was_waiting, in_doubt), number in settled.counts.items():
            count(kind, label or NO_SITE, was_waiting=was_waiting, in_doubt=in_doubt, number=number)
        for epoch, number in settled.epochs.items():
            self.leases.close(epoch, number)
        for job_id in settled.completed:
            self.jobs.forget(job_id)
