"""Fold a tree: what is known beforehand is computed once, branches that cannot be taken go.

Layer: sans-I/O.  Spec: expansion.md 10.2; X-11 (a branch that is not taken does nothing).
Input: a tree.  Output: a smaller one that gives the same octets, the same errors and the same effects.
Two kinds of node appear only here and behind: `true` and `false`, conditions that are decided.  A `match` or `inlist`
of constants that holds is not one of them, since it sets `$1` or `$value`: it goes with its `if`, where nothing can see
what it has set, and otherwise stays (X-19).
Nothing that could fail is dropped unless it would not have been evaluated; an operator that fails on a constant stays
and fails when it is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import ExpandError
from . import conditions, items, operators, regexes, tree, variables
from ._evaluate import split_list
from .closed import answer_of, is_closed, value_of
from .tree import Node

if TYPE_CHECKING:
    from .program import ExpandOptions

TRUE: Final = Node("true")
FALSE: Final = Node("false")

#: operators that take any text and never fail
_TOTAL: Final = frozenset(
    [
        *("lc", "uc", "strlen", "domain", "local_part", "address", "escape", "escape8bit", "hexquote", "rxquote"),
        *("quote", "quote_local_part", "md5", "sha1", "sha256", "base64", "str2b64", "utf8clean", "from_utf8"),
        *("listcount", "xtextd"),
    ]
)
#: variables whose value is octets that are there already: looking at them does nothing
_QUIET: Final = frozenset(
    [variables.Source.SCOPE, variables.Source.OUTSIDE, variables.Source.VALUE, variables.Source.ITEM]
)
#: conditions that set `$1` or `$value` where they hold
_SETTING: Final = frozenset(["match", "inlist", "inlisti"])
_TEXT_ORDER: Final = frozenset(["eq", "eqi", "lt", "lti", "le", "lei", "gt", "gti", "ge", "gei"])


#: nodes of a program; an `extract` that may be read in two ways holds what is inside it twice.  Arbitrary.
NODE_LIMIT: Final = 200_000


class _Folder:
    """Folds one tree, counting its nodes."""

    def __init__(self) -> None:
        self._left = NODE_LIMIT

    def fold(self, node: Node) -> Node:
        self._left -= 1
        if self._left < 0:
            raise ExpandError("expansion is too complex")
        parts = tuple([self.fold(part) for part in node.parts])
        node = Node(node.kind, parts, node.data, node.column)
        rule = _RULES.get(node.kind)
        return node if rule is None else rule(node)


def fold(node: Node) -> Node:
    """The folded tree.

    Raises:
        ExpandError: it has too many nodes.
    """
    return _Folder().fold(node)


def is_quiet(node: Node) -> bool:
    """Whether evaluating `node` can neither fail nor change anything that is seen outside it."""
    if node.kind == "op":
        return node.data[0] in _TOTAL and is_quiet(node.parts[0])
    if node.kind == "var":
        return variables.source_of(node.data) in _QUIET
    if node.kind == "compare":
        return node.data in _TEXT_ORDER and all(map(is_quiet, node.parts))
    if node.kind in ("text", "group", "true", "false", "absent"):
        return True
    return node.kind in ("seq", "if", "and", "or", "not", "def", "wrapped") and all(map(is_quiet, node.parts))


def _text_of(parts: tuple[Node, ...]) -> list[bytes] | None:
    """The octets of parts that are all constant, else None."""
    return [part.data for part in parts] if all(part.kind == "text" for part in parts) else None


def _seq(node: Node) -> Node:
    if not node.data:
        flat: list[Node] = []
        for part in node.parts:
            flat.extend(part.parts if part.kind == "seq" and not part.data else (part,))
        return tree.seq(flat, node.column)
    first, *unseen = node.parts
    unseen = [part for part in unseen if not is_quiet(part)]
    return Node("seq", (first, *unseen), True, node.column) if unseen else first


def _op(node: Node) -> Node:
    known = _text_of(node.parts)
    operator = operators.OPERATORS[node.data[0]]
    if known is None or not operator.constant or operator.name == "listnamed":
        return node
    try:
        return tree.text(operator.apply(known[0], node.data[1], None), node.column)
    except ExpandError:
        return node


def _call(node: Node) -> Node:
    known = _text_of(node.parts)
    function = items.CALLS.get(node.data)
    if known is None or function is None:
        return node
    try:
        return tree.text(function(*known), node.column)
    except ExpandError:
        return node


def _wrapped(node: Node) -> Node:
    return node.parts[0] if is_quiet(node.parts[0]) else node


def _compare(node: Node) -> Node:
    known = _text_of(node.parts)
    if known is not None:
        try:
            return TRUE if conditions.compare(node.data, known[0], known[1]) else FALSE
        except ExpandError:
            return node
    first, second = node.parts
    if (
        first.kind == second.kind == "var"
        and first.data == second.data
        and node.data in ("eq", "eqi")
        and is_quiet(first)
    ):
        return TRUE
    return node


def _call_sg(node: Node) -> Node:
    if node.data != "sg":
        return _call(node)
    return _closed(node)


def _closed(node: Node) -> Node:
    """An item over lists or patterns that looks at nothing."""
    if not is_closed(node):
        return node
    value = value_of(node)
    return node if value is None else tree.text(value, node.column)


def _each(node: Node) -> Node:
    answer = answer_of(node) if is_closed(node) else None
    return node if answer is None else TRUE if answer else FALSE


def _holds(node: Node) -> bool | None:
    """Whether a `match` or `inlist` of constants holds; None where that is not known."""
    known = _text_of(node.parts)
    if known is None:
        return None
    subject, wanted = known
    if node.data == "match":
        try:
            return regexes.compile_regex(wanted).search(subject) is not None
        except ExpandError:
            return None
    if b"$" in wanted or b"\\" in wanted:  # expanded a second time
        return None
    compare = "eqi" if node.data == "inlisti" else "eq"
    return any(conditions.compare(compare, subject, item) for item in split_list(wanted))


def _answer(test: Node) -> bool | None:
    """What a condition answers, if all of it that will be looked at is known."""
    match test.kind:
        case "true" | "false":
            return test.kind == "true"
        case "wrapped":
            return _answer(test.parts[0])
        case "test" if test.data in _SETTING:
            return _holds(test)
        case "not":
            inner = _answer(test.parts[0])
            return None if inner is None else not inner
        case "and" | "or":
            for part in test.parts:
                found = _answer(part)
                if found is not (test.kind == "and"):
                    return found
            return test.kind == "and"
    return None


def _sees_settings(node: Node) -> bool:
    """Whether `node` may look at `$1` or `$value`."""
    return any(
        part.kind in ("group", "acl", "aclcond")
        or (part.kind == "var" and variables.source_of(part.data) is variables.Source.VALUE)
        or (part.kind == "lookup" and part.data.type.name.endswith("wildlsearch"))
        or _expanded_again(part) is not None
        for part in node.walk()
    )


def _with_groups(test: Node, yes: Node) -> Node:
    """What follows a `match` of constants that holds, with what it sets `$1` to in place of that."""
    if test.kind != "test" or test.data != "match" or any(map(_sets_groups, yes.walk())):
        return yes
    subject, pattern = (part.data for part in test.parts)
    groups = regexes.compile_regex(pattern).search(subject)
    return yes if groups is None else fold(_substitute_groups(yes, groups))


def _sets_groups(node: Node) -> bool:
    return node.kind == "matchlist" or node.data in ("match", "sg")


def _substitute_groups(node: Node, groups: tuple[bytes, ...]) -> Node:
    if node.kind == "group":
        return tree.text(groups[node.data], node.column) if node.data < len(groups) else node
    return Node(node.kind, tuple([_substitute_groups(part, groups) for part in node.parts]), node.data, node.column)


def _decide(test: Node) -> Node:
    """A condition with what is known of `match` and `inlist` in place of them."""
    if test.kind == "test" and test.data in _SETTING:
        found = _holds(test)
        return test if found is None else TRUE if found else FALSE
    if test.kind not in ("and", "or", "not", "wrapped"):
        return test
    parts = tuple([_decide(part) for part in test.parts])
    return _RULES[test.kind](Node(test.kind, parts, test.data, test.column))


def _test(node: Node) -> Node:
    if node.data in _SETTING:
        # one that does not hold sets nothing
        return FALSE if _holds(node) is False else node
    known = _text_of(node.parts)
    function = conditions.TESTS.get(node.data)
    if known is None or function is None:
        return node
    try:
        return TRUE if function(*known) else FALSE
    except ExpandError:
        return node


def _not(node: Node) -> Node:
    inner = node.parts[0]
    if inner.kind == "true":
        return FALSE
    if inner.kind == "false":
        return TRUE
    return inner.parts[0] if inner.kind == "not" else node


def _group(node: Node) -> Node:
    neutral, deciding = (TRUE, FALSE) if node.kind == "and" else (FALSE, TRUE)
    members: list[Node] = []
    for part in node.parts:
        if part.kind == neutral.kind:
            continue
        if part.kind == deciding.kind:
            if all(map(is_quiet, members)):
                return deciding
            members.append(part)
            break
        members.append(part)
    if not members:
        return neutral
    return Node(node.kind, tuple(members), None, node.column)


def _def(node: Node) -> Node:
    inner = node.parts[0]
    if inner.kind == "text":
        return TRUE if inner.data else FALSE
    return node


def _value_of(branch: Node, word: bytes) -> Node:
    return tree.text(word, branch.column) if branch.kind == "absent" else branch


def _if(node: Node) -> Node:
    test, yes, no = node.parts
    if node.data == "value":  # certextract of what is no certificate: fails while the first part is evaluated
        return node
    yes, no = _value_of(yes, b"true"), _value_of(no, b"")
    answer = _answer(test)
    if answer is not None:
        yes = _with_groups(test, yes)
        if not _sees_settings(yes if answer else no):
            return yes if answer else no
        yes, no = (yes, tree.EMPTY) if answer else (tree.EMPTY, no)
    elif not any(map(_sees_settings, (test, yes, no))):
        test = _decide(test)
    if test.kind == "true":
        return yes
    if test.kind == "false":
        return no
    if test.kind == "not":
        return _if(Node("if", (test.parts[0], no, yes), None, node.column))
    if yes.kind == no.kind == "text" and yes.data == no.data and is_quiet(test):
        return yes
    return Node("if", (test, yes, no), None, node.column)


def _extract(node: Node) -> Node:
    first, by_number, by_key = node.parts
    if first.kind != "text":
        return node
    reading = by_number if items.is_field_number(first.data) else by_key
    if reading.kind == "choice":
        return fold(Node("choice", (first, *reading.parts[1:]), reading.data, node.column))
    return reading


def _choice(node: Node) -> Node:
    function = items.CHOICES.get(node.data) if isinstance(node.data, str) else None
    known = _text_of(node.parts[:-2])
    if function is None or known is None:
        return node
    if node.data == "extract_number" and not items.is_field_number(known[0]):
        return node  # one of two readings of `extract`, and not the one that will be taken
    try:
        found = function(*known)
    except ExpandError:
        return node
    yes, no = node.parts[-2:]
    if found is None:
        return _value_of(no, b"")
    if yes.kind == "absent":
        return tree.text(found, node.column)
    return yes if yes.kind == "text" else node


_RULES: Final = {
    "seq": _seq,
    "op": _op,
    "call": _call_sg,
    "wrapped": _wrapped,
    "compare": _compare,
    "test": _test,
    "not": _not,
    "and": _group,
    "or": _group,
    "def": _def,
    "if": _if,
    "extract": _extract,
    "choice": _choice,
    "each": _each,
    "filter": _closed,
    "map": _closed,
    "reduce": _closed,
}


@dataclass(frozen=True, slots=True)
class Survey:
    """What a tree may do, found without evaluating it."""

    is_pure: bool
    reads: frozenset[str]


def survey(root: Node, options: ExpandOptions) -> Survey:
    """Whether a folded tree can block, and which variables it looks at; `*` among them when that is not known."""
    pure = True
    reads: set[str] = set()
    for node in root.walk():
        kind = node.kind
        if kind == "var":
            reads.add(node.data)
            if node.data in ("message_headers", "message_headers_raw"):
                reads.add("h_")
        elif kind in ("header", "defheader"):
            reads.add("h_")
        elif kind == "certop" or (kind == "choice" and isinstance(node.data, tuple)):
            reads.add(node.data[1])
        elif kind == "lookup":
            pure = False
            if node.data.type.name == "wildlsearch":
                reads.add("*")
        elif kind in ("acl", "aclcond"):
            pure = False
            reads.add("*")
        elif kind == "matchlist":
            if not conditions.list_is_pure(node.data, node.parts[1], options):
                pure = False
        else:
            again = _expanded_again(node)
            if again is not None:
                inner = _survey_again(again, options)
                pure &= inner.is_pure
                reads |= inner.reads
    return Survey(pure, frozenset(reads))


def _expanded_again(node: Node) -> Node | None:
    """The part of `node` whose value is expanded a second time, or None."""
    if node.kind == "op" and node.data[0] == "expand":
        return node.parts[0]
    if node.kind == "call" and node.data == "sg":
        return node.parts[2]
    if node.kind == "test" and node.data in ("inlist", "inlisti"):
        return node.parts[1]
    return None


def _survey_again(node: Node, options: ExpandOptions) -> Survey:
    from .program import compile_text  # noqa: PLC0415  # programs are made with this module

    if node.kind == "text":
        try:
            program = compile_text(node.data, options=options)
        except ExpandError:
            return Survey(True, frozenset())
        return Survey(program.is_pure, program.reads)
    if _is_from_outside(node):
        return Survey(True, frozenset())  # never expanded again: tainted text is refused, or taken as it is
    return Survey(False, frozenset(["*"]))


def _is_from_outside(node: Node) -> bool:
    """Whether the value has text from outside in it, if it has any text that is not constant and plain."""
    parts = node.parts if node.kind == "seq" and not node.data else (node,)
    for part in parts:
        if part.kind == "text" and b"$" not in part.data and b"\\" not in part.data:
            continue
        if part.kind != "var" or variables.source_of(part.data) is not variables.Source.OUTSIDE:
            return False
    return True
