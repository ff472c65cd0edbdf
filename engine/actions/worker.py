"""An action worker: reads what the engine sends, hands events to their handlers, answers vetoes and evaluations.

Layer: adapter; a blocking loop and threads, no trio.  Spec: issue text "Workers"; frames in frames.py.
The main thread reads, and answers what the engine waits for; handlers have threads of their own (desks.py), so that a
veto does not wait for a batch.  The worker ends when the engine says so (DRAIN: everything is finished first), when it
is gone (the control socket closes), or when it sends what is no frame.
Invariants: whatever the engine writes, the worker ends with a message or goes on; a late answer is not sent.
"""

from __future__ import annotations

import functools
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from ..errors import ActionError, ConfigError, FrameError
from . import attach, frames
from .api import ATTEMPTS, Backoff, Event, VetoRegistration, Worker, is_chosen, refusal
from .desks import Caller, Desk, Ledger, describe, failures
from .frames import ProgramText, Shape, Status
from .handler_desk import HandlerDesk
from .handlers import register_all
from .patience import message_of
from .program_desk import ProgramDesk, Run
from .programs import Evaluator, Settings

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .frames import Arrived
    from .transport import Transport

#: shapes that one engine may explain; there are as many as events, and a few for old ones
MAX_SHAPES: Final = 10_000
#: types of values that are what they were
_AS_THEY_ARE: Final = frozenset({bytes, int, bool, float, str, type(None)})
#: how long a thread that writes waits before it looks for room again
_ROOM_S: Final = 0.005
#: how long the worker waits for its handlers to finish when the engine is gone
_LAST_S: Final = 10.0
#: how long a pipe with unsent frames may lie: its descriptor is watched for reading only
_PIPE_S: Final = 0.05


