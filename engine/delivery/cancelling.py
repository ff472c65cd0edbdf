"""Cancel recipients so that the log and the events of each tell of it.

Layer: orchestration.  Spec: events-dane 2.1 (`msg:fail:internal`, `msg:complete`), EV-12.
A person cancels with a core that is opened for just that and never runs; an engine that has a recipient in flight
meanwhile tells of it when it settles it, or whoever recovers it.  All of it happens in the queue's thread.
Invariants: the lines are written before the commit that cancels, the events are part of it; what is stored here
belongs to nobody once the core is retired, and the engines that run look for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..events import Contact
from ..logs.facts import FactKind
from ..queue.model import CANCELLED_TEXT, Claim, Filter, cancelled
from .raised import Raised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..queue.model import Changed, OutboxEvent, Outcome, Recovered
    from .core import Core


def cancel(core: Core, where: Filter) -> Changed:
    """Take recipients back for good, and tell of each.

    Raises:
        NoSuchJob, StoreError: see `queue.store.Store.cancel`.
    """
    store, owner = core.database.store, core.engine.owner

    def tell(found: Sequence[Recovered]) -> list[OutboxEvent]:
        raised = raise_cancelled(core, found)
        core.log.write(raised.facts)
        return raised.events

    changed = store.cancel(where, core.clock(), owner=owner, tell=tell)
    for job in changed.completed:
        raised = core.raise_completion_of_job(job)
        store.settle(owner, (), core.clock(), events=raised.events)
        completion = core.completion_of_job(job)
        core.log.write([*([] if completion is None else [completion]), *raised.facts])
    return changed


def raise_settled(core: Core, outcomes: Sequence[Outcome]) -> Raised:
    """What is to be told of recipients whose settlement ended them, since they had been cancelled."""
    found: list[Recovered] = []
    for outcome in outcomes:
        for view in core.database.store.recipients(Filter(recipient_id=outcome.recipient_id), 1):
            # the attempt that has just ended is counted already
            found.append(cancelled(view.recipient_id, outcome.epoch, view.address, view.attempts))
    return raise_cancelled(core, found)


def raise_cancelled(core: Core, found: Sequence[Recovered]) -> Raised:
    """The lines and events of recipients that are cancelled."""
    every = Raised()
    for each in found:
        context = core.jobs.load_now_or_none(each.job_id)
        claim = Claim(each.recipient_id, each.epoch, each.address, each.attempts, False, 0.0)
        fact = core.fact(FactKind.FAILED, context, claim, text=CANCELLED_TEXT)
        lines = core.completed(fact, context)
        if core.events is None:
            every.facts += lines
            continue
        raised = core.events.on_failed(context, claim, CANCELLED_TEXT, Contact(), fact.message_id, lines)
        every.facts += raised.facts
        every.events += raised.events
    return every
