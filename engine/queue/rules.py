"""Retry rules: which failure of whom is tried again by which steps.

Layer: adapter room, but pure.  Spec: events-dane section 11, RT-7 and RT-8.
A rule is a pattern, an error name and steps: ``F,cutoff,interval`` (fixed), ``G,cutoff,start,factor`` (geometric) and
``H`` (geometric with a random spread).
Invariants: parsing raises only ConfigError, with the column; matching raises nothing; rules are searched in order, and
within one rule the subjects are tried in order, so an earlier rule always wins.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pcre2

from ..errors import ConfigError
from ..values import parse_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..config import RetryOptions

_SIMPLE: Final = ("auth_failed", "lost_connection", "lookup", "quota", "timeout_dns", "tls_required")
#: names that can end in _MX or _A: the host came from an MX record, or from an address record
_HOSTED: Final = ("refused", "timeout", "timeout_connect")
_STAGE_NAME: Final = re.compile(r"(data|mail|rcpt)_4([0-9x][0-9x])\Z")
_FACTOR: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?\Z")


class StepKind(enum.Enum):
    FIXED = "F"
    GEOMETRIC = "G"
    SPREAD = "H"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a rule, in seconds; `interval_s` is the start for G and H, and `factor` is 1 for F."""

    kind: StepKind
    cutoff_s: int
    interval_s: int
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try was deferred, as retry rules see it (RT-7).

    Attributes:
        name: ``auth_failed``, ``data_4xx``, ``mail_4xx``, ``rcpt_4xx``, ``lost_connection``, ``lookup``, ``refused``,
            ``timeout``, ``timeout_connect``, ``timeout_DNS``, ``tls_required``, ``quota``; "" for anything else.
        reply_code: the reply's three digits, for the names that end in 4xx.
        from_mx: whether the host came from an MX record; None when there is no host.
        unread_s: for quota, seconds since the mailbox was last read.
    """

    name: str = ""
    reply_code: int = 0
    from_mx: bool | None = None
    unread_s: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorName:
    """The error name of a rule; `parse` makes it.

    Attributes:
        name: in lower case, without ``_MX``, ``_A`` and reply digits; ``*`` for any.
        digits: two characters behind the 4, each a digit or ``x``; "" where the name has none.
        from_mx: what `Failure.from_mx` must be; None for either.
        unread_s: for ``quota_<time>``.
    """

    name: str
    digits: str = ""
    from_mx: bool | None = None
    unread_s: int | None = None

    @classmethod
    def parse(cls, text: str, *, key: str = "retry.error") -> ErrorName:
        """Read an error name; case does not matter.

        Raises:
            ConfigError: there is no error of that name.
        """
        name = text.strip().lower()
        if name in ("*", *_SIMPLE):
            return cls(name)
        stage = _STAGE_NAME.match(name)
        if stage:
            return cls(stage[1], digits=stage[2])
        for suffix, from_mx in (("", None), ("_mx", True), ("_a", False)):
            if name.removesuffix(suffix) in _HOSTED and name.endswith(suffix):
                return cls(name.removesuffix(suffix), from_mx=from_mx)
        if name.startswith("quota_"):
            try:
                return cls("quota", unread_s=parse_interval(name.removeprefix("quota_")))
            except ValueError:
                pass
        raise ConfigError(f"unknown retry error {text.strip()!r}", key=key, column=0, source=text)

    def matches(self, failure: Failure) -> bool:
        """Whether a rule with this error name is about that failure."""
        if self.name == "*":
            return True
        name = failure.name.lower()
        if self.digits:
            if name[:4] != self.name or name[4:6] != "_4" or not 400 <= failure.reply_code <= 499:
                return False
            code = f"{failure.reply_code:03d}"
            return all(want in ("x", digit) for want, digit in zip(self.digits, code[1:], strict=True))
        if self.from_mx is not None and failure.from_mx is not self.from_mx:
            return False
        if self.name == "timeout":
            return name in ("timeout", "timeout_connect")
        if self.unread_s is not None:
            return name == "quota" and failure.unread_s is not None and failure.unread_s >= self.unread_s
        return name == self.name


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a rule is about: ``*``, a domain or host, ``*.domain``, ``user@domain``, ``^regular expression``.

    Case does not matter.  A domain or host name as subject is never matched by a pattern that names a local part, and
    stands as ``*@name`` before a regular expression, as in Exim.
    """

    text: str
    local_part: str = "*"
    domain: str = "*"
    regex: pcre2.Pattern | None = None

    @classmethod
    def parse(cls, text: str, *, key: str = "retry.pattern") -> Pattern:
        """Read a pattern.

        Raises:
            ConfigError: it is empty, a bad regular expression, or a kind of list item that rules do not know.
        """
        stripped = text.strip()
        if not stripped:
            raise ConfigError("a retry pattern cannot be empty", key=key, column=0, source=text)
        if stripped.startswith("/") and "@" not in stripped:
            raise ConfigError("files are not possible in a retry pattern", key=key, column=text.find("/"), source=text)
        if stripped.startswith("^"):
            try:
                return cls(stripped, regex=pcre2.compile(stripped, flags=pcre2.I))
            except (pcre2.PatternError, pcre2.LibraryError) as error:
                raise ConfigError(f"bad regular expression: {error}", key=key, column=0, source=text) from None
        for sign, kind in (("+", "named lists"), ("!", "negated items"), (";", "lookups"), (":", "lists")):
            column = text.find(sign)
            is_literal = "[" in stripped
            if column >= 0 and not (is_literal and sign == ":") and (sign not in "+!" or stripped[0] == sign):
                raise ConfigError(f"{kind} are not possible in a retry pattern", key=key, column=column, source=text)
        local_part, at, domain = stripped.rpartition("@")
        if at and not (local_part and domain):
            raise ConfigError(
                f"retry pattern {stripped!r} has nothing {'before' if domain else 'after'} the @",
                key=key,
                column=text.find("@"),
                source=text,
            )
        star = domain.find("*", 1)
        if star > 0:
            raise ConfigError(
                "a * can only stand at the start of a domain", key=key, column=text.rfind("*"), source=text
            )
        return cls(stripped, local_part.lower() if at else "*", domain.lower())

    def matches(self, subject: str) -> bool:
        """Whether it is about `subject`: an address, or the name of a host or domain."""
        subject = subject.lower()
        local_part, at, domain = subject.rpartition("@")
        if self.regex is not None:
            try:
                return self.regex.search(subject if at else f"*@{subject}") is not None
            except pcre2.LibraryError:
                # the expression ran into its limits on this subject
                return False
        if not _matches_start(self.domain, domain):
            return False
        return self.local_part == "*" or (bool(at) and _matches_start(self.local_part, local_part))


