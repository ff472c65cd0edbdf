"""Carrier: every piece of work that was taken is settled once, put back or handed on, whatever happens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio

from engine.delivery.outcome import EXPIRED_TEXT
from engine.errors import StoreError
from engine.logs.facts import FactKind
from engine.net.sink import SinkOptions, open_sink
from engine.queue.model import Outcome, RecipientState
from engine.queue.store import QueueFull
from engine.smtp.server import ServerOptions
from fakes.engine_world import MakeWorld, RealClock, World
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers
from fakes.patience import PATIENCE_S, until
from fakes.scripted_mx import ScriptedMx

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
LATER = "C: MAIL\nS: 250 ok\nC: RCPT\nS: 550 no such user\nC: RCPT\n<cut>\n"


async def heard(connections: list[ScriptedMx], octets: bytes) -> None:
    """Wait until one of them heard this."""
    while not any(octets in line for mx in connections for line in mx.heard):  # noqa: ASYNC110 - a script has no event
        await trio.sleep(0.01)


def settlements(world: World, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each recipient was settled in this run; filled while it runs."""
    counts: Counter[int] = Counter()
    settle = world.store.settle

    def counting(owner: int, outcomes: list[Outcome], now: float, **values: Any) -> Any:
        counts.update(outcome.recipient_id for outcome in outcomes)
        return settle(owner, outcomes, now, **values)

    monkeypatch.setattr(world.store, "settle", counting)
    return counts


