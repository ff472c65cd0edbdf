"""Events, vetoes and evaluations over a channel: what is done is told once, in order, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import trio
import trio.lowlevel

from engine.actions import frames
from engine.actions.api import Backoff, Event, Worker
from engine.actions.channel import Outgoing
from engine.actions.hub import Hub
from engine.errors import FrameError
from fakes.action_links import OCTETS, Told, puppet, working
from fakes.patience import PATIENCE_S, until

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


@pytest.mark.parametrize("fault", [object(), b"x" * OCTETS], ids=["no value of msgpack", "too long"])
async def test_an_event_that_cannot_travel_is_a_dead_letter_and_the_others_are_handled(fault: object) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    worker = Worker()
    seen: list[bytes] = []
    worker.on("msg:*", batch=10)(lambda events: seen.extend(one.id for one in events))
    events = [event(hub, number) for number in range(20)]
    for at in (0, 7, 8, 19):
        events[at].values = (fault, b"")
    assert hub.submit_many(events) == 20
    async with working(hub, worker):
        await until(lambda: not hub.held)
    good = [number for number in range(20) if number not in (0, 7, 8, 19)]
    assert seen == [b"%d" % number for number in good]
    assert sorted(one.token for one in told.done) == list(range(20))
    assert {one.token for one in told.done if one.dead} == {0, 7, 8, 19}
    assert hub.report() == [] or hub.report()[0].counts.dead == 4


async def test_a_batch_is_taken_as_far_as_there_is_room_and_whoever_it_is_for() -> None:
    """Events of several kinds, with nobody for some of them, with the order of each message kept over two workers."""
    told = Told()
    hub = told.make_hub(expected=("main", "crm"), limit=60)
    seen: dict[str, list[tuple[bytes, int]]] = {"main": [], "crm": []}
    workers = {name: Worker(name) for name in seen}
    for name, worker in workers.items():
        pattern = "msg:delivery" if name == "crm" else "msg:*"

        @worker.on(pattern, batch=3)
        def record(events: list[Event], into: list[tuple[bytes, int]] = seen[name]) -> None:
            into.extend((b"m%d" % (int(one.id) % 7), int(one.id)) for one in events)

    kinds = ("msg:delivery", "msg:complete", "tcp:close")
    events = [event(hub, number, kinds[number % 3], b"m%d" % (number % 7)) for number in range(200)]
    async with working(hub, workers["main"]), working(hub, workers["crm"]), working(hub, workers["main"]):
        await until(lambda: sum(group.workers for group in hub.report()) == 3)
        at = 0
        while at < len(events):
            taken = hub.submit_many(events[at:])
            assert hub.held <= 60
            at += taken
            await trio.lowlevel.checkpoint()
        await until(lambda: not hub.held)
    assert sorted(one.token for one in told.done) == list(range(200))
    assert {number for _, number in seen["main"]} == {number for number in range(200) if number % 3 < 2}
    assert {number for _, number in seen["crm"]} == {number for number in range(200) if number % 3 == 0}
    for rows in seen.values():
        for key in {key for key, _ in rows}:
            numbers = [number for other, number in rows if other == key]
            assert numbers == sorted(numbers)


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
        hub.submit_nowait(event(hub, 2, handlers=("main:first",)))
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
    problems = [one.dead[""].error for one in told.done if one.dead]
    assert "a frame of more than" in problems[0]
    assert "object in a frame" in problems[1]


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
    assert dead.dead is not None
    assert dead.dead["main:record"].attempts == 3
    assert "ValueError: poison" in dead.dead["main:record"].error
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
        assert await hub.drain(timeout_s=PATIENCE_S)
        assert len(told.done) == 200
        assert hub.report()[0].workers == 0


async def test_a_drain_ends_in_time_and_leaves_what_is_not_done() -> None:
    told = Told()
    hub = told.make_hub(window=2, expected=("main",))
    worker = Worker()
    gate = threading.Event()
    worker.on("msg:*")(lambda events: gate.wait(PATIENCE_S) and None)
    async with working(hub, worker) as link:
        for number in range(10):
            hub.submit_nowait(event(hub, number))
        assert not await hub.drain(timeout_s=0.05)
        gate.set()
        await until(lambda: not link.is_open)
    assert hub.held + len(told.done) == 10
    assert hub.held >= 6
    assert told.ids == [b"%d" % number for number in range(len(told.done))]
