"""A host that cannot be used: its retry record, its line in the log, and what becomes of the work that waits for it.

Layer: orchestration.  Spec: events-dane RT-1, RT-9 to RT-13, LG-2 to LG-5, 11.2.
Invariants: a host error writes one host line (but none for -37 and -42, LG-5) and one record; work is settled exactly
when no host of its site is left for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio

from ..errors import EventRefusal
from ..events import Contact
from ..logs.facts import ConnectionFacts, Fact, FactKind
from ..policy.requirement import ERRNO_DANE
from ..policy.wishes import Wish
from ..queue.model import OutcomeKind
from ..queue.rules import Failure
from ..queue.schedule import (
    ERRNO_REMOTE_RETRY,
    Verdict,
    host_key,
    is_ultimate_timeout,
    judge_host,
    may_try_expired,
    no_host_left,
)
from .settlement import timed_out_fact
from .site import Down
from .watch import contact_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..errors import DeliveryError
    from ..net.session import Session
    from ..queue.model import Claim
    from ..queue.schedule import Postponement
    from .core import Core
    from .limits import Place
    from .site import Site
    from .work import Work

#: seconds for which a host that has failed is left alone at least; without a retry rule it would be none (RT-10)
MIN_DOWN_S: Final = 1.0
#: seconds for which what other engines have learned of a host is not looked at again
REJUDGE_S: Final = 5.0
#: errors without a host line: TLS handshake, authentication (LG-5)
_NO_HOST_LINE: Final = frozenset({-37, -42})


def port_of(site: Site, number: int) -> int:
    """The port that a host is spoken to on."""
    return site.hosts[number].port or site.transport.options.port


def place_of(site: Site, number: int) -> Place:
    """What the limits of a host are known by, over all sites and policies."""
    host = site.hosts[number]
    return host.name, host.address, port_of(site, number)


def bare_connection(site: Site, number: int) -> ConnectionFacts:
    """The facts of a connection that did not come about."""
    host = site.hosts[number]
    return ConnectionFacts(host.name, host.address, port_of(site, number), bool(host.secure))


def session_connection(site: Site, number: int, session: Session) -> ConnectionFacts:
    """The facts of a connection that is open."""
    host, facts, tls = site.hosts[number], session.facts, session.facts.tls
    where = host.name, host.address, port_of(site, number), bool(host.secure), facts.local_address
    if tls is None:
        return ConnectionFacts(*where, authenticator=facts.authenticator)
    verified = "dane" if tls.dane else "yes" if tls.verified else "no"
    return ConnectionFacts(
        *where, tls.version, tls.cipher, tls.bits, verified, tls.peer_dn, facts.authenticator, tls.ocsp
    )


def key_of(site: Site, number: int) -> str:
    """Key of a host's retry record (11.2).

    What a policy of some recipients' domain or a wish of some messages demands says nothing about the host for others,
    so their records have keys of their own.
    """
    host = site.hosts[number]
    key = host_key(host.name, host.address, port_of(site, number), site.transport.options.interface)
    if site.sts.policy is not None or site.sts.must_wait:
        key += f"/sts={host.domain}"
    if site.by_domain:
        key += f"/dane={host.domain}"
    return f"{key}/tls={site.wish.value}" if site.wish is not Wish.USUAL else key


def must_judge(core: Core, site: Site) -> bool:
    """Whether the records of a site's hosts are to be read: for the first time, or since other engines write them."""
    return not site.is_judged or (core.limits.is_shared and trio.current_time() >= site.judged_at + REJUDGE_S)


async def judge_hosts(core: Core, site: Site) -> None:
    """Read what earlier runs and other engines left about the hosts of a site, and take those that are not due for
    down (RT-11)."""
    keys = [key_of(site, number) for number in range(len(site.hosts))]
    known = await core.retry_reader.read(keys)
    if not must_judge(core, site):
        return
    site.is_judged, site.judged_at = True, trio.current_time()
    now = core.clock()
    main, options = core.config.main, site.transport.options
    for number, key in enumerate(keys):
        record, ours = known.get(key), site.records.get(number)
        if record is None or (ours is not None and ours.last_try_at >= record.last_try_at):
            continue
        if site.established_to.get(number):
            continue  # it works here, whatever somebody else has met with
        site.records[number] = record
        newest = _newest_message_at(site, now)
        verdict = judge_host(
            record,
            now,
            rule=core.retries.rule(Failure(), *_subjects(site, number)),
            message_created_at=newest,
            data_expire_s=main.retry_data_expire,
        )
        if verdict is Verdict.EXPIRED and not options.delay_after_cutoff and may_try_expired(record, newest):
            continue
        if verdict in (Verdict.NOT_DUE, Verdict.EXPIRED):
            site.set_down(number, Down(record.next_try_at, None, record.expired))


