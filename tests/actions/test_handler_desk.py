"""A handler that fails: again together, then each alone, while the others go on; and a server that is away."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine.actions.api import Backoff, Event, Worker
from engine.actions.desks import Ledger
from engine.actions.frames import ACK, DEAD, LOG, Shape
from engine.actions.handler_desk import TOGETHER, HandlerDesk
from engine.actions.patience import MAX_FAILURES

QUICK = Backoff(0.001, 0.002)
SHAPE = Shape(1, "msg:delivery", ("name",))


class Sent:
    """What a desk tells the engine."""

    def __init__(self) -> None:
        self.frames: list[tuple[Any, ...]] = []

    def __call__(self, frame: tuple[Any, ...]) -> None:
        self.frames.append(frame)

    @property
    def done(self) -> list[int]:
        runs = [frame[1] for frame in self.frames if frame[0] == ACK]
        return [
            first + number
            for run in runs
            for first, count in zip(run[::2], run[1::2], strict=True)
            for number in range(count)
        ]

    def of(self, kind: int) -> list[tuple[Any, ...]]:
        return [frame for frame in self.frames if frame[0] == kind]


class Handler:
    """Fails for the ids of `bad`, and for everything while `is_away`."""

    def __init__(self, *bad: bytes) -> None:
        self.bad = set(bad)
        self.is_away = False
        self.calls: list[list[bytes]] = []
        self.handled: list[bytes] = []

    def __call__(self, events: list[Event]) -> None:
        ids = [event.id for event in events]
        self.calls.append(ids)
        if self.is_away:
            raise OSError("connection refused")
        if self.bad.intersection(ids):
            raise ValueError("poison")
        self.handled += ids


def desk_with(
    handler: Handler, sent: Sent, *ids: bytes, batch: int = 100, backoff: Backoff = QUICK, attempts: int = 8
) -> HandlerDesk:
    worker = Worker()
    worker.on("msg:*", batch=batch, attempts=attempts, backoff=backoff, name="record")(handler)
    desk = HandlerDesk(worker.handlers[0], Ledger(sent), sent)
    for number, id in enumerate(ids, 1):
        desk.add(Event(SHAPE, (b"x",), id, number))
    return desk


def work(desk: HandlerDesk, until: Callable[[], bool]) -> None:
    """Let a desk work until something is so."""
    desk.start()
    try:
        for _ in range(10_000):
            if until():
                return
            threading.Event().wait(0.001)
        pytest.fail("that never came")
    finally:
        desk.finish()
        assert desk.join(10)


def test_one_event_that_cannot_be_handled_holds_up_its_message_only() -> None:
    handler, sent = Handler(b"b/1"), Sent()
    desk = desk_with(handler, sent, b"a/1", b"b/1", b"b/2", b"c/1")
    work(desk, lambda: len(sent.done) == 4)
    assert handler.calls[:TOGETHER] == [[b"a/1", b"b/1", b"b/2", b"c/1"]] * TOGETHER
    assert handler.handled == [b"a/1", b"c/1", b"b/2"], "the others go on; what is behind it waits"
    assert handler.calls.count([b"b/1"]) == 8 - TOGETHER
    (dead,) = sent.of(DEAD)
    assert dead[1:4] == (2, "record", 8)
    assert "ValueError: poison" in dead[4]


def test_what_comes_meanwhile_is_handled_in_batches_as_ever() -> None:
    handler, sent = Handler(b"b/1"), Sent()
    desk = desk_with(handler, sent, b"b/1", backoff=Backoff(0.001, 0.001), attempts=1000)
    for number in range(2, 50):
        desk.add(Event(SHAPE, (b"x",), b"m%d/1" % number, number))
    work(desk, lambda: len(handler.handled) == 48)
    assert len(sent.done) == 48
    assert sent.of(DEAD) == []


def test_a_server_that_is_away_makes_no_dead_letters_at_once_and_gets_everything() -> None:
    handler, sent = Handler(), Sent()
    handler.is_away = True
    ids = [b"m%d/%d" % (number % 20, number) for number in range(100)]
    desk = desk_with(handler, sent, *ids, batch=30, attempts=1000)
    tried = 3 * (TOGETHER + MAX_FAILURES)

    def is_over() -> bool:
        if len(handler.calls) >= tried:
            handler.is_away = False
        return len(sent.done) == 100

    work(desk, is_over)
    assert sent.of(DEAD) == []
    assert sorted(handler.handled) == sorted(ids)
    for message in range(20):
        mine = [int(id.partition(b"/")[2]) for id in handler.handled if id.startswith(b"m%d/" % message)]
        assert mine == sorted(mine)


def test_nobody_waits_at_the_end_for_a_server_that_is_away() -> None:
    handler, sent = Handler(), Sent()
    handler.is_away = True
    desk = desk_with(handler, sent, *(b"m%d/1" % number for number in range(1000)), backoff=Backoff(3600.0, 3600.0))
    desk.start()
    while not handler.calls:
        desk.join(0.001)
    desk.finish()
    assert desk.join(10)
    assert len(handler.calls) <= MAX_FAILURES
    assert sent.done == []


def test_a_live_event_is_tried_once_and_never_put_aside() -> None:
    handler, sent = Handler(b""), Sent()
    desk = desk_with(handler, sent)
    desk.add(Event(SHAPE, (b"x",)))
    work(desk, lambda: bool(sent.of(LOG)))
    assert handler.calls == [[b""]]
    assert sent.done == []


async def _is_cancelled(events: list[Event]) -> None:
    del events
    raise asyncio.CancelledError


def _exits(events: list[Event]) -> None:
    del events
    sys.exit(3)


@pytest.mark.parametrize("function", [_is_cancelled, _exits])
def test_a_handler_that_exits_or_is_cancelled_has_failed_and_its_desk_goes_on(function: Callable[..., Any]) -> None:
    sent = Sent()
    worker = Worker()
    worker.on("msg:*", attempts=2, backoff=QUICK, name="record")(function)
    desk = HandlerDesk(worker.handlers[0], Ledger(sent), sent)
    for number in (1, 2):
        desk.add(Event(SHAPE, (b"x",), b"m%d/1" % number, number))
    work(desk, lambda: len(sent.done) == 2)
    assert sorted(frame[1] for frame in sent.of(DEAD)) == [1, 2]
