"""Parse what stands behind `${name`: items, operators, variables in braces.

Layer: sans-I/O.  Spec: expansion.md 2, 3; X-4, X-5, X-6, X-8, X-13.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ..errors import ExpandError
from . import operators, searches, tree, variables
from .parse_conditions import COMPARATORS, CONDITIONS, condition, list_argument
from .parser import SyntaxFailure, partial
from .regexes import text as as_text
from .tree import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from .parser import Parser

_OPEN, _CLOSE, _DOLLAR, _COLON = b"{}$:"

#: items that only hand their arguments to a function: least and most arguments
CALLS: Final = {
    "hash": (2, 3),
    "hmac": (3, 3),
    "imapfolder": (1, 3),
    "length": (2, 2),
    "listquote": (2, 2),
    "nhash": (2, 3),
    "prvs": (2, 3),
    "sg": (3, 3),
    "substr": (2, 3),
    "tr": (3, 3),
}
#: T3, and not here: what blocks, loads code or probes this machine
NOT_BUILT: Final = frozenset(["authresults", "dlfunc", "perl", "readfile", "readsocket", "run", "srs_encode"])
#: operators that take a certificate variable as it is
CERTIFICATE_OPERATORS: Final = frozenset(["md5", "sha1", "sha256", "base64"])
_CONDITION_NAME: Final = re.compile(rb"[=<>]=?|[A-Za-z0-9_]+")


def item(parser: Parser, name: str, start: int) -> Node:
    """What begins at `start`; the parser stands behind the name.

    Raises:
        SyntaxFailure: with Exim's text.
    """
    if name in CALLS:
        least, most = CALLS[name]
        return Node("call", tuple(parser.arguments(name, least, most)), name, start)
    special = _ITEMS.get(name)
    if special is not None:
        node = special(parser)
        return Node(node.kind, node.parts, node.data, start)
    if name in NOT_BUILT:
        parser.fail(f'"${{{name}" encountered, but this facility is not included in this binary')
    octet = parser.peek()
    if octet == _COLON:
        return _operator(parser, name, start)
    if octet != _CLOSE:
        parser.fail(f'"${{{name}" is not a known operator (or a }} is missing in a variable reference)')
    if not variables.is_known(name, parser.extra):
        parser.fail(variables.unknown(f'unknown variable in "${{{name}}}"', name))
    parser.at += 1
    return Node("var", (), name, start)


def _operator(parser: Parser, name: str, start: int) -> Node:
    chosen = operators.find(name)
    plain = name.partition("_")[0] if chosen is None else chosen.name
    if name == "stat":
        parser.fail('"${stat" encountered, but this facility is not included in this binary')
    if chosen is not None and chosen.name in CERTIFICATE_OPERATORS and parser.source[parser.at + 1] == _DOLLAR:
        end = parser.source.find(b"}", parser.at)
        variable = as_text(parser.source[parser.at + 2 : max(end, 0)])
        if variables.SOURCES.get(variable) is variables.Source.CERTIFICATE:
            parser.at = end + 1
            return Node("certop", (), (chosen.name, variable), start)
    text = parser.braced()
    if chosen is not None:
        return Node("op", (text,), (chosen.name, name), start)
    message = f'unknown expansion operator "{name}"'
    if operators.find(plain) is not None:
        message += f' ("{plain}" does not take an _arg)'
    failure = SyntaxFailure(message, start)
    failure.before = [text]
    raise failure


def _argument(parser: Parser, message: str, *, brace: bool = True) -> Node:
    """`{string}`, or a failure that says what is missing."""
    if parser.skip_space() != _OPEN:
        parser.fail_brace(message) if brace else parser.fail(message)
    return parser.braced()


def _with_before(error: SyntaxFailure, done: list[Node]) -> None:
    error.before = done + error.before


def _choose(parser: Parser, kind: str, build: Callable[[Node, Node], Node]) -> Node:
    """Read the yes and no strings and build the item; an error has the item around what was read."""
    try:
        yes, no = parser.yes_no(kind)
    except SyntaxFailure as error:
        if not any(node.kind == "partial" for node in error.before):
            error.before.append(build(tree.EMPTY, tree.EMPTY))
        partial(error, build)
        raise
    return build(yes, no)


def _if(parser: Parser) -> Node:
    parser.skip_space()
    test = condition(parser)
    return _choose(parser, "if", lambda yes, no: Node("if", (test, yes, no)))


def _acl(parser: Parser) -> Node:
    return Node("acl", tuple(parser.arguments("acl", 1, 10)))


def _env(parser: Parser) -> Node:
    name = _argument(parser, "missing '{' for name arg of env")
    return _choose(parser, "env", lambda yes, no: Node("choice", (name, yes, no), "env"))


# -- extract --------------------------------------------------------------------------------------------------------


def _extract(parser: Parser) -> Node:
    parser.rereads += 1
    try:
        return _extract_either(parser)
    finally:
        parser.rereads -= 1


def _extract_either(parser: Parser) -> Node:
    json = ""
    if parser.skip_space() != _OPEN and parser.source.startswith(b"json", parser.at):
        parser.at += 4
        json = "json"
        if parser.peek() == 0x73:
            parser.at += 1
            json = "jsons"
        parser.skip_space()
    start = parser.at
    first = _argument(parser, "missing '{' for arg 1 of extract")
    after_first = parser.at
    if json:
        return _tolerant(parser, start, first, lambda: _reading(parser, first, 2, json))
    number = _number_like(first)
    if number is not None:
        arguments = 3 if number else 2
        return _tolerant(parser, start, first, lambda: _reading(parser, first, arguments, ""))
    # only the value of the first argument tells how many follow: read both ways
    readings: list[Node] = []
    ends: list[int] = []
    errors: list[SyntaxFailure] = []
    depth, conditional = parser.depth, parser.conditional
    for arguments in (3, 2):
        parser.at = after_first
        parser.depth, parser.conditional = depth, conditional
        try:
            readings.append(_reading(parser, first, arguments, ""))
            ends.append(parser.at)
        except SyntaxFailure as error:
            errors.append(error)
            failure = Node("fail", (), tree.Failure(error.message_or_brace, error.column))
            readings.append(tree.seq([*error.before[1:], failure]))
    parser.depth, parser.conditional = depth, conditional
    if not ends:
        parser.at = start
        return _tolerant(parser, start, first, lambda: _raise(errors[1]))
    parser.at = ends[0]
    return Node("extract", (first, *readings))


def _raise(error: SyntaxFailure) -> Node:
    raise error


def _number_like(first: Node) -> bool | None:
    """Whether a constant first argument is a number; None when it is not constant."""
    if first.kind != "text":
        return None
    return re.fullmatch(rb"\s*-?[0-9]+\s*|\s*-\s*", first.data) is not None


def _reading(parser: Parser, first: Node, arguments: int, json: str) -> Node:
    read = [first]
    try:
        for number in range(2, arguments + 1):
            read.append(_argument(parser, f"missing '{{' for arg {number} of extract"))
    except SyntaxFailure as error:
        _with_before(error, read)
        raise
    kind = f"extract_{json}" if json else "extract_number" if arguments == 3 else "extract_key"
    return _choose(parser, "extract", lambda yes, no: Node("choice", (*read, yes, no), kind))


def _tolerant(parser: Parser, start: int, first: Node, read: Callable[[], Node]) -> Node:
    """Read an `extract`; in a branch that may be skipped, one that only goes wrong when it is evaluated is no error.

    While Exim skips it cannot know which of its forms it sees, and takes up to five strings.
    """
    depth, conditional = parser.depth, parser.conditional
    try:
        return read()
    except SyntaxFailure as error:
        if not conditional:
            raise
        parser.at, parser.depth, parser.conditional = start, depth, conditional
        try:
            _skip_extract(parser)
        except SyntaxFailure:
            if parser.in_body:
                raise
            raise error from None
        message = error.message_or_brace
        return tree.seq([*error.before, Node("fail", (), tree.Failure(message, error.column))])


def _skip_extract(parser: Parser) -> None:
    for _ in range(5):
        if parser.skip_space() != _OPEN:
            break
        parser.braced()
    if parser.skip_space() != _CLOSE and parser.source.startswith(b"fail", parser.at):
        parser.at += 4
        parser.skip_space()
    if parser.peek() != _CLOSE:
        parser.fail_brace("missing '}' closing extract")
    parser.at += 1


def _listextract(parser: Parser) -> Node:
    read: list[Node] = []
    try:
        for number in (1, 2):
            read.append(_argument(parser, f"missing '{{' for arg {number} of listextract"))
    except SyntaxFailure as error:
        _with_before(error, read)
        raise
    return _choose(parser, "listextract", lambda yes, no: Node("choice", (*read, yes, no), "listextract"))


def _certextract(parser: Parser) -> Node:
    field = _argument(parser, "missing '{' for field arg of certextract")
    try:
        if parser.skip_space() != _OPEN:
            parser.fail_brace("missing '{' for cert variable arg of certextract")
        parser.at += 1
        if parser.peek() != _DOLLAR:
            parser.fail('second argument of "certextract" must be a certificate variable')
        parser.at += 1
        literal = parser.string(in_braces=True, honour_dollar=False)
        parser.at += 1
    except SyntaxFailure as error:
        error.before.insert(0, field)
        raise
    name = as_text(literal.data)
    source = variables.SOURCES.get(name)
    failure: str | None = None
    if source is None and not variables.is_known(name, parser.extra):
        failure = f'no variable named "{name}"'
    elif source is not variables.Source.CERTIFICATE:
        failure = f'"{name}" is not a certificate'
    if failure is not None:
        # Exim notices when it evaluates; the strings behind are still read
        wrong = Node("fail", (), tree.Failure(failure, parser.at))
        return _choose(parser, "certextract", lambda yes, no: Node("if", (tree.seq([field, wrong]), yes, no), "value"))
    return _choose(parser, "certextract", lambda yes, no: Node("choice", (field, yes, no), ("certextract", name)))


# -- lists ----------------------------------------------------------------------------------------------------------


def _list_item(name: str) -> Callable[[Parser], Node]:
    def parse(parser: Parser) -> Node:
        if parser.skip_space() != _OPEN:
            parser.fail_brace(f"missing '{{' for first arg of {name}")
        read = [list_argument(parser)]
        suffix = f' inside "{name}" ' + ("condition" if name == "filter" else "item")
        if name == "reduce":
            try:
                if parser.skip_space() != _OPEN:
                    parser.fail_brace("missing '{' for second arg of reduce")
                read.append(parser.braced())
            except SyntaxFailure as error:
                _with_before(error, read)
                raise
        try:
            if parser.skip_space() != _OPEN:
                parser.fail_brace(f"missing '{{' for last arg of {name}")
            parser.at += 1
            inner = _inner(parser, name)
            if parser.skip_space() != _CLOSE:
                parser.fail(
                    f'missing }} at end of condition or expression inside "{name}"; '
                    "could be an unquoted } in the content"
                )
            parser.at += 1
            if parser.skip_space() != _CLOSE:
                parser.fail(f'missing }} at end of "{name}"')
            parser.at += 1
        except SyntaxFailure as error:
            error.before = list(read)
            raise
        return Node(name, (*read, Node("wrapped", (inner,), ("", suffix))))

    return parse


def _inner(parser: Parser, name: str) -> Node:
    parser.conditional += 1
    parser.in_body += 1
    try:
        inner = condition(parser) if name == "filter" else parser.string(in_braces=True)
    except SyntaxFailure as error:
        error.message = f'{error.message} inside "{name}" item'
        raise
    parser.conditional -= 1
    parser.in_body -= 1
    return inner


def _comparator(parser: Parser) -> Node:
    """The name of a condition in braces, not expanded."""
    column = parser.at
    text: bytes = parser.braced(honour_dollar=False).data
    match = _CONDITION_NAME.match(text)
    name = "" if match is None else as_text(match[0])
    if name in COMPARATORS:
        return tree.text(name.encode(), column)
    if not name:
        message = f'condition name expected, but found "{as_text(text[:16])}"'
    else:
        message = "comparator not handled for sort" if name in CONDITIONS else ""
    parser.fail(message)


def _sort(parser: Parser) -> Node:
    if parser.skip_space() != _OPEN:
        parser.fail_brace("missing '{' for list arg of sort")
    read = [list_argument(parser)]
    try:
        if parser.skip_space() != _OPEN:
            parser.fail_brace("missing '{' for comparator arg of sort")
        read.append(_comparator(parser))
        if parser.skip_space() != _OPEN:
            parser.fail_brace("missing '{' for extractor arg of sort")
        start = parser.at + 1
        parser.at += 1
        parser.conditional += 1
        extractor = parser.string(in_braces=True)
        parser.conditional -= 1
        source = as_text(parser.source[start : parser.at])
        parser.at += 1
        if parser.peek() != _CLOSE:
            parser.fail('missing } at end of "sort"')
        parser.at += 1
    except SyntaxFailure as error:
        error.before = list(read)
        raise
    return Node("sort", (*read, extractor), source)


# -- lookup ---------------------------------------------------------------------------------------------------------

_TYPE_ENDS: Final = frozenset(b" \t\n\r\v\f{\0")


def _lookup(parser: Parser) -> Node:
    key: Node | None = None
    read: list[Node] = []
    try:
        if parser.skip_space() == _OPEN:
            key = parser.braced()
            read.append(key)
            parser.skip_space()
        start = parser.at
        octet = parser.peek()
        if octet != 0 and octet not in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
            parser.fail("missing lookup type")
        while parser.peek() not in _TYPE_ENDS:
            parser.at += 1
        words = parser.source[start : parser.at]
        try:
            search = searches.parse_type(words, has_key=key is not None)
        except ExpandError as error:
            parser.fail(error.message)
        if parser.skip_space() != _OPEN:
            parser.fail_brace("missing '{' for lookup file-or-query arg")
        read.append(parser.braced())
        parser.skip_space()
    except SyntaxFailure as error:
        _with_before(error, read)
        raise
    return _choose(parser, "lookup", lambda yes, no: Node("lookup", (*read, yes, no), search))


def _prvscheck(parser: Parser) -> Node:
    read = parser.arguments("prvscheck", 1, 1, to_end=False)
    try:
        read += parser.arguments("prvscheck", 1, 1, to_end=False)
        read += parser.arguments("prvscheck", 0, 1)
    except SyntaxFailure as error:
        _with_before(error, read)
        raise
    return Node("prvscheck", tuple(read))


_ITEMS: Final[dict[str, Callable[[Parser], Node]]] = {
    "acl": _acl,
    "certextract": _certextract,
    "env": _env,
    "extract": _extract,
    "filter": _list_item("filter"),
    "if": _if,
    "listextract": _listextract,
    "lookup": _lookup,
    "map": _list_item("map"),
    "prvscheck": _prvscheck,
    "reduce": _list_item("reduce"),
    "sort": _sort,
}
