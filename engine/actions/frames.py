"""The frames between an engine and its action workers: one msgpack array each, its first item the kind.

Layer: adapter.  Spec: design.md "Events and action workers"; issue text "Channel".
Any msgpack library can read and write them.  bin is for octets (values of events, texts of the wire), str for names,
and an engine and a worker speak the same `VERSION` or not at all.  `seq` is a number the engine gives; `shape` and
`program` are numbers that an earlier frame has explained; times are seconds of CLOCK_MONOTONIC as a float.

    from the engine
    1   HELLO     version, group: str, settings: map        first of all; settings {} but for the engine's own workers
    2   SHAPE     shape, event: str, [field: str …]         what the values of events of this shape are called
    3   PROGRAM   program, source: bin, where: str, [variable: str …], {variable: value: bin}
                                                            those that change, and those that never do
    4   EVENT     seq, shape, id: bin, [value …], [choice: str …] or nil        nil: every handler that wants it;
                                                            a choice is `group` (all of its), or `group:handler`
                                                            seq 0: a live event, not acknowledged
    5   ASK       seq, shape, id: bin, [value …], deadline  a veto: wants an ANSWER
    6   EVALUATE  seq, program, [value …], state: map, deadline                 wants an ANSWER
    7   RUN       seq, program, id: bin, [value …], state: map                  wants an ACK or a DEAD, at any time;
                                                            those whose id is alike up to a `/` are run in order
    8   DRAIN                                               finish what you have, acknowledge it, and end
    from the worker
    65  READY     version, pid, group: str, [[handler: str, pattern: str] …], [[pattern: str, timeout, refuses] …]
    66  ACK       [first, count, first, count …]            runs of seqs that are done
    67  ANSWER    seq, status, text: bin, state: map        status: see `Status`
    68  DEAD      seq, handler: str, attempts, error: str   given up; counts as done when the engine has stored it
    69  LOG       seq, text: bin, [log: str …]              a line for `main`, `panic`, `reject`; seq: of the event
                                                            that it is about, or 0
    70  ALIVE                                               a handler is being retried: it is slow, not dead

A value is nil, bool, int, float, str or bin; between programs there are three extension types beside (`TAINTED`,
`QUOTED`, `CERTIFICATE`), which a reader that does not care can take for octets.  State has `headers` ([bin …]),
`acl_m` and `acl_c` (name: value), and for a RUN `give_up_at`, in UTC epoch seconds: until then it is tried again what
cannot be done now.  Each of them may be missing.
Invariants: the functions that end in `_untrusted` raise FrameError and nothing else, whatever they are given.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from msgpack import ExtType

from ..errors import FrameError
from ..expand.certificates import Certificate
from ..expand.taint import Tainted, taint
from ._ring import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: of this schema; HELLO and READY carry it
VERSION: Final = 1

#: extension type of text from outside: the octets
TAINTED: Final = 1
#: of text from outside that was quoted: the quoter, NUL, the octets
QUOTED: Final = 2
#: of a certificate: its DER
CERTIFICATE: Final = 3

HELLO: Final = 1
SHAPE: Final = 2
PROGRAM: Final = 3
EVENT: Final = 4
ASK: Final = 5
#: place of the values in an EVENT and an ASK
VALUES_PLACE: Final = 4
EVALUATE: Final = 6
RUN: Final = 7
DRAIN: Final = 8
READY: Final = 65
ACK: Final = 66
ANSWER: Final = 67
DEAD: Final = 68
LOG: Final = 69
ALIVE: Final = 70

Values = tuple[Any, ...]
#: values that have arrived
Arrived = Values | Row


class Status(enum.IntEnum):
    """How what an ANSWER answers came out."""

    #: ASK: the text refuses unless it is empty; EVALUATE: the text is the value
    DONE = 0
    #: the handler raised, or the expansion failed; the text says how
    FAILED = 1
    #: the expansion failed because it was told to (X-9)
    FORCED = 2
    #: a lookup could not be done now
    DEFERRED = 3
    #: nobody here answers such a thing
    UNKNOWN = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What the values of one event are called.

    Attributes:
        number: as frames have it.
        event: name of the event.
        fields: names of the values in order.
        places: field -> its index.
    """

    number: int
    event: str
    fields: tuple[str, ...]
    places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {name: place for place, name in enumerate(self.fields)})


