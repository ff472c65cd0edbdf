"""Parse the conditions of `${if`, `filter`, `forany` and `forall`.

Layer: sans-I/O.  Spec: expansion.md 4.
Every function stands behind the name of the condition when it is called and leaves the parser behind its last brace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import tree, variables
from .parser import HEADER_STYLES, SyntaxFailure
from .regexes import text as as_text
from .tree import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from .parser import Parser

_OPEN, _CLOSE, _COLON = b"{}:"

#: two strings that are compared
COMPARED: Final = frozenset(
    ["=", "==", "<", "<=", ">", ">=", "eq", "eqi", "lt", "lti", "le", "lei", "gt", "gti", "ge", "gei"]
)
NUMERIC: Final = frozenset(["=", "==", "<", "<=", ">", ">="])
#: two strings
TWO_STRINGS: Final = COMPARED | {"match", "inlist", "inlisti", "crypteq"}
#: one string
ONE_STRING: Final = frozenset(["isip", "isip4", "isip6"])
#: name -> kind of list
LIST_MATCHES: Final = {
    "match_domain": "domain",
    "match_address": "address",
    "match_local_part": "local_part",
    "match_ip": "ip",
}
FLAGS: Final = frozenset(["first_delivery", "queue_running"])
EACH: Final = {
    "forany": (True, ""),
    "forall": (False, ""),
    "forany_json": (True, "json"),
    "forall_json": (False, "json"),
    "forany_jsons": (True, "jsons"),
    "forall_jsons": (False, "jsons"),
}
#: T3, and not here: what blocks or probes this machine.  Number of strings each takes.
NOT_BUILT: Final = {
    **dict.fromkeys(["exists", "ldapauth", "pam", "pwcheck", "radius"], 1),
    "inbound_srs": 2,
    "saslauthd": 4,
}


#: conditions that `sort` can order by
COMPARATORS: Final = COMPARED - {"=", "==", "eq", "eqi"}
#: the name of every condition
CONDITIONS: Final = frozenset(
    [
        *("and", "or", "acl", "bool", "bool_lax", "def"),
        *(TWO_STRINGS | ONE_STRING | FLAGS),
        *LIST_MATCHES,
        *EACH,
        *NOT_BUILT,
    ]
)


def condition(parser: Parser) -> Node:
    """One condition with its name and negations.

    Raises:
        SyntaxFailure: with Exim's text.
    """
    parser.depth += 1
    if parser.depth > 100:
        parser.fail("expansion is nested too deep")
    negated = False
    start = parser.at
    while parser.skip_space() == 0x21:
        negated = not negated
        parser.at += 1
    node = _named(parser, _name(parser), start)
    parser.depth -= 1
    return Node("not", (node,), None, start) if negated else node


def _name(parser: Parser) -> str:
    octet = parser.peek()
    if octet in b"=<>":
        start = parser.at
        parser.at += 1
        if parser.peek() == 0x3D:
            parser.at += 1
        return as_text(parser.source[start : parser.at])
    name = parser.condition_name()
    if not name:
        found = as_text(parser.source[parser.at : -1][:16])
        parser.fail(f'condition name expected, but found "{found}"')
    return as_text(name)


def _named(parser: Parser, name: str, start: int) -> Node:
    if name == "def":
        return _def(parser)
    if name in FLAGS:
        return Node("flag", (), name, start)
    if name in TWO_STRINGS:
        first, second = _two(parser, name, expand_second=True)
        return Node("compare" if name in COMPARED else "test", (first, second), name, start)
    if name in ONE_STRING:
        _open(parser, name)
        return Node("test", (parser.braced(),), name, start)
    if name in ("bool", "bool_lax"):
        _open(parser, name)
        return Node("test", tuple(_counted(parser, name, 1, to_end=False)), name, start)
    if name in ("and", "or"):
        return _group(parser, name, start)
    if name in EACH:
        return _each(parser, name, start)
    if name in LIST_MATCHES:
        subject, members = _two(parser, name, expand_second=False)
        return Node("matchlist", (subject, members), name, start)
    if name == "acl":
        _open(parser, name)
        parser.at += 1
        return Node("aclcond", tuple(_counted(parser, name, 10, to_end=True)), name, start)
    if name in NOT_BUILT:
        return _not_built(parser, name)
    parser.fail(f'unknown condition "{name}"')


def _open(parser: Parser, name: str) -> None:
    if parser.skip_space() != _OPEN:
        parser.fail(f'missing {{ after "{name}"')


def _two(parser: Parser, name: str, *, expand_second: bool) -> tuple[Node, Node]:
    _open(parser, name)
    first = parser.braced()
    try:
        if parser.skip_space() != _OPEN:
            parser.fail(f'missing 2nd string in {{}} after "{name}"')
        second = parser.braced(honour_dollar=expand_second)
    except SyntaxFailure as error:
        error.before.insert(0, Node("number", (first,)) if name in NUMERIC else first)
        raise
    return first, second


def _counted(parser: Parser, name: str, most: int, *, to_end: bool) -> list[Node]:
    try:
        return parser.arguments(name, 1, most, to_end=to_end)
    except SyntaxFailure as error:
        if error.is_brace:
            error.is_brace = False
            error.message = f"too few arguments or bracketing error for {name}"
        raise


def _def(parser: Parser) -> Node:
    if parser.peek() != _COLON:
        parser.fail('":" expected after "def"')
    parser.at += 1
    start = parser.at
    name = as_text(parser.condition_name())
    for prefix, style in HEADER_STYLES.items():
        if name.startswith(prefix):
            return Node("defheader", (), (style, parser.header_name(name[len(prefix) :])), start)
    if not name:
        parser.fail('variable name omitted after "def:"')
    if not variables.is_known(name, parser.extra):
        parser.fail(variables.unknown(f'unknown variable "{name}" after "def:"', name))
    return Node("def", (Node("var", (), name, start),), None, start)


def _inside(parser: Parser, suffix: str, parse: Callable[[Parser], Node]) -> Node:
    """What `parse` reads; `suffix` goes behind every message from inside it, now or when it is evaluated."""
    try:
        node = parse(parser)
    except SyntaxFailure as error:
        error.message = f"{error.message_or_brace}{suffix}"
        error.before = [Node("wrapped", (tree.seq(error.before),), ("", suffix))] if error.before else []
        raise
    return Node("wrapped", (node,), ("", suffix), node.column)


def _group(parser: Parser, name: str, start: int) -> Node:
    _open(parser, name)
    parser.at += 1
    members: list[Node] = []
    suffix = f' inside "{name}{{...}}" condition'
    try:
        while parser.skip_space() != _CLOSE:
            if parser.peek() != _OPEN:
                parser.fail(f'each subcondition inside an "{name}{{...}}" condition must be in its own {{}}')
            parser.at += 1
            parser.conditional += bool(members)
            members.append(_inside(parser, suffix, condition))
            parser.conditional -= len(members) > 1
            if parser.skip_space() != _CLOSE:
                parser.fail(f'missing }} at end of condition inside "{name}" group')
            parser.at += 1
    except SyntaxFailure as error:
        done = Node(name, tuple(members))
        inner = tree.seq(error.before)
        branches = (inner, tree.EMPTY) if name == "and" else (tree.EMPTY, inner)
        error.before = [Node("if", (done, *branches))]
        raise
    parser.at += 1
    return Node(name, tuple(members), None, start)


def _each(parser: Parser, name: str, start: int) -> Node:
    _open(parser, name)
    members = list_argument(parser)
    try:
        _open(parser, name)
        parser.at += 1
        parser.conditional += 1
        inner = _inside(parser, f' inside "{name}" condition', condition)
        parser.conditional -= 1
        if parser.skip_space() != _CLOSE:
            parser.fail(f'missing }} at end of condition inside "{name}"')
    except SyntaxFailure as error:
        error.before = [members]  # the condition itself has been read only, so far
        raise
    parser.at += 1
    return Node("each", (members, inner), name, start)


def list_argument(parser: Parser) -> Node:
    """`{list}` at its open brace.  A literal `<c` at the start of the raw text is the separator (X-21)."""
    return parser.braced()


def _not_built(parser: Parser, name: str) -> Node:
    """A condition that is parsed and refused when it is wanted."""
    _open(parser, name)
    column = parser.at
    if NOT_BUILT[name] == 1:
        parts = [parser.braced()]
    elif name == "saslauthd":
        parser.at += 1
        parts = parser.arguments(name, 2, 4)
    else:
        parts = list(_two(parser, name, expand_second=True))
    failure = Node("fail", (), tree.Failure(f'support for "{name}" not compiled', column))
    return Node("test", (tree.seq([*parts, failure]),), "bool", column)
