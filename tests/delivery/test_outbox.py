"""Stored events: committed with their outcome, run in order, at least once, and never lost to a lookup that is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.actions import _ring
from engine.actions.api import Event, Worker
from engine.delivery import local as module
from engine.delivery import raiser
from engine.delivery.events import label_for, split_label
from engine.delivery.local import LocalRunner
from engine.delivery.outbox import Outbox
from engine.delivery.run import recover_now
from engine.delivery.stored import Stored, pack_values
from engine.events import Action, Result
from engine.expand import Scope
from engine.queue.model import PROGRAM, OutboxEvent, OutcomeKind, RecipientState
from fakes.action_links import puppet, working
from fakes.engine_world import MakeWorld, World
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers

ACLS = """
[acls]
note = '''
accept logwrite = $event_name <$event_data> for $local_part@$domain by $host port $host_port: $h_subject:
'''
"""
#: runs an ACL at every event of a message
NOTE = "${if match{$event_name}{^msg:}{${acl{note}}}}"


def world_for(make_world: MakeWorld, hosts: str, action: str = NOTE) -> World:
    line = f"event_action = '''{action}'''"
    return make_world(hosts=hosts, main=line, transport=line, retry=f'pattern = "*"\nrule = "F,1h,5m"\n{ACLS}')


def noted(world: World) -> list[str]:
    return [fact.text for fact in world.log.facts if fact.text.startswith("msg:")]


def outbox(world: World) -> list[OutboxEvent]:
    return world.store.drain_outbox(world.core.engine.owner, 100)


async def test_an_acl_runs_after_the_commit_with_what_was_known(make_world: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("Ann@d.example")
        await world.run()
    port = hosts.rpartition(":")[2]
    assert noted(world) == [
        f"msg:delivery <250 2.0.0 stored> for Ann@d.example by 127.0.0.1 port {port}: x",
        "msg:complete <> for @ by  port 0: x",
    ]
    # EV-7: with the id of the message
    assert all(fact.message_id for fact in world.log.facts if fact.text.startswith("msg:"))
    assert outbox(world) == []


async def test_events_are_committed_with_the_outcome_and_stay_until_they_have_run(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that never comes to run them leaves them for the next."""
    seen: list[list[str]] = []

    async def never(self: LocalRunner, *, is_due: bool = True) -> bool:
        events = self._core.database.store.drain_outbox(self._core.engine.owner, 100)
        seen.append([event.name for event in events])
        return False

    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example")
        with monkeypatch.context() as patch:
            patch.setattr(LocalRunner, "round", never)
            await world.run()
        assert seen[-1] == ["msg:delivery", "msg:complete"]
        assert noted(world) == []
        world.core.engine = world.store.register(world.clock())
        await world.run()
    assert [line.split()[0] for line in noted(world)] == ["msg:delivery", "msg:complete"]


async def test_a_lookup_that_is_away_is_tried_again_in_order(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.01, 0.02))
    is_away, ran = [True], []

    def lookup(action: Action, scope: Scope) -> Result:
        if action.is_pure:
            return Result()
        if is_away[0]:
            return Result(b"", "the database is away", True)
        ran.append(action.row.name)
        return Result(b"done")

    monkeypatch.setattr(raiser, "run", lookup)
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts, "${if match{$event_name}{^msg:}{${acl{note}}}}")
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is RecipientState.DELIVERED, "delivery waits for no action"
    failures = [fact for fact in world.log.facts if "failed to expand event_action" in fact.text]
    # the live ones are told each time, the stored ones once until it works again
    told = [fact.text for fact in failures if "msg:" in fact.text]
    assert told == ["failed to expand event_action msg:delivery in smtp: the database is away"]
    assert all(fact.is_panic for fact in failures)
    assert world.log.lines[-1] == "events wait in the queue for a lookup that cannot be done now"
    # the engine is gone; the events wait without one
    rows = world.store._db.execute("SELECT name, redelivered FROM outbox ORDER BY id").fetchall()
    assert rows == [("msg:delivery", 1), ("msg:complete", 0)], "what was tried may have been done"
    assert ran == []
    is_away[0] = False
    world.core.engine = world.store.register(world.clock())
    await world.run()
    assert ran == ["msg:delivery", "msg:complete"]
    assert world.store._db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