@dataclass(frozen=True, slots=True)
class ProgramText:
    """A program as it travels: its source, and the variables it is given each time.

    Attributes:
        where: for messages, such as ``event_action msg:delivery in remote_smtp``.
        variables: what is given each time; constants: what is the same each time.
    """

    number: int
    source: bytes
    where: str
    variables: tuple[str, ...]
    constants: Mapping[str, bytes] = field(default_factory=dict)


# --- what a worker sends ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Veto:
    """A registration for a veto.

    Attributes:
        timeout_s: how long the engine waits for an answer.
        refuses: whether silence refuses.
    """

    pattern: str
    timeout_s: float
    refuses: bool


@dataclass(frozen=True, slots=True)
class Ready:
    version: int
    pid: int
    group: str
    handlers: tuple[tuple[str, str], ...]
    vetoes: tuple[Veto, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    runs: tuple[tuple[int, int], ...]


class Answer(NamedTuple):
    """The answer to an ASK or an EVALUATE."""

    seq: int
    status: Status
    text: bytes
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dead:
    seq: int
    handler: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class Log:
    text: bytes
    logs: frozenset[str]
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Alive:
    pass


FromWorker = Ready | Ack | Answer | Dead | Log | Alive

#: registrations of one worker
_MAX_PATTERNS: Final = 1000
#: octets of a text that is going to be shown
_MAX_SHOWN: Final = 4096
_LOGS: Final = frozenset(["main", "panic", "reject"])
_STATUSES: Final = tuple(Status)


def ready_frame(ready: Ready) -> tuple[Any, ...]:
    """READY as it travels."""
    vetoes = tuple((veto.pattern, veto.timeout_s, veto.refuses) for veto in ready.vetoes)
    return (READY, ready.version, ready.pid, ready.group, ready.handlers, vetoes)


def ack_frame(seqs: Iterable[int]) -> tuple[Any, ...]:
    """ACK of these seqs, as runs."""
    runs: list[int] = []
    found = sorted(seqs)
    if found and len(found) == found[-1] - found[0] + 1:
        # mostly
        return (ACK, (found[0], len(found)))
    for seq in found:
        if runs and runs[-2] + runs[-1] == seq:
            runs[-1] += 1
        else:
            runs += (seq, 1)
    return (ACK, tuple(runs))


def from_worker_untrusted(frame: object) -> FromWorker:
    """What a worker said.  Raises FrameError."""
    if not isinstance(frame, tuple) or not frame or type(frame[0]) is not int:
        _refuse("not an array with its kind in front")
    parser = _FROM_WORKER.get(frame[0])
    if parser is None:
        _refuse(f"no kind {frame[0]} comes from a worker")
    return parser(frame)


def _ready(frame: Values) -> Ready:
    _fields("READY", frame, int, int, str, tuple, tuple)
    _, version, pid, group, handlers, vetoes = frame
    if version != VERSION:
        _refuse(f"the worker speaks version {version} of the frames, the engine {VERSION}")
    if len(handlers) + len(vetoes) > _MAX_PATTERNS:
        _refuse(f"more than {_MAX_PATTERNS} registrations")
    found = []
    for row in handlers:
        _fields("READY", ("", *_tuple(row)), str, str)
        found.append((row[0], row[1]))
    refusing = []
    for row in vetoes:
        _fields("READY", ("", *_tuple(row)), str, float, bool)
        # also not a number
        if not 0 < row[1] <= 3600:
            _refuse("READY: the timeout of a veto is not within an hour")
        refusing.append(Veto(*row))
    return Ready(version, pid, group, tuple(found), tuple(refusing))


def _ack(frame: Values) -> Ack:
    _fields("ACK", frame, tuple)
    numbers = frame[1]
    if len(numbers) % 2 or any(type(number) is not int or number < 1 for number in numbers):
        _refuse("ACK: not runs of seqs")
    return Ack(tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _answer(frame: Values) -> Answer:
    # somebody waits for this one: the same checks as `_fields`, without a loop
    if len(frame) != 5 or not (type(frame[1]) is type(frame[2]) is int and type(frame[3]) is bytes):
        _fields("ANSWER", frame, int, int, bytes, dict)
    _, seq, status, text, state = frame
    if not 0 <= status < len(_STATUSES):
        _refuse(f"ANSWER: no status {status}")
    return Answer(seq, _STATUSES[status], text, state_untrusted(state))


def _dead(frame: Values) -> Dead:
    _fields("DEAD", frame, int, str, int, str)
    return Dead(frame[1], frame[2][:_MAX_SHOWN], frame[3], frame[4][:_MAX_SHOWN])


def _log(frame: Values) -> Log:
    _fields("LOG", frame, int, bytes, tuple)
    names = frozenset(name for name in frame[3] if isinstance(name, str))
    return Log(frame[2][:_MAX_SHOWN], names & _LOGS or frozenset(["main"]), frame[1])


def _alive(frame: Values) -> Alive:
    _fields("ALIVE", frame)
    return Alive()


_FROM_WORKER: Final[Mapping[int, Callable[[Values], FromWorker]]] = {
    READY: _ready,
    ACK: _ack,
    ANSWER: _answer,
    DEAD: _dead,
    LOG: _log,
    ALIVE: _alive,
}


# --- what an engine sends ---------------------------------------------------------------------------------------------

#: kind -> types of the fields behind it, for the worker to check
_FROM_ENGINE: Final[Mapping[int, tuple[str, tuple[type, ...]]]] = {
    HELLO: ("HELLO", (int, str, dict)),
    SHAPE: ("SHAPE", (int, str, tuple)),
    PROGRAM: ("PROGRAM", (int, bytes, str, tuple, dict)),
    EVENT: ("EVENT", (int, int, bytes, tuple, object)),
    ASK: ("ASK", (int, int, bytes, tuple, float)),
    EVALUATE: ("EVALUATE", (int, int, tuple, dict, float)),
    RUN: ("RUN", (int, int, bytes, tuple, dict)),
    DRAIN: ("DRAIN", ()),
}


def check_from_engine_untrusted(frame: object) -> tuple[Any, ...]:
    """A frame of the engine, with a known kind and fields of the right types.  Raises FrameError."""
    # nearly all frames are a RUN or an EVENT, mostly without handlers, and somebody waits for the answer to an ASK: the
    # same checks, without a loop
    if (
        type(frame) is tuple
        and len(frame) == 6
        and type(frame[0]) is type(frame[1]) is type(frame[2]) is int
        and type(frame[3]) is bytes
        and type(frame[4]) in (Row, tuple)
        and (
            (frame[0] == EVENT and frame[5] is None)
            or (frame[0] == ASK and type(frame[5]) is float)
            or (frame[0] == RUN and type(frame[4]) is tuple and type(frame[5]) is dict)
        )
    ):
        return frame
    if not isinstance(frame, tuple) or not frame or type(frame[0]) is not int:
        _refuse("not an array with its kind in front")
    known = _FROM_ENGINE.get(frame[0])
    if known is None:
        _refuse(f"no kind {frame[0]} comes from an engine")
    name, kinds = known
    _fields(name, frame, *kinds)
    if frame[0] == HELLO and frame[1] != VERSION:
        _refuse(f"the engine speaks version {frame[1]} of the frames, the worker {VERSION}")
    if frame[0] == EVENT and not _is_names_or_none(frame[5]):
        _refuse("EVENT: the handlers are not names")
    if frame[0] == SHAPE and not _is_names_or_none(frame[3]):
        _refuse("SHAPE: the fields are not names")
    if frame[0] == PROGRAM and not (_is_names_or_none(frame[4]) and _are_constants(frame[5])):
        _refuse("PROGRAM: the variables are not names, or their values are not octets")
    return frame


def _is_names_or_none(value: object) -> bool:
    return value is None or (isinstance(value, tuple) and all(type(name) is str for name in value))


def _are_constants(found: dict[Any, Any]) -> bool:
    return all(type(name) is str and type(value) is bytes for name, value in found.items())


def _fields(name: str, frame: Values, *kinds: type) -> None:
    if len(frame) != 1 + len(kinds):
        _refuse(f"{name}: {len(frame) - 1} fields, not {len(kinds)}")
    for value, kind in zip(frame[1:], kinds, strict=True):
        # a bool is an int to isinstance, and a number of seconds may be whole
        right = (
            type(value) is kind
            or kind is object
            or (kind is float and type(value) is int)
            or (kind is tuple and type(value) is Row)
        )
        if not right:
            _refuse(f"{name}: {type(value).__name__} where {kind.__name__} belongs")


def _tuple(value: object) -> Values:
    if not isinstance(value, tuple):
        _refuse("READY: a registration is not an array")
    return value


def _refuse(problem: str) -> NoReturn:
    raise FrameError(problem)


# --- values of the expansion language ---------------------------------------------------------------------------------


def travelling(value: Any) -> Any:
    """A value of a variable as it travels; a function is called."""
    if isinstance(value, Tainted):
        if value.quoter is None:
            return ExtType(TAINTED, bytes(value))
        return ExtType(QUOTED, value.quoter.encode() + b"\0" + value)
    if isinstance(value, Certificate):
        return ExtType(CERTIFICATE, value.der)
    return travelling(value()) if callable(value) else value


def arrived_untrusted(value: Any) -> Any:
    """A value that has travelled.  Raises FrameError."""
    if not isinstance(value, ExtType):
        if isinstance(value, tuple | dict):
            _refuse(f"{type(value).__name__} as value of a variable")
        return value
    if value.code == TAINTED:
        return taint(value.data)
    if value.code == QUOTED:
        quoter, nul, text = value.data.partition(b"\0")
        if not nul or not quoter.isalnum():
            _refuse("quoted text without its quoter")
        return taint(text, quoter.decode("ascii", "replace"))
    if value.code == CERTIFICATE:
        return Certificate(value.data)
    _refuse(f"a value of extension type {value.code}")


def state_frame(
    headers: Sequence[bytes] = (),
    acl_m: Mapping[str, bytes] | None = None,
    acl_c: Mapping[str, bytes] | None = None,
    *,
    give_up_at: float | None = None,
) -> dict[str, Any]:
    """State as it travels."""
    state: dict[str, Any] = {} if give_up_at is None else {"give_up_at": give_up_at}
    if headers:
        state["headers"] = tuple(headers)
    for name, variables in (("acl_m", acl_m), ("acl_c", acl_c)):
        if variables:
            state[name] = {key: travelling(value) for key, value in variables.items()}
    return state


def state_untrusted(state: Any) -> dict[str, Any]:
    """State that has travelled: of `headers`, `acl_m`, `acl_c`, `give_up_at` what is there.  Raises FrameError."""
    found: dict[str, Any] = {}
    if not isinstance(state, dict):
        _refuse("state is not a map")
    for name, value in state.items():
        if name == "headers":
            if not isinstance(value, tuple) or not all(type(line) is bytes for line in value):
                _refuse("state: headers are not octets")
            found[name] = value
        elif name == "give_up_at":
            if type(value) is not float:
                _refuse("state: give_up_at is no time")
            found[name] = value
        elif name in ("acl_m", "acl_c"):
            if not isinstance(value, dict) or not all(type(key) is str for key in value):
                _refuse(f"state: {name} is not a map of names")
            arrived = {key: arrived_untrusted(text) for key, text in value.items()}
            if not all(isinstance(text, bytes) for text in arrived.values()):
                _refuse(f"state: {name} has what is no text")
            found[name] = arrived
    return found
