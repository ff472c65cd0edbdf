"""Carry messages over one session, and settle each recipient by what came back.

Layer: orchestration.  Spec: RT-1 to RT-6, RT-14, RT-15 of events-dane; design.md "Speed".
The session pulls: it asks for the next transaction whenever it may start one, and hands back results in order, all
synchronously, so a message costs no task, no wait and no query of its own.
Invariants: a piece of work that was taken is settled, put back or handed on, whatever happens to the connection; the
in-flight journal has it before its final octet may leave; nothing is begun for a claim whose lease may be over.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ..errors import DataError, DeliveryError, LeaseLost, Scope, StoreError
from ..events.happening import NOBODY
from ..logs.facts import Fact, FactKind
from ..policy.wishes import Wish
from ..queue.model import Outcome, OutcomeKind
from ..queue.schedule import message_key, recipient_key
from ..smtp import Content, Transaction
from .events import label_for
from .hosterrors import (
    key_of,
    log_host_error,
    on_host_error,
    on_host_success,
    place_of,
    session_connection,
    settle_without_host,
)
from .outcome import EXPIRED_TEXT, End, endings
from .settlement import Deferral
from .watch import contact_for, contact_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..net.session import Session
    from ..queue.model import Claim
    from ..smtp import TransactionResult
    from .core import Core
    from .events import Events
    from .limits import Meter
    from .outcome import Ending
    from .raised import Raised
    from .site import Site
    from .work import Work

    #: recipient id, epoch, what became of it, text of the reply
    _Known = tuple[int, int, OutcomeKind, str]

#: seconds that a connection waits for more work before it is closed; arbitrary: as long as it takes to claim and route
#: the next batches, and short enough not to hold a slot at the receiving side
IDLE_S: Final = 2.0
#: seconds to wait after trouble of our own (no disk, no descriptors), or of one connection beside others, before
#: the next is tried
BREATH_S: Final = 1.0
#: seconds between looks at a queue that takes no outcomes, while nothing new may be begun
STUCK_S: Final = 0.2
#: how often work is begun again when a connection that had already served others breaks under it
MAX_RESTARTS: Final = 3


class Carrier:
    """What one session is asked to send, and what is done with its results."""

    def __init__(self, core: Core, site: Site, number: int, session: Session) -> None:
        self._core = core
        self._site = site
        self._number = number
        self._session = session
        self._facts = session_connection(site, number, session)
        self._host_label = f"{self._facts.host} [{self._facts.address}]"
        #: what events are told of this connection
        self._contact = NOBODY
        if core.events is not None:
            self._host_label = label_for(self._host_label, site.transport.name)
            self._contact = contact_of(session) or contact_for(site, number, self._facts.port)
        self._from_mx = site.hosts[number].from_mx
        self._capabilities = session.capabilities
        self._site_label = site.label
        self._transport = site.transport.name
        #: transactions after which the connection is closed
        self._limit = min(
            (limit for limit in (site.transport.options.connection_max_messages, session.max_messages) if limit),
            default=math.inf,
        )
        self._journal = core.engine.journal
        self._clock = core.clock
        self._place = place_of(site, number)
        #: of the rate at which messages may be begun; None where there is no limit
        self._meter = core.pool.message_meter(site, self._place)
        #: it has been told to end for the sake of other engines
        self._must_leave = False
        #: it may be used on, as far as was known when something came last: until it is waited again
        self._is_proven = False
        #: transactions that had a result
        self._ended = 0
        self._delivered = False
        self._kept_content: tuple[bytes, Content] | None = None
        progress = core.progress
        progress.opened += 1
        progress.tls += session.facts.tls is not None

    async def run(self) -> None:
        """Send until nothing is left for this host, or the connection ends."""
        core, site, session = self._core, self._site, self._session
        while True:
            self._is_proven = False
            try:
                await session.run(self._next_transaction, self._on_results, self._before_final)
            except DeliveryError as error:
                if core.events is not None:
                    await session.aclose()  # events tell of its end before its host is told of
                self._on_broken(error)
                return
            except StoreError as error:
                # the journal cannot be written (disk full): nothing may be sent, and nothing was
                core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=f"queue: {error}"))
                await trio.sleep(BREATH_S)
                return
            if not session.is_usable:
                if core.events is not None:
                    await session.aclose()
                self._check_progress()
                return
            self._is_proven = False
            if self._is_worn_out() or core.stopping.is_set():
                break
            if core.settlement.is_stuck:
                await trio.sleep(STUCK_S)
            elif self._meter is not None and site.has_work_for(self._number):
                if not await self._wait_for_token(self._meter):
                    break
            elif not site.has_work_for(self._number) and (site.waiting or not await self._wait_for_work()):
                # what waits is for other hosts of the site: whoever serves it needs our place
                break
        await session.quit()

    def _is_worn_out(self) -> bool:
        session = self._session
        begun = session.sent_count
        if begun >= self._limit:
            return True
        if self._is_proven:
            return False
        if begun and trio.current_time() >= session.use_until:
            return True  # R46, R47: the TLSA records that it was proved by have had their time
        if self._must_leave or (self._core.limits.over and self._core.limits.must_leave(self._place)):
            self._must_leave = True
        self._is_proven = not self._must_leave
        return self._must_leave

    async def _wait_for_work(self) -> bool:
        """Whether work came before patience, the host's or ours, ran out."""
        is_there = await self._wait(partial(self._core.pool.wait_for_work, self._site, self._number, IDLE_S))
        return is_there and self._site.has_work_for(self._number)

    async def _wait_for_token(self, meter: Meter) -> bool:
        """Wait until another message may be begun; False if that takes so long that the connection is not kept."""
        core = self._core
        seconds = meter.wait_s(core.clock())
        if IDLE_S < seconds < math.inf:
            core.pool.rest(self._place, meter)
            return False
        return not seconds or await self._wait(partial(meter.wait, core.clock))

    async def _wait(self, until: Callable[[], Awaitable[object]]) -> bool:
        """Wait for something, for `IDLE_S` seconds at most, while nothing is sent; False if the host ends it first."""
        gone = False

        async def watch(scope: trio.CancelScope) -> None:
            nonlocal gone
            await self._session.wait_idle()
            gone = True
            scope.cancel()

        with trio.move_on_after(IDLE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                with self._core.until_stopped():
                    await until()
                nursery.cancel_scope.cancel()
        return not gone

    # what the session calls

    def _next_transaction(self) -> Transaction | None:
        core, site = self._core, self._site
        if core.stopping.is_set() or core.settlement.is_stuck or self._is_worn_out():
            return None
        if self._meter is not None and not (site.has_work_for(self._number) and self._meter.try_take(core.clock())):
            return None
        while (work := site.take(self._number)) is not None:
            if site.by_domain and site.is_foreign(work):
                # DN-11: not over this connection; it will be routed to a site of its own
                for claim in work.claims:
                    core.settlement.release(claim)
                continue
            transaction = self._begin(work)
            if transaction is not None:
                return transaction
        return None

    def _begin(self, work: Work) -> Transaction | None:
        """The transaction of a piece of work; None when nobody is left to send it to."""
        core, context = self._core, work.context
        now = self._clock()
        if not work.taken_at:
            work.taken_at = now
        expires_at = context.job.expires_at
        if expires_at is not None and now >= expires_at:
            for claim in work.claims:
                core.fail(context, claim, EXPIRED_TEXT)
            return None
        if not core.leases.holds(work.claims[0], now) or len(work.claims) > 1:
            work.claims = [claim for claim in work.claims if self._still_holds(claim, now)]
            if not work.claims:
                return None
            limit = self._session.max_recipients
            if limit is not None and len(work.claims) > limit:
                self._split(work, limit)
        capabilities = self._capabilities
        claims = work.claims
        address, merge = (claims[0].address, claims[0].merge()) if context.is_personalised else ("", {})
        try:
            rendered = context.composer.render(
                address,
                merge,
                work.message_id,
                context.job.created_at,  # the same date at every try: what is sent again is the same message
                eightbit=capabilities.eightbitmime,
                smtputf8=capabilities.smtputf8,
            )
        except DataError as error:
            for claim in claims:
                self._fail(work, claim, str(error))
            return None
        recipients = [claims[0].address.encode()] if len(claims) == 1 else [claim.address.encode() for claim in claims]
        smtputf8 = rendered.smtputf8
        if not context.sender.isascii() or not b"".join(recipients).isascii():
            smtputf8 = capabilities.smtputf8
            if not smtputf8:
                recipients = self._without_utf8(work)
                if not recipients:
                    return None
        requiretls = context.wish is Wish.REQUIRE
        return Transaction(
            context.sender,
            recipients,
            Content.of_proved(rendered.pieces, rendered.is_8bit)
            if rendered.is_proved
            else self._content(rendered.content),
            rendered.is_8bit,
            smtputf8,
            requiretls,
            # RFC 8689 §4.2.3: what says that it was not delivered must not tell what it said
            "HDRS" if requiretls else context.ret,
            context.envid,
            context.notify,
            tag=work,
        )

    def _still_holds(self, claim: Claim, now: float) -> bool:
        if self._core.leases.holds(claim, now):
            return True
        self._core.settlement.release(claim)
        return False

    def _split(self, work: Work, limit: int) -> None:
        """Keep the first `limit` recipients; the rest waits as a piece of its own."""
        rest = replace(work, claims=work.claims[limit:])
        work.claims = work.claims[:limit]
        self._site.put_back(rest)

    def _content(self, octets: bytes) -> Content:
        """The content of a transaction; the last one again when the octets are the very same."""
        if self._kept_content is None or self._kept_content[0] is not octets:
            self._kept_content = octets, Content(octets)
        return self._kept_content[1]

    def _without_utf8(self, work: Work) -> list[bytes]:
        """Fail those that a host without SMTPUTF8 cannot take (RFC 6531 §3.5); the addresses that are left."""
        kept: list[Claim] = []
        text = f"{self._facts.host} does not offer SMTPUTF8, which this address needs"
        for claim in work.claims:
            if claim.address.isascii() and work.context.sender.isascii():
                kept.append(claim)
            else:
                self._fail(work, claim, text)
        work.claims = kept
        return [claim.address.encode() for claim in kept]

    def _before_final(self, transactions: list[Transaction]) -> None:
        works: list[Work] = [transaction.tag for transaction in transactions]  # type: ignore[misc]  # set by _begin
        flights = [(claim.recipient_id, claim.epoch) for work in works for claim in work.claims]
        self._journal.begin(flights, self._host_label)
        # only now is it sure that nobody took a lease over without seeing that we began: this process may have slept
        if not self._core.leases.holds_all({epoch for _, epoch in flights}, self._clock()):
            raise LeaseLost("the lease of a recipient ran out before its message could be sent")

    def _on_results(self, results: list[TransactionResult]) -> None:
        self._is_proven = False
        known: list[_Known] = []
        try:
            for result in results:
                text = result.confirmation
                if text is None:
                    self._on_result(result, known)
                else:
                    self._on_delivered(result, text, known)
        finally:
            if known:
                self._note_replies(known)

    def _on_delivered(self, result: TransactionResult, text: str, known: list[_Known]) -> None:
        """Settle the recipients of a transaction that delivered to all of them, as nearly all do."""
        work: Work = result.transaction.tag  # type: ignore[assignment]  # set by _begin
        self._ended += 1
        for claim in work.claims:
            known.append((claim.recipient_id, claim.epoch, OutcomeKind.DELIVERED, text))
            self._deliver(work, claim, text, result, first=claim is work.claims[0])

    def _on_result(self, result: TransactionResult, known: list[_Known]) -> None:
        """Settle the recipients of one transaction; the replies that it had go to `known`."""
        work: Work = result.transaction.tag  # type: ignore[assignment]  # set by _begin
        self._ended += not result.untouched
        ended = endings(result, from_mx=self._from_mx)
        again: list[Claim] = []
        elsewhere: list[tuple[Claim, Ending]] = []
        host_errors: list[tuple[Claim, Ending]] = []
        core, content = self._core, result.transaction.content.octets
        if core.events is not None:
            # the replies to RCPT came before that to the message
            self._tell_put_off(core.events, work, ended, content)
        first = True
        for claim, ending in zip(work.claims, ended, strict=True):
            match ending.end:
                case End.DELIVERED:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.DELIVERED, ending.text))
                    self._deliver(work, claim, ending.text, result, first=first)
                    first = False
                case End.FAILED:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.FAILED, ending.text))
                    self._fail(work, claim, ending.text, content)
                case End.RECIPIENT_WAITS:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.DEFERRED, ending.text))
                    core.settlement.defer(self._recipient_deferral(work, claim, ending, content), self._site.label)
                case End.MESSAGE_WAITS:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.RELEASED, ending.text))
                    elsewhere.append((claim, ending))
                case End.IN_DOUBT:
                    self._doubt(work, claim, ending, result)
                case End.AGAIN:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.RELEASED, ""))
                    again.append(claim)
                case End.HOST_ERROR:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.RELEASED, ""))
                    host_errors.append((claim, ending))
                case End.BROKEN_OFF:
                    known.append((claim.recipient_id, claim.epoch, OutcomeKind.RELEASED, ""))
                    core.settlement.release(claim)
        if again:
            self._site.put_back(replace(work, claims=again))
        if host_errors:
            self._begin_again(work, host_errors, content)
        if elsewhere:
            self._hand_on(work, elsewhere, content)

    def _begin_again(self, work: Work, members: list[tuple[Claim, Ending]], content: bytes) -> None:
        """The connection ended under this work.  If the host is to blame, `_on_broken` takes it out of service before
        anything is taken again; if it is the message that breaks connections, it must not be the first on the next."""
        if work.restarts < MAX_RESTARTS:
            self._site.add(replace(work, claims=[claim for claim, _ in members], restarts=work.restarts + 1))
            return
        for claim, ending in members:
            self._core.settlement.defer(self._message_deferral(work, claim, ending, content), self._site.label)

    def _note_replies(self, known: list[_Known]) -> None:
        try:
            self._journal.finish(known)
        except StoreError as error:
            # the settlement is on its way; until then a crash would call these in doubt, which is safe
            self._core.settlement.tell(Fact(FactKind.NOTE, self._core.clock(), text=f"queue: {error}"))

    # endings

    def _deliver(self, work: Work, claim: Claim, text: str, result: TransactionResult, *, first: bool) -> None:
        core, site, context = self._core, self._site, work.context
        job = context.job
        now = self._clock()
        content = result.transaction.content
        # all by place: by name they would cost as much again as all else here
        fact = Fact(
            FactKind.DELIVERED,
            now,
            work.message_id,
            claim.address,
            job.sender,
            site.router,
            self._transport,
            self._facts,
            text,
            0,  # errno
            len(content),
            first,
            result.number > 1,  # reused
            result.pipelined,
            result.chunked,
            True,  # with_host
            False,  # is_panic
            context.is_personalised,  # completes
            now - job.created_at,  # queue_time_s
            now - work.taken_at,  # deliver_time_s
            context.label,
        )
        outcome = Outcome(claim.recipient_id, claim.epoch, OutcomeKind.DELIVERED)
        if core.events is None:
            core.settlement.settle(claim, outcome, self._site_label, fact)
        else:
            raised = core.events.on_delivered(self._contact, work, claim, text, content, fact)
            core.settlement.settle_raised(claim, outcome, self._site_label, raised)
        if claim.attempts:
            self._forget_retries(work, claim)
        if not self._delivered:
            self._delivered = True
            on_host_success(core, site, self._number)

    def _forget_retries(self, work: Work, claim: Claim) -> None:
        """Success and failure delete what was kept of the recipient and of its message (RT-15)."""
        drop = self._core.settlement.drop_retry
        drop(self._recipient_key(work, claim))
        for number in range(len(self._site.hosts)):
            drop(message_key(key_of(self._site, number), work.message_id))

    def _fail(self, work: Work, claim: Claim, text: str, content: bytes = b"") -> None:
        self._core.fail(
            work.context,
            claim,
            text,
            router=self._site.router,
            transport=self._site.transport.name,
            label=self._site.label,
            connection=self._facts,
            contact=self._contact,
            content=content,
        )
        if claim.attempts:
            self._forget_retries(work, claim)

    def _tell_put_off(self, events: Events, work: Work, ended: Sequence[Ending], content: bytes) -> None:
        """Raise the events of the recipients that were answered by 4xx (RT-3)."""
        for claim, ending in zip(work.claims, ended, strict=True):
            code = ending.failure.reply_code
            if ending.end is End.RECIPIENT_WAITS and code:
                raised = events.on_recipient_deferred(
                    self._contact, work, claim, ending.text, code, content, from_mx=self._from_mx
                )
                self._core.settlement.store(raised)

    def _recipient_key(self, work: Work, claim: Claim) -> str:
        include_sender = self._site.transport.options.address_retry_include_sender
        return recipient_key(claim.address, work.context.job.sender if include_sender else None)

    def _deferred_fact(self, work: Work, claim: Claim, ending: Ending) -> Fact:
        return self._core.fact(
            FactKind.DEFERRED,
            work.context,
            claim,
            message_id=work.message_id,
            router=self._site.router,
            transport=self._site.transport.name,
            connection=self._facts,
            errno=ending.errno,
            text=ending.text,
            deliver_time_s=self._core.clock() - work.taken_at,
        )

    def _recipient_deferral(self, work: Work, claim: Claim, ending: Ending, content: bytes) -> Deferral:
        subjects = claim.address, claim.address.rpartition("@")[2]
        return self._deferral(work, claim, ending, content, self._recipient_key(work, claim), subjects)

    def _message_deferral(self, work: Work, claim: Claim, ending: Ending, content: bytes) -> Deferral:
        key = message_key(key_of(self._site, self._number), work.message_id)
        subjects = self._site.hosts[self._number].name, claim.address.rpartition("@")[2]
        return self._deferral(work, claim, ending, content, key, subjects)

    def _deferral(
        self, work: Work, claim: Claim, ending: Ending, content: bytes, key: str, subjects: tuple[str, str]
    ) -> Deferral:
        created_at = work.context.job.created_at
        return Deferral(
            claim,
            self._deferred_fact(work, claim, ending),
            key,
            ending.failure,
            subjects,
            created_at,
            on_timeout=self._on_timeout(work, claim, ending, content),
            own_message_at=created_at if work.context.is_personalised else None,
        )

    def _on_timeout(
        self, work: Work, claim: Claim, ending: Ending, content: bytes
    ) -> Callable[[Sequence[Fact]], Raised] | None:
        """Raises the events of a recipient whose time turns out to be up."""
        events = self._core.events
        if events is None:
            return None
        if not events.wants_message(self._contact.transport, "msg:fail:delivery"):
            content = b""
        return partial(events.on_timed_out, work.context, claim, ending.text, self._contact, work.message_id, content)

    def _hand_on(self, work: Work, members: list[tuple[Claim, Ending]], content: bytes) -> None:
        """This host puts the message off (RT-2): the next host, or wait."""
        core, site = self._core, self._site
        claim, ending = members[0]
        core.settlement.tell(
            Fact(
                FactKind.HOST,
                core.clock(),
                message_id=work.message_id,
                connection=self._facts,
                text=ending.text,
                job=str(claim.job_id),
            )
        )
        onward = replace(
            work,
            claims=[claim for claim, _ in members],
            tried=work.tried | 1 << self._number,
            last={
                claim.recipient_id: self._message_deferral(work, claim, ending, content) for claim, ending in members
            },
            contact=self._contact,
        )
        if site.may_be_served(onward, core.clock()):
            site.put_back(onward)
            core.pool.on_work(site)
        else:
            settle_without_host(core, site, onward)

    def _doubt(self, work: Work, claim: Claim, ending: Ending, result: TransactionResult) -> None:
        """The final octet may have left and no reply came: the same message again, after a while."""
        core, content = self._core, result.transaction.content.octets
        deferral = self._message_deferral(work, claim, ending, content)
        deferral.in_doubt = True
        deferral.earliest_at = core.clock() + core.config.main.in_doubt_delay
        core.settlement.tell(
            core.fact(
                FactKind.IN_DOUBT,
                work.context,
                claim,
                message_id=work.message_id,
                router=self._site.router,
                transport=self._site.transport.name,
                connection=self._facts,
                text=ending.text,
            )
        )
        if core.events is not None:
            core.settlement.store(core.events.on_doubt(self._contact, work, claim, ending.text, content))
            if claim is work.claims[0]:
                core.settlement.store(core.events.on_deferred(work, self._contact, ending.text, ending.errno))
        core.settlement.defer(deferral, self._site.label)

    # how a connection ends

    def _on_broken(self, error: DeliveryError) -> None:
        """The connection is over (RT-1); every transaction has had its result."""
        core, site = self._core, self._site
        if error.scope is Scope.MESSAGE:
            return  # not the host's fault; the message was put off by `_on_result`
        others = site.established_to[self._number] > 1
        if self._ended > 1 or others:
            # RT-14: what happens to a connection that has served others, or beside others, says little about the host
            log_host_error(core, error, self._facts)
            if others:
                site.no_more_until = trio.current_time() + BREATH_S
            return
        self._blame_host(error)

    def _blame_host(self, error: DeliveryError) -> None:
        error.contact = self._contact
        on_host_error(self._core, self._site, self._number, error, self._facts)

    def _check_progress(self) -> None:
        """A host that takes connections and no messages would keep us connecting for ever."""
        core = self._core
        may_begin = not core.stopping.is_set() and not core.settlement.is_stuck
        if not self._ended and may_begin and self._site.has_work_for(self._number):
            error = DeliveryError("the host ended the session before it took a message", retry_name="lost_connection")
            self._blame_host(error)
