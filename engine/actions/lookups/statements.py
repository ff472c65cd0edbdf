"""What the text of an SQL statement tells of it: whether it only reads, and whether it changes the session.

Layer: pure.  Spec: expansion 5.2 (the trap of a SELECT with side effects).
Nothing here parses SQL; in doubt a statement may write, and then its result is not kept and it is not sent twice.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN_START: Final = re.compile(rb"\s*(?:select)\b", re.IGNORECASE)
# a word is tried from its first octet only, and given up whole: text from outside may be one very long word
_CALL: Final = re.compile(rb"(\.\s*+)?((?<![\w$\x80-\xff])[\w$\x80-\xff]++|[\"`\]])\s*+\(")
#: octets; a longer statement is not looked through (arbitrary; its result would not be kept either)
_MAX_OCTETS: Final = 64 * 1024
_IMPURE: Final = re.compile(
    rb";|:=|/\*|--|#|\b(?:into|for|lock|call|procedure|returning|current_\w+|localtime\w*|sysdate|session_user)\b",
    re.IGNORECASE,
)
# names before a parenthesis that call nothing, and functions that read nothing but their arguments
_HARMLESS: Final = frozenset(
    b"select from where and or not in exists any some all on using as values between like when then else over union "
    b"except intersect by having limit offset join left right cross inner outer natural case distinct "
    b"abs ascii avg cast ceil ceiling char char_length character_length coalesce concat concat_ws convert count "
    b"decimal floor group_concat hex ifnull instr isnull lcase least length locate lower lpad ltrim max md5 "
    b"greatest min mod nullif numeric octet_length position replace reverse round rpad rtrim sha1 sign split_part "
    b"string_agg strpos substr substring sum total trim ucase unhex upper varchar".split()
)
#: statements that leave something behind in the session: settings, locks, names, an open transaction
_LEAVES_TRACES: Final = re.compile(
    rb"\s*(?:set|reset|use|lock|unlock|prepare|deallocate|declare|discard|listen|handler|xa|begin|start|attach|detach)\b",
    re.IGNORECASE,
)

_SHARES: Final = re.compile(rb"\s*(?:select|insert|update|delete|merge|replace|with|values)\b", re.IGNORECASE)


def is_plain_select(query: bytes) -> bool:
    """Whether a statement only reads, as far as its text can tell: then its result may be kept.

    A SELECT may call a function that writes, so a call of any function that is not known to be harmless makes it no
    plain one, as does a function of a schema, whatever its name; so does anything that needs a parser to be sure of.
    """
    if len(query) > _MAX_OCTETS or not _PLAIN_START.match(query) or _IMPURE.search(query):
        return False
    return all(not match[1] and match[2].lower() in _HARMLESS for match in _CALL.finditer(query))


def may_share_transaction(query: bytes) -> bool:
    """Whether a statement may be run in a transaction with others, as far as its text can tell.

    What says nothing of transactions itself; what must have one of its own says so, and is run alone then.
    """
    return len(query) <= _MAX_OCTETS and _SHARES.match(query) is not None


def leaves_traces(query: bytes) -> bool:
    """Whether the session of a statement should not be used for another one: it is not the one we opened any more."""
    return _LEAVES_TRACES.match(query) is not None
