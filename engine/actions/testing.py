"""Try handlers and vetoes without an engine: a channel for the tests of those who write workers.

Layer: adapter; no trio.  Spec: issue text "Workers".

    channel = TestChannel(worker)
    channel.send("msg:delivery", local_part=b"ann", domain=b"example.org")
    assert channel.flush() == ["1"]                        # the ids that were acknowledged
    assert channel.ask("tls:cert", event_data=b"0") is None

What is sent goes through the same frames as in an engine, so that a value that cannot travel fails here; handlers are
called in this thread, in batches as they asked for, without pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _ring
from .api import Event, refusal
from .desks import Caller, describe, failures
from .frames import Shape

if TYPE_CHECKING:
    from .api import Registration, Worker


@dataclass(frozen=True, slots=True)
class Failure:
    """A call of a handler that raised."""

    handler: str
    ids: tuple[str, ...]
    error: str


class TestChannel:
    """Events for a worker, kept until `flush`.

    Attributes:
        failures: calls that raised, in order; the events of these are not acknowledged.
    """

    #: pytest must not take it for a test
    __test__ = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._events: list[Event] = []
        self._shapes: dict[tuple[str, tuple[str, ...]], Shape] = {}
        self._caller = Caller()
        self.failures: list[Failure] = []

    def send(self, name: str, *, id: str | None = None, **values: Any) -> str:
        """An event; returns its id.

        Args:
            id: default: the number of the event, from 1.

        Raises:
            FrameError: a value cannot travel.
        """
        number = len(self._events) + 1
        chosen = str(number) if id is None else id
        self._events.append(self._event(name, chosen.encode(), number, values))
        return chosen

    def send_again(self) -> None:
        """Everything once more, as after a crash: handlers are to stand that."""
        self._events += self._events

    def flush(self) -> list[str]:
        """Call the handlers with what was sent; returns the ids that every handler that wants them is done with.

        What was not acknowledged is sent again by the next `flush`.
        """
        failed: set[int] = set()
        for registration in self._worker.handlers:
            wanted = [event for event in self._events if registration.patterns.match(event.name)]
            for start in range(0, len(wanted), registration.batch):
                batch = wanted[start : start + registration.batch]
                if not self._call(registration, batch):
                    failed.update(map(id, batch))
        done = [event for event in self._events if id(event) not in failed]
        self._events = [event for event in self._events if id(event) in failed]
        return list(dict.fromkeys(event.id.decode() for event in done))

    def ask(self, name: str, **values: Any) -> str | None:
        """What the vetoes say; None if they say nothing.  An exception of a veto is raised here."""
        event = self._event(name, b"", 0, values)
        for veto in self._worker.vetoes:
            if veto.patterns.match(name):
                text = refusal(self._caller.call(veto.function, event), veto.name)
                if text:
                    return text.decode("utf-8", "replace")
        return None

    def close(self) -> None:
        """End the event loop of async handlers, if one was needed."""
        self._caller.close()

    def _event(self, name: str, id: bytes, seq: int, values: dict[str, Any]) -> Event:
        fields = tuple(values)
        shape = self._shapes.setdefault((name, fields), Shape(len(self._shapes) + 1, name, fields))
        travelled = _ring.unpack(_ring.pack(tuple(values.values())))
        return Event(shape, travelled, id, seq)

    def _call(self, registration: Registration, batch: list[Event]) -> bool:
        try:
            self._caller.call(registration.function, batch)
        except failures() as error:  # as in a worker
            ids = tuple(event.id.decode() for event in batch)
            self.failures.append(Failure(registration.name, ids, describe(error)))
            return False
        return True