def _matches_start(pattern: str, text: str) -> bool:
    return text.endswith(pattern[1:]) if pattern.startswith("*") else text == pattern


@dataclass(frozen=True, slots=True)
class RetryRule:
    """A rule; one without steps means that nothing is tried again."""

    pattern: Pattern
    error: ErrorName
    steps: tuple[Step, ...]

    @property
    def cutoff_s(self) -> int:
        """The cut-off of the last step; 0 without steps."""
        return self.steps[-1].cutoff_s if self.steps else 0

    def step_at(self, elapsed_s: float) -> tuple[Step, bool] | None:
        """The step in force and whether the last cut-off is past (RT-9); None without steps."""
        if not self.steps:
            return None
        for step in self.steps:
            if elapsed_s <= step.cutoff_s:
                return step, False
        return self.steps[-1], True


def parse_steps(text: str, *, key: str = "retry.rule") -> tuple[Step, ...]:
    """Read ``F,2h,15m; G,16h,1h,1.5; F,4d,6h``.

    Raises:
        ConfigError: with the column of what is wrong.
    """
    steps: list[Step] = []
    start = 0
    for part in text.split(";"):
        if part.strip():
            steps.append(_parse_step(part, start, text, key))
        start += len(part) + 1
    return tuple(steps)


def _parse_step(part: str, start: int, source: str, key: str) -> Step:
    fields: list[tuple[str, int]] = []
    position = start
    for field in part.split(","):
        fields.append((field.strip(), position + len(field) - len(field.lstrip())))
        position += len(field) + 1

    def fail(message: str, number: int) -> ConfigError:
        return ConfigError(message, key=key, column=fields[min(number, len(fields) - 1)][1], source=source)

    letter = fields[0][0].upper()
    if letter not in ("F", "G", "H"):
        raise fail(f"a retry step begins with F, G or H, not {fields[0][0]!r}", 0)
    kind = StepKind(letter)
    want = 3 if kind is StepKind.FIXED else 4
    if len(fields) != want:
        form = "F,cutoff,interval" if kind is StepKind.FIXED else f"{letter},cutoff,start,factor"
        raise fail(f"a retry step {letter} has the form {form}", want if len(fields) > want else len(fields) - 1)
    times: list[int] = []
    for number in (1, 2):
        try:
            times.append(parse_interval(fields[number][0]))
        except ValueError as error:
            raise fail(str(error), number) from None
        if times[-1] == 0:
            raise fail("a time in a retry step must be more than nothing", number)
    factor = 1.0
    if kind is not StepKind.FIXED:
        if not _FACTOR.match(fields[3][0]):
            raise fail(f"{fields[3][0]!r} is not a factor such as 1.5", 3)
        factor = float(fields[3][0])
        if factor < 1:
            raise fail("the factor of a retry step must be 1 or more", 3)
    return Step(kind, times[0], times[1], factor)


class RetryRules:
    """The retry rules of a configuration, in order."""

    def __init__(self, rules: Sequence[RetryRule]) -> None:
        self.rules = tuple(rules)

    @classmethod
    def compile(cls, options: Iterable[RetryOptions]) -> RetryRules:
        """Read the `[[retry]]` tables.

        Raises:
            ConfigError: naming the table and the column.
        """
        return cls(
            [
                RetryRule(
                    Pattern.parse(row.pattern, key=f"retry[{number}].pattern"),
                    ErrorName.parse(row.error, key=f"retry[{number}].error"),
                    parse_steps(row.rule, key=f"retry[{number}].rule"),
                )
                for number, row in enumerate(options)
            ]
        )

    def find(self, failure: Failure, *subjects: str) -> RetryRule | None:
        """The first rule that is about the failure and any of the subjects.

        Args:
            subjects: for host and message errors the host name, then the domain of the address; for recipient errors
                the whole address; for routing the domain.
        """
        for rule in self.rules:
            if rule.error.matches(failure) and any(rule.pattern.matches(subject) for subject in subjects):
                return rule
        return None
