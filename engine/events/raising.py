"""From an `event_action` to what happens when an event is raised.

Layer: sans-I/O (lookups are the scope's business).  Spec: EV-1 to EV-6, EV-9, X-9; design.md "Expansion".
Input: the string of one option, then a `Happening` each time.  Output: a `Result`.

    event_action -> one program -> specialised for each event of the option -> folds to nothing? there is no action
                                                                            -> `Action`: with the variables it reads

Invariants: an event without an action is never built; an expansion that fails is a result, never an exception (EV-5);
every text but the empty one counts, white space too (EV-4); a scope is used once, so nothing has to be undone (EV-9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import ExpandError, LookupDeferral
from ..expand import ExpandOptions, compile_option
from ..expand.program import UNKNOWN
from .catalogue import CATALOGUE, Granularity, Option
from .happening import CONTACT_VARIABLES, VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..expand import Program, Scope
    from ..expand.lists import NamedLists
    from .catalogue import EventRow
    from .happening import Happening, Value

#: the word for no transport (EV-6)
MAIN: Final = "main"
#: the variables of events, first what is the same for all of a connection and a sender
_IN_ORDER: Final = tuple(sorted(VARIABLES, key=lambda name: name not in CONTACT_VARIABLES))
#: variables of `scope.dynamic`: they are not in the scope's mapping
_DYNAMIC: Final = "lookup_dnssec_authenticated"


@dataclass(frozen=True, slots=True)
class Action:
    """What one option does at one event.

    Attributes:
        transport: whose option it is, "" for that of [main].
        program: specialised for the event.
        names: the variables that it may read, of those that an event has.
        wants_headers: it may read the header of the message.
        constants: what is known of the variables of the event before it is raised.
    """

    row: EventRow
    transport: str
    program: Program
    names: tuple[str, ...]
    wants_headers: bool
    constants: Mapping[str, bytes]

    @property
    def is_pure(self) -> bool:
        """Whether it never blocks."""
        return self.program.is_pure

    @property
    def scope_names(self) -> tuple[str, ...]:
        """The names of what `gather` gives, in order."""
        return (*self.names, "event_name") if self.reads_anything else self.names

    def gather(self, it: Happening) -> dict[str, Value]:
        """The variables that the program may read, and no others."""
        values = {name: VARIABLES[name](it) for name in self.names}
        if self.reads_anything:
            values["event_name"] = self.row.name
        return values

    @property
    def reads_anything(self) -> bool:
        """Whether it is not known what it reads: an ACL may read anything."""
        return UNKNOWN in self.program.reads

    def failure_text(self, error: str) -> str:
        """The line for an expansion that failed (EV-5, EV-6)."""
        return f"failed to expand {self.where}: {error}"

    @property
    def where(self) -> str:
        """What it is called in messages (EV-6)."""
        return f"event_action {self.row.name} in {self.transport or MAIN}"


#: event -> its action; an event that is not there is not raised
Actions = dict[str, Action]


def compile_actions(text: str, *, key: str, transport: str = "", file: str = "", named: NamedLists) -> Actions:
    """Compile one `event_action`.

    Args:
        text: the string, "" for none.
        key: dotted path of the option, for errors.
        transport: whose option it is; "" for that of [main].

    Raises:
        ConfigError: with file, key and column.
    """
    if not text:
        return {}
    program = compile_option(text, key=key, file=file or None, options=ExpandOptions(lists=named))
    other = Option.MAIN if transport else Option.TRANSPORT
    found: Actions = {}
    for row in CATALOGUE:
        if row.option is other:
            continue
        constants = _constants(row, transport)
        mine = program.specialise(constants)
        if not mine.is_always_empty:
            found[row.name] = Action(row, transport, mine, *_wanted(mine), constants)
    return found


def _constants(row: EventRow, transport: str) -> Mapping[str, bytes]:
    """What is known of the variables of an event before it is raised."""
    constants = {"event_name": row.name.encode(), "transport_name": transport.encode(), "verify_mode": b""}
    if not row.defers:
        constants["event_defer_errno"] = b"0"
    if not row.data:
        constants["event_data"] = b""
    if row.granularity is not Granularity.CERTIFICATE:
        constants["event_cert_source"] = b""
    return constants


def _wanted(program: Program) -> tuple[tuple[str, ...], bool]:
    reads = program.reads
    if UNKNOWN in reads:
        return _IN_ORDER, True
    return tuple(name for name in _IN_ORDER if name in reads), "h_" in reads


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an event.

    Attributes:
        text: what the string expanded to; empty for nothing, and where it failed.
        error: why it failed, or "".
        is_deferral: it failed since a lookup could not be done now.
    """

    text: bytes = b""
    error: str = ""
    is_deferral: bool = False


#: nothing came of it
NOTHING: Final = Result()


def run(action: Action, scope: Scope) -> Result:
    """Expand the string for one event, in a scope over `Action.gather`.  Blocks unless the action is pure."""
    # 5.2: a lookup whose side effect is the point must reach its server each time
    scope.cached = False
    known = scope.variables.get(_DYNAMIC)
    if known:
        scope.dynamic[_DYNAMIC] = known
    try:
        return Result(bytes(action.program.evaluate(scope)))
    except LookupDeferral as error:
        return Result(b"", error.message, True)
    except ExpandError as error:
        return Result(b"", error.message)
