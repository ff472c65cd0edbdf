"""One run of the engine: from the first claim to the last commit.

Layer: orchestration.  Spec: design.md "Command line" (`send`, `run`), "Queue"; store.py "What a crash leaves".
Three circles of tasks, each ended by the one inside it: the connections and the tasks that find routes; the claim loop
and the chores (leases kept up, dead engines cleared up after, expired jobs, the outbox); the settlement, which ends
last. A stop lets what is in flight end for `shutdown_timeout` seconds, then cuts it off; what was cut off is in doubt
where its final octet may have gone, and given back otherwise.
Invariants: when `run` returns, everything that was decided is committed and every claim is settled or given back; when
it raises `StoreError`, the in-flight journal tells the next engine what was under way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ..logs.facts import ConnectionFacts, Fact, FactKind
from ..queue.model import Claim, RecoveryKind
from ..queue.store import QueueFull, QueueLocked
from .cancelling import raise_cancelled, raise_settled
from .events import split_label
from .jobs import message_id_of
from .lag import LagWatch
from .outbox import Outbox
from .pool import Pool
from .scheduler import Scheduler
from .settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..queue.model import OutboxEvent, Recovered
    from .core import Core
    from .events import Events

#: seconds between looks for engines that have died
RECOVER_INTERVAL_S: Final = 15.0
#: seconds between looks for jobs that have expired
EXPIRY_INTERVAL_S: Final = 10.0
#: seconds between looks at how far actions are behind
LAG_INTERVAL_S: Final = 1.0
#: seconds between two sweeps of old retry records
SWEEP_INTERVAL_S: Final = 3600.0

_RECOVERED_KINDS: Final = {
    RecoveryKind.IN_DOUBT: FactKind.IN_DOUBT,
    RecoveryKind.DELIVERED: FactKind.DELIVERED,
    RecoveryKind.FAILED: FactKind.FAILED,
    RecoveryKind.DEFERRED: FactKind.DEFERRED,
    RecoveryKind.CANCELLED: FactKind.FAILED,
}


async def run(core: Core, *, job_id: int | None = None, drain: bool = True, wait: bool = False) -> None:
    """Deliver until there is nothing left to do or `core.stop` was called.

    Args:
        job_id: this job only; None for all.
        drain: end when nothing is due any more; otherwise only when stopped.
        wait: with `drain`, stay until everybody is settled.

    Raises:
        StoreError: the queue cannot be used any more.
    """
    scheduler = Scheduler(core, job_id=job_id, drain=drain, wait=wait)
    core.settlement = Settlement(
        core.database, core.engine, core.log, core.retries, core.clock, scheduler.on_settled, core.completion_of_job
    )
    outbox = Outbox(core, core.events) if core.events is not None else None
    workers = core.events.workers if core.events is not None else None
    core.settlement.on_cancelled = partial(raise_settled, core)
    if outbox is not None:
        core.settlement.on_completed, core.settlement.on_stored = core.raise_completion_of_job, outbox.on_stored
    try:
        async with trio.open_nursery() as service:
            if workers is not None:
                await service.start(workers.run)
            async with trio.open_nursery() as outer:
                outer.start_soon(core.settlement.run)
                async with trio.open_nursery() as chores:
                    _start_chores(core, scheduler, chores, outbox)
                    is_told = await _deliver(core, scheduler, outbox)
                    chores.cancel_scope.cancel()
                scheduler.release_waiting()
                core.settlement.close()
            if outbox is not None:
                await outbox.finish(timeout_s=core.config.main.shutdown_timeout, is_told=is_told)
            service.cancel_scope.cancel()
    except* Exception as group:
        # strict groups hide the one error that ended the run inside nurseries that know of no other
        raise _only(group) from None
    with trio.move_on_after(core.config.main.shutdown_timeout):
        # an expansion that nobody waits for any more may still be looking something up
        async with core.threads:
            pass
    if outbox is not None:
        await _look_at_outbox(core)
    await core.database.call(core.database.store.retire, core.engine, core.clock())


async def _deliver(core: Core, scheduler: Scheduler, outbox: Outbox | None) -> bool:
    """Deliver to the end; True if that came from outside."""
    is_told = False
    cut_off = trio.CancelScope()
    async with trio.open_nursery() as watch:
        watch.start_soon(_cut_off_when_stopped, core, cut_off)
        with cut_off:
            async with trio.open_nursery() as workers:
                core.pool = Pool(core, workers)
                await _recover(core, outbox)
                await core.limits.begin()
                watch.start_soon(core.limits.run)
                async with trio.open_nursery() as routes:
                    await scheduler.run(routes)
                    is_told = core.stopping.is_set()
                    if is_told:
                        routes.cancel_scope.cancel()
                # nothing will be added: idle connections need not wait, busy ones end their work
                core.stop()
        watch.cancel_scope.cancel()
    return is_told


async def _cut_off_when_stopped(core: Core, scope: trio.CancelScope) -> None:
    await core.stopping.wait()
    await trio.sleep(core.config.main.shutdown_timeout)
    if core.pool.open_count:
        text = f"{core.pool.open_count} connections cut off: shutdown_timeout is over"
        core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=text))
    scope.cancel()


# chores


def _start_chores(core: Core, scheduler: Scheduler, nursery: trio.Nursery, outbox: Outbox | None) -> None:
    nursery.start_soon(_tell_if_nothing_is_validated, core)
    if outbox is not None:
        nursery.start_soon(outbox.run)
    lease_time = core.config.main.lease_time
    chores: tuple[tuple[float, Callable[[], Awaitable[object]]], ...] = (
        (lease_time / 3, lambda: _extend(core, lease_time)),
        (RECOVER_INTERVAL_S, lambda: _recover(core, outbox)),
        (EXPIRY_INTERVAL_S, scheduler.fail_expired),
        (SWEEP_INTERVAL_S, lambda: _sweep(core)),
    )
    if outbox is not None:
        lag = LagWatch(core.config.actions.outbox_limit)
        chores += ((LAG_INTERVAL_S, lambda: _look_at_outbox(core, lag)),)
    for interval_s, chore in chores:
        nursery.start_soon(_repeat, core, interval_s, chore)


async def _look_at_outbox(core: Core, lag: LagWatch | None = None) -> None:
    """Let the display, and the log, say how far actions are behind."""
    report = await core.database.call(core.database.store.outbox_report)
    progress = core.progress
    progress.events, progress.dead = report.waiting, report.dead
    progress.events_behind_s = 0.0 if report.oldest_at is None else max(0.0, core.clock() - report.oldest_at)
    workers = core.events.workers if core.events is not None else None
    groups = workers.hub.report() if workers is not None else []
    for group in groups:
        # a group whose workers have left keeps what was last known of it
        progress.actions[group.group] = {
            "workers": group.workers,
            "waiting": group.waiting,
            "unacknowledged": group.unacknowledged,
            **asdict(group.counts),
        }
    for line in lag.look(core.clock(), report, groups) if lag is not None else ():
        core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=line))


async def _repeat(core: Core, interval_s: float, chore: Callable[[], Awaitable[object]]) -> None:
    while True:
        await trio.sleep(interval_s)
        try:
            await chore()
        except (QueueLocked, QueueFull) as error:
            # the next time may do; what must not wait is the settlement's part
            core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=f"queue: {error}"))


async def _tell_if_nothing_is_validated(core: Core) -> None:
    """R10: a resolver that does not validate switches DANE off, and nobody would know."""
    tries = any(transport.options.hosts_try_dane for transport in core.transports.values())
    requires = any(transport.options.hosts_require_dane for transport in core.transports.values())
    if (tries or requires) and await core.tlsa.validates() is False:
        text = "DNS: the resolver does not validate (no AD bit in its answer for the root): DANE is not used"
        core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=text))


async def _extend(core: Core, lease_time: float) -> None:
    epochs = core.leases.epochs
    if epochs:
        until = core.clock() + lease_time
        lost = await core.database.call(core.database.store.extend, core.engine.owner, epochs, until)
        core.leases.extend(until, lost)


async def _sweep(core: Core) -> None:
    before = core.clock() - core.config.main.retry_data_expire
    await core.database.call(core.database.store.drop_retry_records, before)


async def _recover(core: Core, outbox: Outbox | None) -> None:
    await core.database.call(recover_now, core)
    if outbox is not None:
        outbox.look_again()


def recover_now(core: Core) -> None:
    """Clear up after engines that are gone, and log what is known of what they were doing.  In the queue's thread."""

    def log_before_the_commit(recipients: Sequence[Recovered]) -> None:
        # a kill right after the commit must not hide what was in doubt
        core.log.write([fact for recovered in recipients for fact in _recovered_facts(core, recovered)])

    recovery = core.database.store.recover(
        core.engine.owner,
        core.clock(),
        in_doubt_delay_s=core.config.main.in_doubt_delay,
        describe=partial(_events_of, core, core.events),
        witness=log_before_the_commit,
    )
    raise_completions(core, recovery.completed)
    notes: list[str] = []
    if recovery.engines or recovery.recipients:
        kinds = Counter(recovered.kind for recovered in recovery.recipients)
        doubtful, ended = kinds[RecoveryKind.IN_DOUBT], kinds[RecoveryKind.CANCELLED]
        notes.append(
            f"recovered after engine {', '.join(map(str, recovery.engines)) or 'lost its leases'}:"
            f" {doubtful} in doubt, {kinds.total() - doubtful - ended} settled from the journal,"
            f" {recovery.released} given back{f', {ended} cancelled' if ended else ''}"
        )
    if recovery.events:
        what = "wait for an engine that listens to events" if core.events is None else "are handed on again"
        notes.append(f"{recovery.events} events that it had not seen acknowledged {what}")
    notes += [
        f"job {job_id} is held: its loading was cut off after part of it could have been sent"
        for job_id in recovery.held_jobs
    ]
    facts = [Fact(FactKind.NOTE, core.clock(), text=text) for text in notes]
    facts += [fact for fact in map(core.completion_of_job, recovery.completed) if fact is not None]
    if facts:
        core.log.write(facts)


