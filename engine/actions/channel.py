"""One link: what an engine has to do with one worker, as long as the worker lives.

Layer: adapter, on trio.  Spec: design.md "Events and action workers"; issue text "Channel", "Guarantees".

Facts.  A worker may be slow, silent, dead or mad, and the engine learns of it late.  An event that tells of an outcome
(`msg:*`) must be handled at least once; a veto must be answered in time or not at all; the mail goes on meanwhile.

What it means.  An event is the engine's until it is acknowledged: a link keeps each one it has sent, in order, and
gives them all back when it ends.  Nothing that waits for a worker may wait without a bound.

Our solution.  Events wait in the backlog of the link and are moved into the transport by one task, `_feed`, as long as
there is room and fewer than `window` are not acknowledged; the window also bounds what the worker has in its memory.
Another task, `_pump`, reads.  Questions (vetoes, evaluations) do not stand in line behind events that wait for an
acknowledgement, and give up at their deadline.  Who asks looks for the answer himself before he goes to sleep, as long
as that pays: to be woken costs more than most answers.  A third task notices that the control socket closes, a fourth
one that a worker that has work says nothing for too long.  Whatever ends the link, `run` tells why, in a line for the
log; `leftover` has what was not acknowledged.

What we do not do.  A link never starts again: a new worker gets a new transport, so that nothing of the dead one's
state can hurt.

Long because all that a link does changes one state: what was sent, what waits, and whether there is room.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import trio

from ..errors import ActionTimeout, FrameError, WorkerDied
from . import frames
from .endings import Ending, oom_kills
from .frames import Ack, Alive, Answer, Dead, Log, Ready, Shape
from .questions import Patience, Questions
from .transport import TAKE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from ._ring import Packed
    from .frames import ProgramText, Values
    from .questions import Question
    from .transport import Transport

#: events that a worker may have without having acknowledged them
WINDOW: Final = 10_000
#: events moved into the transport at one time
_FEED: Final = 512
#: times that an answer is looked for before it is waited for; being woken takes as long as five of them
_LOOKS: Final = 6
#: open questions up to which each is looked for; of more, answers come together, and to be woken once is cheaper
_LOOKERS: Final = 4
#: times in a row that a worker is listened to, or has answered at once, before others have their turn
_TURNS: Final = 4
#: how long a worker may take from its transport to READY: it imports what its handlers need
READY_S: Final = 60.0
#: how long a worker that has work may say nothing, by default
SILENCE_S: Final = 300.0
_SILENCE_CHECK_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Outgoing:
    """An event that must be handled.

    Attributes:
        shape: what the values are called; None for a program.
        key: events of the same key are handled in order; the message's id.
        id: of the event, for handlers: the same for every repetition.
        values: in the order of the shape's fields or the program's variables; packed already, if that is how they came.
        token: the caller's own, such as the number in the outbox.
        handlers: who it is for, ``group`` or ``group:handler`` each; None: all that want it.
        program: to be evaluated instead of handled.
        state: of the program, as `frames.state_frame` makes it.
        dead: `group:handler` -> its dead letter, if one gave up; to be stored when the event is done.
        open_groups: groups that are not done with it; the hub's.
        deaths: workers that it has ended, alone with them.
    """

    shape: Shape | None
    key: str | bytes
    id: bytes
    values: Values | Packed
    token: Any = None
    handlers: tuple[str, ...] | None = None
    program: ProgramText | None = None
    state: dict[str, Any] | None = None
    dead: Mapping[str, Dead] | None = None
    open_groups: int = 0
    deaths: int = 0


class Owner(Protocol):
    """Who is told what happens on a link."""

    def on_ready(self, link: Link, ready: Ready) -> None: ...

    def on_done(self, link: Link, events: list[Outgoing]) -> None: ...

    def on_log(self, link: Link, line: Log, event: Outgoing | None) -> None: ...

    def on_tick(self, link: Link) -> None:
        """Called now and then."""


class _Ended(Exception):
    """The link is over; the text says why."""


class Link:
    """The engine's side of one worker.

    Args:
        transport: the engine's end; closed when `run` ends.
        control: the socket that closes when the worker is gone; closed when `run` ends.
        group: the worker must be of this one.
        settings: for HELLO.
        window, silence_s: see `WINDOW` and `SILENCE_S`.
    """

    def __init__(
        self,
        transport: Transport,
        control: socket.socket,
        owner: Owner,
        *,
        group: str,
        settings: Mapping[str, Any] | None = None,
        window: int = WINDOW,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.group = group
        #: what the worker said of itself, once it has
        self.ready: Ready | None = None
        self.is_open = True
        #: it gets no event but those that are handed to it by name
        self.is_reserved = False
        #: its process has ended, and nobody had told it to
        self.has_died = False
        #: how, if somebody told
        self.ending: Ending | None = None
        #: events that it was done with
        self.done = 0
        #: questions that it was asked and has not answered, also those that nobody waits for any more
        self.unanswered = 0
        #: when it told last that a handler is being retried, on trio's clock
        self.waited_at = 0.0
        self._oom_kills = oom_kills()
        self._transport = transport
        self._control = control
        self._owner = owner
        self._settings = dict(settings or {})
        self._window = window
        self._silence_s = silence_s
        self._next_seq = 1
        self._backlog: deque[Outgoing] = deque()
        self._sent: dict[int, Outgoing] = {}
        #: what the lines of evaluations are about
        self._about: dict[int, Outgoing] = {}
        self._questions = Questions()
        self._shapes: set[int] = set()
        self._programs: set[int] = set()
        self._more = trio.Event()
        self._is_waiting_for_more = False
        self._room = trio.Event()
        self._has_waiters = False
        self._emptied = trio.Event()
        self._ended = trio.Event()
        self._greeted = trio.Event()
        self._heard = 0.0
        self._is_draining = False
        self._why = ""
        self._patience = Patience()
        # answers in a row that came without a checkpoint
        self._unyielding = 0
        self._scope = trio.CancelScope()

    # -- what the hub does --

    def submit(self, events: Iterable[Outgoing]) -> None:
        """Put events behind the others; they are the caller's again when the link has ended (`leftover`)."""
        self._backlog.extend(events)
        if self._is_waiting_for_more:
            self._is_waiting_for_more = False
            self._more.set()

    def publish(self, shape: Shape, id: bytes, values: Values | Packed, handlers: tuple[str, ...] | None) -> bool:
        """Send a live event now; False, and it is lost, if there is no room."""
        if not self.is_open or self.ready is None:
            return False
        try:
            sent = self._explain_shape(shape) and self._transport.put(
                (frames.EVENT, 0, shape.number, id, values, handlers)
            )
            self._transport.flush()
        except FrameError as error:
            self._on_frame_error(error)
            return False
        return sent

    @property
    def load(self) -> int:
        """Events and questions that are not done."""
        return len(self._backlog) + len(self._sent) + len(self._questions)

    @property
    def unacknowledged(self) -> int:
        """Events that the worker has."""
        return len(self._sent)

    @property
    def is_idle(self) -> bool:
        """Whether it could begin with an event at once, and has none."""
        return self.is_open and self.ready is not None and not self._sent and not self._backlog

    @property
    def is_own_fault(self) -> bool:
        """Whether the code of the worker is known to have ended it; once it has ended."""
        if not self.has_died or self.ending is None:
            return False
        before, now = self._oom_kills, oom_kills()
        return self.ending.is_own_fault(memory_ran_out=before is not None and now is not None and now > before)

    def sent(self) -> list[Outgoing]:
        """The events that the worker has."""
        return list(self._sent.values())

    def leftover(self) -> tuple[list[Outgoing], list[Outgoing]]:
        """What it had, and may have run, and what it was not given, in order; the link forgets all of it."""
        had, others = list(self._sent.values()), list(self._backlog)
        self._sent.clear()
        self._backlog.clear()
        return had, others

    async def ask(self, shape: Shape, id: bytes, values: Values | Packed, timeout_s: float) -> Answer:
        """Ask for a veto.

        Raises:
            ActionTimeout: no answer came in time.
            WorkerDied: none will come.
            FrameError: the values cannot travel, or the worker broke the channel.
        """
        seq = self._take_seq()
        frame = (frames.ASK, seq, shape.number, id, values, time.monotonic() + timeout_s)
        return await self._question(seq, frame, timeout_s, functools.partial(self._explain_shape, shape))

    async def evaluate(
        self,
        program: ProgramText,
        values: Values | Packed,
        state: Mapping[str, Any],
        timeout_s: float,
        about: Outgoing | None = None,
    ) -> Answer:
        """Evaluate a program; its lines are about that event.  Raises as `ask`."""
        seq = self._take_seq()
        frame = (frames.EVALUATE, seq, program.number, values, dict(state), time.monotonic() + timeout_s)
        if about is not None:
            self._about[seq] = about
        try:
            return await self._question(seq, frame, timeout_s, functools.partial(self._explain_program, program))
        finally:
            self._about.pop(seq, None)

    def _take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    async def _question(
        self, seq: int, frame: tuple[Any, ...], timeout_s: float, explain: Callable[[], bool]
    ) -> Answer:
        if not self.is_open:
            raise WorkerDied(f"the worker of {self.group} is gone")
        now = trio.current_time()
        if not self._sent and not self._questions:
            # the worker has something to do, and had nothing before
            self._heard = now
        question = self._questions.open(seq, now + timeout_s)
        self.unanswered += 1
        try:
            if not await self._ask_now(question, frame, explain):
                with trio.move_on_at(question.deadline):
                    await self._put_soon(frame, explain)
            if question.answer is None and self.is_open:
                await self._questions.wait(question)
        except FrameError as error:
            self._on_frame_error(error)
            raise
        finally:
            self._questions.close(seq)
        if question.answer is not None:
            return question.answer
        if not self.is_open:
            raise WorkerDied(f"the worker of {self.group} died before it answered")
        raise ActionTimeout(f"a worker of {self.group} did not answer in time")

    async def _ask_now(self, question: Question, frame: tuple[Any, ...], explain: Callable[[], bool]) -> bool:
        """Write a question, and look for its answer as long as one usually takes; False if there is no room for it."""
        # before it is written: the worker may answer at once, and need not wake us then
        looks = len(self._questions) <= _LOOKERS and self._patience.may_pay() and self._transport.stay_awake()
        try:
            if not (explain() and self._transport.put(frame)):
                return False
            self._transport.flush()
            if looks:
                self._patience.note(did_pay=await self._look_for(question))
            return True
        finally:
            if looks and self.is_open and not self._transport.is_broken and not self._transport.sleep():
                self._transport.wake_self()

    async def _look_for(self, question: Question) -> bool:
        """Look for an answer each time that other tasks have run, which is cheaper than to be woken; give up soon.

        Where the worker shares our core, it has run as soon as it was woken, and the answer is there at once; even so
        others run now and then.
        """
        self._unyielding += 1
        for turn in range(_LOOKS):
            if turn or self._unyielding > _TURNS:
                self._unyielding = 0
                await trio.lowlevel.checkpoint()
            if question.answer is None and self.is_open:
                try:
                    self._take()
                except FrameError as error:
                    self.stop(f"it sent what is no frame: {error}")
            if question.answer is not None or not self.is_open:
                break
        return question.answer is not None

    async def _put_soon(self, frame: tuple[Any, ...], explain: Callable[[], bool] = lambda: True) -> bool:
        """Write a frame as soon as there is room; False if the link ends first."""
        while self.is_open:
            if explain() and self._transport.put(frame):
                self._transport.flush()
                return True
            await self._wait_for_room()
        return False

    def _on_frame_error(self, error: FrameError) -> None:
        """Something could not be written: the link is over if that is the worker's doing, else it is the value's."""
        if self._transport.is_broken:
            self.stop(f"it sent what is no frame: {error}")

    # -- the life of a link --

    async def run(self) -> str:
        """Serve the worker until it is gone; returns why, in words for the log."""
        try:
            with self._scope:
                self._put_first((frames.HELLO, frames.VERSION, self.group, self._settings))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed)
                    nursery.start_soon(self._pump)
                    nursery.start_soon(self._watch_control)
                    nursery.start_soon(self._watch_silence)
                    nursery.start_soon(self._questions.watch_deadlines)
        except* _Ended as group:
            self._why = self._why or str(_first(group))
        except* FrameError as group:
            self._why = f"it sent what is no frame: {_first(group)}"
        finally:
            self._close()
        return self._why or "it ended"

    def _close(self) -> None:
        self.is_open = False
        fd = self._transport.writable_fileno
        if fd is not None:
            trio.lowlevel.notify_closing(fd)
        self._transport.close()
        self._control.close()
        self._questions.end_all()
        self._room.set()
        self._more.set()
        self._emptied.set()
        self._ended.set()

    def stop(self, why: str) -> None:
        """End the link from outside; `run` returns `why`."""
        self._why = self._why or why
        self._scope.cancel()

    async def drain(self) -> None:
        """Let the worker have everything that waits for it, finish it, and end; returns when it has."""
        while self.is_open and self._backlog:
            await self._emptied.wait()
        if await self._put_soon((frames.DRAIN,)):
            self._is_draining = True
            await self._ended.wait()

    def dismiss(self) -> None:
        """Tell the worker to finish what it has and to end, as far as there is room to tell it now."""
        if self.is_open and self._transport.put((frames.DRAIN,)):
            self._is_draining = True
            self._transport.flush()

    def _put_first(self, frame: tuple[Any, ...]) -> None:
        if not self._transport.put(frame):
            raise FrameError("an empty transport has no room")
        self._transport.flush()

    async def _watch_control(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._control)
            try:
                octets = self._control.recv(64)
            except BlockingIOError:
                continue
            except OSError:
                octets = b""
            if not octets:
                # what it wrote before it went still counts
                while self._take():
                    pass
                self._on_gone()
            self.ending = Ending.told_untrusted(octets)
            if self.ending is None:
                raise _Ended("it talked on its control socket")

    def _on_gone(self) -> NoReturn:
        """The process of the worker is gone."""
        self.has_died = not self._is_draining
        raise _Ended("it ended" if self._is_draining else "it died")

    async def _watch_silence(self) -> None:
        with trio.move_on_after(READY_S):
            await self._greeted.wait()
        if self.ready is None:
            raise _Ended(f"it did not say READY within {READY_S:g} s")
        while True:
            await trio.sleep(min(_SILENCE_CHECK_S, self._silence_s / 4))
            self._owner.on_tick(self)
            if (self._sent or self._questions) and trio.current_time() - self._heard > self._silence_s:
                raise _Ended(f"it has said nothing for {self._silence_s:g} s with {len(self._sent)} events to handle")

    # -- writing --

    async def _feed(self) -> None:
        while True:
            while self.ready is None or not self._backlog or len(self._sent) >= self._window:
                self._more = trio.Event()
                self._is_waiting_for_more = True
                await self._more.wait()
            await self._feed_some()

    async def _feed_some(self) -> None:
        """Move some events into the transport; wait if there is no room."""
        self._note_work()
        backlog = self._backlog
        batch = list(itertools.islice(backlog, min(_FEED, self._window - len(self._sent))))
        first = self._next_seq
        written = 0
        is_full = False
        try:
            written = self._transport.put_many(self._frames_of(batch, first))
            is_full = not written
        except FrameError as error:
            if self._transport.is_broken:
                raise
            # the first event itself is at fault: no worker will ever get it
            backlog.popleft()
            batch[0].dead = {"": Dead(0, "", 0, str(error))}
            self._owner.on_done(self, batch[:1])
        self._next_seq += written
        self._sent.update(zip(range(first, self._next_seq), batch, strict=False))
        for _ in range(written):
            backlog.popleft()
        self._transport.flush()
        if not backlog:
            self._emptied.set()
            self._emptied = trio.Event()
        if is_full:
            await self._wait_for_room()
        else:
            await trio.lowlevel.checkpoint()

    def _frames_of(self, batch: list[Outgoing], seq: int) -> list[tuple[Any, ...]]:
        """The frames of a batch, as far as the worker has been told what they are.

        Raises:
            FrameError: what the first is cannot be told.
        """
        found: list[tuple[Any, ...]] = []
        for event in batch:
            shape, program = event.shape, event.program
            try:
                if program is not None:
                    if not self._explain_program(program):
                        break
                    frame: tuple[Any, ...] = (
                        frames.RUN,
                        seq,
                        program.number,
                        event.id,
                        event.values,
                        event.state or {},
                    )
                else:
                    assert shape is not None, "an event has a shape or a program"
                    # for nearly every event of all: no call
                    if shape.number not in self._shapes and not self._explain_shape(shape):
                        break
                    frame = (frames.EVENT, seq, shape.number, event.id, event.values, event.handlers)
            except FrameError:
                if not found:
                    raise
                break
            found.append(frame)
            seq += 1
        return found

    def _explain_shape(self, shape: Shape) -> bool:
        """See that the worker knows a shape; False if there is no room to tell."""
        if shape.number in self._shapes:
            return True
        if not self.is_open or not self._transport.put((frames.SHAPE, shape.number, shape.event, shape.fields)):
            return False
        self._shapes.add(shape.number)
        return True

    def _explain_program(self, program: ProgramText) -> bool:
        if program.number in self._programs:
            return True
        head = (frames.PROGRAM, program.number, program.source, program.where)
        frame = (*head, program.variables, dict(program.constants))
        if not self.is_open or not self._transport.put(frame):
            return False
        self._programs.add(program.number)
        return True

    def _note_work(self) -> None:
        """The worker has something to do; its silence counts from now, if it had nothing before."""
        if not self._sent and len(self._questions) <= 1:
            self._heard = trio.current_time()

    async def _wait_for_room(self) -> None:
        if not self._transport.wait_for_room():
            await trio.lowlevel.checkpoint()
            return
        fd = self._transport.writable_fileno
        if fd is not None:
            try:
                await trio.lowlevel.wait_writable(fd)
            except trio.ClosedResourceError:
                return
            self._transport.flush()
        else:
            self._has_waiters = True
            await self._room.wait()

    # -- reading --

    async def _pump(self) -> None:
        transport = self._transport
        fd = transport.fileno()
        turns = 0
        while True:
            if self._take():
                turns += 1
                if turns == _TURNS:
                    # one that never stops talking must not stop the others
                    turns = 0
                    await trio.lowlevel.checkpoint()
                continue
            turns = 0
            if transport.sleep():
                await trio.lowlevel.wait_readable(fd)
            else:
                await trio.lowlevel.checkpoint()
            transport.awake()
            if self._has_waiters:
                self._has_waiters = False
                self._room.set()
                self._room = trio.Event()

    def _take(self) -> bool:
        """Read what there is; whether there may be more."""
        try:
            arrived = self._transport.take()
        except EOFError:
            self._on_gone()
        if arrived:
            self._heard = trio.current_time()
        for frame in arrived:
            said = frames.from_worker_untrusted(frame)
            if self.ready is None and not isinstance(said, Ready | Log):
                raise FrameError("it does not begin with READY")
            match said:
                case Ack():
                    self._on_ack(said)
                case Answer():
                    self.unanswered -= 1
                    self._questions.on_answer(said)
                case Dead():
                    self._on_dead(said)
                case Log():
                    self._owner.on_log(self, said, self._sent.get(said.seq) or self._about.get(said.seq))
                case Ready():
                    self._on_ready(said)
                case Alive():
                    self.waited_at = trio.current_time()
        return len(arrived) == TAKE

    def _on_ready(self, ready: Ready) -> None:
        if self.ready is not None:
            raise FrameError("a second READY")
        if ready.group != self.group:
            raise FrameError(f"a worker of group {ready.group} where one of {self.group} belongs")
        self.ready = ready
        self._greeted.set()
        self._owner.on_ready(self, ready)
        self._more.set()

    def _on_ack(self, ack: Ack) -> None:
        done: list[Outgoing] = []
        sent = self._sent
        try:
            for first, count in ack.runs:
                if count > len(sent):
                    raise FrameError("it acknowledges what it was not given")
                try:
                    run = [sent[seq] for seq in range(first, first + count)]
                except KeyError:
                    raise FrameError("it acknowledges what it was not given") from None
                for seq in range(first, first + count):
                    del sent[seq]
                done += run
        finally:
            # what it said before it said that counts
            self._more.set()
            self.done += len(done)
            self._owner.on_done(self, done)

    def _on_dead(self, dead: Dead) -> None:
        event = self._sent.get(dead.seq)
        if event is None:
            raise FrameError("it gives up what it was not given")
        event.dead = {**(event.dead or {}), f"{self.group}:{dead.handler}": dead}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