class Runner:
    """One worker at work.

    Args:
        worker: the registrations; those of built-in handlers are added to it.
        transport: the worker's end; closed at the end.
        control: closes when the engine is gone.
        backoff: of programs whose lookups defer.
    """

    def __init__(
        self,
        worker: Worker,
        transport: Transport,
        control: socket.socket,
        *,
        attempts: int = ATTEMPTS,
        backoff: Backoff | None = None,
    ) -> None:
        self._worker = worker
        self._transport = transport
        self._control = control
        self._attempts = attempts
        self._backoff = backoff or Backoff()
        self._writing = threading.Lock()
        self._gone = threading.Event()
        self._ledger = Ledger(self._send)
        self._caller = Caller()
        self._desks: list[HandlerDesk] = []
        self._program_desk: ProgramDesk | None = None
        self._evaluator: Evaluator | None = None
        self._settings = Settings()
        self._shapes: dict[int, tuple[Shape, list[HandlerDesk], list[VetoRegistration]]] = {}
        #: what came for the desks and was not given to them yet
        self._arrived: dict[Desk, list[Any]] = {}
        self._is_draining = False
        self._did_greet = False
        self._does: dict[int, Callable[..., None]] = {
            frames.HELLO: self._on_hello,
            frames.SHAPE: self._on_shape,
            frames.PROGRAM: self._on_program,
            frames.EVENT: self._on_event,
            frames.ASK: self._on_ask,
            frames.EVALUATE: self._on_evaluate,
            frames.RUN: self._on_run,
            frames.DRAIN: self._on_drain,
        }

    def run(self) -> None:
        """Work until the engine says that it is enough, or is gone.

        Raises:
            FrameError: the engine sends what is no frame of ours.
            ConfigError: its settings cannot be used.
        """
        try:
            self._read()
        except FrameError as error:
            raise FrameError(f"the engine sends what is no frame: {error}") from None
        finally:
            self._finish()

    # -- reading --

    def _read(self) -> None:
        transport = self._transport
        waiting = select.poll()
        waiting.register(transport.fileno(), select.POLLIN)
        waiting.register(self._control.fileno(), select.POLLIN)
        control = self._control.fileno()
        pause = None if transport.writable_fileno is None else 1000 * _PIPE_S
        while not self._is_draining and not self._gone.is_set():
            try:
                arrived = transport.take()
            except EOFError:
                self._gone.set()
                return
            self._on_frames(arrived)
            if not arrived and transport.sleep():
                for fd, _ in waiting.poll(pause):
                    if fd == control and not self._control.recv(1):
                        self._gone.set()
            if not arrived:
                transport.awake()

    def _on_frames(self, arrived: list[Any]) -> None:
        try:
            for frame in arrived:
                checked = frames.check_from_engine_untrusted(frame)
                kind = checked[0]
                if not self._did_greet and kind != frames.HELLO:
                    raise FrameError("the engine does not begin with HELLO")
                self._does[kind](*checked[1:])
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        """Give the desks what came for them, all at once: to lock and to wake costs more than one event."""
        if self._arrived:
            for desk, items in self._arrived.items():
                desk.add_all(items)
            self._arrived = {}

    def _on_hello(self, version: int, group: str, settings: dict[Any, Any]) -> None:
        del version  # checked
        if self._did_greet:
            raise FrameError("a second HELLO")
        if group != self._worker.group:
            raise ActionError(f"this socket is for workers of group {group!r}, not {self._worker.group!r}")
        self._did_greet = True
        self._settings = Settings.from_frame(settings)
        register_all(self._worker, self._settings.handlers)
        self._desks = [HandlerDesk(one, self._ledger, self._send) for one in self._worker.handlers]
        for desk in self._desks:
            desk.start(self._settings.nice)
        handlers = tuple(
            (desk.name, pattern) for desk in self._desks for pattern in desk.registration.patterns.patterns
        )
        vetoes = tuple(
            frames.Veto(pattern, veto.timeout_s, veto.refuses)
            for veto in self._worker.vetoes
            for pattern in veto.patterns.patterns
        )
        ready = frames.Ready(frames.VERSION, os.getpid(), self._worker.group, handlers, vetoes)
        self._send(frames.ready_frame(ready))

    def _on_shape(self, number: int, event: str, fields: tuple[str, ...]) -> None:
        if len(self._shapes) >= MAX_SHAPES and number not in self._shapes:
            raise FrameError(f"more than {MAX_SHAPES} shapes")
        wanting = [desk for desk in self._desks if desk.registration.patterns.match(event)]
        refusing = [veto for veto in self._worker.vetoes if veto.patterns.match(event)]
        self._shapes[number] = Shape(number, event, fields), wanting, refusing

    def _shape(self, number: int, values: Arrived) -> tuple[Shape, list[HandlerDesk], list[VetoRegistration]]:
        known = self._shapes.get(number)
        if known is None:
            raise FrameError(f"no shape {number}")
        if len(known[0].fields) != len(values):
            raise FrameError(f"{len(values)} values for the {len(known[0].fields)} fields of {known[0].event}")
        return known

    def _on_event(self, seq: int, number: int, name: bytes, values: Arrived, handlers: tuple[str, ...] | None) -> None:
        shape, desks, _ = self._shape(number, values)
        if handlers is not None:
            desks = [desk for desk in desks if is_chosen(self._worker.group, desk.name, handlers)]
        if seq and len(desks) != 1:
            self._ledger.expect(seq, len(desks))
        for desk in desks:
            self._arrived.setdefault(desk, []).append(Event(shape, values, name, seq))

    # -- what the engine waits for --

    def _on_ask(self, seq: int, number: int, name: bytes, values: tuple[Any, ...], deadline: float) -> None:
        shape, _, vetoes = self._shape(number, values)
        status, text = Status.UNKNOWN, b""
        event = Event(shape, values, name)
        for veto in vetoes:
            if text:
                break
            try:
                status = Status.DONE
                text = refusal(self._caller.call(veto.function, event), veto.name)
            except failures() as error:
                status, text = Status.FAILED, f"veto {veto.name}: {describe(error)}".encode("utf-8", "replace")
        self._answer(seq, status, text, {}, deadline)

    def _on_evaluate(
        self, seq: int, program: int, values: tuple[Any, ...], state: dict[Any, Any], deadline: float
    ) -> None:
        if time.monotonic() > deadline:
            return
        arrived = tuple(map(frames.arrived_untrusted, values))
        logwrite = functools.partial(self._logwrite, seq)
        found = self._evaluators()[0].evaluate(program, arrived, frames.state_untrusted(state), logwrite)
        self._answer(seq, found.status, found.text, found.state, deadline)

    def _answer(self, seq: int, status: Status, text: bytes, state: dict[str, Any], deadline: float) -> None:
        if time.monotonic() <= deadline:
            self._send((frames.ANSWER, seq, int(status), text, state))

    # -- programs --

    def _evaluators(self) -> tuple[Evaluator, ProgramDesk]:
        """Two evaluators, since each belongs to one thread: for what the engine waits for, and for the rest."""
        if self._evaluator is None or self._program_desk is None:
            self._evaluator = Evaluator(self._settings)
            background = Evaluator(self._settings)
            self._program_desk = ProgramDesk(
                background,
                self._ledger,
                self._send,
                attempts=self._attempts,
                backoff=self._backoff,
                most=self._settings.lookup_batch,
            )
            self._program_desk.start(self._settings.nice)
        return self._evaluator, self._program_desk

    def _on_program(
        self, number: int, source: bytes, where: str, variables: tuple[str, ...], constants: dict[str, bytes]
    ) -> None:
        text = ProgramText(number, source, where, variables, constants)
        evaluator, desk = self._evaluators()
        evaluator.learn(text)
        self._arrived.setdefault(desk, []).append(text)

    def _on_run(self, seq: int, program: int, name: bytes, values: tuple[Any, ...], state: dict[Any, Any]) -> None:
        evaluator, desk = self._evaluators()
        evaluator.check(program, values)
        if not _AS_THEY_ARE.issuperset(map(type, values)):
            values = tuple(map(frames.arrived_untrusted, values))
        run = Run(seq, program, message_of(name), values, frames.state_untrusted(state))
        self._arrived.setdefault(desk, []).append(run)

    def _logwrite(self, seq: int, text: bytes, logs: frozenset[str]) -> None:
        self._send((frames.LOG, seq, text, tuple(sorted(logs))))

    # -- the end --

    def _on_drain(self) -> None:
        self._is_draining = True

    def _finish(self) -> None:
        """Let every handler finish what it has, or without an engine to be told what it has begun."""
        desks: list[Desk] = [*self._desks]
        if self._program_desk is not None:
            desks.append(self._program_desk)
        for desk in desks:
            if self._gone.is_set():
                desk.abandon()
            desk.finish()
        deadline = time.monotonic() + _LAST_S
        while any(not desk.join(0.0 if self._gone.is_set() else 0.05) for desk in desks):
            # an engine that drains us ends us itself when it has waited long enough
            if self._gone.is_set() and time.monotonic() > deadline:
                break
            if not self._gone.is_set() and not self._is_there():
                self._gone.set()
                deadline = time.monotonic() + _LAST_S
                for desk in desks:
                    desk.abandon()
            time.sleep(0.001)
        self._caller.close()
        if self._evaluator is not None:
            self._evaluator.close()
        with self._writing:
            self._gone.set()
            self._transport.close()
        self._control.close()

    def _is_there(self) -> bool:
        ready = select.select([self._control], [], [], 0)[0]
        return not ready or bool(self._control.recv(1))

    # -- writing --

    def _send(self, frame: tuple[Any, ...]) -> None:
        """Write a frame; waits for room.  Called by every thread."""
        while not self._gone.is_set():
            with self._writing:
                if self._gone.is_set():
                    return
                written = self._transport.put(frame)
                self._transport.flush()
            if written:
                return
            time.sleep(_ROOM_S)


def run(worker: Worker, control: socket.socket, *, attempts: int = ATTEMPTS, backoff: Backoff | None = None) -> None:
    """Be a worker of the engine at the other end of `control`, until it ends.

    Raises:
        ActionError: the engine gives no transport, or another group is wanted.
        FrameError: it sends what is no frame.
        ConfigError: its settings cannot be used.
    """
    try:
        transport = attach.receive(control)
    except ActionError:
        control.close()
        raise
    control.settimeout(None)
    Runner(worker, transport, control, attempts=attempts, backoff=backoff).run()


def load(place: str) -> Worker:
    """The worker that ``package.module:name`` names.

    Raises:
        ConfigError: there is no such thing.
    """
    import importlib  # noqa: PLC0415  # only for workers of users

    module_name, colon, name = place.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{place!r} is not package.module:worker")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{place}: {error}") from None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Worker):
        raise ConfigError(f"{place} is no Worker")
    return found