def raise_completions(core: Core, jobs: Sequence[int]) -> None:
    """Raise what ends the messages of jobs whose last recipient was done before.  In the queue's thread."""
    if core.events is not None and jobs:
        raised = [core.raise_completion_of_job(job) for job in jobs]
        stored = [event for each in raised for event in each.events]
        core.database.store.settle(core.engine.owner, (), core.clock(), events=stored)


def _events_of(core: Core, events: Events | None, recovered: Recovered) -> list[OutboxEvent]:
    """The events of one recipient whose engine could not raise them.  In the queue's thread."""
    if events is None:
        return []
    if recovered.kind is RecoveryKind.CANCELLED:
        return raise_cancelled(core, (recovered,)).events
    context = core.jobs.load_now_or_none(recovered.job_id)
    claim = Claim(recovered.recipient_id, recovered.epoch, recovered.address, recovered.attempts, False, 0.0)
    message_id = message_id_of(context, recovered.number) if context is not None else ""
    return events.on_recovered(recovered.kind, context, claim, message_id, recovered.host, recovered.text)


def _recovered_facts(core: Core, recovered: Recovered) -> tuple[Fact, ...]:
    """The lines of one recipient whose engine could not write them.  In the queue's thread."""
    context = core.jobs.load_now_or_none(recovered.job_id)
    name, _, address = split_label(recovered.host)[0].partition(" ")
    connection = ConnectionFacts(name, address.strip("[]"), 0) if name else None
    fact = Fact(
        _RECOVERED_KINDS[recovered.kind],
        core.clock(),
        message_id=message_id_of(context, recovered.number) if context is not None else "",
        address=recovered.address,
        sender=context.job.sender if context is not None else "",
        connection=connection,
        text=recovered.text,
        job=str(recovered.job_id),
    )
    is_settled = recovered.kind in (RecoveryKind.DELIVERED, RecoveryKind.FAILED, RecoveryKind.CANCELLED)
    return core.completed(fact, context) if is_settled else (fact,)


def _only(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
