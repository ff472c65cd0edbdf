"""Cancelling: each recipient is told of in the log and by its event, whoever ends it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.delivery import outbox as outbox_module
from engine.delivery import run as engine_run
from engine.delivery.cancelling import cancel, raise_settled
from engine.logs.facts import Fact, FactKind
from engine.queue.model import CANCELLED_TEXT, Changed, Filter, JobCounts, OutboxEvent, OutcomeKind, SettleResult
from fakes.engine_world import MakeWorld, RealClock, World
from fakes.mx_scripts import GREET, MAIL, QUIT, servers
from fakes.patience import PATIENCE_S, until

ACTION = "event_action = '${if match{$event_name}{^msg:}{${acl{no}}}}'"
PURE = (
    "event_action = '${if eq{$event_name}{msg:fail:internal}"
    "{${if eq{$event_data}{delivery cancelled by administrator}{}fail}}}'"
)


NOTE = """event_action = '${if match{$event_name}{^msg:}{${acl{note}}}}'"""
ACLS = """
[acls]
note = "accept logwrite = $event_name <$event_data> for $local_part@$domain"
"""


def outbox(world: World) -> list[OutboxEvent]:
    return world.store.drain_outbox(world.core.engine.owner, 100)


def lines(world: World) -> list[tuple[FactKind, str, str]]:
    return [(fact.kind, fact.address, fact.text) for fact in world.log.facts]


@pytest.mark.parametrize("personalised", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_each_recipient_and_the_message_are_told_of(make_world: MakeWorld, personalised: bool, whole: bool) -> None:
    world = make_world(main=ACTION)
    job = world.add_job("a@d.example", "b@d.example", personalised=personalised)
    where = Filter(job_id=job.id) if whole else Filter(domain="d.example")
    assert cancel(world.core, where) == Changed(2, 0, (job.id,))
    assert world.store.counts(job.id) == JobCounts(total=2, cancelled=2)
    names = [event.name for event in outbox(world)]
    failed = [(FactKind.FAILED, f"{name}@d.example", CANCELLED_TEXT) for name in "ab"]
    done = (FactKind.COMPLETED, "", "")
    if personalised:
        # events-dane 2.1: msg:complete when the last recipient is done (delivered, failed or cancelled)
        assert names == ["msg:fail:internal", "msg:complete"] * 2
        assert lines(world) == [failed[0], done, failed[1], done]
    else:
        assert names == ["msg:fail:internal", "msg:fail:internal", "msg:complete"]
        assert lines(world) == [*failed, done]
    assert len({event.key for event in outbox(world)}) == len(names)


def test_without_actions_there_are_the_lines(make_world: MakeWorld) -> None:
    world = make_world()
    job = world.add_job("a@d.example")
    assert cancel(world.core, Filter(job_id=job.id)).changed == 1
    assert outbox(world) == []
    assert [kind for kind, _, _ in lines(world)] == [FactKind.FAILED, FactKind.COMPLETED]


def test_a_program_that_cannot_block_runs_at_once(make_world: MakeWorld) -> None:
    world = make_world(main=PURE)
    job = world.add_job("a@d.example")
    cancel(world.core, Filter(job_id=job.id))
    assert outbox(world) == []
    assert [kind for kind, _, _ in lines(world)] == [FactKind.FAILED, FactKind.COMPLETED], "nothing failed to expand"


def test_the_lines_are_there_before_the_commit(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(main=ACTION)
    job = world.add_job("a@d.example")
    seen: list[JobCounts] = []
    write = world.log.write

    def look(facts: list[Fact]) -> None:
        with_job = [fact for fact in facts if fact.kind is FactKind.FAILED]
        seen.extend(world.store.counts(int(fact.job)) for fact in with_job)
        write(facts)

    monkeypatch.setattr(world.log, "write", look)
    cancel(world.core, Filter(job_id=job.id))
    assert world.store.counts(job.id) == JobCounts(total=1, cancelled=1)
    assert seen, "told inside the transaction"


async def test_what_is_in_flight_is_told_of_when_it_ends(make_world: MakeWorld) -> None:
    world = make_world(main=ACTION)
    job = world.add_job("a@d.example", "b@d.example", "c@d.example", personalised=False)
    a, b = world.claim(2)
    assert cancel(world.core, Filter(job_id=job.id)) == Changed(1, 2)
    world.log.facts.clear()
    deferred = a.outcome(OutcomeKind.DEFERRED, next_attempt_at=world.clock() + 60, text="450 later")
    result = world.store.settle(world.core.engine.owner, [deferred, b.outcome(OutcomeKind.RELEASED)], world.clock())
    raised = raise_settled(world.core, result.cancelled)
    assert [event.name for event in raised.events] == ["msg:fail:internal"] * 2
    assert [(fact.kind, fact.address) for fact in raised.facts] == [
        (FactKind.FAILED, "a@d.example"),
        (FactKind.FAILED, "b@d.example"),
    ]
    assert result.completed == (job.id,)


async def test_an_engine_that_runs_runs_the_events_of_who_cancels(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "INTERVAL_S", 0.02)
    retry = f'pattern = "*"\nrule = "F,1h,5m"\n{ACLS}'
    person = make_world(main=NOTE, retry=retry, clock=RealClock())
    engine = make_world(main=NOTE, retry=retry, clock=RealClock())
    job = person.add_job("a@d.example", "b@d.example", personalised=False)
    person.store.hold(Filter(job_id=job.id))
    expected = [
        f"msg:fail:internal <{CANCELLED_TEXT}> for a@d.example",
        f"msg:fail:internal <{CANCELLED_TEXT}> for b@d.example",
        "msg:complete <> for @",
    ]
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await engine_run.run(engine.core, drain=False)

            nursery.start_soon(run)
            cancel(person.core, Filter(job_id=job.id))
            person.store.retire(person.core.engine, person.clock())
            await until(lambda: [fact.text for fact in engine.log.facts if fact.text.startswith("msg:")] == expected)
            engine.core.stop()
    assert engine.store.outbox_size() == 0


async def test_an_engine_tells_of_what_it_had_in_flight(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host answers 450 to a recipient that was cancelled meanwhile."""
    late = GREET + MAIL + "C: RCPT TO:\nS: 450 later\n" + QUIT
    async with servers([late]) as (hosts, _):
        world = make_world(main=NOTE, retry=f'pattern = "*"\nrule = "F,1h,5m"\n{ACLS}', hosts=hosts)
        job = world.add_job("a@d.example")
        settle = world.store.settle

        def cancel_first(*arguments: Any, **values: Any) -> SettleResult:
            world.store.cancel(Filter(job_id=job.id), world.clock(), tell=lambda _: [])
            return settle(*arguments, **values)

        monkeypatch.setattr(world.store, "settle", cancel_first)
        await world.run()
    assert [(fact.kind, fact.text) for fact in world.log.facts if fact.address or fact.text.startswith("msg:")] == [
        (FactKind.DEFERRED, "SMTP error from remote mail server after RCPT TO:<a@d.example>: 450 later"),
        (FactKind.FAILED, CANCELLED_TEXT),
        (FactKind.NOTE, f"msg:fail:internal <{CANCELLED_TEXT}> for a@d.example"),
        (FactKind.NOTE, "msg:complete <> for @"),
    ]
