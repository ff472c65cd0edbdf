"""The rules of an access control list, read from the text of `[acls]`.

Layer: sans-I/O.  Spec: expansion 6 (A-2, A-6); the messages are Exim's.
Input: statements of a verb and, on its line or the next ones, conditions and modifiers ``name = value``; a backslash at
the end of a line joins the next one, `#` begins a comment line.  Output: statements with everything compiled.
Of what Exim knows only what has a meaning outside an SMTP session is here; the rest is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import ConfigError, ExpandError

from . import ExpandOptions, Program, compile_text
from .lists import AddressList, DomainList, HostList, ItemList, LocalPartList

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERBS: Final = frozenset(["accept", "defer", "deny", "discard", "drop", "require", "warn"])
#: list condition -> kind of list, the strings whose values it is held against
LISTS: Final[Mapping[str, tuple[type[ItemList], tuple[str, ...]]]] = {
    "domains": (DomainList, ("$domain",)),
    "hosts": (HostList, ("$host", "$host_address")),
    "local_parts": (LocalPartList, ("$local_part",)),
    "recipients": (AddressList, ("${if def:domain{$local_part@$domain}}",)),
    "sender_domains": (DomainList, ("$sender_address_domain",)),
    "senders": (AddressList, ("$sender_address",)),
}
#: subjects that are tested even when they are empty: the null sender
MAY_BE_EMPTY: Final = frozenset(["senders"])
_CONDITIONS: Final = frozenset(["acl", "condition", *LISTS])
_MODIFIERS: Final = frozenset(["continue", "endpass", "log_message", "log_reject_target", "logwrite", "message", "set"])
_REFUSED: Final = frozenset(
    [
        "add_header",
        "atrn_domains",
        "authenticated",
        "bmi_optin",
        "bmi_run",
        "control",
        "csa",
        "dcc",
        "decode",
        "delay",
        "demime",
        "dkim_signers",
        "dkim_status",
        "dmarc_status",
        "dnslists",
        "encrypted",
        "malware",
        "mime_regex",
        "queue",
        "ratelimit",
        "regex",
        "remove_header",
        "seen",
        "spam",
        "spf",
        "spf_guess",
        "udpsend",
        "verify",
    ]
)
_LOGS: Final = frozenset(["main", "panic", "reject"])


@dataclass(frozen=True, slots=True)
class Step:
    """A condition or modifier in its place.

    Attributes:
        kind: its name.
        negated: `!` stood before it.
        programs: its value compiled; for `acl` the name and each argument.
        items: the list of a list condition.
        target: the variable of `set`, the logs of `logwrite`.
    """

    kind: str
    negated: bool = False
    programs: tuple[Program, ...] = ()
    items: ItemList | None = None
    target: str | frozenset[str] = ""


@dataclass(frozen=True, slots=True)
class Statement:
    verb: str
    tests: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    """Lines joined by backslashes, and where in the source each of them begins."""

    text: str
    starts: tuple[tuple[int, int], ...]

    def place(self, at: int) -> int:
        """The offset in the source of the character at `at`."""
        joined, origin = next(pair for pair in reversed(self.starts) if pair[0] <= at)
        return origin + at - joined


def _logical_lines(source: str) -> Iterator[_Line]:
    text, at = "", 0
    starts: list[tuple[int, int]] = []
    for line in source.split("\n"):
        content = line.rstrip()
        lead = len(content) - len(content.lstrip())
        if not starts and (lead == len(content) or content[lead] == "#"):
            at += len(line) + 1
            continue
        starts.append((len(text), at + lead))
        text += content[lead:]
        at += len(line) + 1
        if text.endswith("\\"):
            text = text[:-1]
            continue
        yield _Line(text, tuple(starts))
        text, starts = "", []
    if starts:
        yield _Line(text, tuple(starts))


_WORD: Final = re.compile(r"(!\s*)?([A-Za-z_]*)\s*")
_VARIABLE: Final = re.compile(r"(\S*)\s*")
_PIECE: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|\S+')
_LOG_NAMES: Final = re.compile(r":([^:]*):\s*")


class Reader:
    """Reads the text of one ACL."""

    def __init__(self, name: str, source: str, options: ExpandOptions) -> None:
        self._name = name
        self._source = source
        self._options = options

    def read(self) -> tuple[Statement, ...]:
        statements: list[tuple[str, list[Step]]] = []
        for line in _logical_lines(self._source):
            word = _WORD.match(line.text)
            name = word[2] if word else ""
            at = 0
            if word and not word[1] and name in VERBS:
                statements.append((name, []))
                at = word.end()
                if at == len(line.text):
                    continue
            if not statements:
                raise self._error(f'unknown ACL verb "{name}" in "{line.text}"', line, 0)
            statements[-1][1].append(self._test(statements[-1][0], line, at))
        return tuple(Statement(verb, tuple(tests)) for verb, tests in statements)

    def _error(self, message: str, line: _Line, at: int) -> ConfigError:
        return ConfigError(message, key=f"acls.{self._name}", column=line.place(at), source=self._source)

    def _test(self, verb: str, line: _Line, at: int) -> Step:
        word = _WORD.match(line.text, at)
        if not word or word[2] not in _CONDITIONS | _MODIFIERS:
            if word and word[2] in _REFUSED:
                raise self._error(f'"{word[2]}" has no meaning outside an SMTP session', line, word.start(2))
            raise self._error(f'unknown ACL condition/modifier in "{line.text}"', line, at)
        kind, negated = word[2], word[1] is not None
        if negated and kind in _MODIFIERS:
            raise self._error(f'ACL error: negation is not allowed with "{kind}"', line, at)
        end = word.end()
        target = ""
        if kind == "set":
            variable = _VARIABLE.match(line.text, end)
            target = variable[1].partition("=")[0] if variable else ""
            self._check_variable(line, at, end, target)
            end += len(target)
        value = line.text[end:].lstrip()
        if kind == "endpass":
            if verb not in ("accept", "discard"):
                raise self._error(f'ACL error: "endpass" is not allowed with "{verb}"', line, at)
            if value:
                raise self._error(f'unknown ACL condition/modifier in "{line.text}"', line, end)
            return Step(kind)
        if not value.startswith("="):
            what = "modifier" if kind in _MODIFIERS else "condition"
            raise self._error(f'"=" missing after ACL "{kind}" {what}', line, len(line.text))
        value = value[1:].lstrip()
        return self._valued(kind, negated, target, line, len(line.text) - len(value))

    def _check_variable(self, line: _Line, at: int, end: int, name: str) -> None:
        shown = f'invalid variable name after "set" in ACL modifier "{line.text[at:]}"'
        if not name.startswith(("acl_c", "acl_m")):
            raise self._error(f'{shown} (must start "acl_c" or "acl_m")', line, end)
        if not re.fullmatch(r"[0-9_]\w*", name[5:], re.ASCII):
            raise self._error(f"{shown} (digit or underscore must follow acl_c or acl_m)", line, end)

    def _valued(self, kind: str, negated: bool, target: str, line: _Line, at: int) -> Step:
        value = line.text[at:]
        if kind in LISTS:
            try:
                items = LISTS[kind][0].compile(value, named=self._options.lists)
            except ExpandError as error:
                raise self._error(error.message, line, at + (error.column or 0)) from None
            return Step(kind, negated, items=items)
        if kind == "acl":
            pieces = [(match.start(), _unquoted(match[0])) for match in _PIECE.finditer(line.text, at)]
            return Step(kind, negated, tuple(self._compiled(text, line, start) for start, text in pieces))
        if kind == "logwrite":
            names = _LOG_NAMES.match(line.text, at)
            logs = frozenset(name.strip() for name in names[1].split(",")) if names else frozenset(["main"])
            if not logs <= _LOGS:
                unknown = ", ".join(sorted(logs - _LOGS))
                raise self._error(f'unknown log name "{unknown}" in "logwrite" modifier', line, at)
            start = names.end() if names else at
            return Step(kind, programs=(self._compiled(line.text[start:], line, start),), target=logs)
        return Step(kind, negated, (self._compiled(value, line, at),), target=target)

    def _compiled(self, text: str, line: _Line, at: int) -> Program:
        try:
            return compile_text(text, options=self._options)
        except ExpandError as error:
            octets = text.encode("utf-8", "surrogateescape")[: error.column or 0]
            raise self._error(error.message, line, at + len(octets.decode("utf-8", "ignore"))) from None


_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


def _unquoted(piece: str) -> str:
    if not piece.startswith('"'):
        return piece
    inner = piece[1:-1] if len(piece) > 1 and piece.endswith('"') else piece[1:]
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), inner)
