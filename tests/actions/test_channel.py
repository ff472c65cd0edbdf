"""Events, vetoes and evaluations over a channel: what is done is told once, in order, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import trio

from engine.actions import frames
from engine.actions.api import Backoff, Event, Worker
from engine.actions.channel import Outgoing
from engine.actions.hub import Hub, Refusal
from engine.actions.programs import Settings
from engine.errors import ActionTimeout, FrameError, WorkerDied
from fakes.action_links import OCTETS, Told, puppet, until, working

FIELDS = ("local_part", "domain")
QUICK = Backoff(0.001, 0.002)


def event(hub: Hub, number: int, name: str = "msg:delivery", key: bytes = b"m", **options: Any) -> Outgoing:
    shape = hub.shape(name, FIELDS)
    return Outgoing(shape, key, b"%d" % number, (b"user%d" % number, b"example.org"), token=number, **options)


# --- events -----------------------------------------------------------------------------------------------------------


async def test_events_are_handled_in_order_and_acknowledged() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker()
    seen: list[tuple[str, bytes, Any]] = []
    threads = set()

    @worker.on("msg:*", batch=50)
    def record(events: list[Event]) -> None:
        threads.add(threading.current_thread())
        assert len(events) <= 50
        seen.extend((one.name, one.id, one["local_part"]) for one in events)

    async with working(hub, worker):
        assert hub.wants("msg:delivery")
        assert not hub.wants("tcp:close")
        for number in range(1000):
            assert hub.submit_nowait(event(hub, number, "msg:complete" if number % 10 == 9 else "msg:delivery"))
        await until(lambda: not hub.held)
    assert [one.token for one in told.done] == list(range(1000))
    assert seen == [
        ("msg:complete" if number % 10 == 9 else "msg:delivery", b"%d" % number, b"user%d" % number)
        for number in range(1000)
    ]
    assert len(threads) == 1
    assert hub.report() == [], "a group that came by itself is forgotten with its last worker"


async def test_an_event_that_nobody_wants_is_done_at_once() -> None:
    told = Told()
    hub = told.make_hub()
    assert hub.submit_nowait(event(hub, 1))
    assert told.ids == [b"1"]
    assert hub.held == 0


async def test_events_wait_for_a_group_that_is_expected() -> None:
    told = Told()
    hub = told.make_hub(expected=("crm",))
    for number in range(5):
        hub.submit_nowait(event(hub, number, "msg:delivery" if number % 2 else "msg:defer"))
    assert (hub.held, told.done) == (5, [])
    worker = Worker("crm")
    seen: list[bytes] = []

    @worker.on("msg:delivery", batch=10)
    def record(events: list[Event]) -> None:
        seen.extend(one.id for one in events)

    async with working(hub, worker):
        await until(lambda: not hub.held)
    assert seen == [b"1", b"3"]
    assert sorted(told.ids) == [b"0", b"1", b"2", b"3", b"4"]
    hub.submit_nowait(event(hub, 9, "msg:defer"))
    hub.submit_nowait(event(hub, 10))
    assert hub.held == 1, "what the group wants is known now"


async def test_every_group_gets_an_event_and_it_is_done_once() -> None:
    told = Told()
    hub = told.make_hub()
    seen: dict[str, list[bytes]] = {"a": [], "b": []}
    workers = {name: Worker(name) for name in seen}
    for name, worker in workers.items():

        @worker.on("*", name=name)
        def record(events: list[Event], name: str = name) -> None:
            seen[name] += [one.id for one in events]

    async with working(hub, workers["a"]), working(hub, workers["b"]):
        for number in range(100):
            hub.submit_nowait(event(hub, number))
        await until(lambda: not hub.held)
    ids = [b"%d" % number for number in range(100)]
    assert seen == {"a": ids, "b": ids}
    assert sorted(told.ids, key=int) == ids


async def test_two_handlers_of_a_worker_are_both_done_before_the_event_is() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker()
    gate = threading.Event()
    seen: list[str] = []

    @worker.on("msg:*")
    def first(events: list[Event]) -> None:
        seen.append("first")

    @worker.on("msg:delivery")
    async def second(events: list[Event]) -> None:
        await asyncio.to_thread(gate.wait, 5)
        seen.append("second")

    async with working(hub, worker):
        hub.submit_nowait(event(hub, 1))
        hub.submit_nowait(event(hub, 2, handlers=("first",)))
        await until(lambda: told.ids == [b"2"])
        gate.set()
        await until(lambda: not hub.held)
    assert told.ids == [b"2", b"1"]
    assert sorted(seen) == ["first", "first", "second"]


async def test_events_of_a_message_stay_with_one_worker() -> None:
    told = Told()
    hub = told.make_hub(window=20)
    seen: list[tuple[int, bytes, bytes]] = []
    lock = threading.Lock()

    def make(number: int) -> Worker:
        worker = Worker("g")

        @worker.on("msg:*", batch=3)
        def record(events: list[Event]) -> None:
            with lock:
                seen.extend((number, one["domain"], one.id) for one in events)
            time.sleep(0.001)

        return worker

    async with working(hub, make(0)), working(hub, make(1)):
        for number in range(600):
            key = b"m%d" % (number % 13)
            shape = hub.shape("msg:delivery", FIELDS)
            hub.submit_nowait(Outgoing(shape, key, b"%d" % number, (b"x", key)))
        await until(lambda: not hub.held)
    assert {number for number, _, _ in seen} == {0, 1}, "both had work"
    for key in {key for _, key, _ in seen}:
        ids = [int(id) for _, own, id in seen if own == key]
        assert ids == sorted(ids)
    assert len(seen) == 600


async def test_what_a_dead_worker_had_goes_to_the_next_one_in_order() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    async with puppet(hub) as (first, ends):
        first.ready("msg:*")
        for number in range(10):
            hub.submit_nowait(event(hub, number))
        frame = await first.hear(frames.EVENT)
        await until(lambda: hub.report()[0].unacknowledged == 10)
        first.say(frames.ACK, (frame[1], 3))
        await until(lambda: hub.held == 7)
        first.die()
        await until(lambda: ends)
    assert ends == ["it died"]
    async with puppet(hub) as (second, _):
        second.ready("msg:*")
        arrived = [await second.hear(frames.EVENT) for _ in range(7)]
        assert [one[3] for one in arrived] == [b"%d" % number for number in range(3, 10)]
        second.say(*frames.ack_frame([one[1] for one in arrived]))
        await until(lambda: not hub.held)
    assert told.ids == [b"%d" % number for number in range(10)]


async def test_the_window_bounds_what_a_worker_has() -> None:
    told = Told()
    hub = told.make_hub(window=4, expected=("main",))
    async with puppet(hub) as (worker, _):
        worker.ready("*")
        for number in range(10):
            hub.submit_nowait(event(hub, number))
        for count in (4, 4, 2):
            arrived = [await worker.hear(frames.EVENT) for _ in range(count)]
            await trio.testing.wait_all_tasks_blocked()
            assert worker.transport.take() == []
            assert hub.report()[0].unacknowledged == count
            worker.say(*frames.ack_frame([one[1] for one in arrived]))
        await until(lambda: not hub.held)


async def test_a_full_ring_stops_only_the_notification() -> None:
    """A worker that does not read: live events are dropped and counted, the others wait, and all come in the end."""
    told = Told()
    hub = told.make_hub(expected=("main",), limit=300)
    shape = hub.shape("msg:delivery", FIELDS)
    async with puppet(hub) as (worker, _):
        worker.ready("*")
        await until(lambda: hub.report()[0].workers)
        for number in range(300):
            assert hub.submit_nowait(Outgoing(shape, b"k", b"%d" % number, (b"x" * 500, b"")))
        assert not hub.submit_nowait(event(hub, 1)), "the limit is reached"
        assert not await hub.submit(event(hub, 1), timeout_s=0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert 50 < hub.report()[0].unacknowledged < 300
        for _ in range(20):
            hub.publish(shape, (b"x" * 500, b"live"))
        dropped = hub.report()[0].counts.dropped
        assert 0 < dropped <= 20
        seqs: list[int] = []
        live = 0
        while len(seqs) < 300:
            frame = await worker.hear(frames.EVENT)
            seqs += [frame[1]] if frame[1] else []
            live += not frame[1]
        assert live + dropped == 20
        worker.say(*frames.ack_frame(seqs))
        await until(lambda: not hub.held)
        assert await hub.submit(event(hub, 1), timeout_s=1)


async def test_an_event_that_no_ring_can_hold_is_a_dead_letter() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    shape = hub.shape("msg:delivery", FIELDS)
    async with puppet(hub) as (worker, _):
        worker.ready("*")
        hub.submit_nowait(Outgoing(shape, b"k", b"long", (b"x" * OCTETS, b"")))
        hub.submit_nowait(Outgoing(shape, b"k", b"odd", (object(), b"")))
        hub.submit_nowait(event(hub, 1))
        frame = await worker.hear(frames.EVENT)
        assert frame[3] == b"1"
        worker.say(frames.ACK, (frame[1], 1))
        await until(lambda: not hub.held)
    assert told.ids == [b"long", b"odd", b"1"]
    assert "a frame of more than" in told.done[0].dead[""].error
    assert "object in a frame" in told.done[1].dead[""].error


# --- failures of handlers ---------------------------------------------------------------------------------------------


async def test_a_handler_that_fails_is_called_again_and_nothing_overtakes() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker()
    calls: list[list[bytes]] = []

    @worker.on("msg:*", batch=10, attempts=5, backoff=QUICK)
    def record(events: list[Event]) -> None:
        calls.append([one.id for one in events])
        if len(calls) < 4:
            raise OSError("the database is down")

    async with working(hub, worker):
        for number in range(3):
            hub.submit_nowait(event(hub, number))
        await until(lambda: not hub.held)
    first = calls[0]
    assert calls[:4] == [first] * 4
    assert [id for call in calls[3:] for id in call] == [b"0", b"1", b"2"]
    assert not any(one.dead for one in told.done)
    assert len([line for line in told.lines if "OSError: the database is down" in line]) == 3
    assert "(attempt 1)" in told.lines[0]
    assert "test_channel.py:" in told.lines[0], "the log says where"


async def test_an_event_that_cannot_be_handled_dies_alone() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker()
    good: list[bytes] = []

    @worker.on("msg:*", batch=10, linger=0.05, attempts=2, backoff=QUICK)
    def record(events: list[Event]) -> None:
        if any(one.id == b"3" for one in events):
            raise ValueError("poison")
        good.extend(one.id for one in events)

    async with working(hub, worker):
        for number in range(6):
            hub.submit_nowait(event(hub, number))
        await until(lambda: not hub.held)
    assert sorted(good) == [b"0", b"1", b"2", b"4", b"5"]
    assert sorted(told.ids) == [b"%d" % number for number in range(6)]
    (dead,) = [one for one in told.done if one.dead]
    assert dead.id == b"3"
    assert dead.dead["record"].attempts == 3
    assert "ValueError: poison" in dead.dead["record"].error
    assert hub.report() == []


async def test_a_live_event_is_tried_once() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker()
    calls: list[list[str]] = []

    @worker.on("*", attempts=3, backoff=QUICK)
    def record(events: list[Event]) -> None:
        calls.append([one.name for one in events])
        assert events[0].is_live
        raise RuntimeError("no")

    async with working(hub, worker):
        hub.publish(hub.shape("tcp:close", FIELDS), (b"", b""))
        await until(lambda: told.lines)
        hub.publish(hub.shape("tcp:close", FIELDS), (b"", b""))
        await until(lambda: len(told.lines) == 2)
    assert calls == [["tcp:close"], ["tcp:close"]]


async def test_a_worker_that_is_drained_leaves_what_it_retries() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    worker = Worker()

    @worker.on("msg:*", backoff=Backoff(30, 30))
    def record(events: list[Event]) -> None:
        raise OSError("down")

    async with working(hub, worker):
        hub.submit_nowait(event(hub, 1))
        await until(lambda: told.lines)
    assert (hub.held, told.done) == (1, [])
    fixed = Worker()
    fixed.on("msg:*")(lambda events: None)
    async with working(hub, fixed):
        await until(lambda: not hub.held)


# --- vetoes -----------------------------------------------------------------------------------------------------------


def vetoing(answer: Any, **options: Any) -> Worker:
    worker = Worker("v")

    @worker.veto("tls:cert", **options)
    def pin(event: Event) -> Any:
        return answer(event) if callable(answer) else answer

    return worker


@pytest.mark.parametrize(
    ("answer", "text"),
    [(None, None), ("", None), (b"", None), ("no", b"no"), (b" ", b" "), ("né", "né".encode()), ("0", b"0")],
)
async def test_a_text_that_is_not_empty_refuses(answer: Any, text: bytes | None) -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing(answer, timeout=5)):
        assert hub.may_refuse("tls:cert")
        assert not hub.may_refuse("tcp:connect")
        found = await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b"))
        assert await hub.ask(hub.shape("tcp:connect", FIELDS), (b"a", b"b")) is None
    assert found == (None if text is None else Refusal(text, "v"))
    assert told.lines == []


async def test_a_veto_sees_the_values() -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing(lambda event: event.text("domain") + "/" + event.name, timeout=5)):
        found = await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b.example"))
    assert found == Refusal(b"b.example/tls:cert", "v")


async def test_a_veto_may_be_async() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker("v")

    @worker.veto("tcp:*", timeout=5)
    async def think(event: Event) -> str:
        await asyncio.sleep(0)
        return "thought"

    async with working(hub, worker):
        assert await hub.ask(hub.shape("tcp:connect", FIELDS), (b"a", b"b")) == Refusal(b"thought", "v")


@pytest.mark.parametrize(("on_timeout", "refused"), [("ignore", False), ("refuse", True)])
async def test_what_silence_means_is_an_option(on_timeout: str, refused: bool) -> None:
    told = Told()
    hub = told.make_hub()
    gate = threading.Event()
    async with working(hub, vetoing(lambda _: gate.wait(10), timeout=0.02, on_timeout=on_timeout)):
        found = await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b"))
        gate.set()
    assert found == (Refusal(b"no answer from v", "v") if refused else None)
    assert told.lines[0] == "tls:cert: a worker of v did not answer in time"


@pytest.mark.parametrize("answer", [42, lambda _: 1 / 0])
async def test_a_veto_that_fails_is_ignored_and_logged(answer: Any) -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing(answer, timeout=5)):
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b")) is None
    assert told.lines[0].startswith("tls:cert: veto pin: ")


async def test_a_veto_does_not_wait_for_a_batch() -> None:
    told = Told()
    hub = told.make_hub()
    worker = vetoing("no", timeout=5)
    gate = threading.Event()
    worker.on("msg:*")(lambda events: gate.wait(10) and None)
    async with working(hub, worker):
        for number in range(20):
            hub.submit_nowait(event(hub, number))
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b")) == Refusal(b"no", "v")
        assert told.done == []
        gate.set()
        await until(lambda: not hub.held)


async def test_a_question_ends_with_its_worker() -> None:
    told = Told()
    hub = told.make_hub()
    async with puppet(hub, "v") as (worker, _):
        worker.ready(group="v", vetoes=(("tls:*", 5.0, False),))
        await until(lambda: hub.may_refuse("tls:cert"))
        link = hub._groups["v"].links[0]
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(WorkerDied):
                    await link.ask(hub.shape("tls:cert", FIELDS), b"", (b"", b""), 5)

            nursery.start_soon(ask)
            await worker.hear(frames.ASK)
            worker.die()
        with pytest.raises(WorkerDied):
            await link.ask(hub.shape("tls:cert", FIELDS), b"", (b"", b""), 5)


async def test_a_question_whose_values_cannot_travel_is_answered_at_once() -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing("no", timeout=5)):
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"x" * OCTETS, b"b")) is None
        assert "a frame of more than" in told.lines[0]
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b")) == Refusal(b"no", "v")


# --- programs ---------------------------------------------------------------------------------------------------------

SETTINGS = Settings(acls={"note": "accept logwrite = noted $acl_arg1\n  set acl_m_seen = $acl_arg1\n  message = yes"})


async def test_a_program_is_evaluated_where_it_may_block() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(
        b"${lookup passwd{root}{root is known}} ${acl{note}{$domain}} $acl_m_before", "event_action x in y", ("domain",)
    )
    assert hub.program(program.source, program.where, program.variables) is program
    async with working(hub, Worker(), settings=SETTINGS.to_frame()):
        state = frames.state_frame(acl_m={"acl_m_before": b"state"})
        answer = await hub.evaluate(program, (b"example.org",), state, timeout_s=10)
        again = await hub.evaluate(program, (b"example.net",), {}, timeout_s=10)
    assert (answer.status, answer.text) == (frames.Status.DONE, b"root is known yes state")
    assert answer.state["acl_m"] == {"acl_m_before": b"state", "acl_m_seen": b"example.org"}
    assert again.text == b"root is known yes "
    assert told.lines == ["noted example.org", "noted example.net"]


@pytest.mark.parametrize(
    ("source", "status", "text"),
    [
        (b"${if eq{a}{b}{x}fail}", frames.Status.FORCED, b'"if" failed and "fail" requested'),
        (b"${lookup pgsql{SELECT 1}}", frames.Status.DEFERRED, b"no PostgreSQL servers defined"),
        (b"$nobody", frames.Status.FAILED, b'unknown variable name "nobody"'),
        (b"${acl{nowhere}}", frames.Status.FAILED, b"nowhere"),
    ],
)
async def test_how_a_program_fails_is_told(source: bytes, status: frames.Status, text: bytes) -> None:
    hub = Told().make_hub(expected=("main",))
    program = hub.program(source, "event_action x in y", ())
    async with working(hub, Worker(), settings=SETTINGS.to_frame()):
        answer = await hub.evaluate(program, (), {}, timeout_s=10)
    assert answer.status is status
    assert text.lower() in answer.text.lower()


async def test_a_program_that_nobody_waits_for_is_run_once_for_each_event() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(b"${acl{note}{$domain}}", "event_action msg:delivery in smtp", ("domain",))
    async with working(hub, Worker(), settings=SETTINGS.to_frame()):
        for number in range(30):
            hub.submit_nowait(Outgoing(None, b"m", b"%d" % number, (b"d%d" % number,), program=program))
        await until(lambda: not hub.held)
    assert told.lines == [f"noted d{number}" for number in range(30)]
    assert told.ids == [b"%d" % number for number in range(30)]


async def test_a_program_whose_lookup_defers_is_tried_again_and_given_up() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    bad = hub.program(b"${lookup pgsql{SELECT 1}}", "event_action msg:delivery in smtp", ())
    failing = hub.program(b"${if eq{a}{b}{x}fail}", "event_action msg:complete in main", ())
    async with working(hub, Worker(), attempts=3, backoff=QUICK):
        hub.submit_nowait(Outgoing(None, b"m", b"1", (), program=bad))
        hub.submit_nowait(Outgoing(None, b"m", b"2", (), program=failing))
        await until(lambda: not hub.held)
    assert told.ids == [b"1", b"2"]
    (dead,) = told.done[0].dead.values()
    assert (dead.handler, dead.attempts) == ("event_action msg:delivery in smtp", 3)
    assert told.done[1].dead == {}, "EV-5: an expansion that fails changes nothing"
    assert len([line for line in told.lines if "msg:delivery in smtp" in line]) == 3
    assert told.lines[-1].startswith("failed to expand event_action msg:complete in main: ")


async def test_without_a_worker_an_evaluation_ends_at_its_deadline(autojump_clock: Any) -> None:
    hub = Told().make_hub(expected=("main",))
    program = hub.program(b"x", "event_action x in y", ())
    with pytest.raises(ActionTimeout, match="there is no worker of main"):
        await hub.evaluate(program, (), {}, timeout_s=5)


# --- observers --------------------------------------------------------------------------------------------------------


async def test_an_observer_sees_everything_and_holds_nothing() -> None:
    told = Told()
    hub = told.make_hub()
    async with puppet(hub, "tail") as (observer, _):
        observer.ready("msg:*", "tcp:*", group="tail")
        await until(lambda: hub.report()[0].workers)
        hub.submit_nowait(event(hub, 1))
        hub.publish(hub.shape("tcp:close", FIELDS), (b"", b""))
        hub.publish(hub.shape("smtp:ehlo", FIELDS), (b"", b""))
        assert told.ids == [b"1"]
        assert hub.held == 0
        arrived = [await observer.hear(frames.EVENT) for _ in range(2)]
        assert [one[1] for one in arrived] == [0, 0]
        assert observer.transport.take() == []


async def test_what_a_worker_says_must_be_a_frame() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    async with puppet(hub) as (worker, ends):
        worker.ready("*")
        await until(lambda: hub.report()[0].workers)
        hub.submit_nowait(event(hub, 1))
        worker.say("nonsense")
        await until(lambda: ends)
    assert ends == ["it sent what is no frame: not an array with its kind in front"]
    assert hub.held == 1
    with pytest.raises(FrameError):
        frames.from_worker_untrusted("nonsense")


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_what_waits_is_handled_before_the_worker_ends() -> None:
    told = Told()
    hub = told.make_hub(window=10, expected=("main",))
    worker = Worker()
    worker.on("msg:*", batch=4)(lambda events: None)
    async with working(hub, worker):
        for number in range(200):
            hub.submit_nowait(event(hub, number))
        assert await hub.drain(timeout_s=10)
        assert len(told.done) == 200
        assert hub.report()[0].workers == 0


async def test_a_drain_ends_in_time_and_leaves_what_is_not_done() -> None:
    told = Told()
    hub = told.make_hub(window=2, expected=("main",))
    worker = Worker()
    gate = threading.Event()
    worker.on("msg:*")(lambda events: gate.wait(10) and None)
    async with working(hub, worker) as link:
        for number in range(10):
            hub.submit_nowait(event(hub, number))
        assert not await hub.drain(timeout_s=0.05)
        gate.set()
        await until(lambda: not link.is_open)
    assert hub.held + len(told.done) == 10
    assert hub.held >= 6
    assert told.ids == [b"%d" % number for number in range(len(told.done))]