def _newest_message_at(site: Site, now: float) -> float:
    return max((work.context.job.created_at for work in site.waiting_work()), default=now)


def _subjects(site: Site, number: int) -> tuple[str, ...]:
    """Host errors match the host name first, then the domain (RT-7)."""
    host = site.hosts[number]
    return (host.name, host.domain) if host.domain else (host.name,)


def on_host_error(
    core: Core,
    site: Site,
    number: int,
    error: DeliveryError,
    connection: ConnectionFacts,
) -> None:
    """`number` cannot be used for now: log it, keep a record, settle what has no host left."""
    now = core.clock()
    log_host_error(core, error, connection)
    if core.events is not None:
        tell_host_deferred(core, site, number, error)
    postponed = postpone_host(core, site, number, error, now)
    site.set_down(number, Down(max(postponed.next_try_at, now + MIN_DOWN_S), error, postponed.timed_out))
    settle_unservable(core, site, number)


def tell_host_deferred(core: Core, site: Site, number: int, error: DeliveryError) -> None:
    """Raise `msg:host:defer`, in the name of the first of what waits for the host (1.1)."""
    if core.events is not None:
        first = next(site.waiting_work(), None)
        contact = contact_after(site, number, port_of(site, number), error)
        core.settlement.store(core.events.on_host_deferred(contact, first, _event_data(error), error.errno))


def _event_data(error: DeliveryError) -> str:
    """`$event_data` of a deferral: its text, and the system's words for a system error."""
    text = _text_beside_errno(error)
    if error.errno <= 0:
        return text
    return f"{text}: {os.strerror(error.errno)}" if text else os.strerror(error.errno)


def log_host_error(core: Core, error: DeliveryError, connection: ConnectionFacts) -> None:
    """The host line of an error (LG-5)."""
    if error.errno in _NO_HOST_LINE:
        return
    text = _text_beside_errno(error)
    core.settlement.tell(Fact(FactKind.HOST, core.clock(), connection=connection, errno=error.errno, text=text))


def _text_beside_errno(error: DeliveryError) -> str:
    """What a line says of an error beside the words of its system error number: nothing twice."""
    is_same = error.errno > 0 and error.message == os.strerror(error.errno)
    return "" if is_same else error.message


def postpone_host(core: Core, site: Site, number: int, error: DeliveryError, now: float) -> Postponement:
    """Make and keep the retry record of a host (RT-8 to RT-10)."""
    postponed = core.retries.postpone_host(
        site.records.get(number),
        key_of(site, number),
        now,
        Failure(error.retry_name, from_mx=site.hosts[number].from_mx),
        _subjects(site, number),
        errno=error.errno,
        more_errno=error.more_errno,
        text=error.message,
    )
    if postponed.record is not None:
        site.records[number] = postponed.record
        core.settlement.keep_retry(postponed.record)
    return postponed


def on_host_success(core: Core, site: Site, number: int) -> None:
    """A host works: its record goes (RT-15)."""
    if site.records.pop(number, None) is not None:
        core.settlement.drop_retry(key_of(site, number))


def settle_unservable(core: Core, site: Site, last: int | None = None) -> None:
    """Settle the work for which no host of the site is left; `last` is the host that has just failed, if any."""
    now = core.clock()
    for work in site.take_unservable(now):
        settle_without_host(core, site, work, last)


def settle_without_host(core: Core, site: Site, work: Work, last: int | None = None) -> None:
    """No host is left for `work`: it fails or waits (RT-1, RT-11, RT-12)."""
    now = core.clock()
    if core.events is not None:
        _tell_deferred(core, site, work, last)
    if work.last:
        # some host took the connection and put the message off: that is what is waited for
        for claim in work.claims:
            core.settlement.defer(work.last[claim.recipient_id], site.label)
        return
    # whoever comes after a host has failed was not tried there
    error = site.down[last].error if last is not None and last in site.down else None
    until = min((down.until for down in site.down.values()), default=now)
    is_expired = all(number in site.down and site.down[number].expired for number in range(len(site.hosts)))
    for claim in work.claims:
        if error is None or last is None:
            _settle_not_due(core, site, work, claim, until)
        elif error.permanent:
            _fail_permanently(core, site, work, claim, error, last)
        else:
            _defer(core, site, work, claim, error, last, until, is_expired=is_expired)