async def test_who_was_settled_by_the_second_host_is_not_settled_with_the_rest(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host puts off two, the second fails one and dies under the other: one settlement each."""
    first = GREET + "C: MAIL\nS: 451 later\n" + QUIT
    async with servers([first], [GREET + LATER]) as (hosts, _):
        world = make_world(hosts=hosts)
        counts = settlements(world, monkeypatch)
        world.add_job("a@d.example", "b@d.example", personalised=False)
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert [world.state(f"{name}@d.example")[0] for name in "ab"] == [F, Q]
    assert set(counts.values()) == {1}
    assert world.core.leases.epochs == ()
    marks = [line[:14] for line in world.log.lines if line[:2] in ("==", "**")]
    assert sorted(marks) == ["** a@d.example", "== b@d.example"]


async def test_a_queue_that_is_full_stops_what_is_new_and_nothing_else(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With work that waits and a connection that may not begin any, the engine must not spin."""
    monkeypatch.setattr("engine.delivery.settlement.RETRY_COMMIT_S", 0.05)
    monkeypatch.setattr("engine.delivery.carrier.STUCK_S", 0.01)
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(
            hosts=f"127.0.0.1:{sink.port}",
            clock=RealClock(),
            main="claim_size = 10",
            transport="connections_per_host = 1",
        )
        world.add_job(*[f"u{number}@d.example" for number in range(300)])
        settle = world.store.settle
        failures = 0

        def full(*args: Any, **values: Any) -> Any:
            nonlocal failures
            if world.core.progress.delivered > 20 and failures < 5:
                failures += 1
                raise QueueFull("the disk of the queue file is full")
            return settle(*args, **values)

        monkeypatch.setattr(world.store, "settle", full)
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert failures == 5
        assert (sink.counts.unique, sink.counts.duplicates) == (300, 0)
    assert {world.state(f"u{number}@d.example")[0] for number in range(300)} == {D}


async def test_a_journal_that_cannot_be_written_sends_nothing(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.delivery.carrier.BREATH_S", 0.01)
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}")
        journal = world.core.engine.journal
        begin, failures = journal.begin, [StoreError("in-flight journal: No space left on device")] * 3

        def full(*args: Any) -> None:
            if failures:
                assert sink.counts.messages == 0
                raise failures.pop()
            begin(*args)

        monkeypatch.setattr(journal, "begin", full)
        world.add_job("a@d.example", "b@d.example")
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert (sink.counts.messages, sink.counts.duplicates) == (2, 0)
    assert [world.state(f"{name}@d.example")[0] for name in "ab"] == [D, D]
    assert any("No space left" in line for line in world.log.lines)
    assert not any(fact.kind is FactKind.IN_DOUBT for fact in world.log.facts)


async def test_what_waits_for_the_next_host_does_not_wait_for_an_idle_connection(make_world: MakeWorld) -> None:
    first = GREET + "C: MAIL\nS: 451 later\n" + QUIT
    async with servers([first], [TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        began = trio.current_time()
        await world.run()
        # the pause of an idle connection is 2 s
        assert trio.current_time() - began < 60
    assert world.state("a@d.example")[0] is D


async def test_a_job_that_expires_while_it_waits_is_not_sent(make_world: MakeWorld) -> None:
    """`expires_at`: from then on nothing of it is sent, be it claimed or not."""
    async with servers([GREET + MAIL + RCPT + DATA + "<wait 0.3>\n" + STORED + QUIT, "<cut>"]) as (hosts, connections):
        world = make_world(hosts=hosts, transport="connections_per_host = 1")
        world.add_job("a@d.example", "b@d.example", expires_at=world.clock() + 10)

        async def let_time_pass() -> None:
            await heard(connections[0], b"DATA")
            world.clock.now += 20

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_time_pass)
            await world.run()
    assert world.state("a@d.example")[0] is D
    assert world.state("b@d.example")[::3] == (F, EXPIRED_TEXT)


async def test_a_lease_that_ran_out_is_not_sent_for(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine may have it: nothing is sent, nothing is settled, the rest goes on."""
    async with open_sink(SinkOptions(track=True)) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}", transport="connections_per_host = 1")
        world.add_job(*[f"u{number}@d.example" for number in range(8)])
        holds, lost = world.core.leases.holds, set[int]()

        def some(claim: Any, now: float) -> bool:
            if claim.number in (3, 4) and claim.recipient_id not in lost:
                lost.add(claim.recipient_id)
                return False
            return holds(claim, now)

        monkeypatch.setattr(world.core.leases, "holds", some)
        with trio.fail_after(PATIENCE_S):
            await world.run()
        # they were given back, and claimed anew
        assert (sink.counts.unique, sink.counts.duplicates) == (8, 0)
    assert len(lost) == 2


async def test_a_lease_that_runs_out_on_the_way_keeps_the_last_octet_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process slept between MAIL and the end of the content."""
    script = GREET + MAIL + RCPT + "C: DATA\n<hold>\nS: 354 go on\n<deaf>\n"
    async with servers([script]) as (hosts, connections):
        world = make_world(hosts=hosts, main='lease_time = "60s"')
        world.add_job("a@d.example")
        answers, holds_all = list[bool](), world.core.leases.holds_all

        def asking(epochs: Any, now: float) -> bool:
            answers.append(holds_all(epochs, now))
            return answers[-1]

        monkeypatch.setattr(world.core.leases, "holds_all", asking)

        async def sleep_long() -> None:
            await heard(connections[0], b"DATA")
            world.clock.now += 120
            for mx in connections[0]:
                mx.go_on.set()
            await until(lambda: answers)
            world.core.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep_long)
            await world.run()
    assert answers == [False]
    assert not any(b"body" in octets for mx in connections[0] for octets in mx.heard)
    assert world.state("a@d.example")[0] is Q
    assert not any(fact.kind is FactKind.IN_DOUBT for fact in world.log.facts)


@pytest.mark.parametrize(
    ("server", "transport", "transactions"),
    [
        (ServerOptions(), "max_rcpt = 10", 3),
        (ServerOptions(), "max_rcpt = 0", 1),
        (ServerOptions(max_recipients=7), "", 4),
        (ServerOptions(extensions=("PIPELINING", "LIMITS RCPTMAX=12")), "", 3),
        (ServerOptions(extensions=("PIPELINING", "LIMITS RCPTDOMAINMAX=1")), "", 5),
        (ServerOptions(extensions=("LIMITS RCPTMAX=1",)), "", 25),
    ],
)
async def test_recipients_of_a_transaction_are_bounded(
    make_world: MakeWorld, server: ServerOptions, transport: str, transactions: int
) -> None:
    async with open_sink(SinkOptions(track=True, server=server)) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}", transport=f"connections_per_host = 1\n{transport}")
        names = [f"u{number}@d{number % 5}.example" for number in range(25)]
        world.add_job(*names, personalised=False)
        await world.run()
        counts = sink.counts
    assert (counts.messages, counts.recipients, counts.duplicates) == (transactions, 25, 0)
    assert {world.state(name)[0] for name in names} == {D}
    lines = world.log.lines
    assert (
        Counter(line[:2] for line in lines if line[:2] in ("=>", "->"))
        == Counter({"=>": transactions, "->": 25 - transactions}) - Counter()
    )
    assert [line for line in lines if line.startswith("Completed")] == ["Completed"]


@pytest.mark.parametrize(
    ("server", "transport", "connections"),
    [
        (ServerOptions(), "connection_max_messages = 4", 3),
        (ServerOptions(), "connection_max_messages = 0", 1),
        (ServerOptions(max_messages=5), "", 2),
        (ServerOptions(extensions=("PIPELINING", "LIMITS MAILMAX=1")), "", 10),
        (ServerOptions(extensions=("PIPELINING", "LIMITS MAILMAX=0")), "", 1),
    ],
)
async def test_messages_of_a_connection_are_bounded(
    make_world: MakeWorld, server: ServerOptions, transport: str, connections: int
) -> None:
    async with open_sink(SinkOptions(track=True, server=server)) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}", transport=f"connections_per_host = 1\n{transport}")
        world.add_job(*[f"u{number}@d.example" for number in range(10)])
        await world.run()
        counts = sink.counts
    assert (counts.messages, counts.duplicates, counts.connections) == (10, 0, connections)
    assert world.store.all_retry_records(10) == []