async def test_events_that_never_can_be_run_hold_up_their_message_only(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than it takes to think that a server is away."""
    monkeypatch.setattr(module, "BACKOFF_S", (0.001, 0.002))
    ran: list[str] = []

    def lookup(action: Action, scope: Scope) -> Result:
        who = str(scope.variables["local_part"], "ascii")
        if who.startswith("bad"):
            return Result(b"", "the table will not take it", True)
        ran.append(who)
        return Result(b"done")

    monkeypatch.setattr(raiser, "run", lookup)
    world = world_for(make_world, "127.0.0.1:9")
    events = world.core.events
    assert events is not None
    done: list[str] = []
    runner = LocalRunner(
        world.core,
        events,
        lambda some: done.extend(event.key for event in some),
        lambda event, reason, attempts: None,
        lambda fact: None,
    )
    names = [*(f"bad{number}" for number in range(2 * module.MAX_DEFERRALS)), *(f"good{number}" for number in range(5))]
    for number, name in enumerate(names * 2):
        event = OutboxEvent("msg:delivery", f"{name}/{number}", b"", number + 1, world.clock())
        stored = Stored("smtp", name, ("local_part",), (), pack_values([name]))
        assert runner.add_nowait(event, stored)
    for _ in range(5):
        assert not await runner.round()
    assert ran == [*(f"good{number}" for number in range(5))] * 2
    assert [key.partition("/")[0] for key in done] == ran


async def test_a_lookup_that_is_away_for_too_long_makes_dead_letters_that_can_be_tried_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`give_up`: each event gets its last chance, and what is tried again is run for just the string."""
    is_away, ran = [True], []

    def lookup(action: Action, scope: Scope) -> Result:
        if action.is_pure:
            return Result()
        if is_away[0]:
            return Result(b"", "the database is away", True)
        ran.append(action.row.name)
        return Result(b"done")

    monkeypatch.setattr(raiser, "run", lookup)
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example")
        await world.run()
    assert world.store.dead_letters(10) == []
    world.clock.now += world.core.config.actions.give_up + 1
    world.core.engine = world.store.register(world.clock())
    await world.run()
    letters = world.store.dead_letters(10)
    assert [(letter.name, letter.handler, letter.group, letter.reason, letter.attempts) for letter in letters] == [
        ("msg:delivery", PROGRAM, "", "the database is away", 1),
        ("msg:complete", PROGRAM, "", "the database is away", 1),
    ]
    assert [line for line in world.log.lines if "dead letter" in line] == [
        f"{letter.name} {letter.key} is a dead letter of event_action: the database is away" for letter in letters
    ]
    assert world.store.outbox_size() == 0
    is_away[0] = False
    world.store.retry_dead_letters([letter.id for letter in letters], world.clock())
    world.core.engine = world.store.register(world.clock())
    await world.run()
    assert ran == ["msg:delivery", "msg:complete"]
    assert world.store.outbox_size() == 0


async def test_an_expansion_that_fails_is_logged_and_leaves_the_outbox(make_world: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts, "${if eq{$event_name}{msg:delivery}{${acl{nosuch}{$domain}}}}")
        world.add_job("a@d.example")
        await world.run()
    (line,) = [fact.text for fact in world.log.facts if "failed to expand" in fact.text]
    assert line.startswith("failed to expand event_action msg:delivery in smtp: ")
    assert world.store._db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


async def test_what_another_program_left_becomes_dead_letters(make_world: MakeWorld) -> None:
    world = world_for(make_world, "127.0.0.1:9")
    strange = [
        OutboxEvent("msg:delivery", "k", payload)
        for payload in (b"", b"\xc1", b"\x81\xa1a\x01", b"\x94\x01\x02\x03\x04")
    ]
    world.store.settle(world.core.engine.owner, (), world.clock(), events=strange)
    await world.run()
    assert world.store._db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    assert [(letter.handler, letter.payload) for letter in world.store.dead_letters(10)] == [
        ("", event.payload) for event in strange
    ]


@pytest.mark.parametrize("workers", [False, True])
async def test_what_is_tried_again_for_a_handler_that_is_not_there_stays_a_dead_letter(
    make_world: MakeWorld, tmp_path: Path, workers: bool
) -> None:
    table = f'[actions]\nworker_sockets = ["crm:{tmp_path}/crm.sock"]' if workers else ""
    world = make_world(retry=f'pattern = "*"\nrule = "F,1h,5m"\n{table}', main="event_action = '${domain}'")
    payload = _ring.pack((2, "smtp", "m", "local_part", (), pack_values(["a"])))
    events = [
        OutboxEvent("msg:delivery", "m/1", payload, handler="gone", group="main"),
        OutboxEvent("msg:delivery", "m/2", payload),
    ]
    world.store.settle(world.core.engine.owner, (), world.clock(), events=events)
    await world.run()
    letters = world.store.dead_letters(10)
    assert {letter.reason for letter in letters} == {"the configuration has no such handler for this event any more"}
    assert (letters[0].key, letters[0].handler, letters[0].group) == ("m/1", "gone", "main")
    # that of no handler waits for the group that is configured, if there is one
    assert [letter.key for letter in letters[1:]] == ([] if workers else ["m/2"])
    assert world.store._db.execute("SELECT key FROM outbox").fetchall() == ([("m/2",)] if workers else [])
    world.core.engine = world.store.register(world.clock())
    world.store.retry_dead_letters([letter.id for letter in letters], world.clock())
    await world.run()
    assert len(world.store.dead_letters(10)) == len(letters)


async def test_what_is_stored_for_whom_the_configuration_has_no_more_becomes_dead_letters(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    """One line for each that is gone, in the panic log too, however many events there are."""
    action = "${if eq{$event_name}{msg:complete}{${acl{note}}}}"
    table = f'[actions]\nworker_sockets = ["crm:{tmp_path}/crm.sock"]'
    world = make_world(main=f"event_action = '''{action}'''", retry=f'pattern = "*"\nrule = "F,1h,5m"\n{ACLS}{table}')

    def payload(transport: str) -> bytes:
        return _ring.pack((2, transport, "m", "local_part", (), pack_values(["a"])))

    events = [
        *(OutboxEvent("msg:delivery", f"t/{number}", payload("old"), handler=PROGRAM) for number in range(3)),
        *(OutboxEvent("msg:delivery", f"a/{number}", payload("smtp"), handler=PROGRAM) for number in range(2)),
        OutboxEvent("msg:delivery", "h/1", payload("smtp"), group="main:lines"),
        OutboxEvent("msg:delivery", "h/2", payload("smtp"), group="erp"),
        # one of them is there; it is done when that has taken it
        OutboxEvent("msg:delivery", "h/3", payload("smtp"), group="crm\nmain:lines"),
    ]
    world.store.settle(world.core.engine.owner, (), world.clock(), events=events)
    await world.run()
    assert world.core.events is not None
    assert world.core.events.workers is not None

    def letters() -> list[tuple[str, str, str]]:
        return [(letter.key, letter.handler, letter.group) for letter in world.store.dead_letters(100)]

    gone = [
        *[(f"t/{number}", PROGRAM, "") for number in range(3)],
        *[(f"a/{number}", PROGRAM, "") for number in range(2)],
        *[("h/1", "lines", "main"), ("h/2", "*", "erp")],
    ]
    assert letters() == gone
    told = [fact for fact in world.log.facts if "dead letters of" in fact.text]
    assert [fact.text.partition(" (see")[0] for fact in told] == [
        "3 stored events are dead letters of old: the configuration has no such transport any more",
        "2 stored events are dead letters of smtp: its event_action does nothing at this event any more",
        *(
            f"1 stored events are dead letters of {who}: the configuration has no such handler for this event any more"
            for who in ("main:lines", "erp")
        ),
    ]
    assert all(fact.is_panic for fact in told)
    assert world.store.outbox_size() == 1
    world.core.engine = world.store.register(world.clock())
    seen: list[Event] = []
    worker = Worker("crm")
    worker.on("msg:delivery")(seen.extend)
    async with working(world.core.events.workers.hub, worker):
        await world.run()
    assert [event.id for event in seen] == [b"h/3"]
    assert letters() == [*gone, ("h/3", "lines", "main")]
    assert world.store.outbox_size() == 0
    # one that was for a whole group goes to that alone, once it is there again
    (letter,) = [letter for letter in world.store.dead_letters(100) if letter.handler == "*"]
    world.store.retry_dead_letters([letter.id], world.clock())
    world.core.engine = world.store.register(world.clock())
    back: list[Event] = []
    worker_of_erp = Worker("erp")
    worker_of_erp.on("msg:delivery")(back.extend)
    hub = world.core.events.workers.hub
    async with working(hub, worker), working(hub, worker_of_erp):
        await world.run()
    assert [(event.id, event.redelivered) for event in back] == [(b"h/2", 1)]
    assert len(seen) == 1
    assert world.store.outbox_size() == 0


async def test_what_a_worker_has_at_the_end_of_a_run_counts_as_handed_on_again_and_nothing_else(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    table = f'[actions]\nworker_sockets = ["crm:{tmp_path}/crm.sock"]\nworker_window = 1'
    world = make_world(main='shutdown_timeout = "1s"', retry=f'pattern = "*"\nrule = "F,1h,5m"\n{table}')
    payload = _ring.pack((2, "smtp", "m", "local_part", (), pack_values(["a"])))
    events = [OutboxEvent("msg:delivery", f"m/{number}", payload, group="crm") for number in range(2)]
    world.store.settle(world.core.engine.owner, (), world.clock(), events=events)
    assert world.core.events is not None
    assert world.core.events.workers is not None
    async with puppet(world.core.events.workers.hub, "crm") as (worker, _):
        worker.ready("msg:*", group="crm")
        # it takes the first one, and does not say what became of it
        await world.run()
    heir = world.store.register(world.clock())
    world.store.adopt_outbox(heir.owner)
    left = {event.key: event.redelivered for event in world.store.drain_outbox(heir.owner, 10)}
    assert left == {"m/0": 1, "m/1": 0}
    assert world.store.outbox_report().redelivered == 1


async def test_what_the_journal_of_a_dead_engine_tells_is_raised(make_world: MakeWorld) -> None:
    """The reply was known, or the message is in doubt: the next engine raises what the dead one could not."""
    world = world_for(make_world, "127.0.0.1:9")
    world.add_job("a@d.example", "b@d.example", "c@d.example")
    a, b, c = world.claim()
    label = label_for("mx.example [192.0.2.1]", "smtp")
    dead = world.core.engine
    dead.journal.begin([(claim.recipient_id, claim.epoch) for claim in (a, b, c)], label)
    dead.journal.finish(
        [
            (a.recipient_id, a.epoch, OutcomeKind.DELIVERED, "250 stored"),
            (b.recipient_id, b.epoch, OutcomeKind.FAILED, "550 no"),
        ]
    )
    world.core.engine = world.store.register(world.clock())
    world.clock.now += 10_000  # the leases are over
    recover_now(world.core)
    assert [event.name for event in outbox(world)] == [
        *("msg:delivery", "msg:complete", "msg:fail:delivery", "msg:complete", "msg:indoubt"),
    ]
    world.clock.now -= 10_000
    await world.run()
    lines = noted(world)
    assert lines[0] == "msg:delivery <250 stored> for a@d.example by mx.example port 0: x"
    assert lines[2].startswith("msg:fail:delivery <550 no> for b@d.example")
    assert lines[4].startswith("msg:indoubt <in doubt: ")
    host_lines = [line for line in world.log.lines if "H=" in line]
    assert host_lines
    assert all(" T=smtp" not in line for line in host_lines), "the label of the journal stays out of the log"
    assert all(line.partition(" H=")[2].startswith("mx.example [192.0.2.1]") for line in host_lines[:3])
    assert not any("[]" in line for line in world.log.lines)


async def test_events_of_one_message_come_in_order(make_world: MakeWorld) -> None:
    late = GREET + MAIL + "C: RCPT TO:\nS: 450 later\n" + RCPT + DATA + STORED + QUIT
    async with servers([late]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example", "b@d.example", personalised=False)
        await world.run()
    names = [line.split()[0] for line in noted(world)]
    assert names == ["msg:rcpt:host:defer", "msg:rcpt:defer", "msg:delivery"]


@pytest.mark.parametrize("transport", ["smtp", "remote smtp", "T=x", ""])
def test_a_label_gives_back_what_went_in(transport: str) -> None:
    assert split_label(label_for("mx.example [192.0.2.1]", transport)) == ("mx.example [192.0.2.1]", transport)
    assert split_label("mx.example [192.0.2.1]") == ("mx.example [192.0.2.1]", "")


async def test_events_go_on_from_their_commit_and_overtake_none_that_must_be_read(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(main=f"event_action = '''{NOTE}'''", retry=f'pattern = "*"\nrule = "F,1h,5m"\n{ACLS}')
    store, owner = world.store, world.core.engine.owner
    assert world.core.events is not None
    runner = Outbox(world.core, world.core.events)
    handed: list[str] = []
    room = [2]

    def hand_on(self: Outbox, event: OutboxEvent, *, is_ours: bool = False) -> bool:
        if len(handed) >= room[0]:
            return False
        self._held.add(event.id)
        handed.append(f"{event.key}{'' if is_ours else ' read'}")
        return True

    monkeypatch.setattr(Outbox, "_hand_on", hand_on)

    def commit(*keys: str) -> None:
        events = [OutboxEvent("n", key, b"") for key in keys]
        store.settle(owner, [], world.clock(), events=events)
        runner.on_stored(events)

    commit("a")
    assert handed == [], "what an earlier engine left comes first, and nobody has looked"
    assert await runner._read()
    assert handed == ["a read"]
    commit("b", "c")
    commit("d")
    assert handed == ["a read", "b"], "there is no room for c, and d waits behind it"
    room[0] = 9
    assert await runner._read()
    assert handed == ["a read", "b", "c read", "d read"]
    commit("e")
    assert handed[-1] == "e"
    assert await runner._read()
    assert handed[-1] == "e", "what was handed on is not read again"
    store.settle(owner, [], world.clock(), events=[OutboxEvent("n", "f", b"")])
    runner.look_again()
    assert await runner._read()
    assert handed[-2:] == ["e", "f read"]
