"""Regular expressions: PCRE2 over octets, compiled once, bounded when they match.

Layer: sans-I/O.  Spec: expansion.md 4 (`match`), 2 (`sg`); pcre2pattern "Setting match and backtracking depth limits".
Invariants: a pattern cannot raise the limits (PCRE2 takes the lowest that is set); a match that meets a limit is an
error, never a hang.
"""

from __future__ import annotations

import functools
from typing import Any, Final, cast

import pcre2
from pcre2 import _cy

from ..errors import ExpandError

#: PCRE2 match(), steps; arbitrary, about 10 ms of work
MATCH_LIMIT: Final = 500_000
#: PCRE2 heap for backtracking, KiB; arbitrary
HEAP_LIMIT_KIB: Final = 20_000
#: most capture groups an expansion sees, `$0` to `$20` (EXPAND_MAXN)
GROUP_LIMIT: Final = 20

_LIMITS: Final = b"(*LIMIT_MATCH=%d)(*LIMIT_HEAP=%d)" % (MATCH_LIMIT, HEAP_LIMIT_KIB)
_CASELESS: Final = 0x00000008
# the package turns these on for Python's habits; Exim does not: \x{41} and \C mean what PCRE2 says
_PYTHON_HABITS: Final = 0x00000002 | 0x00100000
#: octets; arbitrary, a pattern is written by a person
PATTERN_LIMIT_OCTETS: Final = 65536


class Regex:
    """One compiled pattern.  Immutable and safe to share between threads."""

    __slots__ = ("_code", "_context", "groups", "pattern")

    def __init__(self, pattern: bytes, code: Any) -> None:
        self.pattern = pattern
        self._code = code
        self._context = _cy.create_match_context()
        self.groups: int = min(_cy.pattern_capture_count(code), GROUP_LIMIT)

    def search(self, subject: bytes) -> tuple[bytes, ...] | None:
        """The whole match and each group, unset ones empty; None when there is no match.

        Raises:
            ExpandError: the match met a limit.
        """
        data = self._match(subject, 0)
        if data is None:
            return None
        take = _cy.match_substring_bynumber
        return tuple([take(data, subject, number) or b"" for number in range(self.groups + 1)])

    def span(self, subject: bytes, start: int, *, at_start: bool = False) -> tuple[int, int, tuple[bytes, ...]] | None:
        """First match at or after `start`: its place and its groups; `at_start`: only there, and not an empty one.

        Raises:
            ExpandError: the match met a limit.
        """
        # PCRE2_ANCHORED | PCRE2_NOTEMPTY_ATSTART... PCRE2_NOTEMPTY is what Perl's /g does after an empty match
        data = self._match(subject, start, 0x80000000 | 0x00000004 if at_start else 0)
        if data is None:
            return None
        first, last = _cy.match_substring_span_bynumber(data, subject, 0)
        take = _cy.match_substring_bynumber
        groups = tuple([take(data, subject, number) or b"" for number in range(self.groups + 1)])
        return first, last, groups

    def _match(self, subject: bytes, start: int, options: int = 0) -> Any:
        if type(subject) is not bytes:
            subject = bytes(subject)
        try:
            data, _, _ = _cy.match(self._code, subject, len(subject), start, self._context, options)
        except pcre2.LibraryError as error:
            raise ExpandError(f"regular expression {text(self.pattern)!r} gave up: {error.msg}") from None
        return data


def text(octets: bytes) -> str:
    """Octets as they go into a message: UTF-8, anything else kept as surrogates."""
    return octets.decode("utf-8", "surrogateescape")


@functools.lru_cache(maxsize=1024)
def compile_regex(pattern: bytes, *, caseless: bool = False) -> Regex:
    """Compile `pattern` once.

    Raises:
        ExpandError: `regular expression error in "x": why at offset n`, Exim's text.
    """
    if len(pattern) > PATTERN_LIMIT_OCTETS:
        raise ExpandError(f"regular expression is longer than {PATTERN_LIMIT_OCTETS} octets")
    pattern = bytes(pattern)
    try:
        code = _cy.compile(_LIMITS + pattern, _CASELESS if caseless else 0, _PYTHON_HABITS)
    except pcre2.PatternError as error:
        why = cast("str", error.msg).partition("; ")[2]
        offset = max(error.pos - len(_LIMITS), 0)
        raise ExpandError(f'regular expression error in "{text(pattern)}": {why} at offset {offset}') from None
    try:
        _cy.jit_compile(code)
    except pcre2.LibraryError:
        pass  # no JIT on this machine: the interpreter does it, with the same limits
    return Regex(pattern, code)
