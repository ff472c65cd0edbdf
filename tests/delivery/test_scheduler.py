"""Scheduler: what is claimed when, what goes together, and when a run is over."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from engine.delivery.scheduler import BACKLOG, TROUBLE, Scheduler
from engine.delivery.settlement import Settled
from engine.logs.facts import FactKind
from engine.net.sink import Sink, SinkOptions, open_sink
from engine.queue.model import Filter, NewJob, NewRecipient, OutboxEvent, OutcomeKind, RecipientState
from engine.queue.store import QueueCorrupt, QueueFull, QueueLocked
from fakes.engine_world import MakeWorld, RealClock, World
from fakes.patience import PATIENCE_S

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
LOCKED = QueueLocked("the queue file is locked by another process for 10 s")
FULL = QueueFull("the disk of the queue file is full")


def sink_host(sink: Sink) -> str:
    return f"127.0.0.1:{sink.port}"


def fail_some(world: World, monkeypatch: pytest.MonkeyPatch, method: str, *errors: Exception) -> list[Exception]:
    """Let a method of the store fail so often, after it worked once."""
    whole, left, calls = getattr(world.store, method), list(errors), [0]

    def failing(*arguments: Any, **values: Any) -> Any:
        calls[0] += 1
        if left and calls[0] > 1:
            raise left.pop(0)
        return whole(*arguments, **values)

    monkeypatch.setattr(world.store, method, failing)
    return left


@pytest.mark.parametrize("method", ["claim", "claim_expired", "next_due_at"])
@pytest.mark.parametrize("error", [LOCKED, FULL])
async def test_a_queue_that_cannot_be_asked_now_is_asked_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    """What is in flight goes on, nothing is lost, and it is told once."""
    monkeypatch.setattr("engine.delivery.scheduler.POLL_S", 0.02)
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink), main="claim_size = 5", clock=RealClock())
        monkeypatch.setattr("engine.delivery.scheduler.HIGH_WATER_BATCHES", 1)
        world.add_job(*[f"u{number}@d.example" for number in range(60)])
        left = fail_some(world, monkeypatch, method, error, error)
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert (sink.counts.unique, sink.counts.duplicates) == (60, 0)
    assert {world.state(f"u{number}@d.example")[0] for number in range(60)} == {D}
    told = [fact.text for fact in world.log.facts if fact.kind is FactKind.NOTE]
    assert world.core.progress.phase == ""
    if len(left) < 2:
        assert told[0] == f"queue: {error}; will try again"


async def test_what_was_claimed_before_the_disk_was_full_is_sent(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches are claimed in one turn; an error in the second must not lose the first."""
    monkeypatch.setattr("engine.delivery.scheduler.POLL_S", 0.02)
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink), main="claim_size = 5")
        names = [f"u{number}@d.example" for number in range(20)]
        world.add_job(*names)
        fail_some(world, monkeypatch, "claim", FULL)
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert {world.state(name)[0] for name in names} == {D}


async def test_a_damaged_queue_ends_the_run_with_its_error(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink), main="claim_size = 5")
        monkeypatch.setattr("engine.delivery.scheduler.HIGH_WATER_BATCHES", 1)
        world.add_job(*[f"u{number}@d.example" for number in range(60)])
        damaged = QueueCorrupt("the queue file is corrupt: x")
        fail_some(world, monkeypatch, "claim", damaged, damaged, damaged)
        with pytest.raises(QueueCorrupt, match="corrupt"), trio.fail_after(PATIENCE_S):
            await world.run()


async def test_a_job_that_cannot_be_read_now_is_given_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink))
        world.add_job("a@d.example", "b@d.example")
        body, failures = world.store.body, [LOCKED]

        def locked(job: int) -> bytes:
            if failures:
                raise failures.pop()
            return body(job)

        monkeypatch.setattr(world.store, "body", locked)
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert [world.state(f"{name}@d.example")[0] for name in "ab"] == [D, D]


