"""The questions of one link: who waits for which answer, and until when.

Layer: adapter, on trio.  Spec: issue text "Channel", "Guarantees".
Invariants: whoever waits is woken by the answer, by its deadline, or by the end of the link.  All deadlines are watched
by one task, since a deadline of its own for each question costs more than the question.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from .frames import Answer


class Question:
    """Somebody waits for an answer.

    Attributes:
        deadline: of trio's clock.
    """

    __slots__ = ("_task", "answer", "deadline")

    def __init__(self, deadline: float) -> None:
        self.answer: Answer | None = None
        self.deadline = deadline
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Until `end`."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def end(self) -> None:
        """Wake who waits, if somebody does."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None


class Questions:
    """The open questions."""

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}
        # when one gives up next, as far as `watch_deadlines` knows
        self._expiry = math.inf
        self._expires = trio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, seq: int, deadline: float) -> Question:
        """A new one, to be closed."""
        question = self._open[seq] = Question(deadline)
        return question

    def close(self, seq: int) -> None:
        """Nobody waits any more."""
        del self._open[seq]

    async def wait(self, question: Question) -> None:
        """Wait for an answer, for the deadline, or for `end_all`."""
        if question.deadline < self._expiry:
            self._expiry = question.deadline
            self._expires.set()
        await question.wait()

    def on_answer(self, answer: Answer) -> None:
        """An answer has come; one that nobody waits for any more is late, not wrong."""
        question = self._open.get(answer.seq)
        if question is not None:
            question.answer = answer
            question.end()

    def end_all(self) -> None:
        """There will be no answers."""
        for question in self._open.values():
            question.end()

    async def watch_deadlines(self) -> None:
        """End the questions whose time is over, for ever.

        It sleeps until the first deadline there was; by then most of these questions are answered.
        """
        while True:
            self._expires = trio.Event()
            with trio.move_on_at(self._expiry):
                await self._expires.wait()
            now = trio.current_time()
            for question in list(self._open.values()):
                if question.deadline <= now:
                    question.end()
            left = [question.deadline for question in self._open.values() if question.deadline > now]
            self._expiry = min(left, default=math.inf)


class Patience:
    """Whether to look for an answer: after each miss it is left the next 2, 4, … 64 times, until it has paid again."""

    def __init__(self) -> None:
        self._misses = 0
        self._skips = 0

    def may_pay(self) -> bool:
        """Whether to try it now."""
        if self._skips:
            self._skips -= 1
            return False
        return True

    def note(self, *, did_pay: bool) -> None:
        """What came of it."""
        if did_pay:
            self._misses = 0
        else:
            self._misses = min(self._misses + 1, 6)
            self._skips = 1 << self._misses
