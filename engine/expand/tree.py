"""The tree of an expansion: what the parser makes and the compiler reads.

Layer: sans-I/O.
One class for all: `kind` names what it is, `parts` are the nodes inside, `data` is what is not a node.  That makes
folding, printing and walking one function each.  The kinds:

    text        data: octets
    seq         parts, joined; data True: the result ends at the first NUL (X-3)
    var         data: name
    group       data: number                          $1, ${1}
    header      data: (style, name)                   style h, b, r or l
    op          data: (name, argument text), parts: text            ${lc:..}, ${length_3:..}
    certop      data: (name, variable)                ${sha256:$tls_out_peercert}
    call        data: function name, parts: arguments               ${hash{..}{..}}
    if          parts: condition, yes, no
    choice      data: (item name), parts: source, yes, no           extract, listextract, env, certextract
    lookup      data: Search, parts: query or key + file, yes, no
    extract     parts: first, then the numbered and the keyed reading
    acl         parts: name and arguments
    filter map reduce sort                            lists
    fail        data: Failure: raise it here
    forced      data: item name: a forced failure     `fail`
    absent      a string that is not there: the default of a yes or no part
    wrapped     data: (before, after) around the message of any error inside; parts: one

and for conditions:

    not and or  parts
    compare     data: name of the condition, parts: two texts
    test        data: name of the condition, parts: texts
    def         parts: one variable;  defheader       data: (style, name)
    matchlist   data: kind, parts: subject, list
    each        data: (name, json kind), parts: list, condition
    aclcond     parts: name and arguments
    flag        data: name                            first_delivery, queue_running
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that was found while parsing; Exim's text and where it was found."""

    message: str
    column: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the tree; see the table at the top of this module."""

    kind: str
    parts: tuple[Node, ...] = ()
    data: Any = None
    column: int = field(default=0, compare=False)

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.parts))


ABSENT = Node("absent")
EMPTY = Node("text", (), b"")


def text(octets: bytes, column: int = 0) -> Node:
    return Node("text", (), octets, column)


def seq(parts: list[Node], column: int = 0) -> Node:
    """Nodes one after the other; neighbouring texts become one."""
    merged: list[Node] = []
    for part in parts:
        if part.kind == "text":
            if not part.data:
                continue
            if merged and merged[-1].kind == "text":
                merged[-1] = Node("text", (), merged[-1].data + part.data, merged[-1].column)
                continue
        merged.append(part)
    if not merged:
        return Node("text", (), b"", column)
    return merged[0] if len(merged) == 1 else Node("seq", tuple(merged), None, column)


def show(node: Node, indent: int = 0) -> Iterator[str]:
    """Lines that show the tree to a person."""
    data = "" if node.data is None else f" {node.data!r}"
    yield f"{'  ' * indent}{node.kind}{data}"
    for part in node.parts:
        yield from show(part, indent + 1)


def substitute(node: Node, constants: Mapping[str, bytes]) -> Node:
    """The tree with variables that have a known value replaced by it."""
    if node.kind == "var" and node.data in constants:
        return Node("text", (), bytes(constants[node.data]), node.column)
    parts = tuple([substitute(part, constants) for part in node.parts])
    return Node(node.kind, parts, node.data, node.column)
