"""Evaluate impure programs in a worker: lookups, ACLs, whatever may block.

Layer: adapter; blocking.  Spec: EV-2 to EV-5, EV-8; expansion 5, 6.
Input: settings once, a program once by number, then values.  Output: a status and a text.
Invariants: an expansion that fails is a status, never an exception; an `Evaluator` belongs to one thread, as its
lookups do; every evaluation of a lookup reaches its server (5.2), since an event is not over when its text is known.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError, ExpandError, ForcedFailure, FrameError, LookupDeferral
from ..expand import ExpandOptions, Scope, compile_text
from ..expand.acl import Acls
from ..expand.lists import NamedLists
from .frames import ProgramText, Status, state_frame
from .lookups import LookupOptions, LookupRegistry, Timeouts
from .postponing import asking_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..config import ListText
    from ..expand import Program
    from ..expand.scope import LogWrite
    from ..expand.searches import Lookups
    from .lookups import Place, Postponed, Progress, Statement
    from .postponing import Asking

#: programs that one worker keeps; a configuration has a score, and each event makes its own of each
MAX_PROGRAMS: Final = 10_000
#: statements that share a transaction at most, by default; arbitrary: of twice as many each would be 2 % cheaper
TOGETHER: Final = 250
#: as `engine.config.LIST_KINDS`, which takes long to import
_LIST_KINDS: Final = frozenset({"domainlist", "hostlist", "addresslist", "localpartlist"})
#: variables of `Scope.dynamic`: they are not in the scope's mapping
_DYNAMIC: Final = frozenset({"lookup_dnssec_authenticated"})


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine's own workers are told of its configuration.

    Attributes:
        acls: name -> text.
        lists: kind -> name -> items, as `engine.config.Config.lists`.
        handlers: name -> options of a built-in handler, as `engine.config.HandlerOptions`.
        strict_acl_vars: see `Scope`.
        lookup_batch: events whose lookups share a transaction at most.
        nice: of the threads that handle what nobody waits for.
    """

    lookups: LookupOptions = field(default_factory=LookupOptions)
    acls: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, Mapping[str, ListText]] = field(default_factory=dict)
    handlers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strict_acl_vars: bool = False
    lookup_batch: int = TOGETHER
    nice: int = 0

    def to_frame(self) -> dict[str, Any]:
        """As it travels in HELLO."""
        return {
            "lookups": asdict(self.lookups),
            "acls": dict(self.acls),
            "lists": {kind: dict(names) for kind, names in self.lists.items()},
            "handlers": {name: dict(options) for name, options in self.handlers.items()},
            "strict_acl_vars": self.strict_acl_vars,
            "lookup_batch": self.lookup_batch,
            "nice": self.nice,
        }

    @classmethod
    def from_frame(cls, data: Mapping[Any, Any]) -> Settings:
        """What has travelled; {} is none.  Raises FrameError."""
        try:
            lookups = dict(data.get("lookups", {}))
            timeouts = Timeouts(**lookups.pop("timeouts", {}))
            return cls(
                LookupOptions(**lookups, timeouts=timeouts),
                dict(data.get("acls", {})),
                {kind: dict(names) for kind, names in dict(data.get("lists", {})).items()},
                {name: dict(options) for name, options in dict(data.get("handlers", {})).items()},
                bool(data.get("strict_acl_vars", False)),
                int(data.get("lookup_batch", TOGETHER)),
                int(data.get("nice", 0)),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise FrameError(f"HELLO: settings that are none: {error}") from None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """How an evaluation came out; `text` is the value or the error, `state` what ACLs left in their variables."""

    status: Status
    text: bytes
    state: dict[str, Any]


class Evaluator:
    """Evaluates the programs of one engine, in one thread.

    Args:
        now: UTC epoch seconds.

    Raises:
        ConfigError: an ACL of the settings does not compile.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._named = _named(settings.lists)
        self._acls = Acls.compile(settings.acls, options=ExpandOptions(lists=self._named))
        self._lookups = LookupRegistry(settings.lookups)
        self._strict_acl_vars = settings.strict_acl_vars
        self._now = now
        self._random = random.Random()
        self._programs: dict[int, tuple[ProgramText, Program | ExpandError]] = {}
        #: programs whose lookups may be postponed
        self._asking: dict[int, Asking] = {}

    def learn(self, text: ProgramText) -> None:
        """Keep a program; one that does not compile fails at each evaluation.

        Raises:
            FrameError: there are too many.
        """
        if len(self._programs) >= MAX_PROGRAMS and text.number not in self._programs:
            raise FrameError(f"more than {MAX_PROGRAMS} programs")
        options = ExpandOptions(lists=self._named, extra=frozenset(text.variables), late_errors=True)
        try:
            program = compile_text(text.source, options=options).specialise(text.constants)
            self._programs[text.number] = text, program
            scope = self._scope({}, {}, self._lookups, None)
            if not _DYNAMIC & {*text.variables} and (asking := asking_or_none(text, program, self._lookups, scope)):
                self._asking[text.number] = asking
        except ExpandError as error:
            self._programs[text.number] = text, error

    def where(self, number: int) -> str:
        """What messages call a program."""
        known = self._programs.get(number)
        return known[0].where if known else f"program {number}"

    def check(self, number: int, values: tuple[Any, ...]) -> tuple[ProgramText, Program | ExpandError]:
        """The program.  Raises FrameError if there is none of this number, or the values are not its variables'."""
        known = self._programs.get(number)
        if known is None:
            raise FrameError(f"no program {number}")
        if len(values) != len(known[0].variables):
            raise FrameError(f"{len(values)} values for the {len(known[0].variables)} variables of {known[0].where}")
        return known

    def evaluate(
        self, number: int, values: tuple[Any, ...], state: Mapping[str, Any], logwrite: LogWrite | None = None
    ) -> Evaluated:
        """Evaluate a program.

        Args:
            values: of its variables, in order, as `frames.arrived_untrusted` gives them.
            state: as `frames.state_untrusted` gives it.
            logwrite: takes what ACLs log.

        Raises:
            FrameError: there is no such program, or the values are not its variables'.
        """
        text, program = self.check(number, values)
        variables: dict[str, Any] = {**text.constants, **dict(zip(text.variables, values, strict=True))}
        scope = self._scope(variables, state, self._lookups, logwrite)
        try:
            if isinstance(program, ExpandError):
                raise program
            status, value = Status.DONE, program.evaluate(scope)
        except ForcedFailure as error:
            status, value = Status.FORCED, _octets(error.message)
        except LookupDeferral as error:
            status, value = Status.DEFERRED, _octets(error.message)
        except ExpandError as error:
            status, value = Status.FAILED, _octets(error.message)
        return Evaluated(status, bytes(value), state_frame((), scope.acl_m, scope.acl_c))

    def postpone(self, number: int, values: tuple[Any, ...], state: Mapping[str, Any]) -> list[Postponed] | None:
        """What a program would ask with these values, if that may be asked later; None if it is to be evaluated.

        Args:
            values: as of `evaluate`; they have been checked.
        """
        asking = self._asking.get(number)
        return None if asking is None else asking.ask(values, state)

    def run_together(self, place: Place, units: Sequence[tuple[Statement, ...]]) -> Progress:
        """Ask what was postponed: see `LookupRegistry.run_together`."""
        return self._lookups.run_together(place, units)

    def _scope(
        self, variables: dict[str, Any], state: Mapping[str, Any], lookups: Lookups, logwrite: LogWrite | None
    ) -> Scope:
        scope = Scope(
            variables,
            headers=state.get("headers", ()),
            lookups=lookups,
            acls=self._acls,
            now=self._now,
            random=self._random.randrange,
            logwrite=logwrite,
            strict_acl_vars=self._strict_acl_vars,
        )
        scope.cached = False
        for name in _DYNAMIC & variables.keys():
            if variables[name]:
                scope.dynamic[name] = variables[name]
        scope.acl_m.update(state.get("acl_m", {}))
        scope.acl_c.update(state.get("acl_c", {}))
        return scope

    def close(self) -> None:
        """Close what lookups have open."""
        self._lookups.close()


def check(settings: Settings) -> None:
    """See that the ACLs of the settings compile.  Raises ConfigError."""
    Acls.compile(settings.acls, options=ExpandOptions(lists=_named(settings.lists)))


def _named(lists: Mapping[str, Mapping[str, ListText]]) -> NamedLists:
    unknown = set(lists) - _LIST_KINDS
    if unknown:
        raise ConfigError(f"lists of unknown kind: {', '.join(sorted(map(str, unknown)))}")
    return NamedLists(
        domains=lists.get("domainlist", {}),
        hosts=lists.get("hostlist", {}),
        addresses=lists.get("addresslist", {}),
        local_parts=lists.get("localpartlist", {}),
    )


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
