"""A hostile worker and a hostile engine: whatever one says, the other goes on or ends with a clear line.

Between processes: tests/actions/test_supervisor.py.  Octet for octet in the rings: tests/actions/test_ring.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from msgpack import ExtType

from engine.actions import attach, frames
from engine.actions.api import Worker
from engine.actions.channel import Outgoing
from engine.actions.frames import ACK, ALIVE, ANSWER, DEAD, EVENT, HELLO, LOG, PROGRAM, READY, RUN, SHAPE, VERSION
from engine.actions.transport import PIPE, RINGS, Rings, make_pair, open_end
from engine.actions.worker import MAX_SHAPES, Runner
from engine.errors import ActionError, FrameError
from fakes.action_links import OCTETS, Told, puppet
from fakes.patience import PATIENCE_S, until

GOOD_READY = (READY, VERSION, 1, "main", (("h", "msg:*"),), ())

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
    | st.text(max_size=10)
    | st.builds(ExtType, st.integers(0, 127), st.binary(max_size=8)),
    lambda inner: st.lists(inner, max_size=5).map(tuple) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KINDS = st.sampled_from([*range(9), *range(64, 72)])
FRAMES = ANYTHING | st.builds(lambda kind, rest: (kind, *rest), KINDS, st.lists(ANYTHING, max_size=7))


# --- frames -----------------------------------------------------------------------------------------------------------


@given(FRAMES)
def test_any_value_is_a_frame_of_a_worker_or_a_frame_error(frame: Any) -> None:
    with contextlib.suppress(FrameError):
        frames.from_worker_untrusted(frame)


@given(FRAMES)
def test_any_value_is_a_frame_of_an_engine_or_a_frame_error(frame: Any) -> None:
    with contextlib.suppress(FrameError):
        assert frames.check_from_engine_untrusted(frame) == frame


@given(ANYTHING)
def test_any_value_is_state_or_a_frame_error(value: Any) -> None:
    for function in (frames.state_untrusted, frames.arrived_untrusted):
        with contextlib.suppress(FrameError):
            function(value)


BAD_FROM_WORKER = [
    ((), "not an array"),
    (("x",), "not an array"),
    ((True,), "not an array"),
    ((EVENT, 1, 1, b"", (), None), "no kind 4 comes from a worker"),
    ((READY, VERSION + 1, 1, "main", (), ()), "the worker speaks version"),
    ((READY, VERSION, 1, "main", ()), "READY: 4 fields, not 5"),
    ((READY, VERSION, 1, "main", ("x",), ()), "registration is not an array"),
    ((READY, VERSION, 1, "main", (("h", b"x"),), ()), "READY: bytes where str belongs"),
    ((READY, VERSION, 1, "main", (("h", "x"),) * 1001, ()), "more than 1000 registrations"),
    ((READY, VERSION, 1, "main", (), (("x", float("nan"), True),)), "timeout"),
    ((READY, VERSION, 1, "main", (), (("x", 0, True),)), "timeout"),
    ((READY, VERSION, 1, "main", (), (("x", 1e9, True),)), "timeout"),
    ((ACK, (1,)), "not runs"),
    ((ACK, (1, 0)), "not runs"),
    ((ACK, (-1, 1)), "not runs"),
    ((ACK, (True, 1)), "not runs"),
    ((ANSWER, 1, 99, b"", {}), "no status 99"),
    ((ANSWER, 1, 0, "text", {}), "str where bytes belongs"),
    ((ANSWER, 1, 0, b"", {"acl_m": {"x": 1}}), "what is no text"),
    ((ANSWER, 1, 0, b"", {"acl_m": {"x": ExtType(frames.QUOTED, b"no quoter")}}), "without its quoter"),
    ((DEAD, 1, "h", 1), "DEAD: 3 fields"),
    ((LOG, 0, "text", ()), "LOG: str"),
    ((ALIVE, 1), "ALIVE: 1 fields"),
]


@pytest.mark.parametrize(("frame", "problem"), BAD_FROM_WORKER)
def test_what_is_wrong_with_a_frame_is_said(frame: Any, problem: str) -> None:
    with pytest.raises(FrameError, match=problem):
        frames.from_worker_untrusted(frame)


def test_a_log_line_is_cut_and_goes_where_logs_go() -> None:
    said = frames.from_worker_untrusted((LOG, 0, b"x" * 100_000, ("nowhere", 5)))
    assert isinstance(said, frames.Log)
    assert (len(said.text), said.logs) == (4096, frozenset(["main"]))


# --- a hostile worker, seen by the engine -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "frame", "why"),
    [
        (None, (ACK, (1, 1)), "it does not begin with READY"),
        (None, (READY, VERSION, 1, "other", (), ()), "a worker of group other where one of main belongs"),
        (GOOD_READY, GOOD_READY, "a second READY"),
        (GOOD_READY, (ACK, (1, 2**62)), "acknowledges what it was not given"),
        (GOOD_READY, (ACK, (900, 1)), "acknowledges what it was not given"),
        (GOOD_READY, (DEAD, 900, "h", 1, "x"), "gives up what it was not given"),
        (GOOD_READY, ("garbage", 1), "not an array with its kind in front"),
    ],
)
async def test_the_link_ends_and_the_events_stay(before: Any, frame: Any, why: str) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    async with puppet(hub) as (worker, ends):
        if before is not None:
            worker.say(*before)
        hub.submit_nowait(Outgoing(hub.shape("msg:x", ("a",)), b"k", b"1", (b"v",)))
        if before is not None:
            await worker.hear(EVENT)
        worker.say(*frame)
        await until(lambda: ends)
    assert why in ends[0]
    assert ends[0].startswith("it sent what is no frame: ")
    assert (hub.held, told.done) == (1, [])


async def test_an_acknowledgement_counts_once() -> None:
    hub = (told := Told()).make_hub(expected=("main",))
    async with puppet(hub) as (worker, ends):
        worker.say(*GOOD_READY)
        hub.submit_nowait(Outgoing(hub.shape("msg:x", ("a",)), b"k", b"1", (b"v",)))
        seq = (await worker.hear(EVENT))[1]
        worker.say(ACK, (seq, 1))
        await until(lambda: told.done)
        worker.say(ACK, (seq, 1))
        await until(lambda: ends)
    assert told.ids == [b"1"]


@pytest.mark.parametrize("wrong", [(900, 1), (2, 3), (2, 2**62), (1, 1)])
async def test_what_is_acknowledged_before_what_is_wrong_counts_and_the_rest_stays(wrong: tuple[int, int]) -> None:
    hub = (told := Told()).make_hub(expected=("main",))
    async with puppet(hub) as (worker, ends):
        worker.say(*GOOD_READY)
        shape = hub.shape("msg:x", ("a",))
        assert hub.submit_many([Outgoing(shape, b"k", b"%d" % number, (b"v",)) for number in range(3)]) == 3
        seqs = [(await worker.hear(EVENT))[1] for _ in range(3)]
        assert seqs == [1, 2, 3]
        worker.say(ACK, (1, 1, *wrong))
        await until(lambda: ends)
    assert ends == ["it sent what is no frame: it acknowledges what it was not given"]
    assert (told.ids, hub.held) == ([b"0"], 2)


async def test_an_answer_to_no_question_is_late_and_harmless() -> None:
    hub = Told().make_hub()
    async with puppet(hub) as (worker, ends):
        worker.say(*GOOD_READY)
        worker.say(ANSWER, 77, 0, b"no", {})
        worker.say(LOG, 0, b"still here", ())
        await until(lambda: hub.report()[0].workers)
        await trio.testing.wait_all_tasks_blocked()
        assert ends == []


async def test_octets_on_the_control_socket_are_the_end() -> None:
    hub = Told().make_hub()
    async with puppet(hub) as (worker, ends):
        worker.control.send(b"hello")
        await until(lambda: ends)
    assert ends == ["it talked on its control socket"]


@pytest.mark.parametrize("at", [512 + 128, 1024], ids=["its head of our ring", "its tail of its ring"])
async def test_impossible_positions_are_the_end(at: int) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    async with puppet(hub) as (worker, ends):
        worker.say(*GOOD_READY)
        await until(lambda: hub.report()[0].workers)
        assert isinstance(worker.transport, Rings)
        struct.pack_into("=Q", worker.transport._memory, at, 1 << 40)
        hub.submit_nowait(Outgoing(hub.shape("msg:x", ("a",)), b"k", b"1", (b"v",)))
        os.eventfd_write(worker.transport._wakes_them, 1)
        await until(lambda: ends)
    assert ends[0].startswith("it sent what is no frame: the other side has ")
    assert hub.held == 1


async def test_a_worker_that_plays_with_the_eventfds_stops_nothing() -> None:
    """It makes them blocking, empties ours and fills its own: the engine must not wait for it."""
    hub = Told().make_hub(expected=("main",))
    async with puppet(hub) as (worker, _):
        worker.say(*GOOD_READY)
        await until(lambda: hub.report()[0].workers)
        assert isinstance(worker.transport, Rings)
        for fd in (worker.transport._wakes_us, worker.transport._wakes_them):
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.eventfd_write(worker.transport._wakes_us, 2**64 - 2)
        with trio.fail_after(PATIENCE_S):
            for number in range(10):
                assert worker.transport.sleep() or worker.transport.take()
                hub.submit_nowait(Outgoing(hub.shape("msg:x", ("a",)), b"k", b"%d" % number, (b"v",)))
                await trio.testing.wait_all_tasks_blocked()


async def test_a_worker_that_only_wakes_us_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.actions.transport._MAX_IDLE_WAKES", 50)
    hub = Told().make_hub()
    async with puppet(hub) as (worker, ends):
        worker.say(*GOOD_READY)
        await until(lambda: hub.report()[0].workers)
        assert isinstance(worker.transport, Rings)
        for _ in range(10_000):
            os.eventfd_write(worker.transport._wakes_them, 1)
            await trio.lowlevel.checkpoint()
            if ends:
                break
    assert ends == ["it sent what is no frame: the other side does nothing but wake us"]


async def test_a_worker_that_has_work_and_says_nothing_is_ended(autojump_clock: Any) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",), silence_s=300)
    async with puppet(hub) as (worker, ends):
        worker.say(*GOOD_READY)
        await trio.sleep(2000)
        assert ends == [], "without work it may be silent"
        hub.submit_nowait(Outgoing(hub.shape("msg:x", ("a",)), b"k", b"1", (b"v",)))
        for _ in range(5):
            await trio.sleep(200)
            worker.say(ALIVE)
        assert ends == [], "it says that it is at it"
        await trio.sleep(310)
    assert ends == ["it has said nothing for 300 s with 1 events to handle"]
    assert hub.held == 1


async def test_a_worker_that_never_greets_is_ended(autojump_clock: Any) -> None:
    hub = Told().make_hub()
    async with puppet(hub) as (_, ends):
        await trio.sleep(61)
    assert ends == ["it did not say READY within 60 s"]


@given(st.lists(FRAMES, max_size=5), st.booleans())
def test_an_engine_survives_any_worker(said: list[Any], greets: bool) -> None:
    told = Told()

    async def main() -> None:
        hub = told.make_hub(expected=("main",))
        hub.submit_nowait(Outgoing(hub.shape("msg:x", ("a",)), b"k", b"1", (b"v",)))
        async with puppet(hub, octets=4096) as (worker, _):
            if greets:
                worker.say(*GOOD_READY)
            for value in said:
                if not worker.transport.put(value):
                    break
            worker.transport.flush()
            worker.die()
            with trio.fail_after(PATIENCE_S):
                while hub.report()[0].workers or hub._groups["main"].links:
                    await trio.lowlevel.checkpoint()
        assert hub.held + len(told.done) == 1

    trio.run(main)


# --- a hostile engine, seen by the worker -----------------------------------------------------------------------------


def work_for(said: list[Any], *, octets: int = OCTETS, memory: Any = None) -> str:
    """Let a worker work for an engine that says this and is gone; returns how the worker ended."""
    engine, kind, descriptors = make_pair(octets)
    ours, theirs = socket.socketpair()
    worker = Worker()
    worker.on("msg:*")(lambda events: None)
    worker.veto("tls:*")(lambda event: None)
    ended: list[str] = []

    def run() -> None:
        try:
            Runner(worker, open_end(kind, descriptors), theirs).run()
            ended.append("well")
        except ActionError as error:
            ended.append(str(error))

    thread = threading.Thread(target=run)
    try:
        for frame in said:
            engine.put(frame)
        if memory is not None:
            assert isinstance(engine, Rings)
            memory(engine._memory)
        thread.start()
        engine.flush()
        ours.close()
        thread.join(10)
        assert not thread.is_alive()
    finally:
        engine.close()
        ours.close()
        theirs.close()
    return ended[0]


GOOD_HELLO: Any = (HELLO, VERSION, "main", {})
GOOD_SHAPE = (SHAPE, 1, "msg:x", ("a", "b"))


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ([], "well"),
        ([GOOD_HELLO, GOOD_SHAPE, (EVENT, 1, 1, b"id", (1, 2), None)], "well"),
        ([GOOD_SHAPE], "the engine does not begin with HELLO"),
        ([GOOD_HELLO, GOOD_HELLO], "a second HELLO"),
        ([(HELLO, VERSION + 1, "main", {})], "the engine speaks version"),
        ([(HELLO, VERSION, "crm", {})], "this socket is for workers of group 'crm', not 'main'"),
        ([(HELLO, VERSION, "main", {"lookups": 5})], "settings that are none"),
        ([(HELLO, VERSION, "main", {"lookups": {"nonsense": 5}})], "settings that are none"),
        ([GOOD_HELLO, (EVENT, 1, 9, b"id", (), None)], "no shape 9"),
        ([GOOD_HELLO, GOOD_SHAPE, (EVENT, 1, 1, b"id", (1,), None)], "1 values for the 2 fields of msg:x"),
        ([GOOD_HELLO, GOOD_SHAPE, (EVENT, 1, 1, b"id", (1, 2), 5)], "the handlers are not names"),
        ([GOOD_HELLO, (SHAPE, 1, "x", (1, 2))], "the fields are not names"),
        ([GOOD_HELLO, (RUN, 1, 7, b"id", (), {})], "no program 7"),
        ([GOOD_HELLO, (PROGRAM, 1, b"$", "w", ("a",), {}), (RUN, 1, 1, b"id", (), {})], "0 values for the 1 variables"),
        (
            [GOOD_HELLO, (PROGRAM, 1, b"$", "w", ("a",), {}), (RUN, 1, 1, b"", ((),), {})],
            "tuple as value of a variable",
        ),
        ([GOOD_HELLO, (99,)], "no kind 99 comes from an engine"),
        ([GOOD_HELLO, "text"], "not an array"),
    ],
)
def test_the_worker_says_what_is_wrong_and_ends(said: list[Any], how: str) -> None:
    assert how in work_for(said)


def test_shapes_are_bounded() -> None:
    shapes = [(SHAPE, number, "x", ()) for number in range(MAX_SHAPES + 1)]
    assert "more than 10000 shapes" in work_for([GOOD_HELLO, *shapes], octets=1 << 19)


@given(st.lists(FRAMES, max_size=5), st.booleans())
def test_a_worker_survives_any_engine(said: list[Any], greets: bool) -> None:
    assert work_for([*([GOOD_HELLO, GOOD_SHAPE] if greets else []), *said], octets=4096)


@given(st.lists(st.tuples(st.integers(0, 4096 * 2), st.binary(min_size=1, max_size=8)), min_size=1, max_size=8))
def test_a_worker_survives_any_memory(changes: list[tuple[int, bytes]]) -> None:
    def scribble(memory: Any) -> None:
        for at, octets in changes:
            # not the header: that was read when the transport was opened
            place = 512 + at
            memory[place : place + len(octets)] = octets

    assert work_for([GOOD_HELLO, GOOD_SHAPE, (EVENT, 1, 1, b"id", (1, b"x" * 50), None)], octets=4096, memory=scribble)


# --- the hand-over ----------------------------------------------------------------------------------------------------


def handed(*octets: bytes, descriptors: list[int] | None = None) -> str:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if descriptors is None:
            for piece in octets:
                ours.send(piece)
        else:
            socket.send_fds(ours, list(octets), descriptors)
        ours.close()
        with pytest.raises(ActionError) as caught:
            attach.receive(theirs, timeout_s=PATIENCE_S).close()
    return str(caught.value)


def test_a_hand_over_that_is_none_is_refused() -> None:
    greeting = struct.Struct("<8sII")
    good = greeting.pack(attach.MAGIC, 1, RINGS)
    with open(os.devnull) as null:
        fd = null.fileno()
        assert handed() == "the engine refused this worker"
        assert "cut off" in handed(good[:9])
        assert "another version" in handed(greeting.pack(b"OTHERONE", 1, RINGS), descriptors=[fd])
        assert "another version" in handed(greeting.pack(attach.MAGIC, 2, RINGS), descriptors=[fd])
        assert "another version" in handed(greeting.pack(attach.MAGIC, 1, 9), descriptors=[fd])
        assert "something else than a transport" in handed(good)
        assert "something else than a transport" in handed(good, descriptors=[fd])
        assert "cannot be used" in handed(good, descriptors=[fd, fd, fd])
    unsealed = os.memfd_create("x")
    os.ftruncate(unsealed, 1 << 20)
    assert "could be shrunk under us" in handed(good, descriptors=[unsealed] * 3)
    os.close(unsealed)


def test_memory_cannot_be_shrunk_under_the_other_side() -> None:
    end, _, descriptors = make_pair(OCTETS)
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptors[0], size)
    for fd in descriptors:
        os.close(fd)
    end.close()


def test_a_pipe_refuses_lengths_that_cannot_be() -> None:
    end, kind, descriptors = make_pair(kind=PIPE)
    assert kind == PIPE
    with socket.socket(fileno=descriptors[0]) as other:
        other.send(struct.pack("<I", 1) + b"\x05" + struct.pack("<I", 1 << 30))
        assert end.take() == [5]
        with pytest.raises(FrameError, match="a frame of 1073741824 octets"):
            end.take()
    end.close()
