"""Parts of a tree that look at nothing: their value is known before anything is evaluated.

Layer: sans-I/O.  Spec: expansion.md 10.2.
Input: a folded node.  Output: what evaluating it always gives, worked out by the evaluator itself.
Invariants: a part that is closed reads no variable but the `$item` and `$value` that it sets itself, no header, clock
or chance, and leaves nothing behind; one that fails, or meets a limit, has no known value.
"""

from __future__ import annotations

from typing import Final

from ..errors import ExpandError
from . import conditions, items, operators, tree
from .compiler import Compiler
from .scope import Scope
from .tree import Node

#: kinds that are closed if all their parts are
_PLAIN: Final = frozenset(["text", "seq", "absent", "wrapped", "compare", "not", "and", "or", "true", "false", "if"])
#: kinds that set `$item`, or `$value` as well, for the parts behind the first
_LOOPS: Final = frozenset(["each", "filter", "map", "reduce"])
_IN_LOOP: Final = {"each": ("item",), "filter": ("item",), "map": ("item",), "reduce": ("item", "value")}


def is_closed(node: Node, bound: tuple[str, ...] = ()) -> bool:
    """Whether the value of `node` depends on nothing but itself; `bound`: variables that are set around it."""
    kind, data = node.kind, node.data
    if kind == "var":
        return data in bound
    if kind in _LOOPS:
        first, *rest = node.parts
        return is_closed(first, bound) and all(is_closed(part, _IN_LOOP[kind]) for part in rest)
    if kind == "op":
        operator = operators.OPERATORS[data[0]]
        if not operator.constant or operator.name == "listnamed":
            return False
    elif kind == "call":
        if data == "sg":
            return all(is_closed(part, bound) for part in node.parts[:2]) and _is_plain_replacement(node.parts[2])
        if data not in items.CALLS:
            return False
    elif kind == "test":
        if data not in conditions.TESTS:
            return False
    elif kind not in _PLAIN or (kind == "if" and data is not None):
        return False
    return all(is_closed(part, bound) for part in node.parts)


def _is_plain_replacement(node: Node) -> bool:
    """Whether what `sg` puts in place of a match is text and groups of that match."""
    if node.kind != "text":
        return False
    text: bytes = node.data
    return b"{" not in text and all(part[:1].isdigit() for part in text.split(b"$")[1:])


def value_of(node: Node) -> bytes | None:
    """What a closed node always gives; None if it fails."""
    from .program import DEFAULT  # noqa: PLC0415  # programs are made with this module

    try:
        return bytes(Compiler(DEFAULT).compile(node).evaluate(Scope()))
    except ExpandError:
        return None


def answer_of(condition: Node) -> bool | None:
    """What a closed condition always answers; None if it fails."""
    found = value_of(Node("if", (condition, tree.text(b"1"), tree.text(b""))))
    return None if found is None else bool(found)
