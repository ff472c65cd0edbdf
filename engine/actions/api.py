"""What authors of event actions import: a worker, its registrations, and the events they are given.

Layer: adapter; no trio.  Spec: issue text "Workers".

    from engine.actions.api import Event, Worker

    worker = Worker(group="crm")

    @worker.on("msg:delivery", "msg:fail:*", batch=500, linger=0.05)
    def record(events: list[Event]) -> None: ...        # acknowledged when it returns; `async def` (asyncio) also

    @worker.veto("tls:cert", timeout=0.2, on_timeout="ignore")     # or "refuse"
    def pin(event: Event) -> str | None: ...            # a non-empty string refuses

`outrider worker run package.module:worker --socket PATH` runs it; `engine.actions.testing.TestChannel` tests it.
`msg:*` events come at least once and in order per message: after a crash of anybody some come again, with the same
`id`, so that an action can tell.  A handler that raises is called again with the same events, later and later; if that
does not help each event is tried alone, while the others go on, and those that still fail after `attempts` become dead
letters.  Live events (`tcp:*`, `tls:cert`, `smtp:connect`) come once, or not at all where a worker cannot keep up.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ._ring import Row

if TYPE_CHECKING:
    from .frames import Arrived, Shape

#: times that a handler is called with an event before that is given up; with the pauses of `Backoff` 15 minutes
ATTEMPTS: Final = 20
#: events that a handler can be given at one time at most
MAX_BATCH: Final = 100_000

_Returned = TypeVar("_Returned")


class Event:
    """One event.

    Attributes:
        id: the same for every repetition of this event, b"" for a live one.
    """

    __slots__ = ("_shape", "_values", "id", "seq")

    def __init__(self, shape: Shape, values: Arrived, id: bytes = b"", seq: int = 0) -> None:
        self._shape = shape
        self._values = values
        self.id = id
        #: number of its frame; 0 for a live event
        self.seq = seq

    @property
    def name(self) -> str:
        """Such as ``msg:delivery``."""
        return self._shape.event

    @property
    def is_live(self) -> bool:
        """Whether it comes once at most."""
        return not self.seq

    @property
    def redelivered(self) -> int:
        """How often it was handed on again although it may have been handled before: no two hand-ons say the same."""
        return int(self.get("event_redelivered", 0))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its values."""
        return self._shape.fields

    def __getitem__(self, name: str) -> Any:
        """A value, such as ``event["local_part"]``: bytes, int, bool or None.  Raises KeyError."""
        return self._values[self._shape.places[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or `default` if the event has none of this name."""
        place = self._shape.places.get(name)
        return default if place is None else self._values[place]

    def text(self, name: str, default: str = "") -> str:
        """A value as text: octets as UTF-8 with what is none replaced; `default` if it is not there or None."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)

    def __contains__(self, name: str) -> bool:
        return name in self._shape.places

    def __iter__(self) -> Iterator[str]:
        return iter(self._shape.fields)

    def to_dict(self) -> dict[str, Any]:
        """Name -> value."""
        return dict(zip(self._shape.fields, self._values, strict=True))

    def split(self, place: int) -> tuple[object, tuple[Any, ...]]:
        """A key that is the same only where the first `place` values are, and the other values."""
        values = self._values
        if isinstance(values, Row):
            return values.split(place)
        # 1, 1.0 and True are the same to a dictionary
        first = values[:place]
        return (first, tuple(map(type, first))), values[place:]

    def __repr__(self) -> str:
        return f"<Event {self.name} {self.id!r} {self.to_dict()!r}>"


EventHandler = Callable[[list[Event]], Awaitable[None] | None]
VetoHandler = Callable[[Event], Awaitable[str | bytes | None] | str | bytes | None]


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """What a pattern matches: `*` stands for anything, everything else for itself."""
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def is_chosen(group: str, handler: str, choices: Collection[str] | None) -> bool:
    """Whether a handler is among those that a configuration names: ``group``, or ``group:handler``; None names all."""
    return choices is None or group in choices or f"{group}:{handler}" in choices


class Patterns:
    """Some patterns, and what is known of the names they match."""

    #: names kept; events have a score of names, and a hostile engine could make up more
    _KEPT: Final = 1000

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self._regexes = [pattern_regex(pattern) for pattern in patterns]
        self._known: dict[str, bool] = {}

    def match(self, name: str) -> bool:
        """Whether one of them matches."""
        found = self._known.get(name)
        if found is None:
            found = any(regex.fullmatch(name) for regex in self._regexes)
            if len(self._known) < self._KEPT:
                self._known[name] = found
        return found


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts, in seconds: `first_s`, then twice the last one, never over `most_s`."""

    first_s: float = 1.0
    most_s: float = 60.0

    def pause_s(self, attempt: int) -> float:
        """How long to wait behind attempt number `attempt`, which counts from 1."""
        return min(self.first_s * 2.0 ** min(attempt - 1, 32), self.most_s)


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler of events.

    Attributes:
        close: called when the worker ends, in the thread that calls the handler; or None.
    """

    name: str
    patterns: Patterns
    function: EventHandler
    batch: int
    linger_s: float
    attempts: int
    backoff: Backoff
    close: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class VetoRegistration:
    """A handler that may refuse."""

    name: str
    patterns: Patterns
    function: VetoHandler
    timeout_s: float
    refuses: bool


class Worker:
    """The registrations of one kind of worker.

    Args:
        group: workers of one group share its events; each group gets all it asked for.
    """

    def __init__(self, group: str = "main") -> None:
        self.group = group
        self.handlers: list[Registration] = []
        self.vetoes: list[VetoRegistration] = []

    def on(
        self,
        *patterns: str,
        batch: int = 1,
        linger: float = 0.0,
        attempts: int = ATTEMPTS,
        backoff: Backoff | None = None,
        name: str | None = None,
    ) -> Callable[[Callable[[list[Event]], _Returned]], Callable[[list[Event]], _Returned]]:
        """Register a handler for the events that match.

        Each handler has a thread of its own and is called with one list at a time.

        Args:
            batch: most events in one call.
            linger: seconds to wait for a batch to fill up.
            attempts: calls with the same events before they are given up.
            name: for the log and dead letters; default: the function's.

        Raises:
            ValueError: an argument is of no use, or the name is taken.
        """
        if not patterns or not all(patterns):
            raise ValueError("a handler needs at least one pattern")
        if not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"batch is {batch}, not from 1 to {MAX_BATCH}")
        if linger < 0 or attempts < 1:
            raise ValueError("linger is negative, or attempts less than 1")

        def register(function: Callable[[list[Event]], _Returned]) -> Callable[[list[Event]], _Returned]:
            registered: Any = function
            self.add(
                Registration(
                    name or function.__name__,
                    Patterns(patterns),
                    registered,
                    batch,
                    linger,
                    attempts,
                    backoff or Backoff(),
                )
            )
            return function

        return register

    def add(self, registration: Registration) -> None:
        """Register a handler that is described already.  Raises ValueError if its name is taken."""
        if any(known.name == registration.name for known in self.handlers):
            raise ValueError(f"there are two handlers called {registration.name!r}")
        self.handlers.append(registration)

    def veto(
        self, *patterns: str, timeout: float = 0.2, on_timeout: str = "ignore", name: str | None = None
    ) -> Callable[[Callable[[Event], _Returned]], Callable[[Event], _Returned]]:
        """Register a handler whose non-empty answer refuses: `tcp:connect`, `smtp:connect`, `tls:cert`.

        Args:
            timeout: seconds that the engine waits for the answer.
            on_timeout: what silence means: ``ignore`` or ``refuse``; an exception is ignored and logged.

        Raises:
            ValueError: an argument is of no use.
        """
        if not patterns or not all(patterns):
            raise ValueError("a veto needs at least one pattern")
        if not 0 < timeout <= 3600:
            raise ValueError(f"timeout is {timeout}, not within an hour")
        if on_timeout not in ("ignore", "refuse"):
            raise ValueError(f"on_timeout is {on_timeout!r}, not 'ignore' or 'refuse'")

        def register(function: Callable[[Event], _Returned]) -> Callable[[Event], _Returned]:
            registered: Any = function
            self.vetoes.append(
                VetoRegistration(
                    name or function.__name__, Patterns(patterns), registered, timeout, on_timeout == "refuse"
                )
            )
            return function

        return register


def refusal(value: object, name: str) -> bytes:
    """What the answer of a veto refuses with; b"" if it does not.

    Raises:
        TypeError: it is neither None nor a text.
    """
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, bytes):
        return bytes(value)
    raise TypeError(f"{name} returned {type(value).__name__}, not None or a string")
