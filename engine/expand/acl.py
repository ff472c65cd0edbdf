"""Access control lists: what `${acl{name}{argument}…}` runs.

Layer: sans-I/O.  Spec: expansion 6 (A-1 to A-8).
Input: rules (engine.expand.aclrules), arguments, a scope.  Output: an `Outcome`.
Invariants: a rule is compiled once; an ACL is run by a name the configuration gives, never by text from outside; ACLs
nest 20 deep at most; arguments and nesting level of the caller are put back however the run ends.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import ExpandError, ForcedFailure, LookupDeferral

from . import ExpandOptions, Program, compile_text
from .aclrules import LISTS, MAY_BE_EMPTY, Reader, Statement, Step
from .lists import AddressList, DomainList, HostList, ItemList, LocalPartList
from .taint import is_tainted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .scope import Scope

#: how deep ACLs may call each other (A-6)
NESTING_LIMIT: Final = 20


class Verdict(enum.Enum):
    """How an ACL, or the conditions of one statement, came out; the value is Exim's word for it."""

    OK = "OK"
    FAIL = "FAIL"
    DEFER = "DEFER"
    DROP = "FAIL_DROP"
    DISCARD = "DISCARD"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an ACL.

    Attributes:
        verdict: how it came out.
        message: what its `message` says, if that applies to the verdict (A-7).
        log_message: the same of `log_message`, or what went wrong.
    """

    verdict: Verdict
    message: bytes | None = None
    log_message: bytes | None = None


_TRUE_OR_FALSE: Final = (Verdict.OK, Verdict.FAIL, Verdict.DROP)
#: verb -> the verdicts of its conditions for which its messages count (A-7)
_MESSAGE_COUNTS: Final = {
    "accept": _TRUE_OR_FALSE,
    "defer": (Verdict.OK,),
    "deny": (Verdict.OK,),
    "discard": _TRUE_OR_FALSE,
    "drop": (Verdict.OK,),
    "require": (Verdict.FAIL, Verdict.DROP),
    "warn": (Verdict.OK,),
}
#: verb -> the verdict of the ACL when its conditions are true; None: the ACL goes on (A-2)
_WHEN_TRUE: Final = {
    "accept": Verdict.OK,
    "defer": Verdict.DEFER,
    "deny": Verdict.FAIL,
    "discard": Verdict.DISCARD,
    "drop": Verdict.DROP,
    "require": None,
    "warn": None,
}


class _Stop(Exception):
    """The rest of a statement cannot be evaluated."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict


