"""Strings in a worker whose lookups defer: the others go on, order stays, and a server that is away is not asked on."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine.actions.api import Backoff
from engine.actions.desks import Ledger
from engine.actions.frames import ACK, ALIVE, DEAD, LOG, Status
from engine.actions.patience import MAX_FAILURES
from engine.actions.program_desk import ProgramDesk, Run
from engine.actions.programs import Evaluated
from fakes.patience import PATIENCE_S

QUICK = Backoff(0.001, 0.002)


class Evaluator:
    """Evaluates nothing: `away` are the values whose lookups defer now."""

    def __init__(self, *away: bytes) -> None:
        self.away = set(away)
        self.tried: list[bytes] = []
        #: value -> how often its lookup defers yet
        self.times: dict[bytes, int] = {}
        self.is_closed = False

    def where(self, number: int) -> str:
        return "event_action msg:delivery in smtp"

    def evaluate(self, number: int, values: tuple[Any, ...], state: Any, logwrite: Any) -> Evaluated:
        (value,) = values
        self.tried.append(value)
        left = self.times.get(value, 0)
        if left:
            self.times[value] = left - 1
        if left or value in self.away:
            return Evaluated(Status.DEFERRED, b"not now", {})
        if value == b"bad":
            return Evaluated(Status.FAILED, b"unknown variable", {})
        return Evaluated(Status.DONE, b"", {})

    def postpone(self, number: int, values: tuple[Any, ...], state: Any) -> None:
        return None

    def close(self) -> None:
        self.is_closed = True


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
            seq
            for run in runs
            for first, count in zip(run[::2], run[1::2], strict=True)
            for seq in range(first, first + count)
        ]

    def of(self, kind: int) -> list[tuple[Any, ...]]:
        return [frame for frame in self.frames if frame[0] == kind]


def desk_with(
    evaluator: Any, sent: Sent, *values: bytes, attempts: int = 1000, backoff: Backoff = QUICK
) -> ProgramDesk:
    """A desk that has one event for each value, `message/number`."""
    desk = ProgramDesk(evaluator, Ledger(sent), sent, attempts=attempts, backoff=backoff)
    for number, value in enumerate(values, 1):
        desk.add(Run(number, 1, value.partition(b"/")[0], (value,), {}))
    return desk


def run(desk: ProgramDesk, sent: Sent, *, until: int) -> None:
    """Let a desk work until so many are done or dead."""
    desk.start()
    try:
        for _ in range(10_000):
            if len(sent.done) >= until:
                return
            desk.join(0.002)
        pytest.fail(f"done are {sent.done}")
    finally:
        desk.finish()
        assert desk.join(10)


@pytest.fixture
def sent() -> Sent:
    return Sent()


def test_what_defers_holds_up_its_own_message_only(sent: Sent) -> None:
    evaluator = Evaluator()
    evaluator.times[b"a/1"] = 3
    desk = desk_with(evaluator, sent, b"a/1", b"b/1", b"a/2", b"c/1", b"a/3")
    run(desk, sent, until=5)
    assert evaluator.tried[:3] == [b"a/1", b"b/1", b"c/1"]
    assert [value for value in evaluator.tried if value.startswith(b"a")] == [b"a/1"] * 4 + [b"a/2", b"a/3"]
    assert sent.done[0] == 2
    (line,) = sent.of(LOG)
    assert line == (LOG, 1, b"failed to expand event_action msg:delivery in smtp: not now", ("main", "panic"))
    assert sent.of(ALIVE), "it is slow, not dead"
    assert evaluator.is_closed


def test_what_never_can_be_done_becomes_a_dead_letter_and_lets_the_rest_go(sent: Sent) -> None:
    evaluator = Evaluator(b"a/1")
    desk = desk_with(evaluator, sent, b"a/1", b"a/2", b"b/1", attempts=4)
    run(desk, sent, until=3)
    assert sent.of(DEAD) == [(DEAD, 1, "event_action msg:delivery in smtp", 4, "not now")]
    assert evaluator.tried == [b"a/1", b"b/1", *[b"a/1"] * 3, b"a/2"]


def test_a_time_to_give_up_counts_instead_of_attempts(sent: Sent) -> None:
    evaluator = Evaluator(b"a")
    desk = ProgramDesk(evaluator, Ledger(sent), sent, attempts=1, backoff=QUICK)  # type: ignore[arg-type]  # a double
    desk.add(Run(1, 1, b"a", (b"a",), {"give_up_at": 0.0}))
    run(desk, sent, until=1)
    assert len(sent.of(DEAD)) == 1


def test_an_expansion_that_fails_is_done(sent: Sent) -> None:
    desk = desk_with(Evaluator(), sent, b"bad", b"good")
    run(desk, sent, until=2)
    assert sent.done == [1, 2]
    assert b"unknown variable" in sent.of(LOG)[0][2]


def test_a_server_that_is_away_is_not_asked_for_every_event(sent: Sent) -> None:
    """Five are enough to know; nobody waits for it at the end, and what is not done is not told as done."""
    values = [b"m%d" % number for number in range(1000)]
    evaluator = Evaluator(*values)
    desk = desk_with(evaluator, sent, *values, backoff=Backoff(3600.0, 3600.0))
    desk.start()
    while len(evaluator.tried) < MAX_FAILURES:
        desk.join(0.002)
    desk.finish()
    assert desk.join(10)
    assert len(evaluator.tried) == MAX_FAILURES
    assert sent.done == []
    assert len(sent.of(LOG)) == MAX_FAILURES


def test_a_server_that_comes_back_is_asked_for_everything_in_order(sent: Sent) -> None:
    values = [b"m%d/%d" % (number % 7, number) for number in range(50)]
    evaluator = Evaluator(*values)
    desk = desk_with(evaluator, sent, *values)
    desk.start()
    while len(evaluator.tried) < 3 * MAX_FAILURES:
        desk.join(0.001)
    evaluator.away.clear()
    while len(sent.done) < 50:
        desk.join(0.001)
    desk.finish()
    assert desk.join(10)
    assert sorted(sent.done) == list(range(1, 51))
    for message in range(7):
        mine = [seq for seq in sent.done if (seq - 1) % 7 == message]
        assert mine == sorted(mine)


@pytest.mark.parametrize("count", [1, MAX_FAILURES])
def test_a_desk_that_waits_says_that_it_is_alive(count: int) -> None:
    """More often than `worker_timeout` can be: for one message that is aside, and for a server that is away."""
    evaluator, sent = Evaluator(*(b"%d/1" % number for number in range(count))), Sent()
    desk = desk_with(evaluator, sent, *evaluator.away, backoff=Backoff(60.0, 60.0))
    enough = threading.Event()

    def send(frame: tuple[Any, ...]) -> None:
        sent(frame)
        if len(sent.of(ALIVE)) == 3:
            enough.set()

    desk._send = send
    desk.start()
    assert enough.wait(PATIENCE_S)
    desk.finish()
    assert desk.join(20)
    assert len(evaluator.tried) == count