async def test_a_message_that_breaks_connections_is_put_off_in_the_end(make_world: MakeWorld) -> None:
    """A host that takes one message a connection and breaks at the next goes on serving; nothing is begun for ever."""
    one = MAIL + RCPT + DATA + STORED
    scripts = [GREET + one + "C:\n<cut>\n"] * 20
    async with servers(scripts) as (hosts, connections):
        world = make_world(hosts=hosts, transport="connections_per_host = 1")
        names = [f"u{number}@d.example" for number in range(6)]
        world.add_job(*names)
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert len(connections[0]) <= 20
    assert {world.state(name)[0] for name in names} <= {D, Q}
    assert sum(world.state(name)[0] is D for name in names) >= 4


async def test_a_host_that_takes_connections_and_no_messages_is_down(make_world: MakeWorld) -> None:
    async with servers([GREET + "S: 421 not today\n<cut>\n"] * 3) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example", "b@d.example")
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert len(connections[0]) <= 3
    assert world.state("a@d.example")[0] is Q
    assert world.state("b@d.example")[0] is Q


@pytest.mark.parametrize(
    ("extensions", "sender", "address", "state", "text"),
    [
        (("SMTPUTF8", "8BITMIME"), "news@sender.example", "jürgen@d.example", D, ""),
        (("8BITMIME",), "news@sender.example", "jürgen@d.example", F, "SMTPUTF8"),
        (("8BITMIME",), "news@sender.example", "plain@d.example", D, ""),
    ],
)
async def test_smtputf8_is_for_those_who_need_it(
    make_world: MakeWorld,
    extensions: tuple[str, ...],
    sender: str,
    address: str,
    state: RecipientState,
    text: str,
) -> None:
    async with open_sink(SinkOptions(server=ServerOptions(extensions=extensions))) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}")
        world.add_job(address)
        await world.run()
    assert world.state(address)[0] is state
    assert text in world.state(address)[3]
