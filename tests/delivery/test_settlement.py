"""Settlement: what is decided is committed, logged and counted together, or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import trio

from engine.delivery.settlement import Deferral
from engine.errors import StoreError
from engine.logs.facts import FactKind
from engine.queue.model import Claim, OutcomeKind, RecipientState
from engine.queue.rules import Failure
from engine.queue.schedule import recipient_key
from engine.queue.store import QueueCorrupt, QueueFull
from fakes.engine_world import MakeWorld, World
from fakes.patience import PATIENCE_S


async def commit(world: World) -> None:
    """Run the settlement until everything it has is committed."""
    world.core.settlement.close()
    with trio.fail_after(PATIENCE_S):
        await world.core.settlement.run()


def deferral(world: World, claim: Claim, code: int = 450, **values: Any) -> Deferral:
    context = world.core.jobs._make(world.store.job_or_none(claim.job_id), world.store.body(claim.job_id))  # type: ignore[arg-type]  # it is there
    fact = world.core.fact(FactKind.DEFERRED, context, claim, errno=-44, text=f"{code} later", router="smart")
    made = Deferral(
        claim,
        fact,
        recipient_key(claim.address, "news@sender.example"),
        Failure("rcpt_4xx", code),
        (claim.address, claim.address.rpartition("@")[2]),
        context.job.created_at,
    )
    return dataclasses.replace(made, **values)


def state(world: World, address: str) -> tuple[int, float, str]:
    row = world.store._db.execute("SELECT state, next_at, text FROM recipients WHERE address = ?", (address,))
    found: tuple[int, float, str] = row.fetchone()
    return found


async def test_a_delivery_is_committed_logged_and_counted(make_world: MakeWorld) -> None:
    world = make_world()
    world.add_job("a@d.example", "b@d.example")
    core = world.core
    for claim in world.claim():
        outcome = claim.outcome(OutcomeKind.DELIVERED)
        core.settlement.settle(claim, outcome, "mx", core.fact(FactKind.DELIVERED, None, claim, text="250 ok"))
    await commit(world)
    assert core.progress.delivered == 2
    assert core.progress.sites["mx"].delivered == 2
    assert [line[:16] for line in world.log.lines] == ["=> a@d.example C", "=> b@d.example C"]
    assert core.leases.epochs == ()


async def test_an_outcome_that_comes_too_late_is_told_and_not_counted(make_world: MakeWorld) -> None:
    world = make_world()
    world.add_job("a@d.example")
    (claim,) = world.claim()
    stale = dataclasses.replace(claim, epoch=claim.epoch + 7)
    fact = world.core.fact(FactKind.DELIVERED, None, stale, text="250 ok")
    world.core.settlement.settle(stale, stale.outcome(OutcomeKind.DELIVERED), "mx", fact)
    await commit(world)
    assert world.core.progress.delivered == 0
    delivered, note = world.log.lines
    assert delivered.startswith("=> a@d.example")
    assert "came after their lease was taken over" in note


async def test_a_deferral_waits_as_its_rule_says_and_leaves_a_record(make_world: MakeWorld) -> None:
    world = make_world()
    world.add_job("a@d.example")
    (claim,) = world.claim()
    world.core.settlement.defer(deferral(world, claim), "mx")
    await commit(world)
    assert state(world, "a@d.example") == (RecipientState.QUEUED, world.clock() + 300, "450 later")
    key = recipient_key("a@d.example", "news@sender.example")
    record = world.store.retry_records([key])[key]
    assert (record.first_failed_at, record.next_try_at) == (world.clock(), world.clock() + 300)
    assert [fact.kind for fact in world.log.facts] == [FactKind.DEFERRED]
    assert world.core.progress.waiting == 1


async def test_time_runs_out_after_the_last_cutoff(make_world: MakeWorld) -> None:
    """RT-9, LG-4: the `==` line, then the `**` line."""
    world = make_world()
    world.add_job("a@d.example")
    world.clock.now += 3601
    (claim,) = world.claim()
    world.core.settlement.defer(deferral(world, claim), "mx")
    await commit(world)
    assert state(world, "a@d.example")[0] == RecipientState.FAILED
    assert list(world.log.lines) == [
        "== a@d.example R=smart defer (-44): 450 later",
        "** a@d.example: retry timeout exceeded",
    ]


async def test_the_message_of_one_recipient_is_complete_when_its_time_is_up(make_world: MakeWorld) -> None:
    """LG-6."""
    world = make_world()
    world.add_job("a@d.example")
    world.clock.now += 3601
    (claim,) = world.claim()
    world.core.settlement.defer(deferral(world, claim, own_message_at=world.clock() - 3601), "mx")
    await commit(world)
    assert [line.partition(" ")[0] for line in world.log.lines] == ["==", "**", "Completed"]


async def test_without_a_rule_it_times_out_at_once(make_world: MakeWorld) -> None:
    """RT-10."""
    world = make_world(retry='pattern = "other.example"\nrule = "F,1h,5m"')
    world.add_job("a@d.example")
    (claim,) = world.claim()
    world.core.settlement.defer(deferral(world, claim), "mx")
    await commit(world)
    assert state(world, "a@d.example")[0] == RecipientState.FAILED


async def test_what_is_in_doubt_never_fails_and_never_comes_early(make_world: MakeWorld) -> None:
    world = make_world(retry='pattern = "other.example"\nrule = "F,1h,5m"')
    world.add_job("a@d.example")
    (claim,) = world.claim()
    at = world.clock() + 777
    world.core.settlement.defer(deferral(world, claim, in_doubt=True, earliest_at=at), "mx")
    await commit(world)
    assert state(world, "a@d.example")[:2] == (RecipientState.QUEUED, at)
    assert world.core.progress.in_doubt == 1
    world.clock.now = at
    (again,) = world.claim()
    assert again.in_doubt


async def test_a_frozen_recipient_waits_for_a_person(make_world: MakeWorld) -> None:
    world = make_world()
    world.add_job("a@d.example", "b@d.example")
    first, _ = world.claim()
    world.core.settlement.defer(deferral(world, first, is_frozen=True), "mx")
    await commit(world)
    assert state(world, "a@d.example")[0] == RecipientState.HELD


async def test_recipients_of_one_batch_that_share_a_key_share_its_time(make_world: MakeWorld) -> None:
    world = make_world(retry='pattern = "*"\nrule = "G,10h,5m,2"')
    world.add_job("a@d.example", "b@d.example", "c@d.example")
    for claim in world.claim():
        world.core.settlement.defer(deferral(world, claim, key="R:d.example", created_at=None))
    await commit(world)
    assert {state(world, f"{name}@d.example")[1] for name in "abc"} == {world.clock() + 300}


async def test_a_full_disk_is_waited_out(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    world.add_job("a@d.example")
    (claim,) = world.claim()
    settle = world.store.settle
    fails = [QueueFull("the disk of the queue file is full")] * 2

    def full(*args: Any, **kwargs: Any) -> Any:
        if fails:
            raise fails.pop()
        return settle(*args, **kwargs)

    monkeypatch.setattr(world.store, "settle", full)
    monkeypatch.setattr("engine.delivery.settlement.RETRY_COMMIT_S", 0.01)
    fact = world.core.fact(FactKind.DELIVERED, None, claim, text="250 ok")
    world.core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED), "mx", fact)
    await commit(world)
    assert state(world, "a@d.example")[0] == RecipientState.DELIVERED
    assert [fact.kind for fact in world.log.facts] == [FactKind.DELIVERED, FactKind.NOTE]
    assert not world.core.settlement.is_stuck


async def test_a_damaged_queue_stops_the_engine(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    world.add_job("a@d.example")
    (claim,) = world.claim()

    def damaged(*_: Any, **__: Any) -> Any:
        raise QueueCorrupt("the queue file is corrupt")

    monkeypatch.setattr(world.store, "settle", damaged)
    world.core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED), "mx")
    with pytest.raises(StoreError, match="corrupt"):
        await commit(world)
    assert world.core.progress.delivered == 0


async def test_more_than_a_batch_is_committed_in_order(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.delivery.settlement.MAX_BATCH", 3)
    world = make_world()
    world.add_job(*[f"u{number}@d.example" for number in range(10)])
    for claim in world.claim():
        fact = world.core.fact(FactKind.DELIVERED, None, claim)
        world.core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED), "mx", fact)
    await commit(world)
    assert [fact.address for fact in world.log.facts] == [f"u{number}@d.example" for number in range(10)]
    assert world.core.progress.delivered == 10


async def test_a_domain_that_is_put_off_keeps_its_time_for_those_who_come_later(make_world: MakeWorld) -> None:
    """A batch later is not a further failure: else the gaps of a rule would never grow."""
    world = make_world(retry='pattern = "*"\nrule = "G,10h,5m,2"')
    world.add_job("a@d.example", "b@d.example")
    first, second = world.claim()
    at = world.clock() + 300
    world.core.settlement.defer(deferral(world, first, key="R:d.example", created_at=None))
    await world.core.settlement._commit()
    world.clock.now += 7
    world.core.settlement.defer(deferral(world, second, key="R:d.example", created_at=None))
    await world.core.settlement._commit()
    assert {state(world, f"{name}@d.example")[1] for name in "ab"} == {at}


async def test_a_queue_that_stays_full_can_be_left(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Ctrl-C: a commit that is repeated for ever must not hold the process."""
    world = make_world()
    world.add_job("a@d.example")
    (claim,) = world.claim()

    def full(*_: Any, **__: Any) -> Any:
        raise QueueFull("the disk of the queue file is full")

    monkeypatch.setattr(world.store, "settle", full)
    world.core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED), "mx")
    with trio.fail_after(PATIENCE_S), trio.move_on_after(0.2) as scope:
        await world.core.settlement.run()
    assert scope.cancelled_caught
    assert world.core.settlement.is_stuck


async def test_a_stop_does_not_wait_for_a_full_disk_for_ever(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.delivery.settlement.RETRY_COMMIT_S", 0.01)
    world = make_world()
    world.add_job("a@d.example")
    (claim,) = world.claim()

    def full(*_: Any, **__: Any) -> Any:
        raise QueueFull("the disk of the queue file is full")

    monkeypatch.setattr(world.store, "settle", full)
    world.core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED), "mx")
    with pytest.raises(QueueFull):
        await commit(world)