async def test_a_job_that_cannot_be_composed_fails_with_the_reason(make_world: MakeWorld) -> None:
    """It was checked when it was queued, perhaps by another version."""
    world = make_world()
    owner = world.core.engine.owner
    new = NewJob("news@sender.example", b"no header at all", personalised=True)
    job = world.store.add_job(owner, new, world.clock())
    world.store.add_recipients(job, [NewRecipient("a@d.example"), NewRecipient("b@d.example")])
    world.store.finish_loading(job, world.clock())
    with trio.fail_after(PATIENCE_S):
        await world.run()
    for name in "ab":
        state, _, _, text = world.state(f"{name}@d.example")
        assert state is F
        assert text.startswith("the message of this job cannot be composed: ")
    assert world.core.leases.epochs == ()


async def test_recipients_of_one_message_meet_again_behind_the_same_hosts(make_world: MakeWorld) -> None:
    """Whatever their domains and batches: one transaction up to max_rcpt."""
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink), main="claim_size = 4", transport="connections_per_host = 1")
        names = [f"u{number}@d{number}.example" for number in range(40)]
        world.add_job(*names, personalised=False)
        await world.run()
        counts = sink.counts
    assert counts.recipients == 40
    assert counts.messages <= 12, "each batch or domain had a transaction of its own"
    assert {world.state(name)[0] for name in names} == {D}


async def test_recipients_of_two_messages_never_meet(make_world: MakeWorld) -> None:
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink), transport="connections_per_host = 1")
        for number in range(2):
            world.add_job(*[f"u{number}@d.example" for number in range(3)], personalised=False)
        await world.run()
        assert sink.counts.messages == 2


async def test_only_the_job_that_was_asked_for(make_world: MakeWorld) -> None:
    """`outrider send` leaves other jobs alone, expired ones included."""
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink))
        world.add_job("other@d.example")
        world.add_job("expired@d.example", expires_at=world.clock() - 1)
        mine = world.add_job("mine@d.example")
        with trio.fail_after(PATIENCE_S):
            await world.run(job_id=mine.id)
        assert sink.counts.messages == 1
    assert [world.state(f"{name}@d.example")[0] for name in ("other", "expired", "mine")] == [Q, Q, D]
    assert world.core.progress.failed == 0


