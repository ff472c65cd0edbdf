"""What authors of actions use: events, registrations, and the channel for their own tests."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.api import Backoff, Event, Patterns, Worker, pattern_regex
from engine.actions.frames import Shape
from engine.actions.testing import Failure, TestChannel
from engine.actions.worker import load
from engine.errors import ConfigError, FrameError

EVENT = Event(
    Shape(1, "msg:delivery", ("local_part", "host_port", "dane", "empty")), (b"\xc3\xa9\xff", 25, True, None), b"id", 7
)


def test_an_event_gives_its_values_by_name() -> None:
    assert (EVENT.name, EVENT.id, EVENT.seq, EVENT.is_live) == ("msg:delivery", b"id", 7, False)
    assert EVENT["local_part"] == b"\xc3\xa9\xff"
    assert [EVENT.text(name, "-") for name in (*EVENT.fields, "nobody")] == ["é\ufffd", "25", "yes", "-", "-"]
    assert [EVENT.get(name, 5) for name in ("host_port", "empty", "nobody")] == [25, None, 5]
    assert list(EVENT) == ["local_part", "host_port", "dane", "empty"]
    assert "dane" in EVENT
    assert "nobody" not in EVENT
    assert EVENT.to_dict()["host_port"] == 25
    assert "msg:delivery" in repr(EVENT)
    with pytest.raises(KeyError):
        EVENT["nobody"]


@pytest.mark.parametrize(
    ("pattern", "matches", "fails"),
    [
        ("msg:delivery", ["msg:delivery"], ["msg:deliver", "msg:delivery:x", "xmsg:delivery"]),
        ("msg:fail:*", ["msg:fail:delivery", "msg:fail:"], ["msg:fail", "msg:failx"]),
        ("*", ["", "anything", "a\nb"], []),
        ("*:cert", ["tls:cert"], ["tls:certs"]),
        ("a[b?.c", ["a[b?.c"], ["ab?.c", "a[b?xc"]),
    ],
)
def test_only_a_star_is_special_in_a_pattern(pattern: str, matches: list[str], fails: list[str]) -> None:
    assert all(pattern_regex(pattern).fullmatch(name) for name in matches)
    assert not any(pattern_regex(pattern).fullmatch(name) for name in fails)


def test_what_is_known_of_names_is_bounded() -> None:
    patterns = Patterns(("a*",))
    assert all(patterns.match(f"a{number}") and not patterns.match(f"b{number}") for number in range(2000))
    assert len(patterns._known) <= 1000


@given(st.integers(1, 10_000))
def test_pauses_grow_and_are_bounded(attempt: int) -> None:
    backoff = Backoff()
    assert backoff.pause_s(attempt) <= backoff.pause_s(attempt + 1) <= 60
    assert backoff.pause_s(1) == 1


def test_registrations_are_checked() -> None:
    worker = Worker()
    worker.on("msg:*", name="a")(lambda events: None)
    for wrong in ({"batch": 0}, {"batch": 10**9}, {"linger": -1}, {"attempts": 0}):
        with pytest.raises(ValueError, match=r"batch is|linger is"):
            worker.on("x", **wrong)  # type: ignore[arg-type]
    for call in (worker.on, worker.veto):
        for patterns in ((), ("",)):
            with pytest.raises(ValueError, match="needs at least one"):
                call(*patterns)
    with pytest.raises(ValueError, match="two handlers called 'a'"):
        worker.on("x", name="a")(lambda events: None)
    for options in ({"timeout": 0}, {"timeout": 10**6}, {"on_timeout": "panic"}):
        with pytest.raises(ValueError, match="timeout"):
            worker.veto("x", **options)


def test_a_decorated_function_stays_what_it_is() -> None:
    worker = Worker()

    @worker.on("msg:*")
    def handle(events: list[Event]) -> None: ...

    @worker.veto("tls:cert")
    def pin(event: Event) -> None: ...

    assert (handle.__name__, pin.__name__) == ("handle", "pin")
    assert worker.handlers[0].name == "handle"


def test_a_worker_is_found_by_its_place() -> None:
    assert isinstance(load("tests.isolated.worker_example:worker"), Worker)
    for place in ("engine.actions.api", ":x", "x:", "nowhere.at.all:x", "engine.actions.api:Worker", "engine:a.b"):
        with pytest.raises(ConfigError):
            load(place)


# --- the channel for tests --------------------------------------------------------------------------------------------


def test_a_test_channel_calls_handlers_in_batches() -> None:
    worker = Worker()
    calls: list[list[str]] = []

    @worker.on("msg:*", batch=2)
    def record(events: list[Event]) -> None:
        calls.append([event.text("local_part") for event in events])

    channel = TestChannel(worker)
    for name in ("ann", "bob", "cid"):
        channel.send("msg:delivery", local_part=name.encode())
    assert channel.send("tcp:close", id="other") == "other"
    assert channel.flush() == ["1", "2", "3", "other"]
    assert calls == [["ann", "bob"], ["cid"]]
    assert channel.flush() == []
    channel.close()


def test_a_test_channel_repeats_what_was_not_acknowledged() -> None:
    worker = Worker()
    outcomes = itertools.chain([ValueError("down")], itertools.repeat(None))

    @worker.on("msg:*")
    async def record(events: list[Event]) -> None:
        await asyncio.sleep(0)
        if (error := next(outcomes)) is not None:
            raise error

    channel = TestChannel(worker)
    channel.send("msg:delivery", a=1)
    assert channel.flush() == []
    (failure,) = channel.failures
    assert isinstance(failure, Failure)
    assert (failure.handler, failure.ids) == ("record", ("1",))
    assert failure.error.startswith("ValueError: down (")
    channel.send_again()
    assert channel.flush() == ["1"]
    channel.close()


def test_a_test_channel_asks_vetoes() -> None:
    worker = Worker()

    @worker.veto("tls:cert")
    def pin(event: Event) -> str | None:
        return "no" if event["event_data"] == b"0" else None

    @worker.veto("tcp:*")
    async def think(event: Event) -> bytes:
        return b""

    channel = TestChannel(worker)
    assert channel.ask("tls:cert", event_data=b"0") == "no"
    assert channel.ask("tls:cert", event_data=b"1") is None
    assert channel.ask("tcp:connect") is None
    worker.veto("smtp:*")(lambda event: 5)
    with pytest.raises(TypeError, match="returned int"):
        channel.ask("smtp:connect")
    channel.close()


def test_a_value_that_cannot_travel_fails_in_the_test() -> None:
    with pytest.raises(FrameError, match="object in a frame"):
        TestChannel(Worker()).send("msg:delivery", a=object())