_BOOLEAN: Final = {b"true": True, b"yes": True, b"false": False, b"no": False}
_NUMBER: Final = re.compile(rb"-?(\d*)\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Acls:
    """The ACLs of a configuration; make it with `compile`."""

    def __init__(self, statements: Mapping[bytes, tuple[Statement, ...]], subjects: Mapping[str, Program]) -> None:
        self._statements = statements
        self._subjects = subjects

    @classmethod
    def compile(cls, texts: Mapping[str, str], *, options: ExpandOptions | None = None) -> Acls:
        """Read every ACL.

        Args:
            texts: name -> text.
            options: for the strings and lists in them.

        Raises:
            ConfigError: a text is wrong; key, column and source tell where.
        """
        options = ExpandOptions() if options is None else options
        statements = {name.encode(): Reader(name, text, options).read() for name, text in texts.items()}
        subjects = {text: compile_text(text) for _, sources in LISTS.values() for text in sources}
        return cls(statements, subjects)

    def item(self, name: bytes, arguments: Sequence[bytes], scope: Scope) -> bytes:
        """The value of ``${acl{name}{argument}…}``: the message, or nothing.

        Raises:
            ForcedFailure: the ACL defers.
            ExpandError: it is unknown, breaks, drops or discards.
        """
        return self.condition(name, arguments, scope)[1] or b""

    def condition(self, name: bytes, arguments: Sequence[bytes], scope: Scope) -> tuple[bool, bytes | None]:
        """Whether ``acl{{name}{argument}…}`` holds, and the message that becomes `$value`.

        Raises:
            ForcedFailure: the ACL defers.
            ExpandError: it is unknown, breaks, drops or discards.
        """
        outcome = self.run(name, arguments, scope)
        if outcome.verdict in (Verdict.OK, Verdict.FAIL):
            return outcome.verdict is Verdict.OK, outcome.message
        kind = ForcedFailure if outcome.verdict is Verdict.DEFER else ExpandError
        error = kind(f'{outcome.verdict.value} from acl "{_shown(name)}"')
        if outcome.log_message:
            error.add_note(_shown(outcome.log_message))
        raise error

    def run(self, name: bytes, arguments: Sequence[bytes], scope: Scope) -> Outcome:
        """Run an ACL; every way it can end is an outcome."""
        if is_tainted(name):
            return _error(f"attempt to use tainted string '{_shown(name)}' for ACL name")
        if not name:
            return Outcome(Verdict.FAIL)
        statements = self._statements.get(bytes(name))
        if statements is None:
            return _error(f'unknown named ACL "{_shown(name)}"')
        if scope.acl_level >= NESTING_LIMIT:
            return _error("ACL nested too deep: possible loop")
        caller_arguments = scope.acl_args
        scope.acl_args = tuple(arguments)
        scope.acl_level += 1
        try:
            return self._run(statements, scope)
        finally:
            scope.acl_level -= 1
            scope.acl_args = caller_arguments

    def _run(self, statements: tuple[Statement, ...], scope: Scope) -> Outcome:
        last = Outcome(Verdict.FAIL)
        for statement in statements:
            passed, last = self._check(statement, scope)
            verb, verdict = statement.verb, last.verdict
            if verdict is Verdict.ERROR:
                return last
            if verb == "warn":
                self._warn(last, scope)
                continue
            if verdict is Verdict.DEFER:
                return last
            if verdict is Verdict.OK:
                final = _WHEN_TRUE[verb]
                if final is not None:
                    return Outcome(final, last.message, last.log_message)
            elif verdict is Verdict.DISCARD:
                return last
            elif verb == "require" or passed:
                return Outcome(Verdict.FAIL, last.message, last.log_message)
        # falling off the end denies; the last statement may have left a message
        return Outcome(Verdict.FAIL, last.message, last.log_message)

    def _check(self, statement: Statement, scope: Scope) -> tuple[bool, Outcome]:
        """Whether an `endpass` was passed, and the verdict of the conditions with the messages that go with it."""
        verb = statement.verb
        own: Program | None = None
        own_log: Program | None = None
        nested = Outcome(Verdict.OK)
        verdict = Verdict.OK
        passed = False
        for test in statement.tests:
            if test.kind == "message":
                own = test.programs[0]
            elif test.kind == "log_message":
                own_log = test.programs[0]
            elif test.kind == "endpass":
                passed = True
            else:
                try:
                    if test.kind == "acl":
                        nested = self._nested(test, verb, scope)
                        verdict = nested.verdict
                    else:
                        verdict = Verdict.OK if self._holds(test, scope) else Verdict.FAIL
                except _Stop as stop:
                    return passed, Outcome(stop.verdict, None, str(stop).encode("utf-8", "surrogateescape"))
                if test.negated and verdict in _TRUE_OR_FALSE:
                    verdict = Verdict.FAIL if verdict is Verdict.OK else Verdict.OK
                if verdict is not Verdict.OK:
                    break
        message, log_message = nested.message, nested.log_message
        if verdict is Verdict.OK and verb in ("accept", "discard"):
            # what a nested ACL said on accepting is no answer of this one
            message = None
        if verdict in _MESSAGE_COUNTS[verb]:
            message = self._message(own, message, scope)
            log_message = self._message(own_log, log_message, scope)
        return passed, Outcome(verdict, message, log_message)

    def _message(self, program: Program | None, default: bytes | None, scope: Scope) -> bytes | None:
        if program is None:
            return default
        try:
            return program.evaluate(scope) or None
        except ForcedFailure:
            return default
        except ExpandError as error:
            text = f'failed to expand ACL message "{_shown(program.source)}": {error.message}'
            _write(scope, text.encode("utf-8", "surrogateescape"), frozenset(["main", "panic"]))
            return default

    def _warn(self, last: Outcome, scope: Scope) -> None:
        """What a `warn` statement leaves in the log."""
        text = last.log_message or b""
        if last.verdict is Verdict.OK:
            text = text or last.message or b""
        elif last.verdict is Verdict.DEFER:
            text = b'ACL "warn" statement skipped: condition test deferred' + (b": " + text if text else b"")
        else:
            return
        if text:
            _write(scope, b"Warning: " + text, frozenset(["main"]))

    def _nested(self, test: Step, verb: str, scope: Scope) -> Outcome:
        try:
            name, *arguments = [program.evaluate(scope) for program in test.programs] or [b""]
        except LookupDeferral as error:
            raise _Stop(Verdict.DEFER, error.message) from None
        except ExpandError as error:
            raise _Stop(Verdict.ERROR, f"failed to expand ACL string: {error.message}") from None
        outcome = self.run(name, arguments[:9], scope)
        if outcome.verdict is Verdict.DISCARD and verb not in ("accept", "discard"):
            raise _Stop(
                Verdict.ERROR,
                f"nested ACL returned 'discard' for \"{verb}\" command (only allowed with 'accept' or 'discard')",
            )
        return outcome

    def _holds(self, test: Step, scope: Scope) -> bool:
        """Do what a modifier does, or tell whether a condition holds.

        Raises:
            _Stop: neither can be done.
        """
        try:
            if test.items is not None:
                return self._matches(test, test.items, scope)
            value = test.programs[0].evaluate(scope)
        except ForcedFailure:
            # as if the condition were not there
            return not test.negated
        except LookupDeferral as error:
            raise _Stop(Verdict.DEFER, error.message) from None
        except ExpandError as error:
            raise _Stop(Verdict.ERROR, error.message) from None
        if test.kind == "condition":
            return _is_true(value)
        if test.kind == "set" and isinstance(test.target, str):
            (scope.acl_c if test.target.startswith("acl_c") else scope.acl_m)[test.target] = value
        elif test.kind == "logwrite" and isinstance(test.target, frozenset) and value:
            _write(scope, value, test.target)
        return True

    def _matches(self, test: Step, items: ItemList, scope: Scope) -> bool:
        subjects = [self._subjects[text].evaluate(scope) for text in LISTS[test.kind][1]]
        if not any(subjects) and test.kind not in MAY_BE_EMPTY:
            raise _Stop(Verdict.ERROR, f'cannot test "{test.kind}" condition here')
        if isinstance(items, HostList):
            name, address = subjects
            return items.match(name=name or None, address=address or None, scope=scope) is not None
        if isinstance(items, (DomainList, LocalPartList, AddressList)):
            return items.match(subjects[0], scope) is not None
        raise _Stop(Verdict.ERROR, f'cannot test "{test.kind}" condition here')


def _is_true(value: bytes) -> bool:
    """The truth of a `condition` (A-5)."""
    number = _NUMBER.match(value)
    if number:
        return bool(number[1].strip(b"0"))
    known = _BOOLEAN.get(value.lower())
    if known is None:
        raise _Stop(Verdict.DEFER, f'invalid "condition" value "{_shown(value)}"')
    return known


def _write(scope: Scope, text: bytes, logs: frozenset[str]) -> None:
    """Hand a line to the log: one line, whatever is in the text."""
    if scope.logwrite is not None:
        scope.logwrite(_CONTROL.sub(lambda match: b"\\%03o" % match[0][0], text), logs)


def _error(reason: str) -> Outcome:
    return Outcome(Verdict.ERROR, None, reason.encode("utf-8", "surrogateescape"))


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