async def test_waiting_for_everybody_includes_what_another_engine_has(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--wait`: another engine has one; the run is over when that one is settled."""
    monkeypatch.setattr("engine.delivery.scheduler.POLL_S", 0.02)
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=sink_host(sink))
        job = world.add_job("a@d.example", "b@d.example")
        other = world.store.register(world.clock())
        (claim,) = world.store.claim(other.owner, 1, world.clock(), 900)
        ended = False

        async def settle_later() -> None:
            await trio.sleep(0.3)
            assert not ended
            outcome = claim.outcome(OutcomeKind.DELIVERED)
            await world.core.database.call(world.store.settle, other.owner, [outcome], world.clock())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle_later)
            with trio.fail_after(PATIENCE_S):
                await world.run(job_id=job.id, wait=True)
            ended = True
    assert world.store.counts(job.id).delivered == 2


async def test_a_held_recipient_is_waited_for_by_nobody(make_world: MakeWorld) -> None:
    world = make_world()
    job = world.add_job("a@d.example")
    world.store.hold(Filter(job_id=job.id, address="a@d.example"))
    with trio.fail_after(PATIENCE_S):
        await world.run(job_id=job.id, wait=True)
    assert world.state("a@d.example")[0] is RecipientState.HELD


@pytest.mark.parametrize("when", [0.0, 0.05, 0.2])
async def test_a_stop_gives_back_what_was_not_begun(make_world: MakeWorld, when: float) -> None:
    """While routing, connecting or sending: nobody stays leased, nobody is lost, nobody gets it twice."""
    async with open_sink(SinkOptions(track=True, delay_s=0.02)) as sink:
        world = make_world(hosts=sink_host(sink), transport="connections_per_host = 2")
        job = world.add_job(*[f"u{number}@d{number % 50}.example" for number in range(1000)])

        async def stop() -> None:
            await trio.sleep(when)
            world.core.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with trio.fail_after(PATIENCE_S):
                await world.run()
        counts = world.store.counts(job.id)
        assert counts.leased == 0
        assert counts.delivered == sink.counts.messages
        assert counts.delivered + counts.waiting == 1000
        assert counts.deferred == 0


async def test_what_is_cut_off_is_in_doubt_only_where_it_may_have_arrived(make_world: MakeWorld) -> None:
    """`shutdown_timeout` is over while a host does not answer the end of the content."""
    async with open_sink(SinkOptions(track=True, delay_s=30)) as sink:
        world = make_world(hosts=sink_host(sink), main='shutdown_timeout = "1s"')
        job = world.add_job("a@d.example", "b@d.example")

        async def stop() -> None:
            await trio.sleep(0.2)
            world.core.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with trio.fail_after(PATIENCE_S):
                await world.run()
    assert world.store.counts(job.id).leased == 0
    assert world.store.counts(job.id).waiting == 2
    assert not any(fact.kind is FactKind.IN_DOUBT for fact in world.log.facts)


async def test_the_display_says_why_nothing_goes_on(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.delivery.scheduler.POLL_S", 0.02)
    world = make_world()
    world.add_job("a@d.example")
    phases = []
    claim = world.store.claim

    def locked(*arguments: Any) -> Any:
        phases.append(world.core.progress.phase)
        if len(phases) < 3:
            raise LOCKED
        return claim(*arguments)

    monkeypatch.setattr(world.store, "claim", locked)
    with trio.fail_after(PATIENCE_S):
        await world.run()
    assert phases[:3] == ["", TROUBLE, TROUBLE]
    assert world.core.progress.phase == ""


async def test_nothing_new_begins_while_too_many_events_wait(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told when it begins and when it ends; an engine without actions does not care."""
    monkeypatch.setattr("engine.delivery.scheduler.POLL_S", 0.02)
    async with open_sink(SinkOptions(track=True)) as sink:
        action = "[actions]\noutbox_limit = 4"
        world = make_world(
            hosts=sink_host(sink),
            transport="event_action = '${if eq{$event_name}{tcp:close}{${acl{no}}}}'",
            retry=f'pattern = "*"\nrule = "F,1h,5m"\n{action}',
        )
        world.add_job("a@d.example", "b@d.example")
        # events of an engine that is slow
        other = world.store.register(world.clock())
        world.store.settle(other.owner, (), world.clock(), events=[OutboxEvent("n", key, b"") for key in "abcd"])
        waiting = world.store.drain_outbox(other.owner, 10)
        (send, receive), size = trio.open_memory_channel[None](math.inf), world.store.outbox_size

        def look() -> int:
            trio.from_thread.run_sync(send.send_nowait, None)
            return size()

        monkeypatch.setattr(world.store, "outbox_size", look)

        async def looked_again() -> None:
            for _ in range(receive.statistics().current_buffer_used + 2):
                await receive.receive()

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.run)
                await looked_again()
                assert world.core.progress.phase == BACKLOG
                assert world.store.counts(1).waiting == 2
                # at three of four there is no room yet
                world.store.ack_outbox([waiting[0].id])
                await looked_again()
                assert world.store.counts(1).waiting == 2
                world.store.ack_outbox([waiting[1].id])
        assert (sink.counts.unique, sink.counts.duplicates) == (2, 0)
    told = [fact.text for fact in world.log.facts if "outbox_limit" in fact.text]
    assert told == [
        "4 stored events wait for their actions (outbox_limit 4): nothing new is delivered until some have run",
        "2 stored events wait for their actions (outbox_limit 4): deliveries go on",
    ]
    assert world.core.progress.phase == ""
    other.journal.close()


@pytest.mark.slow
@pytest.mark.parametrize("personalised", [True, False])
async def test_what_a_rate_holds_up_for_long_goes_back_until_its_turn(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, personalised: bool
) -> None:
    """It must not stand before others; a run that drains the queue stays for it."""
    monkeypatch.setattr("engine.delivery.pacing.PACED_S", 0.5)
    async with open_sink(SinkOptions(track=True)) as sink:
        transport = 'message_rate_per_host = "40/s"\nhosts_require_tls = ""\nmax_rcpt = 2'
        world = make_world(hosts=sink_host(sink), main="claim_size = 20", transport=transport, clock=RealClock())
        names = [f"u{number}@d.example" for number in range(100 if personalised else 200)]
        world.add_job(*names, personalised=personalised)
        released: list[float] = []
        settle = world.store.settle

        def watch(owner: int, outcomes: Any, *arguments: Any, **options: Any) -> Any:
            released.extend(outcome.next_attempt_at for outcome in outcomes if outcome.kind is OutcomeKind.RELEASED)
            return settle(owner, outcomes, *arguments, **options)

        monkeypatch.setattr(world.store, "settle", watch)
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert sink.counts.duplicates == 0
        assert sink.counts.recipients == len(names)
        assert 100 <= sink.counts.messages <= 110, "recipients of one message stay together, but for where claims end"
    assert {world.state(name)[0] for name in names} == {D}
    assert released
    assert len(released) <= len(names), "each goes back once, not again and again"


@pytest.mark.parametrize(
    ("held", "kind", "is_lull", "looks"),
    [
        (2, OutcomeKind.DELIVERED, True, False),
        (2, OutcomeKind.FAILED, True, False),
        (2, OutcomeKind.DELIVERED, False, True),
        # somebody may be due again, and the end is not to be missed
        (2, OutcomeKind.DEFERRED, True, True),
        (2, OutcomeKind.RELEASED, True, True),
        (1, OutcomeKind.DELIVERED, True, True),
    ],
)
async def test_a_commit_is_a_reason_to_look_for_more_only_where_there_may_be_more(
    held: int, kind: OutcomeKind, is_lull: bool, looks: bool
) -> None:
    core = SimpleNamespace(on_settled=lambda _: None)
    scheduler = Scheduler(core, job_id=None, drain=True, wait=False)  # type: ignore[arg-type]
    scheduler.held = held
    if is_lull:
        scheduler._lull_until = math.inf
    scheduler.on_settled(Settled(1, (), Counter({("mx.test", kind, False, False): 1})))
    assert scheduler.held == held - 1
    assert scheduler._settled.is_set() is looks


@pytest.mark.slow
async def test_a_slow_host_does_not_fill_all_that_may_be_held(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it cannot take soon goes back, and others' mail is not behind it."""
    for name, value in (("LOOK_S", 0.1), ("PACED_S", 0.2), ("SLOW_S", 0.5), ("MAX_BACK_S", 1.0)):
        monkeypatch.setattr(f"engine.delivery.pacing.{name}", value)
    for name, value in (("HIGH_WATER_BATCHES", 2), ("CLAIMS_A_TURN", 1), ("POLL_S", 0.05)):
        monkeypatch.setattr(f"engine.delivery.scheduler.{name}", value)
    slow = [f"u{number}@slow.example" for number in range(100)]
    quick = [f"u{number}@quick.example" for number in range(20)]
    async with (
        open_sink(SinkOptions(track=True, delay_s=0.02)) as behind,
        open_sink(SinkOptions(track=True)) as sink,
    ):
        routes = f"['slow.example \"{sink_host(behind)}\"', '* \"{sink_host(sink)}\"']"
        transport = "connections_per_host = 1"
        world = make_world(routes=routes, main="claim_size = 10", transport=transport, clock=RealClock())
        world.add_job(*slow, *quick)
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert (behind.counts.unique, behind.counts.duplicates) == (100, 0)
        assert (sink.counts.unique, sink.counts.duplicates) == (20, 0)
    rows = world.store._db.execute("SELECT DISTINCT state, attempts FROM recipients").fetchall()
    assert rows == [(D, 1)], "to be given back is no try"
    order = [fact.address for fact in world.log.facts if fact.kind is FactKind.DELIVERED]
    last = max(order.index(name) for name in quick)
    assert sum(name in slow for name in order[:last]) < 60, "who comes behind a slow host waits for all of its mail"
