"""Literals in the text of a statement for PostgreSQL.

Layer: pure.  Spec: expansion 5.4, X-25.
`quote_pgsql` writes backslash escapes, which a server of today (standard_conforming_strings) takes for plain text
inside '…'.  A literal whose every backslash is one of those escapes is therefore sent as E'…'; where a literal ends is
the same either way, so nothing can leave it (`escape_literals`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from engine.expand.quoting import quote_pgsql

from .driver import Template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: a token that may not be looked into, or a plain literal with the ones that continue it on later lines
_TOKEN: Final = re.compile(
    rb"""
    (?P<skip> --[^\n\r]* | "(?:[^"])*" | \$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$
            | (?:[EeBbXxNn]|[Uu]&)' | [A-Za-z_\x80-\xff][\w$\x80-\xff]* | /\*)
    | (?P<literal> ' (?:[^']|'')*+ ' (?: [ \t\v\f]*+ [\n\r] (?:\s | --[^\n\r]*+)*+ ' (?:[^']|'')*+ ' )*+ )
    """,
    re.VERBOSE,
)
#: what may follow a backslash that `quote_pgsql` wrote, or any other octet
_QUOTED_CONTENT: Final = re.compile(rb"(?:[^\\]|\\[\\\"ntrb])*\Z", re.DOTALL)
_END_OF_ESCAPED: Final = re.compile(rb"(?:[^'\\]|''|\\.)*'", re.DOTALL)
_END_OF_PLAIN: Final = re.compile(rb"(?:[^']|'')*'", re.DOTALL)
_COMMENT_MARK: Final = re.compile(rb"/\*|\*/")


def escape_literals(query: bytes) -> bytes:
    """Turn the literals that hold what `quote_pgsql` wrote into E'…', for a server with standard_conforming_strings.

    A literal with another backslash in it stays as it is: it was not written for escapes, and its end might move.
    """
    if b"\\" not in query:
        return query
    out = bytearray()
    at = 0
    for match in _tokens(query):
        text = match["literal"]
        if text is not None and b"\\" in text and _QUOTED_CONTENT.match(text):
            out += query[at : match.start()] + b" E"
            at = match.start()
    return bytes(out + query[at:])


def _tokens(query: bytes) -> Iterator[re.Match[bytes]]:
    """What is not to be looked into, and the plain literals, in order."""
    at = 0
    while match := _TOKEN.search(query, at):
        yield match
        at = match.end() if match["literal"] is not None else _end_of_skipped(query, match)


def _end_of_skipped(query: bytes, match: re.Match[bytes]) -> int:
    token, end = match["skip"], match.end()
    if token == b"/*":
        depth = 1
        while depth and (mark := _COMMENT_MARK.search(query, end)):
            depth += 1 if mark[0] == b"/*" else -1
            end = mark.end()
        return len(query) if depth else end
    if token.endswith(b"'"):
        closing = (_END_OF_ESCAPED if token in (b"E'", b"e'") else _END_OF_PLAIN).match(query, end)
        return closing.end() if closing else len(query)
    if token.startswith(b"$"):
        found = query.find(token, end)
        return found + len(token) if found >= 0 else len(query)
    return end


#: stands for a literal that changes
_MARK: Final = b"'\x01'"
_PARAMETER: Final = re.compile(rb"\$\d|\x01")


def template_or_none(pieces: Sequence[bytes]) -> Template | None:
    """A statement with literals between these pieces, whose quotes stand at the ends of the pieces.

    None if they are no literals of their own: part of a longer one, of another kind, in a comment.
    """
    if any(map(_PARAMETER.search, pieces)):
        return None
    outer = [piece[1:] if number else piece for number, piece in enumerate(pieces)]
    outer = [piece[:-1] if number < len(pieces) - 1 else piece for number, piece in enumerate(outer)]
    if _MARK.join(outer) != b"\x01".join(pieces):
        return None
    literals = [match["literal"] for match in _tokens(_MARK.join(outer)) if match["literal"] is not None]
    if literals.count(_MARK) != len(pieces) - 1:
        return None
    text = b"".join(b"$%d%b" % (number, piece) if number else piece for number, piece in enumerate(outer))
    return Template(tuple(outer), quote_pgsql, text)
