"""What every transport of the channel keeps, rings and pipe alike: order, no loss, no waiting, a noticed end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions import attach
from engine.actions.api import Event, Worker
from engine.actions.channel import Outgoing
from engine.actions.transport import PIPE, RINGS, Transport, make_pair, open_end
from engine.errors import FrameError
from fakes.action_links import Told, working
from fakes.patience import until

KINDS = pytest.mark.parametrize("kind", [RINGS, PIPE], ids=["rings", "pipe"])
OCTETS = 1 << 14


@contextlib.contextmanager
def pair(kind: int, octets: int = OCTETS) -> Iterator[tuple[Transport, Transport]]:
    engine, kind, descriptors = make_pair(octets, kind=kind)
    worker = open_end(kind, descriptors)
    with contextlib.closing(engine), contextlib.closing(worker):
        yield engine, worker


def take_all(end: Transport) -> list[Any]:
    found: list[Any] = []
    while frames := end.take():
        found += frames
    return found


def is_readable(end: Transport, timeout_s: float = 0) -> bool:
    return bool(select.select([end.fileno()], [], [], timeout_s)[0])


@KINDS
def test_frames_arrive_in_order_both_ways(kind: int) -> None:
    with pair(kind) as (engine, worker):
        for one, other in ((engine, worker), (worker, engine)):
            frames = [(number, b"x" * number, None) for number in range(60)]
            assert one.put(frames[0])
            assert one.put_many(frames, 1) == 59
            one.flush()
            assert take_all(other) == frames
            assert other.take() == []


@KINDS
def test_take_gives_no_more_than_it_is_asked_for(kind: int) -> None:
    with pair(kind) as (engine, worker):
        assert engine.put_many([1, 2, 3]) == 3
        engine.flush()
        assert [worker.take(2), worker.take(2), worker.take(2)] == [[1, 2], [3], []]


@KINDS
def test_who_sleeps_is_woken_and_who_does_not_is_not(kind: int) -> None:
    with pair(kind) as (engine, worker):
        assert worker.sleep()
        assert not is_readable(worker)
        engine.put(1)
        engine.flush()
        assert is_readable(worker, 5)
        worker.awake()
        assert worker.take() == [1]
        assert not is_readable(worker)
        engine.put_many([2, 3])
        engine.flush()
        if kind == RINGS:
            assert not is_readable(worker), "it is awake: no system call was made"
        assert worker.take(1) == [2]
        assert not worker.sleep(), "there is something to read"
        worker.awake()
        assert worker.take() == [3]


@KINDS
def test_putting_never_waits_and_room_is_told(kind: int) -> None:
    with pair(kind) as (engine, worker):
        count = 0
        while engine.put((count, b"x" * 1000)):
            count += 1
        assert count > 10
        assert engine.put_many([1] * 3) in (0, 1, 2, 3)
        assert engine.wait_for_room()
        engine.sleep()
        found: list[Any] = []
        while len(found) < count:
            found += worker.take(5)
            engine.flush()
        assert [frame[0] for frame in found if isinstance(frame, tuple)] == list(range(count))
        if engine.writable_fileno is None:
            assert is_readable(engine, 5)
        else:
            assert select.select([], [engine.writable_fileno], [], 5)[1]
        engine.awake()
        assert engine.put((1,))


@KINDS
def test_a_frame_that_is_too_long_or_none_is_refused_and_nothing_is_written(kind: int) -> None:
    with pair(kind) as (engine, worker):
        for frame in (b"x" * (engine.max_frame + 1), object(), (1, {2.5: 1})):
            with pytest.raises(FrameError):
                engine.put(frame)
        assert not engine.is_broken
        assert engine.put(b"x" * (engine.max_frame - 10))
        engine.flush()
        found: list[Any] = []
        while not found:
            engine.flush()
            found = worker.take()
        assert [len(frame) for frame in found] == [engine.max_frame - 10]


@KINDS
def test_what_was_written_is_read_after_the_end(kind: int) -> None:
    with pair(kind) as (engine, worker):
        worker.put_many([1, 2, 3])
        worker.close()
        assert engine.take() == [1, 2, 3]
        if kind == PIPE:
            with pytest.raises(EOFError):
                engine.take()
        worker.close()


@given(st.lists(st.integers(0, 6) | st.binary(max_size=900), max_size=80), st.sampled_from([RINGS, PIPE]))
def test_nothing_is_lost_doubled_or_out_of_order(steps: list[Any], kind: int) -> None:
    """Octets are put in, a number is how many are taken out."""
    with pair(kind, 4096) as (engine, worker):
        sent: list[bytes] = []
        got: list[bytes] = []
        for step in steps:
            if isinstance(step, int):
                got += worker.take(step) if step else []
            elif engine.put(step):
                sent.append(step)
                engine.flush()
        engine.flush()
        assert got + take_all(worker) == sent


@KINDS
def test_descriptors_are_gone_at_the_end(kind: int) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pair(kind):
        assert set(os.listdir("/proc/self/fd")) != before
    assert set(os.listdir("/proc/self/fd")) == before


@KINDS
def test_a_transport_is_handed_over(kind: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        engine, kind, descriptors = make_pair(OCTETS, kind=kind)
        attach.hand_over(ours, kind, descriptors)
        with contextlib.closing(engine), contextlib.closing(attach.receive(theirs)) as worker:
            engine.put("hello")
            engine.flush()
            assert worker.take() == ["hello"]


@KINDS
async def test_a_worker_works_over_it(kind: int) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    worker = Worker()
    seen: list[bytes] = []
    worker.on("msg:*", batch=64)(lambda events: seen.extend(event.id for event in events))

    @worker.veto("tls:cert", timeout=10)
    def refuse(event: Event) -> str:
        return event.text("a")

    ids = [b"%d" % number for number in range(2000)]
    shape = hub.shape("msg:x", ("a",))
    async with working(hub, worker, kind=kind, octets=OCTETS):
        for id in ids:
            hub.submit_nowait(Outgoing(shape, b"k", id, (b"x" * 100,)))
        refusal = await hub.ask(hub.shape("tls:cert", ("a",)), (b"no",))
        await until(lambda: not hub.held)
    assert refusal is not None
    assert refusal.text == b"no"
    assert seen == ids == told.ids
