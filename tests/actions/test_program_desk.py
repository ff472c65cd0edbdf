"""Strings in a worker whose lookups defer: the others go on, order stays, and a server that is away is not asked on."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest

from engine.actions.api import Backoff
from engine.actions.desks import Ledger
from engine.actions.frames import ACK, ALIVE, DEAD, LOG, Status
from engine.actions.lookups import Place, Postponed, Progress, Statement
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

    def postpone(self, number: int, values: tuple[Any, ...], state: Any) -> Any:
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
    evaluator: Any, sent: Sent, *values: bytes, attempts: int = 1000, backoff: Backoff = QUICK, most: int = 250
) -> ProgramDesk:
    """A desk that has one event for each value, `message/number`."""
    desk = ProgramDesk(evaluator, Ledger(sent), sent, attempts=attempts, backoff=backoff, most=most)
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


# --- together ---------------------------------------------------------------------------------------------------------

HERE, THERE = Place("pgsql", "here"), Place("pgsql", "there")


class TogetherEvaluator(Evaluator):
    """A server where values share a transaction; `bad` ones fail together as alone, `shy` ones only together.

    A value is `message/number`, or with `@there` behind it one for another server; `=text` is a program that tells
    nothing.
    """

    def __init__(self, *away: bytes, bad: frozenset[bytes] = frozenset(), shy: frozenset[bytes] = frozenset()) -> None:
        super().__init__(*away, *bad)
        self.bad = bad
        self.shy = shy
        #: what each transaction had
        self.transactions: list[list[bytes]] = []
        #: answers of the next transactions instead of their own
        self.answers: list[Progress] = []
        #: everything that was committed, in order
        self.kept: list[bytes] = []

    def postpone(self, number: int, values: tuple[Any, ...], state: Any) -> Any:
        (value,) = values
        if value.startswith(b"="):
            return None
        return [Postponed(THERE if value.endswith(b"@there") else HERE, Statement(value))]

    def evaluate(self, number: int, values: tuple[Any, ...], state: Any, logwrite: Any) -> Evaluated:
        found = super().evaluate(number, values, state, logwrite)
        if found.status is Status.DONE:
            self.kept.append(values[0])
        return found

    def run_together(self, place: Place, units: list[Any]) -> Progress:
        values = [unit[0].text for unit in units]
        self.transactions.append(values)
        if self.answers:
            return self.answers.pop(0)
        for number, value in enumerate(values):
            if value in self.bad or value in self.shy:
                return Progress(0, number, "no")
        self.kept += values
        return Progress(len(values))


def together(
    sent: Sent, evaluator: TogetherEvaluator, *values: bytes, until: int | None = None, **options: Any
) -> None:
    run(desk_with(evaluator, sent, *values, **options), sent, until=len(values) if until is None else until)


def test_lookups_whose_results_nobody_reads_go_together(sent: Sent) -> None:
    evaluator = TogetherEvaluator()
    values = [b"m%d/1" % number for number in range(300)]
    together(sent, evaluator, *values)
    assert evaluator.transactions == [values[:250], values[250:]]
    assert sent.of(ACK) == [(ACK, (1, 250)), (ACK, (251, 50))], "told when it is committed, and all at once"
    assert evaluator.tried == []


def test_how_many_go_together_is_bounded_and_one_is_alone(sent: Sent) -> None:
    values = [b"m%d/1" % number for number in range(10)]
    evaluator = TogetherEvaluator()
    together(sent, evaluator, *values, most=4)
    assert [len(transaction) for transaction in evaluator.transactions] == [4, 4, 2]
    alone = TogetherEvaluator()
    together(Sent(), alone, *values, most=1)
    assert alone.transactions == []
    assert alone.tried == values
    long = TogetherEvaluator()
    together(Sent(), long, *[value + b"x" * 200_000 for value in values])
    assert [len(transaction) for transaction in long.transactions] == [1] * 10


def test_one_that_fails_is_put_aside_and_the_others_go_together(sent: Sent) -> None:
    values = [b"m%d/1" % number for number in range(20)]
    evaluator = TogetherEvaluator(bad=frozenset([b"m7/1"]))
    together(sent, evaluator, *values, attempts=1)
    assert evaluator.transactions == [values, values[:7], values[9:]]
    assert evaluator.tried == [b"m7/1", b"m8/1"], "the next one shows whether the server is there"
    assert sent.of(DEAD) == [(DEAD, 8, "event_action msg:delivery in smtp", 1, "not now")]
    assert len(sent.of(LOG)) == 1


def test_what_follows_one_that_fails_stays_behind_it(sent: Sent) -> None:
    evaluator = TogetherEvaluator(bad=frozenset([b"a/1"]))
    together(sent, evaluator, b"b/1", b"a/1", b"a/2", b"b/2", attempts=3)
    assert evaluator.transactions == [[b"b/1", b"a/1", b"a/2", b"b/2"], [b"b/1"]]
    assert evaluator.kept == [b"b/1", b"b/2", b"a/2"]
    assert sent.done == [1, 4, 2, 3]


def test_what_only_fails_in_company_is_left_alone_for_a_while(sent: Sent) -> None:
    values = [b"m%d/1" % number for number in range(6)]
    evaluator = TogetherEvaluator(shy=frozenset(values))
    together(sent, evaluator, *values)
    assert evaluator.transactions == [values]
    assert evaluator.kept == evaluator.tried == values
    assert sent.of(LOG) == []


def test_a_failure_that_nobody_can_name_makes_all_go_alone(sent: Sent) -> None:
    values = [b"m%d/1" % number for number in range(6)]
    evaluator = TogetherEvaluator()
    evaluator.answers = [Progress(0, reason="gone")]
    together(sent, evaluator, *values)
    assert evaluator.tried == values
    assert sent.of(LOG) == []


def test_what_may_have_been_committed_is_told(sent: Sent) -> None:
    evaluator = TogetherEvaluator()
    evaluator.answers = [Progress(0, reason="gone", is_in_doubt=True)]
    together(sent, evaluator, b"a/1", b"b/1")
    assert evaluator.tried == [b"a/1", b"b/1"]
    (line,) = sent.of(LOG)
    assert line[2] == b"2 events of event_action may be done twice: no answer to their commit: gone"


def test_what_is_committed_before_a_failure_or_the_time_is_not_done_again(sent: Sent) -> None:
    values = [b"m%d/1" % number for number in range(9)]
    evaluator = TogetherEvaluator()
    evaluator.answers = [Progress(3), Progress(2, 2, "no")]
    together(sent, evaluator, *values)
    assert evaluator.transactions == [values, values[3:]]
    assert evaluator.tried == values[5:], "it was only that it did not like company"


def test_the_events_of_a_message_are_in_order_wherever_they_are_done(sent: Sent) -> None:
    values = [b"a/1", b"=a/2", b"a/3", b"b/1@there", b"b/2", b"c/1", b"b/3@there", b"=d/1", b"d/2"]
    evaluator = TogetherEvaluator()
    desk = desk_with(evaluator, sent)
    messages = [b"a", b"a", b"a", b"b", b"b", b"c", b"b", b"d", b"d"]
    for number, (value, message) in enumerate(zip(values, messages, strict=True), 1):
        desk.add(Run(number, 1, message, (value,), {}))
    run(desk, sent, until=len(values))
    for message in (b"a", b"b", b"d"):
        mine = [value for value, of in zip(values, messages, strict=True) if of == message]
        assert [value for value in evaluator.kept if value in mine] == mine
    assert evaluator.transactions == [[b"a/1", b"c/1"], [b"b/1@there"]]


def test_a_server_that_is_away_is_asked_alone_until_it_is_back(sent: Sent) -> None:
    values = [b"m%d/1" % number for number in range(40)]
    evaluator = TogetherEvaluator(*values)
    evaluator.answers = [Progress(0, reason="refused")]
    desk = desk_with(evaluator, sent, *values)
    desk.start()
    while len(evaluator.tried) < 3 * MAX_FAILURES:
        desk.join(0.001)
    assert len(evaluator.transactions) == 1
    evaluator.away.clear()
    while len(sent.done) < 40:
        desk.join(0.001)
    desk.finish()
    assert desk.join(10)
    assert sorted(evaluator.kept) == sorted(values)


def test_nothing_is_told_of_what_is_not_begun_when_the_engine_is_gone(sent: Sent) -> None:
    evaluator = TogetherEvaluator()
    desk = desk_with(evaluator, sent, b"a/1", b"b/1")
    desk.abandon()
    desk.start()
    desk.finish()
    assert desk.join(10)
    assert evaluator.transactions == []
    assert sent.frames == []


def test_a_desk_goes_behind_others(sent: Sent) -> None:
    priorities: list[int] = []

    class Looking(Evaluator):
        def evaluate(self, *arguments: Any) -> Evaluated:
            priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().evaluate(*arguments)

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    desk = desk_with(Looking(), sent, b"a/1")
    desk.start(nice=7)
    while not sent.done:
        desk.join(0.001)
    desk.finish()
    assert desk.join(10)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
    if sys.platform == "linux":
        assert priorities == [7]