def _tell_deferred(core: Core, site: Site, work: Work, last: int | None) -> None:
    """Raise `msg:defer` for a message that some host has been tried for, and none is left."""
    assert core.events is not None
    error = site.down[last].error if last is not None and last in site.down else None
    if work.last:
        deferral = work.last[work.claims[0].recipient_id]
        contact = work.contact or Contact(router=site.router, transport=site.transport.name)
        raised = core.events.on_deferred(work, contact, deferral.fact.text, deferral.fact.errno)
    elif error is not None and last is not None:
        contact = contact_after(site, last, port_of(site, last), error)
        raised = core.events.on_deferred(work, contact, _event_data(error), error.errno)
    else:
        return
    core.settlement.store(raised)


def _settle_not_due(core: Core, site: Site, work: Work, claim: Claim, until: float) -> None:
    """All hosts are known to be down (RT-12)."""
    now, options = core.clock(), site.transport.options
    domain = claim.address.rpartition("@")[2]
    verdicts = [Verdict.EXPIRED if down.expired else Verdict.NOT_DUE for down in site.down.values()]
    ended = no_host_left(domain, verdicts, delay_after_cutoff=options.delay_after_cutoff)
    rule = core.retries.rule(Failure(), *_subjects(site, 0))
    fact = core.fact(
        FactKind.FAILED if ended.failed else FactKind.DEFERRED,
        work.context,
        claim,
        router=site.router,
        transport=site.transport.name,
        errno=ended.errno,
        text=ended.text,
    )
    if ended.failed:
        outcome = claim.outcome(OutcomeKind.FAILED, errno=ended.errno, text=ended.text)
        facts: Sequence[Fact] = core.completed(fact, work.context)
        if core.events is None:
            core.settlement.settle(claim, outcome, site.label, *facts)
        else:
            contact = Contact(router=site.router, transport=site.transport.name)
            raised = core.events.on_failed(work.context, claim, ended.text, contact, fact.message_id, facts)
            core.settlement.settle_raised(claim, outcome, site.label, raised)
    elif is_ultimate_timeout(rule, work.context.job.created_at, now):
        _time_out(core, site, work, claim, fact)
    else:
        outcome = claim.outcome(
            OutcomeKind.DEFERRED,
            next_attempt_at=until,
            errno=ended.errno,
            text=ended.text,
            retry_key=key_of(site, 0),
        )
        core.settlement.settle(claim, outcome, site.label, fact)


def _fail_permanently(core: Core, site: Site, work: Work, claim: Claim, error: DeliveryError, number: int) -> None:
    """5xx on the banner or to HELO, and it was the last host (RT-1)."""
    core.fail(
        work.context,
        claim,
        error.message,
        router=site.router,
        transport=site.transport.name,
        label=site.label,
        connection=bare_connection(site, number),
        contact=contact_after(site, number, port_of(site, number), error) if core.events is not None else None,
    )


def _defer(
    core: Core,
    site: Site,
    work: Work,
    claim: Claim,
    error: DeliveryError,
    number: int,
    until: float,
    *,
    is_expired: bool,
) -> None:
    rule = core.retries.rule(Failure(error.retry_name, from_mx=site.hosts[number].from_mx), *_subjects(site, number))
    fact = core.fact(
        FactKind.DEFERRED,
        work.context,
        claim,
        router=site.router,
        transport=site.transport.name,
        connection=bare_connection(site, number),
        errno=error.errno,
        text=_text_beside_errno(error),
        with_host=error.errno != ERRNO_DANE and not isinstance(error, EventRefusal),  # DN-7, 4.1, 4.2
    )
    # without a rule this host's time is up at once (RT-10), but not that of the others (RT-11)
    is_old = rule is not None and is_ultimate_timeout(rule, work.context.job.created_at, core.clock())
    if is_expired or is_old:
        contact = contact_after(site, number, port_of(site, number), error) if core.events is not None else None
        _time_out(core, site, work, claim, fact, contact)
        return
    outcome = claim.outcome(
        OutcomeKind.DEFERRED,
        next_attempt_at=until,
        errno=error.errno,
        text=error.message,
        retry_key=key_of(site, number),
    )
    core.settlement.settle(claim, outcome, site.label, fact)


def _time_out(core: Core, site: Site, work: Work, claim: Claim, deferred: Fact, contact: Contact | None = None) -> None:
    """The ``==`` line, then the ``**`` line (LG-4)."""
    failed = timed_out_fact(deferred)
    text = deferred.text or failed.text
    outcome = claim.outcome(OutcomeKind.FAILED, errno=deferred.errno or ERRNO_REMOTE_RETRY, text=text)
    facts = (deferred, *core.completed(failed, work.context))
    if core.events is None:
        core.settlement.settle(claim, outcome, site.label, *facts)
        return
    contact = contact or Contact(router=site.router, transport=site.transport.name)
    raised = core.events.on_timed_out(work.context, claim, deferred.text, contact, deferred.message_id, b"", facts)
    core.settlement.settle_raised(claim, outcome, site.label, raised)
