"""Regular expressions: PCRE2 over octets, compiled once, bounded when they match.

Layer: sans-I/O.  Spec: expansion.md 4 (`match`), 2 (`sg`); pcre2pattern "Setting match and backtracking depth limits".
Invariants: a pattern cannot raise the limits (PCRE2 takes the lowest that is set); a match that meets a limit is an
error, never a hang.
"""

from __future__ import annotations

import functools
from typing import Final, cast

import pcre2
from pcre2 import _cy

from ..errors import ExpandError
from ._evaluate import Regex, hooks

__all__ = ["Regex", "compile_regex", "text"]

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
    return Regex(pattern, code, _cy.create_match_context(), min(_cy.pattern_capture_count(code), GROUP_LIMIT))


# the evaluator does the rest; it is built without the library
hooks.regex_match = _cy.match
hooks.regex_span = _cy.match_substring_span_bynumber
hooks.regex_error = pcre2.LibraryError
